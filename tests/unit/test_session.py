"""A circuit's session over a link that loses, reorders, duplicates and delays, and its rules."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import pytest
from simulated_link import (
    CIRCUIT,
    KEY,
    LOCAL1,
    LOCAL2,
    OFFER,
    POLICY,
    ROUTER1,
    ROUTER2,
    Link,
    Machine,
    Weather,
    agreed_values,
    both_active,
    nonces,
    one_sided,
)
from thorough import first_of

from vela.address import Endpoint
from vela.reasons import Cause
from vela.signaling.agreement import Agreement
from vela.signaling.candidates import Candidate
from vela.signaling.codec import decode, encode, read_header
from vela.signaling.cookie import Cookies
from vela.signaling.events import (
    Agreed,
    CircuitRequested,
    Closed,
    Down,
    OfferChanged,
    ProbeAnswered,
    Rejected,
    ResolveWanted,
    Unanswered,
    Up,
)
from vela.signaling.inputs import HANDSHAKE_TYPES, AnyInput, Input, State
from vela.signaling.messages import (
    Acknowledge,
    Close,
    CloseReason,
    Confirm,
    Keepalive,
    MessageType,
    Offer,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.session import _TABLE, Session
from vela.signaling.signer import LocalKey

SEEDS_AT_ONCE = 100
BATCHES = 10
QUIET = Weather()
Make = Callable[[int], Link]
AGREED1 = Agreement(
    local_mac=LOCAL1.mac,
    remote_mac=LOCAL2.mac,
    mtu=1400,
    elision=True,
    checksum_offload=False,
    keepalive_s=1.0,
    remote_port=48621,
    nat=False,
)
HERE, ELSEWHERE = ip_address("198.51.100.2"), ip_address("198.51.100.3")
AGREED2 = replace(AGREED1, local_mac=LOCAL2.mac, remote_mac=LOCAL1.mac)


def up_link(link: Link) -> tuple[Session, Session]:
    """Bring a quiet link up and return both sessions."""
    link.boot()
    link.run(link.now + 1)
    return sessions(link)


def sessions(link: Link) -> tuple[Session, Session]:
    first, second = (machine.session for machine in link.machines)
    assert first is not None
    assert second is not None
    return first, second


def transitions(link: Link, since: float) -> list[object]:
    return [
        event
        for machine in link.machines
        for at, event in machine.events
        if at >= since and isinstance(event, Up | Down | Closed)
    ]


def storm(link: Link, offers: tuple[Offer, ...] = ()) -> None:
    """Lose, reorder, duplicate, delay; restart either side, the first one with any offer."""
    dice = link.randomness
    link.weather = Weather(
        loss=dice.uniform(0, 0.5),
        duplication=0.3,
        shortest_delay=0.001,
        longest_delay=dice.choice((0.01, 0.3, 1.5)),
    )
    link.boot()
    for _ in range(dice.randrange(4)):
        link.run(link.now + dice.uniform(0, 5))
        machine = dice.choice(link.machines)
        if offers and machine is link.machines[0]:
            machine.offer = dice.choice(offers)
        machine.boot(link.now)
        link.collect(machine)
    link.run(link.now + dice.uniform(0, 5))


@contextmanager
def sown(make: Make, seed: int) -> Iterator[Link]:
    """A link of this seed, which is named by whatever is raised inside."""
    try:
        yield make(seed)
    except BaseException as err:
        err.add_note(f"seed {seed} of {getattr(make, '__name__', make)}")
        raise


def weather_a_storm(link: Link) -> None:
    storm(link)
    link.weather = QUIET

    link.run(link.now + 6)
    settled = link.now
    first, second = sessions(link)
    found = nonces(first), transitions(link, settled)
    link.run(settled + 6)

    assert link.machines[0].up
    assert link.machines[1].up
    assert (agreed_values(link.machines[0]), agreed_values(link.machines[1])) == (AGREED1, AGREED2)
    assert nonces(first) == nonces(second) == found[0]
    assert transitions(link, settled) == []
    assert link.answered_replays == []


@pytest.mark.parametrize("make", [one_sided, both_active])
@pytest.mark.parametrize("batch", first_of(range(BATCHES), 1))
def test_session_after_any_storm_is_one_and_stays_up(make: Make, batch: int) -> None:
    for seed in range(batch * SEEDS_AT_ONCE, (batch + 1) * SEEDS_AT_ONCE):
        with sown(make, seed) as link:
            weather_a_storm(link)


def one_sided_without_key(seed: int) -> Link:
    return one_sided(seed, key=None)


@pytest.mark.parametrize("make", [one_sided, both_active, one_sided_without_key])
@pytest.mark.parametrize("storms", first_of((SEEDS_AT_ONCE // 5, SEEDS_AT_ONCE), 1))
def test_session_after_a_storm_that_nobody_has_seen_is_one_and_stays_up(
    make: Make, storms: int
) -> None:
    for _ in range(storms):
        with sown(make, int.from_bytes(os.urandom(4))) as link:
            weather_a_storm(link)


def test_storm_that_raises_tells_its_seed() -> None:
    with pytest.raises(RuntimeError) as raised, sown(one_sided, 7):
        raise RuntimeError("a bug in the state machine")

    assert raised.value.__notes__ == ["seed 7 of one_sided"]


def test_session_on_a_clean_link_is_up_after_two_round_trips() -> None:
    link = one_sided(1)

    link.boot()
    link.run(link.now + 0.0051)  # REQUEST, ACKNOWLEDGE, CONFIRM, 2 of KEEPALIVE: 1 ms each

    first, second = link.machines
    assert [event for _, event in first.events] == [Agreed(AGREED1), Up()]
    assert [event for _, event in second.events] == [Agreed(AGREED2), Up()]
    assert [requested.offer for requested in second.requested] == [OFFER]
    assert [read_header(data).type for _, _, data in link.log] == [
        MessageType.REQUEST,
        MessageType.ACKNOWLEDGE,
        MessageType.CONFIRM,
        MessageType.KEEPALIVE,  # so that router 1 is up
        MessageType.KEEPALIVE,  # so that router 2 is
        MessageType.KEEPALIVE,  # so that router 1 knows
    ]


def test_session_that_is_up_keeps_the_smaller_interval_and_knows_the_round_trip() -> None:
    link = one_sided(2)
    up_link(link)
    before = len(link.log)

    link.run(link.now + 60)

    # Intervals of 0.9 to 1 s on each end.
    assert 120 <= len(link.log) - before <= 134
    first, second = sessions(link)
    assert first.rtt_s == pytest.approx(0.002, abs=0.0005)
    assert second.rtt_s == pytest.approx(0.002, abs=0.0005)


@pytest.mark.parametrize("make", [one_sided, both_active])
@pytest.mark.parametrize("deaf", [{ROUTER1}, {ROUTER2}, {ROUTER1, ROUTER2}])
def test_session_cut_is_down_within_four_intervals_and_back_within_two_seconds(
    make: Make, deaf: set[Endpoint]
) -> None:
    for seed in range(20):
        with sown(make, seed) as link:
            up_link(link)
            link.run(link.now + link.randomness.uniform(5, 7))

            cut, link.deaf = link.now, set(deaf)
            link.run(cut + 4.01)
            assert not any(machine.up for machine in link.machines)
            link.run(cut + 30)
            link.deaf = set()
            link.run(cut + 32)

            assert all(machine.up for machine in link.machines)
            for machine in link.machines:
                assert [type(event) for event in machine.since(cut, (Up, Down))] == [Down, Up]


def test_session_cut_for_a_day_asks_seldom_and_heals_within_its_longest_pause() -> None:
    link = one_sided(3)
    up_link(link)
    link.deaf = {ROUTER1, ROUTER2}
    link.run(link.now + 86400)
    before = len(link.log)

    link.run(link.now + 3600)

    # Every 24 to 30 s from each end.
    assert 2 * 120 <= len(link.log) - before <= 2 * 150
    link.deaf = set()
    link.run(link.now + 31)
    assert all(machine.up for machine in link.machines)


@pytest.mark.parametrize("make", [one_sided, both_active])
@pytest.mark.parametrize("which", [0, 1])
def test_machine_restarted_is_up_again_within_a_second(make: Make, which: int) -> None:
    link = make(4)
    up_link(link)

    for _ in range(10):
        before = nonces(sessions(link)[1 - which])
        link.run(link.now + link.randomness.uniform(0, 3))
        link.machines[which].boot(link.now)
        link.collect(link.machines[which])
        link.run(link.now + 1)

        first, second = sessions(link)
        assert all(machine.up for machine in link.machines)
        assert nonces(first) == nonces(second) != before
    assert len(link.machines[1].requested) == (make is one_sided)


def test_circuit_forgotten_by_the_responder_is_set_up_again() -> None:
    link = one_sided(5)
    up_link(link)
    second = link.machines[1]

    second.kept = None
    second.boot(link.now)
    link.run(link.now + 1.1)  # until the next keepalive shows it

    assert all(machine.up for machine in link.machines)
    assert [requested.offer for requested in second.requested] == [OFFER, OFFER]


@pytest.mark.parametrize("make", [one_sided, both_active])
def test_recorded_messages_replayed_in_any_order_change_nothing(make: Make) -> None:
    for seed in range(30):
        with sown(make, seed) as link:
            storm(link)
            link.weather = QUIET
            link.run(link.now + 6)
            before, at = nonces(sessions(link)[0]), link.now
            recorded = [(source, data) for when, source, data in link.log]
            link.randomness.shuffle(recorded)

            for source, data in recorded[:300]:
                target = link.machines[source == ROUTER1]
                target.receive(data, source, link.now)
                for answer in target.sent():
                    assert read_header(answer.data).type is MessageType.ACKNOWLEDGE
                    assert read_header(data).type is MessageType.REQUEST
                    assert len(answer.data) <= len(data)
                link.run(link.now + 0.01)

            assert nonces(sessions(link)[0]) == before
            assert transitions(link, at) == []


def test_replayed_messages_after_the_circuit_was_deleted_set_nothing_up() -> None:
    link = one_sided(6)
    first, _ = up_link(link)
    first.close(CloseReason.DELETED, link.now)
    link.collect(link.machines[0])
    link.run(link.now + 1)
    second = link.machines[1]
    assert second.session is None

    for _, source, data in list(link.log):
        if source == ROUTER1:
            second.receive(data, source, link.now)

    assert second.session is None
    assert len(second.requested) == 1


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("code", [RejectCode.FAILED, RejectCode.MAC])
def test_session_suspended_takes_the_other_end_down_and_refuses_it_until_it_starts_again(
    which: int, code: RejectCode
) -> None:
    link = one_sided(34)
    session = up_link(link)[which]
    machine, other = link.machines[which], link.machines[1 - which]
    at = link.now

    session.suspend("on the other end, br9: there is no interface of this name", code)
    link.collect(machine)
    link.run(at + 0.01)
    assert not other.up
    link.run(at + 60)
    assert set(other.since(at, Rejected)) == {
        Rejected(code, "on the other end, br9: there is no interface of this name")
    }
    assert other.since(at, (Up, Down)) == [Down(Cause.REMOTE_STOPPING.say())]
    assert machine.since(at, (Up, Down)) == []

    session.start(link.now)
    machine.handle_timer(link.now)
    link.collect(machine)
    link.run(link.now + 1)

    assert machine.up
    assert other.up


def test_session_suspended_by_what_was_agreed_is_announced_by_nothing() -> None:
    link = one_sided(35)
    first, second = link.machines
    second.obstacle = "on the other end, the MTU cannot be had"
    link.boot()

    link.run(link.now + 60)

    assert first.since(0, (Agreed, Up)) == []
    assert first.since(0, Rejected)[-1] == Rejected(RejectCode.FAILED, second.obstacle)
    # Perhaps it can be had with what the other end says of itself now.
    second.obstacle = ""
    first.session.set_local(replace(LOCAL1, mtu=1300), link.now)  # type: ignore[union-attr]
    link.run(link.now + 31)
    assert first.up
    assert second.up


def test_close_for_good_ends_both_and_is_repeated_until_it_arrives() -> None:
    link = one_sided(7)
    first, _ = up_link(link)
    link.deaf = {ROUTER2}

    first.close(CloseReason.DELETED, link.now)
    link.collect(link.machines[0])
    link.run(link.now + 0.5)
    link.deaf = set()
    link.run(link.now + 0.5)

    assert link.machines[0].events[-1][1] == Closed(by_remote=False)
    assert link.machines[1].events[-1][1] == Closed(by_remote=True)
    assert [machine.session for machine in link.machines] == [None, None]


def test_close_is_answered_with_one_so_that_it_is_sent_once() -> None:
    link = one_sided(27)
    first, _ = up_link(link)
    before = len(link.log)

    first.close(CloseReason.DELETED, link.now)
    link.collect(link.machines[0])
    link.run(link.now + 0.003)

    assert link.machines[0].events[-1][1] == Closed(by_remote=False)
    assert [(source, data[2]) for _, source, data in link.log[before:]] == [
        (ROUTER1, MessageType.CLOSE),
        (ROUTER2, MessageType.CLOSE),
    ]


def test_close_of_a_stopping_machine_is_down_at_once_and_heals_when_it_is_back() -> None:
    link = one_sided(8)
    first, _ = up_link(link)

    first.close(CloseReason.STOPPING, link.now)
    link.collect(link.machines[0])
    link.run(link.now + 0.1)
    assert link.machines[1].since(0, Down) == [Down(Cause.REMOTE_STOPPING.say())]
    link.run(link.now + 20)
    link.machines[0].boot(link.now)
    link.collect(link.machines[0])
    link.run(link.now + 1)

    assert all(machine.up for machine in link.machines)


def test_request_of_nobody_answered_is_told_and_the_name_looked_up() -> None:
    link = one_sided(9)
    link.deaf = {ROUTER2}
    link.boot()

    link.run(link.now + 10)

    said = [event for _, event in link.machines[0].events]
    requests = len(link.log)
    assert 10 <= requests <= 13
    assert [event.reason for event in said if isinstance(event, Unanswered)] == [
        "no answer from 192.0.2.2:48621: no velad there, a firewall between, "
        "or its autoconfigure does not list this machine or has another key"
    ] * (requests // 3)
    assert ResolveWanted() in said


OTHER = Endpoint(ip_address("2001:db8::2"), 48621)


def test_addresses_of_a_remote_are_asked_in_turn_with_one_nonce_and_told_together() -> None:
    session, now = quiet_session(), 0.0
    session.set_remotes([Candidate(OTHER), Candidate(ROUTER2, HERE)], now)
    asked: list[tuple[float, Endpoint, int]] = []
    told: list[tuple[float, str]] = []
    session.start(now)

    while now < 3:
        session.handle_timer(now)
        asked += [
            (now, each.remote, read_header(each.data).sender_nonce)
            for each in session.datagrams_to_send()
        ]
        while event := session.next_event():
            if isinstance(event, Unanswered):
                told.append((now, event.reason))
        due = session.next_timer()
        assert due is not None
        now = due

    assert [remote for _, remote, _ in asked[:6]] == [OTHER, ROUTER2] * 3
    assert [at for at, _, _ in asked[:3:2]] == [0.0, pytest.approx(0.5, abs=0.11)]
    assert asked[1][0] == 0.25
    assert len({nonce for _, _, nonce in asked}) == 1
    assert told[0][0] == asked[3][0]
    assert "192.0.2.2:48621 and 1 other address: " in told[0][1]


def test_first_address_that_answers_wins_also_from_another_port_than_the_last_one() -> None:
    session = quiet_session()
    other = Endpoint(ip_address("192.0.2.9"), 7777)
    session.set_remotes([Candidate(other, HERE), Candidate(ROUTER2, ELSEWHERE)], 0.0)
    session.start(0.0)
    for now in (0.0, 0.25):
        session.handle_timer(now)
    requests = session.datagrams_to_send()
    assert [each.remote for each in requests] == [other, ROUTER2]
    nonce = read_header(requests[0].data).sender_nonce

    answer = encode(Acknowledge(CIRCUIT, 0x33, nonce, 1), None)
    session.receive_datagram(answer, other, 0.3)

    [confirm] = session.datagrams_to_send()
    assert (confirm.remote, confirm.local_address) == (other, HERE)
    assert session.remote == other


def refuse(session: Session, source: Endpoint, now: float, text: str) -> None:
    [request] = session.datagrams_to_send()
    assert request.remote == source
    asked = read_header(request.data)
    session.receive(
        Reject(CIRCUIT, 0x33, asked.sender_nonce, asked.counter, RejectCode.CONFLICT, text),
        source,
        now,
    )


def test_address_that_refuses_keeps_nobody_from_the_next_one() -> None:
    session = quiet_session()
    session.set_remotes([Candidate(OTHER), Candidate(ROUTER2)], 0.0)
    session.start(0.0)
    session.handle_timer(0.0)

    refuse(session, OTHER, 0.1, "not here")
    session.handle_timer(0.1)

    [request] = session.datagrams_to_send()
    assert request.remote == ROUTER2
    assert session.next_event() is None
    nonce = read_header(request.data).sender_nonce
    session.receive(Acknowledge(CIRCUIT, 0x33, nonce, 1), ROUTER2, 0.2)
    assert session.state is State.CONFIRMING


def test_refusal_is_told_once_no_other_address_has_answered() -> None:
    session = quiet_session()
    session.set_remotes([Candidate(OTHER), Candidate(ROUTER2)], 0.0)
    session.start(0.0)
    session.handle_timer(0.0)
    refuse(session, OTHER, 0.1, "not here")
    session.handle_timer(0.1)
    session.datagrams_to_send()
    due = session.next_timer()
    assert due is not None

    session.handle_timer(due)

    assert session.next_event() == Rejected(RejectCode.CONFLICT, "not here")
    assert session.state is State.REJECTED
    assert session.datagrams_to_send() == []
    again = session.next_timer()
    assert again is not None
    session.handle_timer(again)
    session.handle_timer(again)
    assert session.datagrams_to_send()[0].remote == OTHER


def test_refusals_of_all_addresses_are_told_with_the_last_one() -> None:
    session = quiet_session()
    session.set_remotes([Candidate(OTHER), Candidate(ROUTER2)], 0.0)
    session.start(0.0)
    session.handle_timer(0.0)
    refuse(session, OTHER, 0.1, "not here")
    session.handle_timer(0.1)

    refuse(session, ROUTER2, 0.2, "nor here")

    assert session.next_event() == Rejected(RejectCode.CONFLICT, "nor here")
    assert session.state is State.REJECTED


def test_address_that_a_name_gets_is_asked_before_those_that_were_asked() -> None:
    session = quiet_session()
    session.start(0.0)
    session.handle_timer(0.0)
    session.datagrams_to_send()

    session.set_remotes([Candidate(ROUTER2), Candidate(OTHER)], 0.4)
    session.handle_timer(0.4)

    assert [each.remote for each in session.datagrams_to_send()] == [OTHER]


def test_answer_of_the_address_that_was_asked_before_is_taken_there() -> None:
    session = quiet_session()
    session.start(0.0)
    session.handle_timer(0.0)
    nonce = read_header(session.datagrams_to_send()[0].data).sender_nonce
    session.set_remotes([Candidate(OTHER)], 1.0)
    session.handle_timer(1.0)
    session.datagrams_to_send()

    session.receive(Acknowledge(CIRCUIT, 0x33, nonce, 1), ROUTER2, 1.1)

    [confirm] = session.datagrams_to_send()
    assert (confirm.remote, session.remote) == (ROUTER2, ROUTER2)


def test_keys_that_differ_leave_both_silent() -> None:
    link = one_sided(10)
    link.machines[1].key = LocalKey(b"another")
    link.boot()

    link.run(link.now + 5)

    assert link.machines[1].refused >= 5
    assert not link.machines[1].requested
    assert {source for _, source, _ in link.log} == {ROUTER1}


SESSION_TAG = b"\x1c\0\x10"


def has_session_tag(data: bytes) -> bool:
    return data[-35:-32] == SESSION_TAG


@pytest.mark.parametrize("make", [one_sided, both_active])
def test_session_under_a_key_has_keys_of_its_own(make: Make) -> None:
    link = make(36)
    up_link(link)
    link.run(link.now + 10)

    for _, _, data in link.log:
        assert has_session_tag(data) is (read_header(data).type not in HANDSHAKE_TYPES)
    assert len(link.log) > 20


def test_session_whose_ends_were_told_other_endpoints_is_not_up() -> None:
    link = one_sided(37)

    def mislead(source: Endpoint, data: bytes) -> bytes:
        message = decode(data, KEY) if data[2] == MessageType.ACKNOWLEDGE else None
        if not isinstance(message, Acknowledge):
            return data
        return encode(replace(message, seen=Endpoint(ip_address("192.0.2.77"), 48621)), KEY)

    link.change = mislead
    link.boot()
    link.run(link.now + 2)

    assert [machine.up for machine in link.machines] == [False, False]
    assert link.machines[0].refused > 0  # the KEEPALIVEs, for their tag


def old_version(source: Endpoint, kind: MessageType) -> Callable[[Endpoint, bytes], bytes]:
    """Let a machine's messages of one type say nothing of keys, as those of earlier versions."""

    def change(sender: Endpoint, data: bytes) -> bytes:
        if sender != source or data[2] != kind:
            return data
        message = decode(data, KEY)
        if isinstance(message, Acknowledge):
            bare = Acknowledge(
                CIRCUIT, message.sender_nonce, message.receiver_nonce, message.counter
            )
            return encode(bare, KEY)
        assert isinstance(message, Request)
        return encode(replace(message, session_keys=False), KEY)

    return change


