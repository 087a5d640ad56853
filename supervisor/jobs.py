"""What systemd is about to do with velad: org.freedesktop.systemd1(5).

While a unit is restarted, its job is "restart" until it has stopped, and then "start".
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vela.errors import DeviceError
from vela.linux.dbus import Peer

PRIVATE_SOCKET = Path("/run/systemd/private")
"""systemd's own, for root alone: there need be no bus."""
LIMIT_S = 1.0
"""For the answers of a manager that is busy stopping others, too."""

_MANAGER_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Restart:
    """The unit of a process is stopped at present to be started again."""

    stored: int
    """How many descriptors systemd keeps for it."""


def find_restart(pid: int) -> Restart | None:
    """Return the restart of the unit that has this main process, if there is one.

    By the main process: one that has replaced another is in no control group of the unit's.
    Waits LIMIT_S at most. Raises DeviceError without an answer.
    """
    with closing(Peer(PRIVATE_SOCKET, LIMIT_S)) as systemd:
        jobs = systemd.call(_MANAGER_PATH, _MANAGER, "ListJobs").array()
        units = []
        while not jobs.at_end:
            jobs.align(8)
            jobs.uint32()
            name, kind = jobs.string(), jobs.string()
            _, _, unit = jobs.string(), jobs.string(), jobs.string()
            if kind == _RESTART and name.endswith(".service"):
                units.append(unit)
        for unit in units:
            if _number(systemd, unit, "MainPID") == pid:
                return Restart(_number(systemd, unit, "NFileDescriptorStore"))
    return None


def _number(systemd: Peer, unit: str, name: str) -> int:
    """Return a property of a service. Raises DeviceError if it is no number."""
    value = systemd.call(unit, _PROPERTIES, "Get", _SERVICE, name)
    if value.signature() != "u":
        raise DeviceError(f"{name} is no number")
    return value.uint32()
