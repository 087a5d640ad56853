"""An encrypted circuit's TAP, sockets and workers as velad makes them, with keys that the test puts
into its key page, and a remote that is the test's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address

import pytest
from frame_keys import Keys
from services import Services, services_in, turn_until

from lab.datagrams import send_joined, udp_socket
from lab.frames import Outlet, await_operational, numbered
from lab.injector import Injector
from lab.link import Interface
from lab.topology import TwoRouters
from vela.address import Endpoint, Remote
from vela.dataplane.engine import Engine, load_engine
from vela.dataplane.frame import Elision
from vela.dataplane.key_page import KeyPage, create
from vela.errors import DeviceError
from vela.linux.features import probe
from vela.linux.underlay import UnderlayPath
from vela.supervisor.circuit.pseudowire import Pseudowire
from vela.supervisor.circuit.terms import Profile
from vela.supervisor.config.records import CircuitConfig

pytestmark = [pytest.mark.forks, pytest.mark.needs_net_admin]

TIMEOUT_S = 20.0
PROFILE = Profile(
    mtu=1400,
    elision=Elision.NEVER,
    remote_mac=None,
    partial_checksums=False,
    source_port=None,
    encrypted=True,
)


class Wire:
    """One circuit on router A, and the test in router B's place."""

    def __init__(self, stack: ExitStack, ends: Ends, circuit_id: int, *, encrypted: bool) -> None:
        self.name = f"vela{circuit_id}"
        self.keys = Keys(number=circuit_id, circuit_id=circuit_id)
        fd = create() if encrypted else None
        if fd is not None:
            stack.callback(os.close, fd)
            self.page = stack.enter_context(KeyPage(fd))
            self.page.install(0, self.keys.pair, 1)
            self.page.send_with(0)
        config = CircuitConfig(self.name, circuit_id, Remote(str(ends.remote)))
        self.pseudowire: Pseudowire = ends.factory(config, 0)
        stack.callback(self.pseudowire.close)
        self.pseudowire.attach(ends.path, replace(PROFILE, encrypted=encrypted), fd)
        self.pseudowire.set_carrier(True)
        self._ends = ends

    def start(self, stack: ExitStack) -> None:
        self._ends.turn_until(lambda: self.worker() is not None)
        interface = Interface(self._ends.routers.a.namespace, self.name)
        await_operational(interface)
        self.outlet = stack.enter_context(Outlet(interface))
        self.injector = stack.enter_context(Injector(interface))

    def worker(self) -> int | None:
        status = self.pseudowire.worker_status()
        return None if status is None else status.pid

    def progress(self) -> tuple[int, int]:
        return self.pseudowire._counters.progress()

    def kill_worker(self) -> None:
        """End it, and wait for its successor."""
        pid = self.worker()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self._ends.turn_until(lambda: self.worker() not in (None, pid))

    def dropped(self) -> dict[str, int]:
        counters = self.pseudowire.counter_status()
        found = {**counters.tx_dropped, **{f"rx_{k}": n for k, n in counters.rx_dropped.items()}}
        return {reason: count for reason, count in found.items() if count}


class Ends:
    def __init__(
        self, stack: ExitStack, routers: TwoRouters, services: Services, engine: Engine
    ) -> None:
        self.routers, self.loop = routers, services.loop
        loaded = load_engine(engine)
        features = loaded.abilities.features & probe()
        self.factory = replace(services.make_pseudowire, engine=loaded, features=features)
        self.remote = ip_address(routers.b.ipv4)
        endpoint = Endpoint(self.remote, services.port)
        group, route = services.demux.way_to(endpoint)
        self.path = UnderlayPath(endpoint, (self.remote,), route, group)
        self.far = stack.enter_context(
            udp_socket(routers.b.namespace, routers.b.ipv4, services.port)
        )
        self.far.setblocking(False)

    def turn_until(self, reached: Callable[[], bool]) -> None:
        assert turn_until(self.loop, reached, TIMEOUT_S)

    def received(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.far.recv(65536))
            except BlockingIOError:
                return found


@pytest.fixture
def services(routers: TwoRouters) -> Iterator[Services]:
    routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    with services_in(routers.a.namespace) as made:
        yield made


@pytest.fixture(params=[Engine.PYTHON, Engine.NATIVE], ids=lambda engine: engine.value)
def ends(request: pytest.FixtureRequest, routers: TwoRouters, services: Services) -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack, routers, services, request.param)


@pytest.fixture
def stack(ends: Ends) -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Traffic:
    """Numbered frames both ways over a circuit whose keys change."""

    def __init__(self, ends: Ends, wire: Wire) -> None:
        self._ends, self._wire = ends, wire
        self._keys, self._counter, self._count = wire.keys, 0, 0
        self.datagrams: list[bytes] = []

    def exchange(self, count: int) -> None:
        """Each datagram to the circuit is sent twice."""
        known, self._count = self._count, self._count + count
        for number in range(known, self._count):
            self._wire.injector.send(numbered("out", number))
            self._counter += 1
            sealed = self._keys.seal(self._counter, numbered("in", number))
            for _ in range(2):
                self._ends.far.sendto(sealed, (self._ends.routers.a.ipv4, 48621))
        self._ends.turn_until(self._is_through)
        texts = [self._keys.open(datagram)[1] for datagram in self.datagrams[known:]]
        assert texts == [numbered("out", number) for number in range(known, self._count)]
        assert self._wire.outlet.frames() == [("in", number) for number in range(self._count)]

    def rekey(self) -> None:
        before = self._keys
        phase = 1 - before.phase
        self._keys = Keys(phase, before.pair.suite, self._count, self._wire.keys.circuit_id)
        self._counter = 0
        self._wire.page.install(phase, self._keys.pair, 1)
        self._wire.page.send_with(phase)

    def _is_through(self) -> bool:
        self.datagrams += self._ends.received()
        return min(len(self.datagrams), len(self._wire.outlet.frames())) >= self._count


