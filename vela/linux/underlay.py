"""The UDP sockets: groups that circuits receive on, and one of its own that each sends from."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from vela.address import Endpoint, Family, IPAddress
from vela.errors import DeviceError
from vela.linux import bpf, ebpf
from vela.linux.choice import ANY_UNDERLAY, CS6, UnderlayChoice, bind_to, set_tos
from vela.linux.features import NETNS_COOKIE_SIZE, SO_NETNS_COOKIE, UDP_GRO, Feature, Features
from vela.linux.port_holder import port_holder
from vela.linux.rtnetlink import RouteLimits, Rtnetlink
from vela.linux.steering import CONTROL_SOCKETS, STRANGERS
from vela.wire import MAX_IP_PACKET

# include/uapi/asm-generic/socket.h; the socket module names none of them.
_SO_ATTACH_FILTER = 26
_SO_LOCK_FILTER = 44
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_ATTACH_REUSEPORT_EBPF = 52
SO_RXQ_OVFL = 40
# include/uapi/linux/in.h, in6.h and udp.h.
IP_MTU_DISCOVER = 10
# Values of both families' MTU_DISCOVER.
_PMTUDISC_WANT, _PMTUDISC_DO, _PMTUDISC_PROBE, _PMTUDISC_OMIT = 1, 2, 3, 5
IP_MTU = 14
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
_IP_PKTINFO = 8

_IN_PKTINFO = struct.Struct("=i4s4s")  # interface, own address, the header's (ip(7))
_IN6_PKTINFO = struct.Struct("=16sI")  # own address, interface (RFC 3542, section 6)
PKTINFO_SPACE = socket.CMSG_SPACE(max(_IN_PKTINFO.size, _IN6_PKTINFO.size))

_NO_TIMEOUT = struct.pack("@qq", 0, 0)  # struct timeval, 64 bit
_DROP_ALL = bpf.instruction(bpf.RETURN, 0)  # nothing of the packet

# What 1 Gbit/s of full-size datagrams needs while a worker is replaced (50 ms);
# the kernel takes memory only for what is queued.
RECEIVE_BUFFER = 8 << 20
# What leaves a wire of 1 Gbit/s in 4 ms, as the kernel doubles it: about what it lets a TCP socket
# of its own have under way there (1 ms of data, and two buffers of 64 KiB). What waits here is out
# of reach of vela.dataplane.backlog. A worker that shares its CPU is away for some milliseconds.
SEND_BUFFER = 256 << 10
# What the supervisor and a worker hand to each other.
_HANDED_BUFFER = 1 << 20


# To look at the namespace of another process, as the first one, takes CAP_SYS_PTRACE; but there are
# settings that only the first namespace shows (net/core/sysctl_net_core.c, sysctl_core_init).
_FIRST_NAMESPACE = 1
_ONLY_IN_FIRST = "/proc/sys/net/core/dev_weight"
_L3MDEV_ACCEPT = Path("/proc/sys/net/ipv4/udp_l3mdev_accept")
_OWN_NAMESPACE = "/proc/thread-self/ns/net"

# As a listening address, or one to send from: whichever the kernel takes.
ANY_ADDRESS: dict[Family, IPAddress] = {
    Family.IPV4: IPv4Address("0.0.0.0"),
    Family.IPV6: IPv6Address("::"),
}


@dataclass(frozen=True, slots=True)
class Route:
    """What the kernel says of the way to a remote."""

    source: IPAddress
    mtu: int
    """Bytes, outer IP header included; by the interface and the routing table, not by ICMP."""
    narrowed: bool = False
    """The routing table, or IPsec, allows less than the interface does."""
    interface: int | None = field(default=None, compare=False)
    """Index of the interface that packets leave by; None: the route has just gone."""
    device: int | None = None
    """Index of the interface, or VRF, that the operator chose."""


class ReceiveGroup:
    """The sockets of one listening address, which share its port (SO_REUSEPORT).

    The first three are the supervisor's own: see linux.steering. The kernel
    numbers sockets in the order of their binding and moves the last one when
    one is closed, so none is closed before the group is: what a circuit gives
    back, the next one gets.
    """

    def __init__(
        self,
        address: IPAddress,
        port: int,
        *,
        only_ipv6: bool,
        gro: bool = True,
        choice: UnderlayChoice = ANY_UNDERLAY,
        adopted: Sequence[socket.socket] = (),
        in_use: Container[int] = (),
    ) -> None:
        """Bind the address; where it is an IPv6 one, IPv4 comes in too unless only_ipv6.

        With gro the kernel joins datagrams that follow each other. choice: with a
        device, only what comes in there; is_apart() says where that works.
        adopted: the sockets of another velad's group at this address, all of them, in
        the order of their indices; those in in_use are given to nobody who does not
        ask for them, and the program that steers to them goes on until steer().
        Raises DeviceError if the port is taken, or the address is not here.
        """
        self.address = address
        self.port = port
        self.choice = choice
        self._only_ipv6 = only_ipv6
        self._gro = gro
        self._sockets: list[socket.socket] = []
        self._free: list[int] = []
        self._program = b""
        self.adopted = bool(adopted)
        """Whether another velad has bound it."""
        if adopted:
            self._sockets = list(adopted)
            self._free = [i for i in range(CONTROL_SOCKETS, len(adopted)) if i not in in_use]
            return
        try:
            # The first is bound before it shares: a second velad must not slip in.
            # One of a device shares the port with a group without one.
            first = choice.device is not None
            for shared in (first, *(True for _ in range(CONTROL_SOCKETS - 1))):
                self._sockets.append(self._control_socket(shared=shared))
        except DeviceError:
            self.close()
            raise

    def __str__(self) -> str:
        return str(Endpoint(self.address, self.port))

    @property
    def control_sockets(self) -> tuple[socket.socket, ...]:
        """The supervisor's, non-blocking: control messages, and all that no circuit claims."""
        return tuple(self._sockets[:CONTROL_SOCKETS])

    @property
    def control_socket(self) -> socket.socket:
        """The one of them that messages are sent from."""
        return self._sockets[STRANGERS]

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """All of them, by their index."""
        return tuple(self._sockets)

    @property
    def every_address(self) -> IPAddress:
        """Any address, of the family of this one."""
        return ANY_ADDRESS[Family.IPV4 if self.address.version == 4 else Family.IPV6]

    def apart(
        self,
        choice: UnderlayChoice,
        adopted: Sequence[socket.socket] = (),
        in_use: Container[int] = (),
    ) -> ReceiveGroup:
        """Return a group with the same port for a device. Raises DeviceError.

        adopted, in_use: as for the constructor.
        """
        return ReceiveGroup(
            self.every_address,
            self.port,
            only_ipv6=False,
            gro=self._gro,
            choice=choice,
            adopted=adopted,
            in_use=in_use,
        )

    def serves(self, family: Family) -> bool:
        """Tell whether datagrams of this family arrive here."""
        if self.address.version == 4:
            return family is Family.IPV4
        return family is Family.IPV6 or (not self._only_ipv6 and self.address == IPv6Address("::"))

    def hears(self, address: IPAddress) -> bool:
        """Tell whether datagrams to this address of the machine arrive here.

        Of the groups of one port only one can: the kernel lets no other share
        a port with one that is bound to all addresses.
        """
        if self.address.is_unspecified:
            return self.serves(Family.IPV4 if address.version == 4 else Family.IPV6)
        return self.address == address

    def addressed(self, ancillary: Iterable[tuple[int, int, bytes]]) -> IPAddress:
        """Return which address of this machine a datagram of a control socket came to.

        ancillary is what recvmsg says, in a space of PKTINFO_SPACE and more.
        """
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                return IPv4Address(_IN_PKTINFO.unpack(value)[1])
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                address = IPv6Address(_IN6_PKTINFO.unpack(value)[0])
                return address.ipv4_mapped or address
        return self.address

    def send(
        self,
        data: bytes,
        here: IPAddress,
        remote: Endpoint,
        choice: UnderlayChoice = ANY_UNDERLAY,
        *,
        dont_fragment: bool = False,
    ) -> None:
        """Send from an address of this machine and the listening port, without waiting.

        Raises OSError: EINVAL where the machine has no such address; with dont_fragment EMSGSIZE
        where the interface's MTU is smaller, whatever ICMP said of the path. Raises DeviceError
        where the chosen device is not there.
        """
        if dont_fragment:
            with _unfragmented(self.control_socket):
                self.send(data, here, remote, choice)
            return
        if not self.address.is_unspecified:
            here = self.address
        elif here.is_unspecified:
            here = ANY_ADDRESS[remote.family]
        ancillary = choice.ancillary()
        index = choice.index()
        if index is not None or not (here.is_unspecified or here == self.address):
            ancillary.append(pktinfo(here, index or 0))
        self.control_socket.sendmsg([data], ancillary, 0, self.sockaddr(remote))

    def acquire(self, adopted: int | None = None) -> int:
        """Return the index of a socket for a circuit: blocking, and with nothing left in it.

        adopted: of one that was in use when the group was adopted; what it has stays in it.
        Raises DeviceError where there can be no more.
        """
        if adopted is not None:
            return adopted
        if self._free:
            index = self._free.pop()
            drain(self._sockets[index])
            return index
        member = self._bound_socket(shared=True)
        _show_tos(member)
        # A worker has a copy. It can then attach neither a filter to the socket nor a steering
        # program to the group, and a filter cannot be locked so that it stays (socket(7)).
        member.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
        self._sockets.append(member)
        return len(self._sockets) - 1

    def member(self, index: int) -> socket.socket:
        return self._sockets[index]

    def release(self, index: int) -> None:
        """Take a socket back; the caller has steered datagrams away from it."""
        self._free.append(index)

    def steer(self, program: bytes) -> None:
        """Let this classic BPF program choose the socket; it replaces the one before at once.

        It is attached as an extended one where this process may load those: see ebpf.py. Otherwise
        no privilege is needed. A group keeps its program as sockets join (Linux 4.5, commit
        538950a1b752). Raises OSError: ENOMEM where it is too large.
        """
        extended = _load(program)
        if extended is None:
            _attach(self._sockets[0], _SO_ATTACH_REUSEPORT_CBPF, program)
        else:
            try:
                self._sockets[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, extended)
            finally:
                os.close(extended)
        self._program = program

    def restore(self, index: int) -> None:
        """Set what a worker may have changed by its copy of a socket. Raises OSError."""
        self._set_up_member(self._sockets[index])
        _show_tos(self._sockets[index])
        # Of all circuits: anybody can detach it.
        if self._program:
            self.steer(self._program)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    def _control_socket(self, *, shared: bool) -> socket.socket:
        opened = self._bound_socket(shared=shared)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.setblocking(False)
        set_tos(opened, CS6)
        # Each datagram then tells how many before it found this socket full.
        opened.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        if self.address.is_unspecified:
            # And which address of this machine it came to.
            if self.address.version == 4:
                opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        return opened

    def _bound_socket(self, *, shared: bool) -> socket.socket:
        with ExitStack() as undo:
            try:
                opened = undo.enter_context(
                    _udp_socket(self.address, self.choice, only_ipv6=self._only_ipv6)
                )
                self._set_up_member(opened)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
                opened.bind((str(self.address), self.port))
            except OSError as err:
                why = os.strerror(err.errno or 0)
                if err.errno == errno.EADDRINUSE and (
                    holder := port_holder(self.port, self.address)
                ):
                    why += f": {holder}"
                if err.errno == errno.EAFNOSUPPORT and self.address.version == 6:
                    why = 'this kernel has no IPv6; daemon.listen = ["0.0.0.0"] would be right'
                raise DeviceError(f"cannot listen on {self}: {why}") from err
            undo.pop_all()
        return opened

    def _set_up_member(self, member: socket.socket) -> None:
        # All sockets of a group alike: which of them GRO looks at is the hash's choice.
        if self._gro:
            member.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        _set_up(member, SEND_BUFFER, RECEIVE_BUFFER)

    @property
    def receive_buffer(self) -> int:
        """Bytes that the kernel granted each socket, of RECEIVE_BUFFER."""
        return _granted(self._sockets[0], socket.SO_RCVBUF)

    def sockaddr(self, endpoint: Endpoint) -> tuple[str, int]:
        """Return an endpoint in the form in which this group's sockets send to it."""
        if self.address.version == 6 and endpoint.address.version == 4:
            return f"::ffff:{endpoint.address}", endpoint.port
        return str(endpoint.address), endpoint.port


