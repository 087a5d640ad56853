"""Circuits to remotes that are given by name, with a real name server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Ends, asking, ends, policy, wait_until_up
from lab.capture import Capture
from lab.circuit import (
    ADDRESSES_A,
    ADDRESSES_B,
    MAC_A,
    MAC_B,
    NAME,
    circuit_table,
)
from lab.daemon import Velad
from lab.dnsmasq import name_server
from lab.headers import datagram
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import Router, TwoRouters

pytestmark = pytest.mark.needs_net_admin

HOST = "router2.example.net"
BOTH = f"{HOST},10.201.0.2,fd00:201::2"


@pytest.fixture
def named(routers: TwoRouters, tmp_path: Path) -> TwoRouters:
    """Two routers, of which A asks a name server of its own at 127.0.0.1."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    routers.a.namespace.resolv_conf = resolv_conf
    return routers


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A directory whose files a name server reads as they appear."""
    directory = tmp_path / "hosts"
    directory.mkdir()
    return directory


def velad_a(routers: TwoRouters, **settings: str) -> Velad:
    table = circuit_table(HOST, mac=MAC_A, peer_mac=MAC_B, addresses=list(ADDRESSES_A), **settings)
    return Velad(routers.a.namespace, table)


@pytest.fixture(params=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def b(named: TwoRouters, family: str) -> Iterator[Velad]:
    """The other end, which knows A by its address of the family."""
    remote = named.a.ipv4 if family == "ipv4" else named.a.ipv6
    table = circuit_table(remote, mac=MAC_B, peer_mac=MAC_A, addresses=list(ADDRESSES_B))
    with Velad(named.b.namespace, table) as velad:
        velad.wait_for_state(NAME, "unmonitored")
        yield velad


ADDRESS_AND_MTU = {"ipv4": ("10.201.0.2", 1471), "ipv6": ("fd00:201::2", 1451)}


def crosses(routers: TwoRouters, mtu: int) -> bool:
    """Tell whether full-size packets of both IP versions are answered."""
    return all(
        ping(routers.a.namespace, address, count=2, size=mtu, dont_fragment=True).received == 2
        for address in ("172.16.16.2", "fd00:16::2")
    )


def test_name_with_both_families_is_reached_over_the_one_asked_for(
    named: TwoRouters, b: Velad, family: str
) -> None:
    address, mtu = ADDRESS_AND_MTU[family]
    with name_server(named.a.namespace, BOTH), velad_a(named, family=family) as a:
        circuit = a.wait_for_state(NAME, "unmonitored")

        assert circuit["remote"] == HOST
        assert circuit["remote_address"] == address
        assert circuit["family"] == family
        assert circuit["mtu"] == mtu
        assert crosses(named, mtu)


def test_name_with_one_family_is_reached_over_that(
    named: TwoRouters, b: Velad, family: str
) -> None:
    address, mtu = ADDRESS_AND_MTU[family]
    with name_server(named.a.namespace, f"{HOST},{address}"), velad_a(named) as a:
        circuit = a.wait_for_state(NAME, "unmonitored")

        assert (circuit["remote_address"], circuit["mtu"]) == (address, mtu)
        assert crosses(named, mtu)


@pytest.mark.parametrize("family", ["ipv4"], indirect=True)
def test_name_without_an_address_of_the_family_is_waited_for(
    named: TwoRouters, b: Velad, hosts: Path
) -> None:
    with (
        name_server(named.a.namespace, f"{HOST},fd00:201::2", hosts=hosts),
        velad_a(named, family="ipv4") as a,
    ):
        a.wait_for(
            lambda status: status["circuits"][0]["reason"] == f"{HOST}: no IPv4 address",
            10,
            "the reason",
        )
        circuit = a.circuit(NAME)
        assert (circuit["state"], circuit["remote_address"]) == ("resolving", None)

        (hosts / "router2").write_text(f"10.201.0.2 {HOST}\n")
        circuit = a.wait_for_state(NAME, "unmonitored")

        assert (circuit["remote_address"], circuit["reason"]) == ("10.201.0.2", "")
        assert crosses(named, 1471)


def test_name_that_appears_later_brings_the_circuit_up_by_itself(
    named: TwoRouters, b: Velad, family: str, hosts: Path
) -> None:
    address, mtu = ADDRESS_AND_MTU[family]
    with name_server(named.a.namespace, hosts=hosts), velad_a(named) as a:
        a.wait_for(
            lambda status: status["circuits"][0]["reason"] == f"{HOST}: no such name",
            10,
            "the reason",
        )
        circuit = a.circuit(NAME)
        assert (circuit["state"], circuit["worker"]) == ("resolving", None)

        (hosts / "router2").write_text(f"{address} {HOST}\n")
        # Asked again after 1, 2, 4 seconds.
        circuit = a.wait_for_state(NAME, "unmonitored", timeout_s=10)

        assert (circuit["remote_address"], circuit["reason"]) == (address, "")
        assert circuit["mtu"] == mtu
        assert crosses(named, mtu)


@pytest.mark.parametrize("family", ["ipv4"], indirect=True)
def test_name_server_that_appears_later_brings_the_circuit_up_by_itself(
    named: TwoRouters, b: Velad
) -> None:
    with velad_a(named, family="ipv4") as a:
        a.wait_for(
            lambda status: (
                status["circuits"][0]["reason"]
                == f"{HOST}: no name server answered: 127.0.0.1 is not running"
            ),
            10,
            "the reason",
        )
        assert a.circuit(NAME)["state"] == "resolving"

        with name_server(named.a.namespace, BOTH):
            circuit = a.wait_for_state(NAME, "unmonitored", timeout_s=10)

            assert circuit["remote_address"] == "10.201.0.2"
            assert crosses(named, 1471)


@pytest.mark.parametrize("family", ["ipv4"], indirect=True)
def test_resolver_that_is_stopped_is_replaced_and_the_status_says_so(
    named: TwoRouters, b: Velad, hosts: Path
) -> None:
    with name_server(named.a.namespace, hosts=hosts), velad_a(named, family="ipv4") as a:
        a.wait_for(lambda status: status["circuits"][0]["reason"], 10, "a reason")
        (hosts / "router2").write_text(f"10.201.0.2 {HOST}\n")
        for helper in set(a.processes()) - {a.pid}:
            os.kill(helper, signal.SIGSTOP)

        told = f"{HOST}: the resolver process does not answer; another one is started"
        a.wait_for(lambda status: status["circuits"][0]["reason"] == told, 30, told)

        circuit = a.wait_for_state(NAME, "unmonitored", timeout_s=10)
        assert circuit["reason"] == ""
        assert a.log().count("resolver_lost") == 1


@pytest.mark.parametrize("family", ["ipv4"], indirect=True)
def test_name_server_that_is_silent_is_told_before_the_look_up_ends(
    named: TwoRouters, b: Velad, tmp_path: Path
) -> None:
    patient = tmp_path / "patient"
    patient.write_text("nameserver 127.0.0.1\noptions timeout:10 attempts:2\n")
    named.a.namespace.resolv_conf = patient
    silent = named.a.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent, velad_a(named, family="ipv4") as a:
        silent.bind(("127.0.0.1", 53))
        told = f"{HOST}: the name server has not answered yet"
        a.wait_for(lambda status: status["circuits"][0]["reason"] == told, 15, told)

        assert a.circuit(NAME)["state"] == "resolving"


def test_names_with_both_families_at_both_ends_meet(named: TwoRouters) -> None:
    """Each end may choose either family, and must hear the other one on both."""
    a, b = named.a.namespace, named.b.namespace
    b.resolv_conf = a.resolv_conf
    table_b = circuit_table(
        "router1.example.net", mac=MAC_B, peer_mac=MAC_A, addresses=list(ADDRESSES_B)
    )
    with (
        name_server(a, BOTH),
        name_server(b, "router1.example.net,10.201.0.1,fd00:201::1"),
        velad_a(named) as velad,
        Velad(b, table_b) as velad_b,
    ):
        for each in (velad, velad_b):
            assert each.wait_for_state(NAME, "unmonitored")["reason"] == ""

        # What fits both families.
        assert crosses(named, 1451)


@pytest.mark.parametrize("disabled", [False, True])
def test_circuit_that_is_being_resolved_is_not_deleted_by_its_remote_that_resumes(
    named: TwoRouters, hosts: Path, disabled: bool
) -> None:
    known = hosts / "router2"
    known.write_text(f"10.201.0.2 {HOST}\n")
    with ends(named, policy() + asking(HOST), policy()) as both:
        with name_server(named.a.namespace, hosts=hosts):
            wait_until_up(both)
            if disabled:
                both.a.control("down", NAME)
            both.a.stop()
        both.a.start()

        told = "a circuit with this id is still being resolved on the other end"
        refused = both.b.wait_for(
            lambda status: [each["reason"] for each in status["circuits"]] == [told], 10, told
        )

        assert refused["circuits"][0]["state"] == "down"
        with name_server(named.a.namespace, hosts=hosts):
            if disabled:
                told = "vela0 was taken down on the other end"
                both.b.wait_for(
                    lambda status: [each["reason"] for each in status["circuits"]] == [told],
                    40,
                    told,
                )
            else:
                wait_until_up(both, timeout_s=20)


def test_machine_that_is_known_by_its_address_and_by_a_name_has_one_set_of_ids(
    named: TwoRouters,
) -> None:
    config = asking(named.b.ipv4, addresses=[], peer={"addresses": []})
    with (
        name_server(named.a.namespace, BOTH),
        ends(named, config, policy()) as both,
    ):
        wait_until_up(both)
        workers = [velad.worker_pid(NAME) for velad in both]
        changes = both.b.log().count("circuit_state_changed")
        add = ("add", "--no-wait")

        # The id that somebody insists on is found to be taken before the other end hears of it.
        both.a.control(*add, "vela7", "--remote", HOST, "--family", "ipv4", "--id", "1")
        entry = both.a.wait_for_state("vela7", "failed")
        assert entry["reason"] == "vela0 already uses circuit id 1 toward 10.201.0.2"
        time.sleep(1.0)  # five keepalives
        assert both.b.log().count("circuit_state_changed") == changes
        assert [velad.circuit(NAME)["state"] for velad in both] == ["up", "up"]
        assert [velad.worker_pid(NAME) for velad in both] == workers

        # A name that is not known yet may be that machine's, or any.
        said = both.a.control(*add, "vela8", "--remote", "other.example.net").stdout
        assert said == "vela8: id 2, toward other.example.net\n"
        said = both.a.control(*add, "vela9", "--remote", HOST, "--family", "ipv4").stdout
        assert said == f"vela9: id 3, toward {HOST}\n"
        wait_until_up(both, a="vela9", b="vela1")
        both.a.control("delete", "vela8")
        assert both.a.control(*add, "vela8", "--remote", "10.201.0.9").stdout == (
            "vela8: id 1, toward 10.201.0.9\n"
        )


def test_name_that_never_resolves_keeps_its_circuit_id_from_nobody(
    named: TwoRouters, hosts: Path
) -> None:
    config_a = policy() + asking(HOST, addresses=[])
    config_b = asking(named.a.ipv4, addresses=[], peer={"interface": "vela5", "addresses": []})
    with name_server(named.a.namespace, hosts=hosts), ends(named, config_a, config_b) as both:
        wait_until_up(both, a="vela5")

        assert both.a.circuit(NAME)["state"] == "resolving"


def index(namespace: Namespace) -> str:
    """Return the index of the circuit's interface, which another one of its name would not have."""
    return namespace.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout


