"""A benchmark's results as tables, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from lab.load import CONGESTION_CONTROL
from lab.quantities import quantities
from lab.regimes import Regime
from lab.results import Results

ABSENT = "-"
LARGE_RATIO = 20

TITLES = {
    Regime.WIRE: "Frames as on a wire",
    Regime.OFFLOAD: "Buffers of 64 KiB between the routers",
    Regime.GIGABIT: "A wire of 1 Gbit/s",
}


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        grid = (self.header, *self.rows)
        widths = [max(len(row[column]) for row in grid) for column in range(len(self.header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in grid
        ]
        return "\n".join((self.title, *lines))

    def markdown(self) -> str:
        ruler = ("---", *("---:" for _ in self.header[1:]))
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, ruler, *self.rows)]
        return "\n".join((f"**{self.title}**", "", *lines))


Cell = Callable[[Results, Regime, str], float | None]


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and how each tunnel's cell is found and written."""

    heading: str
    cell: Cell
    form: str = "{:.0f}"


def _median(heading: str, key: str, form: str = "{:.0f}", factor: float = 1.0) -> Column:
    def cell(results: Results, regime: Regime, tunnel: str) -> float | None:
        value = results.series[regime][tunnel].median(key)
        return None if value is None else value * factor

    return Column(heading, cell, form)


def _ratio(reference: str, key: str) -> Column:
    return Column(
        f"/ {reference.split()[-1] if reference.startswith('kernel') else reference.split()[0]}",
        lambda results, regime, tunnel: results.ratio(regime, tunnel, reference, key),
        "{:.2f}",
    )


def _ceiling(key: str) -> Column:
    def cell(results: Results, regime: Regime, tunnel: str) -> float | None:
        if regime is not Regime.GIGABIT:
            return None
        return results.share_of_ceiling(tunnel, key)

    return Column("of ceiling", cell, "{:.1%}")


def _columns(results: Results) -> dict[str, list[Column]]:
    def ratios(key: str) -> list[Column]:
        return [_ratio(reference, key) for reference in results.references]

    counts = results.settings["circuits"]
    streams = results.settings["streams"]
    return {
        "One TCP stream": [
            _median("A→B Mbit/s", "tcp_1_ab_mbit_per_s"),
            *ratios("tcp_1_ab_mbit_per_s"),
            _ceiling("tcp_1_ab_mbit_per_s"),
            _median("B→A Mbit/s", "tcp_1_ba_mbit_per_s"),
            _ceiling("tcp_1_ba_mbit_per_s"),
            _median("CPU s/GB", "tcp_1_ab_machine_s_per_gb", "{:.2f}"),
            _median("forwarders' s/GB", "tcp_1_ab_forwarders_s_per_gb", "{:.2f}"),
            _median("cores an end", "tcp_1_ab_forwarder_cores", "{:.2f}"),
        ],
        "Several TCP streams": [
            column
            for count in streams
            for column in (
                _median(f"{count}: Mbit/s", f"tcp_{count}_ab_mbit_per_s"),
                *ratios(f"tcp_{count}_ab_mbit_per_s"),
                _median("CPU s/GB", f"tcp_{count}_ab_machine_s_per_gb", "{:.2f}"),
            )
        ],
        "UDP with less than 1 % loss, thousand frames/s": [
            _median("64 bytes", "udp_64_frames_per_s", "{:.1f}", 1e-3),
            *ratios("udp_64_frames_per_s"),
            _median("512 bytes", "udp_512_frames_per_s", "{:.1f}", 1e-3),
            _median("full", "udp_full_frames_per_s", "{:.1f}", 1e-3),
            _median("CPU s/million of 64", "udp_64_machine_s_per_million", "{:.1f}"),
            _median("forwarders'", "udp_64_forwarders_s_per_million", "{:.1f}"),
        ],
        "64-byte frames from a sender without limit, thousand/s": [
            _median("delivered", "overload_frames_per_s", "{:.1f}", 1e-3),
            *ratios("overload_frames_per_s"),
            _median("sent", "overload_sent_per_s", "{:.0f}", 1e-3),
        ],
        "Round trip, µs": [
            _median("p50", "rtt_p50_us"),
            *ratios("rtt_p50_us"),
            _median("p99", "rtt_p99_us"),
        ],
        "Round trip under one TCP stream, µs": [
            _median("p50", "loaded_p50_us"),
            *ratios("loaded_p50_us"),
            _median("p99", "loaded_p99_us"),
            *ratios("loaded_p99_us"),
            _median("Mbit/s meanwhile", "loaded_mbit_per_s"),
        ],
        "Round trip on busy hosts, µs": [
            _median("p50", "busy_p50_us"),
            *ratios("busy_p50_us"),
            _median("p99", "busy_p99_us"),
            *ratios("busy_p99_us"),
        ],
        "A TCP stream on each of many circuits at once": [
            *(_median(f"{n}: Mbit/s", f"circuits_{n}_mbit_per_s") for n in counts),
            *(_median(f"{n}: Jain", f"circuits_{n}_jain", "{:.3f}") for n in counts if n > 1),
            *(_median(f"{n}: min/max", f"circuits_{n}_min_to_max", "{:.2f}") for n in counts[-1:]),
        ],
    }


