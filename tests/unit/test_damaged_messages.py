"""What a responder and a session do with a message that was cut or changed on the way: nothing.

Each valid message is met where it is due, so that the intact one would be taken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import pytest
from simulated_link import (
    KEY,
    LOCAL1,
    LOCAL2,
    OFFER,
    POLICY,
    ROUTER1,
    ROUTER2,
    Link,
    Machine,
)
from thorough import first_of

from vela.address import Endpoint
from vela.signaling.codec import read_header
from vela.signaling.inputs import State
from vela.signaling.messages import CloseReason, MessageType, Offer
from vela.signaling.signer import Key

PROBED = 200
PARTS = 8
# Where the intact message is answered at once.
ANSWERED = {
    "REQUEST in the responder",
    "CONFIRM in the responder",
    "ACKNOWLEDGE in REQUESTING",
    "PROBE in UP",
}


@dataclass(frozen=True, slots=True)
class Meeting:
    """A message on its arrival, and the machine that it is for; copy that before it takes it."""

    machine: Machine
    data: bytes
    source: Endpoint
    now: float

    def reaches(self, machine: Machine, data: bytes) -> None:
        """Let a machine receive these bytes as if they were the message."""
        # Not as a recorder does it, which looks into them.
        Machine.receive(machine, data, self.source, self.now)

    @property
    def type(self) -> MessageType:
        return read_header(self.data).type

    @property
    def state(self) -> State | None:
        return self.machine.session.state if self.machine.session else None

    def __str__(self) -> str:
        return f"{self.type.name} in {self.state.name if self.state else 'the responder'}"


class Recorder(Machine):
    """Keeps a copy of itself before the first message of each type in each state."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.meetings: dict[tuple[MessageType, State | None], Meeting] = {}

    def receive(self, data: bytes, source: Endpoint, now: float) -> None:
        # What is due by now is not an answer.
        self.handle_timer(now)
        pending = self.sent()
        meetings, self.meetings = self.meetings, {}
        met = Meeting(deepcopy(self), data, source, now)
        self.meetings = meetings
        self.meetings.setdefault((met.type, met.state), met)
        super().receive(data, source, now)
        self.farewell += pending


def machines(
    key: Key | None, randomness: random.Random, *, offer2: Offer | None, accept: bool
) -> tuple[Recorder, Recorder]:
    policy = replace(POLICY, accept=accept)
    return (
        Recorder(ROUTER1, ROUTER2, LOCAL1, randomness, key=key, offer=OFFER),
        Recorder(
            ROUTER2,
            ROUTER1,
            LOCAL2,
            randomness,
            key=key,
            policy=None if offer2 else policy,
            offer=offer2,
        ),
    )


@cache
def meetings(key: Key | None) -> dict[str, Meeting]:
    """Return where messages of all types meet the state that they are for."""
    found: dict[str, Meeting] = {}
    for offer2, accept in ((None, True), (Offer(), True), (None, False)):
        dice = random.Random(1)
        pair = machines(key, dice, offer2=offer2, accept=accept)
        link = Link(pair, dice)
        link.boot()
        link.run(link.now + 3)
        first = pair[0].session
        assert first is not None
        if first.state is State.UP:
            first.probe(PROBED)
            link.collect(pair[0])
            link.run(link.now + 1)
            # One begins anew, and is asked by the other, which does not know.
            pair[1].boot(link.now)
            link.collect(pair[1])
            link.run(link.now + 3)
            first.close(CloseReason.DELETED, link.now)
            link.collect(pair[0])
            link.run(link.now + 1)
        for machine in pair:
            found |= {str(each): each for each in machine.meetings.values()}
    return found


def damaged(data: bytes, part: int = 0, parts: int = 1) -> Iterator[bytes]:
    """Yield it cut at each byte, with each byte changed, and with one byte too many.

    Of parts, only the bytes of one part.
    """
    for position in range(part, len(data), parts):
        yield data[:position]
        for flip in (0xFF, 0x01, 0x80):
            yield data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
    yield data + b"\0"


def test_messages_of_all_types_are_met() -> None:
    for key in (None, KEY):
        assert {each.type for each in meetings(key).values()} == set(MessageType)
        assert meetings(key).keys() >= ANSWERED


@pytest.mark.parametrize("name", sorted(meetings(KEY)))
def test_message_that_is_not_intact_changes_nothing_where_there_is_a_key(name: str) -> None:
    met = meetings(KEY)[name]
    machine, undisturbed = deepcopy(met.machine), deepcopy(met.machine)

    for data in damaged(met.data):
        refused, events = machine.refused, len(machine.events)
        met.reaches(machine, data)

        assert machine.refused == refused + 1, data.hex()
        assert machine.sent() == [], data.hex()
        assert len(machine.events) == events, data.hex()

    # And it takes the intact one as one that has seen none of these.
    for each in (machine, undisturbed):
        met.reaches(each, met.data)
    answers = machine.sent()
    assert answers == undisturbed.sent()
    assert answers or name not in ANSWERED
    assert machine.events == undisturbed.events
    assert machine.refused == undisturbed.refused + len(list(damaged(met.data)))
    assert machine.next_timer() == undisturbed.next_timer()


@pytest.mark.parametrize("name", sorted(meetings(None)))
@pytest.mark.parametrize("part", first_of(range(PARTS), 1))
def test_message_that_is_not_intact_breaks_nothing_where_there_is_no_key(
    name: str, part: int
) -> None:
    """What is left of it may be valid. Nothing but the protocol's error is raised, now or later."""
    met = meetings(None)[name]

    for data in damaged(met.data, part, PARTS):
        machine = deepcopy(met.machine)
        try:
            met.reaches(machine, data)
            answers = machine.sent()
            machine.handle_timer(met.now + 1)
            machine.handle_timer(met.now + 60)
        except Exception as err:
            err.add_note(f"{name}: {data.hex()}")
            raise
        if met.state is None:
            assert sum(len(each.data) for each in answers) <= len(data), data.hex()
