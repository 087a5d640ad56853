"""When a session is up, how long it lasts without a word, and what its KEEPALIVEs say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from simulated_link import CIRCUIT, KEY, LOCAL1, LOCAL2, ROUTER1

from vela.reasons import Reason
from vela.signaling.adjacency import Adjacency
from vela.signaling.codec import decode
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Agreed, Event, Heard, Up
from vela.signaling.inputs import Input, Received, State
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Keepalive, MessageType, Offer
from vela.signaling.nonces import Nonces
from vela.signaling.remote_port import RemotePort
from vela.signaling.renewal import Purpose
from vela.signaling.renewer import Renewer
from vela.signaling.variables import SessionVariables

INTERVAL_S = 1.0
"""The shorter of those of the two ends."""
PROOF = 4


class Undisturbed(random.Random):
    """Leaves delays as long as they are."""

    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (0.9, 1)
        return 1.0


class End:
    """An end that has just begun a session with a remote at ROUTER1, at 100 s."""

    def __init__(self) -> None:
        self.vars = SessionVariables(CIRCUIT)
        self.due = self.vars.due
        self.link = Link(
            CIRCUIT, 0x22, 0x11, ROUTER1, None, sent=3, heard=3, proof=PROOF, accepted=True
        )
        self.link.remote_description = LOCAL1
        self.vars.link = self.link
        self.local = LocalEnd(LOCAL2, Offer(), passive=False, machine=None, key=KEY, cipher=None)
        self.queue = EventQueue()
        self.lost: list[tuple[str, float]] = []
        self.renewer = Renewer(self.vars, self.local, Nonces(random.Random(1)), random.Random(2))
        self.adjacency = Adjacency(
            self.vars,
            self.local,
            self.renewer,
            RemotePort(),
            self.queue,
            Undisturbed(),
            echoes_arrived=lambda: 17,
            lose=self.lose,
        )
        self.adjacency.enter(100.0)

    @property
    def is_up(self) -> bool:
        return self.vars.state is State.UP

    def lose(self, reason: Reason, now: float) -> None:
        self.lost.append((reason.code, now))

    def hear(self, now: float, *, heard: int, up: bool) -> None:
        """Take a KEEPALIVE of the remote's, which has heard so many messages."""
        said = Keepalive(CIRCUIT, 0x11, 0x22, 4, LOCAL1, heard, 0, None, up)
        self.adjacency.take_keepalive(Received(now, said, ROUTER1))

    def go_up(self) -> None:
        self.hear(100.1, heard=PROOF, up=True)
        self.said()
        self.events()

    def events(self) -> list[Event]:
        return list(iter(self.queue.next, None))

    def said(self) -> list[Keepalive]:
        messages = [decode(each.data, KEY) for each in self.local.outbox.take_all()]
        return [each for each in messages if isinstance(each, Keepalive)]


def test_session_is_up_when_the_remote_has_heard_what_proves_that_it_is_heard() -> None:
    end = End()

    end.hear(100.1, heard=PROOF - 1, up=False)
    assert not end.is_up
    assert [type(each) for each in end.events()] == [Agreed]
    end.hear(100.2, heard=PROOF, up=False)

    assert end.is_up
    assert end.events() == [Up()]
    assert [each.up for each in end.said()] == [False, True]


def test_session_is_lost_after_three_and_a_half_intervals_without_a_keepalive() -> None:
    end = End()
    end.go_up()
    assert end.due[Input.EXPIRED] == 100.1 + 3.5 * INTERVAL_S

    end.adjacency.miss_keepalives(Received(103.6))

    assert end.lost == [("keepalives_missed", 103.6)]
    assert [each.up for each in end.said()] == [False]


def test_session_is_lost_when_the_remote_is_up_no_longer() -> None:
    end = End()
    end.go_up()

    end.hear(101.0, heard=PROOF, up=False)

    assert end.lost == [("not_heard", 101.0)]


def test_keepalives_are_repeated_each_half_second_until_the_remote_has_heard_a_change() -> None:
    end = End()
    end.go_up()
    end.local.description = replace(LOCAL2, mtu=1300)
    end.adjacency.tell(101.0)
    assert end.due[Input.SEND_DUE] == 101.0 + INTERVAL_S
    [change] = end.said()
    assert change.description.mtu == 1300

    end.adjacency.await_heard(101.0)

    assert end.due[Input.SEND_DUE] == 101.5
    end.adjacency.keep_alive(Received(101.5))
    assert end.due[Input.SEND_DUE] == 102.0
    end.hear(101.6, heard=change.counter - 1, up=True)
    assert Heard() not in end.events()
    end.hear(101.7, heard=change.counter, up=True)
    assert Heard() in end.events()
    end.adjacency.keep_alive(Received(102.0))
    assert end.due[Input.SEND_DUE] == 102.0 + INTERVAL_S


def test_remote_that_says_a_change_of_its_port_is_answered_at_once() -> None:
    end = End()
    end.link.remote_description = replace(LOCAL1, frame_port=50001)
    end.go_up()

    said = Keepalive(
        CIRCUIT, 0x11, 0x22, 5, replace(LOCAL1, frame_port=50002), PROOF, 0, None, True
    )
    end.link.remote_description = replace(LOCAL1, frame_port=50001)
    end.adjacency.take_keepalive(Received(101.0, said, ROUTER1))

    assert len(end.said()) == 1
    end.adjacency.take_keepalive(Received(101.1, replace(said, counter=6), ROUTER1))
    assert end.said() == []


def test_keepalives_tell_how_many_echoes_arrived() -> None:
    end = End()

    end.adjacency.keep_alive(Received(100.0))

    assert [each.arrived for each in end.said()] == [17]


@pytest.mark.parametrize("up", [False, True])
def test_only_a_session_that_is_up_announces_probes_and_awaits_being_heard(up: bool) -> None:
    end = End()
    if up:
        end.go_up()
    before = dict(end.due)

    assert end.adjacency.probe(1400) is up
    kinds = [each.data[2] for each in end.local.outbox.take_all()]
    end.adjacency.announce(100.2)
    end.adjacency.await_heard(100.2)

    assert kinds == [MessageType.PROBE] * up
    assert len(end.said()) == up
    assert (end.due != before) is up


def test_keepalive_shows_that_a_session_was_not_lost_after_all() -> None:
    end = End()
    end.go_up()
    end.renewer.seek(Purpose.LOST, 101.0)

    end.hear(101.1, heard=PROOF, up=True)

    assert end.vars.renewal is None


def test_session_of_another_process_goes_on_with_a_keepalive_at_once() -> None:
    end = End()

    end.adjacency.go_on(200.0)

    assert end.is_up
    assert end.due == {Input.SEND_DUE: 200.0, Input.EXPIRED: 200.0 + 3.5 * INTERVAL_S}
    assert Up() not in end.events()
