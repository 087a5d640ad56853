"""TAP interfaces: a descriptor for each queue; the interface is gone when the last copy is closed.

The only importer of pytun.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytun

from vela.errors import DeviceError
from vela.linux.features import ALL_FEATURES, TUN, TUNSETOFFLOAD, Feature, Features, tun_offloads
from vela.linux.flow_steering import load_queue_program
from vela.reasons import Cause
from vela.wire import VIRTIO_HEADER

_TUNSETCARRIER = 0x400454E2  # include/uapi/linux/if_tun.h, Linux 5.0
_TUNGETIFF = 0x800454D2
_TUNSETDEBUG, _TUNSETPERSIST = 0x400454C9, 0x400454CB
_TUNSETOWNER, _TUNSETGROUP = 0x400454CC, 0x400454CE
_TUNSETTXFILTER, _TUNDETACHFILTER = 0x400454D1, 0x401054D6
_TUNSETVNETLE, _TUNSETVNETBE = 0x400454DC, 0x400454DE
_TUNSETSTEERINGEBPF, _TUNSETFILTEREBPF = 0x800454E0, 0x800454E1
_TUNSETSNDBUF = 0x400454D4
_TUNSETVNETHDRSZ = 0x400454D8
_NO_PROGRAM = -1  # drivers/net/tun.c, tun_set_ebpf
_NO_TX_FILTER = bytes(4)  # struct tun_filter: no flags, no addresses
_NO_FPROG = bytes(16)  # struct sock_fprog
_SNDBUF = 0x7FFFFFFF  # drivers/net/tun.c, tun_chr_open
_IFF_VNET_HDR = 0x4000  # pytun has no name for it, and for the next one in no version
_IFF_MULTI_QUEUE = 0x0100

# The file is missing, or it has no driver.
_NO_TUN = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
_LOAD_TUN = f"no {TUN}; load the kernel's tun module (modprobe tun)"

_IFREQ_SIZE = 40  # struct ifreq, 64 bit
_HWADDR = struct.Struct("=16xH6s16x")  # struct ifreq with an address
_ARPHRD_ETHER = 1  # include/uapi/linux/if_arp.h
_SIOCSIFHWADDR = 0x8924  # include/uapi/linux/sockios.h
_SIOCSIFMTU = 0x8922
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_NAME_SIZE = 16  # include/uapi/linux/if.h, IFNAMSIZ
_MTU = struct.Struct("=16si20x")  # struct ifreq with a number, 64 bit
_FLAGS = struct.Struct("=16sH22x")  # struct ifreq with flags, 64 bit
_INT = struct.Struct("=i")


def check_tun() -> None:
    """Raise DeviceError if this machine cannot create TAPs."""
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        if err.errno in _NO_TUN:
            raise DeviceError(_LOAD_TUN) from err
        raise DeviceError(f"cannot open {TUN}: {err.strerror}") from err


def interface_of(fd: int) -> int | None:
    """Return the index of the interface that a TAP's descriptor is of; None: it was removed."""
    try:
        request = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ_SIZE))
        return socket.if_nametoindex(request[:_NAME_SIZE].rstrip(b"\0").decode())
    except OSError:
        return None


def drop_carrier(fd: int) -> None:
    """Take the carrier off the interface of a TAP's descriptor, if that is there."""
    with suppress(OSError):
        fcntl.ioctl(fd, _TUNSETCARRIER, _INT.pack(False))


