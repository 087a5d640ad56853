"""ICMP that says that datagrams were too large for the path, from anybody: it changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest
from hostile import Forger, echo, forge_too_big, icmp_errors, udp_packet

from lab.autoconfigured import asking, ends, policy, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.copying import copy
from lab.daemon import Velad
from lab.datagrams import VELA_PORT
from lab.flood import Flood
from lab.link import Regime
from lab.load import ping
from lab.topology import Router, ThreeRouters, three_routers
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

# The smallest that the kernel believes: net.ipv4.route.min_pmtu, and RFC 8200, section 5.
FORGED = {"ipv4": 552, "ipv6": 1280}
OVERHEAD = {"ipv4": 29, "ipv6": 49}

# So that no machine that stands still for seconds is taken for what ICMP has done.
PATIENT_S = 10.0


@pytest.fixture(params=["ipv4", "ipv6"])
def outer(request: pytest.FixtureRequest) -> str:
    family: str = request.param
    return family


@pytest.fixture
def routers() -> Iterator[ThreeRouters]:
    with three_routers() as three:
        for each in (three.a, three.b):
            each.underlay.set_regime(Regime.FRAMES)
        yield three


def address(router: Router, outer: str) -> str:
    return router.ipv4 if outer == "ipv4" else router.ipv6


@contextmanager
def asked(routers: ThreeRouters, outer: str) -> Iterator[Velad]:
    """A has asked B for a circuit that carries IPv6, too, and looks at its route all the time."""
    config = asking(address(routers.b, outer))

    with ends(routers, config, policy()) as both:
        wait_until_up(both)
        yield both.a


def ports(router: Router) -> set[int]:
    """Return the ports of all UDP sockets there."""
    lines = router.namespace.run("ss", "-Huna").stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines} | {VELA_PORT}


def quotations(routers: ThreeRouters, outer: str) -> list[bytes]:
    """Return what a forger can say that A had sent to B."""
    a, b = address(routers.a, outer), address(routers.b, outer)
    return [echo(a, b), *(udp_packet(a, port, b) for port in sorted(ports(routers.a)))]


def forge(routers: ThreeRouters, outer: str, quoted: list[bytes]) -> None:
    for each in quoted:
        forge_too_big(routers.c.namespace, address(routers.a, outer), each, FORGED[outer])


def believed(routers: ThreeRouters, outer: str, router: Router) -> bool:
    """Tell whether A's kernel goes by what was forged of the way to a router."""
    shown = routers.a.namespace.run("ip", "route", "get", address(router, outer)).stdout
    return f"mtu {FORGED[outer]}" in shown


def await_arrival(routers: ThreeRouters, outer: str) -> None:
    """Wait until what was forged has arrived: what is forged of another way comes behind it."""
    a, c = address(routers.a, outer), address(routers.c, outer)
    forge(routers, outer, [echo(a, c)])
    eventually(lambda: believed(routers, outer, routers.c), 5, "the kernel to believe it")


@pytest.mark.usefixtures("eager")
def test_forged_icmp_changes_neither_the_circuit_nor_its_datagrams(
    routers: ThreeRouters, outer: str
) -> None:
    with asked(routers, outer) as velad:
        mtu = 1500 - OVERHEAD[outer]
        assert velad.circuit(NAME)["mtu"] == mtu
        pid = velad.worker_pid(NAME)

        forge(routers, outer, quotations(routers, outer))

        # The kernel believes it of a ping, and says so to all who ask.
        await_arrival(routers, outer)
        assert believed(routers, outer, routers.b)
        with Capture(routers.b.underlay) as within:
            # Meanwhile velad looks at the route several times.
            pings = ping(
                *(routers.a.namespace, "172.16.16.2"),
                count=5,
                interval_s=0.4,
                size=mtu,
                dont_fragment=True,
            )
            packets = [packet for packet in within.packets() if not packet.outgoing]
        assert pings.received == 5, pings.output
        sizes = {len(packet.data) - 14 for packet in packets}
        assert max(sizes) == 1500
        entry = velad.circuit(NAME)
        assert (entry["state"], entry["mtu"], entry["reason"]) == ("up", mtu, "")
        assert entry["counters"]["tx_fragmented"] == entry["counters"]["tx_errors"] == 0
        assert velad.worker_pid(NAME) == pid


