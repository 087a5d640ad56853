"""One machine configured, the other one with nothing but [autoconfigure]."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.autoconfigured import (
    KEEPALIVE_S,
    addresses,
    asking,
    circuit,
    ends,
    interfaces,
    master,
    policy,
    wait_until_up,
)
from lab.circuit import ADDRESSES_A, ADDRESSES_B, NAME
from lab.counters import AtLeast
from lab.daemon import Velad, waits_from_now
from lab.dnsmasq import name_server
from lab.link import Interface, bridge
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

START_TO_UP_S = 2.0
COUNT = 3


def check_crossing(routers: TwoRouters, mtu: int) -> None:
    """Full-size packets of both IP versions are answered, in both directions."""
    for source, targets in (
        (routers.a.namespace, ("172.16.16.2", "fd00:16::2")),
        (routers.b.namespace, ("172.16.16.1", "fd00:16::1")),
    ):
        for address in targets:
            pings = ping(source, address, count=COUNT, size=mtu, dont_fragment=True, interval_s=0.2)
            assert pings.received == COUNT, pings.output


def is_ready(velad: Velad, wanted: set[str], mtu: int) -> bool:
    interface = Interface(velad.namespace, NAME)
    return (
        NAME in interfaces(velad.namespace)
        and interface.carrier
        and interface.mtu == mtu
        and addresses(velad.namespace, NAME) == wanted
    )


@pytest.mark.parametrize("first", ["initiator", "responder"])
def test_circuit_is_whole_on_both_ends_soon_after_the_later_start(
    routers: TwoRouters, first: str, figure: Callable[[str], None]
) -> None:
    a = Velad(routers.a.namespace, asking(routers.b.ipv4))
    b = Velad(routers.b.namespace, policy())
    earlier, later = (a, b) if first == "initiator" else (b, a)
    with earlier:
        if first == "initiator":
            # Long enough to have asked in vain several times.
            earlier.wait_for(
                lambda status: status["circuits"][0]["reason"] != "", 30, "nobody to answer"
            )
        launched_at = time.time()
        with later:
            waited_s = waits_from_now(a, b)
            started_at = later.logged_at("daemon_started", launched_at)
            ready = max(
                ready_at(a, ADDRESSES_A, launched_at), ready_at(b, ADDRESSES_B, launched_at)
            )
            of_others_s = waited_s()
    figure(
        f"{first} first: ready {ready - started_at:.3f} s after the later start, "
        f"{ready - launched_at:.2f} s after its launch; {of_others_s:.3f} s of it waiting for a CPU"
    )
    assert ready - started_at - of_others_s < START_TO_UP_S


def ready_at(velad: Velad, wanted: tuple[str, ...], since: float) -> float:
    """Return when the circuit was up, as the log says, if it was all there at the first look."""
    at = velad.logged_at("circuit_state_changed", since, circuit=NAME, state="up")
    if not is_ready(velad, set(wanted), 1471):
        eventually(lambda: is_ready(velad, set(wanted), 1471), 10, f"{velad.name} to be ready")
        return time.time()
    return at


@pytest.mark.parametrize(("outer", "mtu"), [("ipv4", 1471), ("ipv6", 1451)])
def test_full_size_packets_cross_elided_in_both_directions(
    routers: TwoRouters, outer: str, mtu: int
) -> None:
    remote = routers.b.ipv4 if outer == "ipv4" else routers.b.ipv6
    with circuit(routers, remote=remote) as both:
        check_crossing(routers, mtu)

        # Each way COUNT requests of two IP versions, and as many replies to those of the other.
        sent = 2 * 2 * COUNT
        for velad in both:
            entry = velad.circuit(NAME)
            assert entry["mtu"] == mtu
            velad.counted(NAME, tx_elided=AtLeast(sent), rx_elided=AtLeast(sent), tx_fragmented=0)


def test_both_ends_tell_the_same_story(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        a, b = (
            velad.wait_for(
                lambda status: status["circuits"][0]["rtt_ms"] is not None, 10, "a round trip"
            )["circuits"]
            for velad in both
        )

    assert len(a) == len(b) == 1
    for entry, remote, origin in ((a[0], "10.201.0.2", "config"), (b[0], "10.201.0.1", "peer")):
        assert entry["name"] == "vela0"
        assert entry["id"] == 1
        assert entry["origin"] == origin
        assert (entry["state"], entry["reason"]) == ("up", "")
        assert entry["remote"] == entry["remote_address"] == remote
        assert (entry["remote_port"], entry["family"]) == (48621, "ipv4")
        assert (entry["mtu"], entry["elision"]) == (1471, True)
        assert 0 < entry["rtt_ms"] < 1000
        assert 0 <= entry["last_heard_seconds"] < 3 * KEEPALIVE_S
        assert entry["worker"]["pid"]


def test_smaller_mtu_of_the_two_ends_holds_on_both(routers: TwoRouters) -> None:
    with circuit(routers, mtu=1400) as both:
        assert [velad.circuit(NAME)["mtu"] for velad in both] == [1400, 1400]
        assert Interface(routers.b.namespace, NAME).mtu == 1400


def test_interface_is_named_as_the_initiator_wants(routers: TwoRouters) -> None:
    config = asking(routers.b.ipv4, peer={"interface": "vela-to-a"})
    with ends(routers, config, policy()) as both:
        wait_until_up(both, b="vela-to-a")

        assert interfaces(routers.b.namespace) == {"lo", "eth0", "vela-to-a"}


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [("vela*", "vela0"), ("pw?", "pw0"), ("*-pw", "0-pw"), ("only", "only"), ("x*y*", "x0y")],
)
def test_interface_without_a_wanted_name_gets_one_within_policy(
    routers: TwoRouters, pattern: str, chosen: str
) -> None:
    config = asking(routers.b.ipv4, peer={"interface": None})
    with ends(routers, config, policy(interfaces=pattern)) as both:
        wait_until_up(both, b=chosen)

        assert interfaces(routers.b.namespace) == {"lo", "eth0", chosen}
        assert addresses(routers.b.namespace, chosen) == set(ADDRESSES_B)


def test_interface_without_a_wanted_name_evades_names_that_others_have(
    routers: TwoRouters,
) -> None:
    bridge(routers.b.namespace, "vela0")
    config = asking(routers.b.ipv4, peer={"interface": None})
    with ends(routers, config, policy()) as both:
        wait_until_up(both, b="vela1")


def test_bridge_is_joined_on_the_other_end(routers: TwoRouters) -> None:
    bridge(routers.b.namespace, "br-lan")
    with circuit(routers, peer={"bridge": "br-lan", "addresses": None}):
        assert master(routers.b.namespace, NAME) == "br-lan"
        assert master(routers.a.namespace, NAME) is None


def test_mac_is_taken_on_the_other_end(routers: TwoRouters) -> None:
    peer = {"mac": "02:00:5e:10:00:02"}
    with circuit(routers, mac="02:00:5e:10:00:01", peer=peer):
        assert Interface(routers.b.namespace, NAME).mac == bytes.fromhex("02005e100002")
        check_crossing(routers, 1471)


def test_ethernet_encapsulation_at_one_end_elides_at_neither(routers: TwoRouters) -> None:
    with circuit(routers, encapsulation="ethernet") as both:
        assert ping(routers.a.namespace, "172.16.16.2", count=2, size=1400).received == 2

        for velad in both:
            assert velad.circuit(NAME)["elision"] is False
            # Two echoes each way; all else is less than one of them.
            velad.counted(
                NAME,
                tx_bytes=AtLeast(2 * 1414),
                rx_bytes=AtLeast(2 * 1414),
                tx_elided=0,
                rx_elided=0,
            )


def test_names_at_both_ends_are_looked_up(routers: TwoRouters, tmp_path: Path) -> None:
    """The remote's, and that of who may ask."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    for router in (routers.a, routers.b):
        router.namespace.resolv_conf = resolv_conf
    with (
        name_server(routers.a.namespace, "router2.example.net,10.201.0.2"),
        name_server(routers.b.namespace, "router1.example.net,10.201.0.1"),
        circuit(
            routers,
            remote="router2.example.net",
            policy_b=policy(sources=["router1.example.net"]),
        ) as both,
    ):
        entry = both.a.circuit(NAME)
        assert (entry["remote"], entry["remote_address"]) == ("router2.example.net", "10.201.0.2")
        check_crossing(routers, 1471)


