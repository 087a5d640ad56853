"""The key page: one circuit's keys, in memory that its worker shares with the key holder.

The key holder writes keys; the worker writes which counters it has used and which frames it has
seen, so that its successor goes on from there: a store to shared memory survives the SIGKILL of
the process that made it. Nobody else maps the page. C twin: native/key_page.h.

Each word has one writer, so nothing needs a lock between the two processes. A key is known by its
serial number in the page. The worker's words carry the serial of the key that they are about, so
that a new key in a slot needs no write of the key holder to them, which could race with the worker.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from dataclasses import dataclass
from enum import IntEnum

from vela.linux import secret_memory
from vela.wire import MAX_QUEUES, Suite

SIZE = 5 * 4096
"""In bytes."""
SMALLEST = 4096
"""Of a velad that had one sequence alone."""
KEY_SIZE = 32
SALT_SIZE = 8
PHASES = 2
SEQUENCES = MAX_QUEUES
"""Of counters under one key, each with its own numbers and replay window: one for each queue that
sends. What a queue lacks then another one cannot have taken, however far it is ahead."""
NUMBER_BITS = 28
"""Of a counter; the sequence is above them."""

LIMIT = 1 << 28
"""Counters of a key are below this. AES-GCM's bound is 2^28 frames of up to 2^11 bytes (RFC 9001,
section 6.6 and appendix B.1); longer frames reach it in bytes, so rekeying looks at those, too."""
LIFETIME_S = 180.0
"""No key is used for longer. Whoever takes a machine learns nothing older."""
SKIPPED = 1 << 20
"""Counters that a successor leaves out. Its predecessor is dead, and what it had reserved stands in
the page; should a store of it ever be missing after all, this is far more than a batch."""

_WORD_SIZE = 8
_WORD_MAX = (1 << 64) - 1
MAGIC = int.from_bytes(b"VELAKEY1", "little")


class Word(IntEnum):
    """Index of a 64-bit word in the page, in the machine's byte order. One line of 64 bytes for
    each writer."""

    # The key holder's.
    MAGIC = 0
    SERIAL = 1  # the last one given
    SENDING = 2  # the serial of the key to send with; 0: none
    # The worker's first egress thread's.
    SENT_WITH = 8  # the serial that it last took up
    # The worker's, before its threads start.
    SEQUENCES = 9  # that any worker has sent with; 0: the first one alone


class SlotWord(IntEnum):
    """Index of a word from a phase's slot on; behind the key holder's, from a sequence on."""

    # The key holder's. The worker takes a copy of keys for valid if SERIAL is the same before and
    # after.
    SERIAL = 0  # 0: there is no key
    GENERATION = 1  # of the session's keys: for the status
    SUITE = 2
    BORN_NS = 3  # CLOCK_BOOTTIME, so that a machine that sleeps wakes up with old keys
    EXPIRES_NS = 4
    LIMIT = 5
    TX_SALT = 6
    RX_SALT = 7
    TX_KEY = 8
    RX_KEY = 12
    # The worker's, by either thread of a queue, under its lock.
    NEXT = 16  # serial in the high half, next number in the low one
    OCTETS = 17  # that were sealed
    # The worker's ingress threads'.
    RECEIVES = 24  # the first one's, in the first sequence: the serial that it has taken up
    WINDOW_SERIAL = 25
    TOP = 26  # the highest number seen
    BITMAP = 32


WINDOW = 8192
"""Counters behind the highest one that are still accepted, once each: 20 ms of reordering at
400 000 frames a second. With 32 to 4096 other VPNs lose frames where paths or queues reorder."""
BITMAP_WORDS = WINDOW // 64
SLOT_WORDS = SlotWord.BITMAP + BITMAP_WORDS
_FIRST_SLOT = 16
_FIRST_FURTHER = 512
_SEQUENCE_WORDS = SLOT_WORDS - SlotWord.NEXT


def slot_start(phase: int) -> int:
    """Return the index of the first word of a phase's slot."""
    return _FIRST_SLOT + phase * SLOT_WORDS


def sequence_start(phase: int, sequence: int) -> int:
    """Return the index that SlotWord.NEXT and those behind it are counted from, for a sequence.

    The first one's is that of the slot.
    """
    if sequence == 0:
        return slot_start(phase)
    number = phase * (SEQUENCES - 1) + sequence - 1
    return _FIRST_FURTHER + number * _SEQUENCE_WORDS - SlotWord.NEXT


def room(size: int) -> int:
    """Return how many sequences fit a page of so many bytes."""
    return 1 if size < SIZE else SEQUENCES


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What one generation of a session sends and receives with."""

    suite: Suite
    tx_key: bytes
    tx_salt: bytes
    rx_key: bytes
    rx_salt: bytes

    def __post_init__(self) -> None:
        if not len(self.tx_key) == len(self.rx_key) == KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes")
        if not len(self.tx_salt) == len(self.rx_salt) == SALT_SIZE:
            raise ValueError(f"a salt has {SALT_SIZE} bytes")

    def __repr__(self) -> str:
        return f"KeyPair({self.suite.name})"  # keys are in no log and no traceback


@dataclass(frozen=True, slots=True)
class Usage:
    """What became of a key so far, as the page says."""

    generation: int
    frames_sent: int
    """Counters that are used up, those of a dead worker's batch included."""
    frames_left: int
    octets_sent: int
    age_s: float
    expires_in_s: float
    receives: bool
    """The worker can receive with it."""
    sends: bool
    """The worker was told to send with it, and has taken it up."""


