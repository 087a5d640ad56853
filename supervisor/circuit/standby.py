"""Which remote of a list carries a circuit: the first that works, and how it goes back to. Pure.

    in    begin, rest, up, fail, doubt, answered, unanswered, switch, handle_timer
    out   current, watches_primary, next_timer()

Times are monotonic seconds. Remotes are numbered as in the list; 0 is the primary. After each call
in, ask the outs: the circuit uses the remote that is current then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto

from vela.reasons import NO_REASON, Cause, Reason

# A remote that does not come up has so long, and then the next one is tried.
TRY_S = 5.0
# One that says nothing to REQUESTs is given up earlier: the third of them has gone by then.
DOUBT_S = 3.0
# One that is refused or has no address is given up at once, but not more often than this.
PACE_S = 1.0

# The primary gets the circuit back when it has answered for so long.
GOOD_S = 30.0
# If it then does not come up, or is lost within that time, twice as long, up to this.
LONGEST_GOOD_S = 480.0
# Answers in a row that may be missing without beginning anew: the network may lose one.
MISSED_ANSWERS = 1


class Phase(Enum):
    """What the remote in use does."""

    RESTING = auto()  # nothing is tried: the circuit is taken down, or this machine is at fault
    TRYING = auto()
    UP = auto()


class Standby:
    """The remotes of one circuit. With a single one, nothing ever changes."""

    def __init__(self, count: int) -> None:
        """count: of the remotes."""
        self.current = 0
        """The remote to use."""
        self.failures = [NO_REASON] * count
        """Why each remote does not work, in a sentence; empty: that is not known, or it does."""
        self.held = False
        """The remote in use was chosen by a command, and stays until it is lost."""
        self.phase = Phase.RESTING
        self._since = 0.0
        self._give_up_at = math.inf
        self._fallback: int | None = None
        """Where the circuit was carried, while it is tried whether the primary carries it again."""
        self._good_s = GOOD_S
        self._good_since: float | None = None
        self._missed = 0
        self._came_back = False

    @property
    def watches_primary(self) -> bool:
        """Whether to ask the primary if it is there again."""
        return self.phase is Phase.UP and self.current != 0 and not self.held

    @property
    def primary_answers(self) -> bool:
        """Whether the primary answers again while another remote carries the circuit."""
        return self.watches_primary and self._good_since is not None

    @property
    def good_s(self) -> float:
        """For how long the primary has to answer before it gets the circuit back, in seconds."""
        return self._good_s

    def begin(self, now: float) -> None:
        """Try the remote in use from now on."""
        self.phase = Phase.TRYING
        self._since, self._give_up_at = now, now + TRY_S
        self._good_since = None

    def rest(self) -> None:
        """Try nothing until begin()."""
        self.phase = Phase.RESTING
        self._give_up_at, self._good_since = math.inf, None

    def begin_anew(self) -> None:
        """Forget all, and rest; the primary is next."""
        self.rest()
        self.current = 0
        self.failures = [NO_REASON] * len(self.failures)
        self.held = self._came_back = False
        self._fallback, self._good_s = None, GOOD_S

    def relist(self, numbers: Sequence[int | None], now: float) -> None:
        """Take another list: of each remote, the number that it had, if it had one.

        The remote in use stays in use if it is still there.
        """
        before, stays = self.current, self.current in numbers
        failures = self.failures
        self.failures = [NO_REASON if number is None else failures[number] for number in numbers]
        self.current = numbers.index(before) if stays else 0
        self.held = self.held and stays and self.current != 0
        self._good_since = None
        if self._fallback is not None:
            known = self._fallback in numbers and stays and self.current == 0
            self._fallback = numbers.index(self._fallback) if known else None
        if not stays and self.phase is not Phase.RESTING:
            self.begin(now)

    def up(self, now: float) -> None:
        """Take note that the remote in use carries the circuit."""
        self.failures[self.current] = NO_REASON
        if self.phase is Phase.UP:
            return
        self.phase, self._since, self._give_up_at = Phase.UP, now, math.inf
        self._came_back, self._fallback = self._fallback is not None, None
        self._good_since, self._missed = None, 0

    def fail(self, why: Reason, now: float) -> None:
        """Take note that the remote in use does not work, for certain."""
        self.failures[self.current] = why
        if self.phase is Phase.UP:
            if self._came_back and now - self._since < self._good_s:
                self._wait_longer()
            elif self.current == 0:
                self._good_s = GOOD_S
            self._move(now)
        elif self.phase is Phase.TRYING:
            self._give_up(self._since + PACE_S, now)

    def doubt(self, why: Reason, now: float) -> None:
        """Take note that the remote in use does not work so far; it may be slow."""
        self.failures[self.current] = why
        if self.phase is Phase.TRYING:
            self._give_up(self._since + DOUBT_S, now)

    def answered(self, now: float) -> None:
        """Take note that the primary answers, while another remote is in use."""
        self._missed = 0
        if self._good_since is None and self.watches_primary:
            self._good_since = now

    def unanswered(self, why: Reason) -> None:
        """Take note that the primary does not answer."""
        self._missed += 1
        if self._missed > MISSED_ANSWERS and self.watches_primary:
            self._good_since = None
            self.failures[0] = why

    def switch(self, index: int, now: float) -> None:
        """Use this remote at once, by command."""
        self.held = index != 0
        self._fallback, self._came_back = None, False
        if index != self.current:
            self.current = index
            self.failures[index] = NO_REASON
            if self.phase is not Phase.RESTING:
                self.begin(now)

    def handle_timer(self, now: float) -> None:
        """Do what is due; to be called at next_timer() or later."""
        if self.phase is Phase.TRYING and now >= self._give_up_at:
            if not self.failures[self.current]:
                self.failures[self.current] = Cause.NOT_UP_IN_TIME.say(seconds=TRY_S)
            self._move(now)
        elif self._good_since is not None and now >= self._good_since + self._good_s:
            self._fallback, self.current = self.current, 0
            self.failures[0] = NO_REASON
            self.begin(now)

    def next_timer(self) -> float:
        """Return when to call handle_timer; infinite: not at all."""
        if len(self.failures) == 1:
            return math.inf
        if self._good_since is not None:
            return self._good_since + self._good_s
        return self._give_up_at

    def _give_up(self, at: float, now: float) -> None:
        self._give_up_at = min(self._give_up_at, max(at, now))

    def _move(self, now: float) -> None:
        """Try the next remote, or go back to the one that has carried the circuit."""
        if len(self.failures) == 1:
            self.begin(now)
            self._give_up_at = math.inf
            return
        self.held = False
        if self._fallback is not None:
            self.current, self._fallback = self._fallback, None
            self._wait_longer()
        else:
            self.current = (self.current + 1) % len(self.failures)
        self.begin(now)

    def _wait_longer(self) -> None:
        self._good_s = min(2 * self._good_s, LONGEST_GOOD_S)
