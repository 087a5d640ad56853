"""The systems that VELA is shown to work on: a Debian, and the kernel that it boots with."""

from __future__ import annotations

from dataclasses import dataclass

from vm import installation


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table."""

    name: str
    suite: str
    """Of the root."""
    kernel_suite: str
    """Where the kernel is from; the root's own suite: as it comes."""
    kernel_prefix: str
    """How its release begins; empty: whatever the suite has."""
    description: str


SYSTEMS = (
    System("5.10", "bookworm", "bullseye", "5.10.", "Debian 12, kernel of Debian 11"),
    System("6.1", "bookworm", "bookworm", "6.1.", "Debian 12"),
    System("6.12", "trixie", "trixie", "6.12.", "Debian 13"),
    System("newest", "trixie", "unstable", "", "Debian 13, kernel of Debian unstable"),
)

# The programs that the tests call, and what a system has that boots.
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "initramfs-tools", "zstd"),
    *("linux-image-amd64", "iproute2", "iputils-ping", "iperf3", "ethtool", "nftables"),
    *("wireguard-tools", "tcpdump", "ifupdown"),
    *installation.PACKAGES,
)


def kernels(suite: str) -> list[str]:
    """Return the further suites whose kernels a suite's root has."""
    return [one.kernel_suite for one in SYSTEMS if one.suite == suite and one.kernel_suite != suite]
