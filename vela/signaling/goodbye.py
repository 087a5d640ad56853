"""The end of a circuit's session by a CLOSE, from either end. Pure.

docs/protocol.md, section 4.4. What happens in the state CLOSING is here.
"""

from __future__ import annotations

from vela.reasons import Cause
from vela.signaling.acceptor import Acceptor
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Closed
from vela.signaling.inputs import Input, Received, State
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Close, CloseReason
from vela.signaling.seeker import Seeker
from vela.signaling.variables import SessionVariables

CLOSE_REPEAT_S = 0.2
CLOSE_TIMEOUT_S = 1.0
RESTART_PAUSE_S = 1.0  # a remote that stops is not asked before


class Goodbye:
    """Of one circuit, from session to session."""

    def __init__(
        self,
        variables: SessionVariables,
        local: LocalEnd,
        seeker: Seeker,
        acceptor: Acceptor,
        events: EventQueue,
    ) -> None:
        """Of the variables it writes the state, the link and the timers."""
        self.reason = CloseReason.STOPPING
        """Why this end says it."""
        self._vars = variables
        self._local = local
        self._seeker = seeker
        self._acceptor = acceptor
        self._events = events

    def begin(self, received: Received) -> None:
        """Say it, and wait for the remote's."""
        self._vars.state = State.CLOSING
        self._vars.drop_renewal()
        self._vars.due.pop(Input.KEYS_DUE, None)
        self._vars.due[Input.EXPIRED] = received.now + CLOSE_TIMEOUT_S
        self.say(received)

    def say(self, received: Received) -> None:
        """Say it, perhaps again."""
        link = self._vars.the_link()
        self._local.send(link.close(self.reason), link)
        self._vars.due[Input.SEND_DUE] = received.now + CLOSE_REPEAT_S

    def finish(self, received: Received) -> None:
        """End the session, as the remote has heard it, or does not answer, or there is none."""
        self._end(by_remote=False)

    def answer(self, received: Received) -> None:
        """Answer the remote's with the same, once, so that it need not be repeated."""
        message, link = received.message_of(Close), self._vars.the_link()
        deleted = message.reason == CloseReason.DELETED
        self._local.send(link.close(CloseReason.DELETED if deleted else CloseReason.STOPPING), link)
        self._acceptor.leave(deleted=deleted)
        if deleted:
            self._end(by_remote=True)
            return
        self._events.down(Cause.REMOTE_STOPPING.say())
        self._seeker.begin(received)
        self._vars.due[Input.SEND_DUE] = received.now + RESTART_PAUSE_S

    def _end(self, *, by_remote: bool) -> None:
        self._vars.drop()
        self._events.note(up=False)
        self._vars.state = State.CLOSED
        self._events.put(Closed(by_remote))
