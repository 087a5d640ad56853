"""The program that steers datagrams to a circuit's own socket, as bytes. Pure.

Classic BPF for SO_ATTACH_REUSEPORT_CBPF: Linux, Documentation/networking/filter.rst
and net/core/sock_reuseport.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vela.address import IPAddress
from vela.errors import VelaError
from vela.linux import bpf
from vela.linux.bpf import MAX_INSTRUCTIONS
from vela.wire import CONTROL_CIRCUIT_ID, MAX_CIRCUIT_ID, MIN_CIRCUIT_ID

# The supervisor's sockets, by their index in each group.
STRANGERS = 0
"""Whatever the program does not know."""
REMOTES = 1
"""Control messages from the addresses of circuits' remotes. Anybody can forge those."""
SESSIONS = 2
"""Control messages with a nonce of this machine's that only the remote of a session has."""
CONTROL_SOCKETS = 3

MAX_INDEX = 0xFFFF  # struct sock_reuseport counts its sockets in 16 bits

_OUT_OF_REACH = -bpf.FURTHEST - 1  # of any label

# The kernel runs the program with offset 0 at the UDP payload.
_CIRCUIT_ID = (bpf.LOAD_BYTE, 0)  # docs/protocol.md, section 2
# The lower half of the receiver's nonce, docs/protocol.md, section 4. Who does not know it has one
# chance in 2**32 to hit one, for each circuit.
_NONCE = (bpf.LOAD_WORD, 16)
_NONCE_MASK = 0xFFFFFFFF
_IP = 0xFFF00000  # linux/filter.h, SKF_NET_OFF: the IP header
_SOURCE = {  # in words of 32 bits
    4: ((bpf.LOAD_WORD, _IP + 12),),  # RFC 791, section 3.1
    6: tuple((bpf.LOAD_WORD, _IP + 8 + 4 * word) for word in range(4)),  # RFC 8200, section 3
}

# The UDP source port, behind IPv4's options; of IPv6, where no extension header is between: there
# the header's next header stands for it, which is no port that anybody sends from.
_PORT = {
    4: ((bpf.LOAD_HEADER_LENGTH, _IP, 0, 0), (bpf.LOAD_HALF_BEHIND, _IP, 0, 0)),
    6: (
        (bpf.LOAD_BYTE, _IP + 6, 0, 0),
        (bpf.IF_EQUAL, socket.IPPROTO_UDP, 0, 1),
        (bpf.LOAD_HALF, _IP + 40, 0, 0),
    ),
}
_PORT_SLOT = 15  # of BPF_MEMWORDS, 16; the others are used from 0 on

# Values compared one by one at the bottom of a search tree. For 255 circuits of
# one remote: 781 instructions with 1, 589 with 4, 557 with 8.
_BUCKET = 4

