"""The limit of open files, which the supervisor must not reach: nobody could ask it why."""

from __future__ import annotations

import os
import resource

from vela.errors import DeviceError
from vela.reasons import Cause

RESERVE = 16
"""For clients of the control socket, workers that are replaced, and questions to the kernel."""


class NoRoomError(DeviceError):
    """There are too few descriptors for another circuit; those that there are go on."""


class DescriptorBudget:
    """Descriptors for a number of holders, each of which opens its own as it needs them."""

    def __init__(self, each: int) -> None:
        """Count what is open now as always open. each: how many one holder may have."""
        self._each = each
        # Listing them takes one.
        self._others = len(os.listdir("/proc/self/fd")) - 1
        self._holders = self._further = 0

    def take(self, further: int = 0) -> None:
        """Set descriptors aside for one more holder, and further ones. Raises NoRoomError."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = (self._holders + 1) * self._each + self._further + further
        needed = self._others + held + RESERVE
        if limit != resource.RLIM_INFINITY and needed > limit:
            raise NoRoomError(Cause.NO_DESCRIPTORS.say(limit=limit))
        self._holders += 1
        self._further += further

    def give_back(self, further: int = 0) -> None:
        """Undo one take()."""
        self._holders -= 1
        self._further -= further
