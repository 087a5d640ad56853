"""A machine that gets another address while the other end still has its circuit up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.autoconfigured import Ends, asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

# Down by missed keepalives would be half a minute later.
KEEPALIVE_S = 10.0
QUICK_S = 8.0
FORMER, LATTER = ("10.201.0.1/24", "fd00:201::1/64"), ("10.201.0.101/24", "fd00:201::101/64")


@pytest.fixture(params=["ipv4", "ipv6"])
def outer(request: pytest.FixtureRequest) -> str:
    family: str = request.param
    return family


@contextmanager
def up(routers: TwoRouters, outer: str) -> Iterator[Ends]:
    remote = routers.b.ipv4 if outer == "ipv4" else routers.b.ipv6
    config = asking(remote, keepalive=KEEPALIVE_S)
    with ends(routers, config, policy()) as both:
        wait_until_up(both)
        yield both


def index(namespace: Namespace) -> int:
    shown = json.loads(namespace.run("ip", "-j", "link", "show", "dev", NAME).stdout)
    found: int = shown[0]["ifindex"]
    return found


def renumber(routers: TwoRouters) -> None:
    """Both at the same time for a moment, as far as the kernel lets them."""
    # Else those of IPv4 in the same network go with the first one.
    routers.a.namespace.sysctl("net/ipv4/conf/all/promote_secondaries", 1)
    for former, latter in zip(FORMER, LATTER, strict=True):
        routers.a.underlay.add_address(latter)
        routers.a.underlay.delete_address(former)


def assert_moved(routers: TwoRouters, both: Ends, outer: str, interface: int) -> None:
    """The same circuit is up at B, toward A's other address, and frames cross."""
    latter = LATTER[outer == "ipv6"].partition("/")[0]

    def is_moved(status: dict[str, Any]) -> bool:
        return [(each["state"], each["remote_address"]) for each in status["circuits"]] == [
            ("up", latter)
        ]

    began = time.monotonic()
    both.b.wait_for(is_moved, QUICK_S, "the circuit at the other address")
    wait_until_up(both)
    assert time.monotonic() - began < KEEPALIVE_S
    assert index(routers.b.namespace) == interface
    assert ping(routers.a.namespace, "172.16.16.2", count=2).received == 2


def test_machine_that_is_renumbered_has_its_circuit_before_keepalives_are_missed(
    routers: TwoRouters, outer: str
) -> None:
    with up(routers, outer) as both:
        interfaces = [index(router.namespace) for router in (routers.a, routers.b)]

        renumber(routers)

        assert_moved(routers, both, outer, interfaces[1])
        assert index(routers.a.namespace) == interfaces[0]
        former = FORMER[outer == "ipv6"].partition("/")[0]
        assert f"this machine no longer has the address {former}" in both.a.log()


def test_machine_that_comes_back_renumbered_has_its_circuit_before_keepalives_are_missed(
    routers: TwoRouters, outer: str
) -> None:
    """Nobody has said goodbye to B, which still takes the circuit for up."""
    with up(routers, outer) as both:
        interface = index(routers.b.namespace)
        both.a.kill()
        renumber(routers)
        assert both.b.circuit(NAME)["state"] == "up"

        both.a.start()

        assert_moved(routers, both, outer, interface)


def test_machine_that_comes_back_with_another_address_beside_its_former_one_is_not_refused(
    routers: TwoRouters,
) -> None:
    """The former one answers, and not for the session."""
    remote = routers.b.ipv4
    with ends(routers, asking(remote, keepalive=KEEPALIVE_S), policy()) as both:
        wait_until_up(both)
        interface = index(routers.b.namespace)
        both.a.kill()
        routers.a.underlay.add_address(LATTER[0])
        both.a.configure(asking(remote, keepalive=KEEPALIVE_S, bind="10.201.0.101"))

        both.a.start()

        assert_moved(routers, both, "ipv4", interface)
