"""Any Ethernet frame crosses a circuit as it is, and what it looks like on the way.

docs/protocol.md, section 3.
"""

from __future__ import annotations

import errno

import pytest

from lab.capture import Capture
from lab.circuit import MAC_A, MAC_B, NAME, Circuit, static_circuit
from lab.counters import AtLeast
from lab.headers import datagram
from lab.injector import Injector
from lab.load import ping
from lab.topology import TwoRouters

# Of frames that travel alone: two that wait at the TAP may share a buffer elsewhere.
pytestmark = [pytest.mark.needs_net_admin, pytest.mark.usefixtures("framed")]

A = bytes.fromhex(MAC_A.replace(":", ""))
B = bytes.fromhex(MAC_B.replace(":", ""))
LOCAL_EXPERIMENT = b"\x88\xb5"  # IEEE 802, 9.2.4: an EtherType for experiments
NO_ADDRESSES: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

# Version 4, 28 bytes, protocol 253 (RFC 3692), 192.0.2.1 to 192.0.2.2, 8 bytes of payload.
IPV4 = bytes.fromhex("4500001c00010000 40fdf5e2 c0000201 c0000202") + b"8 bytes."
# Version 6, payload of 8 bytes, next header 253, 2001:db8::1 to 2001:db8::2.
IPV6 = (
    bytes.fromhex("6000000000 08 fd40".replace(" ", ""))
    + bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000002")
    + b"8 bytes."
)


def carried(circuit: Circuit, frame: bytes) -> bytes:
    """Send a frame at A, see it arrive at B byte for byte; return the datagram that carried it.

    Its last bytes must be like no other frame's.
    """
    with (
        Injector(circuit.a.interface) as injector,
        Capture(circuit.b.router.underlay) as within,
        Capture(circuit.b.interface) as behind,
    ):
        injector.send(frame)
        behind.wait_for(
            lambda packet: not packet.outgoing and packet.data == frame,
            what=f"the frame {frame.hex()}",
        )
        payloads = [
            found.udp.payload
            for packet in within.packets()
            if not packet.outgoing and (found := datagram(packet.data))
        ]
    (payload,) = (each for each in payloads if each.endswith(frame[14:]) and len(frame) > 14)
    return payload


@pytest.mark.usefixtures("features")
def test_frame_to_any_first_byte_arrives_escaped_only_where_it_must(routers: TwoRouters) -> None:
    with static_circuit(routers, addresses=NO_ADDRESSES) as circuit:
        firsts = (*range(0x3F, 0x51), *range(0x5F, 0x71), 0x00, 0x02, 0x01, 0x33, 0xFE, 0xFF)
        for first in firsts:
            destination = bytes([first]) + b"\x00\x5e\x10\x00\x02"
            frame = destination + A + LOCAL_EXPERIMENT + b"frame %02x" % first

            escaped = 0x40 <= first <= 0x4F or 0x60 <= first <= 0x6F
            assert carried(circuit, frame) == (b"\x01\x40" if escaped else b"\x01") + frame
        circuit.b.counted(rx_frames=AtLeast(42), rx_dropped={})


@pytest.mark.parametrize("first", ["42", "6e"])
def test_taps_whose_addresses_need_the_escape_reach_each_other(
    routers: TwoRouters, first: str
) -> None:
    mac_a, mac_b = f"{first}:00:5e:10:00:01", f"{first}:00:5e:10:00:02"
    with (
        static_circuit(routers, macs=(mac_a, mac_b), encapsulation="ethernet"),
        Capture(routers.b.underlay) as within,
    ):
        for inner in ("172.16.16.2", "fd00:16::2"):
            assert ping(routers.a.namespace, inner, count=2).received == 2
        header = bytes.fromhex(f"0140{mac_b}{mac_a}".replace(":", ""))
        escaped = [packet.data for packet in within.packets() if packet.data[42:56] == header]
        assert len([frame for frame in escaped if frame[56:58] == b"\x08\x00"]) >= 2
        assert len([frame for frame in escaped if frame[56:58] == b"\x86\xdd"]) >= 2


def test_taps_whose_addresses_would_need_the_escape_elide_as_any(routers: TwoRouters) -> None:
    mac_a, mac_b = "42:00:5e:10:00:01", "66:00:5e:10:00:02"
    with static_circuit(routers, macs=(mac_a, mac_b)) as circuit:
        destination, source = bytes.fromhex("66005e100002"), bytes.fromhex("42005e100001")

        assert carried(circuit, destination + source + b"\x08\x00" + IPV4) == b"\x01" + IPV4
        assert carried(circuit, destination + source + b"\x86\xdd" + IPV6) == b"\x01" + IPV6
        for inner in ("172.16.16.2", "fd00:16::2"):
            pings = ping(routers.a.namespace, inner, count=2, size=1471, dont_fragment=True)
            assert pings.received == 2


