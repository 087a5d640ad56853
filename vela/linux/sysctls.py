"""Switches of one interface that only sysctl has. Linux, Documentation/networking/ip-sysctl.rst."""

from __future__ import annotations

import os
from pathlib import Path

from vela.errors import DeviceError

_IPV4 = Path("/proc/sys/net/ipv4/conf")
_IPV6 = Path("/proc/sys/net/ipv6/conf")
# 2: also where the host forwards packets, or "yes" would mean no on every router.
_NO, _ALWAYS = "0", "2"


def set_accept_ra(name: str, accept: bool) -> None:
    """Let an interface take addresses and routes from router advertisements, or none.

    Raises DeviceError where that cannot be set, and is otherwise at present.
    """
    what = f"{name}: cannot set net.ipv6.conf.{name}.accept_ra"
    _set(_IPV6 / name / "accept_ra", _ALWAYS if accept else _NO, what)


def set_promote_secondaries(name: str) -> None:
    """Let other IPv4 addresses of a subnet stay when its first one is deleted.

    Raises DeviceError.
    """
    what = f"{name}: cannot set net.ipv4.conf.{name}.promote_secondaries"
    _set(_IPV4 / name / "promote_secondaries", "1", what)


def _set(switch: Path, wanted: str, what: str) -> None:
    """Raises DeviceError: what failed, and why."""
    try:
        if switch.read_text().strip() == wanted:
            return
        switch.write_text(wanted)
    except FileNotFoundError:
        return  # a kernel without IPv6
    except OSError as err:
        raise DeviceError(f"{what} to {wanted}: {os.strerror(err.errno or 0)}") from err
