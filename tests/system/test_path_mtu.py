"""A path that narrows on the way, where nobody says so, and widens again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lab.autoconfigured import Ends, asking, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.link import Interface, veth
from lab.load import iperf3, ping
from lab.namespace import Namespace

pytestmark = pytest.mark.needs_net_admin

OVERHEAD = {4: 29, 6: 49}
# Narrowed to 1300, a path over IPv6 carries an MTU that IPv6 inside cannot have: it has 1280 then,
# and larger frames than the path carries travel in pieces.
LEAST_MTU = 1280
NO_ICMP = """
table inet silent {
  chain out {
    type filter hook output priority 0;
    icmp type destination-unreachable drop
    icmpv6 type packet-too-big drop
  }
}
"""


@dataclass(frozen=True, slots=True)
class Routed:
    """A and B, with a router between them that says nothing of what it drops."""

    a: Namespace
    middle: Namespace
    b: Namespace
    version: int

    @property
    def remote(self) -> str:
        return self.address(2)

    def address(self, number: int) -> str:
        return f"10.20{number}.0.1" if self.version == 4 else f"fd00:20{number}::1"

    def narrow(self, mtu: int) -> None:
        """Let packets to both ends have this size at most on the way, in bytes."""
        for number in (1, 2):
            prefix = 32 if self.version == 4 else 128
            self.middle.run(
                *("ip", f"-{self.version}", "route", "replace", f"{self.address(number)}/{prefix}"),
                *("dev", f"eth{number}", "mtu", "lock", str(mtu)),
            )


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def routed(request: pytest.FixtureRequest) -> Iterator[Routed]:
    with Namespace("a") as a, Namespace("middle") as middle, Namespace("b") as b:
        for number, namespace in ((1, a), (2, b)):
            near, far = veth(namespace, "eth0", middle, f"eth{number}")
            for each, host in ((near, 1), (far, 254)):
                each.add_address(f"10.20{number}.0.{host}/24")
                each.add_address(f"fd00:20{number}::{host}/64")
                _cut_nothing(each)
            for via in (f"10.20{number}.0.254", f"fd00:20{number}::254"):
                namespace.run("ip", "route", "add", "default", "via", via)
        middle.sysctl("net/ipv4/ip_forward", 1)
        middle.sysctl("net/ipv6/conf/all/forwarding", 1)
        middle.run("nft", "-f", "-", stdin=NO_ICMP)
        yield Routed(a, middle, b, request.param)


def _cut_nothing(interface: Interface) -> None:
    """Let each packet cross as large as it is: a router looks at what GSO joined differently."""
    interface.namespace.run(
        *("ethtool", "-K", interface.name, "tso", "off", "gso", "off", "gro", "off"),
        *("tx-udp-segmentation", "off"),
    )


@pytest.fixture
def both(routed: Routed) -> Iterator[Ends]:
    allowed = policy(sources=["10.200.0.0/14", "fd00::/16"])
    with Velad(routed.b, allowed) as b, Velad(routed.a, asking(routed.remote)) as a:
        found = Ends(a, b)
        wait_until_up(found)
        yield found


def await_path_mtu(both: Ends, mtu: int, timeout_s: float) -> None:
    for velad in both:
        velad.wait_for(
            lambda status: status["circuits"][0]["path_mtu"] == mtu, timeout_s, f"{mtu} bytes"
        )


def test_path_that_narrows_silently_is_followed_and_so_is_its_widening(
    routed: Routed, both: Ends, figure: Callable[[str], None]
) -> None:
    await_path_mtu(both, 1500, 5)
    routed.narrow(1300)
    narrowed = time.time()
    # Frames of full size: what crosses, crosses in the pieces that the path carries.
    ping(routed.a, "172.16.16.2", count=20, interval_s=0.1, size=1400)
    await_path_mtu(both, 1300, 5)
    found = both.a.logged_at("path_mtu_changed", narrowed, path_mtu="1300")

    expected = max(1300 - OVERHEAD[routed.version], LEAST_MTU)
    for velad in both:
        assert velad.circuit(NAME)["state"] == "up"
        velad.wait_for(lambda status: status["circuits"][0]["mtu"] == expected, 5, "the MTU")
    for size in (1400, expected):
        for address in ("172.16.16.2", "fd00:16::2"):
            pings = ping(routed.a, address, count=5, interval_s=0.1, size=size)
            assert pings.received == 5, pings.output
    assert iperf3(routed.b, routed.a, "172.16.16.2", seconds=1).received_bits_per_s > 1e6

    routed.narrow(1500)
    await_path_mtu(both, 1500, 15)
    for velad in both:
        velad.wait_for(
            lambda status: status["circuits"][0]["mtu"] == 1500 - OVERHEAD[routed.version],
            5,
            "the MTU",
        )
        assert velad.log().count("circuit_state_changed") <= 2
    figure(f"IPv{routed.version}: narrowed, and found so {found - narrowed:.1f} s later")


def test_path_that_is_narrow_from_the_beginning_is_found(routed: Routed) -> None:
    routed.narrow(1400)
    with (
        Velad(routed.b, policy(sources=["10.200.0.0/14", "fd00::/16"])) as b,
        Velad(routed.a, asking(routed.remote)) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)
        await_path_mtu(both, 1400, 10)

        for address in ("172.16.16.2", "fd00:16::2"):
            pings = ping(routed.a, address, count=5, interval_s=0.1, size=1400)
            assert pings.received == 5, pings.output
