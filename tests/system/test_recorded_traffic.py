"""Traffic of real programs, recorded on a cable, replayed through both engines in both directions.

tests/recordings/record.py says what it is, and made it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import pytest
from attached_plane import LOCAL, REMOTE, UDP_SEGMENT, Circuit
from packets import PLAIN, TCP, UDP, Packet, ethertype

from lab.segmenter import KernelSegmenter
from vela.dataplane.counters import Slot

pytestmark = pytest.mark.needs_net_admin

RECORDING = Path(__file__).parents[1] / "recordings" / "lan.pcap"
# pcap-savefile(5): magic, version, version, reserved, reserved, snap length, link type; and of
# each packet, seconds, microseconds, captured and original length.
FILE_HEADER, PACKET_HEADER = struct.Struct("=IHHIIII"), struct.Struct("=IIII")
ETHERNET = 1

ENGINES = ("python", "native", "native with virtio")
LARGEST_RUN = 40
# The cable's MTU is 1500; the underlay's is larger.
LIMITS = {"frame_limit": 1500 + 14 + 4, "datagram_limit": 8972}


def recorded() -> list[bytes]:
    data = RECORDING.read_bytes()
    magic, *_, link = FILE_HEADER.unpack_from(data)
    assert (magic, link) == (0xA1B2C3D4, ETHERNET)
    frames, at = [], FILE_HEADER.size
    while at < len(data):
        *_, captured, original = PACKET_HEADER.unpack_from(data, at)
        assert captured == original
        at += PACKET_HEADER.size
        frames.append(data[at : at + captured])
        at += captured
    return frames


FRAMES = {
    "from local": [frame for frame in recorded() if frame[6:12] == LOCAL],
    "from remote": [frame for frame in recorded() if frame[6:12] == REMOTE],
}


class End:
    """A circuit's data path at one end, with a TAP that takes and gives finished frames."""

    def __init__(self, stack: ExitStack, kernel: KernelSegmenter, engine: str, mac: bytes) -> None:
        self._virtio = engine == "native with virtio"
        self._kernel = kernel
        self.writes = 0
        self._circuit = Circuit(
            stack,
            engine.partition(" ")[0],
            local_mac=mac,
            remote_mac=LOCAL if mac == REMOTE else REMOTE,
            virtio_header=self._virtio,
            **LIMITS,
        )

    def egress(self, frames: list[bytes]) -> list[bytes]:
        """Return the datagrams of frames that the TAP gives together."""
        head = PLAIN if self._virtio else b""
        return self._circuit.egress(*(head + frame for frame in frames))

    def ingress(self, datagrams: list[bytes], *, joined: bool) -> list[bytes]:
        """Return the frames of datagrams; joined: those of one size arrive as by UDP GRO."""
        if joined:
            for size, run in groupby(datagrams, len):
                segments = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))]
                self._circuit.remote.sendmsg(list(run), segments, 0, self._circuit.address)
        else:
            for datagram in datagrams:
                self._circuit.send(datagram)
        written = self._circuit.ingress()
        self.writes += len(written)
        if not self._virtio:
            return written
        return [frame for each in written for frame in self._kernel.frames(each)]

    def counted(self) -> dict[Slot, int]:
        return self._circuit.counted()


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelSegmenter]:
    with KernelSegmenter() as segmenter:
        yield segmenter


def runs(frames: list[bytes], length: int) -> Iterator[list[bytes]]:
    for start in range(0, len(frames), length):
        yield frames[start : start + length]


def kinds(frame: bytes) -> set[str]:
    packet = frame[14:]
    if frame[12:14] == b"\x08\x06":
        return {"ARP"}
    if frame[12:14] == b"\x86\xdd":
        upper = {0: "hop-by-hop", TCP: "TCP", UDP: "UDP", 44: "fragment", 58: "ICMP"}
        return {f"IPv6 {upper[packet[6]]}"}
    found = {f"IPv4 {({1: 'ICMP', 2: 'IGMP', TCP: 'TCP', UDP: 'UDP', 89: 'OSPF'})[packet[9]]}"}
    if int.from_bytes(packet[6:8]) & 0x1FFF:
        found.add("IPv4 fragment with an offset")
    if packet[0] > 0x45:
        # RFC 791: record route, timestamp; RFC 2113: router alert.
        options = {7: "record route", 68: "timestamp", 148: "router alert"}
        found |= {options[kind] for kind in packet[20 : packet[0] % 16 * 4] if kind in options}
    if packet[9] == UDP and packet[20:22] in (b"\0\x43", b"\0\x44"):
        found.add("DHCP")
    if packet[9] == UDP and b"\0\x35" in (packet[20:22], packet[22:24]):
        found.add("DNS")
    return found


@pytest.mark.parametrize("direction", FRAMES)
def test_recording_holds_what_it_is_to_show(direction: str) -> None:
    """Between the circuit's ends, as well as to groups."""
    frames = FRAMES[direction]

    assert set().union(*map(kinds, frames)) >= {
        *("ARP", "DHCP", "DNS", "record route", "timestamp", "router alert"),
        *("IPv4 ICMP", "IPv4 IGMP", "IPv4 OSPF", "IPv4 TCP", "IPv4 UDP"),
        *("IPv6 ICMP", "IPv6 TCP", "IPv6 UDP", "IPv6 fragment"),
        "IPv4 fragment with an offset",
    }
    assert {frame[:6] for frame in frames} > {LOCAL if direction == "from remote" else REMOTE}
    assert len(frames) > 100


