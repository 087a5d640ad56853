"""Control messages between the sockets and whom they are about: a circuit, or nobody yet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import structlog

from vela.address import Endpoint, IPAddress
from vela.circuit import AutoconfigureConfig
from vela.errors import RemoteProtocolError
from vela.resolver import Answer
from vela.signaling.codec import read_header
from vela.signaling.cookie import Cookies
from vela.signaling.events import CircuitRequested, Datagram
from vela.signaling.messages import Confirm, RejectCode
from vela.signaling.policy import Policy
from vela.signaling.responder import Responder
from vela.supervisor.loop import EventLoop, Timer
from vela.supervisor.names import Names
from vela.supervisor.reception import Reception
from vela.underlay import ANY_ADDRESS

# Names of machines that may set circuits up: looked at again this often.
REFRESH_INTERVAL_S = 60.0
RETRY_INTERVAL_S = 5.0

RequestHandler = Callable[[CircuitRequested], None]


class Participant(Protocol):
    """A circuit that negotiates."""

    def converses_with(self, address: IPAddress) -> bool:
        """Tell whether messages from this address can be from its remote."""

    def receive_control(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        """Take a control message; local_address: the address that it came to.

        Raises RemoteProtocolError.
        """


class Negotiator:
    """Finds whom a control message is about, and answers what is about no circuit."""

    def __init__(
        self,
        loop: EventLoop,
        reception: Reception,
        names: Names,
        requested: RequestHandler,
        count: Callable[[], int],
        withheld: Callable[[Confirm, IPAddress], str],
    ) -> None:
        """requested is called where a remote may have the circuit that it asks for.

        count tells how many circuits there are that others set up; withheld, in
        a sentence, that the circuit that an address asks for is not to be had at
        present. Both may take a while.
        """
        self._loop = loop
        self._reception = reception
        self._names = names
        self._requested = requested
        self._count = count
        self._withheld = withheld
        self._participants: dict[int, list[Participant]] = {}
        self._log = structlog.get_logger()
        self._dropped: Counter[str] = Counter()
        self._timers: dict[str, Timer] = {}
        self._source_names: frozenset[str] = frozenset()
        self._resolved: dict[str, tuple[IPAddress, ...]] = {}
        self.randomness = random.SystemRandom()
        self.cookies = Cookies(self.randomness)
        self._responder = Responder(None, None, self.cookies)
        reception.set_control_handler(self._receive)

    @property
    def policy(self) -> Policy | None:
        return self._responder.policy

    @property
    def key(self) -> bytes | None:
        """The key of what others set up here."""
        return self._responder.key

    def set_policy(self, config: AutoconfigureConfig | None, key: bytes | None) -> None:
        """Say what others may set up here from now on; None: nothing."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._resolved.clear()
        self._responder.key = key
        self._responder.policy = None if config is None else _policy_of(config)
        sources = () if config is None else config.sources
        self._source_names = frozenset(each for each in sources if isinstance(each, str))
        for name in self._source_names:
            self._ask(name)

    def add(self, circuit_id: int, participant: Participant) -> None:
        self._participants.setdefault(circuit_id, []).append(participant)

    def remove(self, circuit_id: int, participant: Participant) -> None:
        self._participants[circuit_id].remove(participant)

    def send(self, datagrams: Iterable[Datagram]) -> None:
        """Send from the listening port. What cannot be sent is lost, as on any network."""
        for datagram in datagrams:
            local_address = datagram.local_address or ANY_ADDRESS[datagram.remote.family]
            group = self._reception.group_at(local_address)
            if group is None:
                continue
            try:
                group.send(datagram.data, local_address, datagram.remote)
            except OSError as err:
                self._log.debug(
                    "control_message_not_sent", remote=str(datagram.remote), error=str(err)
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
        return unanswered | {f"control_{why}": count for why, count in self._dropped.items()}

    def _receive(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        try:
            circuit_id = read_header(data).circuit_id
            # The latest first: an earlier one may still be saying goodbye.
            for participant in reversed(self._participants.get(circuit_id, [])):
                if participant.converses_with(source.address):
                    participant.receive_control(data, source, local_address)
                    return
            requested = self._responder.receive_datagram(
                data,
                source,
                self._loop.now(),
                peer_circuit_count=self._count,
                deferral_reason=lambda confirm: self._withheld(confirm, source.address),
                local_address=local_address,
            )
        except RemoteProtocolError as err:
            self._dropped[err.reason] += 1
            self._log.debug("control_message_dropped", source=str(source), error=str(err))
            return
        self.send(self._responder.datagrams_to_send())
        if requested is not None:
            self._requested(requested)

    def _ask(self, name: str) -> None:
        self._names.ask(name, None, self._on_answer)

    def _on_answer(self, answer: Answer) -> None:
        policy, name = self._responder.policy, answer.host
        if policy is None or name not in self._source_names:
            return
        delay_s = REFRESH_INTERVAL_S
        if answer.error is not None:
            # Who was let in before stays so while a name server is away.
            self._log.warning("autoconfigure_source_unresolved", name=name, error=answer.error)
            delay_s = RETRY_INTERVAL_S
        else:
            self._resolved[name] = answer.addresses
            resolved = tuple(each for known in self._resolved.values() for each in known)
            self._responder.policy = replace(policy, resolved=resolved)
        self._timers[name] = self._loop.call_later(delay_s, lambda: self._ask(name))


def _policy_of(config: AutoconfigureConfig) -> Policy:
    """Return the rules of the [autoconfigure] table; its host names are resolved later."""
    networks = tuple(each for each in config.sources if not isinstance(each, str))
    return Policy(
        accept=config.accept,
        sources=networks if config.sources else None,
        networks=config.networks,
        bridges=config.bridges,
        interfaces=config.interfaces,
        max_circuits=config.max_circuits,
    )
