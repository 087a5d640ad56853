"""Who is answered, with how much, how often; and what proves an address."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_link import CIRCUIT, KEY, LOCAL1, OFFER, POLICY, ROUTER1

from vela.address import Endpoint, IPAddress
from vela.errors import RemoteProtocolError
from vela.signaling.codec import decode, encode
from vela.signaling.cookie import Cookies
from vela.signaling.events import CircuitRequested
from vela.signaling.limiter import MAX_SOURCES, RateLimiter
from vela.signaling.messages import (
    Acknowledge,
    Close,
    Confirm,
    Keepalive,
    Message,
    Offer,
    Probe,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.policy import Limits, PeerCircuits, Policy, SourceLimits
from vela.signaling.responder import Responder, Silence
from vela.signaling.signer import Key, LocalKey

STRANGER = Endpoint(ip_address("198.51.100.7"), 48621)
REQUEST = Request(CIRCUIT, 0x11, 0, 1, LOCAL1, OFFER, size=320)
CONFIRM = Confirm(CIRCUIT, 0x11, 0, 2, LOCAL1, OFFER, size=320)
KEEPALIVE = Keepalive(CIRCUIT, 0x11, 0x22, 9, LOCAL1, 8, 1_000_000, None, True)
ANYBODY = replace(POLICY, sources=None)


def nobody() -> PeerCircuits:
    """Return how many circuits there are that remotes have set up."""
    return PeerCircuits(0, 0)


def responder(policy: Policy | None = POLICY, key: Key | None = None, seed: int = 0) -> Responder:
    return Responder(policy, key, Cookies(random.Random(seed)), 48621)


def ask(
    answering: Responder,
    message: Message,
    source: Endpoint = ROUTER1,
    *,
    now: float = 100.0,
    key: Key | None = None,
    circuits: int = 0,
    own: int = 0,
) -> tuple[CircuitRequested | None, list[Message]]:
    requested = answering.receive_datagram(
        encode(message, key), source, now, peer_circuits=lambda: PeerCircuits(circuits, own)
    )
    sent = answering.datagrams_to_send()
    assert all(datagram.remote == source for datagram in sent)
    return requested, [decode(datagram.data, key) for datagram in sent]


def acknowledged(answering: Responder, source: Endpoint = ROUTER1, now: float = 100.0) -> Confirm:
    """Return the CONFIRM that brings the cookie back."""
    _, [answer] = ask(answering, REQUEST, source, now=now)
    assert isinstance(answer, Acknowledge)
    assert (answer.receiver_nonce, answer.counter) == (0x11, 1)
    return replace(CONFIRM, receiver_nonce=answer.sender_nonce)


def test_confirm_with_the_cookie_requests_the_circuit_each_time_it_comes() -> None:
    answering = responder()
    confirm = acknowledged(answering)

    for _ in range(3):
        assert ask(answering, confirm) == (CircuitRequested(ROUTER1, confirm), [])


@pytest.mark.parametrize(
    ("change", "source", "later"),
    [
        ({"sender_nonce": 0x12}, ROUTER1, 0.0),
        ({"circuit_id": 8}, ROUTER1, 0.0),
        ({"receiver_nonce": 0x99}, ROUTER1, 0.0),
        ({}, Endpoint(ROUTER1.address, 48622), 0.0),
        ({}, Endpoint(ip_address("192.0.2.77"), 48621), 0.0),
        ({}, ROUTER1, 20.0),
    ],
)
def test_confirm_with_another_cookie_is_neither_taken_nor_answered(
    change: dict[str, int], source: Endpoint, later: float
) -> None:
    answering = responder()
    confirm = replace(acknowledged(answering), **change)  # type: ignore[arg-type]

    assert ask(answering, confirm, source, now=100.0 + later) == (None, [])
    assert answering.unanswered[Silence.STALE] == 1


def test_confirm_within_ten_seconds_of_its_cookie_is_taken() -> None:
    answering = responder()
    confirm = acknowledged(answering, now=109.9)

    assert ask(answering, confirm, now=119.8)[0] is not None


def test_confirm_to_a_restarted_responder_is_not_answered() -> None:
    confirm = acknowledged(responder(seed=1))

    assert ask(responder(seed=2), confirm) == (None, [])


def test_request_from_port_zero_is_not_answered() -> None:
    assert ask(responder(), REQUEST, Endpoint(ROUTER1.address, 0)) == (None, [])


def test_request_without_autoconfigure_is_not_answered() -> None:
    answering = responder(None)

    assert ask(answering, REQUEST) == (None, [])
    assert answering.unanswered[Silence.DISABLED] == 1


@pytest.mark.parametrize("policy", [None, POLICY])
def test_remote_that_resumes_a_circuit_is_told_that_it_is_gone_whatever_the_policy(
    policy: Policy | None,
) -> None:
    """The message that it was deleted was lost, and the machine that set it up lets nobody ask."""
    answering = responder(policy)

    def said(message: Message, remotes: tuple[IPAddress, ...], source: Endpoint) -> list[Message]:
        requested = answering.receive_datagram(
            encode(message, None),
            source,
            100.0,
            peer_circuits=nobody,
            is_remote=remotes.__contains__,
        )
        assert requested is None
        return [decode(each.data, None) for each in answering.datagrams_to_send()]

    remotes = (STRANGER.address,)
    resumes = replace(REQUEST, resuming=True)
    [cookie] = said(resumes, remotes, STRANGER)
    assert isinstance(cookie, Acknowledge)
    confirm = replace(CONFIRM, receiver_nonce=cookie.sender_nonce, resuming=True)
    [refusal] = said(confirm, remotes, STRANGER)
    assert isinstance(refusal, Reject)
    assert refusal.code == RejectCode.NO_SUCH_CIRCUIT

    # To nothing else, and to nobody else.
    for message in (REQUEST, replace(confirm, resuming=False), KEEPALIVE):
        assert said(message, remotes, STRANGER) == []
    assert said(resumes, remotes, Endpoint(STRANGER.address, 0)) == []
    assert said(resumes, (), STRANGER) == []
    # The circuit had a key, and nobody knows any more which.
    answering.key = LocalKey(b"of [autoconfigure]")
    if policy is not None:
        answering.policy = replace(POLICY, sources=(ip_network("203.0.113.0/24"),))
    assert said(resumes, remotes, STRANGER) == []


def test_request_from_an_unlisted_source_is_not_answered_with_or_without_key() -> None:
    for key in (None, KEY):
        answering = responder(key=key)
        assert ask(answering, REQUEST, STRANGER, key=key) == (None, [])
        assert answering.unanswered[Silence.UNLISTED] == 1


def test_request_where_no_sources_are_listed_is_answered_only_under_the_key() -> None:
    assert ask(responder(ANYBODY), REQUEST, STRANGER) == (None, [])
    assert len(ask(responder(ANYBODY, KEY), REQUEST, STRANGER, key=KEY)[1]) == 1


def test_request_from_a_listed_name_is_answered_once_it_is_resolved() -> None:
    policy = replace(POLICY, sources=())  # names alone are listed
    resolved = replace(policy, resolved=(ROUTER1.address,))

    assert ask(responder(policy), REQUEST) == (None, [])
    assert len(ask(responder(resolved), REQUEST)[1]) == 1


@pytest.mark.parametrize("sent_under", [None, LocalKey(b"another")])
def test_request_under_a_wrong_key_raises_and_is_not_answered(sent_under: Key | None) -> None:
    answering = responder(key=KEY)

    with pytest.raises(RemoteProtocolError) as caught:
        ask(answering, REQUEST, key=sent_under)

    assert caught.value.reason == "tag"
    assert answering.datagrams_to_send() == []


def test_keepalive_of_an_unknown_session_is_told_so_with_its_own_nonces() -> None:
    _, [answer] = ask(responder(), KEEPALIVE)

    assert answer == Reject(CIRCUIT, 0x22, 0x11, 9, RejectCode.NO_SUCH_SESSION, "", seen=ROUTER1)


@pytest.mark.parametrize(
    "message",
    [
        Acknowledge(CIRCUIT, 1, 2, 3),
        Close(CIRCUIT, 1, 2, 3, 2),
        Reject(CIRCUIT, 1, 2, 3, 10, ""),
        Probe(CIRCUIT, 1, 2, 3, size=1400),
        replace(REQUEST, receiver_nonce=5),
        replace(REQUEST, sender_nonce=0),
    ],
)
def test_message_that_begins_nothing_is_not_answered(message: Message) -> None:
    assert ask(responder(), message) == (None, [])


def test_circuit_that_cannot_be_made_is_rejected_in_words() -> None:
    answering = responder()
    confirm = acknowledged(answering)
    requested, _ = ask(answering, confirm)
    assert requested is not None

    answering.reject(requested, RejectCode.CONFLICT, "the name vela0 is in use")

    [datagram] = answering.datagrams_to_send()
    assert decode(datagram.data, None) == Reject(
        CIRCUIT, confirm.receiver_nonce, 0x11, 2, RejectCode.CONFLICT, "the name vela0 is in use"
    )


def test_circuits_of_others_are_limited_in_number() -> None:
    answering = responder(replace(POLICY, max_circuits=3))
    confirm = acknowledged(answering)

    assert ask(answering, confirm, circuits=2)[0] is not None
    requested, [answer] = ask(answering, confirm, circuits=3)
    assert requested is None
    assert isinstance(answer, Reject)
    assert answer.code == RejectCode.TOO_MANY


def test_circuits_are_looked_through_for_no_stranger_before_its_cookie_is_back() -> None:
    """However fast it sends: there may be hundreds."""
    answering = responder()
    confirm = acknowledged(answering)
    asked: list[str] = []

    def count() -> PeerCircuits:
        asked.append("count")
        return nobody()

    def deferral_reason(_: Confirm) -> str:
        asked.append("deferral_reason")
        return ""

    def receive(message: Message, source: Endpoint = ROUTER1) -> None:
        answering.receive_datagram(
            encode(message, None),
            source,
            100.0,
            peer_circuits=count,
            deferral_reason=deferral_reason,
        )

    for message in (REQUEST, KEEPALIVE, replace(confirm, receiver_nonce=0x99)):
        receive(message)
    receive(confirm, STRANGER)
    assert asked == []
    receive(confirm)
    assert asked == ["deferral_reason", "count"]


MESSAGES = st.one_of(
    st.builds(replace, st.just(REQUEST), size=st.integers(0, 400), offer=st.just(Offer())),
    st.builds(
        Confirm,
        st.just(CIRCUIT),
        st.integers(0, 99),
        st.integers(0, 99),
        st.integers(0, 99),
        st.just(LOCAL1),
        st.just(Offer()),
        st.booleans(),
    ),
    st.builds(replace, st.just(KEEPALIVE), counter=st.integers(0, 99)),
    st.builds(Probe, *[st.just(1)] * 4, size=st.integers(52, 1400)),
    st.builds(Acknowledge, *[st.just(1)] * 4),
)


@given(messages=st.lists(MESSAGES, max_size=20))
def test_answers_are_never_larger_than_what_they_answer(messages: list[Message]) -> None:
    answering = responder(replace(POLICY, bridges=()))

    for message in messages:
        data = encode(message, None)
        answering.receive_datagram(data, ROUTER1, 100.0, peer_circuits=nobody)
        assert sum(len(each.data) for each in answering.datagrams_to_send()) <= len(data)


def test_refusal_with_a_long_text_is_no_larger_than_the_smallest_confirm() -> None:
    answering = responder(replace(POLICY, accept=False))
    confirm = replace(acknowledged(answering), offer=Offer(), size=0)
    data = encode(confirm, None)

    answering.receive_datagram(data, ROUTER1, 100.0, peer_circuits=nobody)

    [answer] = answering.datagrams_to_send()
    assert len(answer.data) <= len(data)
    refusal = decode(answer.data, None)
    assert isinstance(refusal, Reject)
    assert refusal.code == RejectCode.NOT_ACCEPTING


def test_source_that_asks_too_fast_is_answered_at_the_limit_and_others_are_not_held_up() -> None:
    answering = responder()
    answers = sum(len(ask(answering, REQUEST, now=100 + i / 10000)[1]) for i in range(10_000))

    assert answers == pytest.approx(1200 + 600, abs=2)  # the burst, and the rate for 1 s
    assert answering.unanswered[Silence.TOO_FAST] == 10_000 - answers
    other = Endpoint(ip_address("192.0.2.200"), 48621)
    assert len(ask(answering, REQUEST, other, now=101.0)[1]) == 1


def test_forgeries_without_the_tag_use_up_nothing_of_their_victims_share() -> None:
    answering = responder(key=KEY)

    for _ in range(5000):
        with pytest.raises(RemoteProtocolError):
            ask(answering, REQUEST, key=None)

    assert len(ask(answering, REQUEST, key=KEY)[1]) == 1


def test_limiter_forgets_sources_rather_than_grow() -> None:
    limiter = RateLimiter()

    for i in range(3 * MAX_SOURCES):
        limiter.take(ip_address(0x0A000000 + i), 100.0)

    assert len(limiter) == MAX_SOURCES == 4096


def test_limiter_takes_an_ipv6_subnet_for_one_host() -> None:
    limiter = RateLimiter()

    taken = sum(limiter.take(IPv6Address((0xFD << 120) + i), 100.0) for i in range(3000))

    assert taken == 1200
    assert len(limiter) == 1


def test_limiter_bounds_what_all_forged_sources_together_get() -> None:
    limiter = RateLimiter()

    taken = sum(limiter.take(ip_address(0x0A000000 + i), 100 + i / 1e5) for i in range(100_000))

    assert taken == pytest.approx(5000 + 5000, abs=5)  # the burst, and the rate for 1 s


def test_policy_without_networks_allows_no_address_but_a_circuit_without() -> None:
    policy = replace(POLICY, networks=())

    refused = policy.judge(LOCAL1, OFFER, ROUTER1.address)
    assert refused is not None
    assert refused.code == RejectCode.ADDRESS
    assert refused.text == (
        "address 172.16.16.2/30 lies in none of autoconfigure.networks on the other end, "
        "which is empty"
    )
    assert policy.judge(LOCAL1, Offer(), ROUTER1.address) is None


def test_answers_leave_from_the_address_that_was_asked() -> None:
    answering, asked_at = responder(), ip_address("198.51.100.2")
    deferred: dict[Message, str] = {}

    def receive(message: Message, now: float) -> CircuitRequested | None:
        return answering.receive_datagram(
            encode(message, None),
            ROUTER1,
            now,
            peer_circuits=nobody,
            deferral_reason=lambda confirm: deferred.get(confirm, ""),
            local_address=asked_at,
        )

    receive(REQUEST, 100.0)
    [answer] = answering.datagrams_to_send()
    acknowledge = decode(answer.data, None)
    assert isinstance(acknowledge, Acknowledge)
    confirm = replace(CONFIRM, receiver_nonce=acknowledge.sender_nonce)

    requested = receive(confirm, 100.1)
    assert requested is not None
    answering.reject(requested, RejectCode.CONFLICT, "taken")
    [refusal] = answering.datagrams_to_send()

    assert answer.local_address == requested.local_address == refusal.local_address == asked_at
    deferred[confirm] = "taken down"
    for message in (confirm, replace(confirm, resuming=True), KEEPALIVE):
        receive(message, 100.2)
    assert [each.local_address for each in answering.datagrams_to_send()] == [asked_at] * 3


def test_remote_gets_no_more_circuits_than_it_may_have_whatever_is_left_for_others() -> None:
    answering = responder(replace(POLICY, max_circuits=64, max_circuits_per_remote=16))
    confirm = acknowledged(answering)

    allowed, _ = ask(answering, confirm, circuits=40, own=15)
    refused, [answer] = ask(answering, confirm, circuits=40, own=16)

    assert allowed is not None
    assert refused is None
    assert isinstance(answer, Reject)
    assert answer.code == RejectCode.TOO_MANY
    assert answer.text == (
        "this machine may set up 16 circuits on the other end, "
        "by autoconfigure.max_circuits_per_remote there or by its own rules, and has 16"
    )


def test_rules_of_the_longest_prefix_that_fits_a_remote_are_its_rules() -> None:
    def rules(network: str, **changes: object) -> SourceLimits:
        plain = SourceLimits((ip_network(network),), None, None, None, None)
        return replace(plain, **changes)  # type: ignore[arg-type]

    own = ip_network("172.16.16.0/24")
    policy = replace(
        POLICY,
        per_source=(
            rules("192.0.2.0/24", max_circuits=3, bridges=()),
            rules("192.0.2.1/32", networks=(own,), interfaces="r1*"),
            rules("2001:db8::/32", max_circuits=0),
        ),
    )

    first = policy.limits(ip_address("192.0.2.1"))
    assert first == Limits((own,), POLICY.bridges, "r1*", POLICY.max_circuits_per_remote)
    second = policy.limits(ip_address("192.0.2.2"))
    assert second == Limits(POLICY.networks, (), POLICY.interfaces, 3)
    assert policy.limits(ip_address("198.51.100.1")) == Limits(
        POLICY.networks, POLICY.bridges, POLICY.interfaces, POLICY.max_circuits_per_remote
    )
    assert policy.judge_offer(Offer(bridge="br-lan"), ip_address("192.0.2.1")) is None
    refused = policy.judge_offer(Offer(bridge="br-lan"), ip_address("192.0.2.2"))
    assert refused is not None
    assert refused.code == RejectCode.BRIDGE
    none = policy.judge_new(LOCAL1, Offer(), ip_address("2001:db8::1"), PeerCircuits(0, 0))
    assert none is not None
    assert none.code == RejectCode.TOO_MANY
