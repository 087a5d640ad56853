"""vela.linux.netlink: links, addresses and bridges, in namespaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_interface
from typing import Any

import pytest
from exhaustion import no_descriptors

from lab.namespace import Namespace
from vela.errors import DeviceError
from vela.linux.netlink import Netlink
from vela.linux.tap import Tap

pytestmark = pytest.mark.needs_net_admin

MAC = bytes.fromhex("02005e100001")
ADDRESSES = (ip_interface("172.16.16.1/30"), ip_interface("fd00:16::1/64"))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """With duplicate address detection on, as on a real machine."""
    with Namespace("netlink") as made:
        made.sysctl("net/ipv6/conf/default/accept_dad", 1)
        with made.entered():
            tap = Tap("vela0", MAC, 1471)
        tap.set_carrier(True)
        yield made
        tap.close()


@pytest.fixture
def netlink(namespace: Namespace) -> Iterator[Netlink]:
    with namespace.entered():
        made = Netlink()
        with closing(made):
            yield made


def link(namespace: Namespace, name: str) -> dict[str, Any]:
    shown = namespace.run("ip", "-json", "address", "show", "dev", name).stdout
    found: dict[str, Any] = json.loads(shown)[0]
    return found


def gso_max_size(namespace: Namespace) -> int:
    shown = namespace.run("ip", "-json", "-details", "link", "show", "dev", "vela0").stdout
    limit: int = json.loads(shown)[0]["gso_max_size"]
    return limit


def test_super_frames_are_limited_from_the_start_and_later(
    namespace: Namespace, netlink: Netlink
) -> None:
    assert gso_max_size(namespace) == 65536

    netlink.bring_up("vela0", (), arp=True, gso_max_size=62757)
    assert gso_max_size(namespace) == 62757

    netlink.set_gso_max_size("vela0", 62754)
    assert gso_max_size(namespace) == 62754
    with pytest.raises(DeviceError, match=r"^vela0: cannot limit its GSO frames: "):
        netlink.set_gso_max_size("vela0", 1 << 24)


def test_bring_up_gives_addresses_that_are_usable_at_once(
    namespace: Namespace, netlink: Netlink
) -> None:
    netlink.bring_up("vela0", ADDRESSES, arp=True)

    shown = link(namespace, "vela0")
    own = [each for each in shown["addr_info"] if each["scope"] == "global"]
    assert [(each["local"], each["prefixlen"]) for each in own] == [
        ("172.16.16.1", 30),
        ("fd00:16::1", 64),
    ]
    assert not any(each.get("tentative") for each in own)
    assert {"UP", "LOWER_UP"} <= set(shown["flags"])
    assert "NOARP" not in shown["flags"]
    assert shown["txqlen"] == 1000


def test_bring_up_without_arp_asks_nobody(namespace: Namespace, netlink: Netlink) -> None:
    netlink.bring_up("vela0", (), arp=False)

    assert "NOARP" in link(namespace, "vela0")["flags"]


def test_address_that_is_there_already_is_an_error_that_names_it(netlink: Netlink) -> None:
    with pytest.raises(DeviceError) as caught:
        netlink.bring_up("vela0", ADDRESSES[:1] * 2, arp=True)

    assert str(caught.value) == "vela0: cannot add address 172.16.16.1/30: File exists"


def test_interface_that_is_not_there_is_an_error_that_names_it(netlink: Netlink) -> None:
    with pytest.raises(DeviceError) as caught:
        netlink.bring_up("vela9", (), arp=True)

    assert str(caught.value) == "vela9: there is no interface of this name"


def test_join_bridge_makes_a_port_and_tells_the_mtu_before(
    namespace: Namespace, netlink: Netlink
) -> None:
    namespace.run("ip", "link", "add", "br-lan", "mtu", "1500", "type", "bridge")

    assert netlink.join_bridge("vela0", "br-lan") == 1500
    assert link(namespace, "vela0")["master"] == "br-lan"


def test_bridge_keeps_its_mtu_mac_and_addresses_when_a_port_joins_and_leaves(
    namespace: Namespace, netlink: Netlink
) -> None:
    """Unless told, a bridge takes the least MTU and the lowest MAC address of its ports."""
    namespace.run("ip", "link", "add", "br-lan", "type", "bridge")
    namespace.run("ip", "link", "add", "lan0", "type", "veth", "peer", "lan1")
    namespace.run("ip", "link", "set", "lan0", "address", "52:54:00:11:22:33", "master", "br-lan")
    namespace.run("ip", "link", "set", "br-lan", "up")
    namespace.run("ip", "address", "add", "fd09::1/64", "dev", "br-lan", "nodad")
    with namespace.entered(), closing(Tap("vela9", bytes.fromhex("000000000001"), 68)):

        def look() -> tuple[int, str, bool]:
            shown = link(namespace, "br-lan")
            addresses = [each["local"] for each in shown["addr_info"]]
            return shown["mtu"], shown["address"], "fd09::1" in addresses

        before = look()
        assert before == (1500, "52:54:00:11:22:33", True)

        netlink.join_bridge("vela9", "br-lan")

        assert look() == before
    assert look() == before


def test_join_bridge_of_what_is_none_is_an_error(namespace: Namespace, netlink: Netlink) -> None:
    with pytest.raises(DeviceError, match=r"^vela0: cannot join it to lo: "):
        netlink.join_bridge("vela0", "lo")
    with pytest.raises(DeviceError, match=r"^br9: there is no interface of this name$"):
        netlink.join_bridge("vela0", "br9")

    assert "master" not in link(namespace, "vela0")


def test_join_bridge_needs_no_further_descriptor(namespace: Namespace, netlink: Netlink) -> None:
    namespace.run("ip", "link", "add", "br0", "mtu", "1400", "type", "bridge")
    with no_descriptors():
        assert netlink.join_bridge("vela0", "br0") == 1400

    assert link(namespace, "vela0")["master"] == "br0"


def addresses(namespace: Namespace) -> set[str]:
    info = link(namespace, "vela0")["addr_info"]
    return {f"{each['local']}/{each['prefixlen']}" for each in info if each["scope"] != "link"}


def test_changed_addresses_leave_those_of_others_and_their_routes(
    namespace: Namespace, netlink: Netlink
) -> None:
    netlink.bring_up("vela0", ADDRESSES, arp=True)
    # The first one of a subnet takes the others along when it goes, if the kernel is left alone.
    for foreign in ("172.16.16.2/30", "10.9.0.1/24"):
        namespace.run("ip", "address", "add", foreign, "dev", "vela0")
    namespace.run("ip", "route", "add", "10.8.0.0/16", "via", "10.9.0.9", "dev", "vela0")

    new = ip_interface("fd00:17::1/64")
    netlink.change_addresses("vela0", ADDRESSES, (new,))

    assert addresses(namespace) == {"172.16.16.2/30", "10.9.0.1/24", "fd00:17::1/64"}
    assert "10.8.0.0/16" in namespace.run("ip", "route", "show", "dev", "vela0").stdout


def test_address_of_the_same_subnet_takes_the_place_of_another(
    namespace: Namespace, netlink: Netlink
) -> None:
    netlink.bring_up("vela0", ADDRESSES[:1], arp=True)

    netlink.change_addresses("vela0", ADDRESSES[:1], (ip_interface("172.16.16.2/30"),))

    assert addresses(namespace) == {"172.16.16.2/30"}


def test_change_of_addresses_that_somebody_made_already_is_none(
    namespace: Namespace, netlink: Netlink
) -> None:
    netlink.bring_up("vela0", ADDRESSES[:1], arp=True)

    netlink.change_addresses("vela0", ADDRESSES[1:], ADDRESSES[:1])

    assert addresses(namespace) == {"172.16.16.1/30"}


def test_address_that_the_kernel_refuses_is_an_error_that_names_it(
    namespace: Namespace, netlink: Netlink
) -> None:
    netlink.bring_up("vela0", (), arp=True)
    namespace.sysctl("net/ipv6/conf/vela0/disable_ipv6", 1)

    with pytest.raises(DeviceError, match="vela0: cannot add address fd00:16::1/64: "):
        netlink.change_addresses("vela0", (), ADDRESSES)


def test_port_leaves_its_bridge(namespace: Namespace, netlink: Netlink) -> None:
    namespace.run("ip", "link", "add", "br0", "type", "bridge")
    netlink.join_bridge("vela0", "br0")
    assert link(namespace, "vela0")["master"] == "br0"

    netlink.leave_bridge("vela0")

    assert "master" not in link(namespace, "vela0")


def test_alias_and_arp_are_switched_on_and_off(namespace: Namespace, netlink: Netlink) -> None:
    def look() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            namespace.run("ip", "-j", "link", "show", "vela0").stdout
        )[0]
        return found

    netlink.set_alias("vela0", "to Zürich")
    netlink.set_arp("vela0", False)
    shown = look()
    assert shown["ifalias"] == "to Zürich"
    assert "NOARP" in shown["flags"]

    netlink.set_alias("vela0", "")
    netlink.set_arp("vela0", True)
    shown = look()
    assert "ifalias" not in shown
    assert "NOARP" not in shown["flags"]
