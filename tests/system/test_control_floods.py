"""Control messages that anybody can forge, many of them: what they do to circuits that are up."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest
from hostile import REQUEST, description, message, nonce

from lab.autoconfigured import asking, policy
from lab.circuit import NAME
from lab.cpu import cpu_used
from lab.daemon import Velad
from lab.datagrams import VELA_PORT, send_joined, udp_socket
from lab.flood import Flood
from lab.load import ping
from lab.topology import ThreeRouters, three_routers
from lab.waiting import PATIENCE, eventually

pytestmark = pytest.mark.needs_net_admin

FLOOD_S = 10.0
# A circuit is down when three in a row are lost, of some thirty in a flood.
KEEPALIVE_S = 0.3


@pytest.fixture
def routers() -> Iterator[ThreeRouters]:
    with three_routers() as three:
        # C sends in B's name, and takes nothing that is for B.
        three.c.namespace.run("ip", "address", "add", f"{three.b.ipv4}/32", "dev", "lo")
        three.c.namespace.sysctl("net/ipv4/conf/all/arp_ignore", 1)
        three.c.namespace.sysctl("net/ipv4/conf/eth0/arp_announce", 2)
        yield three


@contextmanager
def asked(routers: ThreeRouters, keepalive_s: float = KEEPALIVE_S) -> Iterator[tuple[Velad, Velad]]:
    """B has asked A for a circuit."""
    config = asking(routers.a.ipv4, keepalive=keepalive_s)
    with (
        Velad(routers.a.namespace, policy()) as a,
        Velad(routers.b.namespace, config) as b,
    ):
        for each in (a, b):
            each.wait_for_state(NAME, "up")
        yield a, b


@contextmanager
def in_bs_name(routers: ThreeRouters, port: int = VELA_PORT) -> Iterator[socket.socket]:
    with udp_socket(routers.c.namespace, routers.b.ipv4, port) as sender:
        yield sender


def downs(*velads: Velad) -> int:
    return sum(each.log().count("state=down") for each in velads)


def garbage() -> bytes:
    return b"\0\1" + bytes([5, 1]) + os.urandom(24) + os.urandom(100)


def requests() -> bytes:
    return message(REQUEST, 1, nonce(), 0, 1, description())


@pytest.mark.parametrize("forged", [garbage, requests])
@pytest.mark.parametrize("port", [VELA_PORT, 0], ids=["from its port", "from another"])
def test_circuit_stays_up_whatever_is_sent_in_its_remotes_name(
    routers: ThreeRouters,
    forged: Callable[[], bytes],
    port: int,
    figure: Callable[[str], None],
) -> None:
    with asked(routers) as (a, b), in_bs_name(routers, port) as sender:
        trains = cycle([[forged() for _ in range(16)] for _ in range(64)])

        def send() -> int:
            send_joined(sender, train := next(trains), routers.a.ipv4)
            return len(train)

        before = a.status()["rx_dropped"]
        waits = []
        start = time.monotonic()
        with cpu_used([a.pid]) as cpu, Flood(send) as flood:
            while time.monotonic() - start < FLOOD_S:
                assert ping(routers.a.namespace, "172.16.16.1", count=5, interval_s=0.1).received
                asked_at = time.monotonic()
                a.status()
                waits.append(time.monotonic() - asked_at)
        after = a.status()["rx_dropped"]

        read = {each: after[each] - before.get(each, 0) for each in after}
        figure(
            f"{forged.__name__}: {flood.sent / FLOOD_S:.0f}/s, supervisor {cpu.processes_s:.1f} s "
            f"of CPU in {FLOOD_S:g}, status waits {max(waits):.2f} s, "
            f"{ {key: value for key, value in read.items() if value} }"
        )
        assert downs(a, b) == 0
        assert max(waits) < 1.0 * PATIENCE


def test_remote_comes_back_at_once_while_requests_are_forged_in_its_name(
    routers: ThreeRouters, figure: Callable[[str], None]
) -> None:
    with asked(routers, 1.0) as (a, b), in_bs_name(routers) as sender:

        def send() -> int:
            sender.sendto(requests(), (routers.a.ipv4, VELA_PORT))
            time.sleep(1 / 200)
            return 1

        with Flood(send) as flood:
            eventually(lambda: flood.sent > 400, 10, "the flood")
            took = []
            for _ in range(3):
                b.kill()
                b.start()
                started = time.monotonic()
                for each in (b, a):
                    each.wait_for_state(NAME, "up")
                took.append(time.monotonic() - started)
        figure(f"200 forged requests a second: back after {', '.join(f'{s:.2f}' for s in took)} s")
        # A request that is not answered is repeated after 0.5 s, and then each second.
        assert sorted(took)[1] < 1.5
