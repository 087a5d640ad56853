"""Two machines and the link between them, driven by a seed: what session tests share."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, ip_address, ip_network

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.signaling.agreement import Agreement
from vela.signaling.codec import read_header
from vela.signaling.cookie import Cookies
from vela.signaling.encryption import Encryption
from vela.signaling.events import Agreed, CircuitRequested, Closed, Datagram, Event, OfferChanged
from vela.signaling.frame_keys import FrameKeys
from vela.signaling.inputs import State
from vela.signaling.messages import Capability, Description, MessageType, Offer
from vela.signaling.policy import PeerCircuits, Policy
from vela.signaling.responder import Responder
from vela.signaling.session import Session
from vela.signaling.session_cipher import answer_handshake
from vela.signaling.signer import Key, LocalKey

ROUTER1 = Endpoint(ip_address("192.0.2.1"), 48621)
ROUTER2 = Endpoint(ip_address("192.0.2.2"), 48621)
KEY = LocalKey(bytes(range(32)))
CIRCUIT = 7

LOCAL1 = Description(
    mac=bytes.fromhex("02005e100001"),
    mtu=1471,
    capabilities=Capability.ELISION | Capability.CHECKSUM_OFFLOAD | Capability.NATIVE_ENGINE,
    port=48621,
    keepalive_ms=1000,
    own=ROUTER1,
)
LOCAL2 = Description(
    mac=bytes.fromhex("02005e100002"),
    mtu=1400,
    capabilities=Capability.ELISION,
    port=48621,
    keepalive_ms=5000,
    own=ROUTER2,
)
OFFER = Offer(interface="vela0", addresses=(IPv4Interface("172.16.16.2/30"),))
POLICY = Policy(
    accept=True,
    sources=(ip_network("192.0.2.0/24"),),
    networks=(ip_network("172.16.0.0/12"), ip_network("fd00::/8")),
    bridges=("br-lan",),
    interfaces="vela*",
    max_circuits=64,
    max_circuits_per_remote=16,
)


class Machine:
    """What a supervisor does with the sessions: a restart loses all but what it keeps on disk."""

    def __init__(
        self,
        endpoint: Endpoint,
        remote: Endpoint,
        local: Description,
        randomness: random.Random,
        *,
        key: Key | None = KEY,
        policy: Policy | None = None,
        offer: Offer | None = None,
    ) -> None:
        """offer: what the configuration here gives the remote; None: it has no circuit."""
        self.endpoint, self.remote, self.local, self.key = endpoint, remote, local, key
        self.randomness, self.policy, self.offer = randomness, policy, offer
        self.kept: Offer | None = None
        self.machine: bytes | None = None
        """What tells it from others."""
        self.frame_keys: FrameKeys | None = None
        """Where the circuit is encrypted."""
        self.obstacle = ""
        """Why it cannot carry frames."""
        self.events: list[tuple[float, Event]] = []
        self.refused = 0
        self.requested: list[CircuitRequested] = []

    def boot(self, now: float) -> None:
        self.taken: set[bytes] = set()
        self.farewell: list[Datagram] = []
        self.cookies = Cookies(self.randomness)
        self.responder = Responder(self.policy, self.key, self.cookies, self.endpoint.port)
        self.responder.ciphers = None if self.frame_keys is None else self.frame_keys.offer
        self.session: Session | None = None
        if self.offer is not None or self.kept is not None:
            self.session = self._session(self.remote)
            self.session.start(now)
            self._run_timers(now)

    def _session(self, remote: Endpoint | None) -> Session:
        own = self.offer is not None
        return Session(
            CIRCUIT,
            self.local,
            remote=remote,
            key=self.key,
            cookies=self.cookies,
            randomness=self.randomness,
            offer=self.offer if own else self.kept,
            policy=None if own else self.policy,
            machine=self.machine,
            frame_keys=self.frame_keys,
        )

    def _answer(self, requested: CircuitRequested, now: float) -> Encryption | None:
        if self.frame_keys is None:
            return None
        confirm, said = requested.confirm, requested.transcript
        return answer_handshake(self.frame_keys, confirm, said, None, now)

    def receive(self, data: bytes, source: Endpoint, now: float) -> None:
        try:
            read_header(data)
            session = self.session
            if session is not None:
                ignored = session.ignored
                session.receive_datagram(data, source, now)
                if session.ignored == ignored:
                    self.taken.add(data)
            else:
                self._take(
                    self.responder.receive_datagram(
                        data, source, now, peer_circuits=lambda: PeerCircuits(0, 0)
                    ),
                    now,
                )
                self.taken.add(data)
        except RemoteProtocolError:
            self.refused += 1
        self._run_timers(now)

    def _take(self, requested: CircuitRequested | None, now: float) -> None:
        if requested is not None:
            encryption = self._answer(requested, now)
            self.requested.append(requested)
            self.kept = requested.offer
            self.session = self._session(None)
            self.session.accept(requested, now, encryption)

    def handle_timer(self, now: float) -> None:
        self._run_timers(now)

    def _run_timers(self, now: float) -> None:
        session = self.session
        if session is None:
            return
        for _ in range(10):
            due = session.next_timer()
            if due is None or due > now:
                break
            session.handle_timer(now)
        else:
            raise AssertionError("a timer that stays due")
        while (event := session.next_event()) is not None:
            self.events.append((now, event))
            if isinstance(event, Agreed) and self.obstacle:
                session.suspend(self.obstacle)
            if isinstance(event, OfferChanged):
                encryption = self._answer(event.requested, now)
                self.kept = event.requested.offer
                self.session = session = self._session(None)
                session.accept(event.requested, now, encryption)
            if isinstance(event, Closed):
                self.farewell += session.datagrams_to_send()
                self.session = None
                self.kept = None

    def next_timer(self) -> float | None:
        return None if self.session is None else self.session.next_timer()

    def sent(self) -> list[Datagram]:
        session = [] if self.session is None else self.session.datagrams_to_send()
        farewell, self.farewell = self.farewell, []
        return self.responder.datagrams_to_send() + session + farewell

    @property
    def up(self) -> bool:
        return self.session is not None and self.session.state is State.UP

    def since(self, at: float, kind: type | tuple[type, ...]) -> list[Event]:
        return [event for when, event in self.events if when >= at and isinstance(event, kind)]


@dataclass
class Weather:
    """What the link does to datagrams, each a probability; delays are seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    shortest_delay: float = 0.001
    longest_delay: float = 0.001


