"""What arrives: who claims it, the steering that follows, and all that no worker gets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Protocol

import structlog

from vela.address import Endpoint, IPAddress
from vela.dataplane.frame import REBUILD_ROOM
from vela.errors import DeviceError, VelaError
from vela.linux.bpf import MAX_INSTRUCTIONS
from vela.linux.features import UDP_GRO
from vela.linux.rtnetlink import RouteMonitor
from vela.linux.steering import ControlSteering, Route, steering_program
from vela.linux.underlay import (
    ANY_ADDRESS,
    PKTINFO_SPACE,
    SO_RXQ_OVFL,
    ReceiveGroup,
    find_route,
)
from vela.linux.underlay import Route as Way
from vela.wire import CONTROL_CIRCUIT_ID, MAX_UDP_PAYLOAD

from .runtime.burst import Burst
from .runtime.loop import EventLoop, Timer

# Datagrams taken before the loop looks at anything else: a flood must not hold
# up a worker's restart. 64 of them take about 1 ms.
DATAGRAMS_AT_ONCE = 64

_LEAST_ROOM = 16  # instructions; the kernel's smallest allowance takes ten times as many

# A program for 255 circuits takes 10 ms to build.
STEER_INTERVAL_S = 0.1

# Between looks at routes that change: each takes 0.3 ms for each circuit that it concerns.
LOOK_INTERVAL_S = 0.5

_GRO_SIZE = struct.Struct("=i")
_OVERFLOWS = struct.Struct("=I")
_ANCILLARY_SPACE = (
    socket.CMSG_SPACE(_GRO_SIZE.size) + socket.CMSG_SPACE(_OVERFLOWS.size) + PKTINFO_SPACE
)


UNKNOWN_PORT = -1
"""Of a source: what comes from there was joined to a circuit's that may come from any port."""


class DropReason(Enum):
    """Why a datagram that belongs to no circuit was dropped."""

    EMPTY = "empty"
    UNKNOWN_CIRCUIT = "unknown_circuit"
    CONTROL = "control"
    WRONG_PORT = "wrong_port"  # from the remote's address, and not from the port that it named
    OVERFLOW = "overflow"  # came faster than the supervisor looks at them


ControlHandler = Callable[[bytes, Endpoint, IPAddress], None]
"""Takes a message, where it comes from, and which address of this machine it came to."""


class CircuitIdTaken(VelaError):
    """Another circuit has this id toward the same address."""


class Receiver(Protocol):
    """A circuit, as far as demux knows it."""

    @property
    def name(self) -> str: ...

    def deliver(self, data: bytearray, start: int, end: int) -> None:
        """Take a datagram that came past the worker, with REBUILD_ROOM bytes before it."""

    def look_at_route(self) -> None:
        """Take note that the route to the remote may have changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A circuit's hold on its datagrams, and on the socket that they are steered to."""

    receiver: Receiver
    circuit_id: int
    sources: tuple[IPAddress, ...]
    group: ReceiveGroup
    index: int

    @property
    def socket(self) -> socket.socket:
        return self.group.member(self.index)

    def restore(self) -> None:
        """Set what a worker may have changed by its copy of the socket. Raises OSError."""
        self.group.restore(self.index)