@pytest.mark.parametrize(
    ("old", "kind"), [(ROUTER1, MessageType.REQUEST), (ROUTER2, MessageType.ACKNOWLEDGE)]
)
def test_session_with_an_end_that_knows_of_no_keys_has_the_tag_of_the_key_alone(
    old: Endpoint, kind: MessageType
) -> None:
    link = one_sided(38)
    link.change = old_version(old, kind)

    first, second = up_link(link)
    link.run(link.now + 10)

    assert (first.state, second.state) == (State.UP, State.UP)
    assert not any(has_session_tag(data) for _, _, data in link.log)
    assert transitions(link, 1001) == []


def test_request_of_an_earlier_version_is_acknowledged_with_nothing_new() -> None:
    link = one_sided(39)
    link.change = old_version(ROUTER1, MessageType.REQUEST)
    up_link(link)

    [acknowledged] = [data for _, _, data in link.log if data[2] == MessageType.ACKNOWLEDGE]
    assert len(acknowledged) == 44


@pytest.mark.parametrize(
    ("config", "offer", "code", "words"),
    [
        ({"accept": False}, {}, 1, "accept is false"),
        ({}, {"addresses": (IPv4Interface("10.0.0.2/30"),)}, 2, "10.0.0.2/30 lies in none"),
        ({}, {"addresses": (IPv4Interface("172.16.0.2/8"),)}, 2, "172.16.0.2/8 lies in none"),
        ({}, {"bridge": "br-wan"}, 3, "'br-wan' is none of autoconfigure.bridges"),
        ({}, {"interface": "eth7"}, 4, "'eth7' does not match"),
        ({"max_circuits": 0}, {}, 5, "max_circuits is 0"),
        ({}, {"mac": LOCAL1.mac}, 6, "cannot have one MAC"),
    ],
)
def test_request_that_violates_the_policy_is_rejected_in_words(
    config: dict[str, object], offer: dict[str, object], code: int, words: str
) -> None:
    link = one_sided(11)
    first, second = link.machines
    assert first.offer is not None
    first.offer = replace(first.offer, **offer)  # type: ignore[arg-type]
    second.policy = replace(POLICY, **config)  # type: ignore[arg-type]
    link.boot()

    link.run(link.now + 1)

    [rejected] = first.since(0, Rejected)
    assert isinstance(rejected, Rejected)
    assert rejected.code == code
    assert words in rejected.reason
    assert second.session is None


