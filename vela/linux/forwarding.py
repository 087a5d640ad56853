"""Whether this network namespace forwards IP packets between its interfaces, by its sysctls."""

from __future__ import annotations

from pathlib import Path

# Linux, Documentation/networking/ip-sysctl.rst; both for all interfaces.
_SWITCHES = (
    Path("/proc/sys/net/ipv4/ip_forward"),
    Path("/proc/sys/net/ipv6/conf/all/forwarding"),
)


class Forwarding:
    """What was last seen; look() sees again."""

    def __init__(self) -> None:
        self.enabled = False
        self.look()

    def look(self) -> None:
        """Read the switches anew, which takes some 20 us: they can change at any time."""
        self.enabled = any(map(_is_on, _SWITCHES))


def _is_on(switch: Path) -> bool:
    try:
        return switch.read_text().strip() != "0"
    except OSError:  # a kernel without IPv6 has no such switch
        return False
