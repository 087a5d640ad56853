"""What an operator chooses of a circuit's way: bind, device, mark. And the class of control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from lab.autoconfigured import asking, circuit, ends, policy, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.daemon import Velad
from lab.link import Interface, veth
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

PORT = 48621
FAR = "10.203.0.2"
"""An address of B that A reaches by either of two cables."""
CS6 = 0xC0


@dataclass(frozen=True, slots=True)
class Outer:
    """An outer packet of VELA: its addresses, its TOS byte, and the first byte of its payload."""

    source: str
    destination: str
    tos: int
    circuit_id: int


def outer(capture: Capture) -> Iterator[Outer]:
    """Yield the UDP datagrams that an interface sent to VELA's port, by IPv4."""
    for packet in capture.packets():
        data = packet.data
        is_udp = data[12:14] == b"\x08\x00" and data[23] == 17
        if packet.outgoing and is_udp and int.from_bytes(data[36:38]) == PORT:
            source, destination = (".".join(map(str, data[at : at + 4])) for at in (26, 30))
            yield Outer(source, destination, data[15], data[42])


def has_control(capture: Capture, count: int) -> bool:
    return sum(not packet.circuit_id for packet in outer(capture)) >= count


def second_cable(routers: TwoRouters) -> tuple[Interface, Interface]:
    """Join the routers by another cable, 10.202.0.0/24, which routes to FAR do not prefer."""
    pair = veth(routers.a.namespace, "eth1", routers.b.namespace, "eth1")
    for number, end in enumerate(pair, start=1):
        end.add_address(f"10.202.0.{number}/24")
        end.set_up()
    run = routers.a.namespace.run
    routers.b.namespace.run("ip", "address", "add", f"{FAR}/32", "dev", "lo")
    run("ip", "route", "add", f"{FAR}/32", "via", routers.b.ipv4)
    run("ip", "route", "add", f"{FAR}/32", "via", "10.202.0.2", "metric", "100")
    return pair


ANYBODY = policy(sources=["10.0.0.0/8", "fd00::/8"])
PORTS = pytest.mark.parametrize("source_port", ["auto", "listen"])


@PORTS
@pytest.mark.usefixtures("framed")
def test_bound_circuit_sends_everything_from_its_address(
    routers: TwoRouters, source_port: str
) -> None:
    routers.a.underlay.add_address("10.201.0.77/24")
    with (
        Capture(routers.a.underlay) as sent,
        circuit(routers, bind="10.201.0.77", source_port=source_port) as both,
    ):
        assert ping(routers.a.namespace, "172.16.16.2", count=3).received == 3

        assert both.b.circuit(NAME)["remote_address"] == "10.201.0.77"
        packets = list(outer(sent))
        assert {packet.circuit_id for packet in packets} == {0, 1}
        assert {packet.source for packet in packets} == {"10.201.0.77"}


@PORTS
@pytest.mark.usefixtures("framed")
def test_circuit_with_a_device_sends_everything_by_it(
    routers: TwoRouters, source_port: str
) -> None:
    eth1, _ = second_cable(routers)
    with (
        Capture(routers.a.underlay) as preferred,
        Capture(eth1) as chosen,
        circuit(
            routers, remote=FAR, device="eth1", source_port=source_port, policy_b=ANYBODY
        ) as both,
    ):
        assert ping(routers.a.namespace, "172.16.16.2", count=3).received == 3

        assert both.b.circuit(NAME)["remote_address"] == "10.202.0.1"
        assert list(outer(preferred)) == []
        assert {packet.circuit_id for packet in outer(chosen)} == {0, 1}


