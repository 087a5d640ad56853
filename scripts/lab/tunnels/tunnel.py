"""What a tunnel is to those who measure it: made between two routers, or not to be had."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lab.load import ping
from lab.namespace import Namespace
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

READY_TIMEOUT_S = 15.0
MAX_TUNNELS = 100

# What a datagram over IPv4 costs besides what is in it. All tunnels get the
# MTU at which nothing is fragmented.
IPV4_UDP = 20 + 8
ETHERNET = 14


class UnavailableError(Exception):
    """This machine cannot have that tunnel: a program or a device of the kernel is missing."""


@dataclass(frozen=True, slots=True)
class End:
    """One side of a tunnel: a router, or a host on its LAN."""

    router: Router
    interface: str
    address: str
    host: Namespace | None = None

    @property
    def namespace(self) -> Namespace:
        return self.host or self.router.namespace


@dataclass(frozen=True, slots=True)
class Segment:
    """A tunnel that is up: the two ends of what it joins, and who forwards its frames."""

    a: End
    b: End
    mtu: int
    """Of both interfaces, bytes."""
    forwarders: tuple[int, ...] = ()
    """Process ids, of both ends; none: the kernel forwards."""
    fragments: bool = False
    """IP is to cut what carries a packet of that MTU."""

    @property
    def ends(self) -> tuple[End, End]:
        return (self.a, self.b)


Tunnel = Callable[[TwoRouters, int], AbstractContextManager[Segment]]
"""Takes the routers and a number below MAX_TUNNELS that no other tunnel between them has.

Entering raises UnavailableError where the tunnel cannot be had, LabError where it fails.
"""


def ends(routers: TwoRouters, number: int, name: str, network: str = "10.220") -> tuple[End, End]:
    """Return both ends: interface NAMEnumber, addresses network.number.1 and .2."""
    a, b = (
        End(router, f"{name}{number}", f"{network}.{number}.{host}")
        for host, router in enumerate((routers.a, routers.b), start=1)
    )
    return a, b


def port(number: int) -> int:
    """Return the tunnel's UDP port."""
    return 20000 + number


def need_program(name: str) -> None:
    """Raise UnavailableError unless it is on the PATH."""
    if shutil.which(name) is None:
        raise UnavailableError(f"the program {name} is not installed")


def set_up(end: End, mtu: int) -> None:
    """Give the end's interface, which exists, its MTU and address."""
    run = end.namespace.run
    run("ip", "link", "set", "dev", end.interface, "mtu", str(mtu), "up")
    run("ip", "address", "add", f"{end.address}/24", "dev", end.interface)


def await_interface(end: End) -> None:
    """Wait for the program that makes the end's interface to make it."""
    show = ("ip", "link", "show", "dev", end.interface)
    eventually(
        lambda: end.namespace.run(*show, check=False).returncode == 0,
        READY_TIMEOUT_S,
        f"{end.interface} in {end.namespace.name}",
    )


def await_whole_packets(segment: Segment) -> None:
    """Wait until packets of the MTU, not to be fragmented, are answered."""

    def answered() -> bool:
        tried = ping(
            segment.a.namespace,
            segment.b.address,
            count=1,
            size=segment.mtu,
            dont_fragment=True,
            timeout_s=1.0,
        )
        return tried.received == 1

    eventually(
        answered,
        READY_TIMEOUT_S,
        f"{segment.b.address} to answer a packet of {segment.mtu} bytes",
    )


def fragments_made(namespace: Namespace) -> int:
    """Return how many IPv4 fragments the namespace has sent so far."""
    text = namespace.run("cat", "/proc/net/snmp").stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Ip: "))
    return int(dict(zip(names, values, strict=True))["FragCreates"])
