"""What is measured of a tunnel: TCP, frames, round trips, many circuits, a busy host, overload.

Figures are known by keys whose endings say the unit; A to B is "ab".
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from statistics import mean

from lab.blast import ETHERNET_HEADER, UNLIMITED, blast_across
from lab.busy_loops import BusyLoops
from lab.cpu import cpu_used
from lab.errors import LabError
from lab.link import rx_bytes
from lab.load import CONGESTION_CONTROL, BackgroundStream, iperf3, ping
from lab.program import Program
from lab.rate_search import GROWTH, Effort, highest_rate
from lab.streams import concurrent_streams
from lab.tunnels.tunnel import Segment
from vela.percentile import percentile as nearest_rank

Figures = dict[str, float]

FRAME_CHECK = 4
# Of Ethernet, with the frame check that neither Linux nor a tunnel carries
# (RFC 2544, section 9.1); beside these, the largest that each tunnel carries.
FRAME_SIZES = (64, 512)
FULL = "full"
OVERLOAD_FRAME = 64

PINGING_CPUS = 4
"""At most."""

BUSY_LIMIT_S = 120
# Before it counts: TCP is then past its start, and the queue where it stays.
SETTLING_S = 0.7

FIRST_RATE_PER_S = 20000.0
# The last round's rate is a good guess for this one's.
GUESS = 0.9
GUESS_GROWTH = 1.2


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done in one round."""

    seconds: int
    """Of each TCP run."""
    streams: tuple[int, ...] = (2, 4, 8)
    """At once, in the runs of several."""
    pings: int = 300
    """From each CPU."""
    ping_interval_s: float = 0.003
    effort: Effort = field(default_factory=Effort)
    circuits: tuple[int, ...] = (1, 2, 8, 64)
    frame_sizes: tuple[int, ...] = FRAME_SIZES
    """Of single frames, beside the largest."""