def test_rejected_request_is_tried_again_and_heals() -> None:
    link = one_sided(12)
    first, second = link.machines
    second.policy = replace(POLICY, accept=False)
    link.boot()
    link.run(link.now + 5)
    assert first.session is not None
    assert first.session.state is State.REJECTED

    second.responder.policy = second.policy = POLICY
    link.run(link.now + 30)

    assert first.up
    assert second.up


@pytest.mark.parametrize("lost", [False, True])
def test_offer_changed_reaches_the_other_end_if_policy_allows(lost: bool) -> None:
    link = one_sided(13)
    up_link(link)
    first, second = link.machines
    offer = replace(OFFER, addresses=(IPv4Interface("172.16.16.6/30"),))

    second.boot(link.now)  # both restart, and the kept settings are old
    first.offer = offer
    first.boot(link.now)
    link.collect(second)
    if lost:  # its first REQUEST, so that the resumption would be there before it
        assert len(first.sent()) == 1
    link.collect(first)
    link.run(link.now + 2)

    assert first.up
    [changed] = second.since(0, OfferChanged)
    assert isinstance(changed, OfferChanged)
    assert changed.requested.offer == second.kept == offer


CHANGED = replace(OFFER, addresses=(IPv4Interface("172.16.16.6/30"),))


def resume_after_an_outage(link: Link, offer: Offer) -> None:
    """Router 1 is configured anew while router 2 is away, which is heard first when it is back."""
    up_link(link)
    first, second = link.machines
    link.deaf = {ROUTER1, ROUTER2}
    first.offer = offer
    first.boot(link.now)
    link.run(link.now + 30)
    link.deaf = set()
    second.boot(link.now)
    link.collect(second)


