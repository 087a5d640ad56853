"""Tells the service manager the state of velad: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> None:
    """Send a state to the service manager that NOTIFY_SOCKET names, if any."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    # "@" stands for the null byte of an abstract address.
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager,
    ):
        manager.sendto(state.encode(), address)