@dataclass(frozen=True, slots=True)
class UnderlayPath:
    """Where a circuit sends to and receives from."""

    endpoint: Endpoint
    sources: tuple[IPAddress, ...]
    """All addresses that the remote may send from."""
    route: Route
    """Its source is the local address that the remote speaks to."""
    group: ReceiveGroup
    """Where datagrams to that address arrive."""
    probed_mtu: int | None = None
    """What probes have found, in bytes, the outer IP header included; None: the route's fits."""

    @property
    def mtu(self) -> int:
        """How large packets may be, in bytes: by its route, and by probes."""
        return min(self.route.mtu, self.probed_mtu or self.route.mtu)


def pktinfo(here: IPAddress, index: int = 0) -> tuple[int, int, bytes]:
    """Return what makes sendmsg send from an address of this machine, and by an interface.

    index: 0 for any interface. IPv4's also suits an AF_INET6 socket that
    sends to an IPv4-mapped address (net/ipv4/ip_sockglue.c, ip_cmsg_send).
    """
    if here.version == 4:
        return socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(index, here.packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(here.packed, index)


def open_send_socket(
    local: IPAddress,
    port: int,
    remote: Endpoint,
    *,
    narrowed: bool = False,
    tos: int = 0,
    choice: UnderlayChoice = ANY_UNDERLAY,
) -> socket.socket:
    """Return a blocking socket bound to (local, port) and connected to remote; it receives nothing.

    narrowed: see set_narrowed. Raises OSError: EADDRINUSE where another socket has the port.
    """
    if local.version != remote.address.version:
        # Dual stack: the listening address is "::", its IPv4 side 0.0.0.0.
        local = ANY_ADDRESS[remote.family]
    opened = _udp_socket(local, choice, only_ipv6=True)
    try:
        # What comes to this port is nobody's, and must not lie here unread.
        _attach(opened, _SO_ATTACH_FILTER, _DROP_ALL)
        set_narrowed(opened, narrowed)
        set_tos(opened, tos)
        bind_to(opened, local, port)
        opened.connect((str(remote.address), remote.port))
        _set_up(opened, SEND_BUFFER)
    except OSError:
        opened.close()
        raise
    return opened


@contextmanager
def _unfragmented(opened: socket.socket) -> Iterator[None]:
    """Let a socket send in one piece or not at all. It belongs to this thread alone."""
    options = [(socket.IPPROTO_IP, IP_MTU_DISCOVER)]
    if opened.family == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER))
    before = [opened.getsockopt(*option) for option in options]
    try:
        for option in options:
            opened.setsockopt(*option, _PMTUDISC_PROBE)
        yield
    finally:
        for option, mode in zip(options, before, strict=True):
            opened.setsockopt(*option, mode)