def test_forged_icmp_of_velas_own_datagrams_does_not_reach_the_routing_table(
    routers: ThreeRouters, outer: str
) -> None:
    with asked(routers, outer):
        forge(routers, outer, quotations(routers, outer)[1:])

        await_arrival(routers, outer)
        assert not believed(routers, outer, routers.b)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_storm_of_forged_icmp_makes_no_fragments(
    routers: ThreeRouters, outer: str, engine: str
) -> None:
    """Each one is an error of some send of the worker's."""
    config = f'[daemon]\nengine = "{engine}"\n' + asking(address(routers.b, outer))
    with ends(routers, config, policy()) as both:
        wait_until_up(both)
        quoted = quotations(routers, outer)

        def send() -> int:
            forge(routers, outer, quoted)
            return len(quoted)

        with Flood(send) as flood:
            a, b = routers.a.namespace, routers.b.namespace
            copied = copy(a, b, "172.16.16.2", 4_000_000, timeout_s=60)
        assert copied.received_digest == copied.sent_digest
        assert flood.sent > 100
        counters = both.a.circuit(NAME)["counters"]
        assert counters["tx_fragmented"] == counters["tx_errors"] == 0


RATE = 1000  # per second


@pytest.mark.parametrize("engine", ["native", "python"])
def test_storm_of_icmp_of_all_kinds_changes_nothing(
    routers: ThreeRouters, outer: str, engine: str, figure: Callable[[str], None]
) -> None:
    """From the addresses of C and of the remote, about frames and control messages."""
    circuit = asking(address(routers.b, outer), keepalive=PATIENT_S)
    config = f'[daemon]\nengine = "{engine}"\n' + circuit
    a, b, c = (address(each, outer) for each in (routers.a, routers.b, routers.c))
    with (
        ends(routers, config, policy()) as both,
        Forger(routers.c.namespace, a) as forger,
    ):
        wait_until_up(both)
        before = both.a.circuit(NAME)
        forged = cycle(
            packet
            for quoted in quotations(routers, outer)
            for source in (c, b)
            for packet in icmp_errors(source, a, quoted, FORGED[outer])
        )
        started = time.monotonic()
        sent = 0

        def send() -> int:
            nonlocal sent
            forger.send(next(forged))
            sent += 1
            time.sleep(max(0, started + sent / RATE - time.monotonic()))
            return 1

        with Flood(send) as flood:
            mtu = 1500 - OVERHEAD[outer]
            pings = ping(
                *(routers.a.namespace, "172.16.16.2"),
                count=200,
                interval_s=0.02,
                size=mtu,
                dont_fragment=True,
            )
            copied = copy(
                *(routers.a.namespace, routers.b.namespace, "172.16.16.2"),
                4_000_000,
                timeout_s=60,
            )
            after = both.a.circuit(NAME)
            seconds = time.monotonic() - started
        figure(f"{outer}, {engine}: {flood.sent} forged ICMP messages in {seconds:.1f} s")
        assert flood.sent > RATE
        assert pings.received == 200, pings.output
        assert copied.received_digest == copied.sent_digest
        for key in ("state", "reason", "mtu", "path_mtu", "transitions", "source_port"):
            assert after[key] == before[key], key
        assert after["state"] == "up"
        assert after["worker"]["pid"] == before["worker"]["pid"]
        assert after["counters"]["tx_fragmented"] == after["counters"]["tx_errors"] == 0


@pytest.mark.usefixtures("eager")
def test_forged_icmp_leaves_the_mtu_of_a_route_that_the_operator_narrowed(
    routers: ThreeRouters, outer: str
) -> None:
    """Frames that are larger than what was forged may leave in fragments; none is lost."""
    remote = address(routers.b, outer)
    host = f"{remote}/{32 if outer == 'ipv4' else 128}"
    routers.a.namespace.run("ip", "route", "add", host, "dev", "eth0", "mtu", "1400")
    with asked(routers, outer) as velad:
        mtu = 1400 - OVERHEAD[outer]
        assert velad.circuit(NAME)["mtu"] == mtu

        forge(routers, outer, quotations(routers, outer))

        await_arrival(routers, outer)
        assert believed(routers, outer, routers.b)
        pings = ping(
            *(routers.a.namespace, "172.16.16.2"),
            count=5,
            interval_s=0.4,
            size=mtu,
            dont_fragment=True,
        )
        assert pings.received == 5, pings.output
        entry = velad.circuit(NAME)
        assert (entry["state"], entry["mtu"]) == ("up", mtu)
