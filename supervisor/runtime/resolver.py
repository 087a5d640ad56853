"""Names to addresses, by getaddrinfo in a helper process.

The supervisor forks a process that runs serve(), and holds the other end of
a SOCK_SEQPACKET pair in a Resolver. A message is one JSON object of at most
MAX_MESSAGE bytes, or BEAT, which the helper sends back at once. Neither side
trusts the messages of the other.
"""

from __future__ import annotations

# socket.getaddrinfo imports it for the first name; a confined process may be unable to read
# the file.
import contextlib
import encodings.idna  # noqa: F401
import json
import queue
import socket
import threading
from collections import deque
from dataclasses import dataclass
from ipaddress import ip_address

from vela.address import Family, IPAddress
from vela.errors import ResolutionError, VelaError

from . import name_servers

MAX_HOST = 320  # characters: RFC 1035, 2.3.4 allows 253; an address with its scope is shorter
MAX_ADDRESSES = 32
# bytes; JSON takes at most 12 for a character and fewer than 64 for an address, and an error
# contains the host twice
MAX_MESSAGE = 16384
# Look-ups at the same time. One without an answer occupies a thread for as long as
# resolv.conf says, by default 10 s for each name server (resolv.conf(5)).
MAX_THREADS = 32
BEAT = b"beat"

