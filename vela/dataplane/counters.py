"""A circuit's counters, in a page that its worker and the supervisor share.

Every slot has one writer, so no slot needs a lock: the worker's egress thread, its ingress thread,
and the supervisor each write their own. Threads of further queues have blocks of
their own. The supervisor trusts nothing in the page: a worker that an attacker controls can write
any bytes at any time.
"""

from __future__ import annotations

from enum import IntEnum

from vela.dataplane.handover import SIZE as _HANDOVER_SIZE
from vela.linux.pages import PAGE_SIZE, SharedPage, SharedPages
from vela.wire import MAX_QUEUES

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
    TX_MSS_CLAMPED = 8  # SYNs whose MSS was lowered
    TX_PIECED = 9  # frames that left in pieces
    TX_TOO_LARGE = 10  # frames that are not to be fragmented
    TX_TOO_BIG_SENT = 11  # ICMP messages to senders of what is too large for a datagram
    TX_BACKLOG = 12  # frames lost so that a queue that stands becomes shorter
    TX_MARKED = 13  # frames marked for that
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
    RX_MSS_CLAMPED = 32
    RX_JOINED = 33  # frames that came in pieces
    RX_INCOMPLETE = 34  # frames of which pieces are missing
    RX_DUPLICATE = 35  # pieces that came before
    RX_ECN = 36  # marked on the way, and the sender is not ECN-capable


# An IntEnum's members are slow to find and to use as an index.
_EGRESS, _INGRESS = int(Slot.EGRESS_PROGRESS), int(Slot.INGRESS_PROGRESS)

BLOCK_SLOTS = 5 * CACHE_LINE_SLOTS

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
    "incomplete": Slot.RX_INCOMPLETE,
    "duplicate": Slot.RX_DUPLICATE,
    "ecn": Slot.RX_ECN,
}
"""Reasons for which datagrams of a circuit are dropped, as the status names them."""

TX_DROPPED = {
    "not_ip": Slot.TX_NOT_IP,
    "no_key": Slot.TX_NO_KEY,
    "too_large": Slot.TX_TOO_LARGE,
    "backlog": Slot.TX_BACKLOG,
}


_EXIT_MESSAGE_START = BLOCK_SLOTS * SLOT_SIZE
_EXIT_MESSAGE_SIZE = 128
_HANDOVER_START = _EXIT_MESSAGE_START + _EXIT_MESSAGE_SIZE
# Blocks like the first one, on lines of cache of their own.
_BLOCK_SIZE = BLOCK_SLOTS * SLOT_SIZE
_FURTHER_START = 512
assert _HANDOVER_START + _HANDOVER_SIZE <= _FURTHER_START
assert _FURTHER_START + (MAX_QUEUES - 1) * _BLOCK_SIZE <= PAGE_SIZE
MODULUS = 2**64
"""As a worker's slots wrap around."""


class Counters:
    """One circuit's counters: they outlive its workers."""

    def __init__(self, page: SharedPage | None = None) -> None:
        """Take a page that is all zero; None: one of its own."""
        self.page = SharedPages(1).take() if page is None else page
        memory = self.page.memory
        self.worker = memory[:_EXIT_MESSAGE_START].cast("Q")
        self.workers: tuple[memoryview[int], ...] = (self.worker,)
        """Those of each of the worker's queues."""
        # Bytes, see vela.dataplane.exit_message.
        self.exit_message = memory[_EXIT_MESSAGE_START:][:_EXIT_MESSAGE_SIZE]
        # Likewise, see vela.dataplane.handover.
        self.handover = memory[_HANDOVER_START:][:_HANDOVER_SIZE]
        # What earlier workers have counted, and frames that the supervisor itself delivers. Not in
        # the page, so that no worker can write it.
        self.supervisor = [0] * BLOCK_SLOTS

    def make_room(self, queues: int) -> None:
        """Have slots for so many queues from now on."""
        for queue in range(len(self.workers), queues):
            start = _FURTHER_START + (queue - 1) * _BLOCK_SIZE
            self.workers += (self.page.memory[start:][:_BLOCK_SIZE].cast("Q"),)

    def total(self, *slots: Slot) -> int:
        """Return what all writers of these slots have counted together."""
        return sum(self.totals(*slots)) % MODULUS

    def totals(self, *slots: int) -> list[int]:
        """Return what all writers of each of these slots have counted."""
        if len(self.workers) > 1:
            found = self.all_totals()
            return [found[slot] for slot in slots]
        worker, supervisor = self.worker, self.supervisor
        return [(worker[slot] + supervisor[slot]) % MODULUS for slot in slots]

    def all_totals(self) -> list[int]:
        """Return what all writers of each slot have counted, by its number, at least cost."""
        blocks = [worker.tolist() for worker in self.workers]
        return [sum(counts) % MODULUS for counts in zip(self.supervisor, *blocks, strict=True)]

    def progress(self, queue: int = 0) -> tuple[int, int]:
        """Return two numbers that move as long as a queue's (egress, ingress) loops do."""
        worker = self.workers[queue]
        return worker[_EGRESS], worker[_INGRESS]

    def absorb(self) -> None:
        """Take over what a worker that has ended counted; the next one finds zeros."""
        for worker in self.workers:
            for slot, count in enumerate(worker.tolist()):
                self.supervisor[slot] += count
                worker[slot] = 0


class CounterSlab:
    """Counters of many circuits in one mapping: a fork takes time for each mapping there is."""

    def __init__(self) -> None:
        self._pages = SharedPages()

    def take(self) -> Counters:
        """Return counters that are all zero. Raises OSError where there is no more memory."""
        return Counters(self._pages.take())

    def give_back(self, counters: Counters) -> None:
        """Take counters that no process counts in any more, for another circuit."""
        self._pages.give_back(counters.page)
