"""Waits until a circuit is up, or the reason why it is not is known."""

from __future__ import annotations

import sys
import time

from vela.reasons import Cause

from ..states import WELL
from .client import Connection, Document


def watched(path: str) -> Connection:
    """Return a connection on which the changes of all circuits arrive. Raises VelaError."""
    connection = Connection(path)
    connection.ask({"command": "monitor"})
    return connection


def until_up(connection: Connection, name: str, wait_s: float) -> Document | None:
    """Return the last that is known of a circuit: it is up, or not and why, or time is over.

    connection: see watched(). None: the circuit was removed meanwhile. Raises VelaError.
    """
    deadline = time.monotonic() + wait_s
    # Events from before the reply are in it.
    circuits = connection.ask({"command": "status"})["circuits"]
    last: Document | None = next((each for each in circuits if each["name"] == name), None)
    try:
        while last is not None and not _is_settled(last):
            _progress(f"{name}: {last['state']} ...")
            event = connection.read(deadline)
            if event is None:
                return last
            if event.get("circuit") != name:
                continue
            if event["event"] == "removed":
                return None
            if event["event"] == "state":
                last = event
        return last
    finally:
        _progress("")


def _is_settled(circuit: Document) -> bool:
    """Tell whether waiting is of no use: velad tries again, but an operator has to look at it."""
    if circuit["state"] in (*WELL, "disabled"):
        return True
    # An end that calls may be about to.
    if circuit.get("reason_code") == Cause.AWAITING_CALL.code:
        return False
    # As long as one of its remotes was not tried, that one may carry it.
    return bool(circuit["reason"]) and all(each["reason"] for each in circuit.get("remotes", ()))


def _progress(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
