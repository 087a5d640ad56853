"""Messages about links, addresses and routes, to the kernel and back: rtnetlink(7), by hand.

Few fields of few messages are needed, of many routes: decoding each of them whole takes fifty times
as long. A library for two messages that change something costs 25 MB in the supervisor.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network

from vela.address import IPAddress, IPInterface, IPNetwork
from vela.errors import DeviceError
from vela.linux.recollection import Recollection

# include/uapi/linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ECHO, _EXCL, _CREATE = 0x8, 0x200, 0x400
_ERROR, _DONE = 2, 3
_ERRNO = struct.Struct("=i")
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_BUFFER = 1 << 16
_MONITOR_BUFFER = 1 << 20
_CHANGES_AT_ONCE = 64

# include/uapi/linux/rtnetlink.h, if_link.h and if_addr.h
_NEW_LINK, _DELETE_LINK, _GET_LINK, _SET_LINK = 16, 17, 18, 19
_IFF_UP = 0x1
# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_GROUPS_OF_LINKS = 0x1 | 0x10 | 0x100
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=8BI")  # family, prefix lengths, TOS, table, protocol, scope, type, flags
_IFLA_IFNAME, _IFLA_LINK, _IFLA_QDISC, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 5, 6, 18, 37
IFLA_ADDRESS, IFLA_MTU, IFLA_MASTER, IFLA_TXQLEN, IFLA_IFALIAS, IFLA_GSO_MAX_SIZE = (
    1,
    4,
    10,
    13,
    20,
    41,
)
_IFLA_TXQLEN = 13
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND = 1, 2, 4
_IFLA_TUN_OWNER, _IFLA_TUN_GROUP, _IFLA_TUN_PERSIST = 1, 2, 6
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS, _RTA_MARK = 1, 2, 4, 5, 8, 16
_RTAX_MTU = 2
_RTN_UNICAST = 1
_NEW_QDISC, _DELETE_QDISC, _GET_QDISC = 36, 37, 38
_QDISC = struct.Struct("=BxHiIII")  # family, padding, index, handle, parent, info
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_TCA_KIND, _TCA_OPTIONS = 1, 2
# Of velad's qdiscs: a number that nobody else gives. The kernel counts from 8001: on.
_OWN_MAJOR = 0x7E1A
_RTPROT_KERNEL, _RTPROT_BOOT, _RTPROT_STATIC = 2, 3, 4
_RTPROT_RA, _RTPROT_DHCP = 9, 16
_RTM_F_FIB_MATCH = 0x2000
_GROUPS = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_U32 = struct.Struct("=I")
_IFA_F_NODAD = 0x02

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

# What is read of all routes at once: 0.1 s. A router with more has them from a routing protocol.
MAX_ROUTES = 20_000
# Interfaces whose packets leave by the one that they stand on.
_STACKED = ("vlan", "macvlan", "ipvlan", "macsec")
_SET_BY_HAND = (_RTPROT_BOOT, _RTPROT_STATIC, _RTPROT_RA, _RTPROT_DHCP)


@dataclass(frozen=True, slots=True)
class TunLink:
    """What others can change of a TAP's interface."""

    mac: bytes
    owner: int | None
    group: int | None
    """Who may open the interface; None: anybody, or the kernel does not say."""
    persistent: bool
    """Whether it stays when its last descriptor is closed."""
    port_of: str
    """What it is a part of, as in `ip link add ... type`; empty: of nothing."""
    master: int | None
    """The index of that."""
    name: str
    up: bool
    """Administratively."""
    mtu: int
    queue_length: int | None = None
    """In frames; None: the kernel does not say."""


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of this host, and the subnet that is reached through its interface."""

    address: IPInterface
    subnet: IPNetwork
    index: int


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route that packets take, but neither a default one nor the one of an address's subnet."""

    network: IPNetwork
    index: int | None
    """Of the interface; None: there are several, or it is of a kind that has none."""


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """What a route is chosen by beside its addresses."""

    index: int | None = None
    """Of an interface, or of a VRF's."""
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class RouteMtu:
    """The route to a destination, and what limits packets on it, in bytes."""

    index: int
    """Of the interface."""
    configured: int | None
    """What the route says by itself."""
    learned: int | None
    """What is said in place of that at present: where they differ, by ICMP."""


