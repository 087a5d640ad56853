"""How an end that seeks its remote goes on: tries, repeats, refusals. Pure.

docs/protocol.md, sections 4.2, 4.3 and 4.6.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from vela.address import Endpoint
from vela.backoff import Backoff, Jitter
from vela.reasons import Cause, Reason
from vela.signaling.candidates import ATTEMPT_DELAY_S

# Without a session: a REQUEST each second, so that a link that comes back carries frames again
# within two seconds; after five minutes less and less often.
FIRST_REPEAT_S = 0.5
REPEAT_S = 1.0
LONGEST_REPEAT_S = 30.0
EAGER_S = 300.0
JITTER = 0.2  # taken off: many circuits must not ask in step

# A cookie is void after the remote's restart, so not for long; yet longer than any round trip.
CONFIRM_REPEAT_S = 0.3
CONFIRM_TIMEOUT_S = 2.5

FIRST_REJECTED_S = 2.0

UNANSWERED_TRIES = 3  # REQUESTs at least, before the remote is said not to answer
INSISTING_TRIES = 3  # REQUESTs, before a remote may resume outdated settings
RESOLVE_TRIES = 4  # REQUESTs at least, between two look-ups of the name


@dataclass(frozen=True, slots=True)
class Asked:
    """What was sent to a remote, in an attempt that has not led to a session. Monotonic seconds."""

    remotes: tuple[Endpoint, ...]
    requests: int
    began_at: float
    sent_at: float
    """The last one."""


class Attempt:
    """What an end has tried since its session was lost, and when it tries again."""

    def __init__(self, randomness: random.Random) -> None:
        self._jitter = Jitter(randomness, shorter=JITTER)
        self._late_repeats = Backoff(2 * REPEAT_S, LONGEST_REPEAT_S, self._jitter)
        self._confirms = Backoff(CONFIRM_REPEAT_S, CONFIRM_TIMEOUT_S)
        self._rejections = Backoff(FIRST_REJECTED_S, LONGEST_REPEAT_S, self._jitter)
        self._began_at = 0.0
        self._sent_at = 0.0
        self._round_began_at: float | None = None
        self._round_is_first = True
        self._tries = 0
        # REQUESTs since it was last told that there is no answer, and since the last look-up.
        self._unanswered = self._since_lookup = 0
        self.is_unanswered = False
        """Whether it is to be told, after the last REQUEST, that the remote does not answer."""
        self.wants_lookup = False
        """Whether the name is to be looked up again after the last REQUEST."""
        # The number of tries when a remote with outdated settings was first heard.
        self._insisting_from: int | None = None
        self.refused = False
        """The remote has refused the settings that this end wants."""
        self.wrong_tag = False
        """A message with a wrong tag came since the last session."""

    def begin(self, now: float) -> None:
        """Begin to seek the remote."""
        self._began_at = now
        self._round_began_at, self._round_is_first = None, True
        self._tries = self._unanswered = self._since_lookup = 0
        self._insisting_from = None
        self._late_repeats.reset()

    def succeed(self) -> None:
        """Take note that there is a session."""
        self._rejections.reset()
        self.refused = self.wrong_tag = False

    def note_answer(self) -> None:
        """Take note that the remote answers REQUESTs, or that there are other addresses."""
        self._unanswered = 0

    def asked(self, remotes: tuple[Endpoint, ...]) -> Asked | None:
        """Return what was sent; None: nothing yet. remotes: who is asked."""
        if not self._tries:
            return None
        return Asked(remotes, self._tries, self._began_at, self._sent_at)

    # REQUESTs.

    def count_request(self, now: float, *, ends_round: bool = True) -> float:
        """Take note of a REQUEST that is sent now; return the delay before the next, in seconds.

        ends_round: all addresses have been asked once since the last round.
        """
        self._tries += 1
        self._unanswered += 1
        self._since_lookup += 1
        self._sent_at = now
        if self._round_began_at is None:
            self._round_began_at = now
        self.is_unanswered = ends_round and self._unanswered >= UNANSWERED_TRIES
        self.wants_lookup = ends_round and self._since_lookup >= RESOLVE_TRIES
        if not ends_round:
            return ATTEMPT_DELAY_S
        if self.is_unanswered:
            self._unanswered = 0
        if self.wants_lookup:
            self._since_lookup = 0
        # A round takes as long as one REQUEST to a single address would.
        taken_s, self._round_began_at = now - self._round_began_at, None
        return max(self._round_delay_s(now) - taken_s, ATTEMPT_DELAY_S)

    def _round_delay_s(self, now: float) -> float:
        if self._round_is_first:
            self._round_is_first = False
            return self._jitter.apply(FIRST_REPEAT_S)
        if now - self._began_at < EAGER_S:
            return self._jitter.apply(REPEAT_S)
        return self._late_repeats.next_delay_s()

    def earliest_request(self, now: float) -> float:
        """Return when the next REQUEST may be sent, if there is a reason to hurry."""
        return max(now, self._sent_at + CONFIRM_REPEAT_S)

    def unanswered_reason(self, endpoints: Collection[Endpoint]) -> Reason:
        """Return why none of the endpoints may answer."""
        # Name servers change the order, and the sentence must not change with it.
        remote = str(min(endpoints, key=_by_number))
        if len(endpoints) > 1:
            others = len(endpoints) - 1
            remote += f" and {others} other {'address' if others == 1 else 'addresses'}"
        cause = Cause.WRONG_KEY if self.wrong_tag else Cause.NO_ANSWER
        return cause.say(remote=remote)

    def insists(self) -> bool:
        """Tell whether this end still asks for its own settings, as a remote resumes outdated ones.

        Only for some tries after the remote is first heard: perhaps it can
        reach this end, and this end cannot reach it.
        """
        if self._insisting_from is None:
            self._insisting_from = self._tries
        return self._tries - self._insisting_from <= INSISTING_TRIES

    # CONFIRMs, rejections: the delay before the next, in seconds.

    def begin_confirming(self) -> None:
        self._confirms.reset()

    def confirm_delay_s(self) -> float:
        return self._confirms.next_delay_s()

    def rejected_delay_s(self) -> float:
        return self._rejections.next_delay_s()


def _by_number(endpoint: Endpoint) -> tuple[int, int, int]:
    return endpoint.address.version, int(endpoint.address), endpoint.port
