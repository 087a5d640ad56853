"""Whether the primary answers again, while another remote carries the circuit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vela.address import Endpoint, IPAddress
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import UnderlayPath
from vela.reasons import NO_REASON, Cause, Reason
from vela.signaling.enquiry import Enquiry
from vela.signaling.events import Datagram
from vela.signaling.messages import Header

from ..control_channel import ControlChannel, Expected
from ..runtime.loop import Callback, EventLoop
from .remote import Listener, RemoteSearch

ASK_INTERVAL_S = 3.0


Asking = Callable[[Enquiry, tuple[UnderlayPath, ...]], list[Datagram]]
"""Returns REQUESTs that ask by these paths."""


class SearchMaker(Protocol):
    """Begins nothing yet: whereabouts.Whereabouts."""

    def __call__(self, listener: Listener) -> RemoteSearch: ...


class PrimaryWatch:
    """Asks the primary at intervals, until stop()."""

    def __init__(
        self,
        circuit_id: int,
        loop: EventLoop,
        channel: ControlChannel,
        choice: UnderlayChoice,
        search: SearchMaker,
        ask: Asking,
        on_answer: Callback,
        on_silence: Callable[[Reason], None],
    ) -> None:
        """on_answer is called when it answers; on_silence, with the reason, when it does not."""
        self._circuit_id = circuit_id
        self._loop = loop
        self._channel = channel
        self._choice = choice
        self._ask = ask
        self._on_answer = on_answer
        self._on_silence = on_silence
        self._enquiry = Enquiry(circuit_id, channel.cookies.nonces)
        self._paths: tuple[UnderlayPath, ...] = ()
        self._obstacle = NO_REASON
        self._answered = True  # nothing was asked yet
        channel.add(circuit_id, self)
        self._search = search(self)
        self._search.resolve()
        self._timer = loop.call_later(ASK_INTERVAL_S, self._on_timer)

    def stop(self) -> None:
        self._timer.cancel()
        self._search.stop()
        self._channel.remove(self._circuit_id, self)

    # From the search for the primary.

    def on_unresolved(self, reason: Reason) -> None:
        # The last addresses stay while the name does not resolve.
        if not self._paths:
            self._obstacle = reason

    def on_no_route(self, reason: Reason) -> None:
        self._paths, self._obstacle = (), reason

    def on_routed(self, paths: tuple[UnderlayPath, ...]) -> None:
        begins = not self._paths
        self._paths, self._obstacle = paths, NO_REASON
        if begins:
            self._ask_again(0.0)

    # From the control channel.

    def converses_with(self, address: IPAddress, header: Header) -> bool:
        # What else the primary says is not for this.
        return header.receiver_nonce == self._enquiry.nonce

    def receive_control(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        if self._enquiry.is_answered_by(data, source) and not self._answered:
            self._answered = True
            self._on_answer()

    def _ask_again(self, delay_s: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._ask_again(ASK_INTERVAL_S)
        if self._obstacle or not self._answered:
            self._on_silence(self._obstacle or Cause.PRIMARY_SILENT.say())
        self._answered = not self._paths
        if self._paths:
            addresses = tuple(dict.fromkeys(path.endpoint.address for path in self._paths))
            self._channel.expect(self, Expected(addresses, (self._enquiry.nonce,)))
            self._channel.send(self._ask(self._enquiry, self._paths), self._choice)