def is_at(address: str, status: dict[str, Any]) -> bool:
    """Tell whether the only circuit's remote has this address."""
    return bool(status["circuits"][0]["remote_address"] == address)


def drop(router: Router, address: str) -> None:
    """Let nothing that comes to one of a router's addresses arrive."""
    router.namespace.run(
        *("nft", "-f", "-"),
        stdin=(
            "table inet dead {\n chain in {\n  type filter hook input priority filter;\n"
            f"  {'ip6' if ':' in address else 'ip'} daddr {address} drop\n }}\n}}\n"
        ),
    )


def revive(router: Router) -> None:
    router.namespace.run("nft", "delete", "table", "inet", "dead")


@pytest.fixture
def second(named: TwoRouters, hosts: Path) -> str:
    """B's name has two addresses; they are this one and 10.201.0.2."""
    second = "10.201.0.22"
    named.b.underlay.add_address(f"{second}/32")
    (hosts / "router2").write_text(f"10.201.0.2 {HOST}\n{second} {HOST}\n")
    return second


def requests(capture: Capture) -> list[str]:
    """Return where A's REQUESTs went, one after the other."""
    found = [datagram(packet.data) for packet in capture.packets() if packet.outgoing]
    return [
        str(each.ip.destination)
        for each in found
        if each is not None and each.udp.payload[:3] == b"\0\1\1"
    ]


