"""Tells circuits that somebody changed their interface."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vela.linux.rtnetlink import LinkMonitor

from ..runtime.burst import Burst, Pause
from ..runtime.loop import EventLoop

# Interfaces change in crowds, as when velad starts; and whoever changes one without a pause is not
# to keep velad busy. A look that mends takes 0.2 ms: at most a twentieth of a CPU.
LOOK_INTERVAL_S = 0.005

Changed = Callable[[float], object]
"""Given the time, in monotonic seconds."""


class Links:
    """Interfaces that are looked after, by index."""

    def __init__(self, loop: EventLoop) -> None:
        """Raises DeviceError."""
        self._loop = loop
        self._watched: dict[int, Changed] = {}
        self._changed: set[int] = set()
        self._looks = Burst(loop, Pause(LOOK_INTERVAL_S))
        self._monitor = LinkMonitor()
        loop.watch(self._monitor.fileno(), self._on_changes)

    def freeze(self) -> None:
        """Hear of nothing until thaw()."""
        self._loop.unwatch(self._monitor.fileno())

    def thaw(self) -> None:
        self._loop.watch(self._monitor.fileno(), self._on_changes)

    def close(self) -> None:
        self._loop.unwatch(self._monitor.fileno())
        self._monitor.close()

    def watch(self, index: int, changed: Changed) -> None:
        """Call back after each change of this interface, or after several."""
        self._watched[index] = changed

    def unwatch(self, index: int) -> None:
        self._watched.pop(index, None)

    def _on_changes(self) -> None:
        changes = self._monitor.changes()
        seen = self._watched.keys() if changes is None else self._watched.keys() & changes
        if seen and not self._changed:
            self._looks.add(self._look)
        self._changed |= seen

    def _look(self) -> None:
        changed, self._changed = self._changed, set()
        for index in changed:
            callback = self._watched.get(index)
            if callback is not None:
                self._loop.guard(partial(callback, self._loop.now()))