def test_confined_worker_carries_frames_both_ways_through_deaths_and_rekeys(
    ends: Ends, stack: ExitStack
) -> None:
    wire = Wire(stack, ends, 1, encrypted=True)
    wire.start(stack)
    traffic = Traffic(ends, wire)
    traffic.exchange(20)
    for _ in range(2):
        traffic.rekey()
        traffic.exchange(10)
        wire.kill_worker()
        traffic.exchange(10)
    assert len({datagram[1:] for datagram in traffic.datagrams}) == 60
    # All that was sent twice came twice, before and behind deaths.
    assert wire.dropped() == {"rx_replayed": 60}


def test_worker_without_frames_sleeps_and_looks_after_its_keys(
    ends: Ends, stack: ExitStack
) -> None:
    wire = Wire(stack, ends, 1, encrypted=True)
    wire.start(stack)
    wire.page.wipe_all()
    wire.page.install(1, wire.keys.pair, 2)
    wire.page.send_with(1)

    def taken_up() -> bool:
        usage = wire.page.usage(1)
        return usage is not None and usage.receives and usage.sends

    ends.turn_until(taken_up)
    before, started = wire.progress(), time.monotonic()
    ends.turn_until(lambda: time.monotonic() > started + 2.0)
    # Twice a second in each direction.
    assert all(1 <= now - then <= 8 for now, then in zip(wire.progress(), before, strict=True))


def test_sealed_datagrams_that_were_joined_to_another_circuits_reach_their_own_worker(
    ends: Ends, stack: ExitStack
) -> None:
    """The kernel gives what it joined to the first one's socket, whatever circuit that is."""
    wires = {each: Wire(stack, ends, each, encrypted=each < 3) for each in (1, 2, 3)}
    for wire in wires.values():
        wire.start(stack)
    rounds, segments = 6, 30
    counters = dict.fromkeys(wires, 0)
    for number in range(rounds):
        joined = []
        for place in range(segments):
            each = 1 + (number + place) % 3
            counters[each] += 1
            frame = numbered(f"to{each}", counters[each], 100 if each < 3 else 121)
            sealed = wires[each].keys.seal(counters[each], frame)
            joined.append(sealed if each < 3 else b"\x03" + frame)
        send_joined(ends.far, joined, ends.routers.a.ipv4)
        done = (number + 1) * segments // 3
        ends.turn_until(
            lambda done=done: all(  # type: ignore[misc]
                len(wire.outlet.frames()) >= done for wire in wires.values()
            )
        )
    for each, wire in wires.items():
        expected = [(f"to{each}", number) for number in range(1, rounds * segments // 3 + 1)]
        assert sorted(wire.outlet.frames()) == expected
        assert wire.dropped() == {}


def test_what_comes_past_the_worker_reaches_no_tap_unless_the_worker_opens_it(
    ends: Ends, stack: ExitStack
) -> None:
    wire = Wire(stack, ends, 1, encrypted=True)
    wire.start(stack)
    data = bytearray(13)
    for datagram in (
        b"\x01" + numbered("clear", 1),
        b"\x01\x41\x01" + bytes(16),
        wire.keys.seal(1, numbered("sealed", 1)),
        wire.keys.seal(1, numbered("sealed", 1)),
    ):
        received = data + datagram
        wire.pseudowire.deliver(received, 13, len(received))
    ends.turn_until(lambda: sum(wire.dropped().values()) == 3)

    assert wire.dropped() == {"rx_clear": 2, "rx_replayed": 1}
    assert wire.outlet.frames() == [("sealed", 1)]
    assert ends.received() == []


def test_echo_reply_that_nobody_asked_for_is_counted(ends: Ends, stack: ExitStack) -> None:
    wire = Wire(stack, ends, 1, encrypted=True)
    wire.start(stack)
    ends.far.sendto(wire.keys.seal(1, b"\x41\x02" + bytes(16)), (ends.routers.a.ipv4, 48621))

    ends.turn_until(lambda: wire.dropped() == {"rx_reserved": 1})
    assert wire.outlet.frames() == []


@pytest.mark.parametrize("encrypted", [True, False])
def test_encrypted_circuit_and_no_other_is_attached_with_a_key_page(
    ends: Ends, stack: ExitStack, encrypted: bool
) -> None:
    wire = Wire(stack, ends, 1, encrypted=encrypted)
    fd = None if encrypted else create()
    if fd is not None:
        stack.callback(os.close, fd)

    with pytest.raises(DeviceError, match="needs a key page"):
        wire.pseudowire.attach(ends.path, replace(PROFILE, encrypted=encrypted), fd)
    assert wire.pseudowire.attached is None
