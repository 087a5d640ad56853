"""What seals and opens a circuit's datagrams in its worker, with the keys of its key page.

docs/protocol.md, 3.6. C twin: native/cipher.c. A Sealer and an Opener each belong to one thread of
the worker. Both threads have a Sealer, since the ingress thread answers echo requests.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vela.dataplane.aead import Aead
from vela.dataplane.counters import Slot
from vela.dataplane.frame import ENCRYPTED_BYTE, Dropped
from vela.dataplane.key_page import (
    KEY_SIZE,
    MAGIC,
    NUMBER_BITS,
    PHASES,
    SALT_SIZE,
    SKIPPED,
    SlotWord,
    Word,
    boottime_ns,
    fence,
    sequence_start,
    sequences_used,
    slot_start,
)
from vela.dataplane.window import Window
from vela.wire import CIRCUIT_ID, FRAME_COUNTER, PHASE, TAG, Suite

TEXT = CIRCUIT_ID + PHASE + FRAME_COUNTER
"""Where a sealed datagram's text begins."""

_SERIAL_SHIFT = 32
_COUNTER_MASK = (1 << _SERIAL_SHIFT) - 1
_NUMBER_MASK = (1 << NUMBER_BITS) - 1
_WORD_SIZE = 8


LOOK_S = 0.5
LOOK_FIRST_S = 0.05
"""How long a loop waits for a frame before it looks after its keys.

Under load it looks at each batch; what was wiped must not stay here where there is none, and the
other end waits for the word that the first key is taken up.
"""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A datagram as an encrypted circuit may send it. Only a Sealer makes one."""

    datagram: memoryview


class _Key(NamedTuple):
    """A copy of a slot."""

    serial: int
    phase: int
    suite: Suite
    born_ns: int
    expires_ns: int
    limit: int
    tx_salt: bytes
    rx_salt: bytes
    tx_key: bytes
    rx_key: bytes

    def is_young(self, now_ns: int) -> bool:
        """Tell whether a key may still be used.

        One of the future may not: its page is that of another life of this machine.
        """
        return self.born_ns <= now_ns < self.expires_ns

    def without_secrets(self) -> _Key:
        return self._replace(tx_key=b"", rx_key=b"")


class WorkerPage:
    """The worker's side of a key page, which both its threads share."""

    def __init__(self, memory: memoryview) -> None:
        """Take a mapped page over from the worker before, which must be dead and reaped.

        Raises ValueError where it is none.
        """
        self._bytes = memory
        self.words = memory.cast("Q")
        if self.words[Word.MAGIC] != MAGIC:
            raise ValueError("this memory is no key page")
        self._lock = threading.Lock()
        self._skip()

    def read(self, phase: int) -> _Key | None:
        """Return a copy of a phase's keys; None where there are none, or they just change."""
        words, slot = self.words, slot_start(phase)
        serial = words[slot + SlotWord.SERIAL]
        if serial == 0:
            return None
        fence()
        try:
            suite = Suite(words[slot + SlotWord.SUITE])
        except ValueError:  # being written
            return None
        key = _Key(
            serial,
            phase,
            suite,
            words[slot + SlotWord.BORN_NS],
            words[slot + SlotWord.EXPIRES_NS],
            words[slot + SlotWord.LIMIT],
            self._copy(slot + SlotWord.TX_SALT, SALT_SIZE),
            self._copy(slot + SlotWord.RX_SALT, SALT_SIZE),
            self._copy(slot + SlotWord.TX_KEY, KEY_SIZE),
            self._copy(slot + SlotWord.RX_KEY, KEY_SIZE),
        )
        fence()
        return key if words[slot + SlotWord.SERIAL] == serial else None

    def reserve(self, key: _Key, count: int, octets: int) -> range:
        """Return up to count counters that nobody has used or will use, before any is used.

        A worker that dies with them leaves a gap, which does no harm; taken
        after use, they would be used twice by its successor, which breaks both
        frames and, with AES-GCM, the key. Fewer, or none, where the key's limit
        is reached or another key is in its slot.
        """
        words, place = self.words, slot_start(key.phase) + SlotWord.NEXT
        with self._lock:
            following = words[place]
            if following >> _SERIAL_SHIFT != key.serial:
                if following >> _SERIAL_SHIFT > key.serial:
                    return range(0)
                following = key.serial << _SERIAL_SHIFT | 1
                words[place + SlotWord.OCTETS - SlotWord.NEXT] = 0
            first = following & _COUNTER_MASK
            # Only below the limit: no counter can then run over into the serial.
            count = max(min(count, key.limit - self._used_by_others(key) - first), 0)
            if count:
                words[place] = following + count
                words[place + SlotWord.OCTETS - SlotWord.NEXT] += octets
        return range(first, first + count)

    def forget(self, key: _Key) -> None:
        """Let nobody send with a key any more whose counters cannot be relied on."""
        with self._lock:
            place = slot_start(key.phase) + SlotWord.NEXT
            self.words[place] = key.serial << _SERIAL_SHIFT | _COUNTER_MASK

    def _used_by_others(self, key: _Key) -> int:
        """Return how many of a key's numbers another worker has used in further sequences.

        This engine sends with the first one alone.
        """
        words, used = self.words, 0
        for sequence in range(1, sequences_used(words)):
            following = words[sequence_start(key.phase, sequence) + SlotWord.NEXT]
            if following >> _SERIAL_SHIFT == key.serial:
                used += (following & _COUNTER_MASK) - 1
        return used

    def _copy(self, first: int, size: int) -> bytes:
        start = first * _WORD_SIZE
        return bytes(self._bytes[start : start + size])

    def _skip(self) -> None:
        """Leave out counters that the worker before may have used: see SKIPPED."""
        for phase in range(PHASES):
            key = self.read(phase)
            place = slot_start(phase) + SlotWord.NEXT
            following = self.words[place]
            if key is not None and following >> _SERIAL_SHIFT == key.serial:
                counter = min((following & _COUNTER_MASK) + SKIPPED, key.limit)
                self.words[place] = key.serial << _SERIAL_SHIFT | counter


