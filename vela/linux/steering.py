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
from vela.wire import MAX_CIRCUIT_ID, MIN_CIRCUIT_ID

MAX_INSTRUCTIONS = 4096  # linux/bpf_common.h, BPF_MAXINSNS
MAX_INDEX = 0xFFFF  # struct sock_reuseport counts its sockets in 16 bits

_INSTRUCTION = struct.Struct("HBBI")  # linux/filter.h, struct sock_filter
_FURTHEST = 255  # instructions that jt and jf can skip: one byte each
_OUT_OF_REACH = -_FURTHEST - 1  # of any label

# linux/bpf_common.h; each is a sum of class, size or operation, and mode or source
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_BYTE = 0x30  # BPF_LD | BPF_B | BPF_ABS
_LOAD_HALF = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LOAD_HALF_BEHIND = 0x48  # BPF_LD | BPF_H | BPF_IND: at X and an offset
_LOAD_HEADER_LENGTH = 0xB1  # BPF_LDX | BPF_B | BPF_MSH: X is four times the low nibble
_RECALL = 0x60  # BPF_LD | BPF_W | BPF_MEM
_STORE = 0x02  # BPF_ST
_SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# The kernel runs the program with offset 0 at the UDP payload.
_CIRCUIT_ID = (_LOAD_BYTE, 0)  # docs/protocol.md, section 2
_IP = 0xFFF00000  # linux/filter.h, SKF_NET_OFF: the IP header
_SOURCE = {  # in words of 32 bits
    4: ((_LOAD_WORD, _IP + 12),),  # RFC 791, section 3.1
    6: tuple((_LOAD_WORD, _IP + 8 + 4 * word) for word in range(4)),  # RFC 8200, section 3
}

# The UDP source port, behind IPv4's options; of IPv6, where no extension header is between: there
# the header's next header stands for it, which is no port that anybody sends from.
_PORT = {
    4: ((_LOAD_HEADER_LENGTH, _IP, 0, 0), (_LOAD_HALF_BEHIND, _IP, 0, 0)),
    6: (
        (_LOAD_BYTE, _IP + 6, 0, 0),
        (_IF_EQUAL, socket.IPPROTO_UDP, 0, 1),
        (_LOAD_HALF, _IP + 40, 0, 0),
    ),
}
_PORT_SLOT = 15  # of BPF_MEMWORDS, 16; the others are used from 0 on

# Values compared one by one at the bottom of a search tree. For 255 circuits of
# one remote: 781 instructions with 1, 589 with 4, 557 with 8.
_BUCKET = 4

# Values of the fields still to be compared, then the index they lead to, and from which port.
_Row = tuple[tuple[int, ...], tuple[int, int | None]]


@dataclass(frozen=True, slots=True)
class Route:
    """Where datagrams of one circuit go: to the socket at index in its reuseport group."""

    source: IPAddress
    """The remote. An IPv4-mapped address stands for the IPv4 address; a scope is ignored."""
    circuit_id: int
    index: int
    port: int | None = None
    """The UDP port that they come from; those from others stay at index 0. None: from any."""

    def __post_init__(self) -> None:
        if not MIN_CIRCUIT_ID <= self.circuit_id <= MAX_CIRCUIT_ID:
            raise ValueError(f"{self.circuit_id} is no circuit id")
        if not 0 <= self.index <= MAX_INDEX:
            raise ValueError(f"{self.index} is no index of a socket")


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
class Steering:
    """What to attach, and what it does not cover."""

    program: bytes
    """An array of struct sock_filter, 8 bytes each."""
    left_out: tuple[Route, ...]
    """Those that found no room: their datagrams arrive at index 0, to be delivered from there."""


def steering_program(routes: Iterable[Route], room: int = MAX_INSTRUCTIONS) -> Steering:
    """Return the program that returns a route's index for its datagrams, and 0 for all others.

    Others are: circuit id 0, unknown source or circuit id, neither IPv4 nor
    IPv6, and the empty datagram, since a load beyond its end returns 0.
    Sockets may be AF_INET, AF_INET6, or dual-stack. Earlier routes take
    precedence where not all fit; 255 in the worst case (IPv6 remotes that
    have no word of their addresses in common) take two thirds of the room.

    room is in instructions. Attaching a program fails with ENOMEM if its
    translation, 11 to 13 bytes for an instruction, exceeds
    net.core.optmem_max: 20480 bytes before Linux 6.8, 131072 since. Ask again
    then with less room.

    Raises AmbiguousRouteError if two routes have the same source and circuit id.
    """
    routes = tuple(routes)
    _reject_ambiguous(routes)

    program = _assemble(())
    fit, excess = 0, min(len(routes), room) + 1
    count = excess - 1
    while excess - fit > 1:
        attempt = _assemble(routes[:count])
        if len(attempt) <= room:
            fit, program = count, attempt
        else:
            excess = count
        count = (fit + excess) // 2
    return Steering(b"".join(_INSTRUCTION.pack(*step) for step in program), routes[fit:])


