"""Whom a circuit without a session asks, and what it makes of what it hears."""

from __future__ import annotations

import random
from dataclasses import replace

from simulated_link import CIRCUIT, KEY, LOCAL1, OFFER, ROUTER2

from vela.address import Endpoint
from vela.signaling.candidates import Candidate
from vela.signaling.codec import decode
from vela.signaling.contention import Decision
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Event, Rejected
from vela.signaling.inputs import Input, Received, State
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Acknowledge, Confirm, Message, Reject, RejectCode, Request
from vela.signaling.nonces import Nonces
from vela.signaling.seeker import Seeker
from vela.signaling.variables import SessionVariables

OTHER = replace(ROUTER2, port=5000)


class End:
    """An end that begins to seek its remote at 100 s."""

    def __init__(self, *remotes: Endpoint) -> None:
        self.vars = SessionVariables(CIRCUIT)
        self.due = self.vars.due
        self.local = LocalEnd(LOCAL1, OFFER, passive=False, machine=None, key=KEY, cipher=None)
        self.queue = EventQueue()
        nonces = Nonces(random.Random(1))
        self.seeker = Seeker(self.vars, self.local, nonces, self.queue, random.Random(2))
        self.seeker.look_at([Candidate(each) for each in remotes], 100.0)
        self.seeker.begin(Received(100.0))

    @property
    def state(self) -> State:
        return self.vars.state

    def ask(self) -> tuple[Message, Endpoint]:
        """Send the REQUEST that is due."""
        self.seeker.request(Received(self.due.pop(Input.SEND_DUE)))
        [asked] = self.said()
        return asked

    def refuse(self, now: float, code: RejectCode = RejectCode.ADDRESS) -> None:
        self.seeker.take_reject(Received(now, Reject(CIRCUIT, 0, 1, 1, code, "no"), ROUTER2))

    def said(self) -> list[tuple[Message, Endpoint]]:
        return [(decode(each.data, KEY), each.remote) for each in self.local.outbox.take_all()]

    def events(self) -> list[Event]:
        return list(iter(self.queue.next, None))


def test_end_without_a_candidate_waits_until_there_is_one() -> None:
    end = End()

    end.seeker.request(Received(end.due.pop(Input.SEND_DUE)))
    assert end.said() == []
    assert end.due == {}
    end.seeker.look_at([Candidate(ROUTER2)], 150.0)

    assert end.due == {Input.SEND_DUE: 150.0}
    assert end.ask()[1] == ROUTER2


def test_one_attempt_asks_with_one_nonce() -> None:
    end = End(ROUTER2)

    nonces = {end.ask()[0].sender_nonce for _ in range(5)}

    assert len(nonces) == 1
    end.seeker.begin(Received(200.0))
    assert end.ask()[0].sender_nonce not in nonces


def test_answer_is_confirmed_to_who_gave_it_though_others_were_asked_since() -> None:
    end = End(ROUTER2, OTHER)
    request, _ = end.ask()
    assert end.ask()[1] == OTHER
    answer = Acknowledge(CIRCUIT, 0x77, request.sender_nonce, 1)

    end.seeker.take_acknowledge(Received(100.3, answer, ROUTER2))

    [(confirm, to)] = end.said()
    assert isinstance(confirm, Confirm)
    assert (confirm.receiver_nonce, to, end.state) == (0x77, ROUTER2, State.CONFIRMING)
    assert end.due[Input.SEND_DUE] == 100.3 + 0.3
    assert end.due[Input.EXPIRED] == 100.3 + 2.5
    end.seeker.give_up_confirming(Received(102.8))
    assert (end.state, end.due) == (State.REQUESTING, {Input.SEND_DUE: 102.8})


def test_refusal_counts_when_the_other_addresses_have_been_asked_too() -> None:
    end = End(ROUTER2, OTHER)
    end.ask()

    end.refuse(100.1)
    assert (end.state, end.events()) == (State.REQUESTING, [])
    assert end.ask()[1] == OTHER
    end.refuse(100.4)

    assert end.state is State.REJECTED
    assert end.events() == [Rejected(RejectCode.ADDRESS, "no")]
    assert end.due.keys() == {Input.SEND_DUE}


def test_silence_of_the_other_address_leaves_the_refusal_of_the_first() -> None:
    end = End(ROUTER2, OTHER)
    end.ask()
    end.refuse(100.1)
    end.ask()

    end.seeker.request(Received(end.due[Input.SEND_DUE]))

    assert (end.state, end.said()) == (State.REJECTED, [])


def test_only_who_was_refused_its_settings_refuses_outdated_ones() -> None:
    outdated = Link(CIRCUIT, 1, 2, ROUTER2, None).confirm(
        LOCAL1, replace(OFFER, mac=b"\2" * 6), True
    )

    for code, decision in (
        (RejectCode.ADDRESS, Decision.REFUSE),
        (RejectCode.DISABLED, Decision.ASK),
    ):
        end = End(ROUTER2)
        end.ask()
        end.refuse(100.1, code)
        assert end.seeker.decide_while_refused(outdated) is decision


def test_other_settings_are_asked_for_at_once_but_by_nobody_who_does_not_seek() -> None:
    end = End(ROUTER2)
    end.ask()
    end.refuse(100.1)

    end.seeker.change(101.0)
    assert (end.state, end.due[Input.SEND_DUE]) == (State.REQUESTING, 101.0)
    assert isinstance(end.ask()[0], Request)
    end.vars.state = State.SUSPENDED
    end.seeker.change(102.0)

    assert end.state is State.SUSPENDED
    assert end.seeker.asked is None
