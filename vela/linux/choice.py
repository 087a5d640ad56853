"""What the operator chose of a circuit's way through the underlay; nothing, and the kernel decides.

SO_BINDTODEVICE and SO_MARK: socket(7). IP_TOS: ip(7). VRF: Documentation/networking/vrf.rst.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import closing
from dataclasses import dataclass

from vela.address import Family, IPAddress, family_of
from vela.errors import DeviceError
from vela.linux.rtnetlink import Rtnetlink
from vela.reasons import NO_REASON, Cause, Reason, reason_of

_IP_FREEBIND = 15  # include/uapi/linux/in.h
SO_MARK = 36  # include/uapi/asm-generic/socket.h
_MARK = struct.Struct("=I")

CS6 = 48 << 2
"""The TOS byte of network control (RFC 4594, section 3.1): queues on the way prefer it."""


@dataclass(frozen=True, slots=True)
class UnderlayChoice:
    """Of one circuit."""

    bind: IPAddress | None = None
    """Address to send from."""
    device: str | None = None
    """Interface, or VRF, that packets leave by."""
    mark: int | None = None
    """Firewall mark of all packets: for rules of routing and filtering."""

    def index(self) -> int | None:
        """Return the index of the device; None: there is none chosen. Raises DeviceError."""
        if self.device is None:
            return None
        try:
            return socket.if_nametoindex(self.device)
        except OSError as err:
            raise DeviceError(Cause.DEVICE_MISSING.say(device=self.device)) from err

    def source(self, family: Family) -> IPAddress | None:
        """Return the address to send from; None: none is chosen. Raises DeviceError."""
        if self.bind is not None and family_of(self.bind) is not family:
            shown = _shown(family)
            raise DeviceError(Cause.SOURCE_FAMILY.say(address=self.bind, family=shown))
        return self.bind

    def presence(self) -> tuple[int | None, Reason]:
        """Return the device's index, and why nothing can be sent; empty: it can.

        Both change when the device or the address comes, goes, or is another one.
        """
        try:
            index = self.index()
        except DeviceError as err:
            return None, reason_of(err)
        if self.bind is None:
            return index, NO_REASON
        family = socket.AF_INET if self.bind.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                self.apply(probe)
                bind_to(probe, self.bind, 0)
        except OSError as err:
            return index, self.explain(err)
        return index, NO_REASON

    def apply(self, opened: socket.socket) -> None:
        """Let a socket that is not bound yet send so. Raises OSError."""
        if self.device is not None:
            name = self.device.encode()
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        self.mark_socket(opened)

    def mark_socket(self, opened: socket.socket) -> None:
        """Let what a socket sends have the mark, or none. Raises OSError."""
        if self.mark is not None or opened.getsockopt(socket.SOL_SOCKET, SO_MARK):
            opened.setsockopt(socket.SOL_SOCKET, SO_MARK, _MARK.pack(self.mark or 0))

    def ancillary(self) -> list[tuple[int, int, bytes]]:
        """Return what makes sendmsg mark one message of a socket that many share.

        Linux 5.4 (commit c6af0c227a22); it takes CAP_NET_ADMIN.
        """
        if self.mark is None:
            return []
        return [(socket.SOL_SOCKET, SO_MARK, _MARK.pack(self.mark))]

    def explain(self, err: OSError) -> Reason:
        """Return why there is no way, where an error is due to what was chosen; else nothing."""
        if err.errno == errno.ENODEV and self.device is not None:
            return Cause.DEVICE_MISSING.say(device=self.device)
        if err.errno == errno.EADDRNOTAVAIL and self.bind is not None:
            return Cause.SOURCE_MISSING.say(address=self.bind)
        if err.errno == errno.EPERM:
            return Cause.WAY_FORBIDDEN.say(error=os.strerror(errno.EPERM))
        return NO_REASON


ANY_UNDERLAY = UnderlayChoice()


def bind_to(opened: socket.socket, local: IPAddress, port: int) -> None:
    """Bind to an address of this machine, also of an interface in a VRF. Raises OSError.

    Of IPv4 the kernel looks in the main table alone (net/ipv4/af_inet.c, __inet_bind),
    although datagrams from there leave, and with net.ipv4.udp_l3mdev_accept arrive.
    """
    try:
        opened.bind((str(local), port))
    except OSError as err:
        if err.errno != errno.EADDRNOTAVAIL or local.version != 4 or not _is_own(local):
            raise
        opened.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        opened.bind((str(local), port))


def _is_own(address: IPAddress) -> bool:
    try:
        with closing(Rtnetlink()) as kernel:
            return any(each.address.ip == address for each in kernel.addresses())
    except DeviceError:
        return False


def set_tos(opened: socket.socket, tos: int) -> None:
    """Let all that a socket sends have this TOS byte, or traffic class. Raises OSError."""
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
    # Of an IPv6 socket too, for IPv4-mapped addresses.
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)


def _shown(family: Family) -> str:
    return "IPv4" if family is Family.IPV4 else "IPv6"