def _plain(address: IPAddress) -> IPAddress:
    return (address.ipv4_mapped or address) if address.version == 6 else address


def _reject_ambiguous(routes: Iterable[Route]) -> None:
    seen: dict[tuple[bytes, int], Route] = {}
    for route in routes:
        first = seen.setdefault((_plain(route.source).packed, route.circuit_id), route)
        if first is not route:
            raise AmbiguousRouteError(first, route)


def _assemble(routes: Iterable[Route]) -> list[tuple[int, int, int, int]]:
    rows: dict[int, list[_Row]] = {4: [], 6: []}
    for route in routes:
        source = _plain(route.source)
        words = struct.unpack(f"!{len(source.packed) // 4}I", source.packed)
        rows[source.version].append(((*words, route.circuit_id), (route.index, route.port)))

    assembler = _Assembler()
    families = [
        (version, assembler.match_packet(version, rows[version]))
        for version in (4, 6)
        if rows[version]
    ]
    assembler.search_linearly(families)
    if families:
        assembler.emit(_SHIFT_RIGHT, 4)  # the version is the high nibble, RFC 791 and RFC 8200
        assembler.emit(_LOAD_BYTE, _IP)
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
        self._backwards.append((code, if_true, if_false, k))
        return len(self._backwards)

    def match_packet(self, version: int, rows: Sequence[_Row]) -> int:
        """Load all fields of a packet of IPv4 or IPv6, compare them; return the label."""
        loads = (*_SOURCE[version], _CIRCUIT_ID)
        label = self._match(range(len(loads)), rows)
        # Loaded once and kept: the kernel makes a function call of a load from
        # the packet, and some ten instructions of its own.
        for slot, load in enumerate(loads):
            self.emit(_STORE, slot)
            label = self.emit(*load)
        if any(port is not None for _, (_, port) in rows):
            self.emit(_STORE, _PORT_SLOT)
            for code, k, if_true, if_false in reversed(_PORT[version]):
                label = self.emit(code, k, if_true, if_false)
        # Whoever has not stored yet misses elsewhere: for the kernel's check
        # (net/core/filter.c, check_load_and_stores) control flows on past a
        # return, and what follows would recall slots that are not set.
        self._miss = _OUT_OF_REACH
        return label

    def _match(self, slots: Sequence[int], rows: Sequence[_Row]) -> int:
        if not slots:
            ((_, (index, port)),) = rows
            label = self.emit(_RETURN, index)
            if port is None:
                return label
            self.search_linearly([(port, label)])
            return self.emit(_RECALL, _PORT_SLOT)

        # Fields that divide the rows least come first, so that a value which
        # many rows share is tested once.
        column = min(range(len(slots)), key=lambda column: len({row[0][column] for row in rows}))
        groups: dict[int, list[_Row]] = {}
        for values, target in rows:
            rest = (values[:column] + values[column + 1 :], target)
            groups.setdefault(values[column], []).append(rest)
        self._search((*slots[:column], *slots[column + 1 :]), sorted(groups.items()))
        return self.emit(_RECALL, slots[column])

    def _search(self, slots: Sequence[int], groups: Sequence[tuple[int, list[_Row]]]) -> int:
        if len(groups) <= _BUCKET:
            return self.search_linearly(
                [(value, self._match(slots, rows)) for value, rows in groups]
            )
        middle = len(groups) // 2
        high = self._search(slots, groups[middle:])
        low = self._search(slots, groups[:middle])
        return self._branch(_IF_AT_LEAST, groups[middle][0], high, low)

    def search_linearly(self, cases: Sequence[tuple[int, int]]) -> int:
        """Compare the loaded value with each case's; return the label."""
        if len(self._backwards) + len(cases) - self._miss > _FURTHEST:
            self._miss = self.emit(_RETURN, 0)
        label = self._miss
        for value, target in cases:
            label = self._branch(_IF_EQUAL, value, target, label)
        return label

    def _branch(self, code: int, k: int, if_true: int, if_false: int) -> int:
        if_true, if_false = self._within_reach(if_true), self._within_reach(if_false)
        here = len(self._backwards)
        return self.emit(code, k, here - if_true, here - if_false)

    def _within_reach(self, label: int) -> int:
        distance = len(self._backwards) - label
        # One less, as the other side of the branch may need a jump of its own.
        return label if distance < _FURTHEST else self.emit(_JUMP, distance)
