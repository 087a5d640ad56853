"""Two LANs of MTU 1500, bridged across a path of 1500: hosts that know nothing of the circuit."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from packets import UDP, ethertype
from packets import Packet as IpPacket

from lab.autoconfigured import Ends, asking, ends, policy, wait_until_up
from lab.capture import Capture, Packet
from lab.circuit import MAC_A, MAC_B, NAME, circuit_table
from lab.counters import AtLeast
from lab.injector import Injector
from lab.link import bridge
from lab.load import iperf3, kernel_counts, ping
from lab.topology import Host, TwoRouters, bridged_host
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

BRIDGE = "br0"
LAN_A = ("192.168.9.1/24", "fd00:9::1/64")
LAN_B = ("192.168.9.2/24", "fd00:9::2/64")
FAR = ("192.168.9.2", "fd00:9::2")
NEAR = "192.168.9.1"
FULL = 1500
ENGINES = ("python", "native")


@dataclass(frozen=True, slots=True)
class Lans:
    """A host on each side of a bridged circuit."""

    routers: TwoRouters
    ends: Ends
    a: Host
    b: Host

    @property
    def fragments(self) -> int:
        """How many IP fragments the routers have made."""
        made = ("IpFragCreates", "Ip6FragCreates")
        return sum(
            kernel_counts(router.namespace, name)
            for router in (self.routers.a, self.routers.b)
            for name in made
        )

    def mtus(self) -> set[int]:
        return {velad.circuit(NAME)["mtu"] for velad in self.ends}


@contextmanager
def lans(
    routers: TwoRouters,
    config_a: str = "",
    config_b: str = "",
    *,
    state: str = "up",
    mtu: int = FULL,
) -> Iterator[Lans]:
    """All defaults, but for what the configurations say. mtu: of hosts and bridges."""
    with ExitStack() as stack:
        hosts = []
        for router, addresses in ((routers.a, LAN_A), (routers.b, LAN_B)):
            bridge(router.namespace, BRIDGE).set_mtu(mtu)
            host = stack.enter_context(bridged_host(router, BRIDGE, *addresses))
            host.router_port.set_mtu(mtu)
            host.interface.set_mtu(mtu)
            hosts.append(host)
        both = stack.enter_context(ends(routers, config_a or bridged(), config_b or allowing()))
        if state == "up":
            wait_until_up(both)
        else:
            for velad in both:
                velad.wait_for_state(NAME, state)
                velad.worker_pid(NAME)
        made = Lans(routers, both, *hosts)
        for address in FAR:
            eventually(partial(is_answered, hosts[0], address), 10, "the first echo")
        yield made


def is_answered(host: Host, address: str) -> bool:
    return ping(host.namespace, address, count=1).received == 1


def is_frame(frame: bytes, packet: Packet) -> bool:
    return packet.data == frame


def bridged(remote: str = "10.201.0.2", **settings: Any) -> str:
    return asking(
        remote, addresses=[], bridge=BRIDGE, peer={"addresses": [], "bridge": BRIDGE}, **settings
    )


def allowing(**settings: Any) -> str:
    return policy(bridges=[BRIDGE], **settings)


def daemon(engine: str) -> str:
    return f'[daemon]\nengine = "{engine}"\n'


def is_fragment(packet: Packet) -> bool:
    """Of the underlay: IPv4 with more fragments or an offset, IPv6 with a fragment header."""
    frame = packet.data
    if frame[12:14] == b"\x08\x00":
        return bool(struct.unpack_from("!H", frame, 20)[0] & 0x3FFF)
    return frame[12:14] == b"\x86\xdd" and frame[20] == 44


def assert_all_crosses(lan: Lans, *addresses: str) -> None:
    """TCP, and packets of 1500 bytes that must not be fragmented.

    What is too large is lost for good; what a busy machine loses is not all.
    """
    for address in addresses or FAR:
        pings = ping(lan.a.namespace, address, size=FULL, dont_fragment=True)
        assert pings.received > 0, pings.output
        tcp = iperf3(lan.b.namespace, lan.a.namespace, address, seconds=1, bitrate="20M")
        assert tcp.received_bits_per_s > 1e6
        udp = iperf3(
            *(lan.b.namespace, lan.a.namespace, address),
            seconds=1,
            udp=True,
            bitrate="5M",
            length=FULL - (48 if ":" in address else 28),
        )
        assert udp.packets > 100
        assert udp.lost_packets < udp.packets / 2


@pytest.mark.parametrize("outer", ["ipv4", "ipv6"])
@pytest.mark.parametrize("engine", ENGINES)
def test_all_that_hosts_of_1500_send_crosses_without_an_ip_fragment(
    framed: TwoRouters, outer: str, engine: str
) -> None:
    remote = framed.b.ipv4 if outer == "ipv4" else framed.b.ipv6
    config = daemon(engine)
    with lans(framed, config + bridged(remote), config + allowing()) as lan:
        before = lan.fragments
        with Capture(framed.a.underlay) as within:
            assert_all_crosses(lan)
            packets = within.packets()

        assert lan.mtus() == {FULL}
        assert lan.fragments == before
        assert not [packet for packet in packets if is_fragment(packet)]
        assert max(len(packet.data) for packet in packets) <= 14 + 1500
        for velad in lan.ends:
            velad.counted(
                NAME, tx_fragmented=0, tx_errors=0, tx_pieced=AtLeast(3), rx_joined=AtLeast(3)
            )
            assert velad.circuit(NAME)["counters"]["mss_clamped"] >= 2
            assert velad.circuit(NAME)["counters"]["rx_dropped"]["incomplete"] == 0
        assert "bridge_mtu_exceeds_circuit" not in lan.ends.a.log() + lan.ends.b.log()


def test_all_crosses_an_encrypted_circuit_without_an_ip_fragment(
    framed: TwoRouters, tmp_path: Any
) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    required = {"encryption": "required", "key_file": str(key)}
    with lans(framed, bridged(**required), allowing(**required)) as lan:
        with Capture(framed.a.underlay) as within:
            assert_all_crosses(lan, FAR[0])
            packets = within.packets()

        assert lan.mtus() == {FULL}
        assert not [packet for packet in packets if is_fragment(packet)]
        assert {packet.data[43] for packet in packets if packet.data[42:43] == b"\1"} <= {
            0x42,
            0x43,
        }
        for velad in lan.ends:
            velad.counted(NAME, tx_fragmented=0, tx_pieced=AtLeast(3), rx_joined=AtLeast(3))
            assert velad.circuit(NAME)["counters"]["mss_clamped"] >= 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    # A packet socket takes one tag beside the MTU, and not 88a8.
    ("tags", "largest"),
    [("81000005", 1500), ("88a8000581000006", 1492)],
)
def test_tagged_frames_of_full_size_cross_as_they_are(
    framed: TwoRouters, engine: str, tags: str, largest: int
) -> None:
    config = daemon(engine)
    tagged = bytes.fromhex(tags)
    with (
        lans(framed, config + bridged(), config + allowing()) as lan,
        Capture(framed.a.underlay) as within,
        Capture(lan.b.interface) as behind,
        Injector(lan.a.interface) as sender,
    ):
        source = lan.a.interface.mac
        frames = [
            lan.b.interface.mac + source + tagged + b"\x88\xb5" + bytes([mark]) * size
            for mark, size in enumerate((46, 1400, 1441, 1457, largest))
        ]
        for frame in frames:
            sender.send(frame)
        for frame in frames:
            behind.wait_for(partial(is_frame, frame), what="the frame")

        assert not [packet for packet in within.packets() if is_fragment(packet)]


def test_mss_of_tagged_tcp_is_lowered(framed: TwoRouters) -> None:
    # 192.168.9.1 to 192.168.9.2, SYN, MSS 1460; checksums are those of RFC 1071.
    packet = bytearray.fromhex(
        "4500002c000040004006a77dc0a80901c0a80902 9c4014510000000100000000600201f400000000020405b4"
    )
    words = struct.unpack("!14H", bytes(packet[12:20]) + bytes(packet[20:40]))
    total = sum(words) + sum(struct.unpack("!2H", packet[40:44])) + 6 + 24
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", packet, 36, 0xFFFF ^ total)
    with (
        lans(framed) as lan,
        Capture(lan.b.interface) as behind,
        Injector(lan.a.interface) as sender,
    ):
        head = lan.b.interface.mac + lan.a.interface.mac + bytes.fromhex("810000050800")
        sender.send(head + bytes(packet))
        seen = behind.wait_for(lambda each: each.data.startswith(head), what="the SYN").data

    assert seen[-4:] == bytes.fromhex("02040584")  # 1412: 1416 less the tag


@pytest.mark.parametrize(
    ("settings_a", "config_b"),
    [
        pytest.param({"fragmentation": "ip"}, "", id="an end that makes IP fragments"),
        pytest.param({"peer": {"addresses": []}}, "", id="an end that is no port of a bridge"),
    ],
)
def test_neighbour_that_does_not_take_pieces_gets_what_it_got_before(
    framed: TwoRouters, settings_a: dict[str, Any], config_b: str
) -> None:
    settings = {"peer": {"addresses": [], "bridge": BRIDGE}, **settings_a}
    config = asking("10.201.0.2", addresses=[], bridge=BRIDGE, **settings)
    for router in (framed.a, framed.b):
        bridge(router.namespace, BRIDGE)
    with ends(framed, config, allowing()) as both:
        wait_until_up(both)

        assert {velad.circuit(NAME)["mtu"] for velad in both} == {1471}
        eventually(lambda: "bridge_mtu_exceeds_circuit" in both.a.log(), 5, "a warning")


def test_static_ends_that_are_told_of_pieces_use_them(framed: TwoRouters) -> None:
    def config(remote: str, mac: str, peer_mac: str) -> str:
        return circuit_table(
            remote, mac=mac, peer_mac=peer_mac, bridge=BRIDGE, fragmentation="tunnel"
        )

    a = config(framed.b.ipv4, MAC_A, MAC_B)
    b = config(framed.a.ipv4, MAC_B, MAC_A)
    with lans(framed, a, b, state="unmonitored") as lan:
        assert_all_crosses(lan, FAR[0])
        assert lan.mtus() == {FULL}
        for velad in lan.ends:
            velad.counted(NAME, tx_fragmented=0, tx_pieced=AtLeast(3), rx_joined=AtLeast(3))


def test_static_ends_get_ip_fragments_by_default(framed: TwoRouters) -> None:
    def config(remote: str, mac: str, peer_mac: str) -> str:
        return circuit_table(remote, mac=mac, peer_mac=peer_mac, bridge=BRIDGE, mtu=FULL)

    a = config(framed.b.ipv4, MAC_A, MAC_B)
    b = config(framed.a.ipv4, MAC_B, MAC_A)
    with lans(framed, a, b, state="unmonitored") as lan:
        assert_all_crosses(lan, FAR[0])
        for velad in lan.ends:
            velad.counted(NAME, tx_fragmented=AtLeast(3), tx_pieced=0)


def test_bridge_that_comes_later_widens_the_circuit_and_its_end_narrows_it(
    framed: TwoRouters,
) -> None:
    bridge(framed.b.namespace, BRIDGE)
    with ends(framed, bridged(), allowing()) as both:
        wait_until_up(both)
        assert {velad.circuit(NAME)["mtu"] for velad in both} == {1471}

        bridge(framed.a.namespace, BRIDGE)
        for velad in both:
            velad.wait_for(lambda status: status["circuits"][0]["mtu"] == FULL, 5, "1500")
        framed.a.namespace.run("ip", "link", "delete", BRIDGE)
        for velad in both:
            velad.wait_for(lambda status: status["circuits"][0]["mtu"] == 1471, 5, "1471")
            assert velad.circuit(NAME)["state"] == "up"


def test_bridges_of_jumbo_frames_at_both_ends_keep_them(framed: TwoRouters) -> None:
    with lans(framed, mtu=9000) as lan:
        assert lan.mtus() == {9000}
        for address in FAR:
            # Of seven pieces a busy machine may lose one.
            assert ping(lan.a.namespace, address, size=9000, dont_fragment=True).received > 0
        lan.ends.a.counted(NAME, tx_fragmented=0, tx_pieced=AtLeast(2))


@pytest.mark.parametrize(
    ("value", "mss"), [(False, 1460), (True, 1416), (1000, 1000), ("auto", 1416)]
)
def test_mss_is_clamped_as_configured(framed: TwoRouters, value: Any, mss: int) -> None:
    """At one end, as the other one clamps by default: so both are configured."""
    a = bridged(clamp_mss=value)
    b = bridged(framed.a.ipv4, clamp_mss=value)
    with lans(framed, a, b) as lan, Capture(lan.b.interface) as behind:
        iperf3(lan.b.namespace, lan.a.namespace, FAR[0], seconds=1, bitrate="1M")
        syn = behind.wait_for(
            lambda packet: packet.data[23:24] == b"\6" and bool(packet.data[47] & 2), what="a SYN"
        )

    assert syn.data[54:58] == b"\2\4" + mss.to_bytes(2, "big")


# IP_MTU_DISCOVER and IP_MTU, and the same of IPv6: include/uapi/linux/in.h, in6.h.
PATH_MTU = {socket.AF_INET: (socket.IPPROTO_IP, 10, 14), socket.AF_INET6: (41, 23, 24)}
DO_NOT_FRAGMENT = 2


@dataclass(frozen=True, slots=True)
class Sender:
    """A program on a host that sends UDP with don't-fragment to one in the other LAN."""

    sending: socket.socket
    receiving: socket.socket

    @property
    def path_mtu(self) -> int:
        """As the kernel of its host knows it."""
        level, _, option = PATH_MTU[self.sending.family]
        return self.sending.getsockopt(level, option)

    def send(self, size: int) -> None:
        """Send a packet of size bytes, with its headers; it arrives. Raises OSError."""
        content = bytes(size - (48 if self.sending.family == socket.AF_INET6 else 28))
        self.sending.send(content)
        assert self.receiving.recv(size) == content


