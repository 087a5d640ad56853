"""What velactl sees of this machine: /proc, interfaces, addresses. It changes and sends nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """The facts of one moment. What could not be read is absent."""

    clock: float
    """Unix time."""
    installed_at: float
    """Unix time of the installation, by its files."""
    is_elsewhere: bool
    """velactl runs in another network namespace than velad; what follows is then empty."""
    strict_interfaces: frozenset[str]
    """Whose effective rp_filter is 1. Linux, Documentation/networking/ip-sysctl.rst."""
    reverse_path_drops: int
    """Packets that rp_filter has dropped since the network namespace is there."""
    rmem_max: int | None
    """net.core.rmem_max, in bytes."""


def look(pid: int) -> Host:
    """Look at the machine that the velad with this process id runs on."""
    elsewhere = _is_elsewhere(pid)
    return Host(
        clock=time.time(),
        installed_at=os.stat(__file__).st_mtime,
        is_elsewhere=elsewhere,
        strict_interfaces=frozenset() if elsewhere else _strict_interfaces(),
        reverse_path_drops=0 if elsewhere else _reverse_path_drops(),
        rmem_max=_number("/proc/sys/net/core/rmem_max"),
    )


def local_address(remote: str, port: int) -> str | None:
    """Return the address from which this host sends to a remote; None: there is no route.

    A UDP socket that connects sends nothing.
    """
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((remote, port))
        return str(asking.getsockname()[0])
    return None


def _is_elsewhere(pid: int) -> bool:
    """Unless it can be seen, which takes root's privileges, both are taken for being together."""
    try:
        there = os.stat(f"/proc/{pid}/ns/net")
        here = os.stat("/proc/self/ns/net")
    except OSError:
        return False
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def _strict_interfaces() -> frozenset[str]:
    # The kernel takes the larger of both: 1 is strict, 2 is loose.
    for_all = _number("/proc/sys/net/ipv4/conf/all/rp_filter") or 0
    names = (name for _, name in socket.if_nameindex())
    return frozenset(
        name
        for name in names
        if max(for_all, _number(f"/proc/sys/net/ipv4/conf/{name}/rp_filter") or 0) == 1
    )


def _reverse_path_drops() -> int:
    """Return TcpExt's IPReversePathFilter: lines of names and of numbers alternate."""
    try:
        with open("/proc/net/netstat", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return 0
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        counters = dict(zip(names, numbers, strict=False))
        if "IPReversePathFilter" in counters:
            return int(counters["IPReversePathFilter"])
    return 0


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
