"""The key page: what the key holder writes, what workers of both engines make of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
from exhaustion import open_descriptors
from native_cipher import NativeOpener, NativePage, NativeSealer

from vela.dataplane.cipher import Opener, Sealer, WorkerPage
from vela.dataplane.frame import Dropped
from vela.dataplane.key_page import (
    LIMIT,
    SEQUENCES,
    SIZE,
    SKIPPED,
    SMALLEST,
    WINDOW,
    KeyPage,
    KeyPair,
    SlotWord,
    Word,
    boottime_ns,
    create,
    map_key_page,
    page_size,
    room,
    sequence_start,
    slot_start,
)
from vela.linux import secret_memory
from vela.wire import Suite

CIRCUIT = 7
CLEAR = bytes([CIRCUIT]) + b"text"


def pair(number: int = 1, suite: Suite = Suite.AES_256_GCM, *, swapped: bool = False) -> KeyPair:
    """Keys of one end; swapped: of the other."""
    one, other = bytes([number]) * 32, bytes([number + 100]) * 32
    salts = bytes([number + 50]) * 8, bytes([number + 150]) * 8
    if swapped:
        one, other, salts = other, one, salts[::-1]
    return KeyPair(suite, one, salts[0], other, salts[1])


class PythonWorker:
    def __init__(self, fd: int, sequences: int = 1) -> None:
        page = WorkerPage(memoryview(map_key_page(fd)))
        self.sealer = Sealer(page, CIRCUIT, acknowledges=True)
        self.opener = Opener(page, sequences)

    def look(self) -> None:
        self.sealer.look()
        self.opener.look()

    def seal(self, *datagrams: bytes) -> list[bytes]:
        return [bytes(each.datagram) for each in self.sealer.seal(datagrams)]

    def open(self, datagram: bytes) -> bytes | str:
        data = bytearray(datagram)
        self.opener.look()
        try:
            start, end = self.opener.open_datagram(data, 0, len(data))
        except Dropped as dropped:
            return dropped.slot.name
        return bytes(data[start:end])


class NativeWorker:
    """Or the part of one that has a queue."""

    def __init__(self, fd: int, sequences: int = 1, *, queue: int = 0) -> None:
        page, first = NativePage(fd, queue), queue == 0
        self.sealer = NativeSealer(page, CIRCUIT, acknowledges=first)
        self.opener = NativeOpener(page, sequences, acknowledges=first, shares=True)

    def look(self) -> None:
        self.sealer.look()
        self.opener.look()

    def seal(self, *datagrams: bytes) -> list[bytes]:
        return self.sealer.seal(datagrams)

    def open(self, datagram: bytes) -> bytes | str:
        self.opener.look()
        return self.opener.open_datagram(datagram)


Worker = PythonWorker | NativeWorker
WORKERS: tuple[Callable[[int], Worker], ...] = (PythonWorker, NativeWorker)


@pytest.fixture(params=WORKERS)
def worker_on(request: pytest.FixtureRequest) -> Callable[[int], Worker]:
    made: Callable[[int], Worker] = request.param
    return made


@pytest.fixture
def fd() -> Iterator[int]:
    made = create()
    yield made
    os.close(made)


@pytest.fixture
def page(fd: int) -> Iterator[KeyPage]:
    with KeyPage(fd) as opened:
        yield opened


@pytest.fixture
def far() -> Iterator[KeyPage]:
    """The other end's."""
    made = create()
    with KeyPage(made) as opened:
        opened.install(0, pair(swapped=True), 1)
        opened.send_with(0)
        yield opened
    os.close(made)


def counter_of(sealed: bytes) -> int:
    return int.from_bytes(sealed[2:6], "big")


