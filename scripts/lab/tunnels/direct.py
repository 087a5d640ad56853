"""No tunnel: the cable itself, what all others are built on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab.topology import TwoRouters
from lab.tunnels.tunnel import End, Segment


@contextmanager
def direct(routers: TwoRouters, number: int) -> Iterator[Segment]:
    a, b = (End(router, router.underlay.name, router.ipv4) for router in (routers.a, routers.b))
    yield Segment(a, b, routers.a.underlay.mtu)
