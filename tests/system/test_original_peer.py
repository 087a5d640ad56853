"""Circuits toward a peer that speaks the original protocol: circuit id 1, then a bare IP packet."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.capture import Capture, Packet
from lab.counters import AtLeast
from lab.daemon import ROOT, Velad
from lab.frames import await_operational
from lab.headers import Datagram, datagram, parse_ipv4, parse_ipv6
from lab.injector import Injector
from lab.link import Interface, Regime
from lab.load import ping
from lab.topology import Router, TwoRouters

pytestmark = pytest.mark.needs_net_admin

INNER_A = ("172.16.0.1", "fd00:16::1")
INNER_B = ("172.16.0.2", "fd00:16::2")
SOURCE = bytes.fromhex("02005e00ff02")


@contextmanager
def original_peer(router: Router, local: str, remote: str) -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    process = router.namespace.popen(
        *(sys.executable, "-m", "lab.original_peer", "tun0", "9000", local, remote),
        stdout=subprocess.PIPE,
        env=env,
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 10)[0]
        assert process.stdout.readline() == "ready\n"
        tun = Interface(router.namespace, "tun0")
        tun.add_address("172.16.0.2/30")
        tun.add_address("fd00:16::2/64")
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def started(router: Router, remote: str, mtu: str) -> Iterator[Velad]:
    config = f"""
