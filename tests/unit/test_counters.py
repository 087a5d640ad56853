"""vela.dataplane.counters: shared with a real worker process, each slot with one writer."""

from __future__ import annotations

import pytest

from vela.dataplane.counters import RX_DROPPED, TX_DROPPED, Counters, CounterSlab, Slot
from vela.supervisor.runtime.process import fork
from vela.wire import MAX_QUEUES


@pytest.mark.forks
def test_counters_of_a_forked_child_are_seen_here_and_outlive_it() -> None:
    counters = Counters()
    counters.worker[Slot.TX_FRAMES] = 1
    counters.supervisor[Slot.RX_FRAMES] = 10

    def count() -> None:
        counters.worker[Slot.TX_FRAMES] += 2
        counters.worker[Slot.RX_FRAMES] += 2**64 - 11
        counters.worker[Slot.EGRESS_PROGRESS] += 5
        counters.worker[Slot.INGRESS_PROGRESS] += 6

    status = fork(count, ()).reap()

    assert status.code == 0
    assert counters.total(Slot.TX_FRAMES) == 3
    assert counters.total(Slot.RX_FRAMES) == 2**64 - 1
    assert counters.progress() == (5, 6)


def test_counters_of_two_circuits_are_apart() -> None:
    one, other = Counters(), Counters()

    for slot in Slot:
        one.worker[slot] = one.supervisor[slot] = 1

    assert all(other.total(slot) == 0 for slot in Slot)
    assert all(one.total(slot) == 2 for slot in Slot)


def test_slots_of_the_two_threads_share_no_cache_line() -> None:
    line = 64 // 8
    egress = {slot // line for slot in Slot if slot.name.startswith(("TX", "EGRESS"))}
    ingress = {slot // line for slot in Slot if slot.name.startswith(("RX", "INGRESS"))}

    assert not egress & ingress
    assert len({*RX_DROPPED.values(), *TX_DROPPED.values()}) == len(RX_DROPPED) + len(TX_DROPPED)


def test_slab_gives_each_circuit_its_own_zeroed_counters() -> None:
    slab = CounterSlab()
    taken = [slab.take() for _ in range(300)]
    for number, counters in enumerate(taken):
        counters.worker[Slot.TX_FRAMES] = number
        counters.supervisor[Slot.INGRESS_PROGRESS] = 1000 + number

    assert [counters.total(Slot.TX_FRAMES) for counters in taken] == list(range(300))
    slab.give_back(taken[7])
    again = slab.take()
    assert (again.total(Slot.TX_FRAMES), again.total(Slot.INGRESS_PROGRESS)) == (0, 0)


def test_queues_have_slots_of_their_own_that_are_counted_together() -> None:
    counters = Counters()
    counters.make_room(MAX_QUEUES)
    counters.make_room(2)
    for queue, worker in enumerate(counters.workers):
        for slot in Slot:
            assert worker[slot] == 0
            worker[slot] = queue + 1
    counters.supervisor[Slot.TX_FRAMES] = 100

    assert len(counters.workers) == MAX_QUEUES
    assert counters.total(Slot.TX_FRAMES) == 100 + sum(range(1, MAX_QUEUES + 1))
    assert counters.progress(2) == (3, 3)
    assert not any(counters.exit_message)
    assert not any(counters.handover)
    counters.absorb()
    assert counters.total(Slot.TX_FRAMES) == 100 + sum(range(1, MAX_QUEUES + 1))
    assert all(worker[Slot.RX_FRAMES] == 0 for worker in counters.workers)
