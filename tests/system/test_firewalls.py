"""Stateful firewalls between the ends: a circuit is up only if frames cross, and then they do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Ends, asking, policy
from lab.circuit import ADDRESSES_B, NAME
from lab.daemon import Velad
from lab.link import Interface, veth
from lab.load import ping
from lab.namespace import Namespace
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

A, B = "10.202.0.1", "10.201.0.2"
LISTENING = 48621
FELL_BACK = "frames leave from the listening port"
NO_FRAMES = "control messages cross, and frames do not"


@dataclass(frozen=True, slots=True)
class Firewall:
    """A router before one end."""

    namespace: Namespace
    inside: Interface
    """Toward the end that it protects."""

    def protect(self) -> None:
        """Let through what comes from inside, and answers to that."""
        accepted = f"ct state established,related accept\n  iifname {self.inside.name} accept\n"
        self.filter(accepted)

    def filter(self, rules: str) -> None:
        """Let through what these rules accept."""
        self.open()
        chain = "type filter hook forward priority 0; policy drop;"
        text = f"table inet filter {{\n chain forward {{\n  {chain}\n  {rules} }}\n}}\n"
        self.namespace.run("nft", "-f", "-", stdin=text)

    def open(self) -> None:
        self.namespace.run("nft", "flush", "ruleset")

    def forget(self) -> None:
        """Forget all connections."""
        self.namespace.run("conntrack", "-F")


@dataclass(frozen=True, slots=True)
class Filtered:
    """A, B, and a firewall before each, which is open at first."""

    a: Namespace
    b: Namespace
    before_a: Firewall
    before_b: Firewall


@pytest.fixture
def filtered() -> Iterator[Filtered]:
    with (
        Namespace("a") as a,
        Namespace("r") as near,
        Namespace("s") as far,
        Namespace("b") as b,
    ):
        for side, router, address, gateway in (
            (a, near, A, "10.202.0.254"),
            (b, far, B, "10.201.0.254"),
        ):
            end, inside = veth(side, "eth0", router, "inside")
            end.add_address(f"{address}/24")
            inside.add_address(f"{gateway}/24")
            side.run("ip", "route", "add", "default", "via", gateway)
            router.sysctl("net/ipv4/ip_forward", 1)
        ends = veth(near, "outside", far, "outside")
        for router, outside, address, other in (
            (near, ends[0], "10.203.0.1", "10.203.0.2"),
            (far, ends[1], "10.203.0.2", "10.203.0.1"),
        ):
            outside.add_address(f"{address}/24")
            router.run("ip", "route", "add", "default", "via", other)
        before = [Firewall(each, Interface(each, "inside")) for each in (near, far)]
        yield Filtered(a, b, *before)


def wait_for(velad: Velad, state: str, reason: str, timeout_s: float = 15.0) -> dict[str, Any]:
    """Wait until a circuit has a state, and a reason that contains this; empty: none."""

    def met() -> dict[str, Any]:
        found = velad.circuit(NAME)
        fits = reason in found["reason"] if reason else not found["reason"]
        return found if found["state"] == state and fits else {}

    return eventually(met, timeout_s, f"{state}: {reason}: {velad.log_tail()}")


def assert_up(filtered: Filtered, ends: Ends, reason: str) -> None:
    for velad in ends:
        shown = wait_for(velad, "up", reason)
        assert (shown["source_port"] == LISTENING) == (reason == FELL_BACK)
    for namespace, address in ((filtered.a, "172.16.16.2"), (filtered.b, "172.16.16.1")):
        pings = ping(namespace, address, count=3, interval_s=0.2)
        assert pings.received == 3, pings.output


def carrier(namespace: Namespace) -> bool:
    return "NO-CARRIER" not in namespace.run("ip", "link", "show", "dev", NAME).stdout


@pytest.fixture(params=["clear", "encrypted"])
def ends(request: pytest.FixtureRequest, filtered: Filtered, tmp_path: Path) -> Iterator[Ends]:
    """velad, not started; B sets up what A asks for."""
    settings: dict[str, Any] = {}
    if request.param == "encrypted":
        key = tmp_path / "key"
        key.write_text("a key of more than thirty-two bytes, as it should be")
        key.chmod(0o600)
        settings = {"key_file": str(key), "encryption": "required"}
    a = Velad(filtered.a, asking(B, **settings))
    b = Velad(filtered.b, policy(sources=["10.202.0.0/24"], **settings))
    try:
        yield Ends(a, b)
    finally:
        a.close()
        b.close()


def test_circuit_without_a_firewall_uses_ports_of_its_own(filtered: Filtered, ends: Ends) -> None:
    ends.b.start()
    ends.a.start()

    assert_up(filtered, ends, "")
    eventually(
        lambda: all(velad.circuit(NAME)["delay_ms"]["p50"] is not None for velad in ends),
        10,
        "round trips in the status",
    )


def test_circuit_through_a_firewall_before_the_initiator_falls_back_to_the_listening_port(
    filtered: Filtered, ends: Ends
) -> None:
    filtered.before_a.protect()
    ends.b.start()
    ends.a.start()

    assert_up(filtered, ends, FELL_BACK)

    filtered.before_a.forget()
    # What A sends opens the firewall again, one keepalive later.
    eventually(lambda: ping(filtered.b, "172.16.16.1", count=1).received, 5, "a ping from B")
    assert_up(filtered, ends, FELL_BACK)


def test_circuit_through_a_firewall_before_the_responder_never_begins_and_names_a_firewall(
    filtered: Filtered, ends: Ends
) -> None:
    filtered.before_b.protect()
    ends.b.start()
    ends.a.start()

    wait_for(ends.a, "connecting", "firewall")
    assert not carrier(filtered.a)


def test_firewall_that_appears_is_noticed_and_a_way_through_it_found(
    filtered: Filtered, ends: Ends
) -> None:
    ends.b.start()
    ends.a.start()
    assert_up(filtered, ends, "")

    filtered.before_a.protect()
    filtered.before_a.forget()

    for velad in ends:
        wait_for(velad, "up", FELL_BACK, 20)
    assert_up(filtered, ends, FELL_BACK)


def test_circuit_whose_frames_no_port_gets_through_is_not_up_and_comes_up_when_one_does(
    filtered: Filtered, ends: Ends
) -> None:
    # By the first byte behind the UDP header: control messages begin with 0.
    filtered.before_a.filter("icmp type echo-request accept\n  udp length > 8 @ih,0,8 0 accept\n")
    ends.b.start()
    ends.a.start()

    for velad in ends:
        wait_for(velad, "connecting", NO_FRAMES)
    assert not carrier(filtered.a)
    assert not carrier(filtered.b)

    filtered.before_a.open()
    assert_up(filtered, ends, FELL_BACK)


def test_circuit_whose_frames_are_dropped_later_goes_down_and_comes_up_again(
    filtered: Filtered, ends: Ends
) -> None:
    ends.b.start()
    ends.a.start()
    assert_up(filtered, ends, "")

    filtered.before_a.filter("udp length > 8 @ih,0,8 0 accept\n")
    for velad in ends:
        wait_for(velad, "down", NO_FRAMES)
    assert not carrier(filtered.a)
    assert not carrier(filtered.b)

    filtered.before_a.open()
    for velad in ends:
        velad.wait_for_state(NAME, "up")
    assert ping(filtered.a, "172.16.16.2", count=3, interval_s=0.2).received == 3


def test_circuit_through_firewalls_before_both_ends_comes_up_where_both_ask(
    filtered: Filtered,
) -> None:
    """Each lets only answers in. What both ends send from the port that they send to are some."""
    filtered.before_a.protect()
    filtered.before_b.protect()
    config_a = asking(B, peer={"addresses": []})
    config_b = asking(A, addresses=list(ADDRESSES_B), peer={"addresses": []})
    with Velad(filtered.b, config_b) as b, Velad(filtered.a, config_a) as a:
        assert_up(filtered, Ends(a, b), FELL_BACK)

        filtered.before_a.forget()
        filtered.before_b.forget()
        eventually(lambda: ping(filtered.b, "172.16.16.1", count=1).received, 10, "a ping")
        assert_up(filtered, Ends(a, b), FELL_BACK)
