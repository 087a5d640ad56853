"""Tells the service manager that started velad, if any, how velad is: sd_notify(3)."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping

import structlog

READY = "READY=1"
STOPPING = "STOPPING=1"
FEED = "WATCHDOG=1"

# Of the watchdog's time: a feed that is a little late, or lost, ends nobody.
FEEDS_PER_TIMEOUT = 4

# A manager that does not know BARRIER= (systemd before 246) closes the descriptor at once.
BARRIER_S = 2.0

# What a manager that does not read has not been told yet. Later states matter more.
MOST_UNSENT = 16


class ServiceManager:
    """The service manager that the environment names; without one, nothing happens.

    Nothing here waits. What the manager does not take now is sent again with the next call.
    The socket is opened once: a process that has no descriptor left still feeds its watchdog.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._socket: socket.socket | None = None
        self._environment = {
            name: environment[name]
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC")
            if name in environment
        }
        self._address = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the null byte of an abstract address.
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._unsent: deque[str] = deque(maxlen=MOST_UNSENT)
        self._status = ""
        self._feed_interval_s = _watchdog_s(environment) / FEEDS_PER_TIMEOUT
        self._fed_at = float("-inf")
        if not self._address:
            return
        try:
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
        except OSError as err:
            structlog.get_logger().warning("service_manager_not_told", error=str(err))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """Say that velad is ready, at its start or after a reload."""
        self._say(READY)

    def reloading(self) -> None:
        """Say that a reload begins; ready() is to follow, also if it fails."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        self._say(STOPPING)

    def show(self, status: str) -> None:
        """Let `systemctl status` show a line."""
        if status != self._status:
            self._status = status
            self._say(f"STATUS={status}")

    def feed(self, now: float) -> None:
        """Say that velad makes progress. Without it in time the manager restarts velad.

        now: monotonic seconds. May be called as often as one likes.
        """
        self._flush()
        due = self._feed_interval_s and now - self._fed_at >= self._feed_interval_s
        # One that cannot be sent is not kept: later it would say what is no longer true.
        if due and self._send(FEED):
            self._fed_at = now

    @property
    def told(self) -> bool:
        """Whether there is a manager."""
        return self._socket is not None

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs to talk to the same manager."""
        return dict(self._environment) if self.told else {}

    def hand_over(self, pid: int) -> None:
        """Say that another process is the service from now on."""
        self._say(f"MAINPID={pid}")

    def store(self, name: str, fd: int) -> bool:
        """Let the manager keep a copy of a descriptor, and hand it to the next velad.

        False: it takes nothing at present. name: printable ASCII without colons.
        """
        return self._send(f"FDSTORE=1\nFDNAME={name}", fd)

    def forget(self, name: str) -> bool:
        """Let the manager close its copies of what has this name. False: see store()."""
        return self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def wait_until_read(self) -> None:
        """Wait until the manager has read all that it was told, BARRIER_S at most."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            told = self._send("BARRIER=1", writer)
        finally:
            os.close(writer)  # the manager has its own, and closes it
        poll = select.poll()
        poll.register(reader, 0)
        if told:
            poll.poll(BARRIER_S * 1000)
        os.close(reader)

    def _say(self, state: str) -> None:
        if self._socket is not None:
            self._unsent.append(state)
            self._flush()

    def _flush(self) -> None:
        while self._unsent and self._send(self._unsent[0]):
            self._unsent.popleft()

    def _send(self, state: str, *descriptors: int) -> bool:
        """Return whether there is no use in trying again."""
        if self._socket is None:
            return True
        copies = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, copies)] if descriptors else []
        try:
            self._socket.sendmsg([state.encode()], ancillary, 0, self._address)
        except OSError as err:
            return err.errno not in (errno.EAGAIN, errno.ENOBUFS)
        return True


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return the time of the watchdog that is meant for this process; 0: none.

    sd_watchdog_enabled(3).
    """
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
