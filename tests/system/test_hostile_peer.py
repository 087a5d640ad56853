"""A machine that may set up circuits here, and means ill: what others and this host lose by it."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
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
PREFIX = "2001:db8:bad::"
READ_ONLY = 'mount --bind -o ro /proc/sys /proc/sys && exec "$@"'


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
        kept, refused = [], None
        for number in range(1, 65):
            mac = b"\0\0\0\0\0" + bytes([number])
            answer = peer.ask(number, offer(bridge=BRIDGE, mac=mac), mtu=68)
            assert answer is not None
            if answer[2] == KEEPALIVE:
                peer.is_up(number)
                kept.append(number)
            else:
                refused = answer
        assert len(kept) == MAY_HAVE
        assert refused is not None
        assert "max_circuits_per_remote" in reason(refused)
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

    # Nor when all ports of the circuits have left it.
    assert bridge_of(b) == before


def router_advertisements(peer: Velad, interface: str) -> None:
    """Send some that offer an address and a default route (RFC 4861, section 4.2)."""
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + ip_address(PREFIX).packed
    data = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    with peer.namespace.socket(socket.AF_INET6, socket.SOCK_RAW, 58) as sender:
        for option in (16, 18):  # IPV6_UNICAST_HOPS, IPV6_MULTICAST_HOPS
            sender.setsockopt(socket.IPPROTO_IPV6, option, 255)
        with peer.namespace.entered():
            index = socket.if_nametoindex(interface)
        for _ in range(3):
            sender.sendto(data, ("ff02::1", 0, 0, index))


def taken(namespace: Namespace, interface: str) -> tuple[bool, bool]:
    """Tell whether the host took the address and the default route."""
    address = namespace.run("ip", "-6", "address", "show", "dev", interface).stdout
    route = namespace.run("ip", "-6", "route", "show", "default").stdout
    return PREFIX.rstrip(":") in address, interface in route


@pytest.mark.parametrize("forwards", [False, True])
@pytest.mark.parametrize("accepts", [False, True])
def test_router_advertisements_of_a_peer_are_taken_only_if_the_operator_says_so(
    routers: ThreeRouters, accepts: bool, forwards: bool
) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    if forwards:
        b.sysctl("net/ipv6/conf/all/forwarding", 1)
    with (
        Velad(b, policy(accept_ra=accepts)) as velad,
        Velad(a, asking(routers.b.ipv4)) as asker,
    ):
        for each in (velad, asker):
            each.wait_for_state(NAME, "up")
        router_advertisements(asker, NAME)
        eventually(lambda: arrived(b) >= 3, 5, "them to arrive")
        if accepts:
            eventually(lambda: taken(b, NAME) == (True, True), 5, "them to be taken")
        else:
            assert taken(b, NAME) == (False, False)
        # What the other end set up for itself is as its own configuration says.
        assert a.run("sysctl", "-n", f"net.ipv6.conf.{NAME}.accept_ra").stdout == "0\n"


def test_configured_circuit_takes_router_advertisements_where_it_says_so(
    routers: ThreeRouters,
) -> None:
    a = routers.a.namespace
    with (
        Velad(routers.b.namespace, policy()) as velad,
        Velad(a, asking(routers.b.ipv4, accept_ra=True)) as asker,
    ):
        for each in (velad, asker):
            each.wait_for_state(NAME, "up")
        assert a.run("sysctl", "-n", f"net.ipv6.conf.{NAME}.accept_ra").stdout == "2\n"
        router_advertisements(velad, NAME)
        eventually(lambda: taken(a, NAME) == (True, True), 5, "them to be taken")


def arrived(namespace: Namespace) -> int:
    """Return how many router advertisements have arrived in a namespace."""
    shown = namespace.run("cat", "/proc/net/snmp6").stdout
    (line,) = [line for line in shown.splitlines() if "Icmp6InRouterAdvertisements" in line]
    return int(line.split()[1])


def test_peer_whose_advertisements_cannot_be_kept_out_gets_no_circuit(
    routers: ThreeRouters,
) -> None:
    """As where a unit or a container makes sysctls read-only."""
    b, read_only = routers.b.namespace, ("unshare", "-m", "sh", "-c", READ_ONLY, "sh")
    with (
        Velad(b, policy(), prefix=read_only) as velad,
        Velad(routers.a.namespace, asking(routers.b.ipv4)) as asker,
    ):
        reason_of = asker.wait_for_state(NAME, "rejected")["reason"]
        assert "cannot set net.ipv6.conf.vela0.accept_ra to 0: Read-only file system" in reason_of
        assert velad.status()["circuits"] == []
        assert "vela0" not in b.run("ip", "-br", "link", "show").stdout

    b.sysctl("net/ipv6/conf/default/accept_ra", 0)
    with (
        Velad(b, policy(), prefix=read_only) as velad,
        Velad(routers.a.namespace, asking(routers.b.ipv4)) as asker,
    ):
        asker.wait_for_state(NAME, "up")