class Sealer:
    """Seals a thread's datagrams."""

    def __init__(self, page: WorkerPage, circuit_id: int, *, acknowledges: bool = False) -> None:
        """acknowledges: it is this thread's part to say with which key the circuit sends."""
        self._page = page
        self._circuit_id = circuit_id
        self._acknowledges = acknowledges
        self._key: _Key | None = None
        self._aead: Aead | None = None
        self._last = 0

    def look(self) -> None:
        """Take up the key to send with, if it is another one; forget one that was wiped."""
        words = self._page.words
        sending = words[Word.SENDING]
        if self._key is not None and not self._is_current(self._key, sending):
            self._key = self._aead = None
        now = boottime_ns()
        if self._key is None and sending:
            for phase in range(PHASES):
                key = self._page.read(phase)
                if key is not None and key.serial == sending:
                    self._key = key.without_secrets()
                    self._aead = Aead(key.suite, key.tx_key, key.tx_salt)
                    self._last = 0
        if self._key is not None and not self._key.is_young(now):
            self._aead = None
        if self._acknowledges:
            taken = 0 if self._key is None or self._aead is None else self._key.serial
            if words[Word.SENT_WITH] != taken:
                words[Word.SENT_WITH] = taken

    def seal(self, datagrams: Sequence[bytes | memoryview]) -> list[Sealed]:
        """Return datagrams sealed, in order; fewer, or none, where no key is valid.

        Raises OSError (EKEYREVOKED) where the page gives a counter that this
        thread has used, as somebody else uses it, or it was reset: the worker
        must end. Nothing is sent with the key any more.
        """
        self.look()
        key, aead = self._key, self._aead
        if key is None or aead is None or not datagrams:
            return []
        counters = self._page.reserve(key, len(datagrams), sum(map(len, datagrams)))
        if counters and counters[0] <= self._last:
            self._page.forget(key)
            raise OSError(errno.EKEYREVOKED, os.strerror(errno.EKEYREVOKED))
        if counters:
            self._last = counters[-1]
        return [
            self._seal(aead, key.phase, counter, datagram)
            for counter, datagram in zip(counters, datagrams, strict=False)
        ]

    def _is_current(self, key: _Key, sending: int) -> bool:
        slot = slot_start(key.phase)
        return key.serial == sending == self._page.words[slot + SlotWord.SERIAL]

    def _seal(self, aead: Aead, phase: int, counter: int, datagram: bytes | memoryview) -> Sealed:
        head = bytes((self._circuit_id, ENCRYPTED_BYTE | phase))
        head += counter.to_bytes(FRAME_COUNTER, "big")
        return Sealed(memoryview(head + aead.seal(counter, datagram[CIRCUIT_ID:])))