def test_offer_changed_during_a_long_outage_goes_before_a_resumption() -> None:
    link = one_sided(28)
    resume_after_an_outage(link, CHANGED)
    first, second = link.machines
    back = link.now

    link.run(back + 3)

    assert first.up
    assert second.up
    assert second.kept == CHANGED
    # It was never up with the settings of before.
    assert [type(event) for event in first.since(back, (Up, Down))] == [Up]


def test_offer_that_cannot_be_asked_for_lets_the_remote_resume_after_three_tries() -> None:
    link = one_sided(29)
    resume_after_an_outage(link, CHANGED)
    first, second = link.machines
    link.unheard = {(ROUTER1, MessageType.REQUEST)}
    back, sent = link.now, len(link.log)

    link.run(back + 6)

    assert first.up
    assert second.kept == OFFER
    up_at = next(at for at, event in first.events if at >= back and isinstance(event, Up))
    requests = [
        at
        for at, source, data in link.log[sent:]
        if (source, read_header(data).type) == (ROUTER1, MessageType.REQUEST) and at < up_at
    ]
    assert len(requests) in (3, 4)  # the last one while the remote's was on its way


def test_session_resumed_with_an_old_offer_stays_up_until_the_new_one_can_be_asked_for() -> None:
    link = one_sided(30)
    resume_after_an_outage(link, CHANGED)
    first, second = link.machines
    link.unheard = {(ROUTER1, MessageType.REQUEST)}
    link.run(link.now + 6)
    settled, sent = link.now, len(link.log)

    link.run(settled + 3600)

    assert transitions(link, settled) == []
    asked = [read_header(data).type for _, _, data in link.log[sent:]].count(MessageType.REQUEST)
    assert 12 <= asked <= 24  # 10 s apart at first, 240 to 300 s in the end
    link.unheard = set()
    link.run(link.now + 310)
    assert second.kept == CHANGED
    assert first.up
    assert second.up
    settled = link.now
    link.run(settled + 600)
    assert transitions(link, settled) == []


