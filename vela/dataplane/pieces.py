"""Frames that are larger than a datagram, in pieces and back. Pure. docs/protocol.md, 3.7.

Its C twin is native/pieces.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from vela.dataplane.counters import Slot
from vela.dataplane.ecn import CE, NOT_ECT
from vela.dataplane.frame import PIECE_BYTE, REBUILD_ROOM, Dropped
from vela.wire import CIRCUIT_ID, DATA_HEADER, ESCAPE, put_data_header

# Behind the data header: 0x44, index, length and number of the frame.
_HEADER = struct.Struct("!BBHI")
PIECE_HEADER = DATA_HEADER + _HEADER.size
_LAST, _INDEX = 0x80, 0x3F

MAX_PIECES = 64
"""Of a frame: as many as one send takes (UDP_MAX_SEGMENTS, Linux 4.18)."""

JOIN_SLOTS = 64
JOIN_S = 1.0
"""Frames that can be incomplete at a time, and for how long. A sender numbers them in a row, so the
slot of a number is that of a frame 64 before it."""

_MAX_LENGTH = 0xFFFF
_NUMBERS = 1 << 32


class Fragmentation(IntEnum):
    """What becomes of a frame that is larger than a datagram."""

    BY_IP = 0
    IN_PIECES = 1
    NEVER = 2


class Cutter:
    """Cuts datagrams into pieces of one size; zeros fill up the last one."""

    def __init__(self, circuit_id: int, first: int, numbers: tuple[int, int] = (0, 1)) -> None:
        """first: about the number of the first frame; a worker after this one has another.

        numbers: see Attachment.queue.
        """
        rest, self._step = numbers
        self._circuit_id = circuit_id
        self._number = first - first % self._step + rest

    def cut(self, datagram: memoryview, limit: int) -> list[memoryview]:
        """Return two or more datagrams of at most limit bytes, in place of one.

        None if they would be too many, so that IP has to cut it.
        """
        content = datagram[CIRCUIT_ID:]
        length, room = len(content), limit - PIECE_HEADER
        if not 0 < room < length <= min(_MAX_LENGTH, room * MAX_PIECES):
            return []
        # As few as possible, and then as small as possible.
        size = -(-length // -(-length // room))
        count = -(-length // size)
        pieces = []
        for index in range(count):
            last = _LAST if index + 1 == count else 0
            piece = bytearray(PIECE_HEADER + size)
            put_data_header(piece, DATA_HEADER, self._circuit_id)
            _HEADER.pack_into(piece, DATA_HEADER, PIECE_BYTE, index | last, length, self._number)
            part = content[index * size :][:size]
            piece[PIECE_HEADER : PIECE_HEADER + len(part)] = part
            pieces.append(memoryview(piece))
        self._number = (self._number + self._step) % _NUMBERS
        return pieces


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

    def take(
        self, data: bytearray, start: int, end: int, ecn: int, now: float
    ) -> tuple[bytearray, int] | None:
        """Take the piece at data[start:end] with the outer ECN ecn. now is monotonic.

        If it is the one that was missing, return the datagram that was cut,
        behind REBUILD_ROOM bytes, and its outer ECN. Raises Dropped.
        """
        if end - start <= PIECE_HEADER:
            raise Dropped(Slot.RX_SHORT)
        _, flags, length, number = _HEADER.unpack_from(data, start + DATA_HEADER)
        size = end - start - PIECE_HEADER
        count = -(-length // size)
        index, last = flags & _INDEX, bool(flags & _LAST)
        # The size of one says where each lies: they cannot overlap.
        if not 2 <= count <= MAX_PIECES or index >= count or last != (index + 1 == count):
            raise Dropped(Slot.RX_MALFORMED)
        if length > self._limit:
            raise Dropped(Slot.RX_OVERSIZED)
        frame = self._slots[number % JOIN_SLOTS]
        if (
            frame is None
            or (frame.number, frame.length, frame.size) != (number, length, size)
            or now - frame.since >= JOIN_S
        ):
            self._sweep(now)
            self._give_up(number % JOIN_SLOTS)
            buffer = bytearray(REBUILD_ROOM + CIRCUIT_ID + length)
            buffer[REBUILD_ROOM] = data[start]
            frame = _Incomplete(number, length, size, now, buffer, set(range(count)), ecn)
            self._slots[number % JOIN_SLOTS] = frame
        if index not in frame.missing:
            raise Dropped(Slot.RX_DUPLICATE)
        if ecn == CE:  # RFC 3168, section 5.3
            frame.ecn = ecn
        begin = index * size
        part = data[start + PIECE_HEADER : end][: length - begin]
        at = REBUILD_ROOM + CIRCUIT_ID + begin
        frame.data[at : at + len(part)] = part
        frame.missing.discard(index)
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