def tables(results: Results) -> list[Table]:
    """Return those in which there is a figure, without columns and rows that have none.

    First the ratios to each reference, where anything was measured beside it.
    """
    made = [table for reference in results.references for table in _ratios(results, reference)]
    for regime, tunnels in results.series.items():
        for title, columns in _columns(results).items():
            cells = {
                tunnel: [column.cell(results, regime, tunnel) for column in columns]
                for tunnel in tunnels
            }
            rows = {name: row for name, row in cells.items() if any(v is not None for v in row)}
            used = [
                place
                for place in range(len(columns))
                if any(row[place] is not None for row in rows.values())
            ]
            if not used:
                continue
            made.append(
                Table(
                    f"{TITLES[regime]}: {title}",
                    ("tunnel", *(columns[place].heading for place in used)),
                    tuple(
                        (name, *(_written(columns[place].form, row[place]) for place in used))
                        for name, row in rows.items()
                    ),
                )
            )
    return made


def _ratios(results: Results, reference: str) -> Iterator[Table]:
    """Yield a table: rows are quantities, columns tunnels, VELA's own where there are."""
    others = [name for name in _mtus(results) if name != reference]
    own = [name for name in others if name.startswith("vela")] or others
    rows = []
    for regime in results.series:
        for quantity in quantities(results.settings):
            found = {
                name: results.ratios(regime, name, reference, quantity.key)
                for name in own
                if name in results.series[regime]
            }
            if any(found.values()):
                title = f"{regime.value}: {quantity.title.partition(',')[0]}"
                cells = (_spread(found.get(name, [])) for name in own)
                rows.append((f"{title}{' (less is better)' * quantity.is_cost}", *cells))
    if rows:
        title = f"Ratio to {reference} in the same round: median (least to most)"
        yield Table(title, ("quantity", *own), tuple(rows))


def _spread(ratios: list[float]) -> str:
    if not ratios:
        return ABSENT
    middle, least, most = (
        f"{ratio:.2f}" if ratio < LARGE_RATIO else f"{ratio:.0f}"
        for ratio in (median(ratios), min(ratios), max(ratios))
    )
    return f"{middle} ({least} to {most})" if len(ratios) > 1 else middle


def _written(form: str, value: float | None) -> str:
    return ABSENT if value is None else form.format(value)


def legend(results: Results) -> list[str]:
    """Return what a reader has to know beside the tables, a sentence each."""
    settings = results.settings
    said = [
        f"{results.machine.line}; {results.started}; {_medians(settings['rounds'])}.",
        "Both routers, the load and the tunnels share these CPUs. Frames are measured with the "
        "4 bytes of frame check that only a wire carries; full: the tunnel's own MTU "
        f"({', '.join(f'{name} {mtu}' for name, mtu in _mtus(results).items())}).",
        "CPU is all that the machine did, load included; forwarders' is what the tunnel's own "
        f"processes used at both ends (the kernel's have none). TCP with {CONGESTION_CONTROL}.",
        "Round trips are means over the CPUs that ping was put on in turn, as a CPU that sleeps "
        "takes long to wake.",
    ]
    if any(
        series.median("busy_p50_us") is not None
        for tunnels in results.series.values()
        for series in tunnels.values()
    ):
        said.append(
            "On busy hosts each CPU has a program that never sleeps, and the two ends of VELA have "
            "a CPU each."
        )
    if "vela apart" in _mtus(results):
        said.append("vela apart is vela native whose two ends have a CPU each.")
    if "vela low latency" in _mtus(results):
        said.append('vela low latency is vela apart with latency = "low": its ends poll.')
    if "vela python" in _mtus(results):
        said.append(
            "The two ends of vela python have a CPU each, as the scheduler lets other programs "
            'have; those of vela native share one, as cpu = "auto" gives them.'
        )
    if Regime.GIGABIT in results.series:
        said.append(
            "The ceiling is what one TCP stream with timestamps can carry on a gigabit wire with "
            "the tunnel's MTU: 922.6 Mbit/s for VELA."
        )
    said += [f"Skipped: {name}: {reason}" for name, reason in results.skipped.items()]
    said += [f"Failed: {failure}" for failure in results.failures]
    return said


def _medians(rounds: int) -> str:
    return f"medians of {rounds} rounds" if rounds > 1 else "one round"


def _mtus(results: Results) -> dict[str, int]:
    return {
        name: series.mtu for tunnels in results.series.values() for name, series in tunnels.items()
    }