def set_narrowed(opened: socket.socket, narrowed: bool) -> None:
    """Let what a socket sends be cut to its interface's MTU; narrowed: to that of its route.

    What is larger leaves in fragments either way. Of the modes that the kernel
    has (ip(7), IP_MTU_DISCOVER), those that heed a route's MTU also believe
    what ICMP says of the path, and anybody can send ICMP. So only a route that
    is narrower than its interface is heeded: its MTU holds however many
    messages say so, and one that is forged then makes fragments smaller, and
    nothing else. OMIT (Linux 3.15) sets no don't-fragment bit.
    """
    mode = _PMTUDISC_WANT if narrowed else _PMTUDISC_OMIT
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
    # Of an IPv6 socket too, for IPv4-mapped addresses. In place of a system-wide default
    # (net.ipv4.ip_no_pmtu_disc).
    opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)


def restore_send_socket(
    opened: socket.socket, remote: Endpoint, *, narrowed: bool = False, tos: int = 0
) -> None:
    """Set what a worker may have changed by its copy of a sending socket. Raises OSError."""
    _set_up(opened, SEND_BUFFER)
    set_narrowed(opened, narrowed)
    set_tos(opened, tos)
    _attach(opened, _SO_ATTACH_FILTER, _DROP_ALL)
    opened.connect((str(remote.address), remote.port))


