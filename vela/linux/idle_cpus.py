"""How idle each CPU was of late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

_STAT = Path("/proc/stat")
# proc_stat(5): of the columns behind the name, those without work.
_IDLE, _IOWAIT = 3, 4
# Guest time is part of user time, and stands in two columns more.
_COLUMNS = 8

LEAST_PERIOD_S = 0.2
"""The kernel counts in steps of 10 ms."""
LONGEST_PERIOD_S = 1.0

Times = Mapping[int, tuple[int, int]]
"""By CPU: idle and all time since the start of the machine, in ticks."""


def cpu_times() -> Times:
    """Return the times of each CPU. Raises OSError, ValueError."""
    times = {}
    for line in _STAT.read_text("ascii").splitlines():
        name, _, columns = line.partition(" ")
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(each) for each in columns.split()[:_COLUMNS]]
            times[int(name[3:])] = (ticks[_IDLE] + ticks[_IOWAIT], sum(ticks))
    return times


class IdleCpus:
    """How idle each CPU was of late. All who ask share one look at the machine."""

    def __init__(self, read: Callable[[], Times] = cpu_times) -> None:
        """read: for tests."""
        self._read = read
        self._at: float | None = None
        self._times: Times = {}
        self._shares: dict[int, float] = {}
        self._kept: dict[int, float] = {}

    def shares(self, now: float) -> Mapping[int, float]:
        """Return which share of its time each CPU was idle for since the look before.

        Empty: that is longer ago than LONGEST_PERIOD_S.
        """
        since = None if self._at is None else now - self._at
        if since is not None and since < LEAST_PERIOD_S:
            return self._shares
        try:
            times = self._read()
        except (OSError, ValueError):
            times = {}
        self._shares = {}
        if since is not None and since <= LONGEST_PERIOD_S:
            for cpu, (idle, total) in times.items():
                idle_before, total_before = self._times.get(cpu, (idle, total))
                if self._kept.get(cpu, 0.0) > now:
                    self._shares[cpu] = 0.0
                elif total > total_before:
                    self._shares[cpu] = (idle - idle_before) / (total - total_before)
        self._at, self._times = now, times
        return self._shares

    def keep(self, cpus: Iterable[int], until: float) -> None:
        """Let these be idle for nobody until then: they are set aside for others."""
        self._kept |= dict.fromkeys(cpus, until)

    def take(self, cpu: int) -> None:
        """Let nobody else find this CPU idle until the next look."""
        self._shares[cpu] = 0.0