NOT_IP = {
    "ipv4_of_one_byte": b"\x08\x00" + b"\x45",
    "ipv4_of_19_bytes": b"\x08\x00" + IPV4[:19],
    "ipv4_header_length_16": b"\x08\x00" + b"\x44" + IPV4[1:],
    "ipv4_header_length_0": b"\x08\x00" + b"\x40" + IPV4[1:],
    "ipv4_header_length_32_of_28": b"\x08\x00" + b"\x48" + IPV4[1:],
    "ipv4_total_length_29_of_28": b"\x08\x00" + IPV4[:3] + b"\x1d" + IPV4[4:],
    "ipv4_total_length_below_header": b"\x08\x00" + IPV4[:3] + b"\x13" + IPV4[4:],
    "ipv4_total_length_0": b"\x08\x00" + IPV4[:3] + b"\x00" + IPV4[4:],
    "ipv4_version_5": b"\x08\x00" + b"\x55" + IPV4[1:],
    "ipv6_said_to_be_ipv4": b"\x08\x00" + IPV6,
    "ipv4_said_to_be_ipv6": b"\x86\xdd" + IPV4,
    "ipv6_of_one_byte": b"\x86\xdd" + b"\x60",
    "ipv6_of_39_bytes": b"\x86\xdd" + IPV6[:39],
    "ipv6_payload_length_9_of_8": b"\x86\xdd" + IPV6[:5] + b"\x09" + IPV6[6:],
    "ipv6_version_7": b"\x86\xdd" + b"\x70" + IPV6[1:],
    "arp_that_begins_as_ipv4": b"\x08\x06" + IPV4,
}


@pytest.mark.usefixtures("features")
def test_frame_that_only_claims_to_be_ip_travels_complete(routers: TwoRouters) -> None:
    with static_circuit(routers, addresses=NO_ADDRESSES) as circuit:
        for name, rest in NOT_IP.items():
            frame = B + A + rest

            assert carried(circuit, frame) == b"\x01" + frame, name
        circuit.b.counted(rx_frames=AtLeast(16), rx_dropped={})


def test_frame_of_a_header_alone_arrives(routers: TwoRouters) -> None:
    with (
        static_circuit(routers, addresses=NO_ADDRESSES) as circuit,
        Capture(circuit.b.interface) as behind,
        Injector(circuit.a.interface) as injector,
    ):
        for ethertype in (b"\x08\x00", b"\x86\xdd", LOCAL_EXPERIMENT):
            frame = B + A + ethertype
            injector.send(frame)
            behind.wait_for(lambda packet, frame=frame: packet.data == frame)  # type: ignore[misc]


@pytest.mark.usefixtures("features")
def test_elided_packet_keeps_its_trailing_padding(routers: TwoRouters) -> None:
    with static_circuit(routers, addresses=NO_ADDRESSES) as circuit:
        for padding in (b"\x00", bytes(18), bytes(range(200, 256)), b"\xff" * 1300):
            for ethertype, packet in ((b"\x08\x00", IPV4), (b"\x86\xdd", IPV6)):
                frame = B + A + ethertype + packet + padding

                assert carried(circuit, frame) == b"\x01" + packet + padding
        # At the least: the kernel may have sent something of its own.
        circuit.a.counted(tx_elided=AtLeast(8))


def test_ip_between_other_addresses_than_the_taps_travels_complete(routers: TwoRouters) -> None:
    other = b"\x02\x00\x5e\x10\x00\x63"
    with static_circuit(routers, addresses=NO_ADDRESSES) as circuit:
        for destination, source in ((other, A), (B, other), (A, B), (b"\xff" * 6, A)):
            for rest in (b"\x08\x00" + IPV4, b"\x86\xdd" + IPV6):
                frame = destination + source + rest

                assert carried(circuit, frame) == b"\x01" + frame


@pytest.mark.usefixtures("features")
@pytest.mark.parametrize("mtu", [600, 1471, 1472, 9000])
def test_largest_tagged_frame_arrives_and_a_larger_one_cannot_be_sent(
    routers: TwoRouters, mtu: int
) -> None:
    with (
        static_circuit(routers, addresses=NO_ADDRESSES, mtu=mtu) as circuit,
        Capture(circuit.b.interface) as behind,
        Injector(circuit.a.interface) as injector,
    ):
        # Priority 5, VLAN 291.
        tagged = B + A + b"\x81\x00\xa1\x23" + LOCAL_EXPERIMENT
        largest = tagged + bytes(number % 251 for number in range(mtu))
        assert len(largest) == mtu + 14 + 4
        before = circuit.a.counters["tx_bytes"]
        injector.send(largest)
        behind.wait_for(lambda packet: packet.data == largest, what="the largest frame")

        with pytest.raises(OSError, match="Message too long") as refused:
            injector.send(largest + b"\x00")
        assert refused.value.errno == errno.EMSGSIZE
        # 1472 bytes of UDP payload fit 1500 with IPv4: the circuit id, and mtu + 18.
        circuit.a.counted(tx_bytes=AtLeast(before + mtu + 18), tx_fragmented=0 if mtu == 600 else 1)
        assert circuit.a.velad.circuit(NAME)["mtu"] == mtu
