"""Congestion marks that routers on the way set: nftables puts them on the outer headers here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sealed_circuit import psk_configs, psk_file

from lab.autoconfigured import circuit, ends, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME, static_circuit
from lab.copying import copy
from lab.counters import AtLeast
from lab.link import Interface
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

NOT_ECT, ECT1, ECT0, CE = range(4)
AF11, EF = 10 << 2, 46 << 2
INNER = {"ipv4": "172.16.16.2", "ipv6": "fd00:16::2"}
PORT = 7000


def mark(router: Router, which: str) -> None:
    """Let all outer datagrams that come to a router and fit an expression have CE."""
    rules = "".join(
        f"udp dport 48621 {version} ecn {which} {version} ecn set ce\n" for version in ("ip", "ip6")
    )
    chain = f"chain in {{ type filter hook prerouting priority -300;\n{rules}}}\n"
    router.namespace.run("nft", "-f", "-", stdin=f"table inet marking {{ {chain} }}\n")


@dataclass(frozen=True, slots=True)
class Flow:
    """UDP between the inner addresses of both ends."""

    sender: socket.socket
    receiver: socket.socket
    to: tuple[str, int]
    ipv4: bool

    def send(self, tos: int, size: int = 100) -> int | None:
        """Send a datagram with a TOS byte, and return the one that it arrives with; None: lost."""
        level, kind = (
            (socket.IPPROTO_IP, socket.IP_TOS)
            if self.ipv4
            else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        )
        self.sender.setsockopt(level, kind, tos)
        self.sender.sendto(b"x" * size, self.to)
        try:
            data, ancillary, _, _ = self.receiver.recvmsg(65536, 64)
        except TimeoutError:
            return None
        assert len(data) == size
        (seen,) = (value[0] for _, each, value in ancillary if each == kind)
        return int(seen)


@contextmanager
def flow(a: Namespace, b: Namespace, version: str) -> Iterator[Flow]:
    family = socket.AF_INET if version == "ipv4" else socket.AF_INET6
    with (
        a.socket(family, socket.SOCK_DGRAM) as sender,
        b.socket(family, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.settimeout(1.0)
        if version == "ipv4":
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        receiver.bind((INNER[version], PORT))
        yield Flow(sender, receiver, (INNER[version], PORT), version == "ipv4")


@pytest.mark.parametrize("source_port", ["auto", "listen"])
@pytest.mark.parametrize("outer", ["ipv4", "ipv6"])
@pytest.mark.parametrize("engine", ["native", "python"])
def test_mark_on_the_way_reaches_capable_packets_and_drops_others(
    routers: TwoRouters, engine: str, outer: str, source_port: str
) -> None:
    with static_circuit(routers, engine=engine, outer=outer, source_port=source_port) as both:
        a, b = routers.a.namespace, routers.b.namespace
        for version in INNER:
            with flow(a, b, version) as udp:
                assert [udp.send(EF | ecn) for ecn in range(4)] == [EF | ecn for ecn in range(4)]
        mark(routers.b, "!= not-ect")
        for version in INNER:
            with flow(a, b, version) as udp:
                marked = [udp.send(EF | ecn) for ecn in range(4)]
                assert marked == [EF | NOT_ECT, EF | CE, EF | CE, EF | CE]
        both.b.counted(rx_frames=AtLeast(8), rx_dropped={})

        b.run("nft", "delete", "table", "inet", "marking")
        mark(routers.b, "!= ce")
        for version in INNER:
            with flow(a, b, version) as udp:
                assert udp.send(EF | NOT_ECT) is None
                assert udp.send(EF | ECT0) == EF | CE
        # Other packets of the host, such as those of neighbour discovery, count as well.
        eventually(lambda: both.b.counters["rx_dropped"].get("ecn", 0) >= 2, 5, "two drops")


@pytest.mark.parametrize("engine", ["native", "python"])
def test_mark_on_one_fragmented_or_pieced_frame_arrives(routers: TwoRouters, engine: str) -> None:
    with static_circuit(routers, engine=engine, mtu=3000, fragmentation="tunnel") as both:
        mark(routers.b, "== ect0")
        with flow(routers.a.namespace, routers.b.namespace, "ipv4") as udp:
            assert udp.send(ECT0, size=2500) == CE
            assert udp.send(NOT_ECT, size=2500) == NOT_ECT
        both.a.counted(tx_pieced=2)
        both.b.counted(rx_joined=2)


def tcp_flags(capture: Capture, *, outgoing: bool) -> Iterator[tuple[int, int]]:
    """Yield ECN and flags of the TCP segments with IPv4 that crossed an interface."""
    for packet in capture.packets():
        data = packet.data
        if packet.outgoing == outgoing and data[12:14] == b"\x08\x00" and data[23] == 6:
            yield data[15] & 3, data[47]


def check_tcp(routers: TwoRouters) -> None:
    """Copy a file over TCP whose packets are all marked, and see that both ends take note."""
    ece, cwr = 0x40, 0x80
    mark(routers.b, "== ect0")
    for router in (routers.a, routers.b):
        router.namespace.sysctl("net/ipv4/tcp_ecn", 1)
    with ExitStack() as stack:
        of_a, of_b = (
            stack.enter_context(Capture(Interface(router.namespace, NAME)))
            for router in (routers.a, routers.b)
        )
        copied = copy(
            routers.a.namespace, routers.b.namespace, INNER["ipv4"], 1_000_000, timeout_s=60
        )

        assert copied.received_digest == copied.sent_digest
        sent = list(tcp_flags(of_a, outgoing=True))
        came = list(tcp_flags(of_b, outgoing=False))
        # Those before the connection is there, and without data, are not capable.
        assert {ecn for ecn, _ in sent} == {NOT_ECT, ECT0}
        assert {ecn for ecn, _ in came} == {NOT_ECT, CE}
        # B told A of the marks, and A said that it slows down.
        assert any(flags & ece for _, flags in tcp_flags(of_a, outgoing=False))
        assert any(flags & cwr and ecn == CE for ecn, flags in came)


@pytest.mark.parametrize("remote", ["ipv4", "ipv6"])
def test_tcp_of_an_autoconfigured_circuit_slows_down_for_marks(
    routers: TwoRouters, remote: str
) -> None:
    """Super-frames at both ends: one mark is that of all their segments."""
    with circuit(routers, remote=getattr(routers.b, remote)):
        check_tcp(routers)


def test_tcp_of_an_encrypted_circuit_slows_down_for_marks(
    routers: TwoRouters, tmp_path: Path
) -> None:
    with ends(routers, *psk_configs(routers, psk_file(tmp_path))) as both:
        wait_until_up(both)
        check_tcp(routers)


@pytest.mark.usefixtures("framed")
@pytest.mark.parametrize(("dscp", "wanted"), [(None, EF), ("inherit", EF), (10, AF11), (0, 0)])
@pytest.mark.parametrize("source_port", ["auto", "listen"])
def test_class_of_outer_headers_is_the_inner_one_or_a_number(
    routers: TwoRouters, source_port: str, dscp: str | int | None, wanted: int
) -> None:
    chosen: dict[str, Any] = {} if dscp is None else {"dscp": dscp}
    with (
        static_circuit(routers, source_port=source_port, **chosen),
        Capture(routers.b.underlay) as within,
    ):
        ping(routers.a.namespace, INNER["ipv4"], count=2, tos=EF | ECT0)

        classes = {
            packet.data[15]
            for packet in within.packets()
            if not packet.outgoing and packet.data[43:44] == b"\x45"
        }
        assert classes == {wanted | ECT0}
