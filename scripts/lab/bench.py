"""VELA and other tunnels measured beside each other, on one topology: called by scripts/bench.

Times on one machine vary from minute to minute, so rounds go through all
tunnels in turn, and medians and ratios within a run are what counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lab.errors import LabError
from lab.interruption import InterruptionError, ignore_signals, signals_raise
from lab.load import CONGESTION_CONTROL
from lab.machine import this_machine
from lab.measurements import Bench, Figures, Scale
from lab.namespace import unavailable
from lab.plot import plot
from lab.program import Program
from lab.rate_search import Effort
from lab.regimes import Regime
from lab.results import Results
from lab.tables import legend, tables
from lab.topology import TwoRouters, two_routers
from lab.tunnels.catalogue import (
    APART,
    BRIDGED,
    CIRCUITS,
    ENCRYPTING,
    FASTD,
    FASTD_ENCRYPTED,
    FRAGMENTS,
    LACKING,
    NATIVE,
    NATIVE_APART,
    QUEUES,
    TUNNELS,
    UNFILTERED,
    VXLAN,
    VXLAN_BRIDGED,
)
from lab.tunnels.tunnel import Segment, Tunnel, UnavailableError, fragments_made

TCP, STREAMS, UDP, OVERLOAD = "tcp", "streams", "udp", "overload"
RTT, LOADED, BUSY, MANY = "rtt", "loaded", "busy", "circuits"
MEASUREMENTS = (TCP, STREAMS, UDP, OVERLOAD, RTT, LOADED, BUSY, MANY)
# Single frames and pings alone are the same whatever the cable does with buffers.
DEFAULT_MEASUREMENTS = {
    Regime.WIRE: MEASUREMENTS,
    Regime.OFFLOAD: (TCP, STREAMS),
    Regime.GIGABIT: (TCP, LOADED),
}
REFERENCES = (VXLAN, FASTD)
FEATURES_MEASUREMENTS = (TCP, UDP)

# Numbers beyond those of the tunnels, which stay up.
_FIRST_MANY = len(TUNNELS) + 1
_FIRST_APART = _FIRST_MANY + len(CIRCUITS)

ROUNDS = 3
SECONDS = 1
# Where the wire is the limit, what a stream loses while it starts is seen.
SECONDS_FACTOR = {Regime.GIGABIT: 3}
QUICK = Scale(
    seconds=1,
    pings=50,
    effort=Effort(trial_s=0.1, confirmation_s=0.2, tolerance=0.25),
    streams=(2, 8),
    circuits=(1, 2),
)
QUICK_MEASUREMENTS = (TCP, STREAMS, UDP, OVERLOAD, RTT, LOADED, BUSY, MANY)
QUICK_TUNNELS = (NATIVE, NATIVE_APART, VXLAN)
QUICK_ROUNDS = 2
# Above this share of the CPUs, something else is at work and will be measured too.
DISTURBING = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run is asked to do."""

    tunnels: dict[str, Tunnel]
    """In the order in which tables show them."""
    references: tuple[str, ...]
    """Those that others are compared with, as far as they are among the tunnels."""
    regimes: dict[Regime, tuple[str, ...]]
    """The measurements in each."""
    rounds: int
    scale: Scale
    output: Path