def create() -> int:
    """Return the descriptor of an empty page. Raises OSError."""
    fd = secret_memory.create(SIZE)
    try:
        with KeyPage(fd):
            pass
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_key_page(fd: int) -> mmap.mmap:
    """Map a page of create(), or a smaller one of another velad's. Raises OSError."""
    return secret_memory.map_shared(fd, page_size(fd))


def page_size(fd: int) -> int:
    """Return how much of a page there is, in bytes. Raises OSError; ValueError: it is none."""
    size = os.fstat(fd).st_size
    if size < SMALLEST:
        raise ValueError(f"a key page of {size} bytes")
    return min(size, SIZE)


def boottime_ns() -> int:
    """Return the time since the machine started, with what it slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class KeyPage:
    """The key holder's side of a page. No method waits for the worker."""

    def __init__(self, fd: int) -> None:
        """Map a page of create(), also one that another key holder left; fd can be closed then.

        Raises OSError.
        """
        self._memory = map_key_page(fd)
        self.words = memoryview(self._memory).cast("Q")
        if self.words[Word.MAGIC] == 0:
            self.words[Word.MAGIC] = MAGIC

    def __enter__(self) -> KeyPage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the page; its content stays for whoever else has it."""
        self.words.release()
        self._memory.close()

    def install(
        self,
        phase: int,
        keys: KeyPair,
        generation: int,
        *,
        born_ns: int | None = None,
        limit: int = LIMIT,
        lifetime_s: float = LIFETIME_S,
    ) -> int:
        """Put a generation's keys into a phase, where they replace an older one's.

        Return their serial number in the page.

        The worker receives with them at once, and sends with them from
        send_with() on. born_ns: when the handshake made them, CLOCK_BOOTTIME;
        now, if None. generation is for the status alone: another session may
        begin anew.
        """
        words, slot = self.words, slot_start(phase)
        # From 1 on, in 32 bits: a worker that an attacker controls could have written anything.
        serial = words[Word.SERIAL] % ((1 << 32) - 1) + 1
        self.wipe(phase)
        words[Word.SERIAL] = serial
        born = boottime_ns() if born_ns is None else born_ns
        words[slot + SlotWord.GENERATION] = generation
        words[slot + SlotWord.SUITE] = keys.suite
        words[slot + SlotWord.BORN_NS] = born
        words[slot + SlotWord.EXPIRES_NS] = born + round(lifetime_s * 1e9)
        words[slot + SlotWord.LIMIT] = min(limit, LIMIT)
        self._put(slot + SlotWord.TX_SALT, keys.tx_salt)
        self._put(slot + SlotWord.RX_SALT, keys.rx_salt)
        self._put(slot + SlotWord.TX_KEY, keys.tx_key)
        self._put(slot + SlotWord.RX_KEY, keys.rx_key)
        fence()
        words[slot + SlotWord.SERIAL] = serial
        return serial

    def serial(self, phase: int) -> int:
        """Return the serial number of a phase's keys; 0: there are none."""
        return self.words[slot_start(phase) + SlotWord.SERIAL]

    def send_with(self, phase: int) -> None:
        """Let the worker send with this phase's key from now on."""
        serial = self.serial(phase)
        if serial == 0:
            raise ValueError(f"phase {phase} has no key to send with")
        self.words[Word.SENDING] = serial

    def wipe(self, phase: int) -> None:
        """Overwrite a phase's keys. Nothing is sent or received with them afterwards.

        The worker notices it at its next batch, and half a second later where there is none.
        """
        words, slot = self.words, slot_start(phase)
        words[slot + SlotWord.SERIAL] = 0
        fence()
        for word in range(SlotWord.GENERATION, SlotWord.NEXT):
            words[slot + word] = 0

    def wipe_all(self) -> None:
        """Overwrite all keys: the circuit neither sends nor receives until there are new ones."""
        self.words[Word.SENDING] = 0
        for phase in range(PHASES):
            self.wipe(phase)

    def usage(self, phase: int) -> Usage | None:
        """Return what became of a phase's key; None where there is none.

        A worker that an attacker controls can make all of it up, and nothing else of it.
        """
        words, slot = self.words, slot_start(phase)
        serial = words[slot + SlotWord.SERIAL]
        if serial == 0:
            return None
        used = octets = 0
        for sequence in range(sequences_used(words)):
            start = sequence_start(phase, sequence)
            following = words[start + SlotWord.NEXT]
            if following >> 32 == serial and following % (1 << 32) > 1:
                used += following % (1 << 32) - 1
                octets += words[start + SlotWord.OCTETS]
        now = boottime_ns()
        return Usage(
            generation=words[slot + SlotWord.GENERATION],
            frames_sent=used,
            frames_left=max(words[slot + SlotWord.LIMIT] - 1 - used, 0),
            # A worker that an attacker controls could have written anything.
            octets_sent=min(octets, _WORD_MAX),
            age_s=(now - words[slot + SlotWord.BORN_NS]) / 1e9,
            expires_in_s=(words[slot + SlotWord.EXPIRES_NS] - now) / 1e9,
            receives=words[slot + SlotWord.RECEIVES] == serial,
            sends=words[Word.SENDING] == words[Word.SENT_WITH] == serial,
        )

    def _put(self, first: int, value: bytes) -> None:
        start = first * _WORD_SIZE
        self._memory[start : start + len(value)] = value


def sequences_used(words: memoryview) -> int:
    """Return how many sequences workers have sent with, the first ones."""
    return max(1, min(words[Word.SEQUENCES], room(words.nbytes)))


_barrier = threading.Lock()


def fence() -> None:
    """Let nobody see a store behind this before one ahead of it.

    Python has no such instruction; taking a lock twice, with its release between, is one on every
    processor. Aligned words are stored in one piece.
    """
    with _barrier:
        pass
    with _barrier:
        pass
