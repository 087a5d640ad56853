"""A circuit's counters, in memory that its worker and the supervisor share.

Every slot has one writer, so no slot needs a lock: the worker's egress thread, its
ingress thread, and the supervisor each write their own.
"""

from __future__ import annotations

import mmap
from enum import IntEnum

SLOT_SIZE = 8
CACHE_LINE_SLOTS = 64 // SLOT_SIZE


class Slot(IntEnum):
    """Index into a block of 64-bit counters. The native twin uses the same numbers."""

    # The egress thread's, two cache lines.
    TX_FRAMES = 0
    TX_BYTES = 1  # of frames, as the TAP gave them
    TX_ELIDED = 2
    TX_FRAGMENTED = 3  # datagrams larger than the underlay carries in one piece
    TX_ERRORS = 4  # frames that the kernel would not send
    TX_NOT_IP = 5  # frames without meaning to a remote that takes only IP
    EGRESS_PROGRESS = 6
    TX_NO_KEY = 7  # frames of an encrypted circuit without a valid key
    # The ingress thread's.
    RX_FRAMES = 16
    RX_BYTES = 17  # of frames, as the TAP got them
    RX_ELIDED = 18
    RX_VERIFICATIONS = 19  # in-circuit echo requests answered
    RX_SHORT = 20
    RX_UNKNOWN_CIRCUIT = 21
    RX_RESERVED = 22
    RX_OVERSIZED = 23
    RX_MALFORMED = 24
    RX_INTERFACE_DOWN = 25
    RX_CONGESTED = 26  # for another circuit, and the way there was full
    INGRESS_PROGRESS = 27
    # Of encrypted circuits.
    RX_CLEAR = 28
    RX_NO_KEY = 29  # no valid key of this phase
    RX_REPLAYED = 30  # came before, or is too old to tell
    RX_BAD_TAG = 31


BLOCK_SLOTS = 4 * CACHE_LINE_SLOTS

RX_DROPPED = {
    "short": Slot.RX_SHORT,
    "unknown_circuit": Slot.RX_UNKNOWN_CIRCUIT,
    "reserved": Slot.RX_RESERVED,
    "oversized": Slot.RX_OVERSIZED,
    "malformed": Slot.RX_MALFORMED,
    "interface_down": Slot.RX_INTERFACE_DOWN,
    "congested": Slot.RX_CONGESTED,
    "clear": Slot.RX_CLEAR,
    "no_key": Slot.RX_NO_KEY,
    "replayed": Slot.RX_REPLAYED,
    "bad_tag": Slot.RX_BAD_TAG,
}
"""Reasons for which datagrams of a circuit are dropped, as the status names them."""

TX_DROPPED = {"not_ip": Slot.TX_NOT_IP, "no_key": Slot.TX_NO_KEY}


_EXIT_MESSAGE_SLOTS = 2 * CACHE_LINE_SLOTS
_CIRCUIT_SLOTS = 2 * BLOCK_SLOTS + _EXIT_MESSAGE_SLOTS
_SLAB_CIRCUITS = 256


class Counters:
    """One circuit's counters: they outlive its workers."""

    def __init__(self, slots: memoryview | None = None) -> None:
        """Take shared memory of _CIRCUIT_SLOTS 64-bit slots; None: some of its own."""
        if slots is None:
            slots = memoryview(mmap.mmap(-1, _CIRCUIT_SLOTS * SLOT_SIZE)).cast("Q")
        self.slots = slots
        self.worker = slots[:BLOCK_SLOTS]
        # Frames that the supervisor itself delivers, see vela.dataplane.
        self.supervisor = slots[BLOCK_SLOTS : 2 * BLOCK_SLOTS]
        # Bytes, see vela.dataplane.exit_message; 128.
        self.exit_message = slots[2 * BLOCK_SLOTS :].cast("B")

    def total(self, slot: Slot) -> int:
        """Return what all writers of this slot have counted."""
        return self.worker[slot] + self.supervisor[slot]

    def progress(self) -> tuple[int, int]:
        """Return two numbers that move as long as the worker's (egress, ingress) loops do."""
        return self.worker[Slot.EGRESS_PROGRESS], self.worker[Slot.INGRESS_PROGRESS]


class CounterSlab:
    """Counters of many circuits in one mapping: a fork takes time for each mapping there is."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> Counters:
        """Return counters that are all zero."""
        if not self._free:
            size = _SLAB_CIRCUITS * _CIRCUIT_SLOTS * SLOT_SIZE
            slots = memoryview(mmap.mmap(-1, size)).cast("Q")
            self._free = [
                slots[start : start + _CIRCUIT_SLOTS]
                for start in range(0, len(slots), _CIRCUIT_SLOTS)
            ]
        return Counters(self._free.pop())

    def give_back(self, counters: Counters) -> None:
        """Take counters that no process counts in any more, for another circuit."""
        for slot in range(_CIRCUIT_SLOTS):
            counters.slots[slot] = 0
        self._free.append(counters.slots)