@dataclass(frozen=True, slots=True)
class Qdisc:
    """The qdisc at the root of an interface, where somebody has put one there."""

    kind: str
    major: int
    """The number before the colon, as tc shows it in hexadecimal."""

    @property
    def is_own(self) -> bool:
        """Whether velad has put it there."""
        return self.major == _OWN_MAJOR


@dataclass(frozen=True, slots=True)
class _Found:
    """What a look-up of a route returned."""

    network: IPNetwork
    gateway: IPAddress | None
    index: int | None
    mtu: int | None


class TooManyRoutes(Exception):
    """There are more than MAX_ROUTES."""


class Rtnetlink:
    """A socket to ask with. Everything raises DeviceError where the kernel does not answer."""

    def __init__(self) -> None:
        try:
            self._socket = _open_socket()
        except OSError as err:
            raise DeviceError(f"cannot ask for routes: {os.strerror(err.errno or 0)}") from err
        self._sequence = 0
        self._host_addresses = Recollection(_host_address)
        self._host_routes = Recollection(_host_route)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_link(
        self, index: int, attributes: Mapping[int, int | bytes], flags: int = 0, change: int = 0
    ) -> None:
        """Set attributes of an interface, 32-bit numbers or bytes, and the flags in change.

        Raises OSError.
        """
        body = _LINK.pack(0, 0, index, flags, change)
        for kind, value in attributes.items():
            body += _attribute(kind, value if isinstance(value, bytes) else _U32.pack(value))
        self._change(_SET_LINK, 0, body)

    def remove_link(self, index: int) -> None:
        """Remove an interface. Raises OSError."""
        self._change(_DELETE_LINK, 0, _LINK.pack(0, 0, index, 0, 0))

    def add_address(self, index: int, address: IPInterface) -> None:
        """Give an interface an address. Raises OSError.

        The operator chooses the addresses of both ends; duplicate address detection would delay
        the circuit for a second.
        """
        flags = _IFA_F_NODAD if address.version == 6 else 0
        self._change(_NEW_ADDRESS, _CREATE | _EXCL, _address_of(index, address, flags))

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Take an address from an interface. Raises OSError: EADDRNOTAVAIL if it has it not."""
        self._change(_DELETE_ADDRESS, 0, _address_of(index, address))

    def link_kind(self, index: int) -> str:
        """Return what a virtual interface is, as in `ip link add ... type`; else nothing."""
        answer = self._ask(_GET_LINK, _LINK.pack(0, 0, index, 0, 0))
        info = _attributes(answer, _LINK.size).get(_IFLA_LINKINFO, b"")
        return _attributes(info, 0).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()

    def link_qdisc(self, index: int) -> str:
        """Return the kind of the qdisc at the root of an interface, whoever has put it there."""
        answer = self._ask(_GET_LINK, _LINK.pack(0, 0, index, 0, 0))
        return _attributes(answer, _LINK.size).get(_IFLA_QDISC, b"").rstrip(b"\0").decode()

    def link_mtu(self, index: int) -> int:
        answer = self._ask(_GET_LINK, _LINK.pack(0, 0, index, 0, 0))
        return int(_U32.unpack(_attributes(answer, _LINK.size)[IFLA_MTU])[0])

    def tun_link(self, index: int) -> TunLink:
        body = self._ask(_GET_LINK, _LINK.pack(0, 0, index, 0, 0))
        flags = _LINK.unpack_from(body)[3]
        answer = _attributes(body, _LINK.size)
        info = _attributes(answer.get(_IFLA_LINKINFO, b""), 0)
        data = _attributes(info.get(_IFLA_INFO_DATA, b""), 0)
        # Who may open it is left out where that is anybody (drivers/net/tun.c, tun_fill_info).
        return TunLink(
            mac=answer.get(IFLA_ADDRESS, b""),
            owner=_number(data.get(_IFLA_TUN_OWNER)),
            group=_number(data.get(_IFLA_TUN_GROUP)),
            persistent=data.get(_IFLA_TUN_PERSIST, b"\0") != b"\0",
            port_of=info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0").decode(),
            master=_number(answer.get(IFLA_MASTER)),
            name=answer.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            up=bool(flags & _IFF_UP),
            mtu=_number(answer.get(IFLA_MTU)) or 0,
            queue_length=_number(answer.get(_IFLA_TXQLEN)),
        )

    def root_qdisc(self, index: int) -> Qdisc | None:
        """Return the qdisc of an interface; None: the kernel's own. Raises OSError."""
        # There is no answer about one that is built in.
        for answer in self._change(_GET_QDISC, _ECHO, _QDISC.pack(0, 0, index, 0, _ROOT, 0)):
            handle = _QDISC.unpack_from(answer)[3]
            if handle:
                kind = _attributes(answer, _QDISC.size).get(_TCA_KIND, b"").rstrip(b"\0").decode()
                return Qdisc(kind, handle >> 16)
        return None

    def set_qdisc(self, index: int, kind: str, options: Mapping[int, bytes]) -> None:
        """Put velad's qdisc at the root of an interface, or change it.

        Raises OSError: EEXIST where somebody else has put one there.
        """
        body = _QDISC.pack(0, 0, index, _OWN_MAJOR << 16, _ROOT, 0)
        body += _attribute(_TCA_KIND, kind.encode() + b"\0")
        inner = b"".join(_attribute(number, value) for number, value in options.items())
        self._change(_NEW_QDISC, _CREATE, body + _attribute(_TCA_OPTIONS, inner))

    def remove_qdisc(self, index: int) -> None:
        """Remove velad's qdisc. Raises OSError: EINVAL where another one is there."""
        self._change(_DELETE_QDISC, 0, _QDISC.pack(0, 0, index, _OWN_MAJOR << 16, _ROOT, 0))

    def route_mtu(self, local: IPAddress, remote: IPAddress, limits: RouteLimits) -> RouteMtu:
        """Return what limits packets from an address of this host to a remote."""
        current = self._look_up(local, remote, 0, limits)
        if current.mtu is None:  # mostly: nothing was configured, and nothing learned
            return RouteMtu(index=current.index or 0, configured=None, learned=None)
        route = self._look_up(local, remote, _RTM_F_FIB_MATCH, limits)
        return RouteMtu(index=current.index or 0, configured=route.mtu, learned=current.mtu)

    def describe_route(self, local: IPAddress, remote: IPAddress, limits: RouteLimits) -> str:
        """Return the route that packets to a remote take, as `ip route` writes it."""
        route = self._look_up(local, remote, _RTM_F_FIB_MATCH, limits)
        words = [str(route.network)]
        if route.gateway is not None:
            words += ["via", str(route.gateway)]
        if route.index is not None:
            words += ["dev", _name_of(route.index)]
        return " ".join(words)

    def is_of_vrf(self, index: int) -> bool:
        """Tell whether an interface is a VRF, or a part of one: what comes in there is apart."""
        link = _attributes(self._ask(_GET_LINK, _LINK.pack(0, 0, index, 0, 0)), _LINK.size)
        info = _attributes(link.get(_IFLA_LINKINFO, b""), 0)
        kinds = (info.get(each, b"") for each in (_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND))
        return any(kind.rstrip(b"\0") == b"vrf" for kind in kinds)

    def lower_link(self, index: int) -> int | None:
        """Return the interface that this one stands on, such as a VLAN's; None: there is none."""
        link = _attributes(self._ask(_GET_LINK, _LINK.pack(0, 0, index, 0, 0)), _LINK.size)
        info = _attributes(link.get(_IFLA_LINKINFO, b""), 0)
        kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
        if kind not in _STACKED or _IFLA_LINK_NETNSID in link:
            return None
        return _number(link.get(_IFLA_LINK))

    def addresses(self, index: int = 0) -> tuple[HostAddress, ...]:
        """Return the addresses of an interface; index 0: of all."""
        body = _ADDRESS.pack(0, 0, 0, 0, index)
        dump = self._dump(_GET_ADDRESS, body, _NEW_ADDRESS)
        if index:
            return tuple(map(_host_address, dump))
        found = tuple(map(self._host_addresses.read, dump))
        self._host_addresses.end_dump()
        return found

    def routes(self, wanted: tuple[IPNetwork, ...]) -> tuple[tuple[HostRoute, ...], bool]:
        """Return all routes, and that they are all.

        Of very many only those that no routing protocol has set, MAX_ROUTES of each kind at most,
        and the one that a packet to each wanted network would take.
        """
        try:
            routes = tuple(self._routes(0))
            self._host_routes.end_dump()
            return routes, True
        except TooManyRoutes:
            pass
        found: list[HostRoute] = []
        for protocol in _SET_BY_HAND:
            with suppress(TooManyRoutes):
                found.extend(self._routes(protocol))
        for network in wanted:
            taken = self._route_to(network.network_address)
            if taken is not None:
                found.append(taken)
        return tuple(found), False

    def _routes(self, protocol: int) -> Iterator[HostRoute]:
        count = 0
        for family in FAMILIES.values():
            body = _ROUTE.pack(family, 0, 0, 0, 0, protocol, 0, _RTN_UNICAST, 0)
            for answer in self._dump(_GET_ROUTE, body, _NEW_ROUTE):
                count += 1
                if count > MAX_ROUTES:
                    # The rest of the answer must not be taken for another one.
                    self._socket.close()
                    self._socket = _open_socket()
                    raise TooManyRoutes
                route = self._host_routes.read(answer)
                if route is not None:
                    yield route

    def _route_to(self, address: IPAddress) -> HostRoute | None:
        attribute = _attribute(_RTA_DST, address.packed)
        body = _ROUTE.pack(
            FAMILIES[address.version], address.max_prefixlen, *(0,) * 6, _RTM_F_FIB_MATCH
        )
        try:
            return _host_route(self._ask(_GET_ROUTE, body + attribute))
        except DeviceError:
            return None  # no route at all

    def _look_up(
        self, local: IPAddress, remote: IPAddress, flags: int, limits: RouteLimits
    ) -> _Found:
        length = remote.max_prefixlen
        body = _ROUTE.pack(FAMILIES[remote.version], length, length, *(0,) * 5, flags)
        for kind, address in ((_RTA_DST, remote), (_RTA_SRC, local)):
            body += _attribute(kind, address.packed)
        for kind, number in ((_RTA_OIF, limits.index), (_RTA_MARK, limits.mark)):
            if number is not None:
                body += _attribute(kind, _U32.pack(number))
        answer = self._ask(_GET_ROUTE, body)
        attributes = _attributes(answer, _ROUTE.size)
        gateway = attributes.get(_RTA_GATEWAY)
        return _Found(
            network=_destination(answer),
            gateway=None if gateway is None else ip_address(gateway),
            index=_number(attributes.get(_RTA_OIF)),
            mtu=_mtu_of(attributes),
        )

    def _ask(self, kind: int, body: bytes) -> bytes:
        """Return the body of the one message that answers."""
        return next(self._answers(kind, _REQUEST, body))

    def _dump(self, kind: int, body: bytes, answer: int) -> Iterator[bytes]:
        return self._answers(kind, _REQUEST | _DUMP, body)

    def _change(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send a message; the kernel's verdict follows at once. Raises OSError.

        Return what it says before that.
        """
        said: list[bytes] = []
        self._sequence += 1
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, kind, _REQUEST | _ACK | flags, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for of_kind, number, answer in _messages(self._socket.recv(_BUFFER)):
                if of_kind == _ERROR and number == self._sequence:
                    error = -_ERRNO.unpack_from(answer)[0]
                    if error:
                        raise OSError(error, os.strerror(error))
                    return said
                if number == self._sequence:
                    said.append(answer)

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        sequence = self._sequence
        length = _HEADER.size + len(body)
        try:
            self._socket.send(_HEADER.pack(length, kind, flags, sequence, 0) + body)
            while True:
                for of_kind, number, answer in _messages(self._socket.recv(_BUFFER)):
                    if number != sequence:
                        continue
                    if of_kind == _DONE:
                        return
                    if of_kind == _ERROR:
                        error = -_ERRNO.unpack_from(answer)[0]
                        raise OSError(error, os.strerror(error))
                    yield answer
        except OSError as err:
            why = os.strerror(err.errno or 0)
            raise DeviceError(f"cannot ask the kernel for routes: {why}") from err


class _Monitor:
    """A socket that hears of changes of one kind."""

    def __init__(self, groups: int, of_what: str) -> None:
        self._socket = _open_monitor(groups, of_what)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class RouteMonitor(_Monitor):
    """Hears of routes that come and go."""

    def __init__(self) -> None:
        """Raises DeviceError."""
        super().__init__(_GROUPS, "routes")

    def changes(self) -> tuple[IPNetwork, ...] | None:
        """Return where routes have changed since the last call; None: there were too many."""
        found: list[IPNetwork] = []
        try:
            while True:
                for kind, _, body in _messages(self._socket.recv(_BUFFER)):
                    if kind in (_NEW_ROUTE, _DELETE_ROUTE):
                        found.append(_destination(body))
        except BlockingIOError:
            return tuple(found)
        except OSError:  # ENOBUFS: netlink(7)
            return None


class LinkMonitor(_Monitor):
    """Hears of interfaces that change, go, or lose an address."""

    def __init__(self) -> None:
        """Raises DeviceError."""
        super().__init__(_GROUPS_OF_LINKS, "interfaces")

    def changes(self) -> set[int] | None:
        """Return the indices of some that have changed; None: there were too many to know.

        What is not read now makes the descriptor readable again.
        """
        found: set[int] = set()
        try:
            for _ in range(_CHANGES_AT_ONCE):
                for kind, _, body in _messages(self._socket.recv(_BUFFER)):
                    if kind in (_NEW_LINK, _DELETE_LINK):
                        found.add(_LINK.unpack_from(body)[2])
                    elif kind == _DELETE_ADDRESS:
                        found.add(_ADDRESS.unpack_from(body)[4])
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: netlink(7)
            return None
        return found


def _open_monitor(groups: int, of_what: str) -> socket.socket:
    try:
        opened = _open_socket(groups)
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MONITOR_BUFFER)
    except OSError as err:
        raise DeviceError(f"cannot watch {of_what}: {os.strerror(err.errno or 0)}") from err
    return opened


def _open_socket(groups: int = 0) -> socket.socket:
    opened = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    try:
        opened.bind((0, groups))
        # So that the kernel leaves out what was not asked for (Linux 4.20).
        opened.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
    except OSError:
        opened.close()
        raise
    return opened


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, sequence number and body."""
    at = 0
    while len(data) - at >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while len(data) - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it has just gone
        return str(index)


def _address_of(index: int, address: IPInterface, flags: int = 0) -> bytes:
    body = _ADDRESS.pack(FAMILIES[address.version], address.network.prefixlen, flags, 0, index)
    return body + b"".join(
        _attribute(kind, address.ip.packed) for kind in (_IFA_LOCAL, _IFA_ADDRESS)
    )


def _number(value: bytes | None) -> int | None:
    return None if value is None else int(_U32.unpack(value)[0])


def _mtu_of(route: dict[int, bytes]) -> int | None:
    metrics = _attributes(route.get(_RTA_METRICS, b""), 0)
    return _U32.unpack(metrics[_RTAX_MTU])[0] if _RTAX_MTU in metrics else None


def _destination(body: bytes) -> IPNetwork:
    family, length = body[0], body[1]
    attributes = _attributes(body, _ROUTE.size)
    packed = attributes.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    return ip_network((packed, length))


def _host_address(body: bytes) -> HostAddress:
    _, length, _, _, index = _ADDRESS.unpack_from(body)
    attributes = _attributes(body, _ADDRESS.size)
    # The address of a point-to-point interface is the other end's.
    peer = ip_address(attributes[_IFA_ADDRESS])
    local = ip_address(attributes.get(_IFA_LOCAL, attributes[_IFA_ADDRESS]))
    form = IPv4Interface if local.version == 4 else IPv6Interface
    subnet = ip_network((peer, length), strict=False)
    return HostAddress(form((local, length)), subnet, index)


def _host_route(body: bytes) -> HostRoute | None:
    family, length, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    known = family in FAMILIES.values()
    if not known or not length or kind != _RTN_UNICAST or protocol == _RTPROT_KERNEL:
        return None
    oif = _attributes(body, _ROUTE.size).get(_RTA_OIF)
    return HostRoute(_destination(body), None if oif is None else _U32.unpack(oif)[0])
