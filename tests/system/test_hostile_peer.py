"""A machine that may set up circuits here, and means ill: what others and this host lose by it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from hostile import KEEPALIVE, Peer, offer, reason

from lab.autoconfigured import asking, policy
from lab.circuit import NAME
from lab.cpu import cpu_used
from lab.daemon import Velad
from lab.link import bridge, veth
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import ThreeRouters, three_routers
from lab.waiting import PATIENCE, eventually

pytestmark = pytest.mark.needs_net_admin

BRIDGE = "br-lan"
MAY_HAVE = 16
ATTACK_S = 40.0


@pytest.fixture
def routers() -> Iterator[ThreeRouters]:
    with three_routers() as three:
        yield three


@pytest.fixture
def lan(routers: ThreeRouters) -> Iterator[None]:
    """B's bridge of MTU 1500, with a MAC address of its port's and addresses, and a host on it."""
    b = routers.b.namespace
    with Namespace("lan") as host:
        _, port = veth(host, "eth0", b, "lan0", 1500)
        b.run("ip", "link", "set", "dev", "lan0", "address", "52:54:00:11:22:33")
        bridge(b, BRIDGE, port)
        b.run("ip", "address", "add", "192.168.9.1/24", "dev", BRIDGE)
        b.run("ip", "address", "add", "fd09::1/64", "dev", BRIDGE, "nodad")
        yield


def bridge_of(namespace: Namespace) -> tuple[int, str, set[str]]:
    """Return the bridge's MTU, MAC address and addresses."""
    shown = namespace.run("ip", "-j", "address", "show", "dev", BRIDGE).stdout
    (link,) = json.loads(shown)
    return link["mtu"], link["address"], {each["local"] for each in link["addr_info"]}


def lines(velad: Velad) -> list[str]:
    return velad.log().splitlines()


def events(found: list[str]) -> dict[str, int]:
    names = [match[1] for line in found if (match := re.search(r"\] (\w+)", line))]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("lan")
def test_hostile_peer_harms_no_other_peer_no_bridge_and_no_log(
    routers: ThreeRouters, figure: Callable[[str], None]
) -> None:
    b = routers.b.namespace
    before = bridge_of(b)
    with (
        Velad(b, policy()) as velad,
        Velad(routers.a.namespace, asking(routers.b.ipv4, keepalive=1.0)) as honest,
        Peer(routers.c.namespace, routers.c.ipv4, routers.b.ipv4) as peer,
    ):
        honest.wait_for_state(NAME, "up")

        # It hoards, and makes itself at home in the bridge.
        answers = [
            peer.ask(number, offer(bridge=BRIDGE, mac=b"\0\0\0\0\0" + bytes([number])), mtu=68)
            for number in range(1, 65)
        ]
        kept = [
            number for number, answer in enumerate(answers, 1) if answer and answer[2] == KEEPALIVE
        ]
        assert len(kept) == MAY_HAVE
        refused = answers[-1]
        assert refused is not None
        assert "max_circuits_per_remote" in reason(refused)
        for number in kept:
            peer.is_up(number)
        velad.wait_for(
            lambda status: sum(each["state"] == "up" for each in status["circuits"]) == 17,
            10,
            "all to be up",
        )
        assert bridge_of(b) == before

        # A hundred changes and seven hundred refusals a second.
        peer.ask(200, offer("8.8.8.1/30"))
        refusal = peer.confirm
        since, started = len(lines(velad)), time.monotonic()
        wanted, waits, pings = count(), [], 0
        with cpu_used([velad.pid]) as cpu:
            tick = 0
            while (now := time.monotonic() - started) < ATTACK_S:
                for _ in range(7):
                    peer.send(refusal)
                number = kept[tick % 4]
                mac = b"\2\0\0\0" + (next(wanted) & 0xFFFF).to_bytes(2)
                peer.ask(number, offer(bridge=BRIDGE, mac=mac), mtu=68)
                tick += 1
                if tick % 100 == 0:
                    asked = time.monotonic()
                    velad.status()
                    waits.append(time.monotonic() - asked)
                    found = ping(routers.a.namespace, "172.16.16.2", count=3, interval_s=0.05)
                    pings += found.lost
                time.sleep(max(0.0, started + tick / 100 - time.monotonic()))
        logged = lines(velad)[since:]
        figure(
            f"hostile peer: {tick / now:.0f} changes and {7 * tick / now:.0f} refusals a second, "
            f"{len(logged) / now:.2f} lines a second {events(logged)}; "
            f"{cpu.processes_s / now:.2f} of a CPU; status waits {max(waits):.2f} s"
        )
        assert len(logged) < now
        assert pings == 0
        assert max(waits) < 1.0 * PATIENCE
        assert bridge_of(b) == before
        assert honest.log().count("state=down") == 0
        assert honest.circuit(NAME)["state"] == "up"

        # It goes: the bridge stays as it was, also without those ports.
        for number in kept[4:]:
            peer.delete(number)
        eventually(
            lambda: len(velad.status()["circuits"]) <= 5, 10, "the deleted circuits to be gone"
        )
        assert bridge_of(b) == before