@dataclass
class Link:
    """Time, and what is under way. Forges nothing unless it is told to."""

    machines: tuple[Machine, Machine]
    randomness: random.Random
    weather: Weather = field(default_factory=Weather)
    now: float = 1000.0
    deaf: set[Endpoint] = field(default_factory=set)
    """Machines that nothing reaches, though they are heard."""
    unheard: set[tuple[Endpoint, MessageType]] = field(default_factory=set)
    """Messages of such a machine and type that never arrive."""
    log: list[tuple[float, Endpoint, bytes]] = field(default_factory=list)
    """What was sent: when, by whom."""
    answered_replays: list[tuple[Endpoint, bytes]] = field(default_factory=list)
    """Copies of messages that a machine took before, and that it answered again."""

    change: Callable[[Endpoint, bytes], bytes] = field(default=lambda source, data: data)
    """What becomes of a datagram on the way, given who sent it."""

    def __post_init__(self) -> None:
        self._order: Iterator[int] = itertools.count()
        self._way: list[tuple[float, int, Endpoint, Endpoint, bytes]] = []

    def boot(self) -> None:
        for machine in self.machines:
            machine.boot(self.now)
            self.collect(machine)

    def machine(self, endpoint: Endpoint) -> Machine:
        return next(each for each in self.machines if each.endpoint == endpoint)

    def collect(self, machine: Machine) -> int:
        sent = machine.sent()
        for datagram in sent:
            self.log.append((self.now, machine.endpoint, datagram.data))
            data = self.change(machine.endpoint, datagram.data)
            self.throw(machine.endpoint, datagram.remote, data)
        return len(sent)

    def throw(self, source: Endpoint, to: Endpoint, data: bytes) -> None:
        weather, dice = self.weather, self.randomness
        if (source, read_header(data).type) in self.unheard:
            return
        copies = 1 + (dice.random() < weather.duplication)
        for _ in range(copies):
            if dice.random() >= weather.loss:
                at = self.now + dice.uniform(weather.shortest_delay, weather.longest_delay)
                heapq.heappush(self._way, (at, next(self._order), source, to, data))

    def run(self, until: float) -> None:
        while True:
            times = [at for each in self.machines if (at := each.next_timer()) is not None]
            if self._way:
                times.append(self._way[0][0])
            if not times or min(times) > until:
                self.now = until
                return
            self.now = max(self.now, min(times))
            self._deliver()
            for machine in self.machines:
                machine.handle_timer(self.now)
                self.collect(machine)

    def _deliver(self) -> None:
        while self._way and self._way[0][0] <= self.now:
            _, _, source, to, data = heapq.heappop(self._way)
            if to in self.deaf:
                continue
            machine = self.machine(to)
            replayed = data in machine.taken and read_header(data).type is not MessageType.REQUEST
            machine.receive(data, source, self.now)
            if self.collect(machine) and replayed:
                self.answered_replays.append((to, data))


def one_sided(seed: int, *, key: Key | None = KEY) -> Link:
    """Router 1 has a circuit; router 2 has only [autoconfigure]."""
    dice = random.Random(seed)
    return Link(
        (
            Machine(ROUTER1, ROUTER2, LOCAL1, dice, key=key, offer=OFFER),
            Machine(ROUTER2, ROUTER1, LOCAL2, dice, key=key, policy=POLICY),
        ),
        dice,
    )


def both_active(seed: int) -> Link:
    """Each has the circuit toward the other."""
    dice = random.Random(seed)
    return Link(
        (
            Machine(ROUTER1, ROUTER2, LOCAL1, dice, offer=OFFER),
            Machine(ROUTER2, ROUTER1, LOCAL2, dice, offer=Offer()),
        ),
        dice,
    )


def nonces(session: Session) -> tuple[int, int] | None:
    """Return the nonces of a session, the smaller first: the same for both ends."""
    link = session._link
    if link is None or not link.remote_nonce:
        return None
    low, high = sorted((link.local_nonce, link.remote_nonce))
    return low, high


def agreed_values(machine: Machine) -> Agreement:
    assert machine.session is not None
    agreement = machine.session.agreement
    assert agreement is not None
    return agreement
