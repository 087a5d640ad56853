"""What a circuit answers to who seeks its session, and whose CONFIRM begins one."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from simulated_link import CIRCUIT, KEY, LOCAL1, LOCAL2, OFFER, POLICY, ROUTER1, ROUTER2

from vela.address import Endpoint, IPAddress
from vela.errors import ConfigError
from vela.signaling.acceptor import Accepted, Acceptor
from vela.signaling.admission import Admission
from vela.signaling.answers import Answers
from vela.signaling.caller import Caller
from vela.signaling.codec import decode, read_header
from vela.signaling.cookie import Cookies
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Moved, OfferChanged, Refused
from vela.signaling.frame_keys import KeyHolder, KeysUnavailable, Role
from vela.signaling.inputs import Received, State
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import (
    Acknowledge,
    CipherOffer,
    Confirm,
    Description,
    HandshakePattern,
    Message,
    Offer,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Suites,
)
from vela.signaling.policy import Policy, Rejection
from vela.signaling.session_cipher import SessionCipher
from vela.signaling.signer import Key
from vela.signaling.variables import SessionVariables

HERE = ip_address("192.0.2.2")
ELSEWHERE = Endpoint(ip_address("198.51.100.7"), 48621)
NONCE = 0x22


class LostKeys:
    """Of a circuit whose key holder is lost."""

    offer = CipherOffer(HandshakePattern.NN_PSK0, Suites.AES_256_GCM)

    def open(self, role: Role) -> KeyHolder:
        raise KeysUnavailable("the key holder was lost")


class End:
    """An end that a remote at ROUTER1 seeks."""

    def __init__(
        self,
        *,
        key: Key | None = KEY,
        policy: Policy | None = None,
        offer: Offer | None = None,
        encrypted: bool = False,
    ) -> None:
        """policy, offer: of a circuit that the remote set up, and what it wants here."""
        cookies = Cookies(random.Random(1))
        self.vars = SessionVariables(CIRCUIT)
        self.local = LocalEnd(
            LOCAL2,
            offer or Offer(),
            passive=policy is not None,
            machine=None,
            key=key,
            cipher=SessionCipher(LostKeys()) if encrypted else None,
        )
        self.events = EventQueue()
        self.admission = Admission(policy, None)
        self.acceptor = Acceptor(
            self.vars,
            self.local,
            self.admission,
            Answers(cookies, random.Random(2)),
            cookies.nonces,
            self.events,
        )

    def have_a_session(self) -> Link:
        self.vars.state = State.UP
        self.vars.link = link = Link(CIRCUIT, NONCE, 0x11, ROUTER1, HERE, sent=5, heard=7)
        return link

    def said(self) -> list[tuple[Message, Endpoint]]:
        return [
            (decode(each.data, self.local.key), each.remote)
            for each in self.local.outbox.take_all()
        ]


def asks(source: Endpoint) -> Received:
    link = Link(CIRCUIT, 0x33, 0, ROUTER2, None)
    ciphers = LostKeys.offer
    request = link.request(LOCAL1, OFFER, False, session_keys=False, ciphers=ciphers)
    return Received(100.0, request, source, HERE)


def confirms(offer: Offer = OFFER, *, resuming: bool = False) -> Received:
    link = Link(CIRCUIT, 0x33, 0x44, ROUTER2, None, sent=1)
    return Received(100.0, link.confirm(LOCAL1, offer, resuming), ROUTER1, HERE)


def describe(source: Endpoint, local_address: IPAddress | None) -> Description:
    return replace(LOCAL2, mtu=1300)


@pytest.mark.parametrize(
    ("key", "source", "told"),
    [
        (KEY, ROUTER1, NONCE),
        (KEY, ELSEWHERE, NONCE),
        (None, ROUTER1, NONCE),
        (None, ELSEWHERE, None),
    ],
)
def test_who_asks_is_told_of_the_session_but_for_a_stranger_without_a_key(
    key: Key | None, source: Endpoint, told: int | None
) -> None:
    end = End(key=key, encrypted=True)
    end.have_a_session()

    end.acceptor.acknowledge(asks(source))

    [(answer, to)] = end.said()
    assert isinstance(answer, Acknowledge)
    assert (answer.session, to) == (told, source)


def test_confirm_of_who_is_allowed_begins_a_session_and_is_not_answered_here() -> None:
    end = End(policy=POLICY, offer=OFFER)

    assert end.acceptor.judge(confirms()) == Accepted(None, follows=False)
    assert end.said() == []


def test_confirm_with_other_settings_is_for_the_owner_to_decide() -> None:
    end = End(policy=POLICY, offer=OFFER)
    other = replace(OFFER, interface="vela9")

    assert end.acceptor.judge(confirms(other)) is None

    event = end.events.next()
    assert isinstance(event, OfferChanged)
    assert event.requested.offer == other
    assert end.said() == []
    end.acceptor.admit(confirms(other))
    assert end.acceptor.judge(confirms(other)) == Accepted(None, follows=False)


def test_confirm_that_the_policy_forbids_is_refused_and_the_operator_told() -> None:
    end = End(policy=replace(POLICY, interfaces="eth*"), offer=OFFER)

    assert end.acceptor.judge(confirms()) is None

    [(answer, to)] = end.said()
    event = end.events.next()
    assert isinstance(answer, Reject)
    assert isinstance(event, Refused)
    assert (event.source, event.code) == (to, answer.code)


def test_suspended_end_refuses_by_its_obstacle_the_remote_that_it_was_suspended_for() -> None:
    end = End()
    end.vars.state = State.SUSPENDED
    obstacle = Rejection(RejectCode.FAILED, "on the other end, no interface")
    end.admission.suspend(obstacle, confirms().message_of(Confirm).description)

    assert end.acceptor.judge(confirms()) is None

    [(answer, _)] = end.said()
    assert isinstance(answer, Reject)
    assert (answer.code, answer.text) == (obstacle.code, obstacle.text)
    assert end.events.next() is None
    end.admission.suspend(obstacle, replace(LOCAL1, mtu=1200))  # of another remote than this one
    assert end.acceptor.judge(confirms()) == Accepted(None, follows=False)


def test_machine_that_this_end_cannot_have_as_its_remote_hears_why() -> None:
    def fail(source: Endpoint, local_address: IPAddress | None) -> Description:
        raise ConfigError("id 7 is taken\nand more")

    end = End()
    end.acceptor.caller = Caller(fail, random.Random(3))

    assert end.acceptor.judge(confirms()) is None

    [(answer, _)] = end.said()
    assert isinstance(answer, Reject)
    assert answer.text == "on the other end, id 7 is taken"
    assert end.local.description == LOCAL2


def test_remote_that_is_heard_elsewhere_is_followed_once_it_answers_there() -> None:
    end = End()
    link = end.have_a_session()
    end.acceptor.caller = Caller(describe, random.Random(3))
    keepalive = link.keepalive(LOCAL1, 100.0, up=True)
    header = (CIRCUIT, 0x11, NONCE, 9)

    assert not end.acceptor.follow(Received(100.0, keepalive, ROUTER1, HERE))
    assert end.said() == []
    assert not end.acceptor.follow(Received(100.0, keepalive, ELSEWHERE, HERE))

    [(probe, to)] = end.said()
    assert isinstance(probe, Probe)
    assert (to, link.endpoint) == (ELSEWHERE, ROUTER1)
    other = Received(100.1, ProbeReply(*header, probe.size + 1), ELSEWHERE, HERE)
    assert not end.acceptor.follow(other)
    answer = Received(100.1, ProbeReply(*header, probe.size), ELSEWHERE, HERE)
    assert end.acceptor.follow(answer)
    assert (link.endpoint, end.local.description.mtu) == (ELSEWHERE, 1300)
    assert end.events.next() == Moved(ELSEWHERE)


def test_remote_with_a_name_is_followed_nowhere() -> None:
    end = End()
    link = end.have_a_session()

    heard = Received(100.0, link.keepalive(LOCAL1, 100.0, up=True), ELSEWHERE, HERE)

    assert not end.acceptor.follow(heard)
    assert end.said() == []


def test_session_of_before_a_restart_is_denied_only_where_the_remote_calls() -> None:
    end = End()
    former = Link(CIRCUIT, 0x55, 0x66, ROUTER2, None, sent=8)
    sender = LocalEnd(LOCAL1, OFFER, passive=False, machine=None, key=KEY, cipher=None)
    sender.send(former.keepalive(LOCAL1, 100.0, up=True), former)
    [datagram] = sender.outbox.take_all()
    header = read_header(datagram.data)
    received = Received(100.0, None, ROUTER1, HERE)
    end.vars.state = State.REQUESTING

    end.acceptor.deny_session(datagram.data, header, received)
    assert end.said() == []
    end.acceptor.caller = Caller(describe, random.Random(3))
    end.acceptor.deny_session(datagram.data, header, received)

    [(answer, to)] = end.said()
    assert isinstance(answer, Reject)
    assert (answer.code, answer.seen, to) == (RejectCode.NO_SUCH_SESSION, ROUTER1, ROUTER1)
