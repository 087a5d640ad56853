"""Optional kernel features of the data path: their names, and which of them the kernel has.

Each is asked for once, when velad starts, and what is missing has a fallback. A version number
says little: distributions add features to old kernels, and sandboxes take them from new ones.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum

from vela.errors import DeviceError


class Feature(Enum):
    """The values are the names in daemon.disable_features and in the status."""

    NETNS_COOKIE = "netns_cookie"
    """A number for each network namespace: Linux 5.14, commit e8b9eab99232. Without it the inode
    of the namespace is used."""
    RWF_NOWAIT = "rwf_nowait"
    """A non-blocking read of a TAP whose descriptor blocks: Linux 6.4, commit 438b406055cd.
    Without it the descriptor does not block, and the worker polls it before it reads."""
    TSO = "tso"
    """TCP GSO frames from and to a TAP: Linux 2.6.27. Without it the kernel cuts them before."""
    UDP_GRO = "udp_gro"
    """A receive that joins datagrams: Linux 5.0. Without it recvmmsg receives many at once."""
    UDP_SEGMENT = "udp_segment"
    """A send that the kernel cuts into datagrams: Linux 4.18. Without it sendmmsg sends them."""
    USO = "uso"
    """UDP GSO frames, as TSO: Linux 6.2, commit 399e0827642f."""


Features = frozenset[Feature]

ALL_FEATURES: Features = frozenset(Feature)
OFFLOADS: Features = frozenset({Feature.TSO, Feature.USO})
"""Of the TAP: only an engine that reads and writes virtio headers can use them."""

# include/uapi/linux/if_tun.h
TUN = "/dev/net/tun"
TUNSETOFFLOAD = 0x400454D0
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq with flags, 64 bit
# The kernel replaces %d with a free number. The name does not match "vela*".
_PROBE_NAME = b"probe-velad%d"

# include/uapi/linux/udp.h and asm-generic/socket.h; the socket module has no names for them.
UDP_SEGMENT = 103
UDP_GRO = 104
SO_NETNS_COOKIE = 71
NETNS_COOKIE_SIZE = 8


def tun_offloads(features: Features) -> int:
    """Return the argument of TUNSETOFFLOAD: what the kernel may leave to the reader of the TAP."""
    offloads = _TUN_F_CSUM
    if Feature.TSO in features:
        offloads |= _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
    if Feature.USO in features:
        offloads |= _TUN_F_USO4 | _TUN_F_USO6
    return offloads


def words(features: Iterable[Feature]) -> tuple[str, ...]:
    """Return the names of features, sorted."""
    return tuple(sorted(feature.value for feature in features))


def probe() -> Features:
    """Ask the kernel for each feature, on a TAP and on a socket that nobody else uses.

    The TAP is there for a few milliseconds, never up, and goes with its
    descriptor, whatever happens. Who may make none has nothing of it; raises
    DeviceError where there can be none for another reason.
    """
    return _probe_tap() | _probe_socket()


def _probe_tap() -> Features:
    found = set()
    try:
        tap = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise DeviceError(f"cannot open {TUN}: {err.strerror}") from err
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        try:
            fcntl.ioctl(tap, _TUNSETIFF, _IFREQ.pack(_PROBE_NAME, flags))
        except PermissionError:
            return frozenset()  # circuits report that they have no interface
        except OSError as err:
            raise DeviceError(
                f"cannot create a TAP to see what this kernel can do: {err.strerror}"
            ) from err
        if reads_without_waiting(tap):
            found.add(Feature.RWF_NOWAIT)
        for feature in OFFLOADS:
            with suppress(OSError):  # EINVAL
                fcntl.ioctl(tap, TUNSETOFFLOAD, tun_offloads(frozenset({feature})))
                found.add(feature)
    finally:
        os.close(tap)
    return frozenset(found)


def reads_without_waiting(fd: int) -> bool:
    """Tell whether RWF_NOWAIT works on a descriptor that is empty and would block."""
    # Python may be built for a kernel without it.
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    try:
        os.preadv(fd, [bytearray(1)], -1, flag)
    except BlockingIOError:
        return True
    except OSError:  # EOPNOTSUPP: before Linux 6.4
        return False
    return True


def _probe_socket() -> Features:
    found = set()
    try:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as err:
        raise DeviceError(
            f"cannot open a socket to see what this kernel can do: {err.strerror}"
        ) from err
    with opened:
        for feature, option, value in (
            (Feature.UDP_GRO, UDP_GRO, 1),
            (Feature.UDP_SEGMENT, UDP_SEGMENT, 0),
        ):
            with suppress(OSError):  # ENOPROTOOPT
                opened.setsockopt(socket.IPPROTO_UDP, option, value)
                found.add(feature)
        with suppress(OSError):  # ENOPROTOOPT
            opened.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, NETNS_COOKIE_SIZE)
            found.add(Feature.NETNS_COOKIE)
    return frozenset(found)