@pytest.mark.parametrize("direction", FRAMES)
@pytest.mark.parametrize("length", [1, LARGEST_RUN])
def test_recorded_traffic_crosses_any_two_engines_as_it_was(
    stack: ExitStack, kernel: KernelSegmenter, direction: str, length: int
) -> None:
    here, there = (LOCAL, REMOTE) if direction == "from local" else (REMOTE, LOCAL)
    senders = {engine: End(stack, kernel, engine, here) for engine in ENGINES}
    receivers = {engine: End(stack, kernel, engine, there) for engine in ENGINES}

    for frames in runs(FRAMES[direction], length):
        sent = {engine: sender.egress(frames) for engine, sender in senders.items()}
        assert sent["native"] == sent["python"]
        assert sent["native with virtio"] == sent["python"]
        for joined in (False, True):
            for engine, receiver in receivers.items():
                got = receiver.ingress(sent["python"], joined=joined)
                assert got == frames, (engine, joined)

    # Or else nothing was joined that could have been taken apart wrongly.
    joining = length > 1
    assert (receivers["native with virtio"].writes < receivers["native"].writes) is joining
    for ends in (senders, receivers):
        counted = [end.counted() for end in ends.values()]
        assert counted[0] == counted[1] == counted[2]
    assert senders["python"].counted()[Slot.TX_FRAMES] == len(FRAMES[direction])
    assert receivers["python"].counted()[Slot.RX_FRAMES] == 2 * len(FRAMES[direction])
    assert senders["python"].counted()[Slot.TX_ELIDED] > len(FRAMES[direction]) // 2


DATA = bytes(range(200))
SOURCE6, DESTINATION6 = b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2"


def ipv6(following: int, *headers: str, transport: bytes = DATA) -> bytes:
    """An IPv6 packet with these extension headers, RFC 8200, section 4."""
    body = b"".join(map(bytes.fromhex, headers)) + transport
    head = struct.pack("!IHBB", 6 << 28, len(body), following, 64)
    return head + SOURCE6 + DESTINATION6 + body


def packet6(protocol: int) -> Packet:
    return Packet(6, protocol, SOURCE6, DESTINATION6, payload=DATA)


UDP6 = packet6(UDP).finished()[40:]
SHAPES = {
    # Offset 185 in eights; the last one, and one between.
    "IPv4 last fragment": Packet(fragment=185, payload=DATA).finished(),
    "IPv4 middle fragment": Packet(fragment=0x2000 | 185, payload=DATA).finished(),
    "IPv4 first fragment": Packet(protocol=UDP, fragment=0x2000, payload=DATA).finished(),
    "IPv4 record route": Packet(
        ip_options=bytes.fromhex("070704") + bytes(5), payload=DATA
    ).finished(),
    "IPv4 timestamp": Packet(
        ip_options=bytes.fromhex("440c0500") + bytes(8), payload=DATA
    ).finished(),
    "IPv4 router alert": Packet(ip_options=bytes.fromhex("94040000"), payload=DATA).finished(),
    "IPv4 source route": Packet(
        protocol=UDP, ip_options=bytes.fromhex("830704c000020900"), payload=DATA
    ).finished(),
    "IPv4 wrong TCP checksum": Packet(payload=DATA).finished(damage=1),
    "IPv4 wrong UDP checksum": Packet(protocol=UDP, payload=DATA).finished(damage=0x8000),
    "IPv4 UDP without checksum": Packet(protocol=UDP, payload=DATA).ip()
    + Packet(protocol=UDP, payload=DATA).transport(0),
    "IPv6 wrong TCP checksum": packet6(TCP).finished(damage=1),
    "IPv6 wrong UDP checksum": packet6(UDP).finished(damage=1),
    "IPv6 hop-by-hop": ipv6(0, "11000502 00000100", transport=UDP6),
    # Type 4, no segments left, no address; RFC 8754.
    "IPv6 routing": ipv6(43, "1100040000000000", transport=UDP6),
    "IPv6 first fragment": ipv6(44, "11000001deadbeef", transport=UDP6),
    "IPv6 last fragment": ipv6(44, "110005c8deadbeef"),
    "IPv6 hop-by-hop, routing, fragment": ipv6(
        0, "2b00050200000100", "2c00040000000000", "06000009deadbeef"
    ),
    "IPv6 no next header": ipv6(59, transport=b""),
}


@pytest.mark.parametrize("name", SHAPES)
def test_packet_that_offloads_leave_alone_crosses_any_two_engines_as_it_was(
    stack: ExitStack, kernel: KernelSegmenter, name: str
) -> None:
    """Alone, twice in a row, and between TCP segments that are joined where it is not between."""
    packet = SHAPES[name]
    assert packet[0] >> 4 == 6 or int.from_bytes(packet[2:4]) == len(packet)
    head = REMOTE + LOCAL + ethertype(packet[0] >> 4)
    segments = [
        REMOTE
        + LOCAL
        + b"\x08\x00"
        + Packet(sequence=number * 200, identification=number, payload=DATA).finished()
        for number in range(4)
    ]
    frames = [head + packet, head + packet, *segments[:2], head + packet, *segments[2:]]
    senders = {engine: End(stack, kernel, engine, LOCAL) for engine in ENGINES}
    receivers = {engine: End(stack, kernel, engine, REMOTE) for engine in ENGINES}

    for engine, sender in senders.items():
        sent = sender.egress(frames)
        # Each elided: the circuit's id, and the packet untouched.
        assert sent == [b"\x07" + frame[14:] for frame in frames], engine
    for engine, receiver in receivers.items():
        for joined in (False, True):
            assert receiver.ingress(sent, joined=joined) == frames, (engine, joined)