_AF = {None: socket.AF_UNSPEC, Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_VERSION = {Family.IPV4: 4, Family.IPV6: 6}
_KIND = {None: "", Family.IPV4: "IPv4 ", Family.IPV6: "IPv6 "}


class ResolverLostError(VelaError):
    """The helper ended or sent a malformed answer. Fork another, and restart() with its channel."""


@dataclass(frozen=True, slots=True)
class Question:
    """A look-up. Equal questions are sent once."""

    host: str
    family: Family | None
    """None: addresses of both families."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Either addresses, best first, or an error."""

    host: str
    family: Family | None
    addresses: tuple[IPAddress, ...]
    error: str | None
    """A sentence for the operator."""


def resolve(host: str, family: Family | None) -> tuple[IPAddress, ...]:
    """Return the addresses of host, best first (RFC 6724, section 6); blocks.

    At most MAX_ADDRESSES, unicast only. IPv4-mapped addresses are returned as
    IPv4. IPv6 link-local addresses are left out: they need a zone, which VELA
    does not carry. AI_ADDRCONFIG is not set, since it hides IPv6 addresses as
    long as only ::1 is configured here; addresses without a route come last
    anyway (rule 1). glibc follows changes of resolv.conf since 2.26.

    Raises ResolutionError, whose text is a sentence for the operator.
    """
    try:
        if not host.isprintable():  # getaddrinfo would stop reading at a NUL
            raise UnicodeError
        found = socket.getaddrinfo(host, None, family=_AF[family], type=socket.SOCK_DGRAM)
    except UnicodeError as err:
        raise ResolutionError(f"{host!r} is not a host name") from err
    except OSError as err:
        raise ResolutionError(f"{host}: {_reason(err, host, family)}") from err

    addresses = tuple(
        address
        for address in dict.fromkeys(_address(sockaddr) for *_, sockaddr in found)
        if not (address.is_unspecified or address.is_multicast)
        and (family is None or address.version == _VERSION[family])
    )
    usable = tuple(address for address in addresses if not _needs_zone(address))
    if addresses and not usable:
        raise ResolutionError(
            f"{host}: only link-local addresses; a global or unique local one is needed"
        )
    if not usable:
        raise ResolutionError(f"{host}: no usable {_KIND[family]}address")
    return usable[:MAX_ADDRESSES]


def _needs_zone(address: IPAddress) -> bool:
    # Sending to 169.254.0.0/16 needs none.
    return address.version == 6 and address.is_link_local


def _reason(err: OSError, host: str, family: Family | None) -> str:
    if not isinstance(err, socket.gaierror):
        return f"the look-up failed: {err.strerror}"
    match err.errno:
        case socket.EAI_NONAME:
            return "no such name"
        case socket.EAI_NODATA | socket.EAI_ADDRFAMILY:
            return f"no {_KIND[family]}address"
        case socket.EAI_AGAIN:
            # It does not say whether servers are silent, or answer that they failed.
            return name_servers.examine(host, family)
        case _:
            return f"the look-up failed: {err.strerror}"


def _address(
    sockaddr: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
) -> IPAddress:
    address = ip_address(sockaddr[0])
    return (address.ipv4_mapped or address) if address.version == 6 else address


def serve(channel: socket.socket) -> None:
    """Answer questions until the other side closes the channel: the body of the helper.

    The threads are daemons, so that pending look-ups end with the process.
    """
    channel.setblocking(True)
    questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
    threads = 0
    while message := channel.recv(MAX_MESSAGE + 1):
        if message == BEAT:
            channel.send(BEAT, socket.MSG_NOSIGNAL)
            continue
        questions.put(_parse_question(message))
        if threads < MAX_THREADS:
            threading.Thread(target=_answer_all, args=(questions, channel), daemon=True).start()
            threads += 1
    for _ in range(threads):
        questions.put(None)


def _answer_all(questions: queue.SimpleQueue[Question | None], channel: socket.socket) -> None:
    try:
        while question := questions.get():
            try:
                addresses, error = resolve(question.host, question.family), None
            except ResolutionError as err:
                addresses, error = (), str(err)
            answer = Answer(question.host, question.family, addresses, error)
            channel.send(_format_answer(answer), socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the supervisor is gone; serve() notices it too
    except BaseException:
        # A question without an answer would stay open for ever, so the helper ends.
        channel.shutdown(socket.SHUT_RDWR)
        raise


class Resolver:
    """The supervisor's side. Never blocks.

    Call receive() when the channel is readable and, while wants_write is true,
    when it is writable. After ResolverLostError it keeps questions until restart().
    """

    def __init__(self, channel: socket.socket) -> None:
        """Take over the channel, one end of a SOCK_SEQPACKET pair."""
        channel.setblocking(False)
        self._channel = channel
        # dicts, as sets that keep their order
        self._open: dict[Question, None] = {}
        self._unsent: deque[Question] = deque()
        self._awaits_beat = False

    def fileno(self) -> int:
        return self._channel.fileno()

    def close(self) -> None:
        """Close the channel; the helper ends."""
        self._channel.close()

    @property
    def wants_write(self) -> bool:
        """Whether questions wait here because the channel was full."""
        return bool(self._unsent)

    @property
    def outstanding(self) -> tuple[Question, ...]:
        """Questions without an answer, oldest first."""
        return tuple(self._open)

    def request(self, host: str, family: Family | None) -> None:
        """Ask for the addresses of host, unless that question is open already.

        Raises ResolutionError if host is too long to be a name.
        """
        if len(host) > MAX_HOST:
            raise ResolutionError(f"{host[:32]}... is longer than a host name can be")
        question = Question(host, family)
        if question not in self._open:
            self._open[question] = None
            self._unsent.append(question)
            self._send()

    def beat(self) -> bool:
        """Ask the helper for a sign of life. Return whether it has given the last one."""
        if self._awaits_beat:
            return False
        self._awaits_beat = True
        # Where the channel is full, or the helper has ended, the next call returns False.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._channel.send(BEAT, socket.MSG_NOSIGNAL)
        return True

    def forget(self, host: str, family: Family | None) -> None:
        """Ask no longer. The helper must be replaced, or its answer would be malformed."""
        question = Question(host, family)
        del self._open[question]
        if question in self._unsent:
            self._unsent.remove(question)

    def receive(self) -> list[Answer]:
        """Return the answers that have arrived, and send questions that wait.

        Raises ResolverLostError if the helper has ended and all its answers
        were returned, or if it sent a malformed answer. In the latter case
        questions whose answers arrived in the same call stay open.
        """
        self._send()
        answers: list[Answer] = []
        still_open = self._open.copy()
        while True:
            try:
                message = self._channel.recv(MAX_MESSAGE + 1)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # It ended with unread questions. The kernel reports that once, before its answers.
                continue
            if not message:
                if answers:
                    break  # the end of file is read again
                raise ResolverLostError("the resolver process ended")
            if message == BEAT:
                self._awaits_beat = False
                continue
            answer = _parse_answer(message)
            question = Question(answer.host, answer.family)
            if question not in still_open:
                raise ResolverLostError("the resolver process sent an answer without a question")
            del still_open[question]
            answers.append(answer)
        self._open = still_open
        return answers

    def restart(self, channel: socket.socket) -> None:
        """Continue with another helper: take over its channel, and send all open questions."""
        self._channel.close()
        channel.setblocking(False)
        self._channel = channel
        self._awaits_beat = False
        self._unsent = deque(self._open)
        self._send()

    def _send(self) -> None:
        while self._unsent:
            try:
                self._channel.send(_format_question(self._unsent[0]), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                # receive() reports it, and restart() asks again.
                self._unsent.clear()
                return
            self._unsent.popleft()


def _format_question(question: Question) -> bytes:
    family = question.family.value if question.family else None
    return json.dumps({"host": question.host, "family": family}).encode()


def _parse_question(message: bytes) -> Question:
    match _parse_object(message):
        case {"host": str(host), "family": None | str() as family, **rest} if not rest:
            return Question(host, _parse_family(family))
    raise ResolverLostError("a malformed question")


def _format_answer(answer: Answer) -> bytes:
    fields = {
        "host": answer.host,
        "family": answer.family.value if answer.family else None,
        "addresses": [str(address) for address in answer.addresses],
        "error": answer.error,
    }
    return json.dumps(fields).encode()


def _parse_answer(message: bytes) -> Answer:
    """Raise ResolverLostError unless message is an answer, whole and consistent."""
    match _parse_object(message):
        case {
            "host": str(host),
            "family": None | str() as family,
            "addresses": list(texts),
            "error": None | str() as error,
            **rest,
        } if not rest and len(texts) <= MAX_ADDRESSES and bool(texts) == (error is None):
            try:
                addresses = tuple(_parse_address(text) for text in texts)
            except ValueError as err:
                raise ResolverLostError("the resolver process sent an invalid address") from err
            return Answer(host, _parse_family(family), addresses, error)
    raise ResolverLostError("the resolver process sent a malformed answer")


def _parse_object(message: bytes) -> object:
    if len(message) > MAX_MESSAGE:
        raise ResolverLostError("a message to or from the resolver process is too long")
    try:
        return json.loads(message)
    except (ValueError, RecursionError) as err:
        raise ResolverLostError("a message to or from the resolver process is not JSON") from err


def _parse_family(text: str | None) -> Family | None:
    try:
        return None if text is None else Family(text)
    except ValueError as err:
        raise ResolverLostError(f"{text!r} is not an address family") from err


def _parse_address(text: object) -> IPAddress:
    if not isinstance(text, str):  # ip_address would take a number
        raise ValueError(f"{text!r} is not an address")
    address = ip_address(text)
    if _needs_zone(address):
        raise ValueError(f"{text} needs a zone")
    return address
