"""Who is the remote of a circuit that names none: whoever calls with its key. Pure.

docs/protocol.md, section 4.14. Such an end asks nobody. It takes the session that another end
begins, and learns from it where that one is; it follows when that one is heard from elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vela.address import Endpoint, IPAddress
from vela.signaling.admission import TAKE_OVER_AFTER_S
from vela.signaling.identity import maker_of
from vela.signaling.limiter import TokenBucket
from vela.signaling.messages import Confirm, Description

OTHER_CALLER_TEXT = (
    "another machine has this circuit on the other end, and was heard within the last "
    f"{TAKE_OVER_AFTER_S:g} s; take another id"
)
STILL_THERE_TEXT = (
    "the machine that has this circuit on the other end is still heard where it was before"
)

# A token is no proof, so the remote is asked where it was before. CONFIRMs are repeated after 0.3,
# 0.6 and 1.2 s, and with each one it is asked so often: it is taken for gone with the third, when
# four questions are unanswered, the last of them for 0.6 s.
PROBES_AT_ONCE = 2
GONE_AFTER_S = 0.8
# What was asked longer ago says nothing.
ASKED_LATELY_S = 5.0

# How large a PROBE to a new place may be, in bytes: the size says which answer it is for. Not a
# size that the search for the path MTU has.
SMALLEST_QUESTION, LARGEST_QUESTION = 96, 224
# Of questions to new places: a remote whose NAT forgot it is heard from one each few seconds.
MOVE_RATE, MOVE_BURST = 2.0, 4.0

Describe = Callable[[Endpoint, IPAddress | None], Description]
"""Returns what this end says of itself to a remote there; the second: where it was called.

Raises VelaError where it cannot be the circuit's remote there."""

ELSEWHERE = "on the other end, "


@dataclass(frozen=True, slots=True)
class Situation:
    """What a circuit knows of its remote when somebody calls."""

    endpoint: Endpoint | None
    """Where the remote of the present session is; None: there is none."""
    heard_at: float | None
    """When it was last heard."""
    proves_itself: bool
    """The handshake shows which machine calls: nobody else has its private key."""


@dataclass(slots=True)
class _Question:
    """To the remote where it was, or to where it may be now."""

    endpoint: Endpoint
    asked_at: float
    size: int = 0


class Caller:
    """The machine that has the circuit, and where it may be now."""

    def __init__(
        self, describe: Describe, randomness: random.Random, maker: bytes | None = None
    ) -> None:
        """maker: which machine has had it, by identity.maker_of; None: not known."""
        self.maker = maker
        self.describe = describe
        self._randomness = randomness
        self._left = False
        self._former: _Question | None = None
        self._new: _Question | None = None
        self._moves = TokenBucket(MOVE_RATE, MOVE_BURST)

    # Who calls.

    def obstacle(
        self, confirm: Confirm, source: Endpoint, known: Situation, now: float
    ) -> str | None:
        """Return why who calls, with a CONFIRM that has a valid cookie, may not be the remote.

        Empty: it may. None: the remote is to be asked whether it is still where it was, by
        PROBES_AT_ONCE, and the CONFIRM is not answered before that is known.
        """
        if self._left or known.proves_itself or known.heard_at is None:
            return ""
        if self.maker not in (None, maker_of(confirm)):
            return OTHER_CALLER_TEXT if now - known.heard_at < TAKE_OVER_AFTER_S else ""
        if known.endpoint in (None, source):
            return ""
        asked = self._former
        if (
            asked is None
            or asked.endpoint != known.endpoint
            or now - asked.asked_at > ASKED_LATELY_S
        ):
            asked = self._former = _Question(known.endpoint, now)
        if known.heard_at > asked.asked_at:
            return STILL_THERE_TEXT
        return "" if now - asked.asked_at >= GONE_AFTER_S else None

    def admit(self, confirm: Confirm) -> None:
        """Take note of a CONFIRM that begins a session."""
        self._left = False
        self.maker = maker_of(confirm)
        self.forget_questions()

    def leave(self) -> None:
        """Let any machine have the circuit, as the one before said goodbye."""
        self._left = True

    # Where it is.

    def question(self, source: Endpoint, now: float) -> int | None:
        """Return the size of the PROBE that shows whether the remote is there; None: send none.

        To be called when a message of the session came from there.
        """
        if not self._moves.take(now):
            return None
        if self._new is None or self._new.endpoint != source:
            size = self._randomness.randint(SMALLEST_QUESTION, LARGEST_QUESTION)
            self._new = _Question(source, now, size)
        return self._new.size

    def is_answered(self, source: Endpoint, size: int) -> bool:
        """Tell whether a PROBE_REPLY of this size from there is the answer."""
        asked = self._new
        return asked is not None and (asked.endpoint, asked.size) == (source, size)

    def forget_questions(self) -> None:
        """Take note that it is known where the remote is."""
        self._former = self._new = None