class Progress:
    """Says on stderr what was found, and how far the run is."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def step(self, text: str) -> None:
        self._done += 1
        left_s = self.seconds / self._done * (self._steps - self._done)
        say(f"{self._done}/{self._steps}, {_clock(left_s)} to go: {text}")


class Fragments:
    """Counts those that IP makes on the routers where MTUs should be such that it makes none."""

    def __init__(self, routers: TwoRouters) -> None:
        self._namespaces = [router.namespace for router in (routers.a, routers.b)]
        self._forgotten = 0

    @property
    def count(self) -> int:
        return sum(map(fragments_made, self._namespaces)) - self._forgotten

    def forget(self) -> None:
        self._forgotten += self.count

    @contextmanager
    def of(self, segment: Segment) -> Iterator[None]:
        """Forget what is made while the block lasts, if the segment is one that IP cuts."""
        before = self.count
        yield
        if segment.fragments:
            self._forgotten += self.count - before


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(plan: Plan) -> Results:
    """Measure all of it. What this machine cannot have is skipped and named; so is what fails."""
    with ExitStack() as stack:
        blast, streams = (stack.enter_context(Program(name)) for name in ("blast", "streams"))
        bench = Bench(plan.scale, blast, streams)
        routers = stack.enter_context(two_routers())
        results = Results(
            machine=this_machine(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            settings=_settings(plan),
            underlay_mtu=routers.a.underlay.mtu,
            references=tuple(name for name in plan.references if name in plan.tunnels),
        )
        if results.machine.load > DISTURBING * results.machine.cpus:
            say(f"this machine is not idle (load {results.machine.load:.1f}): figures will suffer")
        began = time.monotonic()
        try:
            segments = _set_up(plan.tunnels, 1, routers, results, stack)
            if not segments:
                raise LabError("nothing left to measure")
            apart = {}
            if any(BUSY in measurements for measurements in plan.regimes.values()):
                wanted = {name: APART[name] for name in segments if name in APART}
                apart = _set_up(wanted, _FIRST_APART, routers, results, stack)
            circuits = [name for name in segments if name in CIRCUITS]
            progress = Progress(_steps(plan, len(segments), len(circuits)))
            fragments = Fragments(routers)
            if any(segment.fragments for segment in segments.values()):
                fragments.forget()  # what they made while it was seen that they are there
            for regime, measurements in plan.regimes.items():
                regime.apply(routers)
                bench.scale = _scale(plan, regime)
                _measure(plan, regime, bench, segments, apart, results, progress, fragments)
                if MANY in measurements:
                    with _many(routers, circuits, max(plan.scale.circuits)) as sets:
                        _measure_circuits(plan, regime, bench, sets, results, progress)
            if fragments.count:
                results.failures.append(f"the routers made {fragments.count} fragments")
        finally:
            ignore_signals()
        results.seconds = time.monotonic() - began
        return results


def _scale(plan: Plan, regime: Regime) -> Scale:
    return replace(plan.scale, seconds=plan.scale.seconds * SECONDS_FACTOR.get(regime, 1))


def _settings(plan: Plan) -> dict[str, object]:
    return {
        "rounds": plan.rounds,
        "congestion_control": CONGESTION_CONTROL,
        "seconds": {regime.value: _scale(plan, regime).seconds for regime in plan.regimes},
        "streams": plan.scale.streams,
        "pings": plan.scale.pings,
        "circuits": plan.scale.circuits,
        "regimes": {regime.value: chosen for regime, chosen in plan.regimes.items()},
    }


def _steps(plan: Plan, tunnels: int, circuits: int) -> int:
    in_round = sum(
        circuits if measurement == MANY else tunnels
        for measurements in plan.regimes.values()
        for measurement in measurements
    )
    return plan.rounds * in_round


def _set_up(
    tunnels: dict[str, Tunnel],
    first: int,
    routers: TwoRouters,
    results: Results,
    stack: ExitStack,
) -> dict[str, Segment]:
    """Return those of the tunnels that can be had, numbered from first."""
    segments = {}
    for number, (name, tunnel) in enumerate(tunnels.items(), start=first):
        try:
            segments[name] = stack.enter_context(tunnel(routers, number))
        except UnavailableError as err:
            say(f"skipping {name}: {err}")
            results.skipped[name] = str(err)
        else:
            say(f"{name} is up")
    return segments


def _measure(
    plan: Plan,
    regime: Regime,
    bench: Bench,
    segments: dict[str, Segment],
    apart: dict[str, Segment],
    results: Results,
    progress: Progress,
    fragments: Fragments,
) -> None:
    methods: dict[str, Callable[[Segment], Figures]] = {
        TCP: bench.tcp,
        STREAMS: bench.tcp_streams,
        UDP: bench.udp,
        OVERLOAD: bench.overload,
        RTT: bench.rtt,
        LOADED: bench.loaded,
        BUSY: bench.busy,
    }
    for turn in range(plan.rounds):
        for measurement in plan.regimes[regime]:
            if measurement == MANY:
                continue
            for name in _rotated(list(segments), turn):
                segment = segments[name]
                if measurement == BUSY:
                    segment = apart.get(name, segment)
                with (
                    fragments.of(segment),
                    _recorded(results, progress, regime, turn, measurement, name) as figures,
                ):
                    figures.update(methods[measurement](segment))
                results.add(regime, name, segment.mtu, figures, turn)


def _measure_circuits(
    plan: Plan,
    regime: Regime,
    bench: Bench,
    sets: dict[str, list[Segment]],
    results: Results,
    progress: Progress,
) -> None:
    for turn in range(plan.rounds):
        for name in _rotated(list(sets), turn):
            with _recorded(results, progress, regime, turn, MANY, name) as figures:
                figures.update(bench.circuits(sets[name]))
            results.add(regime, name, sets[name][0].mtu, figures, turn)


def _rotated(names: list[str], turn: int) -> list[str]:
    """Return them in an order that begins with another one each round."""
    start = turn % len(names) if names else 0
    return names[start:] + names[:start]


@contextmanager
def _recorded(
    results: Results, progress: Progress, regime: Regime, turn: int, measurement: str, name: str
) -> Iterator[Figures]:
    """Yield what the block fills with figures; a failure of it is noted and passed over."""
    what = f"{regime.value}, round {turn + 1}, {measurement}, {name}"
    figures: Figures = {}
    try:
        yield figures
    except LabError as err:
        results.failures.append(f"{what}: {err}")
        progress.step(f"{what}: failed: {err}")
    else:
        progress.step(f"{what}: {_brief(measurement, figures)}")


_BRIEF = {
    TCP: ("mbit_per_s", "{:.0f}", "Mbit/s"),
    STREAMS: ("mbit_per_s", "{:.0f}", "Mbit/s"),
    UDP: ("frames_per_s", "{:.0f}", "frames/s"),
    OVERLOAD: ("frames_per_s", "{:.0f}", "frames/s"),
    RTT: ("us", "{:.0f}", "µs"),
    LOADED: ("us", "{:.0f}", "µs"),
    BUSY: ("us", "{:.0f}", "µs"),
    MANY: ("mbit_per_s", "{:.0f}", "Mbit/s"),
}


def _brief(measurement: str, figures: Figures) -> str:
    ending, form, unit = _BRIEF[measurement]
    values = [form.format(value) for key, value in figures.items() if key.endswith(ending)]
    return f"{' '.join(values)} {unit}"


@contextmanager
def _many(routers: TwoRouters, names: list[str], count: int) -> Iterator[dict[str, list[Segment]]]:
    with ExitStack() as stack:
        sets = {}
        for number, name in enumerate(names, start=_FIRST_MANY):
            say(f"setting up {count} circuits: {name}")
            sets[name] = stack.enter_context(CIRCUITS[name](routers, number, count))
        yield sets


def report(results: Results, output: Path) -> str:
    """Write results.json, table.md and plot.svg to the folder; return the tables as text."""
    output.mkdir(parents=True, exist_ok=True)
    made, said = tables(results), legend(results)
    document = json.dumps(results.document(), indent=2, ensure_ascii=False)
    (output / "results.json").write_text(document + "\n")
    markdown = [*(table.markdown() for table in made), *said]
    (output / "table.md").write_text("\n\n".join(markdown) + "\n")
    (output / "plot.svg").write_text(plot(results))
    return "\n\n".join([*(table.text() for table in made), "\n".join(said)])


def parse(argv: list[str]) -> Plan:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure VELA beside other tunnels between two routers on this machine: TCP, "
        "the highest rate of frames with less than 1 % loss, what arrives of more than that, the "
        "round trip, idle, under load and on busy hosts, CPU time, and many circuits at once. All "
        "are up at the same time and measured in turn. Tables go to the terminal, ratios to kernel "
        "VXLAN first; tables, a plot and all figures as JSON to a folder.",
        epilog="Measured by default: in the regime wire everything, in offload TCP, in gigabit one "
        "stream and the round trip under it. Examples: scripts/bench --quick; "
        "scripts/bench --tunnel 'vela native' --tunnel 'kernel vxlan' --measurement loaded "
        "--measurement overload --rounds 7; scripts/bench --regime gigabit.",
    )
    parser.add_argument(
        "--tunnel",
        action="append",
        choices=list(TUNNELS),
        metavar="NAME",
        help=f"only this one; may be repeated; one of: {', '.join(TUNNELS)} (all)",
    )
    parser.add_argument(
        "--measurement",
        action="append",
        choices=MEASUREMENTS,
        help="only this one, in every regime; may be repeated. tcp: one stream; streams: "
        "two to eight at once; udp: frames of 64 and 512 bytes, their frame check included, and of "
        "the tunnel's MTU; overload: frames of 64 bytes from a sender without limit; rtt: pings; "
        "loaded: pings while one TCP stream runs; "
        "busy: pings while a program on each CPU computes without end, VELA's ends on different "
        "CPUs; "
        "circuits: a stream on each of many circuits",
    )
    parser.add_argument(
        "--regime",
        action="append",
        choices=[regime.value for regime in Regime],
        help="only this one; may be repeated. wire: the cable carries frames as a wire does; "
        "offload: buffers of 64 KiB; gigabit: a wire that carries 1 Gbit/s",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="instead of other tunnels: VELA with each feature of the kernel disabled in turn, "
        "with those that older kernels lack, and with all; one TCP stream and rates of frames, in "
        "the regime wire",
    )
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="instead of other tunnels: VELA whose workers have a filter of their system calls, "
        "and VELA whose workers have none; measures as --features does",
    )
    parser.add_argument(
        "--encrypted",
        action="store_true",
        help="encrypted VELA beside clear VELA and other tunnels that encrypt; measures as "
        "--features does, and round trips",
    )
    parser.add_argument(
        "--queues",
        action="store_true",
        help="instead of other tunnels: VELA as it comes, on one CPU, with a queue on each of two, "
        "encrypted with one and with two, and kernel VXLAN; one TCP stream, several at once, and "
        "round trips",
    )
    parser.add_argument(
        "--bridged",
        action="store_true",
        help="instead of tunnels between routers: those between hosts on LANs that are bridged at "
        "both ends; VELA as it comes and VELA that has IP cut what is too large, both between "
        "hosts of MTU 1500, and kernel VXLAN between hosts of 1450; one TCP stream, full frames, "
        "and round trips",
    )
    parser.add_argument(
        "--streams",
        type=int,
        help=f"of several at once, how many ({', '.join(map(str, Scale(1).streams))})",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"of each measurement ({ROUNDS}; quick: {QUICK_ROUNDS})"
    )
    parser.add_argument(
        "--seconds", type=int, help=f"of each TCP run ({SECONDS}; gigabit: three times that)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"two minutes: {QUICK_ROUNDS} short rounds in the regime wire, of few tunnels",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where results.json, table.md and plot.svg go (bench-results/TIME)",
    )
    given = parser.parse_args(argv)
    scale = QUICK if given.quick else Scale(seconds=SECONDS)
    if given.streams is not None:
        scale = replace(scale, streams=(given.streams,))
    if given.seconds is not None:
        scale = replace(scale, seconds=given.seconds)
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    if given.rounds is not None:
        rounds = given.rounds
    if rounds < 1 or scale.seconds < 1 or min(scale.streams) < 1:
        parser.error("rounds, seconds and streams are at least 1")
    sets = {
        "features": LACKING,
        "sandbox": UNFILTERED,
        "encrypted": ENCRYPTING,
        "queues": QUEUES,
        "bridged": BRIDGED,
    }
    wanted = [name for name in sets if getattr(given, name)]
    alone = sets[wanted[0]] if wanted else None
    chosen = [Regime(value) for value in given.regime or ()]
    regimes = dict.fromkeys(chosen or ([Regime.WIRE] if given.quick or alone else Regime))
    tunnels, measurements = TUNNELS, DEFAULT_MEASUREMENTS
    references: tuple[str, ...] = REFERENCES
    if alone:
        if given.tunnel or len(wanted) > 1:
            *most, last = (f"--{name}" for name in sets)
            parser.error(f"{', '.join(most)} and {last} choose tunnels: only one of them")
        tunnels, references = alone, (NATIVE,)
        measurements = dict.fromkeys(Regime, FEATURES_MEASUREMENTS)
        if given.encrypted:
            references = (FASTD_ENCRYPTED,)
            measurements = dict.fromkeys(Regime, (*FEATURES_MEASUREMENTS, "rtt"))
        if given.queues:
            references = (VXLAN,)
            measurements = dict.fromkeys(Regime, (TCP, STREAMS, RTT))
        if given.bridged:
            references = (VXLAN_BRIDGED, FRAGMENTS)
            measurements = dict.fromkeys(Regime, (TCP, UDP, RTT))
            scale = replace(scale, frame_sizes=())
    elif given.quick:
        tunnels = {name: TUNNELS[name] for name in QUICK_TUNNELS}
        measurements = dict.fromkeys(Regime, QUICK_MEASUREMENTS)
    if given.tunnel:
        tunnels = {name: tunnel for name, tunnel in TUNNELS.items() if name in given.tunnel}
    output = given.output or Path("bench-results", datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"))
    return Plan(
        tunnels=tunnels,
        references=references,
        regimes={
            regime: tuple(dict.fromkeys(given.measurement or measurements[regime]))
            for regime in regimes
        },
        rounds=rounds,
        scale=scale,
        output=output.absolute(),
    )


def main(argv: list[str]) -> int:
    plan = parse(argv)
    reason = unavailable()
    if reason:
        say(reason)
        return 1
    try:
        with signals_raise():
            results = run(plan)
    except InterruptionError as err:
        say(str(err))
        return 128 + err.number
    except LabError as err:
        say("\n".join((str(err), *getattr(err, "__notes__", ()))))
        return 1
    print(report(results, plan.output))
    say(f"took {_clock(results.seconds)}; written to {plan.output}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
