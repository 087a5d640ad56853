"""The status as one page for people: HTML and CSS, no script. It refreshes itself. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from ..states import WELL, total
from ..status import CircuitStatus, DaemonStatus
from .history import PERIOD_S, SAMPLES, Sample

REFRESH_S = 5
PAGE_TYPE = "text/html; charset=utf-8"
# Descriptions and reasons come from operators and from other machines: nothing of them is run.
PAGE_FIELDS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("Referrer-Policy", "no-referrer"),
)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 80rem;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
p { margin: .3rem 0 1rem; opacity: .75; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top;
         border-bottom: 1px solid rgb(128 128 128 / .3); }
th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.state { font-weight: 600; white-space: nowrap; }
.good { color: #16803c; } .bad { color: #c02626; } .off { opacity: .6; }
.reason { font-size: .9em; opacity: .85; }
svg { display: block; }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.tx { stroke: #2563c4; } .rx { stroke: #d0751a; }
"""

_HEADINGS = (
    ("Circuit", ""),
    ("Id", "number"),
    ("State", ""),
    ("For", "number"),
    ("Flaps", "number"),
    ("Sends", "number"),
    ("Receives", "number"),
    (f"{PERIOD_S * SAMPLES / 60:.0f} minutes", ""),
    ("Round trip", "number"),
    ("Remote, or why not", ""),
)


def status_page(status: DaemonStatus, history: Callable[[str], Sequence[Sample]]) -> bytes:
    """Return the whole page: circuits in trouble first, then by name. history: of a circuit."""
    counts = total(each.state for each in status.circuits)
    listed = sorted(status.circuits, key=lambda each: (_rank(each), each.name))
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in _HEADINGS)
    rows = "".join(_row(each, history(each.name)) for each in listed)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>VELA: {escape(counts)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(counts)}</h1>\n"
        f"<p>velad {escape(status.version)}, pid {status.pid}, up for "
        f"{_duration(status.uptime_seconds)}, on {escape(', '.join(status.listen))}</p>\n"
        f"<table>\n<tr>{head}</tr>\n{rows}</table>\n</body>\n</html>\n"
    ).encode("utf-8", "replace")


def _rank(circuit: CircuitStatus) -> int:
    if circuit.state in WELL:
        return 1
    return 2 if circuit.state == "disabled" else 0


def _row(circuit: CircuitStatus, samples: Sequence[Sample]) -> str:
    kind = ("bad", "good", "off")[_rank(circuit)]
    rates = circuit.rates
    cells: Iterable[tuple[str, str]] = (
        ("", escape(circuit.name) + _small(circuit.description)),
        ("number", str(circuit.id)),
        (f"state {kind}", escape(circuit.state)),
        ("number", _duration(circuit.since_seconds)),
        ("number", str(circuit.transitions)),
        ("number", _rate(rates.tx_bps)),
        ("number", _rate(rates.rx_bps)),
        ("", _sparkline(samples)),
        ("number", "" if circuit.rtt_ms is None else f"{circuit.rtt_ms:.2f} ms"),
        ("", escape(circuit.remote_address or circuit.remote) + _small(circuit.reason)),
    )
    inner = "".join(f'<td class="{kind}">{text}</td>' for kind, text in cells)
    return f"<tr>{inner}</tr>\n"


def _sparkline(samples: Sequence[Sample]) -> str:
    """Draw what was sent and received, the newest at the right; both by one scale."""
    most = max((max(each) for each in samples), default=0.0)
    if not most:
        return ""
    width, height = 2 * SAMPLES, 24
    lines = []
    for index, kind in enumerate(("tx", "rx")):
        points = " ".join(
            f"{width - 2 * age},{height - 1 - (height - 2) * each[index] / most:.1f}"
            for age, each in enumerate(reversed(samples))
        )
        lines.append(f'<polyline class="{kind}" points="{points}"/>')
    label = f"sent (blue) and received (orange), at most {_rate(int(most))}"
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(lines)}</svg>"
    )


def _small(text: str) -> str:
    return f'<div class="reason">{escape(text)}</div>' if text else ""


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _rate(bits_per_s: int | None) -> str:
    if bits_per_s is None:
        return ""
    for size, unit in ((10**9, "Gbit/s"), (10**6, "Mbit/s"), (10**3, "kbit/s")):
        if bits_per_s >= size:
            return f"{bits_per_s / size:.3g} {unit}"
    return f"{bits_per_s} bit/s"
