"""Up and Down take turns, whatever a session finds out."""

from __future__ import annotations

from vela.reasons import Cause
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Down, Event, Heard, ResolveWanted, Up

GONE = Cause.REMOTE_STOPPING.say()


def told(queue: EventQueue) -> list[Event]:
    events = []
    while (event := queue.next()) is not None:
        events.append(event)
    return events


def test_up_and_down_are_told_once_each_and_in_order() -> None:
    queue = EventQueue()

    queue.down(GONE)
    queue.up()
    queue.put(Heard())
    queue.up()
    queue.down(GONE)
    queue.down(GONE)
    queue.put(ResolveWanted())

    assert told(queue) == [Up(), Heard(), Down(GONE), ResolveWanted()]
    assert told(queue) == []


def test_what_was_to_be_told_is_forgotten_and_with_it_that_the_session_is_up() -> None:
    queue = EventQueue()
    queue.up()
    queue.put(Heard())

    queue.forget()
    queue.down(GONE)

    assert told(queue) == []
    queue.up()
    assert told(queue) == [Up()]


def test_what_the_owner_knows_already_is_not_told() -> None:
    queue = EventQueue()

    queue.note(up=True)
    queue.up()
    assert told(queue) == []
    queue.down(GONE)
    assert told(queue) == [Down(GONE)]

    queue.up()
    queue.note(up=False)
    queue.down(GONE)
    assert told(queue) == [Up()]