def test_name_of_which_one_address_is_dead_is_reached_at_the_other(named: TwoRouters) -> None:
    """The dead one is preferred: RFC 6724, section 2.1, label and precedence of 2001:db8::/32."""
    dead = "2001:db8:201::2"
    named.a.underlay.add_address("2001:db8:201::1/64")
    named.b.underlay.add_address(f"{dead}/64")
    drop(named.b, dead)
    with (
        name_server(named.a.namespace, f"{HOST},10.201.0.2,{dead}"),
        Capture(named.a.underlay) as capture,
        ends(named, asking(HOST), policy()) as both,
    ):
        wait_until_up(both, timeout_s=5)

        entry = both.a.circuit(NAME)
        assert (entry["remote_address"], entry["reason"]) == ("10.201.0.2", "")
        assert requests(capture) == [dead, "10.201.0.2"]


@pytest.mark.usefixtures("eager")
def test_name_of_thirty_addresses_of_which_the_last_works_is_up_within_ten_seconds(
    named: TwoRouters, hosts: Path
) -> None:
    """Nobody has the others, of the same subnet: nothing comes back from them."""
    names = "".join(f"10.201.0.{number} {HOST}\n" for number in range(101, 130))
    (hosts / "router2").write_text(f"{names}10.201.0.130 {HOST}\n")
    named.b.underlay.add_address("10.201.0.130/24")
    began = time.monotonic()
    with (
        name_server(named.a.namespace, hosts=hosts),
        ends(named, asking(HOST, family="ipv4"), policy()) as both,
    ):
        wait_until_up(both, timeout_s=15)

        assert time.monotonic() - began < 12
        assert both.a.circuit(NAME)["remote_address"] == "10.201.0.130"


