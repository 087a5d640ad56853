"""What fits a circuit: sizes around its MTU, and the datagrams that full-size packets become.

docs/protocol.md, 3.1 and 3.2.
"""

from __future__ import annotations

import json
from struct import unpack_from

import pytest

from lab.autoconfigured import asking
from lab.capture import Capture, Packet
from lab.circuit import ADDRESSES_A, MAC_A, MAC_B, NAME, End, circuit_table, static_circuit
from lab.counters import AtLeast
from lab.daemon import Velad
from lab.link import Regime
from lab.load import ping
from lab.topology import TwoRouters, two_routers
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

VERSIONS = {"172.16.16.2": 4, "fd00:16::2": 6}
"""B's addresses in the circuit, and their IP versions."""


def is_echo_request(frame: bytes, version: int) -> bool:
    """Of a frame from an end of a circuit: no IPv4 options, no extension headers."""
    if version == 4:
        return frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34:36] == b"\x08\x00"
    return frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54:56] == b"\x80\x00"


def echo_request(capture: Capture, version: int) -> bytes:
    """Return the first frame at an end of a circuit that is one."""
    return capture.wait_for(
        lambda packet: is_echo_request(packet.data, version), what="an echo request"
    ).data


def is_fragment(packet: Packet) -> bool:
    frame = packet.data
    if frame[12:14] == b"\x08\x00":
        return bool(unpack_from("!H", frame, 20)[0] & 0x3FFF)
    return frame[12:14] == b"\x86\xdd" and frame[20] == 44  # RFC 8200, section 4.5


@pytest.mark.parametrize(
    ("underlay_mtu", "outer", "mtu", "engine"),
    [
        (1500, "ipv4", 1471, "native"),
        (1500, "ipv6", 1451, "native"),
        (9000, "ipv4", 8971, "native"),
        (9000, "ipv6", 8951, "native"),
        (1337, "ipv4", 1308, "native"),
        (1351, "ipv6", 1302, "native"),
        (1500, "ipv4", 1471, "python"),
        (1500, "ipv6", 1451, "python"),
        (9000, "ipv4", 8971, "python"),
    ],
)
def test_packets_up_to_the_mtu_cross_whole_and_larger_ones_are_refused_at_home(
    underlay_mtu: int, outer: str, mtu: int, engine: str
) -> None:
    with (
        two_routers(underlay_mtu) as routers,
        static_circuit(routers, outer=outer, engine=engine) as circuit,
    ):
        for end in (circuit.a, circuit.b):
            assert end.interface.mtu == end.velad.circuit(NAME)["mtu"] == mtu
        for address in VERSIONS:
            for size in (mtu - 1, mtu):
                pings = ping(routers.a.namespace, address, count=2, size=size, dont_fragment=True)

                assert pings.received == 2, pings.output
            refused = ping(routers.a.namespace, address, count=1, size=mtu + 1, dont_fragment=True)

            assert f"message too long, mtu={mtu}" in refused.output.replace("mtu: ", "mtu=")
            assert refused.received == 0
        for end in (circuit.a, circuit.b):
            # Four echoes of two families each way.
            end.counted(tx_elided=AtLeast(8), rx_elided=AtLeast(8), tx_fragmented=0, tx_errors=0)