def test_session_resumed_with_the_present_offer_is_not_asked_for_anew() -> None:
    link = one_sided(31)
    present = replace(OFFER, addresses=(*OFFER.addresses, IPv6Interface("fd00:16::2/64")))
    link.machines[0].offer = present
    # Addresses have no order on the wire.
    resume_after_an_outage(link, replace(present, addresses=present.addresses[::-1]))
    back, sent = link.now, len(link.log)
    link.unheard = {(ROUTER1, MessageType.REQUEST)}

    link.run(back + 600)

    [(up_at, _)] = [each for each in link.machines[0].events if each[1] == Up() and each[0] >= back]
    assert up_at < back + 0.1
    assert link.machines[0].since(back, Down) == []
    assert MessageType.REQUEST not in [
        read_header(data).type for _, source, data in link.log[sent:] if source == ROUTER1
    ]


@pytest.mark.parametrize("batch", first_of(range(5), 1))
def test_offer_of_the_configuration_prevails_after_any_storm(batch: int) -> None:
    for seed in range(batch, SEEDS_AT_ONCE, 5):
        link = one_sided(seed)
        storm(link, offers=(OFFER, CHANGED))
        link.weather = QUIET

        link.run(link.now + 6)
        assert all(machine.up for machine in link.machines), f"seed {seed}"
        # It may have had to be asked for anew several times.
        link.run(link.now + 100)

        assert all(machine.up for machine in link.machines), f"seed {seed}"
        assert link.machines[1].kept == link.machines[0].offer, f"seed {seed}"
        settled = link.now
        link.run(settled + 60)
        assert transitions(link, settled) == [], f"seed {seed}"