@contextmanager
def sender(lan: Lans, address: str) -> Iterator[Sender]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        lan.b.namespace.socket(family, socket.SOCK_DGRAM) as receiving,
        lan.a.namespace.socket(family, socket.SOCK_DGRAM) as sending,
    ):
        receiving.settimeout(10)
        receiving.bind((address, 0))
        level, discover, _ = PATH_MTU[family]
        sending.setsockopt(level, discover, DO_NOT_FRAGMENT)
        sending.connect(receiving.getsockname())
        yield Sender(sending, receiving)


@pytest.mark.parametrize("engine", ENGINES)
def test_hosts_that_are_to_hear_of_what_is_too_big_send_what_fits(
    framed: TwoRouters, engine: str
) -> None:
    config = daemon(engine)
    with lans(framed, config + bridged(packet_too_big=True), config + allowing()) as lan:
        # As strict as hosts are: a packet comes from where its source would be sent to.
        lan.a.namespace.sysctl("net/ipv4/conf/all/rp_filter", 1)
        fits = fits_between(lan)
        for address in FAR:
            with sender(lan, address) as program:
                assert program.path_mtu == FULL
                program.send(FULL)

                eventually(partial(has_path_mtu, program, fits), 5, "the MTU to fall")
                heard = program.sending.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                assert heard == errno.EMSGSIZE
                for exceeds in (FULL, fits + 1):
                    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
                        program.send(exceeds)
                before = lan.ends.a.circuit(NAME)["counters"]
                program.send(fits)
                after = lan.ends.a.circuit(NAME)["counters"]
            assert after["tx_pieced"] == before["tx_pieced"]
            assert after["tx_too_big_sent"] == before["tx_too_big_sent"]
        assert after["tx_too_big_sent"] == len(FAR)
        assert lan.ends.b.circuit(NAME)["counters"]["tx_too_big_sent"] == 0