@dataclass(slots=True)
class Bench:
    """The tools of all measurements."""

    scale: Scale
    blast: Program
    streams: Program
    _rates: dict[tuple[str, str], float] = field(default_factory=dict)
    """Rates of frames found before, by B's address and size."""

    def tcp(self, segment: Segment) -> Figures:
        """One stream, first from A to B, then from B to A."""
        return self._tcp(segment, 1) | self._tcp(segment, 1, reverse=True)

    def tcp_streams(self, segment: Segment) -> Figures:
        """Several streams at once in the one tunnel, from A to B."""
        figures: Figures = {}
        for count in self.scale.streams:
            figures |= self._tcp(segment, count)
        return figures

    def _tcp(self, segment: Segment, streams: int, *, reverse: bool = False) -> Figures:
        with cpu_used(segment.forwarders) as cpu:
            run = iperf3(
                segment.b.namespace,
                segment.a.namespace,
                segment.b.address,
                seconds=self.scale.seconds,
                streams=streams,
                reverse=reverse,
                congestion_control=CONGESTION_CONTROL,
            )
        gigabytes = run.received_bits_per_s * run.seconds / 8e9
        key = f"tcp_{streams}_{'ba' if reverse else 'ab'}"
        figures = {
            f"{key}_mbit_per_s": run.received_bits_per_s / 1e6,
            f"{key}_retransmits": float(run.retransmits),
        }
        if gigabytes:
            figures[f"{key}_machine_s_per_gb"] = cpu.machine_s / gigabytes
        if gigabytes and segment.forwarders:
            figures[f"{key}_forwarders_s_per_gb"] = cpu.processes_s / gigabytes
            figures[f"{key}_forwarder_cores"] = cpu.processes_s / run.seconds / 2
        return figures

    def udp(self, segment: Segment) -> Figures:
        """The highest rate of frames with less than 1 % loss, from A to B."""
        figures: Figures = {}
        sizes = {str(size): size - FRAME_CHECK for size in self.scale.frame_sizes}
        sizes[FULL] = segment.mtu + ETHERNET_HEADER
        for name, frame in sizes.items():
            known = self._rates.get((segment.b.address, name))
            start, growth = (known * GUESS, GUESS_GROWTH) if known else (FIRST_RATE_PER_S, GROWTH)
            with blast_across(self.blast, segment, frame) as blast:
                found = highest_rate(blast.trial, start, self.scale.effort, growth)
            self._rates[segment.b.address, name] = found.delivered_per_s
            key = f"udp_{name}"
            millions = found.received / 1e6
            figures[f"{key}_frames_per_s"] = found.delivered_per_s
            figures[f"{key}_loss"] = found.loss
            figures[f"{key}_machine_s_per_million"] = found.machine_cpu_s / millions
            figures[f"{key}_generator_s_per_million"] = found.generator_cpu_s / millions
            if segment.forwarders:
                figures[f"{key}_forwarders_s_per_million"] = found.forwarders_cpu_s / millions
        return figures

    def overload(self, segment: Segment) -> Figures:
        """Frames that arrive while A sends as many as it can, whatever becomes of them."""
        with blast_across(self.blast, segment, OVERLOAD_FRAME - FRAME_CHECK) as blast:
            found = blast.trial(UNLIMITED, self.scale.seconds)
        return {
            "overload_frames_per_s": found.delivered_per_s,
            "overload_sent_per_s": found.sent_per_s,
        }

    def rtt(self, segment: Segment) -> Figures:
        """The round trip while nothing else happens, from a program on each CPU in turn; means.

        Where it runs is not the tunnel's doing, and half of it: a CPU that
        sleeps takes long to wake.
        """
        return self._round_trip(segment, "rtt")

    def loaded(self, segment: Segment) -> Figures:
        """The round trip while one TCP stream fills the tunnel, from A to B; else as rtt."""
        with BackgroundStream(segment.b.namespace, segment.a.namespace, segment.b.address) as load:
            time.sleep(SETTLING_S)
            began, before = time.monotonic(), rx_bytes(segment.b.namespace, segment.b.interface)
            figures = self._round_trip(segment, "loaded")
            load.check()
            octets = rx_bytes(segment.b.namespace, segment.b.interface) - before
            figures["loaded_mbit_per_s"] = 8e-6 * octets / (time.monotonic() - began)
        return figures

    def busy(self, segment: Segment) -> Figures:
        """The round trip while each CPU has a program that never sleeps; else as rtt."""
        with BusyLoops(sorted(os.sched_getaffinity(0)), BUSY_LIMIT_S) as loops:
            figures = self._round_trip(segment, "busy")
            loops.check()
        return figures

    def _round_trip(self, segment: Segment, key: str) -> Figures:
        cpus = some_cpus()
        runs = [
            ping(
                segment.a.namespace,
                segment.b.address,
                count=self.scale.pings,
                interval_s=self.scale.ping_interval_s,
                cpu=cpu,
            )
            for cpu in cpus
        ]
        if not all(run.rtt_ms for run in runs):
            raise LabError(f"{segment.b.address} answered no ping")
        return {
            f"{key}_p50_us": mean(percentile(run.rtt_ms, 50) for run in runs) * 1e3,
            f"{key}_p99_us": mean(percentile(run.rtt_ms, 99) for run in runs) * 1e3,
            f"{key}_lost": float(sum(run.lost for run in runs)),
        }

    def circuits(self, segments: list[Segment]) -> Figures:
        """TCP over the first of them, the first two, and so on: a stream each at the same time."""
        figures: Figures = {}
        for count in self.scale.circuits:
            shares = concurrent_streams(self.streams, segments[:count], self.scale.seconds)
            figures[f"circuits_{count}_mbit_per_s"] = shares.total / 1e6
            figures[f"circuits_{count}_jain"] = shares.fairness
            figures[f"circuits_{count}_min_to_max"] = shares.least_to_most
        return figures


def some_cpus() -> list[int]:
    """Return the CPUs that this process may use, or a few of them, evenly spread."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:: math.ceil(len(allowed) / PINGING_CPUS)]


def percentile(values: tuple[float, ...], percent: float) -> float:
    """Return the smallest of the values, in any order, that so many percent do not exceed."""
    return nearest_rank(sorted(values), percent)
