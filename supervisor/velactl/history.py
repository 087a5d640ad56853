"""velactl history: what a circuit did in each of the last minutes."""

from __future__ import annotations

import time
from argparse import Namespace

from . import output
from .client import Document, ask
from .text import Row, milliseconds, rate, table

_HEADER = (
    *("MINUTE", ">UP", ">TX", ">RX"),
    *(">LOST", ">OUT", ">BACK", ">P50", ">P99", ">JITTER"),
)


def history(arguments: Namespace) -> None:
    """Show the last minutes of a circuit. Raises VelaError."""
    request = {"command": "history", "circuit": arguments.circuit}
    reply = ask(arguments.socket, request)
    minutes = reply["minutes"][-arguments.minutes :]
    if arguments.json:
        output.write_json({**reply, "minutes": minutes})
    elif not minutes:
        output.write([f"{arguments.circuit}: no minute is over yet"])
    else:
        output.write(table(_HEADER, map(_row, minutes), output.width()))


def _row(minute: Document) -> Row:
    asked, lost = minute["asked"], minute["asked"] - minute["answered"]
    return Row(
        [
            time.strftime("%m-%d %H:%M", time.localtime(minute["time"])),
            f"{minute['up_percent']:g}%",
            rate(minute["tx_bps"]),
            rate(minute["rx_bps"]),
            _percent(100 * lost / asked if asked else None),
            _percent(minute.get("tx_loss_percent")),
            _percent(minute.get("rx_loss_percent")),
            milliseconds(minute["p50_ms"]),
            milliseconds(minute["p99_ms"]),
            milliseconds(minute.get("jitter_ms")),
        ]
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}%"
