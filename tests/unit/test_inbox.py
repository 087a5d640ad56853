"""Which datagrams are the remote's."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from simulated_link import CIRCUIT, KEY, LOCAL1, LOCAL2, OFFER, ROUTER1

from vela.errors import RemoteProtocolError
from vela.signaling.acceptor import Acceptor
from vela.signaling.admission import Admission
from vela.signaling.answers import Answers
from vela.signaling.caller import Caller
from vela.signaling.candidates import Candidate
from vela.signaling.codec import encode
from vela.signaling.cookie import Cookies
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Unanswered
from vela.signaling.inbox import Inbox
from vela.signaling.inputs import Input, Received, State
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Message, Offer
from vela.signaling.remote_port import RemotePort
from vela.signaling.renewer import Renewer
from vela.signaling.seeker import Seeker
from vela.signaling.signer import Key, LocalKey
from vela.signaling.variables import SessionVariables

WRONG_KEY = LocalKey(bytes(32))
ASKS = Link(CIRCUIT, 0x33, 0, ROUTER1, None).request(LOCAL1, OFFER, False, session_keys=False)
GOES_ON = Link(CIRCUIT, 0x11, 0x22, ROUTER1, None, sent=8).keepalive(LOCAL1, 100.0, up=True)


class End:
    """An end that has a session with a remote at ROUTER1."""

    def __init__(self, *, key: Key | None = KEY) -> None:
        cookies, dice = Cookies(random.Random(1)), random.Random(2)
        nonces, events = cookies.nonces, EventQueue()
        self.events = events
        self.key = key
        self.vars = SessionVariables(CIRCUIT)
        self.vars.state = State.UP
        self.vars.link = Link(CIRCUIT, 0x22, 0x11, ROUTER1, None, sent=5, heard=7)
        nonces.hold(0x22, self.vars.link)
        local = LocalEnd(LOCAL2, Offer(), passive=False, machine=None, key=key, cipher=None)
        self.seeker = Seeker(self.vars, local, nonces, events, dice)
        answers = Answers(cookies, dice)
        self.acceptor = Acceptor(self.vars, local, Admission(None, None), answers, nonces, events)
        renewer = Renewer(self.vars, local, nonces, dice)
        self.inbox = Inbox(
            self.vars, local, nonces, RemotePort(), self.seeker, self.acceptor, renewer
        )
        self.outbox = local.outbox

    def open(
        self, message: Message, *, key: Key | None = None, port: int = 48621
    ) -> Message | None:
        data = encode(message, key or self.key)
        source = replace(ROUTER1, port=port)
        return self.inbox.open(data, Received(100.0, None, source), ROUTER1)

    def reason_of_silence(self) -> str:
        """Lose the session, and ask the remote in vain."""
        self.seeker.stay_with(Candidate(ROUTER1))
        self.seeker.begin(Received(200.0))
        for _ in range(3):
            self.seeker.request(Received(self.vars.due.pop(Input.SEND_DUE)))
        [unanswered] = iter(self.events.next, None)
        assert isinstance(unanswered, Unanswered)
        return unanswered.reason.code

    def refusal_of(self, message: Message, *, key: Key | None = None, port: int = 48621) -> str:
        with pytest.raises(RemoteProtocolError) as raised:
            self.open(message, key=key, port=port)
        return raised.value.reason


def test_messages_of_the_remote_are_opened() -> None:
    end = End()

    assert end.open(ASKS) == ASKS
    assert end.open(GOES_ON) == GOES_ON


def test_messages_about_another_circuit_reflected_ones_and_other_sessions_are_refused() -> None:
    end = End()

    assert end.refusal_of(replace(ASKS, circuit_id=CIRCUIT + 1)) == "malformed"
    assert end.refusal_of(replace(ASKS, sender_nonce=0x22)) == "reflected"
    assert end.refusal_of(replace(GOES_ON, sender_nonce=0x12)) == "session"


@pytest.mark.parametrize(("message", "why"), [(ASKS, "wrong_key"), (GOES_ON, "no_answer")])
def test_wrong_tag_says_of_the_key_only_outside_of_a_session(message: Message, why: str) -> None:
    end = End()

    assert end.refusal_of(message, key=WRONG_KEY) == "tag"

    assert end.reason_of_silence() == why


def test_without_a_key_the_port_shows_who_sends_unless_the_remote_calls() -> None:
    end = End(key=None)

    assert end.open(GOES_ON) == GOES_ON
    assert end.refusal_of(GOES_ON, port=5000) == "port"
    end.acceptor.caller = Caller(lambda *_: LOCAL2, random.Random(3))
    assert end.open(GOES_ON, port=5000) == GOES_ON


def test_session_that_is_gone_is_denied_where_the_remote_calls() -> None:
    end = End()
    end.acceptor.caller = Caller(lambda *_: LOCAL2, random.Random(3))
    end.vars.state, end.vars.link = State.REQUESTING, None

    assert end.refusal_of(GOES_ON) == "session"

    assert len(end.outbox.take_all()) == 1
