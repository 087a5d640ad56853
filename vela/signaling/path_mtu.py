"""The search for the MTU of a path by probes, from one end toward the other. Pure.

RFC 8899 (DPLPMTUD), with several sizes on the way at once, as an operator waits for the result.
What ICMP says is not believed: nothing here depends on it.

    in    start, stop, note_traffic, answered, handle_timer     times in monotonic seconds
    out   sizes_to_probe()   next_timer()   mtu
"""

from __future__ import annotations

import math

# A size that is not answered so often more than a small one beside it is lost does not fit.
TRIES = 4
SMALL = 256
"""Bytes, IP header included, that every path carries."""

LEAST_WAIT_S = 0.25
"""For an answer, and at least four round trips."""
BUSY_INTERVAL_S = 1.5
"""Between probes of the present size while the circuit carries frames."""
IDLE_INTERVAL_S = 120.0
SOON_S, WIDEN_INTERVAL_S = 2.0, 10.0
"""Between probes of the full size on a path that was found to be narrower, at first and later."""

# Sizes that links and tunnels have: RFC 1191, section 7.1, brought up to date.
PLATEAUS = (
    *(576, 1006, 1200, 1280, 1300, 1320, 1340, 1360, 1380, 1400, 1420, 1430, 1440, 1450, 1454),
    *(1460, 1464, 1472, 1476, 1480, 1484, 1488, 1492, 1496, 1500, 2002, 4352, 8166, 8900, 9000),
)
AT_ONCE = 8
"""Sizes between two neighbours that are probed together."""


