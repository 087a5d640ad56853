"""Why datagrams to remotes did not arrive, as far as this host is told: by ICMP, or by its kernel.

Anybody can send ICMP: it is shown to operators, and nothing is decided by it. Memory is bounded.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vela.address import Endpoint, IPAddress
from vela.linux.icmp import IcmpError
from vela.reasons import Cause, Reason

MAX_REMOTES = 512


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The last datagram to a remote that did not arrive."""

    what: str
    source: IPAddress | None
    """Who said it; None: the kernel of this host."""
    at: float

    @property
    def reason(self) -> Reason:
        if self.source is None:
            return Cause.SEND_REFUSED.say(error=self.what)
        return Cause.ICMP_ERROR.say(kind=self.what, source=self.source)


class UndeliveredDatagrams:
    """The last one for each remote. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._last: OrderedDict[Endpoint, Undelivered] = OrderedDict()

    def refused(self, remote: Endpoint, err: OSError, now: float) -> None:
        """Take note that the kernel did not send one."""
        self._note(remote, Undelivered(os.strerror(err.errno or 0), None, now))

    def returned(
        self, errors: Iterable[IcmpError], remotes: Collection[IPAddress], now: float
    ) -> None:
        """Take note of ICMP errors about datagrams to these remotes."""
        for each in errors:
            if each.remote.address in remotes:
                self._note(each.remote, Undelivered(f"ICMP {each.kind}", each.source, now))

    def last(self, remotes: Iterable[Endpoint], since: float) -> Undelivered | None:
        """Return the latest one to any of these endpoints; None: all may have arrived."""
        known = [found for each in remotes if (found := self._last.get(each)) is not None]
        latest = max(known, key=lambda each: each.at, default=None)
        return None if latest is None or latest.at < since else latest

    def _note(self, remote: Endpoint, undelivered: Undelivered) -> None:
        self._last[remote] = undelivered
        self._last.move_to_end(remote)
        if len(self._last) > MAX_REMOTES:
            self._last.popitem(last=False)