@pytest.mark.parametrize(
    ("underlay_mtu", "outer", "mtu"),
    [(1500, "ipv4", 1471), (1500, "ipv6", 1451), (9000, "ipv4", 8971), (9000, "ipv6", 8951)],
)
@pytest.mark.parametrize("engine", ["python", "native"])
def test_full_size_packet_elided_is_one_datagram_that_fills_the_underlay(
    underlay_mtu: int, outer: str, mtu: int, engine: str
) -> None:
    with (
        two_routers(underlay_mtu, Regime.FRAMES) as routers,
        static_circuit(routers, outer=outer, engine=engine) as circuit,
        Capture(circuit.a.interface) as before,
        Capture(routers.b.underlay) as within,
        Capture(circuit.b.interface) as behind,
    ):
        for inner, version in VERSIONS.items():
            ping(routers.a.namespace, inner, count=1, size=mtu, dont_fragment=True)
            sent, arrived = echo_request(before, version), echo_request(behind, version)
            assert sent == arrived
            assert len(sent) == 14 + mtu
            (carrier,) = (
                packet.data
                for packet in within.packets()
                if not packet.outgoing and packet.data.endswith(sent[14:])
            )

            assert len(carrier) == 14 + underlay_mtu
            if outer == "ipv4":
                assert carrier[12:15] == b"\x08\x00\x45"
                assert unpack_from("!H", carrier, 16)[0] == underlay_mtu  # total length
                assert carrier[23] == 17
                udp = 34
            else:
                assert carrier[12:14] == b"\x86\xdd"
                assert carrier[14] >> 4 == 6
                assert unpack_from("!H", carrier, 18)[0] == underlay_mtu - 40  # payload length
                assert carrier[20] == 17
                udp = 54
            source, destination, length = unpack_from("!HHH", carrier, udp)
            assert 49152 <= source <= 65535
            assert destination == 48621
            assert length == 8 + 1 + mtu
            assert carrier[udp + 8 :] == b"\x01" + sent[14:]
        assert not any(is_fragment(packet) for packet in within.packets())


@pytest.mark.usefixtures("framed")
@pytest.mark.parametrize(("encapsulation", "names_peer_mac"), [("ethernet", True), ("auto", False)])
def test_circuit_that_does_not_elide_carries_complete_frames(
    routers: TwoRouters, encapsulation: str, names_peer_mac: bool
) -> None:
    with (
        static_circuit(
            routers, names_peer_mac=names_peer_mac, encapsulation=encapsulation
        ) as circuit,
        Capture(circuit.a.interface) as before,
        Capture(routers.b.underlay) as within,
        Capture(circuit.b.interface) as behind,
    ):
        for inner, version in VERSIONS.items():
            # 14 bytes less than the MTU: what one outer packet holds with its header.
            ping(routers.a.namespace, inner, count=1, size=1457, dont_fragment=True)
            sent, arrived = echo_request(before, version), echo_request(behind, version)
            assert sent == arrived
            assert sent[:12].hex(":") == f"{MAC_B}:{MAC_A}"
            assert len(sent) == 1471
            (carrier,) = (
                packet.data
                for packet in within.packets()
                if not packet.outgoing and packet.data.endswith(sent[14:])
            )

            # Behind 14 bytes of Ethernet, 20 of IPv4 and 8 of UDP.
            assert carrier[42:] == b"\x01" + sent
        for end in (circuit.a, circuit.b):
            assert end.velad.circuit(NAME)["elision"] is False
            # Two echoes each way; all else is less than one of them.
            end.counted(
                tx_bytes=AtLeast(2 * 1471),
                rx_bytes=AtLeast(2 * 1471),
                tx_elided=0,
                rx_elided=0,
                tx_fragmented=0,
            )


@pytest.mark.parametrize(
    ("outer", "mtu", "fragments"),
    [
        # UDP header, circuit id and packet, in pieces of 1480 bytes (1500 less 20).
        ("ipv4", 1472, [1480, 1]),
        ("ipv4", 2001, [1480, 530]),
        ("ipv4", 9000, [1480] * 6 + [129]),
        # In pieces of 1448: 1500 less 40, less the fragment header, in multiples of 8.
        ("ipv6", 1452, [1448, 13]),
        ("ipv6", 9000, [1448] * 6 + [321]),
    ],
)
def test_mtu_above_the_paths_works_by_outer_fragments_that_are_counted(
    routers: TwoRouters, outer: str, mtu: int, fragments: list[int]
) -> None:
    with (
        static_circuit(routers, outer=outer, mtu=mtu) as circuit,
        Capture(routers.b.underlay) as within,
    ):
        assert circuit.a.interface.mtu == circuit.b.interface.mtu == mtu
        for inner in VERSIONS:
            pings = ping(routers.a.namespace, inner, count=10, size=mtu, dont_fragment=True)

            assert pings.lost == 0, pings.output
        pieces = [
            packet.data
            for packet in within.packets()
            if is_fragment(packet) and not packet.outgoing
        ]
        # Behind the IPv4 header, or behind the IPv6 and the fragment header.
        header = 34 if outer == "ipv4" else 62
        assert [len(piece) - header for piece in pieces] == 20 * fragments
        for end in (circuit.a, circuit.b):
            end.counted(
                tx_fragmented=20,
                tx_errors=0,
                rx_bytes=AtLeast(20 * (14 + mtu)),
                rx_dropped={},
            )


