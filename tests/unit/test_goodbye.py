"""What is said at the end of a session, and what follows."""

from __future__ import annotations

import random

import pytest
from simulated_link import CIRCUIT, KEY, LOCAL1, OFFER, ROUTER2

from vela.signaling.acceptor import Acceptor
from vela.signaling.admission import Admission
from vela.signaling.answers import Answers
from vela.signaling.codec import decode
from vela.signaling.cookie import Cookies
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Closed, Down, Event, Up
from vela.signaling.goodbye import Goodbye
from vela.signaling.inputs import Input, Received, State
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Close, CloseReason, Message
from vela.signaling.seeker import Seeker
from vela.signaling.variables import SessionVariables


class End:
    """An end whose session is up."""

    def __init__(self) -> None:
        cookies = Cookies(random.Random(1))
        self.vars = SessionVariables(CIRCUIT)
        self.local = LocalEnd(LOCAL1, OFFER, passive=False, machine=None, key=KEY, cipher=None)
        self.queue = EventQueue()
        nonces, dice = cookies.nonces, random.Random(2)
        self.goodbye = Goodbye(
            self.vars,
            self.local,
            Seeker(self.vars, self.local, nonces, self.queue, dice),
            Acceptor(
                self.vars,
                self.local,
                Admission(None, None),
                Answers(cookies, dice),
                nonces,
                self.queue,
            ),
            self.queue,
        )
        self.vars.state = State.UP
        self.vars.link = Link(CIRCUIT, 0x22, 0x11, ROUTER2, None, sent=3, heard=3)
        self.vars.due[Input.KEYS_DUE] = self.vars.due[Input.RENEWAL_DUE] = 101.0
        self.queue.up()
        assert self.events() == [Up()]

    def hear(self, reason: CloseReason) -> None:
        self.goodbye.answer(Received(100.0, Close(CIRCUIT, 0x11, 0x22, 4, reason), ROUTER2))

    def events(self) -> list[Event]:
        return list(iter(self.queue.next, None))

    def said(self) -> list[Message]:
        return [decode(each.data, KEY) for each in self.local.outbox.take_all()]


def test_goodbye_is_repeated_five_times_a_second_for_a_second_and_nothing_else_is_due() -> None:
    end = End()
    end.goodbye.reason = CloseReason.DELETED

    end.goodbye.begin(Received(100.0))
    assert end.vars.due == {Input.SEND_DUE: 100.2, Input.EXPIRED: 101.0}
    end.goodbye.say(Received(100.2))

    assert end.vars.due == {Input.SEND_DUE: 100.4, Input.EXPIRED: 101.0}
    said = [(type(each), each.counter, getattr(each, "reason", None)) for each in end.said()]
    assert said == [(Close, 4, CloseReason.DELETED), (Close, 5, CloseReason.DELETED)]
    end.goodbye.finish(Received(101.0))
    assert (end.vars.state, end.vars.due, end.vars.link) == (State.CLOSED, {}, None)
    assert end.events() == [Closed(by_remote=False)]


def test_remote_that_stops_is_answered_and_asked_again_after_a_pause() -> None:
    end = End()

    end.hear(CloseReason.STOPPING)

    [answer] = end.said()
    [down] = end.events()
    assert isinstance(answer, Close)
    assert isinstance(down, Down)
    assert (answer.reason, down.reason.code) == (CloseReason.STOPPING, "remote_stopping")
    assert (end.vars.state, end.vars.due) == (State.REQUESTING, {Input.SEND_DUE: 101.0})


def test_remote_that_deletes_the_circuit_is_answered_and_asked_no_more() -> None:
    end = End()

    end.hear(CloseReason.DELETED)

    [answer] = end.said()
    assert isinstance(answer, Close)
    assert answer.reason == CloseReason.DELETED
    assert end.events() == [Closed(by_remote=True)]
    assert (end.vars.state, end.vars.due) == (State.CLOSED, {})


@pytest.mark.parametrize("reason", [200, 0])
def test_reason_of_a_later_version_means_that_the_remote_stops(reason: int) -> None:
    end = End()
    close = Close(CIRCUIT, 0x11, 0x22, 4, reason)

    end.goodbye.answer(Received(100.0, close, ROUTER2))

    assert end.vars.state is State.REQUESTING
