"""Signals that ask for the end, as an exception that lets contexts take down what they made."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptionError(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


def ignore_signals() -> None:
    """Let nothing interrupt from now on."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Turn the first signal that asks for the end into InterruptionError; ignore further ones."""

    def interrupt(number: int, _: FrameType | None) -> None:
        ignore_signals()
        raise InterruptionError(number)

    for number in _ENDING:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        ignore_signals()
