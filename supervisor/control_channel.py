"""Control messages between the sockets and whom they are about: a circuit, or nobody yet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Protocol

import structlog

from vela.address import Endpoint, IPAddress
from vela.errors import DeviceError, RemoteProtocolError
from vela.linux.choice import ANY_UNDERLAY, UnderlayChoice
from vela.linux.icmp import IcmpError
from vela.linux.steering import ControlSteering
from vela.linux.underlay import ANY_ADDRESS
from vela.signaling.codec import WRONG_TAG, read_header
from vela.signaling.cookie import Cookies
from vela.signaling.events import CircuitRequested, Datagram
from vela.signaling.limiter import RateLimiter, TokenBucket
from vela.signaling.messages import (
    HANDSHAKE,
    SESSION_TYPES,
    CipherOffer,
    Confirm,
    Header,
    MessageType,
    RejectCode,
)
from vela.signaling.policy import PeerCircuits, Policy, SourceLimits
from vela.signaling.responder import Responder, Silence
from vela.signaling.signer import Key

from .config.records import AutoconfigureConfig
from .demux import ControlHandler
from .runtime.loop import EventLoop
from .runtime.names import NameSource, NameWatch
from .runtime.resolver import Answer
from .status import WrongKeyStatus
from .undelivered import Undelivered, UndeliveredDatagrams
from .wrong_keys import WrongKeys

# What an end says that this one may not know, or not at that address.
_CALLS = frozenset({MessageType.REQUEST, MessageType.CONFIRM, MessageType.KEEPALIVE})
# Messages for one circuit, of its remote or in its name, that no session expects: requests, and the
# answers that begin a session. An honest remote sends some ten in its first second.
UNEXPECTED_RATE, UNEXPECTED_BURST = 300.0, 600.0
# Messages of a session. The shortest interval between keepalives is 0.1 s; a remote without manners
# must not hold up the sessions of others.
EXPECTED_RATE, EXPECTED_BURST = 100.0, 300.0


# Addresses of remotes that circuits had: what a machine needs that was away while one was deleted.
FORMER_REMOTES = 1024


class ControlTransport(Protocol):
    """What carries control messages: demux.Demux."""

    def set_control_handler(self, handler: ControlHandler) -> None: ...

    def send_control(
        self,
        data: bytes,
        local_address: IPAddress,
        remote: Endpoint,
        choice: UnderlayChoice,
        *,
        dont_fragment: bool = False,
    ) -> None:
        """Send from the listening port. Raise OSError where the kernel refuses, or DeviceError."""

    def expect_control(self, control: ControlSteering) -> None:
        """Keep these messages apart from those of strangers."""


class RequestHandler(Protocol):
    """Who decides on requests of other machines: registry.Registry."""

    def handle_request(self, requested: CircuitRequested) -> None:
        """Set the circuit up, or refuse it; the policy allows it."""

    def peer_circuits(self, address: IPAddress) -> PeerCircuits:
        """Return how many circuits other machines have set up here, and the one at an address."""

    def deferral_reason(self, confirm: Confirm, address: IPAddress) -> str:
        """Return why a circuit that may be here is not to be had now; empty: there is none."""


Hears = Callable[[Endpoint, IPAddress], bool]
"""Tells whether a circuit takes calls from there, at this address of the machine."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What tells messages of a circuit's remote from all others, before they are read."""

    addresses: tuple[IPAddress, ...] = ()
    nonces: tuple[int, ...] = ()
    """This end's: only who has had a message of it knows them."""


NOTHING_EXPECTED = Expected()