@PORTS
def test_mark_is_on_every_packet_and_chooses_the_route(
    routers: TwoRouters, source_port: str
) -> None:
    """Without its mark a packet has no route; and what leaves unmarked would be counted."""
    second_cable(routers)
    run = routers.a.namespace.run
    run("ip", "route", "add", "table", "77", f"{FAR}/32", "via", "10.202.0.2")
    run("ip", "rule", "add", "fwmark", "7", "table", "77")
    run("ip", "route", "delete", f"{FAR}/32")
    run("ip", "route", "replace", "unreachable", f"{FAR}/32")
    run(
        "nft",
        "-f",
        "-",
        stdin=f"table inet seen {{ chain out {{ type filter hook output priority 0;\n"
        f"udp dport {PORT} meta mark 7 counter\n"
        f"udp dport {PORT} meta mark != 7 counter drop\n}}\n}}\n",
    )
    with circuit(routers, remote=FAR, mark=7, source_port=source_port, policy_b=ANYBODY):
        assert ping(routers.a.namespace, "172.16.16.2", count=3).received == 3

        rules = run("nft", "list", "table", "inet", "seen").stdout.splitlines()
        (other,) = (line for line in rules if "drop" in line)
        assert "packets 0 bytes 0" in other


@pytest.mark.usefixtures("framed")
def test_control_messages_of_both_ends_are_of_class_cs6(routers: TwoRouters) -> None:
    with (
        Capture(routers.a.underlay) as of_a,
        Capture(routers.b.underlay) as of_b,
        circuit(routers),
    ):
        for sent in (of_a, of_b):
            eventually(partial(has_control, sent, 5), 10, "some keepalives")
            assert {packet.tos for packet in outer(sent) if not packet.circuit_id} == {CS6}


@pytest.mark.usefixtures("framed")
def test_control_messages_by_ipv6_are_of_class_cs6(routers: TwoRouters) -> None:
    with Capture(routers.a.underlay) as sent, circuit(routers, remote=routers.b.ipv6):
        classes = {
            int.from_bytes(packet.data[14:16]) >> 4 & 0xFF
            for packet in sent.packets()
            if packet.outgoing
            and packet.data[12:14] == b"\x86\xdd"
            and packet.data[20] == 17
            and packet.data[62] == 0
        }

        assert classes == {CS6}


def wait_for_reason(velad: Velad, reason: str) -> None:
    velad.wait_for(lambda _: velad.circuit(NAME)["reason"] == reason, 10, reason)
    assert velad.circuit(NAME)["state"] == "down"


def test_device_that_is_missing_is_waited_for_and_followed(routers: TwoRouters) -> None:
    waiting = "the interface eth1 does not exist; waiting for it"
    config = asking(FAR, device="eth1")
    with ends(routers, config, ANYBODY) as both:
        wait_for_reason(both.a, waiting)

        second_cable(routers)
        wait_until_up(both)

        # The other end of the cable goes with it.
        routers.a.namespace.run("ip", "link", "delete", "eth1")
        wait_for_reason(both.a, waiting)
        routers.b.namespace.run("ip", "address", "delete", f"{FAR}/32", "dev", "lo")
        routers.a.namespace.run("ip", "route", "flush", FAR)
        second_cable(routers)

        wait_until_up(both)
        assert ping(routers.a.namespace, "172.16.16.2", count=3).received == 3


def test_address_that_is_missing_is_waited_for_and_followed(routers: TwoRouters) -> None:
    waiting = "10.201.0.77 is no address of this machine; waiting for it"
    with ends(routers, asking(routers.b.ipv4, bind="10.201.0.77"), policy()) as both:
        wait_for_reason(both.a, waiting)

        routers.a.underlay.add_address("10.201.0.77/24")
        wait_until_up(both)

        routers.a.underlay.delete_address("10.201.0.77/24")
        wait_for_reason(both.a, waiting)
        routers.a.underlay.add_address("10.201.0.77/24")
        wait_until_up(both)


def test_static_circuit_follows_its_device_likewise(routers: TwoRouters) -> None:
    waiting = "the interface eth1 does not exist; waiting for it"
    table = asking(FAR, autoconfigure=False, device="eth1").split(f"[circuits.{NAME}.peer]")[0]
    with Velad(routers.a.namespace, table) as velad:
        wait_for_reason(velad, waiting)

        second_cable(routers)
        velad.wait_for_state(NAME, "unmonitored")

        routers.a.namespace.run("ip", "link", "delete", "eth1")
        wait_for_reason(velad, waiting)