def test_name_that_moves_between_addresses_and_families_takes_the_circuit_along(
    named: TwoRouters, hosts: Path
) -> None:
    """The old address is dead each time; B keeps its circuit, as A does."""
    entry = hosts / "router2"
    entry.write_text(f"10.201.0.2 {HOST}\n")
    with (
        name_server(named.a.namespace, hosts=hosts),
        ends(named, asking(HOST), policy()) as both,
    ):
        wait_until_up(both)
        before = [index(each.namespace) for each in both]
        for old, new in (
            ("10.201.0.2/24", "10.201.0.22"),
            ("10.201.0.22/24", "fd00:201::22"),
            ("fd00:201::22/64", "10.201.0.23"),
        ):
            # In this order, as the kernel removes an IPv4 address with the first of its subnet.
            named.b.underlay.delete_address(old)
            named.b.underlay.add_address(f"{new}/{64 if ':' in new else 24}")
            entry.write_text(f"{new} {HOST}\n")

            both.a.wait_for(partial(is_at, new), 20, new)
            wait_until_up(both)

            assert ping(named.a.namespace, "172.16.16.2", count=2).received == 2
            assert [index(each.namespace) for each in both] == before
            assert len(both.b.status()["circuits"]) == 1


@pytest.mark.usefixtures("eager")
def test_circuit_whose_address_dies_moves_to_the_other_one_and_stays(
    named: TwoRouters, hosts: Path, second: str
) -> None:
    with (
        name_server(named.a.namespace, hosts=hosts),
        Capture(named.a.underlay) as capture,
        ends(named, asking(HOST), policy()) as both,
    ):
        wait_until_up(both)
        first = both.a.circuit(NAME)["remote_address"]
        (other,) = {second, "10.201.0.2"} - {first}

        drop(named.b, first)
        both.a.wait_for_state(NAME, "down")
        wait_until_up(both)

        assert both.a.circuit(NAME)["remote_address"] == other
        assert ping(named.a.namespace, "172.16.16.2", count=2).received == 2
        revive(named.b)
        # Also when the name was looked up meanwhile, as the MTU shows.
        named.a.set_route_mtu(other, 1400)
        both.a.wait_for(lambda status: status["circuits"][0]["mtu"] == 1371, 5, "1371")
        count = len(requests(capture))
        both.a.control("down", NAME)
        both.a.control("up", NAME)
        wait_until_up(both)
        assert both.a.circuit(NAME)["remote_address"] == other
        assert set(requests(capture)[count:]) == {other}