class Participant(Protocol):
    """A circuit that negotiates."""

    def converses_with(self, address: IPAddress, header: Header) -> bool:
        """Tell whether a message from this address can be for it."""

    def receive_control(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        """Take a control message; local_address: the address that it came to.

        Raises RemoteProtocolError.
        """


class ControlChannel:
    """Finds whom a control message is about, and answers what is about no circuit."""

    def __init__(
        self,
        loop: EventLoop,
        transport: ControlTransport,
        names: NameSource,
        port: int,
        icmp_errors: Callable[[], Iterable[IcmpError]] = tuple,
    ) -> None:
        """port: the one that this machine listens on.

        icmp_errors: returns those about messages from there that have come since the last call.
        """
        self._icmp_errors = icmp_errors
        self._remotes: frozenset[IPAddress] = frozenset()
        self._former_remotes: dict[IPAddress, None] = {}
        self._undelivered = UndeliveredDatagrams()
        self._loop = loop
        self._transport = transport
        self._names = names
        self._handler: RequestHandler | None = None
        self._participants: dict[int, list[Participant]] = {}
        self._expected: dict[Participant, Expected] = {}
        self._callees: dict[Participant, Hears] = {}
        """Those whose remote is any."""
        self._unexpected = RateLimiter()
        self._buckets: dict[Participant, tuple[TokenBucket, TokenBucket]] = {}
        self._log = structlog.get_logger()
        self._dropped: Counter[str] = Counter()
        self._wrong_keys = WrongKeys()
        self._watches: list[NameWatch] = []
        self._resolved: dict[str, tuple[IPAddress, ...]] = {}
        self._config: AutoconfigureConfig | None = None
        self.randomness = random.SystemRandom()
        self.cookies = Cookies(self.randomness)
        self._responder = Responder(None, None, self.cookies, port)
        transport.set_control_handler(self._receive)

    @property
    def policy(self) -> Policy | None:
        return self._responder.policy

    @property
    def key(self) -> Key | None:
        """The key of what others set up here."""
        return self._responder.key

    def set_request_handler(self, handler: RequestHandler) -> None:
        """Let requests go there; until then no circuit is known, and none is set up."""
        self._handler = handler

    def set_policy(
        self,
        config: AutoconfigureConfig | None,
        key: Key | None,
        ciphers: CipherOffer | None = None,
    ) -> None:
        """Say what others may set up here from now on; None: nothing.

        ciphers: how their circuits are encrypted; None: they are not.
        """
        for watch in self._watches:
            watch.stop()
        self._watches.clear()
        self._responder.key = key
        self._responder.ciphers = ciphers
        self._config = config
        names: dict[str, None] = {}
        if config is not None:
            sources = (*config.sources, *(rules.source for rules in config.per_source))
            names = dict.fromkeys(each for each in sources if isinstance(each, str))
        # A machine that is still named keeps its addresses meanwhile.
        self._resolved = {name: self._resolved[name] for name in names if name in self._resolved}
        self._apply_names()
        for name in names:
            watch = NameWatch(self._loop, self._names, name, None, self._on_answer)
            self._watches.append(watch)
            watch.look()

    def add(self, circuit_id: int, participant: Participant) -> None:
        self._participants.setdefault(circuit_id, []).append(participant)
        self._buckets[participant] = (
            TokenBucket(EXPECTED_RATE, EXPECTED_BURST),
            TokenBucket(UNEXPECTED_RATE, UNEXPECTED_BURST),
        )

    def remove(self, circuit_id: int, participant: Participant) -> None:
        self._participants[circuit_id].remove(participant)
        del self._buckets[participant]
        self.expect(participant, NOTHING_EXPECTED)
        self._callees.pop(participant, None)

    def take_calls(self, participant: Participant, hears: Hears | None) -> None:
        """Let a participant have what comes from anybody with its key; None: no longer."""
        if hears is None:
            self._callees.pop(participant, None)
        else:
            self._callees[participant] = hears

    def expect(self, participant: Participant, expected: Expected) -> None:
        """Know a participant's messages, so that no flood of others holds them up."""
        if expected == self._expected.get(participant, NOTHING_EXPECTED):
            return
        before = self._expected.get(participant, NOTHING_EXPECTED)
        self._former_remotes.update(dict.fromkeys(before.addresses))
        while len(self._former_remotes) > FORMER_REMOTES:
            del self._former_remotes[next(iter(self._former_remotes))]
        self._expected[participant] = expected
        if expected == NOTHING_EXPECTED:
            del self._expected[participant]
        known = self._expected.values()
        self._remotes = frozenset(address for each in known for address in each.addresses)
        nonces = frozenset(nonce for each in known for nonce in each.nonces)
        self._transport.expect_control(ControlSteering(self._remotes, nonces))

    def send(self, datagrams: Iterable[Datagram], choice: UnderlayChoice = ANY_UNDERLAY) -> None:
        """Send from the listening port. What cannot be sent is lost, as on any network."""
        for datagram in datagrams:
            local_address = datagram.local_address or ANY_ADDRESS[datagram.remote.family]
            try:
                self._transport.send_control(
                    datagram.data,
                    local_address,
                    datagram.remote,
                    choice,
                    dont_fragment=datagram.dont_fragment,
                )
            except (OSError, DeviceError) as err:
                if isinstance(err, OSError):
                    self._undelivered.refused(datagram.remote, err, self._loop.now())
                self._log.debug(
                    "control_message_not_sent", remote=str(datagram.remote), error=str(err)
                )

    def look_for_errors(self) -> None:
        """Take note of ICMP errors about what was sent. To be called once a second."""
        errors = tuple(self._icmp_errors())
        if errors:
            known = {address for each in self._expected.values() for address in each.addresses}
            self._undelivered.returned(errors, known, self._loop.now())

    def undelivered(self, remotes: Iterable[Endpoint], since: float) -> Undelivered | None:
        """Return the last message to one of them that did not arrive; None: none is known of.

        since: in monotonic seconds.
        """
        return self._undelivered.last(remotes, since)

    @property
    def ciphers(self) -> CipherOffer | None:
        """How circuits that others set up here are encrypted; None: they are not."""
        return self._responder.ciphers

    def count_dropped(self, err: RemoteProtocolError, source: Endpoint) -> None:
        """Count a message that is not answered."""
        self._dropped[err.reason] += 1
        if err.reason == HANDSHAKE:
            self._wrong_keys.note(source, err, self._loop.now())
        self._log.debug("control_message_dropped", source=str(source), error=str(err))

    def refuse(self, requested: CircuitRequested, code: RejectCode, text: str) -> None:
        """Refuse a request, and log it in the words that the remote shows."""
        self._log_refusal(requested, code, text)
        self.reject(requested, code, text)

    def _log_refusal(self, requested: CircuitRequested, code: RejectCode, text: str) -> None:
        # The remote of a circuit that is taken down asks again and again; that is no event.
        if code is not RejectCode.DISABLED:
            self._log.warning(
                "circuit_refused",
                by=str(requested.source),
                circuit_id=requested.circuit_id,
                code=code.name,
                reason=text,
            )

    def reject(self, requested: CircuitRequested, code: RejectCode, text: str) -> None:
        """Refuse what the policy allows and this machine cannot do."""
        self._responder.reject(requested, code, text)
        self.send(self._responder.datagrams_to_send())

    def dropped(self) -> dict[str, int]:
        """Return how many messages were not answered, by reason."""
        unanswered = {
            f"control_{why.value}": count for why, count in self._responder.unanswered.items()
        }
        dropped = Counter(unanswered)
        for why, count in self._dropped.items():
            dropped[f"control_{why}"] += count
        return dict(dropped)

    def wrong_keys(self) -> tuple[WrongKeyStatus, ...]:
        """Return the machines that asked with a wrong key, the latest first."""
        return self._wrong_keys.status(self._loop.now())

    def _may_be_read(self, participant: Participant, header: Header, source: IPAddress) -> bool:
        """Tell whether a message for a circuit is still worth its work."""
        now = self._loop.now()
        expected, unexpected = self._buckets[participant]
        if header.receiver_nonce in self._expected.get(participant, NOTHING_EXPECTED).nonces:
            return expected.take(now)
        return unexpected.take(now) and self._unexpected.take(source, now)

    def _receive(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        try:
            header = read_header(data)
            participant = self._participant_for(header, source, local_address)
            if participant is not None and self._is_taken(
                participant, data, header, source, local_address
            ):
                return
            requested = self._ask_responder(data, header, source, local_address)
        except RemoteProtocolError as err:
            self.count_dropped(err, source)
            return
        self.send(self._responder.datagrams_to_send())
        if requested is not None and self._handler is not None:
            self._handler.handle_request(requested)

    def _participant_for(
        self, header: Header, source: Endpoint, local_address: IPAddress
    ) -> Participant | None:
        """Return which circuit a message is for, by what can be told before it is read."""
        # The latest first: an earlier one may still be saying goodbye.
        those = tuple(reversed(self._participants.get(header.circuit_id, [])))
        for participant in those:
            if participant.converses_with(source.address, header):
                return participant
        if header.type not in _CALLS:
            return None
        for participant in those:
            hears = self._callees.get(participant)
            if hears is not None and hears(source, local_address):
                return participant
        return None

    def _is_taken(
        self,
        participant: Participant,
        data: bytes,
        header: Header,
        source: Endpoint,
        local_address: IPAddress,
    ) -> bool:
        """Give a message to a circuit. False: it is one for another key, which the responder has.

        Raises RemoteProtocolError.
        """
        # Before any work is spent on what anybody could have sent.
        if not self._may_be_read(participant, header, source.address):
            self._dropped[Silence.TOO_FAST.value] += 1
            return True
        try:
            participant.receive_control(data, source, local_address)
        except RemoteProtocolError as err:
            calls = participant in self._callees and header.type in _CALLS
            if err.reason != WRONG_TAG or not calls:
                raise
            if self._responder.policy is not None:
                return False
            if header.type not in SESSION_TYPES:
                self._wrong_keys.note(source, err, self._loop.now())
            raise
        return True

    def _ask_responder(
        self, data: bytes, header: Header, source: Endpoint, local_address: IPAddress
    ) -> CircuitRequested | None:
        """Have a stranger answered. Raises RemoteProtocolError."""
        try:
            return self._responder.receive_datagram(
                data,
                source,
                self._loop.now(),
                peer_circuits=lambda: self._peer_circuits(source.address),
                deferral_reason=lambda confirm: self._deferral_reason(confirm, source.address),
                local_address=local_address,
                refused=self._log_refusal,
                is_remote=self._is_remote,
            )
        except RemoteProtocolError as err:
            # The tag of a session would say nothing of the key.
            if err.reason == WRONG_TAG and header.type not in SESSION_TYPES:
                self._wrong_keys.note(source, err, self._loop.now())
            raise

    def _is_remote(self, address: IPAddress) -> bool:
        """Tell whether a circuit has its remote there, or had it since this velad began."""
        return address in self._remotes or address in self._former_remotes

    def _peer_circuits(self, address: IPAddress) -> PeerCircuits:
        return PeerCircuits(0, 0) if self._handler is None else self._handler.peer_circuits(address)

    def _deferral_reason(self, confirm: Confirm, address: IPAddress) -> str:
        return "" if self._handler is None else self._handler.deferral_reason(confirm, address)

    def _on_answer(self, answer: Answer) -> bool:
        """Take the addresses of a machine that may set up circuits here."""
        name = answer.host
        if self._responder.policy is None:
            return False
        if answer.error is not None:
            # A machine that was let in before stays so while a name server is away.
            self._log.warning("autoconfigure_source_unresolved", name=name, error=answer.error)
            return False
        self._resolved[name] = answer.addresses
        self._apply_names()
        return True

    def _apply_names(self) -> None:
        config = self._config
        self._responder.policy = None if config is None else _policy_of(config, self._resolved)


def _policy_of(
    config: AutoconfigureConfig, resolved: Mapping[str, tuple[IPAddress, ...]]
) -> Policy:
    """Return the rules of the [autoconfigure] table, with the addresses of its host names."""
    networks = tuple(each for each in config.sources if not isinstance(each, str))
    names = [each for each in config.sources if isinstance(each, str)]
    return Policy(
        accept=config.accept,
        sources=networks if config.sources else None,
        networks=config.networks,
        bridges=config.bridges,
        interfaces=config.interfaces,
        max_circuits=config.max_circuits,
        max_circuits_per_remote=config.max_circuits_per_remote,
        per_source=tuple(
            SourceLimits(
                sources=(
                    tuple(map(ip_network, resolved.get(rules.source, ())))
                    if isinstance(rules.source, str)
                    else (rules.source,)
                ),
                networks=rules.networks,
                bridges=rules.bridges,
                interfaces=rules.interfaces,
                max_circuits=rules.max_circuits,
            )
            for rules in config.per_source
        ),
        resolved=tuple(address for name in names for address in resolved.get(name, ())),
    )