def test_end_that_another_machine_set_up_tells_its_hosts_where_its_operator_says_so(
    framed: TwoRouters,
) -> None:
    with lans(framed, bridged(), allowing(packet_too_big=True)) as lan:
        told, silent = lan.ends.b, lan.ends.a
        with (
            lan.a.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving,
            lan.b.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
        ):
            receiving.settimeout(10)
            receiving.bind((NEAR, 0))
            level, discover, _ = PATH_MTU[socket.AF_INET]
            sending.setsockopt(level, discover, DO_NOT_FRAGMENT)
            sending.connect(receiving.getsockname())
            program = Sender(sending, receiving)
            program.send(FULL)

            eventually(lambda: program.path_mtu < FULL, 5, "the MTU to fall")
        assert told.circuit(NAME)["counters"]["tx_too_big_sent"] == 1
        assert silent.circuit(NAME)["counters"]["tx_too_big_sent"] == 0


def fits_between(lan: Lans, tags: int = 0) -> int:
    """Return the largest packet from A to B in one datagram of 1472 bytes: less circuit id, link
    header, and the escape that some addresses need."""
    escape = lan.b.interface.mac[0] >> 4 in (4, 6)
    return 1472 - 1 - 14 - tags - escape


def has_path_mtu(program: Sender, mtu: int) -> bool:
    return program.path_mtu == mtu