class Demux:
    """Knows all listening sockets and all claims."""

    def __init__(self, loop: EventLoop, groups: Iterable[ReceiveGroup]) -> None:
        self._loop = loop
        self._groups = tuple(groups)
        self._claims: dict[tuple[IPAddress, int], Claim] = {}
        self._ports: dict[Claim, int] = {}
        self._withdrawn: list[Claim] = []
        self._steerings = Burst(loop, STEER_INTERVAL_S)
        self._steering: Timer | None = None
        self._control = ControlSteering()
        self._looks = Burst(loop, LOOK_INTERVAL_S)
        self._to_look_at: dict[int, Claim] = {}
        self._overflows: dict[int, int] = {}
        self._on_control: ControlHandler = self._drop_control
        self._data = bytearray(REBUILD_ROOM + MAX_UDP_PAYLOAD)
        self._target = [memoryview(self._data)[REBUILD_ROOM:]]
        self._log = structlog.get_logger()
        self._dropped = dict.fromkeys(DropReason, 0)
        self._monitor = RouteMonitor()
        loop.watch(self._monitor.fileno(), self._on_route_changes)
        for group in self._groups:
            group.steer(steering_program(()).program)
            for control_socket in group.control_sockets:
                receive = partial(self._receive, group, control_socket)
                loop.watch(control_socket.fileno(), receive)

    def close(self) -> None:
        """Hear of no more route changes; the groups are their owner's."""
        self._loop.unwatch(self._monitor.fileno())
        self._monitor.close()

    @property
    def groups(self) -> tuple[ReceiveGroup, ...]:
        return self._groups

    def group_at(self, here: IPAddress) -> ReceiveGroup | None:
        """Return the group on which datagrams to this address of the machine arrive."""
        return next((group for group in self._groups if group.hears(here)), None)

    def way_from(self, here: IPAddress, remote: Endpoint) -> tuple[ReceiveGroup, Way]:
        """Return how a remote is reached from an address of this machine.

        Raises DeviceError, saying why it is not.
        """
        group = self.group_at(here)
        if group is None:
            raise DeviceError(f"velad does not listen on {here}")
        try:
            return group, find_route(here, remote)
        except OSError as err:
            raise DeviceError(_no_way(remote, err)) from err

    def way_to(self, remote: Endpoint) -> tuple[ReceiveGroup, Way]:
        """Return how a remote is reached, and from which listening address.

        From the one that the kernel would take by itself, if it is one of
        them, as that is where the remote expects datagrams from; else from
        the first that has a route.

        Raises DeviceError, saying why there is none.
        """
        groups = [group for group in self._groups if group.serves(remote.family)]
        if not groups:
            raise DeviceError(f"velad listens on no {remote.family.value} address")
        if len(groups) > 1:
            try:
                own = find_route(ANY_ADDRESS[remote.family], remote).source
            except OSError:
                pass  # a rule may still give some source a route
            else:
                groups.sort(key=lambda group: group.address != own)
        obstacle = ""
        for group in groups:
            try:
                return group, find_route(group.address, remote)
            except OSError as err:
                obstacle = obstacle or _no_way(remote, err)
        raise DeviceError(obstacle)

    def claim(
        self,
        receiver: Receiver,
        circuit_id: int,
        sources: tuple[IPAddress, ...],
        group: ReceiveGroup,
    ) -> Claim:
        """Let a circuit have what comes from sources with its id.

        Raises CircuitIdTaken, or DeviceError if no more sockets are to be had.
        """
        # As the steering program tells them apart.
        sources = tuple(dict.fromkeys(map(_plain, sources)))
        for source in sources:
            other = self._claims.get((source, circuit_id))
            if other is not None:
                raise CircuitIdTaken(
                    f"{other.receiver.name} already uses circuit id {circuit_id} toward {source}"
                )
        claim = Claim(receiver, circuit_id, sources, group, group.acquire())
        for source in sources:
            self._claims[source, circuit_id] = claim
        self._steer_soon()
        return claim

    def withdraw(self, claim: Claim) -> None:
        """Give up a claim; its socket goes back when nothing is steered to it any more."""
        for source in claim.sources:
            del self._claims[source, claim.circuit_id]
        self._ports.pop(claim, None)
        self._withdrawn.append(claim)
        self._steer_soon()

    def expect_control(self, control: ControlSteering) -> None:
        """Let these control messages wait in queues of their own, apart from strangers'."""
        if control != self._control:
            self._control = control
            self._steer_soon()

    def restrict(self, claim: Claim, port: int | None) -> None:
        """Let a circuit have only what comes from this UDP port; None: from any."""
        if self._ports.get(claim) == port:
            return
        if port is None:
            del self._ports[claim]
        else:
            self._ports[claim] = port
        self._steer_soon()

    def port_of(self, claim: Claim) -> int | None:
        """Return the port that a circuit's datagrams must come from; None: any."""
        return self._ports.get(claim)

    def dispatch(
        self, source: Endpoint, here: IPAddress, data: bytearray, start: int, end: int
    ) -> None:
        """Bring a datagram that no worker got to whom it belongs, or count it.

        source is where it comes from, here the address that it came to. That
        is one of a circuit whose steering is not yet in force, one that came
        to another listening address than its circuit's, or one that UDP GRO
        joined to another circuit's.
        """
        if start == end:
            self._dropped[DropReason.EMPTY] += 1
            return
        circuit_id = data[start]
        if circuit_id == CONTROL_CIRCUIT_ID:
            self._on_control(bytes(data[start:end]), source, here)
            return
        claim = self._claims.get((_plain(source.address), circuit_id))
        if claim is None:
            self._dropped[DropReason.UNKNOWN_CIRCUIT] += 1
            return
        port = self._ports.get(claim)
        if port not in (None, source.port) and source.port != UNKNOWN_PORT:
            self._dropped[DropReason.WRONG_PORT] += 1
            return
        claim.receiver.deliver(data, start, end)

    def dropped(self) -> dict[str, int]:
        """Return how many datagrams that belong to no circuit were dropped, by reason."""
        return {reason.value: number for reason, number in self._dropped.items()}

    def set_control_handler(self, handler: ControlHandler) -> None:
        """Let control messages (circuit id 0) go there; until then they are dropped."""
        self._on_control = handler

    def send_control(
        self,
        data: bytes,
        local_address: IPAddress,
        remote: Endpoint,
        *,
        dont_fragment: bool = False,
    ) -> None:
        """Send from the listening port and this address of the machine, without waiting.

        Raises OSError where the kernel refuses.
        """
        group = self.group_at(local_address)
        if group is None:
            raise OSError(errno.EADDRNOTAVAIL, f"velad does not listen on {local_address}")
        group.send(data, local_address, remote, dont_fragment=dont_fragment)

    def _drop_control(self, data: bytes, source: Endpoint, here: IPAddress) -> None:
        self._dropped[DropReason.CONTROL] += 1

    def _steer_soon(self) -> None:
        # One program for all that changes in a burst; meanwhile dispatch() delivers.
        if self._steering is None:
            self._steering = self._steerings.add(self._steer)

    def _steer(self) -> None:
        self._steering = None
        for group in self._groups:
            routes = [
                Route(source, circuit_id, claim.index, self._ports.get(claim))
                for (source, circuit_id), claim in self._claims.items()
                if claim.group is group
            ]
            left_out = _steer(group, routes, self._control)
            if left_out:
                self._log.warning(
                    "steering_full",
                    listen=str(group),
                    routes=len(routes),
                    left_to_supervisor=len(left_out),
                    advice="raise net.core.optmem_max",
                )
        for claim in self._withdrawn:
            claim.group.release(claim.index)
        self._withdrawn.clear()

    def _on_route_changes(self) -> None:
        changes = self._monitor.changes()
        if changes == ():
            return
        concerned = {
            id(claim): claim
            for (source, _), claim in self._claims.items()
            if changes is None or any(source in network for network in changes)
        }
        for claim in concerned.values():
            if id(claim) not in self._to_look_at:
                self._to_look_at[id(claim)] = claim
                self._looks.add(partial(self._look_at_route, claim))

    def _look_at_route(self, claim: Claim) -> None:
        del self._to_look_at[id(claim)]
        if self._claims.get((claim.sources[0], claim.circuit_id)) is claim:
            claim.receiver.look_at_route()

    def _receive(self, group: ReceiveGroup, control_socket: socket.socket) -> None:
        taken = 0
        while taken < DATAGRAMS_AT_ONCE:
            try:
                length, ancillary, _, address = control_socket.recvmsg_into(
                    self._target, _ANCILLARY_SPACE
                )
            except BlockingIOError:
                return
            size = max(length, 1)
            for level, kind, value in ancillary:
                if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                    size = _GRO_SIZE.unpack(value)[0]
                elif (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                    self._count_overflows(control_socket, _OVERFLOWS.unpack(value)[0])
            source = Endpoint(_address(address[0]), address[1])
            here = group.addressed(ancillary)
            behind = REBUILD_ROOM + length
            if not length:
                self.dispatch(source, here, self._data, behind, behind)
            # Those that GRO joined count each.
            taken += max(1, -(-length // size))
            for start in range(REBUILD_ROOM, behind, size):
                self.dispatch(source, here, self._data, start, min(start + size, behind))

    def _count_overflows(self, control_socket: socket.socket, total: int) -> None:
        """Count what the kernel could not queue: it gives the sum so far, modulo 2**32."""
        before = self._overflows.get(control_socket.fileno(), 0)
        self._overflows[control_socket.fileno()] = total
        self._dropped[DropReason.OVERFLOW] += (total - before) & 0xFFFFFFFF


def _steer(
    group: ReceiveGroup, routes: Sequence[Route], control: ControlSteering
) -> tuple[Route, ...]:
    """Let the group's program know these routes; return those that found no room in it."""
    room = MAX_INSTRUCTIONS
    while True:
        steering = steering_program(routes, room, control)
        try:
            group.steer(steering.program)
        except OSError as err:
            # The kernel's allowance for it (net.core.optmem_max) is smaller.
            if err.errno != errno.ENOMEM or room < _LEAST_ROOM:
                raise
            room //= 2
        else:
            return steering.left_out


def _no_way(remote: Endpoint, err: OSError) -> str:
    return f"no way to {remote.address}: {os.strerror(err.errno or 0)}"


def _plain(address: IPAddress) -> IPAddress:
    """Return an address without its zone, and an IPv4-mapped one as IPv4."""
    if address.version == 4:
        return address
    if address.scope_id is not None:
        address = IPv6Address(address.packed)
    return address.ipv4_mapped or address


# A flood with forged sources must not fill memory.
@lru_cache(maxsize=1024)
def _address(text: str) -> IPAddress:
    address = ip_address(text)
    return (address.ipv4_mapped or address) if address.version == 6 else address
