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
from vela.linux.choice import ANY_UNDERLAY, UnderlayChoice
from vela.linux.features import UDP_GRO
from vela.linux.rtnetlink import RouteMonitor
from vela.linux.steering import ControlSteering, Route, steering_program
from vela.linux.underlay import (
    ANY_ADDRESS,
    PKTINFO_SPACE,
    SO_RXQ_OVFL,
    ReceiveGroup,
    find_route,
    is_apart,
)
from vela.linux.underlay import Route as Way
from vela.reasons import Cause
from vela.wire import CONTROL_CIRCUIT_ID, MAX_UDP_PAYLOAD

from .frame_ports import FramePorts
from .inheritance import Inheritance
from .runtime.burst import Burst, Pause
from .runtime.loop import EventLoop, Timer

# Datagrams taken before the loop looks at anything else: a flood must not hold
# up a worker's restart. 64 of them take about 1 ms.
DATAGRAMS_AT_ONCE = 64

_LEAST_ROOM = 16  # instructions; the kernel's smallest allowance takes ten times as many

# A program for 255 circuits takes 10 ms to build.
STEER_INTERVAL_S = 0.1

# Between looks at routes that change: each takes 0.3 ms for each circuit that it concerns.
LOOK_INTERVAL_S = 0.5

# To ask whether an interface belongs to a VRF takes 0.1 ms.
VRF_REMEMBERED_S = 1.0

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
    here: IPAddress | None = None
    """The address of this machine that it sends from."""
    further: tuple[int, ...] = ()
    """The indices of further sockets, of a circuit that has several queues."""

    @property
    def indices(self) -> tuple[int, ...]:
        return self.index, *self.further

    @property
    def socket(self) -> socket.socket:
        return self.group.member(self.index)

    def restore(self) -> None:
        """Set what a worker may have changed by its copy of the socket. Raises OSError."""
        for index in self.indices:
            self.group.restore(index)


