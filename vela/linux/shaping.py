"""A limit of what an interface sends: the sizes of its token bucket, and its bytes. Pure.

tc-tbf(8); net/sched/sch_tbf.c; include/uapi/linux/pkt_sched.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vela.wire import ETHERNET_HEADER, frame_limit

KIND = "tbf"

# What may leave at once after a pause, as time at the rate. From 60 Mbit/s on frames that the
# kernel has not cut into segments yet, 64 KiB, then pass whole.
BURST_S = 0.01
# How long a frame waits at most; what comes when that much waits is dropped. A TCP stream fills a
# path with a round trip of up to this.
LATENCY_S = 0.025
# At low rates, where these times are shorter than a frame.
LEAST_BURST_FRAMES, LEAST_QUEUE_FRAMES = 2, 16

_MAX_U32 = 2**32 - 1
_LINKLAYER_ETHERNET = 1
# struct tc_ratespec: log and layer of cells, overhead, alignment, least size, rate in bytes.
_RATE = struct.Struct("=BBHhHI")
_LIMIT = struct.Struct("=III")  # of struct tc_tbf_qopt: queue, bucket in ticks, mtu
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6


@dataclass(frozen=True, slots=True)
class TokenBucketFilter:
    """The parameters of a tbf qdisc. Frames count with their Ethernet header, as in tc."""

    rate: int
    """Bytes per second."""
    burst: int
    """Bytes."""
    queue: int
    """Bytes that wait at most."""

    @classmethod
    def of(cls, bits_per_second: int, mtu: int) -> TokenBucketFilter:
        """Return what limits an interface with this MTU, in bytes.

        bits_per_second are those of packets, without Ethernet header: packets of full size get
        just that, smaller ones less.
        """
        rate = bits_per_second * (mtu + ETHERNET_HEADER) // mtu // 8
        frame = frame_limit(mtu)
        return cls(
            rate=rate,
            burst=min(max(round(rate * BURST_S), LEAST_BURST_FRAMES * frame), _MAX_U32),
            queue=min(max(round(rate * LATENCY_S), LEAST_QUEUE_FRAMES * frame), _MAX_U32),
        )

    def attributes(self) -> dict[int, bytes]:
        """Return the attributes of TCA_OPTIONS."""
        rate = _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(self.rate, _MAX_U32))
        no_peak = bytes(_RATE.size)
        options = {
            # The bucket in ticks counts where there is no TBF_BURST.
            _TBF_PARMS: rate + no_peak + _LIMIT.pack(self.queue, 0, 0),
            _TBF_BURST: struct.pack("=I", self.burst),
        }
        if self.rate > _MAX_U32:
            options[_TBF_RATE64] = struct.pack("=Q", self.rate)
        return options