class PathMtu:
    """What one end knows of the path to its remote."""

    def __init__(self) -> None:
        self.mtu = 0
        """Bytes, IP header included; 0 before start()."""
        self._ceiling = self._floor = 0
        self._wait_s = LEAST_WAIT_S
        self._asked: list[int] = []
        self._answered: set[int] = set()
        self._tries = 0
        self._searching = False
        # In a search: the largest size that fits, and the smallest that does not.
        self._fits, self._fails = 0, 0
        self._due = math.inf
        self._widen_at, self._widen_after_s = math.inf, SOON_S
        self._busy_until = self._checked_at = -math.inf
        self._to_probe: list[int] = []

    def start(self, ceiling: int, floor: int, rtt_s: float | None, at: float) -> None:
        """Begin on another path, at a time.

        ceiling: the MTU of its route; floor: what every path carries; both in bytes. The ceiling
        counts until probes show that it does not fit.
        """
        self.mtu = self._ceiling = ceiling
        self._floor = min(floor, ceiling)
        self._searching = False
        self._widen_at = math.inf
        self._wait_s = max(LEAST_WAIT_S, 4 * (rtt_s or 0.0))
        self.resume(at)

    def recall(self, ceiling: int, floor: int, mtu: int) -> None:
        """Know what was found before, in another process; resume() is to follow."""
        self.start(ceiling, floor, None, math.inf)
        self.mtu = max(self._floor, min(mtu, ceiling))
        self._widen_at = -math.inf

    def stop(self) -> None:
        """Probe no more. What was found stays until start()."""
        self._due = math.inf
        self._asked, self._to_probe = [], []

    def resume(self, at: float) -> None:
        """Go on after stop() on the same path, at a time."""
        self._searching = False
        self._asked, self._to_probe = [], []
        self._due = at

    def note_traffic(self, now: float) -> None:
        """Say that the circuit carries frames: then a path that narrows is noticed soon."""
        self._busy_until = now + 2 * BUSY_INTERVAL_S
        if self._due < math.inf:
            self._hasten(now)

    def answered(self, size: int) -> None:
        """Take the answer to a probe of a size that sizes_to_probe() named."""
        if size in self._asked:
            self._answered.add(size)

    def handle_timer(self, now: float) -> bool:
        """Do what is due; return whether the MTU is another one now."""
        if now < self._due:
            return False
        before = self.mtu
        if not self._asked:
            if now >= self._widen_at:
                self._try_wider(now)
            else:
                self._check(now)
        elif self._searching:
            self._conclude_step(now)
        else:
            self._conclude_check(now)
        return self.mtu != before

    def next_timer(self) -> float:
        """Return when to call handle_timer; infinite: never."""
        return self._due

    def sizes_to_probe(self) -> list[int]:
        """Hand over the sizes of packets to send, IP header included."""
        sizes, self._to_probe = self._to_probe, []
        return sizes

    # Is the present size right?

    def _check(self, now: float) -> None:
        self._checked_at, self._tries = now, 0
        self._ask([self.mtu], now)

    def _try_wider(self, now: float) -> None:
        """Ask for the full size, for the next one that links have, and for one byte more."""
        self._widen_after_s = min(2 * self._widen_after_s, WIDEN_INTERVAL_S)
        self._widen_at = now + self._widen_after_s
        next_one = min((size for size in PLATEAUS if size > self.mtu), default=self._ceiling)
        self._ask(sorted({self.mtu + 1, min(next_one, self._ceiling), self._ceiling}), now)

    def _conclude_check(self, now: float) -> None:
        fits = max((size for size in self._answered if size != SMALL), default=0)
        if fits == self._ceiling:
            self.mtu = fits
        elif fits > self.mtu:
            self._search(fits, self._ceiling, now)
            return
        if self.mtu not in self._asked or fits:
            self._rest(now)
            return
        # Without the small one the path carries nothing, which is not for this to judge.
        self._tries = max(0, self._tries + (1 if SMALL in self._answered else -1))
        if self._tries < TRIES:
            self._ask([self.mtu], now)
        else:
            self._search(self._floor, self.mtu, now)

    # The search.

    def _search(self, fits: int, fails: int, now: float) -> None:
        self._searching, self._tries = True, 0
        self._fits, self._fails = fits, fails
        self._ask(self._candidates(), now)

    def _candidates(self) -> list[int]:
        """Return the sizes to ask next: first those that links have, then evenly between."""
        between = [size for size in PLATEAUS if self._fits < size < self._fails]
        if between:
            return between
        gap = self._fails - self._fits
        steps = min(AT_ONCE, gap - 1)
        return sorted({self._fits + gap * step // (steps + 1) for step in range(1, steps + 1)})

    def _conclude_step(self, now: float) -> None:
        asked = [size for size in self._asked if size != SMALL]
        if not self._answered:
            self._ask(asked, now)  # the path carries nothing at present
            return
        self._fits = max(self._fits, *(self._answered - {SMALL} or {0}))
        unanswered = [size for size in asked if size > self._fits]
        if unanswered and not self._tries:
            self._tries = 1  # lost, perhaps, by chance
            self._ask(unanswered, now)
            return
        # What is too large is lost meanwhile: before the search has come to its end.
        self.mtu = min(self.mtu, self._fits)
        self._fails = min([self._fails, *unanswered])
        self._tries = 0
        if candidates := self._candidates():
            self._ask(candidates, now)
            return
        self._searching = False
        self.mtu = self._fits
        self._widen_after_s = SOON_S
        self._widen_at = now + SOON_S
        self._rest(now)

    def _ask(self, sizes: list[int], now: float) -> None:
        self._asked, self._answered = [*sizes, SMALL], set()
        self._to_probe = list(self._asked)
        self._due = now + self._wait_s

    def _rest(self, now: float) -> None:
        self._asked = []
        if self.mtu == self._ceiling:
            self._widen_at = math.inf
        self._due = min(now + IDLE_INTERVAL_S, self._widen_at)
        self._hasten(now)

    def _hasten(self, now: float) -> None:
        if not self._asked and now < self._busy_until:
            self._due = min(self._due, max(now, self._checked_at + BUSY_INTERVAL_S))
