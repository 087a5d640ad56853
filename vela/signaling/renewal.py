"""A session that is sought beside the one that there is, which goes on meanwhile. Pure.

docs/protocol.md, sections 4.5 and 4.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from vela.reasons import Cause
from vela.signaling.link import Link
from vela.signaling.messages import Reject, RejectCode

# For a session that seems to be lost: bounded, as nothing else ends it but missed keepalives.
LOST_REPEAT_S = 0.5
LOST_TRIES = 10


class Purpose(Enum):
    """Why another session is sought; the value is what the operator reads when it is there."""

    OUTDATED = Cause.SETTINGS_OUTDATED
    CHANGED = Cause.SETTINGS_CHANGED
    LOST = Cause.SESSION_LOST
    KEYS = Cause.KEY_HOLDER_LOST


# These are sought without haste, for as long as it takes; the others as soon as may be.
PATIENT = frozenset({Purpose.OUTDATED, Purpose.CHANGED})
# Where both ends have the other session, frames go on: nobody has to notice.
SEAMLESS = frozenset({Purpose.CHANGED, Purpose.KEYS})


@dataclass(slots=True)
class Renewal:
    """One attempt: a REQUEST, then a CONFIRM."""

    link: Link
    purpose: Purpose
    tries: int = 0
    """How many REQUESTs were sent."""
    given_up_at: float = math.inf
    """When the CONFIRM is given up; infinite: it was not sent yet."""

    @property
    def confirming(self) -> bool:
        return self.given_up_at < math.inf

    @property
    def is_refuted_by_the_session(self) -> bool:
        """Whether a KEEPALIVE of the present session shows that no other one is needed."""
        return self.purpose is Purpose.LOST and not self.confirming

    def is_refused_by(self, message: Reject) -> bool:
        return (
            self.confirming
            and message.code != RejectCode.NO_SUCH_SESSION
            and self.link.is_refused_by(message)
        )