@pytest.mark.parametrize("mtu", [1281, 1399, 1470])
def test_configured_mtu_below_the_paths_is_the_circuits(routers: TwoRouters, mtu: int) -> None:
    with static_circuit(routers, mtu=mtu) as circuit:
        for inner in VERSIONS:
            fits = ping(routers.a.namespace, inner, count=2, size=mtu, dont_fragment=True)
            exceeds = ping(routers.a.namespace, inner, count=1, size=mtu + 1, dont_fragment=True)

            assert (fits.received, exceeds.received) == (2, 0)
        # Without the bit IP itself cuts the packet, inside the circuit.
        assert ping(routers.a.namespace, "172.16.16.2", count=2, size=4000).received == 2
        # Two of the MTU's size for each family, and two of 4000 bytes in pieces.
        circuit.a.counted(tx_bytes=AtLeast(4 * (14 + mtu) + 2 * 4000), tx_fragmented=0)


@pytest.mark.parametrize(
    "switch", ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"], ids=["ipv4", "ipv6"]
)
def test_super_frames_that_the_machine_forwards_are_not_cut_before_the_tap(
    routers: TwoRouters, switch: str
) -> None:
    def limit_at(end: End) -> int:
        shown = end.router.namespace.run("ip", "-d", "-j", "link", "show", "dev", NAME).stdout
        limit: int = json.loads(shown)[0]["gso_max_size"]
        return limit

    own, forwarded = 44 * 1419 + 321, 65536
    routers.a.namespace.sysctl(switch, 1)
    with static_circuit(routers) as circuit:
        assert (limit_at(circuit.a), limit_at(circuit.b)) == (forwarded, own)

        # Hosts become routers, and the other way round, while velad runs.
        routers.a.namespace.sysctl(switch, 0)
        routers.b.namespace.sysctl(switch, 1)

        eventually(lambda: limit_at(circuit.a) == own, 10, "A's limit")
        eventually(lambda: limit_at(circuit.b) == forwarded, 10, "B's limit")


def test_path_too_narrow_for_ipv6_inside_is_said_and_carries_nothing() -> None:
    config = circuit_table("10.201.0.2", mac=MAC_A, peer_mac=MAC_B, addresses=list(ADDRESSES_A))
    # 1308 - 29 = 1279, one byte less than RFC 8200 asks for.
    with two_routers(1308) as routers, Velad(routers.a.namespace, config) as velad:
        circuit = velad.wait_for_state(NAME, "failed")

        assert "1279" in circuit["reason"]
        assert "1280" in circuit["reason"]
        assert circuit["worker"] is None


def test_circuit_too_narrow_for_ipv6_inside_can_be_taken_down_and_up_again() -> None:
    config = asking("10.201.0.2", addresses=["fd00:16::1/64"])
    with two_routers(1308) as routers, Velad(routers.a.namespace, config) as velad:
        velad.wait_for_state(NAME, "failed")
        velad.control("down", NAME)
        assert velad.circuit(NAME)["state"] == "disabled"

        velad.control("up", NAME)

        assert "1279" in velad.wait_for_state(NAME, "failed")["reason"]
        routers.a.underlay.set_mtu(1500)
        velad.wait_for_state(NAME, "connecting", "down")