def find_route(local: IPAddress, remote: Endpoint, choice: UnderlayChoice = ANY_UNDERLAY) -> Route:
    """Ask the kernel for the way from a listening address to a remote.

    Raises OSError: ENETUNREACH where there is none; see also UnderlayChoice.explain.
    """
    if local.version != remote.address.version:
        local = ANY_ADDRESS[remote.family]
    with _udp_socket(local, choice, only_ipv6=True) as probe:
        bind_to(probe, local, 0)
        probe.connect((str(remote.address), remote.port))
        source = ip_address(probe.getsockname()[0])
        return _own_route(source, remote.address, _current_mtu(probe), choice)


def _own_route(source: IPAddress, remote: IPAddress, current: int, choice: UnderlayChoice) -> Route:
    """Return a route with its MTU without what ICMP said.

    current is what the kernel goes by: it has what ICMP said, and what IPsec takes.
    """
    try:
        device = choice.index()
        with closing(Rtnetlink()) as kernel:
            route = kernel.route_mtu(source, remote, RouteLimits(device, choice.mark))
            interface = min(kernel.link_mtu(route.index), MAX_IP_PACKET)
    except DeviceError:  # the route has just gone
        return Route(source, current, narrowed=True)
    if route.learned is not None and route.learned != route.configured:
        own = route.configured or _interface_mtu(remote, route.index, interface)
        current = min(current + own - route.learned, interface)
    return Route(source, current, current < interface, route.index, device)