@dataclass(slots=True)
class _Receiving:
    key: _Key
    aead: Aead | None
    """None: the key is too old."""
    windows: dict[int, Window] = field(default_factory=dict)
    """By the sequences that were seen."""


class Opener:
    """Opens the circuit's datagrams. Only the ingress thread has one."""

    def __init__(self, page: WorkerPage, sequences: int = 1) -> None:
        """sequences: that the remote may use."""
        self._page = page
        self._sequences = sequences
        self._receiving: list[_Receiving | None] = [None] * PHASES

    def look(self) -> None:
        """Take up keys that are new, and forget those that were wiped or are too old.

        Says in the page which ones it has: the other end is told only then
        that it may send with them.
        """
        words = self._page.words
        now = boottime_ns()
        for phase in range(PHASES):
            slot = slot_start(phase)
            has = self._receiving[phase]
            if (0 if has is None else has.key.serial) != words[slot + SlotWord.SERIAL]:
                key = self._page.read(phase)
                has = self._receiving[phase] = None if key is None else self._take_up(key)
            if has is not None and not has.key.is_young(now):
                has.aead = None
            taken = 0 if has is None or has.aead is None else has.key.serial
            if words[slot + SlotWord.RECEIVES] != taken:
                words[slot + SlotWord.RECEIVES] = taken

    @property
    def receives(self) -> bool:
        """Whether any frame can be opened."""
        return any(has is not None and has.aead is not None for has in self._receiving)

    def _take_up(self, key: _Key) -> _Receiving:
        aead = Aead(key.suite, key.rx_key, key.rx_salt)
        return _Receiving(key.without_secrets(), aead)

    def open_datagram(self, data: bytearray, start: int, end: int) -> tuple[int, int]:
        """Open the circuit's datagram at data[start:end], in place.

        Return where the clear datagram begins, its circuit id included, and
        ends. Raises Dropped. look() comes first, once for each batch.
        """
        if end - start <= CIRCUIT_ID:
            raise Dropped(Slot.RX_SHORT)
        if data[start + CIRCUIT_ID] & 0xFE != ENCRYPTED_BYTE:
            raise Dropped(Slot.RX_CLEAR)
        text, tag = start + TEXT, end - TAG
        if tag <= text:
            raise Dropped(Slot.RX_SHORT)
        has = self._receiving[data[start + CIRCUIT_ID] & 1]
        counter = int.from_bytes(data[start + CIRCUIT_ID + PHASE : text], "big")
        sequence, number = counter >> NUMBER_BITS, counter & _NUMBER_MASK
        # A sender that goes beyond the limit is none of ours.
        beyond = sequence >= self._sequences
        if has is None or has.aead is None or beyond or number >= has.key.limit:
            raise Dropped(Slot.RX_NO_KEY)
        window = has.windows.get(sequence)
        if window is None:
            window = Window(self._page.words, has.key.phase, has.key.serial, sequence)
            has.windows[sequence] = window
        # Before the tag, which costs more; the window is changed only behind a right one.
        if not window.is_new(number):
            raise Dropped(Slot.RX_REPLAYED)
        opened = has.aead.open_frame(counter, memoryview(data)[text:end])
        if opened is None:
            raise Dropped(Slot.RX_BAD_TAG)
        # Before the frame goes to the TAP: where the worker dies in between it is lost, and cannot
        # come twice.
        window.mark(number)
        data[text:tag] = opened
        data[text - CIRCUIT_ID] = data[start]
        return text - CIRCUIT_ID, tag