def test_offer_changed_against_the_policy_is_rejected_and_the_kept_one_stays() -> None:
    link = one_sided(14)
    up_link(link)
    first, second = link.machines

    first.offer = replace(OFFER, bridge="br-wan")
    first.boot(link.now)
    link.collect(first)
    changed = link.now
    link.run(changed + 1)

    [rejected] = first.since(0, Rejected)
    assert isinstance(rejected, Rejected)
    assert rejected.code == RejectCode.BRIDGE
    # And so for good, though the other end would resume what it keeps.
    link.weather = Weather(loss=0.3, duplication=0.3, longest_delay=0.3)
    link.run(changed + 300)
    second.boot(link.now)
    link.collect(second)
    link.run(changed + 500)
    link.unheard = {(ROUTER1, MessageType.REQUEST)}  # what follows insisting in vain
    link.run(changed + 600)
    link.unheard = set()
    assert first.since(changed, (Agreed, Up)) == []
    assert {event.code for event in first.since(0, Rejected) if isinstance(event, Rejected)} == {
        RejectCode.BRIDGE
    }
    assert second.since(0, OfferChanged) == []
    assert second.kept == OFFER
    refused = second.since(changed + 300, Rejected)[-1]
    assert refused == Rejected(
        RejectCode.OUTDATED,
        "the other end wants other settings for this circuit, and this end refuses them",
    )

    link.weather = QUIET
    second.policy = replace(POLICY, bridges=("br-wan",))
    second.boot(link.now)
    link.collect(second)
    link.run(link.now + 31)
    assert first.up
    assert second.kept == first.offer


def test_rejection_of_what_the_other_end_resumes_is_over_at_once() -> None:
    link = one_sided(32)
    first, second = link.machines
    second.policy = replace(POLICY, max_circuits=0)
    link.boot()
    link.run(link.now + 40)
    assert len(first.since(0, Rejected)) >= 4  # the next one is 24 s away at least

    second.policy, second.kept = POLICY, OFFER
    second.boot(link.now)
    link.collect(second)
    link.run(link.now + 0.1)

    assert first.up
    assert second.up


def test_offer_changed_that_is_not_accepted_leaves_the_session_as_it_is() -> None:
    """More than the policy has to be asked: it is for the caller to say."""
    link = one_sided(33)
    first, second = up_link(link)
    before = nonces(second)
    request = next(data for _, _, data in link.log if data[2] == MessageType.REQUEST)
    link.machines[1].receive(
        encode(replace(decode(request, KEY), sender_nonce=0x77), KEY), ROUTER1, link.now
    )
    [acknowledged] = link.machines[1].sent()
    cookie = read_header(acknowledged.data).sender_nonce
    confirm = Confirm(CIRCUIT, 0x77, cookie, 2, LOCAL1, CHANGED)

    for _ in range(2):
        second.receive(confirm, ROUTER1, link.now)
        event = second.next_event()
        assert event == OfferChanged(CircuitRequested(ROUTER1, confirm))
        assert second.next_event() is None
        assert second.datagrams_to_send() == []

    assert (second.state, nonces(second)) == (State.UP, before)
    link.run(link.now + 10)
    assert (first.state, second.state) == (State.UP, State.UP)


def test_resumed_circuit_that_its_owner_has_no_more_is_rejected() -> None:
    link = one_sided(15)
    up_link(link)
    first, second = link.machines
    first.offer, first.policy = None, POLICY
    first.boot(link.now)
    second.boot(link.now)
    link.collect(second)

    link.run(link.now + 1)

    assert first.session is None
    [rejected] = second.since(0, Rejected)
    assert isinstance(rejected, Rejected)
    assert rejected.code == RejectCode.NO_SUCH_CIRCUIT


def test_mtu_changed_at_one_end_is_agreed_at_once_without_going_down() -> None:
    link = one_sided(16)
    first, second = up_link(link)
    at = link.now

    first.set_local(replace(LOCAL1, mtu=1300), at)
    link.collect(link.machines[0])
    link.run(at + 0.01)

    assert first.agreement == replace(AGREED1, mtu=1300)
    assert second.agreement == replace(AGREED2, mtu=1300)
    assert transitions(link, at) == []


def test_address_translated_on_the_way_is_noticed_by_both() -> None:
    link = one_sided(17)
    link.machines[0].local = replace(LOCAL1, own=Endpoint(ip_address("10.1.1.1"), 48621))

    first, second = up_link(link)

    assert first.agreement == replace(AGREED1, nat=True)
    assert second.agreement == replace(AGREED2, nat=True)


def test_probe_is_answered_with_its_size_and_no_more_bytes() -> None:
    link = one_sided(18)
    first, _ = up_link(link)
    before = len(link.log)

    assert first.probe(1472)
    link.collect(link.machines[0])
    link.run(link.now + 0.01)

    assert link.machines[0].events[-1][1] == ProbeAnswered(1472)
    probe, reply = (data for _, _, data in link.log[before:])
    assert len(probe) == 1472
    assert len(reply) <= 1472


@pytest.mark.parametrize("state", ["requesting", "up"])
def test_session_answers_no_forgery_with_more_than_it_got(state: str) -> None:
    """An attacker off the path knows no nonce; without a key nothing else holds it back."""
    link = one_sided(19, key=None)
    dice = random.Random(19)
    if state == "up":
        up_link(link)
        recorded = [data for _, source, data in link.log if source == ROUTER2]
    else:
        other = one_sided(20, key=None)
        up_link(other)
        recorded = [data for _, _, data in other.log]
        link.deaf = {ROUTER2}
        link.boot()
    machine = link.machines[0]
    assert machine.session is not None
    was, sent, got = machine.session.state, 0, 0

    for _ in range(2000):
        data = bytearray(dice.choice(recorded))
        data[4:20] = dice.randbytes(8) + (bytes(8) if data[2] == 1 else dice.randbytes(8))
        machine.receive(bytes(data), ROUTER2, link.now)
        answers = sum(len(answer.data) for answer in machine.sent())
        assert answers <= len(data)
        sent, got = sent + answers, got + len(data)

    assert machine.session.state is was
    assert sent <= got
    assert sent <= 300 * 44  # that many answers at once, of 44 bytes


def test_restart_of_the_initiator_cannot_be_forged_from_elsewhere() -> None:
    """The cookie went to the address that the REQUEST named, so a CONFIRM must guess it."""
    link = one_sided(21, key=None)
    _, second = up_link(link)
    confirm = next(data for _, _, data in link.log if data[2] == MessageType.CONFIRM)
    before = nonces(second)

    for nonce in range(1000):
        forged = bytearray(confirm)
        forged[4:20] = nonce.to_bytes(8) + random.Random(nonce).randbytes(8)
        link.machines[1].receive(bytes(forged), ROUTER1, link.now)

    assert link.machines[1].sent() == []
    assert nonces(second) == before
    assert second.state is State.UP


