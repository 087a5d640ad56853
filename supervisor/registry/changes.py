"""How often other machines may have circuits made here. Pure; memory is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from vela.address import IPAddress
from vela.signaling.limiter import TokenBucket, host_of

# Each change makes an interface anew, which takes 25 ms. An operator who tries this and that has a
# few at once.
CIRCUIT_RATE, CIRCUIT_BURST = 0.2, 5.0
# Of all circuits of one machine: all of them at once, twice, and as many again within minutes.
SOURCE_RATE = 1.0
MAX_KNOWN = 4096


class ChangeLimiter:
    """A bucket for each circuit and one for each machine."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, source: IPAddress, circuit_id: int, max_circuits: int, now: float) -> bool:
        """Tell whether the machine at source may have this circuit made, or made anew, now.

        max_circuits: how many it may have.
        """
        host = host_of(source)
        circuit = self._bucket((host, circuit_id), CIRCUIT_RATE, CIRCUIT_BURST)
        machine = self._bucket(host, SOURCE_RATE, 2.0 * max(max_circuits, CIRCUIT_BURST))
        return circuit.take(now) and machine.take(now)

    def _bucket(self, key: Hashable, rate: float, burst: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(rate, burst)
            if len(self._buckets) > MAX_KNOWN:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket
