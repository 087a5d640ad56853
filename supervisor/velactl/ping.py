"""velactl ping: whether the other end's worker answers, and how soon."""

from __future__ import annotations

import time
from argparse import Namespace

from vela.percentile import percentile

from . import output
from .client import Connection, Document
from .text import milliseconds

# A request goes without an answer for 2 s.
TIMEOUT_S = 5.0


def ping(arguments: Namespace) -> bool:
    """Ask a circuit's remote a few times. Return whether it has answered. Raises VelaError."""
    request = {"command": "ping", "circuit": arguments.circuit, "size": arguments.size}
    answers: list[float | None] = []
    with Connection(arguments.socket, TIMEOUT_S) as connection:
        begin = time.monotonic()
        try:
            for number in range(arguments.count):
                wait_s = begin + number * arguments.interval - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
                answers.append(connection.ask(request)["rtt_ms"])
                if not arguments.json:
                    output.write([_line(arguments.circuit, number + 1, answers[-1])])
        except KeyboardInterrupt:
            pass  # and what there is is shown
    if arguments.json:
        output.write_json(_document(arguments, answers))
    else:
        output.write(_summary(answers))
    return any(each is not None for each in answers)


def _line(name: str, number: int, rtt_ms: float | None) -> str:
    if rtt_ms is None:
        return f"{name}: {number}: no answer"
    return f"{name}: {number}: answer after {rtt_ms:.3f} ms"


def _summary(answers: list[float | None]) -> list[str]:
    counts = _counts(answers)
    lines = [
        f"{counts['sent']} sent, {counts['answered']} answered, {counts['loss_percent']:g} % lost"
    ]
    times = _times(answers)
    if times is not None:
        shown = ", ".join(f"{name} {milliseconds(value)}" for name, value in times.items())
        lines.append(f"round trip {shown} ms")
    return lines


def _document(arguments: Namespace, answers: list[float | None]) -> Document:
    return {
        "circuit": arguments.circuit,
        "size": arguments.size,
        **_counts(answers),
        "rtt_ms": _times(answers) or dict.fromkeys(("min", "p50", "p99", "max")),
        "answers_ms": answers,
    }


def _counts(answers: list[float | None]) -> dict[str, float]:
    sent, lost = len(answers), answers.count(None)
    percent = round(100 * lost / sent, 1) if sent else 0.0
    return {"sent": sent, "answered": sent - lost, "lost": lost, "loss_percent": percent}


def _times(answers: list[float | None]) -> dict[str, float] | None:
    """Return what the round trips were, in milliseconds; None: there was none."""
    ordered = sorted(each for each in answers if each is not None)
    if not ordered:
        return None
    return {
        "min": ordered[0],
        "p50": percentile(ordered, 50),
        "p99": percentile(ordered, 99),
        "max": ordered[-1],
    }
