"""What this kernel can do of what VELA makes use of: asked, not looked up by version."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x02, 0x20, 0x40
_UDP_SEGMENT, _UDP_GRO, _SO_NETNS_COOKIE = 103, 104, 71


def describe() -> dict[str, list[str]]:
    """Return the features that are there and those that are missing."""
    found: dict[str, list[str]] = {"features": [], "missing": []}
    for name, probe in _PROBES.items():
        try:
            probe()
        except OSError:
            found["missing"].append(name)
        else:
            found["features"].append(name)
    return found


def _tap(use: Callable[[int], object]) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("=16sH22x", b"probe%d", flags))
        use(tap)
    finally:
        os.close(tap)


def _rwf_nowait(tap: int) -> None:
    with suppress(BlockingIOError):
        os.preadv(tap, [bytearray(1)], -1, os.RWF_NOWAIT)


def _option(family: int, kind: int, level: int, option: int, value: int | None) -> None:
    with socket.socket(family, kind) as one:
        if value is None:
            one.getsockopt(level, option, 8)
        else:
            one.setsockopt(level, option, value)


_UDP = (socket.AF_INET, socket.SOCK_DGRAM)
_PROBES: dict[str, Callable[[], object]] = {
    "rwf_nowait": lambda: _tap(_rwf_nowait),
    "tso": lambda: _tap(lambda tap: fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)),
    "uso": lambda: _tap(
        lambda tap: fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_USO4 | _TUN_F_USO6)
    ),
    "netns_cookie": lambda: _option(*_UDP, socket.SOL_SOCKET, _SO_NETNS_COOKIE, None),
    "udp_gro": lambda: _option(*_UDP, socket.IPPROTO_UDP, _UDP_GRO, 1),
    "udp_segment": lambda: _option(*_UDP, socket.IPPROTO_UDP, _UDP_SEGMENT, 0),
}
