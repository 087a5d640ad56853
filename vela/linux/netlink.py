"""Links, addresses and bridges by netlink. The only importer of pyroute2."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from typing import Any

from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_SETLINK
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vela.address import IPInterface
from vela.errors import DeviceError
from vela.linux.rtnetlink import Rtnetlink

_IFF_UP = 0x1  # include/uapi/linux/if.h
_IFF_NOARP = 0x80
_IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h
_SIOCGIFMTU = 0x8921  # include/uapi/linux/sockios.h
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933
_MAX_BRIDGE_MTU = 65535  # net/bridge/br_device.c, ETH_MAX_MTU
_NAME_SIZE = 16  # include/uapi/linux/if.h, IFNAMSIZ
_IFREQ = struct.Struct("=16si20x")  # struct ifreq with a number, 64 bit

# include/uapi/linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_REPLY = struct.Struct("=IHHIIi")  # struct nlmsghdr, then the error
_LARGEST_REPLY = 65536

# Frames that wait in the TAP while a worker is replaced or busy.
QUEUE_LENGTH = 1000


class Netlink:
    """One netlink socket for all interfaces. An error of the kernel becomes a DeviceError.

    The messages are pyroute2's, the socket is our own: its engine takes five
    times as long for a request, which hundreds of circuits feel.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._sequence = 0
        self._questions = Rtnetlink()
        self._pinned: set[int] = set()
        """Indices of bridges that keep their MTU and MAC address: the kernel gives none twice."""

    def close(self) -> None:
        self._questions.close()
        self._socket.close()

    def bring_up(
        self,
        name: str,
        addresses: Iterable[IPInterface],
        *,
        arp: bool,
        gso_max_size: int | None = None,
        alias: str = "",
    ) -> None:
        """Add these addresses to an interface and set it up.

        Without arp no neighbour is ever asked for: for remotes that only know
        IP packets (a TUN), every destination is reached by sending it there.
        gso_max_size: the largest frame, in bytes, that is still to be cut
        into segments. alias: shown by "ip link"; empty: none.
        """
        attributes: list[tuple[str, int | str]] = [("IFLA_TXQLEN", QUEUE_LENGTH)]
        if gso_max_size is not None:
            attributes.append(("IFLA_GSO_MAX_SIZE", gso_max_size))
        if alias:
            attributes.append(("IFLA_IFALIAS", alias))
        index = self._set_link(
            name,
            "set it up",
            *attributes,
            flags=_IFF_UP | (0 if arp else _IFF_NOARP),
            change=_IFF_UP | _IFF_NOARP,
        )
        for address in addresses:
            message = ifaddrmsg()
            message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
            message["prefixlen"] = address.network.prefixlen
            message["index"] = index
            # The operator chooses both addresses; duplicate address detection would delay the
            # connection for a second.
            message["flags"] = _IFA_F_NODAD if address.version == 6 else 0
            message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
            self._request(
                message,
                RTM_NEWADDR,
                _NLM_F_CREATE | _NLM_F_EXCL,
                f"{name}: cannot add address {address}",
            )

    def set_gso_max_size(self, name: str, size: int) -> None:
        """Limit the size of the GSO frames that the interface takes, in bytes."""
        self._set_link(name, "limit its GSO frames", ("IFLA_GSO_MAX_SIZE", size))

    def find(self, name: str) -> int | None:
        """Return the index of the interface of this name; None: there is none."""
        try:
            return self._index(name)
        except DeviceError:
            return None

    def join_bridge(self, name: str, bridge: str) -> int:
        """Make an interface a port of a bridge; return the bridge's MTU, in bytes.

        The bridge keeps its MTU and its MAC address, then and later on.
        """
        master, mtu = self._index(bridge), self._mtu(bridge)
        if master not in self._pinned:
            self._pin(bridge, master, mtu)
        self._set_link(name, f"join it to {bridge}", ("IFLA_MASTER", master))
        return mtu

    def _pin(self, bridge: str, index: int, mtu: int) -> None:
        """Let a bridge have what it has by itself, whatever ports come and go.

        A bridge takes the least MTU and MAC address of its ports unless somebody
        set them, and below an MTU of 1280 loses its IPv6 addresses
        (net/bridge/br_if.c, br_mtu_auto_adjust; br_stp_if.c,
        br_stp_recalculate_bridge_id). So both are set, to what they are; once, as
        the hosts behind it are forgotten with the MAC address.
        """
        if self._questions.link_kind(index) != "bridge":
            return  # to join it fails, and says why
        self._set_link(bridge, "keep its MAC address", ("IFLA_ADDRESS", self._mac(bridge)))
        # The kernel takes no note of the MTU that there is: one byte more, and back. One less would
        # go on to the VLANs of the bridge.
        other = mtu + 1 if mtu < _MAX_BRIDGE_MTU else mtu - 1
        self._set_link(bridge, "keep its MTU", ("IFLA_MTU", other))
        self._set_link(bridge, "keep its MTU", ("IFLA_MTU", mtu))
        self._pinned.add(index)

    def _set_link(
        self,
        name: str,
        what: str,
        *attributes: tuple[str, int | str],
        flags: int = 0,
        change: int = 0,
    ) -> int:
        """Set attributes of an interface, and the flags in change. Return its index.

        Raises DeviceError, saying what could not be done.
        """
        link = ifinfmsg()
        link["index"] = index = self._index(name)
        link["flags"], link["change"] = flags, change
        link["attrs"] = list(attributes)
        self._request(link, RTM_SETLINK, 0, f"{name}: cannot {what}")
        return index

    def _index(self, name: str) -> int:
        return self._ask(name, _SIOCGIFINDEX)

    def _mtu(self, name: str) -> int:
        return self._ask(name, _SIOCGIFMTU)

    def _mac(self, name: str) -> str:
        """Return an interface's MAC address as text."""
        # struct sockaddr: the type of hardware, 16 bits, then the address.
        return self._look(name, _SIOCGIFHWADDR)[_NAME_SIZE + 2 :][:6].hex(":")

    def _ask(self, name: str, what: int) -> int:
        number: int = _IFREQ.unpack(self._look(name, what))[1]
        return number

    def _look(self, name: str, what: int) -> bytes:
        """Return the struct ifreq that an ioctl on the netlink socket fills in."""
        try:
            return fcntl.ioctl(self._socket, what, _IFREQ.pack(name.encode(), 0))
        except OSError as err:
            if err.errno == errno.ENODEV:
                raise DeviceError(f"{name}: there is no interface of this name") from err
            raise DeviceError(f"{name}: cannot look at it: {err.strerror}") from err

    def _request(self, message: Any, kind: int, flags: int, failure: str) -> None:
        """Send a message and return the kernel's answer, which follows at once (rtnetlink(7))."""
        self._sequence += 1
        header = message["header"]
        header["type"] = kind
        header["flags"] = _NLM_F_REQUEST | _NLM_F_ACK | flags
        header["sequence_number"] = self._sequence
        message.encode()
        try:
            self._socket.send(message.data)
            while True:
                reply = self._socket.recv(_LARGEST_REPLY)
                _, answer, _, sequence, _, error = _REPLY.unpack_from(reply)
                if answer == _NLMSG_ERROR and sequence == self._sequence:
                    break
        except OSError as err:
            raise DeviceError(f"{failure}: {os.strerror(err.errno or errno.EIO)}") from err
        if error:
            raise DeviceError(f"{failure}: {os.strerror(-error)}")
