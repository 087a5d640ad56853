"""A change of the port that frames leave from, which the remote hears of first.

It takes frames from no other port than the one that this end has named (docs/protocol.md, 3.4). So
they go on leaving from the present port until it has heard of the next one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from vela.errors import VelaError
from vela.linux.underlay import UnderlayPath

from ..runtime.loop import Callback, EventLoop, Timer
from .data_path import DataPath
from .terms import Profile

LONGEST_WAIT_S = 3.0
"""For a remote that does not answer at once, as it is busy, or older than this."""


def _differs_by_port(
    before: UnderlayPath, former: Profile, path: UnderlayPath, profile: Profile
) -> bool:
    """Tell whether frames go between the same addresses, from another port."""
    return former.source_port != profile.source_port and (
        (before.endpoint, before.route.source) == (path.endpoint, path.route.source)
    )


class PortSwitch:
    """Which port is to be named to the remote, and whether frames leave from it yet."""

    def __init__(self, data_path: DataPath, loop: EventLoop, on_heard: Callback) -> None:
        """on_heard: until_heard() would return what it is given now."""
        self._data_path = data_path
        self._loop = loop
        self._on_heard = on_heard
        self._next: int | None = None
        self._untold = False
        self._timer: Timer | None = None

    @property
    def port(self) -> int | None:
        """What the remote is to be told; None: there are no frames."""
        present = self._data_path.frame_port
        return present if present is None or self._next is None else self._next

    @property
    def count(self) -> int:
        """How many ports in a row there are from that one on."""
        port = self.port
        return 1 if port is None else self._data_path.ports_from(port)

    def until_heard(self, path: UnderlayPath, profile: Profile, *, up: bool) -> Profile:
        """Return how frames are carried for now: by profile, but from the present port.

        By profile alone where the remote has heard of its port, or no frames cross to be lost.
        """
        attached = self._data_path.attached
        if not up or attached is None or not _differs_by_port(*attached, path, profile):
            self.stop()
            return profile
        port = None
        # Where it cannot be had, attach() says why.
        with suppress(VelaError):
            port = self._data_path.prepare_port(path, profile)
        if port is None or (port == self._next and self._timer is None):
            self.stop()
            return profile
        if port != self._next:
            self.stop()
            self._next, self._untold = port, True
            self._timer = self._loop.call_later(LONGEST_WAIT_S, self.heard)
        return replace(profile, source_port=attached[1].source_port)

    def begun(self) -> bool:
        """Tell, once, whether there is a port for the remote to hear of."""
        untold, self._untold = self._untold, False
        return untold

    def heard(self) -> None:
        """Take note that the remote has heard what it was told last, or has had time to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._on_heard()

    def stop(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._next, self._timer, self._untold = None, None, False