def _interface_mtu(remote: IPAddress, index: int, interface: int) -> int:
    """Return how large packets to a remote may be on an interface, whose own MTU is known.

    A router advertisement can lower IPv6's (RFC 4861, section 4.6.4).
    """
    if remote.version == 4:
        return interface
    with suppress(OSError, ValueError):
        path = Path("/proc/sys/net/ipv6/conf", socket.if_indextoname(index), "mtu")
        return min(interface, int(path.read_text()))
    return interface


def is_apart(index: int) -> bool:
    """Tell whether what comes in by an interface reaches only sockets of its VRF."""
    # Then a group without a device gets it, whatever others there are: the first one that has
    # SO_REUSEPORT is not compared any further (net/ipv4/udp.c, udp4_lib_lookup2).
    with suppress(OSError, ValueError):
        if int(_L3MDEV_ACCEPT.read_text()):
            return False
    with suppress(DeviceError), closing(Rtnetlink()) as kernel:
        return kernel.is_of_vrf(index)
    return False


def route_mtu(connected: socket.socket) -> int:
    """Return the MTU, in bytes, that limits what a connected UDP socket sends in one piece.

    The outer IP header counts. Raises OSError where the kernel does not tell: of
    a socket that is not connected, or not narrowed.
    """
    ipv4 = connected.family == socket.AF_INET
    level, option = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER) if ipv4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    )
    if connected.getsockopt(level, option) > _PMTUDISC_DO:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return _current_mtu(connected)


def _current_mtu(connected: socket.socket) -> int:
    """Return the MTU of its route by what the kernel knows, ICMP included. Raises OSError."""
    if connected.family == socket.AF_INET:
        return connected.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return connected.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)


def set_send_buffer(sender: socket.socket) -> None:
    """Give a socket room for what its reader has not come to yet."""
    _set_buffer(sender, _HANDED_BUFFER, _SO_SNDBUFFORCE, socket.SO_SNDBUF)


def drain(receiver: socket.socket) -> None:
    """Throw away what is queued."""
    try:
        while True:
            receiver.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass


def namespace_number(features: Features) -> int:
    """Return a number that no other network namespace of this machine has; 1 for the first.

    For others the kernel's cookie, or without NETNS_COOKIE the namespace's
    inode. The first one's cookie depends on the kernel: 1 up to Linux 6.17,
    something else since all namespaces are numbered together. Its interfaces
    must keep their MAC addresses when the machine gets another kernel.
    """
    if os.path.exists(_ONLY_IN_FIRST):
        return _FIRST_NAMESPACE
    if Feature.NETNS_COOKIE not in features:
        return os.stat(_OWN_NAMESPACE).st_ino
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asked:
        raw = asked.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, NETNS_COOKIE_SIZE)
    return int.from_bytes(raw, "little")


def _udp_socket(local: IPAddress, choice: UnderlayChoice, *, only_ipv6: bool) -> socket.socket:
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        set_narrowed(opened, False)
        choice.apply(opened)
    except OSError:
        opened.close()
        raise
    return opened


def _attach(opened: socket.socket, option: int, program: bytes) -> None:
    """Hand a classic BPF program, an array of struct sock_filter, to the kernel."""
    fprog = bpf.Fprog(program)
    opened.setsockopt(socket.SOL_SOCKET, option, fprog.raw)


def _load(program: bytes) -> int | None:
    """Return the descriptor of a classic program's extended form; None: there can be none."""
    if ebpf.why_unavailable():
        return None
    try:
        return ebpf.load(ebpf.translate(program))
    except OSError:
        # E2BIG, EACCES: more than the kernel's check of programs goes through.
        return None


def _show_tos(opened: socket.socket) -> None:
    """Let a socket tell the TOS byte, or traffic class, of what it receives. Raises OSError."""
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    # Of an IPv6 socket too, for IPv4-mapped addresses.
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)


def _set_up(opened: socket.socket, send_buffer: int, receive_buffer: int | None = None) -> None:
    """Set buffers, in bytes, and let calls wait for as long as it takes."""
    _set_buffer(opened, send_buffer, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
    if receive_buffer is not None:
        _set_buffer(opened, receive_buffer, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        opened.setsockopt(socket.SOL_SOCKET, option, _NO_TIMEOUT)
    opened.setblocking(True)


def _set_buffer(opened: socket.socket, size: int, force: int, plain: int) -> None:
    """Ask for size bytes; beyond the system's limit where the privilege is there."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, plain, size)


def _granted(opened: socket.socket, option: int) -> int:
    # The kernel doubles what is asked for, to have room for its own bookkeeping (socket(7)).
    return opened.getsockopt(socket.SOL_SOCKET, option) // 2
