"""Frames that are larger than a datagram, in pieces and back. Pure. docs/protocol.md, 3.7.

Its C twin is native/pieces.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from vela.dataplane.counters import Slot
from vela.dataplane.ecn import CE, NOT_ECT
from vela.dataplane.frame import PIECE_BYTE, REBUILD_ROOM, Dropped
from vela.wire import CIRCUIT_ID, ESCAPE

# Circuit id, 0x44, index, length and number of the frame.
_HEADER = struct.Struct("!BBBHI")
PIECE_HEADER = _HEADER.size
_LAST, _BUNDLED, _INDEX = 0x80, 0x40, 0x3F
# Before each piece of a bundle: index, length and number of the frame, size of its other pieces.
_BUNDLED_HEADER = struct.Struct("!BHIH")
_BUNDLE_AT = CIRCUIT_ID + 1

MAX_PIECES = 64
"""Of a frame: as many as one send takes (UDP_MAX_SEGMENTS, Linux 4.18)."""

JOIN_SLOTS = 64
JOIN_S = 1.0
"""Frames that can be incomplete at a time, and for how long. A sender numbers them in a row, so the
slot of a number is that of a frame 64 before it."""

MAX_BUNDLED = JOIN_SLOTS // 2
"""Frames that wait for a bundle: then there is room for as many others."""

_MAX_LENGTH = 0xFFFF
_NUMBERS = 1 << 32


class Fragmentation(IntEnum):
    """What becomes of a frame that is larger than a datagram."""

    BY_IP = 0
    IN_PIECES = 1
    NEVER = 2
    BUNDLED = 3
    """In pieces, and the last ones of several frames share a datagram."""


class Cutter:
    """Cuts datagrams into pieces.

    They are of one size, and zeros fill up the last one; or they fill a datagram each, and the last
    ones of several frames share another one, a bundle. What cut() returns is then complete only
    with end_bundle(), which is to go before anything else that is sent.
    """

    def __init__(
        self,
        circuit_id: int,
        first: int,
        numbers: tuple[int, int] = (0, 1),
        *,
        bundles: bool = False,
    ) -> None:
        """first: about the number of the first frame; a worker after this one has another.

        numbers: see Attachment.frame_numbers.
        """
        rest, self._step = numbers
        self._circuit_id = circuit_id
        self._number = first - first % self._step + rest
        # The other queues' numbers have their places at the receiver.
        self._most = MAX_BUNDLED // self._step if bundles else 0
        self._bundle: list[bytes] = []
        self._bundle_length = 0
        self._full = 0
        """What the datagrams have that the bundle's frames began with, in bytes."""

    def cut(self, datagram: memoryview, limit: int) -> list[memoryview]:
        """Return datagrams of at most limit bytes, in place of one; none if they would be too many.

        Without bundles there are two or more.
        """
        content = datagram[CIRCUIT_ID:]
        length, room = len(content), limit - PIECE_HEADER
        if not 0 < room < length <= min(_MAX_LENGTH, room * MAX_PIECES):
            return []
        count = -(-length // room)
        last = length - (count - 1) * room
        if self._most > 1 and 2 * (_BUNDLED_HEADER.size + last) <= room:
            made = self._bundled(content, room, count)
        else:
            # As few as possible, and then as small as possible.
            size = -(-length // count)
            count = -(-length // size)
            made = [*self.end_bundle()]
            made += (self._piece(content, size, index, count) for index in range(count))
        self._number = (self._number + self._step) % _NUMBERS
        return made

    def end_bundle(self) -> list[memoryview]:
        """Return the bundle, if there is one, as a datagram."""
        return self._take_bundle(0)

    def _bundled(self, content: memoryview, room: int, count: int) -> list[memoryview]:
        start = (count - 1) * room
        flags = count - 1 | _LAST | _BUNDLED
        own = _BUNDLED_HEADER.pack(flags, len(content), self._number, room) + content[start:]
        full = PIECE_HEADER + room
        made = [] if self._full == full else self.end_bundle()
        if len(self._bundle) == self._most or self._bundle_length + len(own) > full - _BUNDLE_AT:
            made += self._take_bundle(full)  # of the size of the others
        made += (self._piece(content, room, index, count) for index in range(count - 1))
        self._bundle.append(own)
        self._bundle_length += len(own)
        self._full = full
        return made

    def _piece(self, content: memoryview, size: int, index: int, count: int) -> memoryview:
        last = _LAST if index + 1 == count else 0
        header = (self._circuit_id, PIECE_BYTE, index | last, len(content), self._number)
        part = bytes(content[index * size :][:size]).ljust(size, b"\0")
        return memoryview(_HEADER.pack(*header) + part)

    def _take_bundle(self, size: int) -> list[memoryview]:
        """Return the bundle, if there is one, filled up to size bytes."""
        if not self._bundle:
            return []
        start = bytes((self._circuit_id, PIECE_BYTE))
        datagram = (start + b"".join(self._bundle)).ljust(size, b"\0")
        self._bundle, self._bundle_length = [], 0
        return [memoryview(datagram)]


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece that came."""

    circuit_id: int
    index: int
    last: bool
    whole: int
    """Length of what was cut."""
    size: int
    """Of each of the frame's pieces, but maybe the last one."""
    number: int

    @property
    def count(self) -> int:
        return -(-self.whole // self.size)

    @property
    def begin(self) -> int:
        return self.index * self.size

    @property
    def length(self) -> int:
        """Without what fills it up."""
        return self.whole - self.begin if self.last else self.size

    def check(self) -> None:
        """Raise Dropped where no frame can have it."""
        # The size of one says where each lies: they cannot overlap.
        if not 2 <= self.count <= MAX_PIECES or self.index >= self.count:
            raise Dropped(Slot.RX_MALFORMED)
        if self.last != (self.index + 1 == self.count):
            raise Dropped(Slot.RX_MALFORMED)


@dataclass(slots=True)
class _Incomplete:
    """A frame of which pieces are missing, or that was complete."""

    number: int
    length: int
    size: int
    since: float
    data: bytearray
    missing: set[int] = field(default_factory=set)
    ecn: int = NOT_ECT
    """Of the outer headers: CE if one of them has it."""


class Joiner:
    """Puts frames together, of which as many can be incomplete as there are slots."""

    def __init__(self, frame_limit: int) -> None:
        self._limit = ESCAPE + frame_limit
        self._slots: list[_Incomplete | None] = [None] * JOIN_SLOTS
        self._swept = 0.0
        self.given_up = 0
        """Frames; the caller counts them and sets this to 0."""
        self.dropped: list[Slot] = []
        """Pieces of bundles, by reason; likewise, and empties this."""

    def take(
        self, data: bytearray, start: int, end: int, ecn: int, now: float
    ) -> Iterator[tuple[bytearray, int]]:
        """Take the piece, or the bundle, at data[start:end] with the outer ECN ecn.

        Yields, of each frame that is complete, the datagram that was cut, behind REBUILD_ROOM
        bytes, and its outer ECN. now is monotonic. Raises Dropped; of a bundle pieces are taken up
        to the first one that is malformed, and others are counted in dropped.
        """
        if end - start > _BUNDLE_AT and data[start + _BUNDLE_AT] & _BUNDLED:
            yield from self._take_bundle(data, start, end, ecn, now)
            return
        if end - start <= PIECE_HEADER:
            raise Dropped(Slot.RX_SHORT)
        circuit_id, _, flags, whole, number = _HEADER.unpack_from(data, start)
        size = end - start - PIECE_HEADER
        part = _Part(circuit_id, flags & _INDEX, bool(flags & _LAST), whole, size, number)
        part.check()
        frame = self._take(part, data, start + PIECE_HEADER, ecn, now)
        if frame is not None:
            yield frame

    def _take_bundle(
        self, data: bytearray, start: int, end: int, ecn: int, now: float
    ) -> Iterator[tuple[bytearray, int]]:
        at = start + _BUNDLE_AT
        while True:
            if end - at <= _BUNDLED_HEADER.size:
                raise Dropped(Slot.RX_SHORT)
            flags, whole, number, size = _BUNDLED_HEADER.unpack_from(data, at)
            at += _BUNDLED_HEADER.size
            if not size or not flags & _BUNDLED or not flags & _LAST:
                raise Dropped(Slot.RX_MALFORMED)
            part = _Part(data[start], flags & _INDEX, True, whole, size, number)
            part.check()
            if part.length > end - at:
                raise Dropped(Slot.RX_MALFORMED)
            try:
                frame = self._take(part, data, at, ecn, now)
            except Dropped as dropped:
                self.dropped.append(dropped.slot)
            else:
                if frame is not None:
                    yield frame
            at += part.length
            if at == end or not data[at]:  # zeros fill it up
                return

    def _take(
        self, part: _Part, data: bytearray, at: int, ecn: int, now: float
    ) -> tuple[bytearray, int] | None:
        if part.whole > self._limit:
            raise Dropped(Slot.RX_OVERSIZED)
        slot = part.number % JOIN_SLOTS
        frame = self._slots[slot]
        if (
            frame is None
            or (frame.number, frame.length, frame.size) != (part.number, part.whole, part.size)
            or now - frame.since >= JOIN_S
        ):
            self._sweep(now)
            self._give_up(slot)
            buffer = bytearray(REBUILD_ROOM + CIRCUIT_ID + part.whole)
            buffer[REBUILD_ROOM] = part.circuit_id
            missing = set(range(part.count))
            frame = _Incomplete(part.number, part.whole, part.size, now, buffer, missing, ecn)
            self._slots[slot] = frame
        if part.index not in frame.missing:
            raise Dropped(Slot.RX_DUPLICATE)
        if ecn == CE:  # RFC 3168, section 5.3
            frame.ecn = ecn
        to = REBUILD_ROOM + CIRCUIT_ID + part.begin
        frame.data[to : to + part.length] = data[at : at + part.length]
        frame.missing.discard(part.index)
        return None if frame.missing else (frame.data, frame.ecn)

    def _sweep(self, now: float) -> None:
        """Give up all that are old, once in a while, so that they are counted."""
        if now - self._swept < JOIN_S:
            return
        self._swept = now
        for slot, frame in enumerate(self._slots):
            if frame is not None and now - frame.since >= JOIN_S:
                self._give_up(slot)

    def _give_up(self, slot: int) -> None:
        frame = self._slots[slot]
        self.given_up += frame is not None and bool(frame.missing)
        self._slots[slot] = None
