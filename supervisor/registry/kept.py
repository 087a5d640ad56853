"""What outlives a restart, of all circuits: what it is at present, and when it is written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from vela.errors import DeviceError

from ..circuit.circuit import Circuit, Origin
from ..config.records import DaemonConfig
from ..runtime.loop import EventLoop, Timer
from .store import Store, Stored, StoredCircuit

# What others set up in a burst is written to disk together, at most this often.
SAVE_INTERVAL_S = 0.25


SavedHandler = Callable[[DeviceError | None], None]
"""Called with what went wrong."""


class Kept:
    """What no file says of the circuits, saved whenever their owner says that it changed."""

    def __init__(self, store: Store, loop: EventLoop, circuits: Mapping[str, Circuit]) -> None:
        """Keep what is in circuits, by name, at the time of each saving."""
        self._store = store
        self._loop = loop
        self._circuits = circuits
        self._absent = Stored()
        self._saving: Timer | None = None
        self._waiting: list[SavedHandler] = []
        self._saved_at = -math.inf

    def load(self, daemon: DaemonConfig) -> Stored:
        """Return what was kept. Raises DeviceError where it is there and cannot be read."""
        return self._store.load(daemon)

    def set_absent(self, absent: Stored) -> None:
        """Keep this besides: what was kept, and is not to be had at present."""
        self._absent = absent

    def add_disabled(self, name: str) -> None:
        """Keep besides that this one was taken down, until it is there again."""
        self._absent = replace(self._absent, disabled=self._absent.disabled | {name})

    def reclaim(self, name: str) -> bool:
        """Forget the stored record of a circuit that exists again.

        Return whether it was disabled.
        """
        absent = self._absent
        self._absent = Stored(
            tuple(each for each in absent.circuits if each.config.name != name),
            tuple(each for each in absent.unread if each.name != name),
            absent.disabled - {name},
        )
        return name in absent.disabled

    def save(self) -> None:
        """Save now. Raises DeviceError, and then what was kept before still is."""
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        self._saved_at = self._loop.now()
        waiting, self._waiting = self._waiting, []
        error = None
        try:
            self._store.save(self._stored())
        except DeviceError as err:
            error = err
        for saved in waiting:
            saved(error)
        if error is not None:
            raise error

    def save_in_time(self, saved: SavedHandler) -> None:
        """Save now, or where that was just done, together with what follows; then call back."""
        self._waiting.append(saved)
        now = self._loop.now()
        at = self._saved_at + SAVE_INTERVAL_S
        if at <= now:
            self.try_save()
        elif self._saving is None:
            self._saving = self._loop.call_later(at - now, self.try_save)

    def try_save(self) -> None:
        """Save now; that it cannot be done is said in the log."""
        try:
            self.save()
        except DeviceError as err:
            structlog.get_logger().error("state_not_saved", error=str(err))

    def close(self) -> None:
        """Save what waits for it."""
        if self._saving is not None:
            self.try_save()

    def _stored(self) -> Stored:
        circuits, absent = self._circuits, self._absent
        return Stored(
            circuits=tuple(
                StoredCircuit(circuit.config, circuit.origin, is_named_by_peer(circuit))
                for circuit in circuits.values()
                if circuit.origin is not Origin.CONFIG
            )
            + tuple(each for each in absent.circuits if each.config.name not in circuits),
            unread=tuple(each for each in absent.unread if each.name not in circuits),
            disabled=frozenset(name for name, circuit in circuits.items() if circuit.disabled)
            | absent.disabled,
        )


def is_named_by_peer(circuit: Circuit) -> bool:
    """Tell whether the other end wanted the interface's name; else it was chosen here."""
    return circuit.origin is Origin.PEER and circuit.offer.interface is not None
