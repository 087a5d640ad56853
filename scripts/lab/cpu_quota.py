"""A slow machine: processes that together get a part of one CPU's time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lab.errors import LabError
from lab.resource import Resource
from lab.waiting import eventually

_FORMER, _UNIFIED = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")

# The kernel's default, 100 ms, would stop all of them for most of it at once.
_PERIOD_US = 20_000
_END_S = 10.0


class CpuQuota(Resource):
    """A control group with a quota: sched-bwc.rst and cgroup-v2.rst of the kernel. A context.

    share: of one CPU. What it has taken must end before it is left.
    """

    def __init__(self, share: float) -> None:
        self._quota_us = round(share * _PERIOD_US)
        self._group: Path | None = None

    @staticmethod
    def is_available() -> bool:
        """Whether this machine has control groups for the CPU."""
        return _is_former() or "cpu" in _words(_UNIFIED / "cgroup.controllers")

    def start(self) -> None:
        if not self.is_available():
            raise LabError("this machine has no control groups for the CPU")
        if not _is_former():
            (_UNIFIED / "cgroup.subtree_control").write_text("+cpu")
        group = (_FORMER if _is_former() else _UNIFIED) / f"vela-lab-{os.getpid()}"
        group.mkdir()
        self._group = group
        if _is_former():
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(self._quota_us))
        else:
            (group / "cpu.max").write_text(f"{self._quota_us} {_PERIOD_US}")

    def take(self, pid: int) -> None:
        """Move a process there. What it starts from now on is there, too."""
        assert self._group is not None
        (self._group / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        if self._group is not None:
            # Workers end after the velad that had them.
            eventually(self._is_removed, _END_S, f"{self._group} to be empty")

    def _is_removed(self) -> bool:
        assert self._group is not None
        try:
            self._group.rmdir()
        except OSError as err:
            if err.errno == errno.EBUSY:
                return False
            raise
        return True


def _is_former() -> bool:
    """Whether the first version of control groups has the controller."""
    return (_FORMER / "cpu.cfs_quota_us").exists()


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