class Demux:
    """Knows all listening sockets and all claims."""

    def __init__(
        self,
        loop: EventLoop,
        groups: Iterable[ReceiveGroup],
        is_apart: Callable[[int], bool] = is_apart,
        inheritance: Inheritance | None = None,
    ) -> None:
        """is_apart: see underlay. inheritance: what another velad has left, to go on with."""
        self._inheritance = Inheritance() if inheritance is None else inheritance
        self._frozen = False
        self._loop = loop
        self._groups = tuple(groups)
        self._is_apart = is_apart
        self._apart: dict[int, ReceiveGroup] = {}
        """Groups of VRFs, by the index of their device, made when a circuit needs one."""
        self._kinds: dict[int, tuple[bool, float]] = {}
        self._claims: dict[tuple[IPAddress, int], Claim] = {}
        self._ports = FramePorts(loop, self._steer_soon)
        self._spread: dict[Claim, int] = {}
        """How many of its sockets a claim's datagrams come to, where they come to several."""
        self._withdrawn: list[Claim] = []
        self._steerings = Burst(loop, Pause(STEER_INTERVAL_S))
        self._steering: Timer | None = None
        self._control = ControlSteering()
        self._looks = Burst(loop, Pause(LOOK_INTERVAL_S))
        self._watched: dict[Receiver, IPAddress] = {}
        self._to_look_at: set[Receiver] = set()
        self._overflows: dict[int, int] = {}
        self._on_control: ControlHandler = self._drop_control
        self._data = bytearray(REBUILD_ROOM + MAX_UDP_PAYLOAD)
        self._target = [memoryview(self._data)[REBUILD_ROOM:]]
        self._log = structlog.get_logger()
        self._dropped = dict.fromkeys(DropReason, 0)
        self._monitor = RouteMonitor()
        loop.watch(self._monitor.fileno(), self._on_route_changes)
        for group in self._groups:
            self._listen(group)

    def _listen(self, group: ReceiveGroup) -> None:
        if group.adopted:
            # Circuits that go on claim their datagrams before the loop turns.
            self._steer_soon()
        else:
            group.steer(steering_program(()).program)
        self._watch(group)

    def _watch(self, group: ReceiveGroup) -> None:
        for control_socket in group.control_sockets:
            receive = partial(self._receive, group, control_socket)
            self._loop.watch(control_socket.fileno(), receive)

    def close(self) -> None:
        """Hear of no more route changes; the groups it was given are their owner's."""
        self._loop.unwatch(self._monitor.fileno())
        self._monitor.close()
        for group in self._apart.values():
            for control_socket in group.control_sockets:
                self._loop.unwatch(control_socket.fileno())
            group.close()

    def freeze(self) -> None:
        """Receive nothing until thaw(): another velad does. Steering stays as it is."""
        self._frozen = True
        self._loop.unwatch(self._monitor.fileno())
        if self._steering is not None:
            self._steering.cancel()
        for group in self.all_groups:
            for control_socket in group.control_sockets:
                self._loop.unwatch(control_socket.fileno())

    def thaw(self) -> None:
        self._frozen = False
        self._steering = None
        self._steer_soon()
        self._loop.watch(self._monitor.fileno(), self._on_route_changes)
        for group in self.all_groups:
            self._watch(group)

    @property
    def groups(self) -> tuple[ReceiveGroup, ...]:
        return self._groups

    @property
    def all_groups(self) -> tuple[ReceiveGroup, ...]:
        """Those of VRFs, too."""
        return (*self._groups, *self._apart.values())

    def group_at(self, here: IPAddress) -> ReceiveGroup | None:
        """Return the group on which datagrams to this address of the machine arrive."""
        return next((group for group in self._groups if group.hears(here)), None)

    def way_from(
        self, here: IPAddress, remote: Endpoint, choice: UnderlayChoice = ANY_UNDERLAY
    ) -> tuple[ReceiveGroup, Way]:
        """Return how a remote is reached from an address of this machine.

        Raises DeviceError, saying why it is not.
        """
        group = self._group_of(choice) or self.group_at(here)
        if group is None:
            raise DeviceError(Cause.NOT_LISTENING.say(address=here))
        return group, _find_way(here, remote, choice)

    def way_to(
        self, remote: Endpoint, choice: UnderlayChoice = ANY_UNDERLAY
    ) -> tuple[ReceiveGroup, Way]:
        """Return how a remote is reached, and from which listening address.

        From the one that the kernel would take by itself, if it is one of
        them, as that is where the remote expects datagrams from; else from
        the first that has a route.

        Raises DeviceError, saying why there is none.
        """
        wanted = choice.source(remote.family)
        if wanted is not None:
            return self.way_from(wanted, remote, choice)
        apart = self._group_of(choice)
        if apart is not None:
            return apart, _find_way(apart.address, remote, choice)
        groups = [group for group in self._groups if group.serves(remote.family)]
        if not groups:
            raise DeviceError(Cause.NOT_LISTENING_FAMILY.say(family=remote.family.value))
        if len(groups) > 1:
            try:
                own = find_route(ANY_ADDRESS[remote.family], remote, choice).source
            except OSError:
                pass  # a rule may still give some source a route
            else:
                groups.sort(key=lambda group: group.address != own)
        obstacle: DeviceError | None = None
        for group in groups:
            try:
                return group, _find_way(group.address, remote, choice)
            except DeviceError as err:
                obstacle = obstacle or err
        raise obstacle or DeviceError("velad listens nowhere")

    def _group_of(self, choice: UnderlayChoice) -> ReceiveGroup | None:
        """Return the group of a VRF; None: the listening addresses hear all. Raises DeviceError."""
        index = choice.index()
        if index is None:
            return None
        group = self._apart.get(index)
        if group is None:
            if not self._belongs_to_vrf(index):
                return None
            # Without the mark, which is each circuit's own.
            group = self._apart[index] = self._make_apart(choice.device)
            self._listen(group)
            self._steer_soon()
        return group

    def _make_apart(self, device: str | None) -> ReceiveGroup:
        model, inheritance = self._groups[0], self._inheritance
        address = model.every_address
        return model.apart(
            UnderlayChoice(device=device),
            inheritance.take_group(address, model.port, device),
            inheritance.in_use(address, model.port, device),
        )

    def _belongs_to_vrf(self, index: int) -> bool:
        """Asked for each message that a circuit with a device sends."""
        known, asked_at = self._kinds.get(index, (False, -VRF_REMEMBERED_S))
        now = self._loop.now()
        if now - asked_at >= VRF_REMEMBERED_S:
            known = self._is_apart(index)
            self._kinds[index] = known, now
        return known

    def claim(
        self,
        receiver: Receiver,
        circuit_id: int,
        sources: tuple[IPAddress, ...],
        group: ReceiveGroup,
        here: IPAddress | None = None,
        sockets: int = 1,
    ) -> Claim:
        """Let a circuit have what comes from sources with its id. here: where it sends from.

        It comes to the first of the sockets until spread().

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
        own = None if here is None else _plain(here)
        index, *further = self._acquire(receiver, group, sockets)
        claim = Claim(receiver, circuit_id, sources, group, index, own, tuple(further))
        for source in sources:
            self._claims[source, circuit_id] = claim
        self._steer_soon()
        return claim

    def _acquire(self, receiver: Receiver, group: ReceiveGroup, sockets: int) -> list[int]:
        """Return the indices of so many sockets, or of more that another velad has left."""
        adopted = self._inheritance.indices_of(receiver.name, group)
        indices = [group.acquire(each) for each in adopted]
        try:
            while len(indices) < sockets:
                indices.append(group.acquire())
        except BaseException:
            for index in indices:
                group.release(index)
            raise
        return indices

    def release_inherited(self, circuits: Iterable[str]) -> None:
        """Take back the sockets of another velad's circuits, unless these have claimed them."""
        for name in circuits:
            for group in self.all_groups:
                for index in self._inheritance.indices_of(name, group):
                    group.release(index)

    def spread(self, claim: Claim, sockets: int) -> None:
        """Let a circuit's datagrams come to so many of its sockets, by their source ports.

        Where that is less than before, it is so when this returns.
        """
        before = self._spread.get(claim, 1)
        self._spread[claim] = sockets
        if sockets > before:
            self._steer_soon()
        elif sockets < before and not self._frozen:
            if self._steering is not None:
                self._steering.cancel()
            self._steer()

    def withdraw(self, claim: Claim) -> None:
        """Give up a claim; its socket goes back when nothing is steered to it any more."""
        for source in claim.sources:
            del self._claims[source, claim.circuit_id]
        self._ports.forget(claim)
        self._spread.pop(claim, None)
        self._withdrawn.append(claim)
        self._steer_soon()

    def watch_route(self, receiver: Receiver, address: IPAddress | None) -> None:
        """Tell a circuit without a claim, too, when the route to an address may have changed.

        None: it is told of its claim's only.
        """
        if address is None:
            self._watched.pop(receiver, None)
        else:
            self._watched[receiver] = _plain(address)

    def expect_control(self, control: ControlSteering) -> None:
        """Let these control messages wait in queues of their own, apart from strangers'."""
        if control != self._control:
            self._control = control
            self._steer_soon()

    def restrict(self, claim: Claim, port: int | None, count: int = 1) -> None:
        """Let a circuit have only what comes from so many UDP ports, from this one on; None: any.

        See FramePorts.expect.
        """
        self._ports.expect(claim, port, count)

    def port_of(self, claim: Claim) -> int | None:
        """Return the port that a circuit's datagrams must come from; None: any."""
        return next(iter(self._ports.of(claim)), None)

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
        ports = self._ports.of(claim)
        if ports and source.port not in (*ports, UNKNOWN_PORT):
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
        choice: UnderlayChoice = ANY_UNDERLAY,
        *,
        dont_fragment: bool = False,
    ) -> None:
        """Send from the listening port and this address of the machine, without waiting.

        Raises OSError where the kernel refuses, and DeviceError.
        """
        group = self._group_of(choice) or self.group_at(local_address)
        if group is None:
            raise OSError(errno.EADDRNOTAVAIL, f"velad does not listen on {local_address}")
        group.send(data, local_address, remote, choice, dont_fragment=dont_fragment)

    def _drop_control(self, data: bytes, source: Endpoint, here: IPAddress) -> None:
        self._dropped[DropReason.CONTROL] += 1

    def _steer_soon(self) -> None:
        # One program for all that changes in a burst; meanwhile dispatch() delivers.
        if self._steering is None and not self._frozen:
            self._steering = self._steerings.add(self._steer)

    def _steer(self) -> None:
        self._steering = None
        for group in self.all_groups:
            routes = [
                Route(
                    source,
                    circuit_id,
                    claim.index,
                    self._ports.of(claim),
                    claim.indices[1 : self._spread.get(claim, 1)],
                )
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
            for index in claim.indices:
                claim.group.release(index)
        self._withdrawn.clear()

    def _on_route_changes(self) -> None:
        changes = self._monitor.changes()
        if changes == ():
            return
        claimed = [(source, claim.receiver) for (source, _), claim in self._claims.items()]
        # An address that goes takes its own route with it.
        claimed += [
            (claim.here, claim.receiver)
            for claim in self._claims.values()
            if claim.here is not None
        ]
        watched = ((address, receiver) for receiver, address in self._watched.items())
        for address, receiver in (*claimed, *watched):
            if receiver in self._to_look_at:
                continue
            if changes is None or any(address in network for network in changes):
                self._to_look_at.add(receiver)
                self._looks.add(partial(self._look_at_route, receiver))

    def _look_at_route(self, receiver: Receiver) -> None:
        self._to_look_at.remove(receiver)
        claims = receiver in self._watched or any(
            claim.receiver is receiver for claim in self._claims.values()
        )
        if claims:
            receiver.look_at_route()

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
            if length and self._is_strangers(group, source):
                self._dropped[DropReason.CONTROL] += 1
                continue
            for start in range(REBUILD_ROOM, behind, size):
                self.dispatch(source, here, self._data, start, min(start + size, behind))

    def _is_strangers(self, group: ReceiveGroup, source: Endpoint) -> bool:
        """Tell whether what was just received is of somebody in a VRF who is no circuit's remote.

        Circuits that others set up are not of a VRF, so an answer would leave by another way.
        """
        return (
            group.choice.device is not None
            and self._data[REBUILD_ROOM] == CONTROL_CIRCUIT_ID
            and _plain(source.address) not in self._control.remotes
        )

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


def _find_way(here: IPAddress, remote: Endpoint, choice: UnderlayChoice) -> Way:
    try:
        return find_route(here, remote, choice)
    except OSError as err:
        why = Cause.NO_ROUTE.say(remote=remote.address, error=os.strerror(err.errno or 0))
        raise DeviceError(choice.explain(err) or why) from err


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
