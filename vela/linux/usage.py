"""What a process uses of the machine, by psutil."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import psutil

from vela.address import IPAddress

# Asked more often, it gives the result of before: the kernel counts CPU time in steps of 10 ms.
LEAST_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What a process uses of the machine."""

    start_time_s: float
    """Unix time."""
    cpu_s: float
    resident_bytes: int
    open_fds: int
    max_fds: int


@dataclass(frozen=True, slots=True)
class Program:
    """A process, as an operator knows it."""

    pid: int
    name: str
    command: tuple[str, ...]
    directory: str
    """That relative paths begin at."""


def program_with_port(port: int, address: IPAddress) -> Program | None:
    """Return which other process has a UDP port of an address in this network namespace.

    Of processes that share it, the one that the others come from. None: nobody, or it is hidden.
    """
    try:
        pids = {
            each.pid
            for each in psutil.net_connections("udp")
            if each.laddr
            and each.laddr.port == port
            and _overlap(ip_address(each.laddr.ip.partition("%")[0]), address)
        }
        # This process may have the port of other addresses, or of this one in another group.
        for pid in sorted(each for each in pids if each not in (None, os.getpid())):
            process = psutil.Process(pid)
            command = process.cmdline()
            while (parent := process.parent()) is not None and parent.cmdline() == command:
                process = parent
            return Program(process.pid, process.name(), tuple(command), process.cwd())
    except (psutil.Error, OSError):
        return None
    return None


def _overlap(bound: IPAddress, wanted: IPAddress) -> bool:
    """Whether a socket bound to one address may receive what is sent to the other."""
    if bound.version == wanted.version:
        return bound == wanted or bound.is_unspecified or wanted.is_unspecified
    # An unspecified IPv6 address takes in IPv4, unless its socket is for IPv6 only: not shown.
    return (bound if bound.version == 6 else wanted).is_unspecified


def own_process() -> ProcessFacts | None:
    """Return what this process uses; None where it has no descriptor to find out."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        process = psutil.Process()
        times = process.cpu_times()
        return ProcessFacts(
            start_time_s=process.create_time(),
            cpu_s=times.user + times.system,
            resident_bytes=process.memory_info().rss,
            open_fds=process.num_fds(),
            max_fds=limit,
        )
    except (psutil.Error, OSError):
        return None


class ProcessUsage:
    """The CPU time and memory of one process, which may have ended."""

    def __init__(self, pid: int, started: float) -> None:
        """started: when, on the clock of measure()."""
        self.pid = pid
        self._process: psutil.Process | None = None
        self._before = (started, 0.0)
        self._result: tuple[float | None, int | None] = (None, None)

    def measure(self, now: float) -> tuple[float | None, int | None]:
        """Return the CPU use, in percent of one CPU, and the resident memory, in bytes.

        The CPU use is that since the last measurement, at least a second; the
        first time, since the start. None: the process has ended.
        """
        before, used_before = self._before
        if now - before < LEAST_PERIOD_S:
            return self._result
        try:
            if self._process is None:
                self._process = psutil.Process(self.pid)
            times = self._process.cpu_times()
            memory = self._process.memory_info().rss
        except (psutil.Error, OSError):
            self._result = (None, None)
            return self._result
        used = times.user + times.system
        self._before = (now, used)
        self._result = (round(100 * (used - used_before) / (now - before), 1), memory)
        return self._result


def thread_times(pid: int) -> Mapping[int, float]:
    """Return the CPU time that each thread of a process took, in s, by its id.

    That of the first thread is the process's. Empty: it has ended, or cannot be looked at.
    """
    try:
        threads = psutil.Process(pid).threads()
    except (psutil.Error, OSError):
        return {}
    return {each.id: each.user_time + each.system_time for each in threads}
