"""A flood that dies does not leave its test to pass without it."""

from __future__ import annotations

import errno

import pytest

from lab.flood import Flood
from lab.waiting import eventually


def test_flood_counts_what_it_sent() -> None:
    with Flood(lambda: 3) as flood:
        eventually(lambda: flood.sent >= 300, 10, "300 to be sent")

    assert flood.sent % 3 == 0


def test_flood_goes_on_where_a_queue_was_full() -> None:
    calls = 0

    def send() -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return 1

    with Flood(send) as flood:
        eventually(lambda: flood.sent >= 10, 10, "10 to be sent")


def test_flood_that_fails_raises_on_leaving() -> None:
    def send() -> int:
        raise OSError(errno.ENETDOWN, "Network is down")

    with pytest.raises(OSError, match="Network is down"), Flood(send):
        pass


def test_flood_that_fails_does_not_hide_what_failed_before() -> None:
    def send() -> int:
        raise OSError(errno.ENETDOWN, "Network is down")

    with pytest.raises(OSError, match="Network is down") as raised, Flood(send):
        raise AssertionError("first")

    assert isinstance(raised.value.__context__, AssertionError)