TAGGED = [
    IpPacket(4, UDP, bytes([192, 168, 9, 1]), bytes([192, 168, 9, 2]), payload=bytes(1472)),
    IpPacket(
        *(6, UDP, bytes.fromhex("fd000009" + 23 * "0" + "1")),
        bytes.fromhex("fd000009" + 23 * "0" + "2"),
        payload=bytes(1452),
    ),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("packet", TAGGED, ids=["ipv4", "ipv6"])
def test_hosts_hear_of_what_is_too_big_in_their_vlan(
    framed: TwoRouters, engine: str, packet: IpPacket
) -> None:
    """Not every kernel has VLAN interfaces, so the frame is put onto the host's own."""
    config = daemon(engine)
    link = bytes.fromhex("8100a005") + ethertype(packet.version)
    with (
        lans(framed, config + bridged(packet_too_big=True), config + allowing()) as lan,
        Capture(lan.a.interface) as near,
        Capture(lan.b.interface) as far,
        Injector(lan.a.interface) as out,
    ):
        a, b, fits = lan.a.interface.mac, lan.b.interface.mac, fits_between(lan, tags=4)
        frame = b + a + link + packet.finished()

        out.send(frame)

        far.wait_for(partial(is_frame, frame), what="the frame, whole")
        answer = near.wait_for(partial(begins, a + b + link), what="what fits").data[18:]
    ip = packet.transport_offset
    assert answer[ip - 2 * len(packet.source) : ip] == packet.destination + packet.source
    assert answer[ip : ip + 2] == (b"\3\4" if packet.version == 4 else b"\2\0")
    assert answer[ip + 4 : ip + 8] == fits.to_bytes(4, "big")
    assert answer[ip + 8 :] == packet.finished()[: len(answer) - ip - 8]


def begins(head: bytes, packet: Packet) -> bool:
    return packet.data.startswith(head)


def test_hosts_hear_nothing_of_what_is_too_big_unless_they_are_to(framed: TwoRouters) -> None:
    with lans(framed) as lan:
        for address in FAR:
            with sender(lan, address) as program:
                for _ in range(3):
                    program.send(FULL)
                assert program.path_mtu == FULL
        counters = lan.ends.a.counted(NAME, tx_pieced=AtLeast(6))
        assert counters["tx_too_big_sent"] == 0


def test_hostile_pieces_harm_neither_the_circuit_nor_the_worker(routers: TwoRouters) -> None:
    """From a user of the remote's machine, who can send from its address and its port."""
    with lans(routers) as lan:
        worker = lan.ends.b.worker_pid(NAME)
        with routers.a.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            source = frame_port(lan)
            for number in range(3000):
                flags = (0, 0x80, 1, 0x3F, 0x81)[number % 5]
                content = struct.pack("!BBBHI", 1, 0x44, flags, 1514, number) + bytes(757)
                udp = struct.pack("!HHHH", source, 48621, 8 + len(content), 0) + content
                raw.sendto(udp, (routers.b.ipv4, 0))
        eventually(lambda: dropped(lan)["incomplete"] > 100, 10, "frames to be given up")
        assert dropped(lan)["malformed"] > 100

        assert lan.ends.b.worker_pid(NAME) == worker
        assert_all_crosses(lan, FAR[0])


def dropped(lan: Lans) -> dict[str, int]:
    found: dict[str, int] = lan.ends.b.circuit(NAME)["counters"]["rx_dropped"]
    return found


def frame_port(lan: Lans) -> int:
    """Return the port that A's frames come from, as seen on the underlay."""
    with Capture(lan.routers.b.underlay) as within:
        ping(lan.a.namespace, FAR[0], count=1)
        packet = within.wait_for(
            lambda each: not each.outgoing and each.data[23] == 17 and each.data[42] == 1,
            what="a frame",
        )
    port: int = struct.unpack_from("!H", packet.data, 34)[0]
    return port


def test_routed_circuit_stays_as_it_is(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        iperf3(routers.b.namespace, routers.a.namespace, "172.16.16.2", seconds=1, bitrate="10M")
        for velad in both:
            assert velad.circuit(NAME)["mtu"] == 1471
            counters = velad.counted(NAME, tx_frames=AtLeast(10), tx_fragmented=0, tx_pieced=0)
            assert counters["mss_clamped"] == 0
