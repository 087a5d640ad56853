"""vela.signaling.caller: who may be the remote of a circuit that names none, and where it is."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from simulated_link import CIRCUIT, LOCAL1, LOCAL2, OFFER

from vela.address import Endpoint, IPAddress
from vela.signaling.admission import TAKE_OVER_AFTER_S
from vela.signaling.caller import (
    GONE_AFTER_S,
    LARGEST_QUESTION,
    MOVE_BURST,
    OTHER_CALLER_TEXT,
    SMALLEST_QUESTION,
    STILL_THERE_TEXT,
    Caller,
    Situation,
)
from vela.signaling.link import PADDED_SIZE
from vela.signaling.messages import Confirm, Description

HERE, THERE = Endpoint(ip_address("192.0.2.1"), 40001), Endpoint(ip_address("192.0.2.1"), 40002)
ONE, OTHER = b"1" * 16, b"2" * 16
NOT_ASKED = Situation(None, None, proves_itself=False)


def confirm(machine: bytes | None) -> Confirm:
    return Confirm(CIRCUIT, 1, 2, 2, LOCAL2, OFFER, False, PADDED_SIZE, machine=machine)


def make() -> Caller:
    def describe(source: Endpoint, local_address: IPAddress | None) -> Description:
        return LOCAL1

    return Caller(describe, random.Random(1))


def in_session(heard_at: float, *, proves_itself: bool = False) -> Situation:
    return Situation(HERE, heard_at, proves_itself=proves_itself)


def called(first: bytes | None = ONE) -> Caller:
    """Return a caller whose machine is in session from HERE."""
    caller = make()
    caller.admit(confirm(first))
    return caller


def test_first_one_that_calls_is_welcome() -> None:
    assert make().obstacle(confirm(ONE), HERE, NOT_ASKED, 0.0) == ""


def test_same_machine_from_where_it_is_begins_anew_at_once() -> None:
    assert called().obstacle(confirm(ONE), HERE, in_session(9.9), 10.0) == ""


@pytest.mark.parametrize("machine", [OTHER, None])
@pytest.mark.parametrize("source", [HERE, THERE])
def test_other_machine_is_refused_until_the_first_was_silent_for_long(
    machine: bytes | None, source: Endpoint
) -> None:
    caller = called()
    lost = Situation(None, 10.0, proves_itself=False)

    refused = OTHER_CALLER_TEXT
    assert caller.obstacle(confirm(machine), source, in_session(10.0), 10.0) == refused
    late = 10.0 + TAKE_OVER_AFTER_S
    assert caller.obstacle(confirm(machine), source, lost, late - 0.1) == refused
    assert caller.obstacle(confirm(machine), source, lost, late) == ""


def test_other_machine_is_welcome_after_a_goodbye_and_not_after_the_next_session() -> None:
    caller = called()
    caller.leave()
    assert caller.obstacle(confirm(OTHER), THERE, in_session(10.0), 10.0) == ""

    caller.admit(confirm(OTHER))

    answer = caller.obstacle(confirm(ONE), HERE, in_session(10.0), 10.0)
    assert answer == OTHER_CALLER_TEXT


@pytest.mark.parametrize("machine", [ONE, None])
def test_same_machine_from_elsewhere_waits_for_the_one_that_is_there(
    machine: bytes | None,
) -> None:
    """A machine that says no token, as older versions do, may be the same."""
    caller, known = called(machine), in_session(9.0)

    assert caller.obstacle(confirm(machine), THERE, known, 10.0) is None
    assert caller.obstacle(confirm(machine), THERE, known, 10.3) is None
    assert caller.obstacle(confirm(machine), THERE, known, 10.0 + GONE_AFTER_S) == ""


def test_one_that_is_still_heard_keeps_the_circuit() -> None:
    caller = called()
    assert caller.obstacle(confirm(ONE), THERE, in_session(9.0), 10.0) is None

    answer = caller.obstacle(confirm(ONE), THERE, in_session(10.1), 10.3)

    assert answer == STILL_THERE_TEXT
    # What was asked long ago does not count.
    assert caller.obstacle(confirm(ONE), THERE, in_session(10.1), 20.0) is None


def test_machine_that_proves_its_identity_has_the_circuit_from_wherever_it_calls() -> None:
    known = in_session(9.9, proves_itself=True)

    assert called().obstacle(confirm(OTHER), THERE, known, 10.0) == ""


def test_only_the_answer_from_there_and_of_that_size_moves_the_remote() -> None:
    caller = called()
    size = caller.question(THERE, 0.0)
    assert size is not None
    assert SMALLEST_QUESTION <= size <= LARGEST_QUESTION
    assert caller.question(THERE, 0.1) == size

    assert not caller.is_answered(HERE, size)
    assert not caller.is_answered(THERE, size + 1)
    assert caller.is_answered(THERE, size)

    caller.forget_questions()
    assert not caller.is_answered(THERE, size)


def test_messages_from_many_places_cause_few_questions() -> None:
    caller = called()
    places = [Endpoint(HERE.address, port) for port in range(1000)]

    assert sum(caller.question(each, 0.0) is not None for each in places) == MOVE_BURST
    # And each of them replaces the one before.
    assert caller.question(THERE, 1.0) is not None
    assert not caller.is_answered(places[0], SMALLEST_QUESTION)
