"""What a circuit answers to who asks for a session, and whose CONFIRM counts. Pure.

docs/protocol.md, section 4.2.
"""

from __future__ import annotations

import random

from vela.signaling.cookie import Cookies
from vela.signaling.inputs import Received
from vela.signaling.limiter import TokenBucket
from vela.signaling.messages import Acknowledge, Confirm, Request

# Answers to REQUESTs. An honest remote sends one each second, but without a key anybody can forge
# them: fewer answers would let a few hundred forgeries a second keep a remote out.
ANSWER_RATE, ANSWER_BURST = 300.0, 300.0


class Answers:
    """The cookies of one circuit. Nothing is stored before a CONFIRM brings one back."""

    def __init__(self, cookies: Cookies, randomness: random.Random) -> None:
        self._cookies = cookies
        self._randomness = randomness
        # A part of every cookie.
        self._binding = randomness.getrandbits(64)
        self._bucket = TokenBucket(ANSWER_RATE, ANSWER_BURST)

    def take(self, now: float) -> bool:
        """Tell whether to answer one more."""
        return self._bucket.take(now)

    def acknowledge(self, received: Received) -> Acknowledge | None:
        """Return the answer to a REQUEST; None: there are too many."""
        if not self.take(received.now):
            return None
        return self._cookies.acknowledge(
            received.message_of(Request),
            received.source,
            received.local_address,
            self._binding,
            received.now,
        )

    def comes_back_in(self, received: Received) -> bool:
        """Tell whether a CONFIRM brings back a cookie that is still valid."""
        message = received.message_of(Confirm)
        return self._cookies.check(
            message, received.source, received.local_address, self._binding, received.now
        )

    def spend(self, received: Received) -> None:
        """Let no copy of a CONFIRM begin a session any more."""
        self._cookies.spend(received.message_of(Confirm), received.now)

    def void(self) -> None:
        """Let all that were issued so far be void, as there is a new session."""
        self._binding = self._randomness.getrandbits(64)
