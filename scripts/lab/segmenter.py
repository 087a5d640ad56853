"""What the kernel itself makes of a frame that was left unfinished: its checksum, its segments."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from contextlib import suppress

from lab.errors import LabError
from lab.link import Interface, bridge
from lab.namespace import Namespace
from lab.resource import Resource

_TUNSETIFF = 0x400454CA  # include/uapi/linux/if_tun.h
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")
VIRTIO_HEADER = 10  # include/uapi/linux/virtio_net.h
MTU = 65000
_LONGEST_FRAME = 65536 + 64


class KernelSegmenter(Resource):
    """Two TAPs on one bridge: the one takes unfinished frames, the other gives finished ones.

    What is written to the first with a virtio header comes out of the second
    cut by the kernel's software segmentation (net/core/gso.c), within the write.
    """

    def __init__(self) -> None:
        self._namespace = Namespace("segmenter")
        self._taps: list[int] = []
        try:
            # Nobody but the caller is to send anything.
            self._namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
            # Where br_netfilter is loaded it would look into packets, and cut their padding off.
            for family in ("iptables", "ip6tables"):
                with suppress(OSError, LabError):
                    self._namespace.sysctl(f"net/bridge/bridge-nf-call-{family}", 0)
            with self._namespace.entered():
                self._taps.append(_open_tap("in0", _IFF_VNET_HDR))
                self._taps.append(_open_tap("out0", 0))
            ports = [Interface(self._namespace, name) for name in ("in0", "out0")]
            for port in ports:
                port.set_mtu(MTU)
                self._namespace.run("ip", "link", "set", "dev", port.name, "txqueuelen", "5000")
                port.set_up()
            # A wire: it learns nothing, so it passes everything on.
            bridge(self._namespace, "wire0", *ports)
            self._namespace.run(
                *("ip", "link", "set", "wire0", "type", "bridge"),
                *("ageing_time", "0", "mcast_snooping", "0"),
            )
            for port in ports:
                learning = ("type", "bridge_slave", "learning", "off")
                self._namespace.run("ip", "link", "set", port.name, *learning)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for tap in self._taps:
            os.close(tap)
        self._taps.clear()
        self._namespace.close()

    def frames(self, unfinished: bytes) -> list[bytes]:
        """Return the frames that a virtio header and a frame behind it become.

        Raises OSError where the kernel does not take it.
        """
        into, out = self._taps
        os.write(into, unfinished)
        finished = []
        while select.select([out], [], [], 0)[0]:
            finished.append(os.read(out, _LONGEST_FRAME))
        # The bridge itself has something to say now and then.
        source = unfinished[VIRTIO_HEADER + 6 : VIRTIO_HEADER + 12]
        return [frame for frame in finished if frame[6:12] == source]


def _open_tap(name: str, flags: int) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | flags))
    except BaseException:
        os.close(tap)
        raise
    return tap
