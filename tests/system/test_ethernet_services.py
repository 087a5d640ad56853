"""What Ethernet is for, across a circuit: neighbours, groups, VLANs, DHCP, bridges, routing."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from lab.bird import Bird
from lab.capture import Capture, Packet
from lab.circuit import MAC_A, MAC_B, NAME, End, static_circuit
from lab.counters import AtLeast
from lab.dnsmasq import Dnsmasq
from lab.headers import datagram
from lab.injector import Injector
from lab.link import Interface, bridge
from lab.load import iperf3, ping
from lab.topology import Router, TwoRouters, bridged_host
from lab.waiting import PATIENCE, eventually

pytestmark = pytest.mark.needs_net_admin

ENGINES = ("python", "native")

A = bytes.fromhex(MAC_A.replace(":", ""))
B = bytes.fromhex(MAC_B.replace(":", ""))


def carried(packet: Packet) -> bytes:
    """Return the datagram of a circuit in an underlay frame, or nothing."""
    found = datagram(packet.data)
    return found.udp.payload if found and found.udp.destination_port == 48621 else b""


def neighbours(end: End) -> list[str]:
    """Return the lines that show who is known at a circuit's interface."""
    command = ("ip", "neighbour", "show", "dev", end.interface.name, "nud", "all")
    return end.router.namespace.run(*command).stdout.splitlines()


@pytest.mark.usefixtures("features", "framed")
@pytest.mark.parametrize("engine", ENGINES)
def test_arp_finds_the_other_end(routers: TwoRouters, engine: str) -> None:
    with static_circuit(routers, engine=engine) as circuit, Capture(routers.b.underlay) as within:
        assert ping(routers.a.namespace, "172.16.16.2", count=1).received == 1

        # RFC 826: Ethernet, IPv4, request, from 172.16.16.1, for 172.16.16.2.
        request = (
            b"\xff" * 6
            + A
            + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"
            + A
            + bytes([172, 16, 16, 1])
            + bytes(6)
            + bytes([172, 16, 16, 2])
        )
        reply = (
            A
            + B
            + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02"
            + B
            + bytes([172, 16, 16, 2])
            + A
            + bytes([172, 16, 16, 1])
        )
        within.wait_for(lambda packet: carried(packet) == b"\x01" + request, what="the request")
        within.wait_for(lambda packet: carried(packet) == b"\x01" + reply, what="the reply")
        assert any(
            line.startswith(f"172.16.16.2 lladdr {MAC_B} ") for line in neighbours(circuit.a)
        )


@pytest.mark.usefixtures("framed")
@pytest.mark.parametrize("engine", ENGINES)
def test_ipv6_neighbour_discovery_finds_the_other_end(routers: TwoRouters, engine: str) -> None:
    with static_circuit(routers, engine=engine) as circuit, Capture(routers.b.underlay) as within:
        assert ping(routers.a.namespace, "fd00:16::2", count=1).received == 1

        # RFC 4861, 4.3, to the solicited-node group of ::2 (RFC 4291, 2.7.1).
        def is_solicitation(packet: Packet) -> bool:
            frame = carried(packet)[1:]
            group = b"\x33\x33\xff\x00\x00\x02"
            return frame.startswith(group + A + b"\x86\xdd") and frame[54:55] == b"\x87"

        within.wait_for(is_solicitation, what="a neighbour solicitation")
        assert any(line.startswith(f"fd00:16::2 lladdr {MAC_B} ") for line in neighbours(circuit.a))


