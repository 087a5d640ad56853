"""Tunnels that join the bridges of two LANs; what is measured are hosts on these LANs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace

from lab.errors import LabError
from lab.link import bridge
from lab.topology import TwoRouters, bridged_host
from lab.tunnels.tunnel import End, Segment, Tunnel, await_whole_packets, ends

Join = Callable[[tuple[End, End], str, int], AbstractContextManager[tuple[int, ...]]]
"""Takes the routers' ends, the name of the bridge of each, and the number of the tunnel.

Makes the interfaces of these ends, which are then ports of the bridges, and yields the processes
that forward. Entering raises as that of a Tunnel does.
"""


def bridged(join: Join, mtu: int, *, fragments: bool = False) -> Tunnel:
    """Return the tunnel between a host behind each router.

    mtu: of bridges and hosts, bytes; fragments: IP cuts what hosts send of that size.
    """

    @contextmanager
    def tunnel(routers: TwoRouters, number: int) -> Iterator[Segment]:
        name = f"br{number}"
        pair = ends(routers, number, "tunnel")
        with ExitStack() as stack:
            hosts = []
            for end in pair:
                made = bridge(end.namespace, name)
                stack.callback(_delete, end, name)
                made.set_mtu(mtu)
                host = stack.enter_context(bridged_host(end.router, name, f"{end.address}/24"))
                for interface in (host.router_port, host.interface):
                    interface.set_mtu(mtu)
                hosts.append(replace(end, interface=host.interface.name, host=host.namespace))
            forwarders = stack.enter_context(join(pair, name, number))
            a, b = hosts
            segment = Segment(a, b, mtu, forwarders, fragments)
            await_whole_packets(segment)
            yield segment

    return tunnel


def _delete(end: End, name: str) -> None:
    with suppress(LabError):
        end.namespace.run("ip", "link", "delete", name)
