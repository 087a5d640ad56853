"""A session at work: sends its messages, keeps its timer, hands its events on."""

from __future__ import annotations

from collections.abc import Callable

from vela.address import Endpoint, IPAddress
from vela.linux.choice import ANY_UNDERLAY, UnderlayChoice
from vela.signaling.events import Event
from vela.signaling.inputs import State
from vela.signaling.messages import CloseReason, Header
from vela.signaling.session import Session

from ..control_channel import ControlChannel, Expected, Hears
from ..runtime.loop import SLACK_S, EventLoop, Timer

# What is due later than this is a matter of keepalives, to which some slack does not matter.
FAR_S = 0.5
# A session whose timer fails, which is a bug, is tried again this much later.
AFTER_FAILURE_S = 1.0

EventHandler = Callable[[Event], None]


class SignalingChannel:
    """What a circuit and its remote say to each other: one session, from begin to goodbye."""

    def __init__(
        self,
        session: Session,
        loop: EventLoop,
        control_channel: ControlChannel,
        on_event: EventHandler,
        choice: UnderlayChoice = ANY_UNDERLAY,
    ) -> None:
        self._choice = choice
        self.session = session
        self._loop = loop
        self._control_channel = control_channel
        self._on_event = on_event
        self._sources: tuple[IPAddress, ...] = ()
        self._left = self._ended = self._held = self._takes_calls = False
        self._pumping = self._pump_again = False
        self._alarm: Timer | None = None
        # What the control channel was last told to expect, before it is put into its words.
        self._expected: object = None
        self._alarm_at = self._not_before = 0.0
        control_channel.add(session.circuit_id, self)

    def expect_from(self, sources: tuple[IPAddress, ...]) -> None:
        """Take messages from these addresses, too: the remote's others."""
        self._sources = sources
        self._expect()

    def take_calls(self, hears: Hears | None) -> None:
        """Let anybody begin a session who has the key, as the remote is any; None: no longer.

        hears: whether from there, at that address of this machine.
        """
        if self._left or self._ended:
            hears = None
        self._takes_calls = hears is not None
        self._control_channel.take_calls(self, hears)

    def converses_with(self, address: IPAddress, header: Header) -> bool:
        remote = self.session.remote
        if (remote is not None and remote.address == address) or address in self._sources:
            return True
        # It may have moved: who knows the nonce has heard of the session.
        return self._takes_calls and header.receiver_nonce in self.session.local_nonces

    def receive_control(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        try:
            self.session.receive_datagram(data, source, self._loop.now(), local_address)
        finally:
            self.pump()

    def leave(self, reason: CloseReason) -> None:
        """Say goodbye. It is repeated until it was heard, or 1 s is over; no event follows."""
        self._left, self._held = True, False
        self.take_calls(None)
        self.session.close(reason, self._loop.now())
        self.pump()

    def hold(self) -> None:
        """Say nothing, and do nothing, until release()."""
        self._held = True
        self._cancel_alarm()

    def release(self) -> None:
        self._held = False
        self.pump()

    def forget(self) -> None:
        """End without a word."""
        if not self._ended:
            self._ended = True
            self._control_channel.remove(self.session.circuit_id, self)
            self._cancel_alarm()

    def pump(self) -> None:
        """Do what the session wants done; to be called after each call of the session.

        A call from within an event handler takes effect after the handler returns.
        """
        self._pump_again = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._pump_again:
                self._pump_again = False
                self._do_what_is_due()
        finally:
            self._pumping = False
            self._set_alarm()
            self._expect()

    def _expect(self) -> None:
        if self._ended:
            return
        remote, nonces = self.session.remote, self.session.local_nonces
        known = remote, self._sources, nonces
        if known == self._expected:
            return
        self._expected = known
        addresses = self._sources if remote is None else (remote.address, *self._sources)
        self._control_channel.expect(self, Expected(tuple(dict.fromkeys(addresses)), nonces))

    def _do_what_is_due(self) -> None:
        if self._ended or self._held:
            return
        # Before anything is said: an event can lead to suspension.
        while (event := self.session.next_event()) is not None:
            if not self._left:
                self._on_event(event)
            if self._ended:
                return
        self._control_channel.send(self.session.datagrams_to_send(), self._choice)
        if self._left and self.session.state is State.CLOSED:
            self.forget()

    def _set_alarm(self) -> None:
        at = None if self._ended or self._held else self.session.next_timer()
        if at is None:
            self._cancel_alarm()
            return
        now = self._loop.now()
        at = max(at, now, self._not_before)
        # One that comes too early finds nothing to do, and is set again: cheaper than
        # setting it anew at each of a flood of datagrams.
        if self._alarm is None or self._alarm_at > at:
            self._cancel_alarm()
            slack_s = SLACK_S if at - now > FAR_S else 0.0
            self._alarm, self._alarm_at = self._loop.call_at(at, self._on_alarm, slack_s), at

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _on_alarm(self) -> None:
        self._alarm = None
        try:
            self.session.handle_timer(self._loop.now())
        except Exception:
            self._not_before = self._loop.now() + AFTER_FAILURE_S
            self._set_alarm()
            raise
        self.pump()
