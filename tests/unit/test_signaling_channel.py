"""vela.supervisor.circuit.signaling: the clock of a session, under floods and with bugs in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, TypeVar, cast

import pytest
from simulated_link import CIRCUIT, LOCAL1, OFFER, ROUTER2

from vela.errors import RemoteProtocolError
from vela.signaling.cookie import Cookies
from vela.signaling.events import Event, ResolveWanted
from vela.signaling.session import Session
from vela.supervisor.circuit import signaling as conversation_module
from vela.supervisor.circuit.signaling import SignalingChannel
from vela.supervisor.control_channel import ControlChannel
from vela.supervisor.demux import Demux
from vela.supervisor.runtime.loop import Callback, EventLoop, Timer
from vela.supervisor.runtime.names import Names

S = TypeVar("S", bound=Session)

JUNK = bytes(40)


class CountingLoop(EventLoop):
    """Knows what was asked of it, and how long it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.delays_s: list[float] = []
        # All that is sent is lost, and nothing is resolved.
        self.demux = Demux(self, ())
        self.control_channel = ControlChannel(self, self.demux, cast(Names, None), 48621)

    def call_at(self, when: float, callback: Callback, slack_s: float = 0.0) -> Timer:
        self.delays_s.append(when - self.now())
        return super().call_at(when, callback)


@pytest.fixture
def loop() -> Iterator[CountingLoop]:
    made = CountingLoop()
    yield made
    made.demux.close()
    made.close()


def converse(loop: CountingLoop, session: Session, events: list[Event]) -> SignalingChannel:
    return SignalingChannel(session, loop, loop.control_channel, events.append)


class Failing(Session):
    """With a bug that shows when something is due, at once."""

    failures = 0

    def next_timer(self) -> float | None:
        return 0.0

    def handle_timer(self, now: float) -> None:
        self.failures += 1
        raise ZeroDivisionError


class Scheduled(Session):
    """With a time of the test's; it may fail to say what happened."""

    fails = False
    due: float | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.handled: list[float] = []
        self.events: list[Event] = []

    def next_timer(self) -> float | None:
        return self.due

    def handle_timer(self, now: float) -> None:
        if self.due is not None and self.due <= now:
            self.handled.append(now)
            self.due = None

    def next_event(self) -> Event | None:
        if self.events:
            return self.events.pop(0)
        if self.fails:
            raise ZeroDivisionError
        return super().next_event()


def make(kind: type[S]) -> S:
    randomness = random.Random(1)
    return kind(
        CIRCUIT,
        LOCAL1,
        remote=ROUTER2,
        key=None,
        cookies=Cookies(randomness),
        randomness=randomness,
        offer=OFFER,
    )


def test_flood_from_the_remotes_address_sets_no_timer(loop: CountingLoop) -> None:
    signaling = converse(loop, make(Session), [])
    signaling.session.start(loop.now())
    signaling.pump()
    for waiting_s in (0.0, 0.05):  # for its first request, and then for the second
        loop.call_later(waiting_s, loop.stop)
        loop.run()
        asked = len(loop.delays_s)

        for _ in range(1000):
            with pytest.raises(RemoteProtocolError):
                signaling.receive_control(JUNK, ROUTER2, ip_address("192.0.2.1"))

        assert len(loop.delays_s) == asked


def test_alarm_follows_a_time_that_moves_and_fires_once_for_it(loop: CountingLoop) -> None:
    session = make(Scheduled)
    signaling = converse(loop, session, [])
    start = loop.now()
    for session.due in (start + 10.0, start + 0.02, start + 0.05):
        signaling.pump()
    loop.call_later(0.2, loop.stop)

    loop.run()

    assert len(session.handled) == 1
    assert session.handled[0] >= start + 0.05


def test_session_that_fails_keeps_its_clock_and_does_not_race(
    loop: CountingLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than any machine stands still.
    monkeypatch.setattr(conversation_module, "AFTER_FAILURE_S", 100.0)
    session = make(Failing)
    signaling = converse(loop, session, [])
    session.start(loop.now())
    signaling.pump()
    for delay_s in (0.05, 0.1, 0.2):
        loop.call_later(delay_s, signaling.pump)
    loop.call_later(0.2, loop.stop)

    loop.run()

    assert session.failures == 1
    assert loop.delays_s[-1] == pytest.approx(100.0, abs=50.0)


def test_event_whose_handler_fails_leaves_the_conversation_its_clock(loop: CountingLoop) -> None:
    session = make(Scheduled)
    signaling = converse(loop, session, [])
    session.due = loop.now() + 100.0
    session.fails = True

    with pytest.raises(ZeroDivisionError):
        signaling.pump()

    assert loop.delays_s == [pytest.approx(100.0, abs=50.0)]


def test_event_that_follows_from_another_is_handled_after_it(loop: CountingLoop) -> None:
    session = make(Scheduled)
    heard: list[str] = []

    def on_event(event: Event) -> None:
        heard.append("begins")
        signaling.pump()
        heard.append("ends")

    signaling = SignalingChannel(session, loop, loop.control_channel, on_event)
    session.events = [ResolveWanted(), ResolveWanted()]
    signaling.pump()

    assert heard == ["begins", "ends"] * 2