# Values of the fields still to be compared, then the indices they lead to, and from which ports.
_Row = tuple[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Route:
    """Where datagrams of one circuit go: to the socket at index in its reuseport group."""

    source: IPAddress
    """The remote. An IPv4-mapped address stands for the IPv4 address; a scope is ignored."""
    circuit_id: int
    index: int
    ports: tuple[int, ...] = ()
    """The UDP ports that they come from; those from others stay at index 0. Empty: from any."""
    further: tuple[int, ...] = ()
    """Likewise to these: of all of them, the first included, the source port modulo their number
    chooses one. Ports in a row spread evenly, and what comes from one port stays in order."""

    def __post_init__(self) -> None:
        if not MIN_CIRCUIT_ID <= self.circuit_id <= MAX_CIRCUIT_ID:
            raise ValueError(f"{self.circuit_id} is no circuit id")
        for index in self.indices:
            if not 0 <= index <= MAX_INDEX:
                raise ValueError(f"{index} is no index of a socket")

    @property
    def indices(self) -> tuple[int, ...]:
        return self.index, *self.further


class AmbiguousRouteError(VelaError):
    """Two circuits want the same datagrams, as when two names resolve to one address."""

    def __init__(self, first: Route, second: Route) -> None:
        super().__init__(
            f"circuit id {first.circuit_id} of {_plain(first.source)} "
            f"is claimed by the sockets {first.index} and {second.index}"
        )
        self.first = first
        self.second = second


@dataclass(frozen=True, slots=True)
class ControlSteering:
    """Which control messages wait apart from those of strangers."""

    remotes: frozenset[IPAddress] = frozenset()
    """The addresses of all remotes."""
    nonces: frozenset[int] = frozenset()
    """What remotes put into their messages as the receiver's nonce."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What to attach, and what it does not cover."""

    program: bytes
    """An array of struct sock_filter, 8 bytes each."""
    left_out: tuple[Route, ...]
    """Those that found no room: their datagrams arrive at index 0, to be delivered from there."""


def steering_program(
    routes: Iterable[Route],
    room: int = MAX_INSTRUCTIONS,
    control: ControlSteering = ControlSteering(),
) -> Steering:
    """Return the program that returns a route's index for its datagrams, and 0 for all others.

    Others are: control messages that control does not name, unknown source or
    circuit id, neither IPv4 nor IPv6, and what is too short, since a load
    beyond its end returns 0. Sockets may be AF_INET, AF_INET6, or dual-stack.
    Earlier routes take precedence where not all fit; 255 in the worst case
    (IPv6 remotes that have no word of their addresses in common) take two
    thirds of the room. Control messages get what room is left.

    room is in instructions. Attaching a program fails with ENOMEM if its
    translation, 11 to 13 bytes for an instruction, exceeds
    net.core.optmem_max: 20480 bytes before Linux 6.8, 131072 since. Ask again
    then with less room.

    Raises AmbiguousRouteError if two routes have the same source and circuit id.
    """
    routes = tuple(routes)
    _reject_ambiguous(routes)

    nothing = ControlSteering()
    program = _assemble((), nothing)
    fit, excess = 0, min(len(routes), room) + 1
    count = excess - 1
    while excess - fit > 1:
        attempt = _assemble(routes[:count], nothing)
        if len(attempt) <= room:
            fit, program = count, attempt
        else:
            excess = count
        count = (fit + excess) // 2
    for some in (control, ControlSteering(nonces=control.nonces)):
        attempt = _assemble(routes[:fit], some)
        if len(attempt) <= room:
            program = attempt
            break
    return Steering(b"".join(bpf.instruction(*step) for step in program), routes[fit:])


def _plain(address: IPAddress) -> IPAddress:
    return (address.ipv4_mapped or address) if address.version == 6 else address


def _reject_ambiguous(routes: Iterable[Route]) -> None:
    seen: dict[tuple[bytes, int], Route] = {}
    for route in routes:
        first = seen.setdefault((_plain(route.source).packed, route.circuit_id), route)
        if first is not route:
            raise AmbiguousRouteError(first, route)


def _assemble(routes: Iterable[Route], control: ControlSteering) -> list[tuple[int, int, int, int]]:
    targets = {
        (_plain(each.source), each.circuit_id): (each.indices, each.ports) for each in routes
    }
    targets |= {
        (_plain(source), CONTROL_CIRCUIT_ID): ((REMOTES,), ()) for source in control.remotes
    }
    rows: dict[int, list[_Row]] = {4: [], 6: []}
    for (source, circuit_id), target in targets.items():
        words = struct.unpack(f"!{len(source.packed) // 4}I", source.packed)
        rows[source.version].append(((*words, circuit_id), target))

    assembler = _Assembler()
    families = [
        (version, assembler.match_packet(version, rows[version]))
        for version in (4, 6)
        if rows[version]
    ]
    assembler.search_linearly(families)
    if families:
        assembler.emit(bpf.SHIFT_RIGHT, 4)  # the version is the high nibble, RFC 791 and RFC 8200
        assembler.emit(bpf.LOAD_BYTE, _IP)
    if control.nonces:
        assembler.match_nonce(sorted({nonce & _NONCE_MASK for nonce in control.nonces}))
    return assembler.program()


class _Assembler:
    """Writes a program from its end to its beginning, as jumps only lead forward.

    A label is the number of instructions from it to the end.
    """

    def __init__(self) -> None:
        self._backwards: list[tuple[int, int, int, int]] = []
        self._miss = _OUT_OF_REACH  # label of the "return 0" written last

    def program(self) -> list[tuple[int, int, int, int]]:
        return self._backwards[::-1]

    def emit(self, code: int, k: int, if_true: int = 0, if_false: int = 0) -> int:
        """Put an instruction before all others; return its label."""
        self._backwards.append((code, k, if_true, if_false))
        return len(self._backwards)

    def match_packet(self, version: int, rows: Sequence[_Row]) -> int:
        """Load all fields of a packet of IPv4 or IPv6, compare them; return the label."""
        loads = (*_SOURCE[version], _CIRCUIT_ID)
        label = self._match(range(len(loads)), rows)
        # Loaded once and kept: the kernel makes a function call of a load from
        # the packet, and some ten instructions of its own.
        for slot, load in enumerate(loads):
            self.emit(bpf.STORE, slot)
            label = self.emit(*load)
        if any(ports or len(indices) > 1 for _, (indices, ports) in rows):
            self.emit(bpf.STORE, _PORT_SLOT)
            for code, k, if_true, if_false in reversed(_PORT[version]):
                label = self.emit(code, k, if_true, if_false)
        # Whoever has not stored yet misses elsewhere: for the kernel's check
        # (net/core/filter.c, check_load_and_stores) control flows on past a
        # return, and what follows would recall slots that are not set.
        self._miss = _OUT_OF_REACH
        return label

    def match_nonce(self, nonces: Sequence[int]) -> None:
        """Let control messages with one of these nonces go to SESSIONS; all others go on."""
        others = len(self._backwards)
        self._search_nonce(nonces, others)
        searched = self.emit(*_NONCE)
        self._branch(bpf.IF_EQUAL, CONTROL_CIRCUIT_ID, searched, others)
        self.emit(*_CIRCUIT_ID)

    def _search_nonce(self, nonces: Sequence[int], others: int) -> int:
        if len(nonces) > _BUCKET:
            middle = len(nonces) // 2
            high = self._search_nonce(nonces[middle:], others)
            low = self._search_nonce(nonces[:middle], others)
            return self._branch(bpf.IF_AT_LEAST, nonces[middle], high, low)
        found = self.emit(bpf.RETURN, SESSIONS)
        label = others
        for nonce in nonces:
            label = self._branch(bpf.IF_EQUAL, nonce, found, label)
        return label

    def _match(self, slots: Sequence[int], rows: Sequence[_Row]) -> int:
        if not slots:
            ((_, (indices, ports)),) = rows
            if not ports and len(indices) == 1:
                return self.emit(bpf.RETURN, indices[0])
            count = len(indices)
            rests = {port % count for port in ports} if ports else range(count)
            labels = {rest: self.emit(bpf.RETURN, indices[rest]) for rest in rests}
            if ports:
                self.search_linearly([(port, labels[port % count]) for port in ports])
            else:
                self.search_linearly(list(labels.items()))
                self.emit(bpf.MODULO, count)
            return self.emit(bpf.RECALL, _PORT_SLOT)

        # Fields that divide the rows least come first, so that a value which
        # many rows share is tested once.
        column = min(range(len(slots)), key=lambda column: len({row[0][column] for row in rows}))
        groups: dict[int, list[_Row]] = {}
        for values, target in rows:
            rest = (values[:column] + values[column + 1 :], target)
            groups.setdefault(values[column], []).append(rest)
        self._search((*slots[:column], *slots[column + 1 :]), sorted(groups.items()))
        return self.emit(bpf.RECALL, slots[column])

    def _search(self, slots: Sequence[int], groups: Sequence[tuple[int, list[_Row]]]) -> int:
        if len(groups) <= _BUCKET:
            return self.search_linearly(
                [(value, self._match(slots, rows)) for value, rows in groups]
            )
        middle = len(groups) // 2
        high = self._search(slots, groups[middle:])
        low = self._search(slots, groups[:middle])
        return self._branch(bpf.IF_AT_LEAST, groups[middle][0], high, low)

    def search_linearly(self, cases: Sequence[tuple[int, int]]) -> int:
        """Compare the loaded value with each case's; return the label."""
        if len(self._backwards) + len(cases) - self._miss > bpf.FURTHEST:
            self._miss = self.emit(bpf.RETURN, 0)
        label = self._miss
        for value, target in cases:
            label = self._branch(bpf.IF_EQUAL, value, target, label)
        return label

    def _branch(self, code: int, k: int, if_true: int, if_false: int) -> int:
        if_true, if_false = self._within_reach(if_true), self._within_reach(if_false)
        here = len(self._backwards)
        return self.emit(code, k, here - if_true, here - if_false)

    def _within_reach(self, label: int) -> int:
        distance = len(self._backwards) - label
        # One less, as the other side of the branch may need a jump of its own.
        return label if distance < bpf.FURTHEST else self.emit(bpf.JUMP, distance)