@pytest.mark.usefixtures("framed")
@pytest.mark.parametrize("engine", ENGINES)
def test_multicast_reaches_the_group_at_the_other_end(routers: TwoRouters, engine: str) -> None:
    with ExitStack() as stack:
        circuit = stack.enter_context(static_circuit(routers, engine=engine))
        within = stack.enter_context(Capture(routers.b.underlay))
        a, b = routers.a.namespace, routers.b.namespace
        with b.entered():
            index = socket.if_nametoindex(NAME)
        receiver_v4 = stack.enter_context(b.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver_v4.bind(("239.1.2.3", 5000))
        receiver_v4.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            IPv4Address("239.1.2.3").packed + IPv4Address("172.16.16.2").packed,
        )
        receiver_v6 = stack.enter_context(b.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        receiver_v6.bind(("ff15::1234", 5000))
        receiver_v6.setsockopt(
            socket.IPPROTO_IPV6,
            socket.IPV6_JOIN_GROUP,
            IPv6Address("ff15::1234").packed + struct.pack("=I", index),
        )
        for receiver in (receiver_v4, receiver_v6):
            receiver.settimeout(5 * PATIENCE)

        sender_v4 = stack.enter_context(a.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender_v4.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, IPv4Address("172.16.16.1").packed
        )
        sender_v6 = stack.enter_context(a.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        with a.entered():
            sender_index = socket.if_nametoindex(NAME)
        sender_v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, sender_index)
        sender_v4.sendto(b"to the IPv4 group", ("239.1.2.3", 5000))
        sender_v6.sendto(b"to the IPv6 group", ("ff15::1234", 5000))

        assert receiver_v4.recv(100) == b"to the IPv4 group"
        assert receiver_v6.recv(100) == b"to the IPv6 group"
        # Complete frames: to the groups' MAC addresses, RFC 1112, 6.4 and RFC 2464, 7.
        for group, ethertype in (
            (b"\x01\x00\x5e\x01\x02\x03", b"\x08\x00"),
            (b"\x33\x33\x00\x00\x12\x34", b"\x86\xdd"),
        ):
            start = b"\x01" + group + A + ethertype
            within.wait_for(
                lambda packet, start=start: carried(packet).startswith(start)  # type: ignore[misc]
            )
        circuit.b.counted(rx_frames=AtLeast(2), rx_dropped={})


@pytest.mark.usefixtures("features", "framed")
@pytest.mark.parametrize("engine", ENGINES)
def test_tagged_frame_keeps_its_tags(routers: TwoRouters, engine: str) -> None:
    with (
        static_circuit(routers, engine=engine) as circuit,
        Capture(circuit.b.interface) as behind,
        Capture(routers.b.underlay) as within,
        Injector(circuit.a.interface) as injector,
    ):
        # IEEE 802.1Q: VLAN 100; priority 5 and VLAN 291; a service tag; both kinds.
        for tags in ("81000064", "8100a123", "88a80064", "88a800648100a123"):
            # An IPv4 packet that would be elided without a tag.
            packet = bytes.fromhex("4500001c0001000040fdf5e2c0000201c0000202") + b"8 bytes."
            frame = B + A + bytes.fromhex(tags) + b"\x08\x00" + packet
            injector.send(frame)

            behind.wait_for(
                lambda seen, frame=frame: seen.data == frame,  # type: ignore[misc]
                what=f"the frame tagged {tags}",
            )
            within.wait_for(
                lambda seen, frame=frame: carried(seen) == b"\x01" + frame,  # type: ignore[misc]
                what="its datagram",
            )


@pytest.mark.usefixtures("features")
@pytest.mark.parametrize("engine", ENGINES)
def test_full_size_tagged_frames_cross_in_both_directions_by_outer_fragments(
    routers: TwoRouters, engine: str
) -> None:
    with static_circuit(routers, engine=engine) as circuit:
        for source, target, header in (
            (circuit.a, circuit.b, B + A),
            (circuit.b, circuit.a, A + B),
        ):
            with Capture(target.interface) as behind, Injector(source.interface) as injector:
                frame = header + b"\x81\x00\x00\x64\x88\xb5" + bytes(range(251)) * 5 + bytes(216)
                assert len(frame) == 1471 + 14 + 4
                injector.send(frame)

                behind.wait_for(lambda seen, frame=frame: seen.data == frame)  # type: ignore[misc]
            # 1 + 1489 + 8 + 20 = 1518 bytes, on a path of 1500.
            source.counted(tx_fragmented=1)


LEASE_SCRIPT = """\
#!/bin/sh
# udhcpc says what happened by its argument, and the lease by its environment.
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
echo "$ip $router $serverid $lease" > "{lease}"
"""


def test_dhcp_server_leases_an_address_across_the_circuit(
    routers: TwoRouters, tmp_path: Path
) -> None:
    script, lease = tmp_path / "bound", tmp_path / "lease"
    script.write_text(LEASE_SCRIPT.format(lease=lease))
    script.chmod(0o755)
    with (
        static_circuit(routers, addresses=((), ("172.16.17.1/24",))),
        Dnsmasq(
            routers.b.namespace,
            "--port=0",
            f"--interface={NAME}",
            "--bind-interfaces",
            "--dhcp-range=172.16.17.100,172.16.17.109,255.255.255.0,1h",
            f"--dhcp-leasefile={tmp_path / 'leases'}",
            "--dhcp-authoritative",
            "--no-ping",
        ),
    ):
        routers.a.namespace.run(
            *("udhcpc", "-i", NAME, "-f", "-n", "-q", "-t", "5", "-T", "1"),
            *("-s", str(script), "-p", str(tmp_path / "udhcpc.pid")),
            timeout_s=15 * PATIENCE,
        )

        address, router, server, seconds = lease.read_text().split()
        assert address in {f"172.16.17.{number}" for number in range(100, 110)}
        assert (router, server, seconds) == ("172.16.17.1", "172.16.17.1", "3600")
        assert MAC_A in (tmp_path / "leases").read_text()
        assert ping(routers.a.namespace, "172.16.17.1", count=2).received == 2


@pytest.mark.usefixtures("features")
@pytest.mark.parametrize("engine", ENGINES)
def test_bridged_lans_of_full_size_hosts_are_one(routers: TwoRouters, engine: str) -> None:
    with ExitStack() as stack:
        for router in (routers.a, routers.b):
            bridge(router.namespace, "br0")
        left = stack.enter_context(
            bridged_host(routers.a, "br0", "192.0.2.1/24", "2001:db8::1/64")
        ).namespace
        right = stack.enter_context(
            bridged_host(routers.b, "br0", "192.0.2.2/24", "2001:db8::2/64")
        ).namespace
        # Of any other addresses one in eight needs the escape, a byte more.
        for host, mac in ((left, "02:00:5e:30:00:01"), (right, "02:00:5e:30:00:02")):
            host.run("ip", "link", "set", "dev", "eth0", "address", mac)
        circuit = stack.enter_context(
            static_circuit(routers, engine=engine, addresses=((), ()), mtu=1500, bridge="br0")
        )
        for end in (circuit.a, circuit.b):
            assert Interface(end.router.namespace, "br0").mtu == 1500
        with Capture(routers.b.underlay) as within:
            for address in ("192.0.2.2", "2001:db8::2"):
                pings = ping(left, address, count=5, size=1500, dont_fragment=True)
                assert pings.received == 5, pings.output
            # 1 + 14 + 1500 of UDP payload: 1480 bytes with the UDP header, and 43.
            fragments = [
                len(packet.data)
                for packet in within.packets()
                if not packet.outgoing
                and struct.unpack_from("!H", packet.data, 20)[0] & 0x3FFF
                and packet.data[12:14] == b"\x08\x00"
            ]
            assert fragments == [14 + 20 + 1480, 14 + 20 + 43] * 10
        for end in (circuit.a, circuit.b):
            # Neither end's TAP is an end of what is bridged.
            end.counted(tx_fragmented=10, tx_elided=0)

        measured = iperf3(right, left, "192.0.2.2", seconds=1)

        # 1 MB in the second would be a stall; the link does hundreds.
        assert measured.received_bits_per_s > 8e6
        # Its MSS is lowered, so that no segment is fragmented.
        circuit.a.counted(
            tx_bytes=AtLeast(1_000_000), tx_fragmented=10, mss_clamped=AtLeast(1), tx_errors=0
        )
        circuit.b.counted(rx_bytes=AtLeast(1_000_000), rx_dropped={})
        # Its acknowledgements.
        circuit.b.counted(tx_frames=AtLeast(20), tx_errors=0)
        circuit.a.counted(rx_frames=AtLeast(20), rx_dropped={})


BIRD = """\
router id {id};
protocol device {{ }}
protocol kernel {{ ipv4 {{ export all; }}; }}
protocol ospf v2 {{
  ipv4 {{ import all; export none; }};
  area 0 {{
    interface "vela0" {{ type broadcast; hello 1; dead count 4; wait 2; retransmit 2; }};
    interface "lo" {{ stub; }};
  }};
}}
"""


def test_ospf_routers_become_adjacent_and_learn_a_route(routers: TwoRouters) -> None:
    def loopback(router: Router, address: str) -> None:
        router.namespace.run("ip", "address", "add", address, "dev", "lo")

    loopback(routers.a, "192.0.2.1/32")
    loopback(routers.b, "192.0.2.2/32")
    with (
        static_circuit(routers),
        Bird(routers.a.namespace, BIRD.format(id="192.0.2.1")) as bird_a,
        Bird(routers.b.namespace, BIRD.format(id="192.0.2.2")) as bird_b,
    ):
        for bird, other in ((bird_a, "192.0.2.2"), (bird_b, "192.0.2.1")):
            eventually(
                lambda bird=bird, other=other: any(  # type: ignore[misc]
                    line.startswith(other) and "Full/" in line
                    for line in bird.ask("show", "ospf", "neighbors").splitlines()
                ),
                20,
                f"the adjacency with {other}",
            )

        def routed() -> str:
            return routers.a.namespace.run("ip", "route", "show", "192.0.2.2").stdout

        assert "via 172.16.16.2 dev vela0 proto bird" in eventually(
            routed, 10, "the route to 192.0.2.2"
        )
        assert ping(routers.a.namespace, "192.0.2.2", count=3).received == 3