class Tap:
    """A TAP interface, created by this process."""

    def __init__(
        self,
        name: str,
        mac: bytes,
        mtu: int,
        *,
        virtio_header: bool = False,
        features: Features = ALL_FEATURES,
        adopted: int | None = None,
        queues: int = 1,
        further: Sequence[int] = (),
    ) -> None:
        """Create the interface, down and without carrier; mtu in bytes.

        adopted: the descriptor of one that another velad has made, which is this
        object's from now on. Nothing of it changes before restore(): a worker may
        use it. mac, mtu and virtio_header are then those that it has.

        queues: how many to have, where the interface was made for more than one, and
        flow_steering says nothing against it; all frames go through the first until
        spread(). further: the descriptors of further ones that it has, likewise
        this object's.

        With virtio_header, a virtio header goes before each frame, and the
        kernel leaves checksums and segmentation to the reader as far as
        features allow. Without RWF_NOWAIT in features, the descriptor does not
        block; every copy of it shares that, a worker's too.

        Raises DeviceError, and then there is no interface.
        """
        self.name = name
        self.mac = mac
        self.virtio_header = virtio_header
        self._features, self._offloads = features, virtio_header
        self.mtu = mtu
        self.fd: int
        """The descriptor that frames are read from and written to."""
        self.further = list(further)
        """Those of the queues behind the first."""
        self._spread = 1
        if adopted is not None:
            self.fd = adopted
            try:
                self._adopt(queues)
            except BaseException:
                self._close_queues(0)
                os.close(adopted)
                raise
            return
        flags = pytun.IFF_TAP | pytun.IFF_NO_PI | pytun.IFF_TUN_EXCL
        if virtio_header:
            flags |= _IFF_VNET_HDR
        if queues > 1:
            flags |= _IFF_MULTI_QUEUE
        try:
            # IFF_TUN_EXCL: never take over an interface of another program.
            device = pytun.TunTapDevice(name, flags)
        except pytun.Error as err:
            # pytun.Error is an OSError, but never a subclass such as PermissionError.
            if err.errno in _NO_TUN:
                raise DeviceError(f"{name}: {_LOAD_TUN}") from err
            if _is_interface(name):
                raise DeviceError(Cause.NAME_IN_USE.say(name=name)) from err
            raise DeviceError(f"{name}: cannot create a TAP: {_reason(err)}") from err
        try:
            # pytun leaves its descriptor inheritable; a copy is not.
            self.fd = os.dup(device.fileno())
        except OSError as err:
            raise DeviceError(f"{name}: cannot create a TAP: {_reason(err)}") from err
        finally:
            device.close()
        try:
            self.restore_mac()
            self.set_mtu(mtu)
            self.set_carrier(False)
            self.index = socket.if_nametoindex(name)
            self._open_queues(queues)
            self.restore()
        except (OSError, DeviceError):
            self.close()
            raise

    def _adopt(self, queues: int) -> None:
        """Look at an interface that another velad has made. Raises DeviceError."""
        try:
            name, flags = _FLAGS.unpack(fcntl.ioctl(self.fd, _TUNGETIFF, bytes(_IFREQ_SIZE)))
            if flags & pytun.IFF_TAP == 0 or flags & pytun.IFF_NO_PI == 0:
                raise DeviceError(f"{self.name}: the descriptor is not one of velad's TAPs")
            self.virtio_header = bool(flags & _IFF_VNET_HDR)
            self.index = socket.if_nametoindex(name.rstrip(b"\0").decode())
            request = fcntl.ioctl(self.fd, _SIOCGIFHWADDR, bytes(_IFREQ_SIZE))
            self.mac = _HWADDR.unpack(request)[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                self.mtu = _MTU.unpack(fcntl.ioctl(any_socket, _SIOCGIFMTU, _MTU.pack(name, 0)))[1]
            # Who has made it with one has opened it for one: the kernel adds none.
            self._open_queues(queues if flags & _IFF_MULTI_QUEUE else 1)
        except OSError as err:
            raise DeviceError(f"{self.name}: cannot go on with it: {_reason(err)}") from err

    def _open_queues(self, queues: int) -> None:
        """Have so many, the first included. Raises DeviceError."""
        self._close_queues(queues - 1)
        name = self.present_name()
        flags = pytun.IFF_TAP | pytun.IFF_NO_PI | _IFF_MULTI_QUEUE
        if self.virtio_header:
            flags |= _IFF_VNET_HDR
        try:
            while len(self.further) < queues - 1:
                # No frame goes through it before spread().
                self._spread_over(1)
                device = pytun.TunTapDevice(name, flags)
                try:
                    self.further.append(os.dup(device.fileno()))
                finally:
                    device.close()
        except OSError as err:
            raise DeviceError(f"{name}: cannot add a queue: {_reason(err)}") from err

    def _close_queues(self, left: int) -> None:
        while len(self.further) > left:
            os.close(self.further.pop())

    def spread(self, queues: int) -> None:
        """Let flows go through the first queues, from now on. Raises DeviceError."""
        try:
            self._spread_over(queues)
        except OSError as err:
            raise DeviceError(f"{self.name}: cannot spread its flows: {_reason(err)}") from err

    def _spread_over(self, queues: int) -> None:
        fcntl.ioctl(self.fd, _TUNSETSTEERINGEBPF, _INT.pack(load_queue_program(queues)))
        self._spread = queues

    def set_mtu(self, mtu: int) -> None:
        """Set the interface's MTU, in bytes."""
        try:
            # Not by pytun, which knows the first name only: another interface may have it now.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                request = _MTU.pack(self.present_name().encode(), mtu)
                fcntl.ioctl(any_socket, _SIOCSIFMTU, request)
        except (OSError, struct.error) as err:
            why = _reason(err) if isinstance(err, OSError) else os.strerror(errno.EINVAL)
            raise DeviceError(f"{self.name}: cannot set an MTU of {mtu}: {why}") from err
        self.mtu = mtu

    def present_name(self) -> str:
        """Return the interface's name, which somebody may have changed."""
        try:
            request = fcntl.ioctl(self.fd, _TUNGETIFF, bytes(_IFREQ_SIZE))
        except (OSError, ValueError):  # removed by somebody; closed by us
            return self.name
        return request[:_NAME_SIZE].rstrip(b"\0").decode()

    def set_carrier(self, carrier: bool) -> None:
        """Set the carrier, which routing daemons and bridges see."""
        try:
            fcntl.ioctl(self.fd, _TUNSETCARRIER, _INT.pack(carrier))
        except OSError as err:
            raise DeviceError(f"{self.name}: cannot set its carrier: {_reason(err)}") from err

    def restore(self) -> None:
        """Restore all but MAC and carrier, as a holder of a copy may have changed it.

        Raises DeviceError.
        """
        try:
            self._keep_after_close(False)
            # Who may open it while nobody has it open, beside CAP_NET_ADMIN. By default anybody.
            fcntl.ioctl(self.fd, _TUNSETOWNER, os.geteuid())
            fcntl.ioctl(self.fd, _TUNSETGROUP, os.getegid())
            for request, value in self._settings():
                fcntl.ioctl(self.fd, request, value)
            with suppress(OSError):  # EINVAL: built without CONFIG_TUN_VNET_CROSS_LE
                fcntl.ioctl(self.fd, _TUNSETVNETBE, _INT.pack(0))
            for fd in (self.fd, *self.further):
                os.set_blocking(fd, Feature.RWF_NOWAIT in self._features)
        except OSError as err:
            raise DeviceError(f"{self.name}: cannot set it up: {_reason(err)}") from err

    def _settings(self) -> Iterator[tuple[int, int | bytes]]:
        yield _TUNSETDEBUG, 0
        if self.virtio_header:
            yield TUNSETOFFLOAD, tun_offloads(self._features) if self._offloads else 0
            yield _TUNSETVNETHDRSZ, _INT.pack(len(VIRTIO_HEADER))
        yield _TUNSETVNETLE, _INT.pack(sys.byteorder == "little")
        # Writes never wait, with or without O_NONBLOCK: with this limit a TAP accepts frames
        # as long as there is memory, and never refuses one with EAGAIN.
        yield _TUNSETSNDBUF, _INT.pack(_SNDBUF)
        # What leaves out frames before they are read.
        yield _TUNDETACHFILTER, _NO_FPROG
        yield _TUNSETTXFILTER, _NO_TX_FILTER
        yield _TUNSETFILTEREBPF, _INT.pack(_NO_PROGRAM)
        program = load_queue_program(self._spread) if self.further else _NO_PROGRAM
        yield _TUNSETSTEERINGEBPF, _INT.pack(program)

    def set_offloads(self, offloads: bool, features: Features) -> None:
        """Let the kernel leave checksums and segmentation to the reader, as far as features allow.

        Not so from now on; so from the next restore() on, as a reader that is not prepared for it
        may be there. Without a virtio header nothing is ever left. Raises DeviceError.
        """
        self._features, self._offloads = features, offloads
        if self.virtio_header and not offloads:
            try:
                fcntl.ioctl(self.fd, TUNSETOFFLOAD, 0)
            except OSError as err:
                raise DeviceError(f"{self.name}: cannot set it up: {_reason(err)}") from err

    def change_mac(self, mac: bytes) -> None:
        """Set another MAC address. Raises DeviceError."""
        self.mac, before = mac, self.mac
        try:
            self.restore_mac()
        except DeviceError:
            self.mac = before
            raise

    def restore_mac(self) -> None:
        """Set the MAC address again. Raises DeviceError.

        By the descriptor, as the interface may have another name now.
        """
        try:
            fcntl.ioctl(self.fd, _SIOCSIFHWADDR, _HWADDR.pack(_ARPHRD_ETHER, self.mac))
        except OSError as err:
            raise DeviceError(f"{self.name}: cannot set its MAC: {_reason(err)}") from err

    def write(self, frame: memoryview) -> None:
        """Write a complete frame to the kernel. Raises OSError: EIO if the interface is down."""
        os.writev(self.fd, (VIRTIO_HEADER, frame) if self.virtio_header else (frame,))

    def exists(self) -> bool:
        """Tell whether the interface still exists, under any name."""
        try:
            fcntl.ioctl(self.fd, _TUNGETIFF, bytes(_IFREQ_SIZE))
        except (OSError, ValueError):  # removed by somebody; closed by us
            return False
        return True

    def _keep_after_close(self, keep: bool) -> None:
        fcntl.ioctl(self.fd, _TUNSETPERSIST, keep)

    def close(self) -> None:
        """Close this copy of the descriptor. The interface disappears with the last one."""
        if self.fd < 0:
            return
        with suppress(OSError):  # removed by somebody
            self._keep_after_close(False)
        self._close_queues(0)
        os.close(self.fd)
        self.fd = -1


def _is_interface(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:  # none, or no descriptor left to ask with
        return False
    return True


def _reason(err: OSError) -> str:
    return os.strerror(err.errno) if err.errno else str(err)
