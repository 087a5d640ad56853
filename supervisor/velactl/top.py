"""`velactl top`: rates, round trip, drops and the CPU of each worker, again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from . import output
from .client import Connection, Document
from .status import by_trouble, circuit_total, drops, fitting, is_trouble
from .text import Row, cut, duration, milliseconds, octets, rate, table

_CLEAR = "\033[H\033[J"
_HEADER = (
    "CIRCUIT",
    "STATE",
    ">TX",
    ">RX",
    ">TX/s",
    ">RX/s",
    ">RTT",
    ">DROPS",
    ">CPU%",
    ">MEM",
)


def top(
    path: str, patterns: Sequence[str], *, interval_s: float, count: int | None, as_json: bool
) -> None:
    """Show the busiest circuits each interval, count times; None: until stopped."""
    shown = 0
    before: dict[str, int] = {}
    with Connection(path) as connection:
        while True:
            status = connection.ask({"command": "status"})
            circuits = fitting(status["circuits"], patterns)
            if as_json:
                output.write_json(dict(status) | {"circuits": circuits}, indent=None)
            else:
                lines = screen(status, circuits, before, output.width())
                if output.is_terminal():
                    height = os.get_terminal_size().lines
                    lines = [_CLEAR + lines[0], *lines[1 : height - 1]]
                output.write(lines)
            before = {each["name"]: drops(each) for each in circuits}
            shown += 1
            if count is not None and shown >= count:
                return
            time.sleep(interval_s)


def screen(
    status: Document, circuits: Sequence[Document], before: dict[str, int], width: int
) -> list[str]:
    """Return a screen: circuits in trouble, then the busiest ones.

    before: drops by circuit, as of the screen before; only later ones are shown.
    """
    uptime = duration(status["uptime_seconds"])
    rows = []
    for each in sorted(by_trouble(circuits), key=_rank):
        worker, rates = each["worker"] or {}, each["rates"]
        cpu, memory = worker.get("cpu_percent"), worker.get("memory_bytes")
        dropped = drops(each)
        rows.append(
            Row(
                (
                    each["name"],
                    each["state"],
                    rate(rates["tx_bps"]),
                    rate(rates["rx_bps"]),
                    rate(rates["tx_pps"]),
                    rate(rates["rx_pps"]),
                    milliseconds(each["rtt_ms"]),
                    str(max(dropped - before.get(each["name"], dropped), 0)),
                    "-" if cpu is None else f"{cpu:.1f}",
                    "-" if memory is None else octets(memory),
                )
            )
        )
    return [
        cut(f"velad {status['version']}, up {uptime}: {circuit_total(circuits)}", width),
        "",
        *table(_HEADER, rows, width),
    ]


def _rank(circuit: Document) -> tuple[bool, float]:
    rates = circuit["rates"]
    return not is_trouble(circuit), -((rates["tx_bps"] or 0) + (rates["rx_bps"] or 0))
