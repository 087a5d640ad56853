"""Keys that the supervisor can use and does not have: they are in the key holder, its child.

A request waits for its reply, LIMIT_S at most. A holder that dies, hangs or answers nonsense is
replaced at once: the new one is handed the same files again, and sessions derive their keys in
it as they need them, so circuits go on.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from vela.errors import ConfigError, RemoteProtocolError, VelaError
from vela.linux.sandbox import User, key_holder_filter
from vela.signaling.identity import TOKEN_LENGTH
from vela.signaling.limiter import TokenBucket
from vela.signaling.messages import HANDSHAKE
from vela.signaling.signer import (
    SESSION_TAG_LENGTH,
    TAG_LENGTH,
    Context,
    Key,
    Signer,
)

from . import key_holder
from .config.key import open_key
from .key_requests import (
    DERIVATION,
    KEY,
    MAX_REPLY,
    NUMBER,
    REPLY,
    REQUEST,
    SESSION,
    Operation,
    RefusedError,
    Status,
)
from .runtime.loop import EventLoop
from .runtime.process import Child, ExitStatus, fork_with_channel

MACHINE_FILE = "machine.key"
"""In the state directory: the secret by which this machine is told from others."""

# A reply takes 0.05 ms. A machine that keeps the holder from a CPU for this long keeps the
# supervisor from it, too.
LIMIT_S = 0.5
START_LIMIT_S = 5.0
# One that is lost again and again must not keep the supervisor busy with forks.
REPLACEMENT_RATE, REPLACEMENT_BURST = 1.0, 5.0
# Numbers of sessions that are over, sent together.
FORGET_AT_ONCE = 64

_T = TypeVar("_T")


class HolderLostError(VelaError):
    """The key holder died, hangs, or answers nonsense."""


class Successor(Protocol):
    """What has to know that there is another holder, which lacks what the one before had."""

    def on_holder_replaced(self) -> None: ...


class KeySource(Protocol):
    """What gives keys for their files: Keys."""

    def load(self, path: Path) -> Key:
        """Return the key in a file. Raises ConfigError."""

    def token(self, context: bytes) -> bytes | None:
        """Return what tells this machine from others; None: it cannot be had. See identity.py."""


Started = tuple[Child, socket.socket]

Numbers = Callable[[], tuple[int, int]]
"""Returns the numbers that a key and a session have in the holder that there is now."""


class Keys:
    """The supervisor's side of the key holder."""

    def __init__(
        self,
        loop: EventLoop,
        user: User,
        state_directory: Path,
        start: Callable[[], Started] | None = None,
    ) -> None:
        """Prepare; the holder starts with the first key. start: how, for tests.

        The machine's own secret is in state_directory, and made there if there is none.
        """
        self._state_directory = state_directory
        self._machine: HeldKey | None = None
        self._has_no_machine = False
        self._loop = loop
        self._user = user
        self._start = self._fork if start is None else start
        self._log = structlog.get_logger()
        self._numbers = itertools.count(1)
        self._sessions = itertools.count(1)
        self._ended: list[int] = []
        self._held: weakref.WeakValueDictionary[int, HeldKey] = weakref.WeakValueDictionary()
        self._dropped: list[int] = []
        self._replacements = TokenBucket(REPLACEMENT_RATE, REPLACEMENT_BURST)
        self.generation = 0
        """How many holders there were."""
        self._encrypts = False
        self._successors: weakref.WeakSet[Successor] = weakref.WeakSet()
        self._child: Child | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The holder's; None while there is none."""
        return None if self._child is None else self._child.pid

    def load(self, path: Path) -> HeldKey:
        """Return the key in a file; the same for files with the same key. Raises ConfigError."""
        fd = open_key(path)
        try:
            self._begin()
            number = self.attempt(lambda: self._load(fd))
        except VelaError as err:
            os.close(fd)
            raise ConfigError(f"{path}: the key holder does not take it: {err}") from err
        known = self._held.get(number)
        if known is not None:
            os.close(fd)
            return known
        key = self._held[number] = HeldKey(self, number, fd)
        return key

    def token(self, context: bytes) -> bytes | None:
        """Return what tells this machine from others; None: it cannot be had."""
        machine = self._machine or self._load_machine()
        if machine is None:
            return None

        def ask() -> bytes | None:
            said = self.ask(Operation.TOKEN, KEY.pack(machine.number) + context)
            if len(said) != TOKEN_LENGTH:
                raise HolderLostError(f"it answered with a token of {len(said)} bytes")
            return said

        return self._try(ask, None)

    def close(self) -> None:
        """End the holder, and all that it knows."""
        self._end()

    def require_encryption(self) -> None:
        """Let the holder do what encrypted circuits need. Raises HolderLostError."""
        if self._encrypts:
            return
        self._encrypts = True
        if self._child is not None:
            # Before its first encrypted circuit. Keys are loaded again, sessions derive theirs.
            self._replace("it has to load what encryption needs", planned=True)

    def follow(self, successor: Successor) -> None:
        """Let this know when there is another holder, for as long as it lives."""
        self._successors.add(successor)

    def load_file(self, fd: int, operation: Operation) -> bytes:
        """Return what the holder says of a file with a key. Raises HolderLostError, RefusedError.

        Starts the holder if there is none yet.
        """
        self._begin()
        return self.attempt(lambda: self.ask(operation, b"", (fd,)))

    # For the keys.

    def sign(self, numbers: Numbers, body: bytes, size: int) -> bytes:
        """Return the tags of a message, in so many bytes.

        Where the holder cannot be asked they are zero: the message is lost, as on any network.
        """

        def sign() -> bytes:
            tags = self.ask(Operation.SIGN, SESSION.pack(*numbers()) + body)
            if len(tags) != size:
                raise HolderLostError(f"it answered with tags of {len(tags)} bytes")
            return tags

        return self._try(sign, bytes(size))

    def verify(self, numbers: Numbers, datagram: bytes) -> bool:
        """Tell whether a message's tags are right. False where the holder cannot be asked."""

        def verify() -> bool:
            verdict = self.ask(Operation.VERIFY, SESSION.pack(*numbers()) + datagram)
            if verdict not in (b"\0", b"\1"):
                raise HolderLostError("it answered neither yes nor no")
            return verdict == b"\1"

        return self._try(verify, False)

    def _try(self, action: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return self.attempt(action)
        except VelaError as err:
            self._log.debug("key_holder_not_asked", error=str(err))
            return otherwise

    def attempt(self, action: Callable[[], _T]) -> _T:
        """Do what asks the holder, once more if it is lost; raises HolderLostError, RefusedError.

        The action must ask for all that a new holder does not know.
        """
        try:
            return action()
        except HolderLostError as err:
            self._replace(str(err))
            return action()

    def ask(self, operation: Operation, arguments: bytes, descriptors: Sequence[int] = ()) -> bytes:
        """Return the holder's result. Raises HolderLostError, or RefusedError if it refuses."""
        self._say_what_ended()
        return self._ask(operation, arguments, descriptors)

    def next_session(self) -> int:
        return next(self._sessions)

    def end_session(self, number: int, generation: int) -> None:
        """Let the holder forget the keys of a session, soon."""
        if generation == self.generation:
            self._ended.append(number)

    def end_key(self, number: int, generation: int) -> None:
        if generation == self.generation:
            self._dropped.append(number)

    def _load_machine(self) -> HeldKey | None:
        if self._has_no_machine:
            return None
        path = self._state_directory / MACHINE_FILE
        try:
            if not os.path.lexists(path):
                self._make_machine(path)
            self._machine = self.load(path)
        except (OSError, VelaError) as err:
            # Once: it is for a person to mend, and a restart looks again.
            self._has_no_machine = True
            self._log.warning(
                "machine_secret_missing",
                path=str(path),
                error=str(err),
                consequence="other machines cannot tell this one from others with the same key",
            )
        return self._machine

    def _make_machine(self, path: Path) -> None:
        """Let the holder write a secret into a new file. Raises OSError or VelaError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with suppress(FileNotFoundError):
            new.unlink()
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                self._begin()
                self.attempt(lambda: self.ask(Operation.GENERATE, b"", (fd,)))
                os.fsync(fd)
            finally:
                os.close(fd)
            # Not over one that another process has made meanwhile.
            os.link(new, path)
        finally:
            new.unlink()

    # Asking.

    def _ask(
        self,
        operation: Operation,
        arguments: bytes,
        descriptors: Sequence[int] = (),
        limit_s: float = LIMIT_S,
    ) -> bytes:
        channel = self._channel
        if channel is None:
            raise HolderLostError("there is none")
        number = next(self._numbers)
        message = REQUEST.pack(number, operation) + arguments
        try:
            if descriptors:
                socket.send_fds(channel, [message], list(descriptors), socket.MSG_NOSIGNAL)
            else:
                channel.send(message, socket.MSG_NOSIGNAL)
            if not _readable(channel, limit_s):
                raise HolderLostError(f"no reply within {limit_s:g} s")
            reply = channel.recv(MAX_REPLY + 1)
        except OSError as err:
            raise HolderLostError(f"{err.strerror}") from err
        return _result(reply, number)

    def _say_what_ended(self) -> None:
        if len(self._ended) >= FORGET_AT_ONCE or self._dropped:
            ended, self._ended = self._ended, []
            dropped, self._dropped = self._dropped, []
            self._ask(Operation.FORGET, b"".join(map(NUMBER.pack, ended)))
            for number in dropped:
                self._ask(Operation.DROP, KEY.pack(number))

    def _load(self, fd: int) -> int:
        return _number(self.ask(Operation.LOAD, b"", (fd,)))

    # The process.

    def _begin(self) -> None:
        if self._child is None and not self.generation:
            self._take()

    def _fork(self) -> Started:
        supervisor_pid, calls = os.getpid(), key_holder_filter()
        encrypts = self._encrypts

        def body(channel: socket.socket) -> None:
            key_holder.run(channel, self._user, supervisor_pid, calls, encrypts=encrypts)

        return fork_with_channel(body)

    def _take(self) -> None:
        """Start a holder. Raises HolderLostError."""
        try:
            self._child, self._channel = self._start()
        except OSError as err:
            raise HolderLostError(f"it cannot be started: {err.strerror}") from err
        self.generation += 1
        self._channel.setblocking(False)
        self._loop.watch(self._child.pidfd, self._on_end)
        unlocked = self._ask(Operation.HELLO, b"", limit_s=START_LIMIT_S)
        if unlocked and self.generation == 1:
            self._log.warning(
                "key_memory_not_locked",
                error=unlocked.decode("ascii", "replace"),
                consequence="keys may be swapped to disk",
                advice="allow velad to lock memory: LimitMEMLOCK=infinity",
            )

    def _end(self) -> ExitStatus | None:
        child, channel, self._child, self._channel = self._child, self._channel, None, None
        if channel is not None:
            channel.close()
        if child is None:
            return None
        self._loop.unwatch(child.pidfd)
        child.signal(signal.SIGKILL)
        return child.reap()

    def _on_end(self) -> None:
        """Replace a holder that ended while nobody asked it anything."""
        try:
            self._replace("it ended")
        except HolderLostError as err:
            self._log.error("key_holder_not_replaced", error=str(err))

    def _replace(self, reason: str, *, planned: bool = False) -> None:
        """End the holder, start another, and hand it the files. Raises HolderLostError."""
        pid, ended = self.pid, self._end()
        if pid is not None and not planned:
            self._log.error("key_holder_lost", pid=pid, reason=reason, ended=str(ended))
        if not planned and not self._replacements.take(self._loop.now()):
            raise HolderLostError("it was lost again and again")
        self._ended.clear()
        self._dropped.clear()
        self._take()
        held = list(self._held.values())
        self._held.clear()
        for key in held:
            key.load_again(self._load)
            if key.number:
                self._held.setdefault(key.number, key)
        self._log.info("key_holder_replaced", pid=self.pid, keys=len(held))
        # Not within the call that found the loss.
        for successor in tuple(self._successors):
            self._loop.call_later(0.0, successor.on_holder_replaced)


class HeldKey:
    """A pre-shared key in the holder. It stays there for as long as this lives.

    Two are equal if their bytes are: the holder gives equal keys one number.
    """

    overhead = TAG_LENGTH

    def __init__(self, keys: Keys, number: int, fd: int) -> None:
        """Take over fd, the file of the key: another holder has to read it again."""
        self.keys = keys
        self.number = number
        self._fd = fd
        self._generation = keys.generation

    def __del__(self) -> None:
        os.close(self._fd)
        self.keys.end_key(self.number, self._generation)

    def sign(self, body: bytes) -> bytes:
        return self.keys.sign(self._numbers, body, self.overhead)

    def verify(self, datagram: bytes) -> bool:
        return self.keys.verify(self._numbers, datagram)

    def _numbers(self) -> tuple[int, int]:
        return self.number, 0

    def derive(self, context: Context, *, initiator: bool) -> Signer:
        return HeldSession(self, context, initiator=initiator)

    def load_again(self, load: Callable[[int], int]) -> None:
        """Give the file to another holder."""
        self._generation = self.keys.generation
        try:
            self.number = load(self._fd)
        except VelaError as err:
            self.number = 0  # of no key
            structlog.get_logger().error("key_not_loaded_again", error=str(err))


class HeldSession:
    """The keys of a session, in the holder. They stay there for as long as this lives."""

    overhead = SESSION_TAG_LENGTH + TAG_LENGTH

    def __init__(self, key: HeldKey, context: Context, *, initiator: bool) -> None:
        self._key = key
        self._context = context.pack()
        self._initiator = initiator
        self._number = 0
        # Of the holder that has the keys; -1: of none.
        self._generation = -1

    def __del__(self) -> None:
        self._key.keys.end_session(self._number, self._generation)

    def sign(self, body: bytes) -> bytes:
        return self._key.keys.sign(self._numbers, body, self.overhead)

    def verify(self, datagram: bytes) -> bool:
        return self._key.keys.verify(self._numbers, datagram)

    def _numbers(self) -> tuple[int, int]:
        """Return the key's and the session's; let the holder derive the keys if it has none."""
        keys = self._key.keys
        if self._generation != keys.generation:
            number = keys.next_session()
            arguments = DERIVATION.pack(self._key.number, number, self._initiator) + self._context
            keys.ask(Operation.DERIVE, arguments)
            self._number, self._generation = number, keys.generation
        return self._key.number, self._number


def _readable(channel: socket.socket, limit_s: float) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(limit_s * 1000))


def _result(reply: bytes, number: int) -> bytes:
    """Return the result in a reply. Raises HolderLostError, or RefusedError."""
    if not reply:
        raise HolderLostError("it ended")
    if not REPLY.size <= len(reply) <= MAX_REPLY:
        raise HolderLostError(f"it answered with {len(reply)} bytes")
    answered, status = REPLY.unpack_from(reply)
    result = reply[REPLY.size :]
    if answered != number:
        raise HolderLostError("it answered what nobody asked")
    if status == Status.DONE:
        return result
    if status == Status.REFUSED:
        raise RefusedError(result.decode("ascii", "replace"))
    if status == Status.FAILED:
        raise RemoteProtocolError(HANDSHAKE, result.decode("ascii", "replace"))
    raise HolderLostError(f"it answered with status {status}")


def _number(result: bytes) -> int:
    if len(result) != KEY.size:
        raise HolderLostError("it answered without the number of the key")
    number: int = KEY.unpack(result)[0]
    return number
