"""Early loss where a queue stands: CoDel (RFC 8289) without the time that frames have waited. Pure.

A TAP does not tell how long a frame has waited, but its reader sees when nothing is left. A queue
that does not run empty for a whole interval is no burst: it stands, and does nothing but delay.
"""

from __future__ import annotations

from math import isqrt

# How long frames may queue without a moment when there are none. About the longest round trip of
# the connections that share the queue: one with a longer one cannot react in time (RFC 8289,
# section 3.2).
INTERVAL_MS = 100
# Losses follow each other no faster.
PAUSE_MS = 4
# A queue that stands again so soon needs about as many losses as before (RFC 8289, section 5.5).
MEMORY_MS = 16 * INTERVAL_MS
# Bytes. Shorter frames are never lost: acknowledgements, voice, ARP. They are not what the queue is
# made of.
LEAST_FRAME = 512


class Backlog:
    """What a reader knows of the queue that it reads."""

    def __init__(self) -> None:
        self._empty = True
        """Nothing that counts was read since it was seen to be so."""
        self._stands = False
        self._since_ms = self._next_ms = 0
        # Of losses since the queue stands, or as good as; and with which it began to.
        self._count = self._last_count = 0

    def ran_empty(self) -> None:
        """Nothing is left to be read."""
        self._empty, self._stands = True, False

    def is_due(self, now_ms: int) -> bool:
        """Tell whether something of a frame is to be lost that is read now."""
        if self._empty:
            self._empty, self._since_ms = False, now_ms
            return False
        if self._stands:
            if now_ms < self._next_ms:
                return False
            self._count += 1
            self._next_ms += self._pause_ms()
            return True
        if now_ms - self._since_ms < INTERVAL_MS:
            return False
        self._stands = True
        before = self._count - self._last_count
        again = before > 1 and now_ms < self._next_ms + MEMORY_MS
        self._count = self._last_count = before if again else 1
        self._next_ms = now_ms + self._pause_ms()
        return True

    def _pause_ms(self) -> int:
        """Return the interval by the square root of the count (RFC 8289, section 5.3)."""
        return max(INTERVAL_MS * 256 // isqrt(self._count << 16), PAUSE_MS)
