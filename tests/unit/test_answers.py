"""How often a circuit answers REQUESTs, and which CONFIRMs bring a cookie of its back."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from simulated_link import CIRCUIT, LOCAL1, OFFER, ROUTER1, ROUTER2

from vela.signaling.answers import Answers
from vela.signaling.cookie import Cookies
from vela.signaling.inputs import Received
from vela.signaling.link import Link
from vela.signaling.messages import Request

HERE = ip_address("192.0.2.1")
REQUEST = Link(CIRCUIT, 0x11, 0, ROUTER2, None).request(LOCAL1, OFFER, False, session_keys=False)


def asked(now: float) -> Received:
    return Received(now, REQUEST, ROUTER1, HERE)


def confirmed(answers: Answers, now: float) -> Received:
    """Return the CONFIRM of a remote that asks and is answered now."""
    answer = answers.acknowledge(asked(now))
    assert answer is not None
    link = Link(CIRCUIT, REQUEST.sender_nonce, answer.sender_nonce, ROUTER2, None, sent=1)
    return Received(now, link.confirm(LOCAL1, OFFER, False), ROUTER1, HERE)


@pytest.fixture
def cookies() -> Cookies:
    return Cookies(random.Random(1))


def test_three_hundred_requests_a_second_are_answered_and_no_more(cookies: Cookies) -> None:
    answers = Answers(cookies, random.Random(2))

    first = [answers.acknowledge(asked(100.0)) is not None for _ in range(1000)]
    later = [answers.acknowledge(asked(101.0)) is not None for _ in range(1000)]

    assert (sum(first), sum(later)) == (300, 300)
    assert isinstance(asked(100.0).message, Request)


def test_cookie_counts_until_it_is_spent(cookies: Cookies) -> None:
    answers = Answers(cookies, random.Random(2))
    confirm = confirmed(answers, 100.0)

    assert answers.comes_back_in(confirm)
    assert answers.comes_back_in(confirm)
    answers.spend(confirm)
    assert not answers.comes_back_in(confirm)


def test_cookies_are_void_once_there_is_a_new_session(cookies: Cookies) -> None:
    answers = Answers(cookies, random.Random(2))
    confirm = confirmed(answers, 100.0)

    answers.void()

    assert not answers.comes_back_in(confirm)
    assert answers.comes_back_in(confirmed(answers, 100.0))


def test_cookie_of_another_circuit_or_of_another_source_does_not_count(cookies: Cookies) -> None:
    answers, others = Answers(cookies, random.Random(2)), Answers(cookies, random.Random(3))
    confirm = confirmed(answers, 100.0)

    assert not others.comes_back_in(confirm)
    assert not answers.comes_back_in(Received(100.0, confirm.message, ROUTER2, HERE))
    assert not answers.comes_back_in(Received(100.0, confirm.message, ROUTER1, None))
