"""Events on their way to a session's owner. Pure."""

from __future__ import annotations

from collections import deque

from vela.reasons import Reason
from vela.signaling.events import Down, Event, Up


class EventQueue:
    """What the owner is to be told, oldest first. Up and Down take turns."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._told_up = False

    def put(self, event: Event) -> None:
        self._events.append(event)

    def up(self) -> None:
        """Tell that the session is up, unless that was told."""
        if not self._told_up:
            self._told_up = True
            self._events.append(Up())

    def down(self, reason: Reason) -> None:
        """Tell that it is up no longer, if it was."""
        if self._told_up:
            self._told_up = False
            self._events.append(Down(reason))

    def note(self, *, up: bool) -> None:
        """Take note of what the owner knows without being told."""
        self._told_up = up

    def forget(self) -> None:
        """Tell nothing of what was to be told; the owner knows that the session is not up."""
        self._events.clear()
        self._told_up = False

    def next(self) -> Event | None:
        """Hand over the oldest event; each is handed over once."""
        return self._events.popleft() if self._events else None