@pytest.mark.parametrize("hidden", [True, False])
def test_memory_is_locked_and_neither_dumped_nor_inherited(
    hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hidden:
        monkeypatch.setattr(secret_memory, "_memfd_secret", lambda: None)
    fd = secret_memory.create(SIZE)
    if hidden and not secret_memory.is_hidden(fd):
        os.close(fd)
        pytest.skip("this kernel has no memfd_secret")
    name = "secretmem" if hidden else "vela-keys"
    with secret_memory.map_shared(fd, SIZE) as mapped:
        mapped[:5] = b"hello"
        smaps = Path("/proc/self/smaps").read_text().split(name, 1)[1]
        flags = next(line for line in smaps.splitlines() if line.startswith("VmFlags")).split()
    os.close(fd)

    # Documentation/filesystems/proc.rst: locked, do not copy on fork, do not dump.
    assert {"lo", "dc", "dd"} <= set(flags)


def test_worker_without_a_key_sends_and_receives_nothing(
    worker_on: Callable[[int], Worker], fd: int, far: KeyPage
) -> None:
    worker = worker_on(fd)

    assert worker.seal(CLEAR) == []
    assert worker.open(bytes([CIRCUIT, 0x42]) + bytes(30)) == "RX_NO_KEY"


def test_worker_receives_with_a_key_at_once_and_sends_when_it_is_told(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    worker = worker_on(fd)
    page.install(1, pair(), 4)
    assert page.usage(0) is None
    usage = page.usage(1)
    assert usage is not None
    assert not usage.receives
    worker.look()

    assert worker.seal(CLEAR) == []
    usage = page.usage(1)
    assert usage is not None
    assert (usage.generation, usage.receives, usage.sends) == (4, True, False)
    page.send_with(1)
    worker.look()
    usage = page.usage(1)
    assert usage is not None
    assert usage.sends
    (sealed,) = worker.seal(CLEAR)
    assert sealed[:6] == bytes([CIRCUIT, 0x43, 0, 0, 0, 1])
    assert len(sealed) == len(CLEAR) + 21
    usage = page.usage(1)
    assert usage is not None
    assert (usage.frames_sent, usage.octets_sent) == (1, len(CLEAR))
    assert usage.frames_left == LIMIT - 2
    assert 0 <= usage.age_s < 10
    assert 170 < usage.expires_in_s <= 180


@pytest.mark.parametrize("worker_of", [(one, other) for one in WORKERS for other in WORKERS])
@pytest.mark.parametrize("suite", list(Suite))
def test_what_one_engine_seals_the_other_opens_once(
    worker_of: tuple[Callable[[int], Worker], Callable[[int], Worker]], suite: Suite, fd: int
) -> None:
    with KeyPage(fd) as here:
        here.install(0, pair(suite=suite), 1)
        here.send_with(0)
        there_fd = create()
        with KeyPage(there_fd) as there:
            there.install(0, pair(suite=suite, swapped=True), 1)
        sender, receiver = worker_of[0](fd), worker_of[1](there_fd)
        os.close(there_fd)
        clear = [bytes([CIRCUIT]) + bytes([number]) * (number + 1) for number in range(44)]

        sealed = sender.seal(*clear)

        assert [receiver.open(each) for each in sealed] == clear
        assert {receiver.open(each) for each in sealed} == {"RX_REPLAYED"}


def test_successor_goes_on_behind_what_its_predecessor_may_have_used(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage, far: KeyPage
) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    assert [counter_of(each) for each in worker_on(fd).seal(*[CLEAR] * 44)] == [*range(1, 45)]

    for successor in WORKERS:
        before = page.words[slot_start(0) + SlotWord.NEXT] & 0xFFFFFFFF
        (sealed,) = successor(fd).seal(CLEAR)
        assert counter_of(sealed) == before + SKIPPED


def test_worker_that_finds_an_unused_key_leaves_nothing_out(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    worker_on(fd)
    (sealed,) = worker_on(fd).seal(CLEAR)

    assert counter_of(sealed) == 1


def test_frames_that_the_predecessor_saw_are_replays_for_the_successor(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(swapped=True), 1)
    other = create()
    with KeyPage(other) as there:
        there.install(0, pair(), 1)
        there.send_with(0)
        sealed = worker_on(other).seal(*[CLEAR] * 10)
    os.close(other)
    first = worker_on(fd)
    assert [first.open(each) for each in sealed[::2]] == [CLEAR] * 5

    for successor in WORKERS:
        assert {successor(fd).open(each) for each in sealed[::2]} == {"RX_REPLAYED"}
    assert worker_on(fd).open(sealed[1]) == CLEAR


def test_counters_end_at_the_limit_in_the_middle_of_a_batch(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(), 1, limit=50)
    page.send_with(0)
    worker = worker_on(fd)

    assert len(worker.seal(*[CLEAR] * 44)) == 44
    assert [counter_of(each) for each in worker.seal(*[CLEAR] * 44)] == [*range(45, 50)]
    assert worker.seal(CLEAR) == []
    usage = page.usage(0)
    assert usage is not None
    assert (usage.frames_sent, usage.frames_left) == (49, 0)
    # Nor does a successor begin beyond it.
    assert worker_on(fd).seal(CLEAR) == []


def test_limit_of_a_key_is_never_above_the_ciphers(page: KeyPage) -> None:
    page.install(0, pair(), 1, limit=1 << 40)

    assert page.words[slot_start(0) + SlotWord.LIMIT] == 1 << 28


def test_frames_beyond_the_limit_are_refused(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(swapped=True), 1, limit=3)
    other = create()
    with KeyPage(other) as there:
        there.install(0, pair(), 1)
        there.send_with(0)
        sealed = worker_on(other).seal(*[CLEAR] * 4)
    os.close(other)
    worker = worker_on(fd)

    assert [worker.open(each) for each in sealed] == [CLEAR, CLEAR, "RX_NO_KEY", "RX_NO_KEY"]


@pytest.mark.parametrize("age_s", [180.0, 1000.0, -60.0])
def test_key_that_is_too_old_or_of_the_future_is_none(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage, far: KeyPage, age_s: float
) -> None:
    page.install(0, pair(), 1, born_ns=boottime_ns() - round(age_s * 1e9))
    page.send_with(0)
    worker = worker_on(fd)

    assert worker.seal(CLEAR) == []
    assert worker.open(bytes([CIRCUIT, 0x42, 0, 0, 0, 1]) + bytes(20)) == "RX_NO_KEY"
    usage = page.usage(0)
    assert usage is not None
    assert not usage.receives


def test_key_in_use_ends_at_its_age(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Just young enough to be taken up, and too old a moment later.
    page.install(0, pair(), 1, born_ns=boottime_ns() - 179_700_000_000)
    page.send_with(0)
    worker = worker_on(fd)
    assert len(worker.seal(CLEAR)) == 1
    while boottime_ns() < page.words[slot_start(0) + SlotWord.EXPIRES_NS]:
        pass

    assert worker.seal(CLEAR) == []
    assert worker.open(bytes([CIRCUIT, 0x42, 0, 0, 0, 1]) + bytes(20)) == "RX_NO_KEY"


def test_wiped_key_is_nowhere_in_the_page_and_not_used(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    keys = pair()
    page.install(0, keys, 1)
    page.send_with(0)
    worker = worker_on(fd)
    worker.look()
    assert len(worker.seal(CLEAR)) == 1
    page.wipe(0)

    content = bytes(page.words)
    secrets = (keys.tx_key, keys.rx_key, keys.tx_salt, keys.rx_salt)
    assert not any(secret in content for secret in secrets)
    assert worker.seal(CLEAR) == []
    assert worker.open(bytes([CIRCUIT, 0x42, 0, 0, 0, 1]) + bytes(20)) == "RX_NO_KEY"
    assert page.usage(0) is None


def test_third_key_replaces_the_first_and_counts_from_one(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    worker = worker_on(fd)
    first_of = []
    for generation in range(1, 5):
        phase = generation % 2
        page.install(phase, pair(generation), generation)
        page.send_with(phase)
        sealed = worker.seal(*[CLEAR] * 3)
        assert [each[1] for each in sealed] == [0x42 | phase] * 3
        first_of.append([counter_of(each) for each in sealed])
    assert first_of == [[1, 2, 3]] * 4


def test_key_of_an_equal_generation_of_another_session_is_another_key(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    worker = worker_on(fd)
    for number in (1, 2):
        page.install(0, pair(number), 1)
        page.send_with(0)
        (sealed,) = worker.seal(CLEAR)
        assert counter_of(sealed) == 1
        expected = pair(number, swapped=True)
        other = create()
        with KeyPage(other) as there:
            there.install(0, expected, 1)
            assert worker_on(other).open(sealed) == CLEAR
        os.close(other)


def test_counter_that_goes_back_ends_the_worker_and_the_key(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    worker = worker_on(fd)
    assert len(worker.seal(*[CLEAR] * 10)) == 10
    place = slot_start(0) + SlotWord.NEXT
    page.words[place] -= 5

    with pytest.raises(OSError, match="revoked"):
        worker.seal(CLEAR)
    assert worker.seal(CLEAR) == []
    assert worker_on(fd).seal(CLEAR) == []


def test_old_keys_holder_cannot_reserve_in_a_slot_that_another_key_has(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    """A thread that took up a key just before it was replaced: its counters are the old key's."""
    page.install(0, pair(1), 1)
    page.send_with(0)
    worker = worker_on(fd)
    worker.look()
    page.install(0, pair(2), 2)
    page.send_with(0)
    other = worker_on(fd)
    assert counter_of(other.seal(CLEAR)[0]) == 1
    # As if it had looked before the replacement.
    serial = page.words[slot_start(0) + SlotWord.SERIAL]
    page.words[slot_start(0) + SlotWord.SERIAL] = page.words[Word.SENDING] = serial - 1

    assert worker.seal(CLEAR) == []
    page.words[slot_start(0) + SlotWord.SERIAL] = page.words[Word.SENDING] = serial
    assert counter_of(other.seal(CLEAR)[0]) == 2


def test_another_key_holder_goes_on_with_the_page_of_the_one_before(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(1), 1)
    page.send_with(0)
    worker = worker_on(fd)
    assert len(worker.seal(CLEAR)) == 1
    page.close()

    with KeyPage(fd) as again:
        assert counter_of(worker.seal(CLEAR)[0]) == 2
        again.install(1, pair(2), 1)
        again.send_with(1)
        (sealed,) = worker.seal(CLEAR)
        assert sealed[1:6] == bytes([0x43, 0, 0, 0, 1])
        again.wipe_all()
        assert worker.seal(CLEAR) == []


def queues(fd: int, count: int = SEQUENCES) -> list[NativeWorker]:
    """The queues of a worker."""
    return [NativeWorker(fd, SEQUENCES, queue=queue) for queue in range(count)]


def test_queues_use_no_counter_of_each_other_and_are_summed_up(fd: int, page: KeyPage) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    used = []
    for _ in range(2):
        for number, worker in enumerate(queues(fd)):
            sealed = worker.seal(*[CLEAR] * 10)
            assert {counter_of(each) >> 28 for each in sealed} == {number}
            used += [counter_of(each) for each in sealed]

    assert len(set(used)) == len(used) == 160
    assert {each % (1 << 28) for each in used} == {
        *range(1, 11),
        *range(11 + SKIPPED, 21 + SKIPPED),
    }
    usage = page.usage(0)
    assert usage is not None
    # Those that the second worker left out are used up.
    assert usage.frames_sent == 8 * (20 + SKIPPED)
    assert usage.octets_sent == 160 * len(CLEAR)


def test_limit_of_a_key_is_that_of_all_queues_together(fd: int, page: KeyPage) -> None:
    page.install(0, pair(), 1, limit=20_000)
    page.send_with(0)
    workers = queues(fd, 3)
    sent = 0
    while got := sum(len(each.seal(*[CLEAR] * 44)) for each in workers):
        sent += got

    # Up to 4096 stay unused, for what the threads reserve at once.
    assert 20_000 - 4096 - 44 <= sent < 20_000
    usage = page.usage(0)
    assert usage is not None
    assert usage.frames_sent == sent
    # Nor does one queue go on where all have to end.
    assert PythonWorker(fd).seal(*[CLEAR] * 44) == []


def test_python_worker_counts_what_the_queues_of_another_used(fd: int, page: KeyPage) -> None:
    limit = 2 * SKIPPED
    page.install(0, pair(), 1, limit=limit)
    page.send_with(0)
    for worker in queues(fd, 2):
        assert len(worker.seal(CLEAR)) == 1
    # As if queue 1 had sent all but a few.
    page.words[sequence_start(0, 1) + SlotWord.NEXT] += SKIPPED - 20

    sealed = PythonWorker(fd).seal(*[CLEAR] * 44)

    assert [counter_of(each) for each in sealed] == [*range(2 + SKIPPED, limit - (SKIPPED - 19))]
    assert len(sealed) == 17


def test_counter_that_goes_back_in_one_queue_ends_the_key_for_all(fd: int, page: KeyPage) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    workers = queues(fd, 3)
    assert [len(each.seal(*[CLEAR] * 10)) for each in workers] == [10] * 3
    page.words[sequence_start(0, 1) + SlotWord.NEXT] -= 5

    with pytest.raises(OSError, match="revoked"):
        workers[1].seal(CLEAR)
    assert [each.seal(CLEAR) for each in workers] == [[]] * 3
    assert PythonWorker(fd).seal(CLEAR) == []


@pytest.mark.parametrize("make", WORKERS)
def test_what_queues_seal_is_opened_once_whatever_one_is_ahead(
    make: Callable[..., Worker], fd: int, page: KeyPage, far: KeyPage
) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    ahead, late = queues(fd, 2)
    waits = late.seal(*[CLEAR] * 10)
    other = create()
    with KeyPage(other) as there:
        there.install(0, pair(swapped=True), 1)
        receiver = make(other, SEQUENCES)
        for _ in range(WINDOW // 64 + 1):
            assert [receiver.open(each) for each in ahead.seal(*[CLEAR] * 64)] == [CLEAR] * 64

        assert [receiver.open(each) for each in waits] == [CLEAR] * 10
        successor = make(other, SEQUENCES)
        assert {successor.open(each) for each in waits} == {"RX_REPLAYED"}
    os.close(other)


@pytest.mark.parametrize("make", WORKERS)
def test_sequence_that_was_not_agreed_on_is_refused(
    make: Callable[..., Worker], fd: int, page: KeyPage
) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    sealed = [worker.seal(CLEAR)[0] for worker in queues(fd)]
    other = create()
    with KeyPage(other) as there:
        there.install(0, pair(swapped=True), 1)
        for allowed in (1, 5, SEQUENCES):
            receiver = make(other, allowed)
            opened = [receiver.open(each) for each in sealed]
            assert opened[allowed:] == ["RX_NO_KEY"] * (SEQUENCES - allowed)
            # Those that an earlier one took are replays.
            assert {*opened[:allowed]} <= {CLEAR, "RX_REPLAYED"}
        assert set(opened) == {CLEAR, "RX_REPLAYED"}
        # The highest bit is none of the sequence's.
        wrong = bytes([CIRCUIT, 0x42, 0x80, 0, 0, 1]) + sealed[0][6:]
        assert make(other, SEQUENCES).open(wrong) == "RX_NO_KEY"
    os.close(other)


def test_threads_of_several_queues_accept_a_frame_once(fd: int, page: KeyPage) -> None:
    """Steering changes, and who repeats a frame can choose the port: the same may come to all."""
    page.install(0, pair(), 1)
    page.send_with(0)
    sealed = [each for worker in queues(fd, 2) for each in worker.seal(*[CLEAR] * 3000)]
    other = create()
    with KeyPage(other) as there:
        there.install(0, pair(swapped=True), 1)
        receivers = queues(other, 4)
        accepted: list[list[bytes]] = [[] for _ in receivers]
        start = threading.Barrier(len(receivers))

        def take(number: int) -> None:
            start.wait()
            for each in sealed:
                if receivers[number].open(each) == CLEAR:
                    accepted[number].append(each)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    os.close(other)

    assert sorted(chain(*accepted)) == sorted(sealed)


def test_thread_that_is_late_does_not_begin_the_window_of_another_key_anew(
    fd: int, page: KeyPage
) -> None:
    sealed = {}
    for number in (1, 2):
        page.install(0, pair(number), number)
        page.send_with(0)
        (sealed[number],) = NativeWorker(fd).seal(CLEAR)
    other = create()
    with KeyPage(other) as there:
        there.install(0, pair(1, swapped=True), 1)
        late, early = queues(other, 2)
        late.look()
        there.install(0, pair(2, swapped=True), 2)
        assert early.open(sealed[2]) == CLEAR
        # It has the key that was in the slot before.
        assert late.opener.open_datagram(sealed[1]) == "RX_REPLAYED"
        assert early.open(sealed[2]) == "RX_REPLAYED"
    os.close(other)


def test_key_outlives_changes_of_the_number_of_queues(fd: int, page: KeyPage) -> None:
    page.install(0, pair(), 1)
    page.send_with(0)
    used = []
    for count in (2, 1, 3, 1, 2):
        for worker in queues(fd, count):
            used += [counter_of(each) for each in worker.seal(*[CLEAR] * 10)]

    assert len(set(used)) == len(used) == 90


def test_only_the_first_queue_says_which_keys_there_are(fd: int, page: KeyPage) -> None:
    first, second = queues(fd, 2)
    page.install(0, pair(), 1)
    page.send_with(0)

    for worker, known in ((second, False), (first, True)):
        worker.look()
        usage = page.usage(0)
        assert usage is not None
        assert (usage.receives, usage.sends) == (known, known)


@pytest.mark.parametrize("make", WORKERS)
def test_page_of_before_there_were_sequences_goes_on_with_one(
    make: Callable[[int], Worker],
) -> None:
    old = secret_memory.create(SMALLEST)
    with KeyPage(old) as page:
        assert room(page_size(old)) == 1
        assert room(SIZE) == SEQUENCES
        page.install(0, pair(), 1)
        page.send_with(0)
        page.words[Word.SEQUENCES] = 2**64 - 1
        assert len(make(old).seal(*[CLEAR] * 3)) == 3
        usage = page.usage(0)
        assert usage is not None
        assert usage.frames_sent == 3
    os.close(old)


def test_memory_that_is_smaller_than_any_page_is_refused() -> None:
    fd = os.memfd_create("small")
    os.ftruncate(fd, SMALLEST - 1)
    with pytest.raises(ValueError, match="4095 bytes"):
        map_key_page(fd)
    os.close(fd)


def test_page_that_a_worker_has_scribbled_over_ends_no_key_holder(fd: int, page: KeyPage) -> None:
    for word in range(SIZE // 8):
        page.words[word] = 2**64 - 1

    usage = page.usage(0)
    assert usage is not None
    page.install(0, pair(), 1)
    page.send_with(0)
    page.wipe_all()
    assert page.usage(0) is None


@pytest.mark.parametrize("short", ["tx_key", "rx_key", "tx_salt", "rx_salt"])
def test_keys_of_a_wrong_size_are_refused(short: str) -> None:
    values = {"tx_key": 32, "rx_key": 32, "tx_salt": 8, "rx_salt": 8}
    values[short] -= 1

    with pytest.raises(ValueError, match="bytes"):
        KeyPair(Suite.AES_256_GCM, **{name: bytes(size) for name, size in values.items()})
    assert "\\x" not in repr(pair())


def test_send_with_a_phase_that_has_no_key_is_refused(page: KeyPage) -> None:
    with pytest.raises(ValueError, match="phase 1 has no key"):
        page.send_with(1)


def test_other_memory_is_not_taken_for_a_page(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    page.words[Word.MAGIC] = 0

    with pytest.raises(ValueError, match="no key page"):
        worker_on(fd)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_keys_that_come_and_go_leave_no_memory_and_no_descriptor_behind(
    worker_on: Callable[[int], Worker], fd: int, page: KeyPage
) -> None:
    """A key that was not freed would take a kilobyte or more."""

    worker = worker_on(fd)

    def change(worker: Worker, times: int) -> None:
        for number in range(times):
            page.install(number % 2, pair(number % 90), number, limit=1 << 20)
            page.send_with(number % 2)
            worker.look()
            assert len(worker.seal(CLEAR)) == 1
        page.wipe_all()
        worker.look()

    change(worker, 300)
    descriptors, before = open_descriptors(), resident_bytes()
    change(worker, 3000)
    del worker

    # The worker's mapping has one of its own.
    assert open_descriptors() == descriptors - 1
    assert resident_bytes() - before < 1 << 20