@pytest.mark.parametrize(
    ("code", "nonce", "ahead"),
    [
        (RejectCode.NO_SUCH_SESSION, 1, 0),  # another nonce
        (RejectCode.NO_SUCH_SESSION, 0, 1),  # answers what was never sent
        (RejectCode.FAILED, 0, 0),  # nothing that can be said of a session that is up
    ],
)
def test_reject_that_does_not_fit_tears_nothing_down(code: int, nonce: int, ahead: int) -> None:
    link = one_sided(26, key=None)
    first, _ = up_link(link)
    sent = [data for _, source, data in link.log if source == ROUTER1][-1]
    header = read_header(sent)
    forged = Reject(
        CIRCUIT, 0, header.sender_nonce ^ nonce, header.counter + ahead, code, "go away"
    )

    link.machines[0].receive(encode(forged, None), ROUTER2, link.now)

    assert first.state is State.UP
    assert first.ignored == 1
    assert link.machines[0].sent() == []


def test_own_request_reflected_is_refused() -> None:
    link = one_sided(22, key=KEY)
    link.deaf = {ROUTER2}
    link.boot()
    machine = link.machines[0]

    machine.receive(link.log[0][2], ROUTER2, link.now)

    assert machine.sent() == []
    assert machine.refused == 1


def test_message_to_or_from_nonce_zero_is_of_no_session() -> None:
    link = one_sided(23, key=None)
    up_link(link)
    keepalive = decode(link.log[-1][2], None)
    machine = link.machines[0]
    machine.boot(link.now)
    [request] = machine.sent()
    nonce = read_header(request.data).sender_nonce

    for sender, receiver in ((0, 0), (0, nonce), (nonce, 0), (nonce, nonce)):
        forged = replace(keepalive, sender_nonce=sender, receiver_nonce=receiver, counter=2**63 - 1)
        machine.receive(encode(forged, None), ROUTER2, link.now)

    assert machine.sent() == []
    assert machine.session is not None
    # What has this end's own nonce for the sender's was reflected.
    assert (machine.session.ignored, machine.refused) == (2, 2)


def test_session_is_up_only_when_the_other_end_says_that_it_hears() -> None:
    dice = random.Random(0)
    session = Session(
        CIRCUIT,
        LOCAL2,
        remote=None,
        key=None,
        cookies=Cookies(dice),
        randomness=dice,
        policy=POLICY,
    )
    session.accept(CircuitRequested(ROUTER1, Confirm(CIRCUIT, 0x11, 0x22, 5, LOCAL1, OFFER)), 100.0)
    assert [datagram.data[27] for datagram in session.datagrams_to_send()] == [6]

    session.receive(Keepalive(CIRCUIT, 0x11, 0x22, 6, LOCAL1, 5, 0, None, False), ROUTER1, 100.1)
    assert session.next_event() == Agreed(AGREED2)
    assert session.next_event() is None
    session.receive(Keepalive(CIRCUIT, 0x11, 0x22, 7, LOCAL1, 6, 0, None, False), ROUTER1, 100.2)

    assert session.next_event() == Up()


def test_confirm_with_the_last_counter_does_not_overflow() -> None:
    dice = random.Random(0)
    cookies = Cookies(dice)
    session = Session(
        CIRCUIT, LOCAL2, remote=None, key=None, cookies=cookies, randomness=dice, policy=POLICY
    )
    confirm = Confirm(CIRCUIT, 0x11, 0x22, 2**63 - 1, LOCAL1, OFFER)

    session.accept(CircuitRequested(ROUTER1, confirm), 100.0)
    session.handle_timer(100.5)

    counters = [datagram.data[20:28].hex() for datagram in session.datagrams_to_send()]
    assert counters == ["8000000000000000", "8000000000000001"]


def test_request_from_port_zero_is_not_answered() -> None:
    link = one_sided(25, key=None)
    up_link(link)
    request = bytearray(next(data for _, _, data in link.log if data[2] == MessageType.REQUEST))
    request[4] ^= 1  # a stranger's nonce

    for at, machine in zip((ROUTER2, ROUTER1), link.machines, strict=True):
        machine.receive(bytes(request), Endpoint(at.address, 0), link.now)
        assert machine.sent() == []
    assert [machine.refused for machine in link.machines] == [1, 1]


ELSEWHERE_THERE = Endpoint(ROUTER1.address, 40000)  # another program on router 1, say


def test_message_without_a_key_from_another_port_of_the_remote_is_refused() -> None:
    link = one_sided(40, key=None)
    _, second = up_link(link)
    machine = link.machines[1]
    kinds = set()
    for _, source, data in list(link.log):
        if source == ROUTER1:
            fresh = bytearray(data)
            fresh[20] = 1  # a counter that is larger than all before
            kinds.add(data[2])
            machine.receive(bytes(fresh), ELSEWHERE_THERE, link.now)
    forged = encode(Close(CIRCUIT, *nonces_of(link.machines[0]), 2**60, 2), None)
    machine.receive(forged, ELSEWHERE_THERE, link.now)

    assert kinds == {MessageType.REQUEST, MessageType.CONFIRM, MessageType.KEEPALIVE}
    assert machine.refused == 4 + 1
    assert machine.sent() == []
    assert second.state is State.UP
    machine.receive(forged, ROUTER1, link.now)  # it was the port alone
    assert machine.session is None


def nonces_of(machine: Machine) -> tuple[int, int]:
    assert machine.session is not None
    link = machine.session._link
    assert link is not None
    return link.local_nonce, link.remote_nonce


def test_message_under_a_key_may_come_from_any_port_of_the_remote() -> None:
    link = one_sided(41)
    up_link(link)
    machine = link.machines[1]
    request = next(data for _, _, data in link.log if data[2] == MessageType.REQUEST)

    fresh = encode(replace(decode(request, KEY), sender_nonce=9), KEY)
    machine.receive(fresh, ELSEWHERE_THERE, link.now)

    assert [read_header(each.data).type for each in machine.sent()] == [MessageType.ACKNOWLEDGE]


