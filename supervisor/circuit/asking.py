"""What a circuit that has no session has sent to its remote, and what came back."""

from __future__ import annotations

from vela.reasons import NO_REASON, Reason
from vela.signaling.session import Session

from ..control_channel import ControlChannel
from ..status import AskingStatus, UndeliveredStatus
from ..undelivered import Undelivered


class Asking:
    """Of one circuit with signalling."""

    def __init__(self, channel: ControlChannel) -> None:
        self._channel = channel

    def reason(self, session: Session) -> Reason:
        """Return why requests do not arrive; empty: nobody says so."""
        undelivered = self._undelivered(session)
        return NO_REASON if undelivered is None else undelivered.reason

    def status(self, session: Session, now: float) -> AskingStatus | None:
        """None: nothing was sent since there was a session, or there is one."""
        asked = session.asked
        if asked is None:
            return None
        undelivered = self._undelivered(session)
        return AskingStatus(
            remotes=tuple(map(str, asked.remotes)),
            requests=asked.requests,
            since_seconds=round(now - asked.began_at, 3),
            last_seconds=round(now - asked.sent_at, 3),
            undelivered=None
            if undelivered is None
            else UndeliveredStatus(
                what=undelivered.what,
                source=None if undelivered.source is None else str(undelivered.source),
                last_seconds=round(now - undelivered.at, 3),
            ),
        )

    def _undelivered(self, session: Session) -> Undelivered | None:
        asked = session.asked
        if asked is None:
            return None
        return self._channel.undelivered(asked.remotes, asked.began_at)
