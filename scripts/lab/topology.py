"""Ready-made networks: routers on one underlay, and hosts on the LANs behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from itertools import count

from lab.link import ETHERNET_MTU, Interface, Regime, bridge, veth
from lab.namespace import Namespace

UNDERLAY = "eth0"

_lan_numbers = count()


@dataclass(frozen=True, slots=True)
class Router:
    """A namespace with one underlay interface and its addresses, without prefix."""

    namespace: Namespace
    underlay: Interface
    ipv4: str
    ipv6: str

    def set_route_mtu(self, remote: str, mtu: int) -> None:
        """Let the way to one host of the underlay, by IPv4, have another MTU than the interface."""
        self.namespace.run(
            *("ip", "route", "replace", f"{remote}/32", "dev", self.underlay.name),
            *("mtu", str(mtu)),
        )


@dataclass(frozen=True, slots=True)
class TwoRouters:
    """A and B, joined by a cable."""

    a: Router
    b: Router

    def set_regime(self, regime: Regime) -> None:
        self.a.underlay.set_regime(regime)
        self.b.underlay.set_regime(regime)


@dataclass(frozen=True, slots=True)
class ThreeRouters:
    """A, B and C on one switch; ports are the switch's ends of their cables."""

    a: Router
    b: Router
    c: Router
    switch: Namespace
    ports: tuple[Interface, Interface, Interface]


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace on a router's LAN: its own interface, and the router's end of the cable."""

    namespace: Namespace
    interface: Interface
    router_port: Interface


def router(namespace: Namespace, underlay: Interface, number: int) -> Router:
    """Give an underlay interface the addresses of the router with this number, 1 for A."""
    underlay.add_address(f"10.201.0.{number}/24")
    underlay.add_address(f"fd00:201::{number}/64")
    return Router(namespace, underlay, f"10.201.0.{number}", f"fd00:201::{number}")


@contextmanager
def two_routers(mtu: int = ETHERNET_MTU, regime: Regime = Regime.OFFLOAD) -> Iterator[TwoRouters]:
    """A (10.201.0.1/24, fd00:201::1/64) and B (.2, ::2); mtu in bytes."""
    with Namespace("a") as a, Namespace("b") as b:
        a_end, b_end = veth(a, UNDERLAY, b, UNDERLAY, mtu)
        routers = TwoRouters(router(a, a_end, 1), router(b, b_end, 2))
        routers.set_regime(regime)
        yield routers


@contextmanager
def three_routers(mtu: int = ETHERNET_MTU) -> Iterator[ThreeRouters]:
    """A (10.201.0.1/24, fd00:201::1/64), B (.2, ::2) and C (.3, ::3) on a switch."""
    with ExitStack() as stack:
        switch = stack.enter_context(Namespace("switch"))
        routers, ports = [], []
        for number, label in enumerate("abc", start=1):
            namespace = stack.enter_context(Namespace(label))
            underlay, port = veth(namespace, UNDERLAY, switch, f"port{number}", mtu)
            routers.append(router(namespace, underlay, number))
            ports.append(port)
        bridge(switch, "br0", *ports)
        a, b, c = routers
        yield ThreeRouters(a, b, c, switch, (ports[0], ports[1], ports[2]))


@contextmanager
def bridged_host(router: Router, bridge_name: str, *addresses: str) -> Iterator[Host]:
    """A host whose cable is a port of the router's bridge, which must exist."""
    with _host(router, addresses) as host:
        router.namespace.run(
            "ip", "link", "set", "dev", host.router_port.name, "master", bridge_name
        )
        yield host


@contextmanager
def routed_host(router: Router, gateway: str, address: str) -> Iterator[Host]:
    """A host with a default route by way of the router, which forwards.

    gateway is the router's address on that LAN, address the host's; both with
    prefix, of one family.
    """
    with _host(router, (address,)) as host:
        host.router_port.add_address(gateway)
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            router.namespace.sysctl(key, 1)
        host.namespace.run("ip", "route", "add", "default", "via", str(ip_interface(gateway).ip))
        yield host


@contextmanager
def _host(router: Router, addresses: tuple[str, ...]) -> Iterator[Host]:
    with Namespace("host") as namespace:
        port_name = f"lan{next(_lan_numbers)}"
        interface, port = veth(namespace, "eth0", router.namespace, port_name)
        for address in addresses:
            interface.add_address(address)
        yield Host(namespace, interface, port)
