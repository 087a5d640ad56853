"""A session that another process goes on with: the remote must not notice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from simulated_link import KEY, OFFER, Link, Machine, nonces, one_sided

from vela.signaling.continuation import Continuation
from vela.signaling.events import Agreed, Down, ProbeAnswered, Up
from vela.signaling.inputs import State
from vela.signaling.session import Session
from vela.signaling.signer import Key

LONG_S = 60.0
"""Many keepalives."""


def up(key: Key | None = KEY) -> Link:
    link = one_sided(1, key=key)
    link.boot()
    link.run(link.now + 5.0)
    assert all(machine.up for machine in link.machines)
    return link


def handed_over(machine: Machine) -> dict[str, Any]:
    """Return what another process is told, as it is told it."""
    assert machine.session is not None
    said = machine.session.continuation()
    assert said is not None
    document: dict[str, Any] = json.loads(json.dumps(said.format()))
    return document


def go_on(machine: Machine, document: dict[str, Any], now: float) -> Session:
    """Let another process go on. What the one before still had to send is lost."""
    session = machine._session(None)
    session.resume(Continuation.parse(document), now)
    machine.session = session
    machine.handle_timer(now)
    return session


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("end", [0, 1])
def test_remote_does_not_notice_that_another_process_goes_on(end: int, key: Key | None) -> None:
    link = up(key)
    one, other = link.machines[end], link.machines[1 - end]
    assert one.session is not None
    before = nonces(one.session), one.session.agreement
    began, refused = link.now, other.refused

    go_on(one, handed_over(one), link.now)
    link.run(link.now + LONG_S)

    for machine in link.machines:
        assert machine.session is not None
        assert machine.session.state is State.UP
        assert (nonces(machine.session)) == before[0]
        assert machine.since(began, (Up, Down)) == []
    assert one.session.agreement == before[1]
    assert one.since(began, Agreed) == [Agreed(before[1])] if before[1] else False
    assert other.refused == refused
    # It is heard, too: the probe is the first message that waits for an answer.
    assert one.session.probe(600)
    link.collect(one)
    link.run(link.now + 1.0)
    assert one.since(began, ProbeAnswered) == [ProbeAnswered(600)]


@pytest.mark.parametrize("end", [0, 1])
def test_session_that_the_remote_may_have_given_up_does_not_go_on(end: int) -> None:
    """After 3.5 keepalives; the remote's are as many after the one that was heard last."""
    link = up()
    one = link.machines[end]
    assert one.session is not None
    assert one.session.agreement is not None
    assert one.session.last_heard_at is not None
    lost_at = one.session.last_heard_at + 3.5 * one.session.agreement.keepalive_s
    document = handed_over(one)

    go_on(one, document, lost_at)
    with pytest.raises(ValueError, match="the remote was last heard"):
        go_on(one, document, lost_at + 0.01)


@pytest.mark.parametrize("end", [0, 1])
def test_process_that_hands_over_can_go_on_itself(end: int) -> None:
    link = up()
    began = link.now

    handed_over(link.machines[end])
    link.run(link.now + LONG_S)

    assert all(machine.up for machine in link.machines)
    assert all(machine.since(began, Down) == [] for machine in link.machines)


def test_replayed_message_of_before_is_none_for_the_process_that_goes_on() -> None:
    link = up()
    one = link.machines[0]
    heard = [data for _, source, data in link.log if source == link.machines[1].endpoint]
    session = go_on(one, handed_over(one), link.now)
    ignored = session.ignored

    session.receive_datagram(heard[-1], link.machines[1].endpoint, link.now)

    assert session.ignored == ignored + 1


def test_loss_of_the_remote_is_noticed_in_the_usual_time() -> None:
    link = up()
    one, other = link.machines
    go_on(one, handed_over(one), link.now)
    began = link.now

    link.deaf = {one.endpoint, other.endpoint}
    link.run(link.now + LONG_S)

    (event,) = one.since(began, Down)
    assert isinstance(event, Down)
    assert "keepalives missed" in event.reason


def test_session_that_is_not_up_is_not_handed_over() -> None:
    link = one_sided(1)
    link.boot()

    assert link.machines[0].session is not None
    assert link.machines[0].session.continuation() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("description", "00"), ("description", "no hexadecimal"), ("remote_address", "nowhere")],
)
def test_what_cannot_be_read_is_a_value_error(key: str, value: str) -> None:
    link = up()
    document = handed_over(link.machines[0])

    with pytest.raises(ValueError, match=r"cannot be read|non-hexadecimal|nowhere"):
        go_on(link.machines[0], {**document, key: value}, link.now)


def test_document_of_another_shape_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Continuation.parse({"nonce": 1})


def test_document_says_no_key() -> None:
    document = json.dumps(handed_over(up().machines[0]))

    assert KEY.key.hex() not in document


@pytest.mark.parametrize("key", [None, KEY])
def test_session_that_another_one_follows_is_handed_over_before_or_after_that(
    key: Key | None,
) -> None:
    """Frames go on meanwhile, and no other process could."""
    link = up(key)
    one, other = link.machines
    assert one.session is not None
    assert other.session is not None
    before, began = nonces(one.session), link.now

    one.session.set_offer(replace(OFFER, bridge="br-lan"), link.now)
    link.collect(one)
    seen: list[set[bool]] = [set(), set()]
    while link.now < began + 5.0:
        link.run(link.now + 0.0005)
        for machine, states in zip(link.machines, seen, strict=True):
            assert machine.session is not None
            assert machine.session.changes_over or machine.session.continuation() is not None
            states.add(machine.session.changes_over)
        if nonces(one.session) != nonces(other.session):
            # The other end has the new one already, and would refuse the present one.
            assert one.session.changes_over

    assert nonces(one.session) != before
    assert all(machine.since(began, Down) == [] for machine in link.machines)
    assert seen == [{False, True}, {False, True}]
    assert not any(machine.session.changes_over for machine in link.machines if machine.session)
