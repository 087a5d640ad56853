"""What figures were measured on: the machine, and the versions of the programs."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.daemon import ROOT, entry_point

TIMEOUT_S = 10.0

_VERSION_OF = {
    "fastd": ("fastd", "--version"),
    "tinc": ("tincd", "--version"),
    "socat": ("socat", "-V"),
    "openvpn": ("openvpn", "--version"),
    "iperf3": ("iperf3", "--version"),
    "ping": ("ping", "-V"),
    "iproute2": ("ip", "-V"),
    "ethtool": ("ethtool", "--version"),
    "gcc": ("gcc", "--version"),
    "commit": ("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cpus: int
    memory_bytes: int
    kernel: str
    python: str
    load: float
    """Runnable processes when this was looked up, a mean over one minute."""
    versions: dict[str, str]
    """By program; those that are there."""

    @property
    def line(self) -> str:
        gib = self.memory_bytes / (1 << 30)
        return f"{self.cpu}, {self.cpus} CPUs, {gib:.0f} GiB, {self.kernel}, Python {self.python}"


def this_machine() -> Machine:
    velad, env = entry_point("velad", "vela.supervisor.cli")
    versions = {"vela": _first_line((*velad, "--version"), env)}
    versions |= {name: _first_line(argv, None) for name, argv in _VERSION_OF.items()}
    return Machine(
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load=os.getloadavg()[0],
        versions={name: text for name, text in versions.items() if text},
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(argv: tuple[str, ...], env: dict[str, str] | None) -> str:
    """Return the first line with a digit that a program prints: some begin with a title."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            env=env,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in done.stdout.splitlines()]
    return next((line for line in lines if any(letter.isdigit() for letter in line)), "")
