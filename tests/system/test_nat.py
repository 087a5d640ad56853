"""An initiator behind a router that translates its addresses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.autoconfigured import Ends, asking, policy, wait_until_up
from lab.capture import Capture, Packet
from lab.circuit import NAME
from lab.daemon import Velad
from lab.headers import datagram
from lab.link import Interface, veth
from lab.load import ping
from lab.namespace import Namespace

pytestmark = pytest.mark.needs_net_admin


@dataclass(frozen=True, slots=True)
class Translated:
    """A (10.202.0.1), behind a NAT that B (10.201.0.2) sees as 10.201.0.1."""

    a: Namespace
    nat: Namespace
    b: Namespace
    inside: Interface
    """A's."""
    outside: Interface
    """The NAT's, toward B."""


@pytest.fixture(params=["", "to :40000-40099"], ids=["same port", "other port"])
def translated(request: pytest.FixtureRequest) -> Iterator[Translated]:
    with Namespace("a") as a, Namespace("nat") as nat, Namespace("b") as b:
        inside, gateway = veth(a, "eth0", nat, "lan0")
        outside, far = veth(nat, "wan0", b, "eth0")
        inside.add_address("10.202.0.1/24")
        gateway.add_address("10.202.0.254/24")
        outside.add_address("10.201.0.1/24")
        far.add_address("10.201.0.2/24")
        a.run("ip", "route", "add", "default", "via", "10.202.0.254")
        nat.sysctl("net/ipv4/ip_forward", 1)
        nat.run(
            "nft",
            "-f",
            "-",
            stdin=(
                "table ip nat {\n chain post {\n"
                "  type nat hook postrouting priority srcnat;\n"
                f'  oifname "wan0" meta l4proto udp masquerade {request.param}\n'
                " }\n}\n"
            ),
        )
        yield Translated(a, nat, b, inside, outside)


def ports_of_frames(packets: list[Packet], sender: str) -> set[tuple[int, int]]:
    """Return the source and destination ports of the sender's frames of circuit 1."""
    found = [datagram(packet.data) for packet in packets]
    return {
        (each.udp.source_port, each.udp.destination_port)
        for each in found
        if each is not None and each.udp.payload[:1] == b"\x01" and str(each.ip.source) == sender
    }


def test_circuit_through_a_nat_sends_frames_from_the_listening_port(
    translated: Translated,
) -> None:
    with (
        Velad(translated.b, policy()) as b,
        Capture(translated.inside) as capture,
        Velad(translated.a, asking("10.201.0.2")) as a,
    ):
        wait_until_up(Ends(a, b))

        for source, address in (
            (translated.a, "172.16.16.2"),
            (translated.b, "172.16.16.1"),
            (translated.a, "fd00:16::2"),
            (translated.b, "fd00:16::1"),
        ):
            pings = ping(source, address, count=3, size=1471, dont_fragment=True, interval_s=0.2)
            assert pings.received == 3, pings.output

        packets = capture.packets()
        assert ports_of_frames(packets, "10.202.0.1") == {(48621, 48621)}
        assert ports_of_frames(packets, "10.201.0.2") == {(48621, 48621)}
        assert b.circuit(NAME)["remote_address"] == "10.201.0.1"
        assert [velad.circuit(NAME)["state"] for velad in (a, b)] == ["up", "up"]


def test_responder_that_restarts_is_found_again_through_a_nat(translated: Translated) -> None:
    with (
        Velad(translated.b, policy()) as b,
        Velad(translated.a, asking("10.201.0.2")) as a,
    ):
        wait_until_up(Ends(a, b))

        b.kill()
        b.start()

        wait_until_up(Ends(a, b))
        assert ping(translated.a, "172.16.16.2", count=2, interval_s=0.2).received == 2


def test_circuit_under_a_key_through_a_nat_has_session_keys_that_both_ends_derive_alike(
    translated: Translated, tmp_path: Path
) -> None:
    """They are bound to the addresses of both ends as each end sees them: four, with a NAT."""
    key = tmp_path / "key"
    key.write_text("a key of more than sixteen bytes")
    key.chmod(0o600)
    with (
        Velad(translated.b, policy(key_file=str(key))) as b,
        Capture(translated.inside) as capture,
        Velad(translated.a, asking("10.201.0.2", key_file=str(key))) as a,
    ):
        wait_until_up(Ends(a, b))
        capture.wait_for_count(is_keepalive, 6, 10)

        keepalives = [each.data for each in capture.packets() if is_keepalive(each)]
        # TLV 28, and the tag of the key behind it: docs/protocol.md, 4.9.
        assert {data[-35:-32] for data in keepalives} == {b"\x1c\0\x10"}
        assert [velad.circuit(NAME)["state"] for velad in (a, b)] == ["up", "up"]
        for velad in (a, b):
            assert "control_tag" not in velad.status()["rx_dropped"]


def is_keepalive(packet: Packet) -> bool:
    found = datagram(packet.data)
    return found is not None and found.udp.payload[:3] == b"\0\1\5"


@pytest.fixture
def neighbour(translated: Translated) -> Iterator[Namespace]:
    """A second machine behind the NAT (10.203.0.1)."""
    with Namespace("c") as c:
        inside, gateway = veth(c, "eth0", translated.nat, "lan1")
        inside.add_address("10.203.0.1/24")
        gateway.add_address("10.203.0.254/24")
        c.run("ip", "route", "add", "default", "via", "10.203.0.254")
        yield c


def test_second_machine_behind_a_nat_is_told_that_the_id_is_taken_or_gets_another(
    translated: Translated, neighbour: Namespace
) -> None:
    with (
        Velad(translated.b, policy()) as b,
        Velad(translated.a, asking("10.201.0.2")) as a,
        Velad(neighbour, "") as c,
    ):
        a.wait_for_state(NAME, "up")
        add = ("add", "vela7", "--remote", "10.201.0.2")

        refused = c.control(*add, "--id", "1", check=False)
        assert refused.returncode == 3
        assert "rejected: another machine set this circuit up" in refused.stderr
        c.control("delete", "vela7")

        added = c.control(*add)
        assert added.stdout == (
            "vela7: id 1, toward 10.201.0.2\nvela7: id 2, as 1 is taken on the other end\n"
        )
        assert c.circuit("vela7")["state"] == "up"
        assert sorted(each["id"] for each in b.status()["circuits"]) == [1, 2]
        # The first one has noticed nothing.
        assert a.log().count("circuit_state_changed") == 1
        assert ping(translated.a, "172.16.16.2", count=2, interval_s=0.2).received == 2
