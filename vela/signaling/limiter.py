"""How often strangers are answered. Pure; memory is bounded whatever they send."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from vela.address import IPAddress

# 255 circuits that one host asks for at once, twice a second each, with room for repeats.
SOURCE_RATE, SOURCE_BURST = 600.0, 1200.0
# All together, whatever number of sources they are forged from: a third of a core.
TOTAL_RATE, TOTAL_BURST = 5000.0, 5000.0
MAX_SOURCES = 4096
# One IPv6 host has a whole /64 (RFC 4291, section 2.5.4).
_IPV6_HOST_BITS = 64


def host_of(address: IPAddress) -> tuple[int, int]:
    """Return what tells one host from another, whichever of its addresses it takes."""
    return address.version, int(address) >> (0 if address.version == 4 else _IPV6_HOST_BITS)


@dataclass(slots=True)
class TokenBucket:
    """Lets burst answers pass at once, and rate per second in the long run."""

    rate: float
    burst: float
    _tokens: float = 0.0
    _at: float | None = None

    def refill(self, now: float) -> None:
        if self._at is None:
            self._tokens = self.burst
        else:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now

    def widen(self, more: float) -> None:
        """Let that much more pass at once, from now on and now."""
        self.burst += more
        self._tokens += more

    def take(self, now: float) -> bool:
        self.refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimiter:
    """A bucket for each source, the longest idle one forgotten first, and one for all."""

    def __init__(self) -> None:
        self._sources: OrderedDict[tuple[int, int], TokenBucket] = OrderedDict()
        self._total = TokenBucket(TOTAL_RATE, TOTAL_BURST)

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, source: IPAddress, now: float) -> bool:
        """Tell whether one more answer may go there."""
        host = host_of(source)
        bucket = self._sources.get(host)
        if bucket is None:
            bucket = self._sources[host] = TokenBucket(SOURCE_RATE, SOURCE_BURST)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(host)
        return bucket.take(now) and self._total.take(now)
