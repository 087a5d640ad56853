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


@dataclass(slots=True)
class TokenBucket:
    """Lets burst answers pass at once, and rate per second in the long run."""

    rate: float
    burst: float
    _tokens: float = 0.0
    _at: float | None = None

    def take(self, now: float) -> bool:
        if self._at is None:
            self._tokens = self.burst
        else:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
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
        bits = 0 if source.version == 4 else _IPV6_HOST_BITS
        host = (source.version, int(source) >> bits)
        bucket = self._sources.get(host)
        if bucket is None:
            bucket = self._sources[host] = TokenBucket(SOURCE_RATE, SOURCE_BURST)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(host)
        return bucket.take(now) and self._total.take(now)