def test_remote_behind_a_nat_may_come_from_another_port_when_its_session_is_over() -> None:
    link = one_sided(42, key=None)
    link.machines[0].local = replace(LOCAL1, own=Endpoint(ip_address("10.1.1.1"), 48621))
    _, second = up_link(link)
    machine = link.machines[1]
    request = bytearray(next(data for _, _, data in link.log if data[2] == MessageType.REQUEST))
    request[4] ^= 1

    machine.receive(bytes(request), ELSEWHERE_THERE, link.now)
    assert machine.sent() == []
    link.deaf = {ROUTER1, ROUTER2}
    link.run(link.now + 10)
    assert second.state is State.REQUESTING
    machine.sent()
    machine.receive(bytes(request), ELSEWHERE_THERE, link.now)

    assert [each.remote for each in machine.sent()] == [ELSEWHERE_THERE]


def test_machine_that_is_known_may_come_from_another_port() -> None:
    link = one_sided(43, key=None)
    link.machines[0].machine = bytes(16)
    up_link(link)
    moved = Endpoint(ROUTER1.address, 5000)

    link.machines[0].endpoint = moved
    link.machines[0].boot(link.now)
    link.collect(link.machines[0])
    link.run(link.now + 1)

    assert [machine.up for machine in link.machines] == [True, True]


def quiet_session() -> Session:
    dice = random.Random(0)
    return Session(
        CIRCUIT, LOCAL1, remote=ROUTER2, key=None, cookies=Cookies(dice), randomness=dice
    )


def test_table_has_every_message_that_a_state_can_be_sent() -> None:
    anywhere: set[AnyInput] = {MessageType.REQUEST, MessageType.CONFIRM}
    in_session = {MessageType.REJECT} | set(MessageType) - HANDSHAKE_TYPES
    accepted = {Input.CONFIRM_AGAIN}
    possible = {
        State.IDLE: anywhere,
        State.REQUESTING: anywhere | {MessageType.ACKNOWLEDGE, MessageType.REJECT},
        State.CONFIRMING: anywhere | in_session,
        State.REJECTED: anywhere,
        State.LINKED: anywhere | in_session | accepted | {MessageType.ACKNOWLEDGE},
        State.UP: anywhere | in_session | accepted | {MessageType.ACKNOWLEDGE},
        State.SUSPENDED: anywhere,
        State.CLOSING: anywhere | in_session | accepted,
        State.CLOSED: anywhere,
    }
    messages = set(MessageType) | accepted

    for state in State:
        found = {happened for where, happened in _TABLE if where is state} & messages
        assert found == possible[state], state


def test_pair_that_is_not_in_the_table_raises() -> None:
    session = quiet_session()
    session.start(0.0)

    with pytest.raises(RuntimeError, match="START in REQUESTING"):
        session.start(0.0)


def test_session_without_a_remote_waits_for_one() -> None:
    dice = random.Random(0)
    session = Session(
        CIRCUIT, LOCAL1, remote=None, key=None, cookies=Cookies(dice), randomness=dice
    )
    session.start(0.0)
    session.handle_timer(0.0)
    assert session.next_timer() is None
    assert session.datagrams_to_send() == []

    session.set_remotes([Candidate(ROUTER2)], 10.0)
    session.handle_timer(10.0)

    [request] = session.datagrams_to_send()
    assert request.remote == ROUTER2
    assert len(request.data) == 320


def described(data: bytes) -> Endpoint | None:
    """Return which address the sender of a message without a key says that it has."""
    message = decode(data, None)
    assert isinstance(message, Confirm | Keepalive | Request)
    return message.description.own


def test_session_stays_at_the_address_where_it_was_accepted() -> None:
    dice = random.Random(0)
    session = Session(
        CIRCUIT,
        LOCAL2,
        remote=None,
        key=None,
        cookies=Cookies(dice),
        randomness=dice,
        policy=POLICY,
    )
    confirm = Confirm(CIRCUIT, 0x11, 0x22, 5, LOCAL1, OFFER)

    session.accept(CircuitRequested(ROUTER1, confirm, HERE), 100.0)
    # What comes to another address is of the session, too, and does not move it.
    alive = Keepalive(CIRCUIT, 0x11, 0x22, 6, LOCAL1, 6, 0, None, False)
    session.receive(alive, ROUTER1, 100.1, ELSEWHERE)
    session.set_remotes([Candidate(ROUTER1, ELSEWHERE)], 100.2)
    session.handle_timer(101.2)

    sent = session.datagrams_to_send()
    assert len(sent) >= 3
    assert {datagram.local_address for datagram in sent} == {session.local_address} == {HERE}
    assert {described(each.data) for each in sent} == {Endpoint(HERE, 48621)}
    # LOCAL2 believes otherwise, which is no NAT.
    assert session.agreement == AGREED2


def test_request_is_answered_from_the_address_that_it_came_to() -> None:
    session = quiet_session()
    session.start(0.0)
    session.set_remotes([Candidate(ROUTER2, HERE)], 0.0)
    session.handle_timer(0.0)
    asking = Request(CIRCUIT, 0x22, 0, 1, LOCAL2, OFFER)
    session.receive(asking, ROUTER2, 0.1, ELSEWHERE)

    request, answer = session.datagrams_to_send()

    assert (request.local_address, answer.local_address) == (HERE, ELSEWHERE)
    assert described(request.data) == Endpoint(HERE, 48621)
    assert read_header(answer.data).type is MessageType.ACKNOWLEDGE


def test_initiator_that_leaves_its_address_to_the_kernel_learns_it_from_the_answer() -> None:
    session = quiet_session()
    session.start(0.0)
    session.handle_timer(0.0)
    [request] = session.datagrams_to_send()
    nonce = read_header(request.data).sender_nonce

    session.receive(Acknowledge(CIRCUIT, 0x33, nonce, 1), ROUTER2, 0.1, HERE)

    [confirm] = session.datagrams_to_send()
    assert (request.local_address, confirm.local_address) == (None, HERE)
    assert described(request.data) == LOCAL1.own
    assert described(confirm.data) == Endpoint(HERE, 48621)