[circuits.vela0]
id = 1
remote = "{remote}"
addresses = ["172.16.0.1/30", "fd00:16::1/64"]
encapsulation = "ip"
autoconfigure = false
mtu = {mtu}
"""
    with Velad(router.namespace, config) as velad:
        velad.wait_for_state("vela0", "unmonitored")
        await_operational(Interface(router.namespace, "vela0"))
        yield velad


def ends(routers: TwoRouters, version: int) -> tuple[str, str]:
    a, b = routers.a, routers.b
    return (a.ipv4, b.ipv4) if version == 4 else (a.ipv6, b.ipv6)


@pytest.mark.parametrize("underlay", [4, 6])
def test_original_peer_is_reached_both_ways_over_ipv4_and_ipv6(
    routers: TwoRouters, underlay: int
) -> None:
    a, b = ends(routers, underlay)
    with (
        started(routers.a, b, '"auto"') as velad,
        original_peer(routers.b, b, a) as peer,
    ):
        lost = [ping(routers.a.namespace, each, count=5).lost for each in INNER_B]
        lost += [ping(routers.b.namespace, each, count=5).lost for each in INNER_A]

        assert lost == [0, 0, 0, 0]
        assert peer.poll() is None
        assert velad.circuit("vela0")["mtu"] == (1471 if underlay == 4 else 1451)


@pytest.mark.parametrize("underlay", [4, 6])
def test_datagram_of_8972_bytes_in_fragments_arrives_whole_where_the_interface_takes_it(
    routers: TwoRouters, underlay: int
) -> None:
    # No buffer of the cable is larger than its MTU, so fragments are what travels.
    routers.set_regime(Regime.WIRE)
    a, b = ends(routers, underlay)
    with (
        started(routers.a, b, "9000") as velad,
        original_peer(routers.b, b, a),
        Capture(routers.a.underlay) as capture,
    ):
        # 8971 bytes of IP, one of circuit id; the answers are of the same size.
        from_peer = [
            ping(routers.b.namespace, each, count=3, size=8971, dont_fragment=True)
            for each in INNER_A
        ]
        from_here = [
            ping(routers.a.namespace, each, count=3, size=8971, dont_fragment=True)
            for each in INNER_B
        ]
        longest = max(len(packet.data) for packet in capture.packets())
        # Six requests and six answers each way.
        velad.counted("vela0", tx_fragmented=12, rx_bytes=AtLeast(12 * (14 + 8971)), rx_dropped={})

    assert [each.lost for each in from_peer + from_here] == [0, 0, 0, 0]
    assert longest == 1514 if underlay == 4 else longest <= 1514


def test_datagram_larger_than_the_interface_takes_is_dropped_and_counted(
    routers: TwoRouters,
) -> None:
    with (
        started(routers.a, "10.201.0.2", "1471") as velad,
        original_peer(routers.b, "10.201.0.2", "10.201.0.1"),
        Capture(Interface(routers.a.namespace, "vela0")) as tap,
    ):
        pings = ping(routers.b.namespace, "172.16.0.1", count=3, size=8971, timeout_s=0.2)

        velad.counted("vela0", rx_dropped={"oversized": 3})
        assert pings.received == 0
        assert velad.circuit("vela0")["worker"]["restarts"] == 0
        assert [packet for packet in tap.packets() if len(packet.data) > 1485] == []
        assert ping(routers.b.namespace, "172.16.0.1", count=3, size=1471).lost == 0


def frame(ethertype: bytes, payload: bytes) -> bytes:
    return (b"\xff" * 6 + SOURCE + ethertype + payload).ljust(60, b"\0")


NOT_IP = [
    # RFC 826: who has 172.16.0.2?
    frame(b"\x08\x06", bytes.fromhex("0001080006040001") + SOURCE + bytes([172, 16, 0, 1] * 2)),
    frame(b"\x81\x00", b"\x00\x07\x08\x00" + bytes.fromhex("4500001c") + bytes(24)),  # VLAN 7
    frame(b"\x88\xcc", bytes.fromhex("0207") + bytes(40)),  # LLDP
    frame(b"\x00\x26", b"\x42\x42\x03" + bytes(35)),  # a bridge's BPDU: a length, then LLC
    frame(b"\x08\x00", bytes(46)),  # an EtherType that says IP, and is wrong
    frame(b"\x08\x00", bytes.fromhex("46000014") + bytes(42)),  # total length below its header
    frame(b"\x86\xdd", bytes.fromhex("60000000ffff") + bytes(40)),  # longer than the frame
    frame(b"\x86\xdd", b""),
]


@pytest.mark.usefixtures("framed")
def test_original_peer_is_sent_nothing_but_bare_ip_packets(routers: TwoRouters) -> None:
    namespace = routers.a.namespace
    with (
        Capture(routers.b.underlay) as capture,
        started(routers.a, "10.201.0.2", '"auto"') as velad,
        original_peer(routers.b, "10.201.0.2", "10.201.0.1") as peer,
    ):
        vela0 = Interface(namespace, "vela0")
        with Injector(vela0) as injector:
            for each in NOT_IP:
                injector.send(each)
        velad.counted("vela0", tx_dropped={"not_ip": 8})
        # What makes other interfaces ask for a neighbour, and for routers.
        namespace.run("ip", "route", "add", "172.17.0.0/24", "dev", "vela0")
        ping(namespace, "172.17.0.9", count=1, timeout_s=0.1)
        ping(namespace, "fd00:16::99", count=1, timeout_s=0.1)
        ping(namespace, "ff02::1%vela0", count=1, timeout_s=0.1)
        namespace.sysctl("net/ipv6/conf/vela0/router_solicitations", 3)
        vela0.set_down()
        vela0.set_up()
        await_operational(vela0)
        vela0.add_address("fd00:17::1/64")
        assert ping(namespace, "172.16.0.2", count=3).lost == 0

        sent = [found.udp.payload for packet in capture.packets() if (found := from_a(packet))]
        running = peer.poll() is None
    assert running
    assert len(sent) >= 5
    for payload in sent:
        assert payload[0] == 1
        if payload[1] >> 4 == 4:
            assert parse_ipv4(payload[1:]).total_length == len(payload) - 1
        else:
            assert parse_ipv6(payload[1:]).payload_length == len(payload) - 1 - 40


def from_a(packet: Packet) -> Datagram | None:
    found = datagram(packet.data)
    return found if found and str(found.ip.source) == "10.201.0.1" else None
