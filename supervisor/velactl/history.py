"""velactl history: what a circuit did in each of the last minutes."""

from __future__ import annotations

import time
from argparse import Namespace

from . import output
from .client import Document, ask
from .text import Row, milliseconds, rate, table

_HEADER = ("MINUTE", ">UP", ">TX", ">RX", ">LOST", ">P50", ">P99")


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
            f"{100 * lost / asked:.3g}%" if asked else "-",
            milliseconds(minute["p50_ms"]),
            milliseconds(minute["p99_ms"]),
        ]
    )