def test_both_ends_active_meet_in_one_session_that_stays(routers: TwoRouters) -> None:
    config_b = policy() + asking(
        routers.a.ipv4,
        addresses=["172.16.16.2/30", "fd00:16::2/64"],
        peer={"addresses": ["172.16.99.1/30"], "interface": "vela9"},
    )
    config_a = policy() + asking(
        routers.b.ipv4, peer={"addresses": ["172.16.99.2/30"], "interface": "vela9"}
    )
    with ends(routers, config_a, config_b) as both:
        wait_until_up(both)
        changes = [velad.log().count("circuit_state_changed") for velad in both]
        workers = [velad.worker_pid(NAME) for velad in both]
        time.sleep(4 * KEEPALIVE_S)  # silence would be noticed

        for velad, worker in zip(both, workers, strict=True):
            entry = velad.circuit(NAME)
            assert (entry["state"], entry["origin"]) == ("up", "config")
            assert entry["last_heard_seconds"] < 3 * KEEPALIVE_S
            assert velad.worker_pid(NAME) == worker
        assert [velad.log().count("circuit_state_changed") for velad in both] == changes
        # Each end's own configuration wins.
        assert interfaces(routers.a.namespace) == {"lo", "eth0", "vela0"}
        assert interfaces(routers.b.namespace) == {"lo", "eth0", "vela0"}
        assert addresses(routers.a.namespace, NAME) == set(ADDRESSES_A)
        assert addresses(routers.b.namespace, NAME) == set(ADDRESSES_B)
        check_crossing(routers, 1471)
