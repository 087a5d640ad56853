"""The addresses and routes of this host, for what is judged by them."""

from __future__ import annotations

import socket
from collections.abc import Callable

from vela.address import IPNetwork
from vela.linux.rtnetlink import Rtnetlink

from .facts import HostFacts, KnownAddress, KnownRoute

# Nobody makes routes so fast that it would matter; other machines can ask often.
FACTS_S = 1.0


class HostNetwork:
    """Asks the kernel, at most once a second."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._facts = HostFacts()
        self._wanted: tuple[IPNetwork, ...] = ()
        self._asked_at: float | None = None
        self._complete = False

    def facts(self, wanted: tuple[IPNetwork, ...]) -> HostFacts:
        """Return what may matter to who wants addresses of these networks. Raises DeviceError."""
        now = self._now()
        known = self._asked_at is not None and now - self._asked_at < FACTS_S
        # Hundreds of circuits are made in a row, and each wants to know.
        if not (known and (self._complete or wanted == self._wanted)):
            self._facts, self._complete = _ask(wanted)
            self._wanted, self._asked_at = wanted, now
        return self._facts


def _ask(wanted: tuple[IPNetwork, ...]) -> tuple[HostFacts, bool]:
    """Return the facts, and whether they are the same for other networks."""
    kernel = Rtnetlink()
    try:
        addresses, (routes, complete) = kernel.addresses(), kernel.routes(wanted)
    finally:
        kernel.close()
    names = dict(socket.if_nameindex())
    facts = HostFacts(
        tuple(
            KnownAddress(each.address, each.subnet, names.get(each.index, "")) for each in addresses
        ),
        tuple(
            KnownRoute(each.network, "" if each.index is None else names.get(each.index, ""))
            for each in routes
        ),
    )
    return facts, complete
