"""Tunnels that are devices of the kernel: VXLAN (RFC 7348) and GRETAP (RFC 2784)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lab.errors import LabError
from lab.topology import TwoRouters
from lab.tunnels.tunnel import (
    ETHERNET,
    IPV4_UDP,
    End,
    Segment,
    Tunnel,
    UnavailableError,
    await_whole_packets,
    ends,
    port,
    set_up,
)

Link = Callable[[End, str, int], list[str]]
"""Takes an end, the address of the other one and the number of the tunnel; returns a command."""

VXLAN_OVERHEAD = IPV4_UDP + 8 + ETHERNET  # RFC 7348, section 5
GRETAP_OVERHEAD = 20 + 4 + ETHERNET  # IPv4, GRE without key (RFC 2784, section 2.1), Ethernet


def vxlan_link(end: End, remote: str, vni: int, udp_port: int) -> list[str]:
    """Return the command that makes a VXLAN device for the end."""
    return [
        *("ip", "link", "add", end.interface, "type", "vxlan", "id", str(vni)),
        *("local", end.router.ipv4, "remote", remote, "dstport", str(udp_port)),
    ]


def _kernel(name: str, overhead: int, link: Link) -> Tunnel:
    @contextmanager
    def tunnel(routers: TwoRouters, number: int) -> Iterator[Segment]:
        pair = ends(routers, number, name)
        mtu = routers.a.underlay.mtu - overhead
        with _links(pair, number, link):
            for end in pair:
                set_up(end, mtu)
            segment = Segment(*pair, mtu)
            await_whole_packets(segment)
            yield segment

    return tunnel


@contextmanager
def _links(pair: tuple[End, End], number: int, link: Link) -> Iterator[None]:
    """Make the device of each end, down, for as long as the block lasts."""
    try:
        for end, other in (pair, pair[::-1]):
            done = end.namespace.run(*link(end, other.router.ipv4, number), check=False)
            if done.returncode:
                raise UnavailableError(f"the kernel makes none: {done.stderr.strip()}")
        yield
    finally:
        for end in pair:
            with suppress(LabError):  # it may not have come to exist
                end.namespace.run("ip", "link", "delete", end.interface)


@contextmanager
def vxlan_bridged(pair: tuple[End, End], bridge: str, number: int) -> Iterator[tuple[int, ...]]:
    """Join two bridges by VXLAN: see Join."""
    with _links(pair, number, _vxlan):
        for end in pair:
            run = end.namespace.run
            run("ip", "link", "set", "dev", end.interface, "master", bridge)
            mtu = end.router.underlay.mtu - VXLAN_OVERHEAD
            run("ip", "link", "set", "dev", end.interface, "mtu", str(mtu), "up")
        yield ()


def _vxlan(end: End, remote: str, number: int) -> list[str]:
    return vxlan_link(end, remote, number, port(number))


def _gretap(end: End, remote: str, number: int) -> list[str]:
    return [
        *("ip", "link", "add", end.interface, "type", "gretap"),
        *("local", end.router.ipv4, "remote", remote),
    ]


vxlan = _kernel("vxlan", VXLAN_OVERHEAD, _vxlan)
# Not gretap0: the kernel makes one of that name by itself.
gretap = _kernel("gre", GRETAP_OVERHEAD, _gretap)
