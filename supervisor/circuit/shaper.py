"""The limit of what an interface sends: a qdisc of velad's, unless somebody has put another."""

from __future__ import annotations

import structlog

from vela.errors import DeviceError
from vela.linux.netlink import Netlink
from vela.linux.shaping import KIND, TokenBucketFilter
from vela.reasons import NO_REASON, Cause


class Shaper:
    """Keeps one interface limited. A qdisc that is not velad's is left alone."""

    def __init__(self, interface: str, netlink: Netlink, *, adopted: bool = False) -> None:
        """adopted: another velad may have limited it."""
        self.obstacle = NO_REASON
        """Why the interface is not limited; empty: it is, or is not to be."""
        self._interface = interface
        self._netlink = netlink
        self._wanted: TokenBucketFilter | None = None
        self._present: TokenBucketFilter | None = None
        self._unknown = adopted
        self._log = structlog.get_logger().bind(circuit=interface)

    def limit(self, rate: int | None, mtu: int) -> None:
        """Limit it to this many bits per second, None: not at all. mtu: in bytes.

        Frames that wait stay where they are.
        """
        self._wanted = None if rate is None else TokenBucketFilter.of(rate, mtu)
        if self._wanted != self._present or self._unknown:
            self.check()

    def check(self) -> None:
        """Limit it again where somebody has removed that; to be called once a second."""
        if self._wanted is None and self._present is None and not self._unknown:
            self.obstacle = NO_REASON
            return
        before = self.obstacle
        try:
            error = self._apply()
        except DeviceError as err:
            error = str(err)
        self.obstacle = Cause.RATE_NOT_LIMITED.say(error=error) if error else NO_REASON
        if self.obstacle and self.obstacle != before:
            self._log.warning("rate_not_limited", reason=str(self.obstacle))

    def _apply(self) -> str:
        """Return who is in the way; empty: nobody. Raises DeviceError."""
        name, wanted = self._interface, self._wanted
        # Asking for the qdisc itself tells all that listen for changes of qdiscs, before Linux 6.8.
        settled = wanted is not None and wanted == self._present
        if settled and self._netlink.qdisc_kind(name) == KIND:
            return ""
        root = self._netlink.root_qdisc(name)
        if root is not None and not root.is_own:
            self._present = None
            if wanted is None:
                self._unknown = False
                return ""
            return (
                f"{name} has a qdisc that velad did not make, "
                f"{root.kind} {root.major:x}:; tc qdisc delete dev {name} root removes it"
            )
        if wanted is None:
            if root is not None:
                self._netlink.remove_qdisc(name)
        elif root is None or wanted != self._present:
            self._netlink.set_qdisc(name, wanted)
        self._present, self._unknown = wanted, False
        return ""
