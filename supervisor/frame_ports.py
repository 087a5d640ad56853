"""From which UDP ports of remotes frames are taken. docs/protocol.md, 3.4."""

from __future__ import annotations

from collections.abc import Hashable

from .runtime.loop import Callback, EventLoop, Timer

FORMER_PORT_S = 3.0
"""How long a remote's former port is right beside the one that it has named: it sends from there
until it knows that it was heard, and what it sent then is still on its way. The remote holds that
port for longer (circuit/send_sockets.py), so that nobody else has it meanwhile."""


class FramePorts:
    """The ports of each claim; for a while after a change, there are two."""

    def __init__(self, loop: EventLoop, on_changed: Callback) -> None:
        """on_changed: what of() returns has changed."""
        self._loop = loop
        self._on_changed = on_changed
        self._ports: dict[Hashable, tuple[range, ...]] = {}
        self._ends: dict[Hashable, Timer] = {}

    def expect(self, claim: Hashable, port: int | None, count: int = 1) -> None:
        """Take what comes from so many ports in a row, from this one on.

        And for FORMER_PORT_S from those before them. None: from any.
        """
        before = self._ports.get(claim, ())
        ports = None if port is None else range(port, port + count)
        if ports == next(iter(before), None):
            return
        self.forget(claim)
        if ports is not None:
            self._ports[claim] = (ports, *before[:1])
            if before:
                end = self._loop.call_later(FORMER_PORT_S, lambda: self._end_change(claim))
                self._ends[claim] = end
        self._on_changed()

    def of(self, claim: Hashable) -> tuple[int, ...]:
        """Return the ports that a claim's datagrams may come from, the newest first; none: any."""
        return tuple(dict.fromkeys(port for each in self._ports.get(claim, ()) for port in each))

    def forget(self, claim: Hashable) -> None:
        """Forget a claim that is no more."""
        self._ports.pop(claim, None)
        end = self._ends.pop(claim, None)
        if end is not None:
            end.cancel()

    def _end_change(self, claim: Hashable) -> None:
        del self._ends[claim]
        self._ports[claim] = self._ports[claim][:1]
        self._on_changed()
