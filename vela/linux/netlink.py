"""Interfaces, their addresses and their bridges, by name."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from vela.address import IPAddress, IPInterface
from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.rtnetlink import (
    IFLA_ADDRESS,
    IFLA_GSO_MAX_SIZE,
    IFLA_IFALIAS,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_TXQLEN,
    Qdisc,
    RouteLimits,
    Rtnetlink,
    TunLink,
)
from vela.linux.shaping import KIND, TokenBucketFilter
from vela.linux.sysctls import set_promote_secondaries

_IFF_UP = 0x1  # include/uapi/linux/if.h
_IFF_NOARP = 0x80
_SIOCGIFMTU = 0x8921  # include/uapi/linux/sockios.h
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933
_MAX_BRIDGE_MTU = 65535  # net/bridge/br_device.c, ETH_MAX_MTU
_NAME_SIZE = 16  # include/uapi/linux/if.h, IFNAMSIZ
_IFREQ = struct.Struct("=16si20x")  # struct ifreq with a number, 64 bit

T = TypeVar("T")

# Frames that wait in the TAP while a worker is replaced or busy.
QUEUE_LENGTH = 1000


class Netlink:
    """One netlink socket for all interfaces. An error of the kernel becomes a DeviceError."""

    def __init__(self) -> None:
        self._kernel = Rtnetlink()
        self._pinned: set[int] = set()
        """Indices of bridges that keep their MTU and MAC address: the kernel gives none twice."""

    def close(self) -> None:
        self._kernel.close()

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
        attributes: dict[int, int | bytes] = {IFLA_TXQLEN: QUEUE_LENGTH}
        if gso_max_size is not None:
            attributes[IFLA_GSO_MAX_SIZE] = gso_max_size
        if alias:
            attributes[IFLA_IFALIAS] = alias.encode()
        index = self._set_link(
            name,
            "set it up",
            attributes,
            flags=_IFF_UP | (0 if arp else _IFF_NOARP),
            change=_IFF_UP | _IFF_NOARP,
        )
        for address in addresses:
            self._add_address(name, index, address)

    def change_addresses(
        self, name: str, gone: Sequence[IPInterface], added: Sequence[IPInterface]
    ) -> None:
        """Give an interface other addresses. Those that others gave it, and their routes, stay.

        Raises DeviceError.
        """
        index = self._index(name)
        # Else the kernel deletes, with an address, all younger ones of its subnet.
        with suppress(DeviceError):
            set_promote_secondaries(name)
        # First: a subnet that stays must never be without an address, or its routes go.
        for address in added:
            self._add_address(name, index, address, may_exist=True)
        for address in gone:
            try:
                self._kernel.delete_address(index, address)
            except OSError as err:
                if err.errno != errno.EADDRNOTAVAIL:  # somebody took it away
                    why = os.strerror(err.errno or errno.EIO)
                    raise DeviceError(f"{name}: cannot delete address {address}: {why}") from err
        # Where sysctls cannot be written they may have gone with others.
        for address in added:
            self._add_address(name, index, address, may_exist=True)

    def _add_address(
        self, name: str, index: int, address: IPInterface, *, may_exist: bool = False
    ) -> None:
        """Raises DeviceError, also if the interface has it already, unless it may."""
        try:
            self._kernel.add_address(index, address)
        except OSError as err:
            if may_exist and err.errno == errno.EEXIST:
                return
            why = os.strerror(err.errno or errno.EIO)
            raise DeviceError(f"{name}: cannot add address {address}: {why}") from err

    def set_alias(self, name: str, alias: str) -> None:
        """Set what "ip link" shows as alias; empty: none. Raises DeviceError."""
        self._set_link(name, "set its alias", {IFLA_IFALIAS: alias.encode()})

    def set_arp(self, name: str, arp: bool) -> None:
        """Let neighbours be asked for, or not: see bring_up. Raises DeviceError."""
        flags = 0 if arp else _IFF_NOARP
        self._set_link(name, "switch ARP", {}, flags=flags, change=_IFF_NOARP)

    def set_gso_max_size(self, name: str, size: int) -> None:
        """Limit the size of the GSO frames that the interface takes, in bytes."""
        self._set_link(name, "limit its GSO frames", {IFLA_GSO_MAX_SIZE: size})

    def qdisc_kind(self, name: str) -> str:
        """Return the kind of the qdisc at the root of an interface. Raises DeviceError."""
        return self._kernel.link_qdisc(self._index(name))

    def root_qdisc(self, name: str) -> Qdisc | None:
        """Return the qdisc that somebody has put at the root of an interface; None: nobody."""
        return self._do(name, "look at its qdisc", self._kernel.root_qdisc)

    def set_qdisc(self, name: str, limit: TokenBucketFilter) -> None:
        """Limit what an interface sends. Raises DeviceError, also where others do that."""
        options = limit.attributes()
        self._do(name, "limit its rate", lambda index: self._kernel.set_qdisc(index, KIND, options))

    def remove_qdisc(self, name: str) -> None:
        """Limit it no longer."""
        self._do(name, "limit its rate no longer", self._kernel.remove_qdisc)

    def find(self, name: str) -> int | None:
        """Return the index of the interface of this name; None: there is none."""
        try:
            return self._index(name)
        except DeviceError:
            return None

    def tun_link(self, index: int) -> TunLink:
        """Return what a TAP's interface is like. Raises DeviceError where there is none."""
        return self._kernel.tun_link(index)

    def addresses(self, index: int) -> frozenset[IPInterface]:
        """Return the addresses of an interface. Raises DeviceError."""
        return frozenset(each.address for each in self._kernel.addresses(index))

    def name_of(self, index: int) -> str:
        """Return the name of an interface; its index where it has just gone."""
        try:
            return socket.if_indextoname(index)
        except OSError:
            return str(index)

    def lower_link(self, index: int) -> int | None:
        """Return the interface that this one stands on, such as a VLAN's; None: there is none."""
        return self._kernel.lower_link(index)

    def describe_route(self, source: IPAddress, remote: IPAddress, choice: UnderlayChoice) -> str:
        """Return the route that packets take, as `ip route` writes it. Raises DeviceError."""
        limits = RouteLimits(choice.index(), choice.mark)
        return self._kernel.describe_route(source, remote, limits)

    def join_bridge(self, name: str, bridge: str) -> int:
        """Make an interface a port of a bridge; return the bridge's MTU, in bytes.

        The bridge keeps its MTU and its MAC address, then and later on.
        """
        master, mtu = self._index(bridge), self._mtu(bridge)
        if master not in self._pinned:
            self._pin(bridge, master, mtu)
        self._set_link(name, f"join it to {bridge}", {IFLA_MASTER: master})
        return mtu

    def bridge_mtu(self, bridge: str) -> int:
        """Return the MTU of a bridge, in bytes. Raises DeviceError."""
        return self._mtu(bridge)

    def remove(self, index: int) -> None:
        """Remove an interface, whoever has descriptors of it. Raises DeviceError."""
        try:
            self._kernel.remove_link(index)
        except OSError as err:
            if err.errno != errno.ENODEV:
                raise DeviceError(f"cannot remove {self.name_of(index)}: {err.strerror}") from err

    def leave_bridge(self, name: str) -> None:
        """Make an interface a port of no bridge. Raises DeviceError."""
        self._set_link(name, "take it out of its bridge", {IFLA_MASTER: 0})

    def _pin(self, bridge: str, index: int, mtu: int) -> None:
        """Let a bridge have what it has by itself, whatever ports come and go.

        A bridge takes the least MTU and MAC address of its ports unless somebody
        set them, and below an MTU of 1280 loses its IPv6 addresses
        (net/bridge/br_if.c, br_mtu_auto_adjust; br_stp_if.c,
        br_stp_recalculate_bridge_id). So both are set, to what they are; once, as
        the hosts behind it are forgotten with the MAC address.
        """
        if self._kernel.link_kind(index) != "bridge":
            return  # to join it fails, and says why
        self._set_link(bridge, "keep its MAC address", {IFLA_ADDRESS: self._mac(bridge)})
        # The kernel takes no note of the MTU that there is: one byte more, and back. One less would
        # go on to the VLANs of the bridge.
        other = mtu + 1 if mtu < _MAX_BRIDGE_MTU else mtu - 1
        self._set_link(bridge, "keep its MTU", {IFLA_MTU: other})
        self._set_link(bridge, "keep its MTU", {IFLA_MTU: mtu})
        self._pinned.add(index)

    def _set_link(
        self,
        name: str,
        what: str,
        attributes: Mapping[int, int | bytes],
        *,
        flags: int = 0,
        change: int = 0,
    ) -> int:
        """Set attributes of an interface, and the flags in change. Return its index.

        Raises DeviceError, saying what could not be done.
        """
        index = self._index(name)
        self._do(name, what, lambda index: self._kernel.set_link(index, attributes, flags, change))
        return index

    def _do(self, name: str, what: str, do: Callable[[int], T]) -> T:
        """Call do with the index of an interface. Raises DeviceError if that raises OSError."""
        try:
            return do(self._index(name))
        except OSError as err:
            why = os.strerror(err.errno or errno.EIO)
            raise DeviceError(f"{name}: cannot {what}: {why}") from err

    def _index(self, name: str) -> int:
        return self._ask(name, _SIOCGIFINDEX)

    def _mtu(self, name: str) -> int:
        return self._ask(name, _SIOCGIFMTU)

    def _mac(self, name: str) -> bytes:
        # struct sockaddr: the type of hardware, 16 bits, then the address.
        return self._look(name, _SIOCGIFHWADDR)[_NAME_SIZE + 2 :][:6]

    def _ask(self, name: str, what: int) -> int:
        number: int = _IFREQ.unpack(self._look(name, what))[1]
        return number

    def _look(self, name: str, what: int) -> bytes:
        """Return the struct ifreq that an ioctl on the netlink socket fills in."""
        try:
            return fcntl.ioctl(self._kernel, what, _IFREQ.pack(name.encode(), 0))
        except OSError as err:
            if err.errno == errno.ENODEV:
                raise DeviceError(f"{name}: there is no interface of this name") from err
            raise DeviceError(f"{name}: cannot look at it: {err.strerror}") from err