@pytest.mark.parametrize("keyed", [False, True])
def test_ends_that_are_both_renumbered_at_once_keep_interface_and_circuit(
    named: TwoRouters, hosts: Path, tmp_path: Path, keyed: bool
) -> None:
    (hosts / "router2").write_text(f"10.201.0.2 {HOST}\n")
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef0123456789abcdef\n")
    key.chmod(0o600)
    settings: dict[str, Any] = {"key_file": str(key)} if keyed else {}
    with (
        name_server(named.a.namespace, hosts=hosts),
        ends(named, asking(HOST, **settings), policy(**settings)) as both,
    ):
        wait_until_up(both)
        before = [index(each.namespace) for each in both]
        began = time.monotonic()
        for router, old, new in ((named.a, 1, 101), (named.b, 2, 102)):
            router.underlay.delete_address(f"10.201.0.{old}/24")
            router.underlay.add_address(f"10.201.0.{new}/24")
        (hosts / "router2").write_text(f"10.201.0.102 {HOST}\n")
        both.a.wait_for(partial(is_at, "10.201.0.102"), 20, "the other address")
        wait_until_up(both)

        assert time.monotonic() - began < 10
        assert ping(named.a.namespace, "172.16.16.2", count=2).received == 2
        assert [index(each.namespace) for each in both] == before
        (kept,) = both.b.status()["circuits"]
        assert (kept["name"], kept["remote"]) == (NAME, "10.201.0.101")
        # It is the circuit that is stored, too.
        both.b.stop()
        both.b.start()
        wait_until_up(both, timeout_s=15)
        assert len(both.b.status()["circuits"]) == 1


def test_addresses_that_are_all_dead_are_tried_in_turn_and_the_log_says_it_once(
    named: TwoRouters, hosts: Path, second: str
) -> None:
    addresses = {second, "10.201.0.2"}
    with (
        name_server(named.a.namespace, hosts=hosts),
        Capture(named.a.underlay) as capture,
        Velad(named.a.namespace, asking(HOST)) as a,
    ):
        a.wait_for(lambda _: len(requests(capture)) >= 10, 15, "ten requests")

        asked = requests(capture)
        # The next look-up may change the order.
        assert set(asked[:2]) == set(asked[2:4]) == addresses
        assert a.log().count("no answer from") == 1
        assert a.circuit(NAME)["reason"].startswith(
            "no answer from 10.201.0.2:48621 and 1 other address: "
        )
        # Whichever comes to life is found.
        with Velad(named.b.namespace, policy()) as b:
            wait_until_up(Ends(a, b))
