"""A worker that is to make way ends what it has in hand, and takes nothing more."""

from __future__ import annotations

from vela.dataplane.counters import CounterSlab
from vela.dataplane.handover import Direction, Handover, ThreadState
from vela.wire import MAX_QUEUES


def test_handover_is_done_when_both_threads_have_stopped() -> None:
    handover = Handover(memoryview(bytearray(3)))
    assert not handover.asked[0]
    handover.ask()
    assert handover.asked[0]
    handover.stop(Direction.EGRESS)
    assert not handover.done
    handover.stop(Direction.INGRESS)
    assert handover.done
    handover.clear()
    assert not handover.asked[0]
    assert not handover.done


def test_thread_that_waits_need_not_stop_and_one_that_forwards_does() -> None:
    handover = Handover(CounterSlab().take().handover)
    handover.clear(2)
    states = handover.states(1)
    handover.states(0)[:] = bytes([ThreadState.WAITS, ThreadState.WAITS])
    states[:] = bytes([ThreadState.WAITS, ThreadState.FORWARDS])
    assert not handover.done
    states[1] = ThreadState.WAITS
    assert handover.done


def test_handovers_are_apart_from_each_other_and_from_what_else_is_in_the_page() -> None:
    slab = CounterSlab()
    one, other = slab.take(), slab.take()
    one.worker[:] = memoryview(bytes(b"\xff" * one.worker.nbytes)).cast("Q")
    one.exit_message[:] = b"\xff" * len(one.exit_message)
    handover = Handover(one.handover)
    assert not handover.asked[0]
    assert not handover.done
    handover.ask()

    assert not Handover(other.handover).asked[0]


def test_handover_of_several_queues_is_done_when_all_their_threads_have_stopped() -> None:
    handover = Handover(CounterSlab().take().handover)
    handover.clear(MAX_QUEUES)
    threads = [(direction, queue) for queue in range(MAX_QUEUES) for direction in Direction]
    for direction, queue in threads:
        assert not handover.done
        handover.stop(direction, queue)
    assert handover.done
    assert not handover.asked[0]
    handover.clear()
    assert not handover.done
