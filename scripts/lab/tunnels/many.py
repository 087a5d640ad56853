"""Many circuits at once between two routers: VELA's, and VXLAN devices beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from lab.errors import LabError
from lab.topology import TwoRouters
from lab.tunnels.kernel import VXLAN_OVERHEAD, vxlan_link
from lab.tunnels.tunnel import Segment, await_whole_packets, ends, port, set_up
from lab.tunnels.vela import vela_circuits

Circuits = Callable[[TwoRouters, int, int], AbstractContextManager[list[Segment]]]
"""Takes the routers, a number that no other tunnel between them has, and how many (255 at most)."""


def many_vela(engine: str) -> Circuits:
    """Return circuits that all share one velad at each end."""

    @contextmanager
    def circuits(routers: TwoRouters, number: int, count: int) -> Iterator[list[Segment]]:
        network = f"10.{number}"
        pairs = [ends(routers, one, f"v{number}-", network) for one in range(1, count + 1)]
        with vela_circuits(engine, pairs, port(number)) as segments:
            yield segments

    return circuits


@contextmanager
def many_vxlan(routers: TwoRouters, number: int, count: int) -> Iterator[list[Segment]]:
    """A device for each circuit, all on one UDP port."""
    network = f"10.{number}"
    pairs = [ends(routers, one, f"x{number}-", network) for one in range(1, count + 1)]
    mtu = routers.a.underlay.mtu - VXLAN_OVERHEAD
    try:
        segments = []
        for vni, pair in enumerate(pairs, start=1):
            for end, other in (pair, pair[::-1]):
                end.namespace.run(*vxlan_link(end, other.router.ipv4, vni, port(number)))
                set_up(end, mtu)
            segments.append(Segment(*pair, mtu))
        for segment in segments:
            await_whole_packets(segment)
        yield segments
    finally:
        for pair in pairs:
            for end in pair:
                with suppress(LabError):  # it may not have come to exist
                    end.namespace.run("ip", "link", "delete", end.interface)
