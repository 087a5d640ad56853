"""`velactl doctor`: what is wrong, what shows it, and what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from . import output
from .client import Connection, Document
from .diagnosis import Finding, diagnose
from .host import local_address, look
from .status import fitting
from .text import plural

_INDENT = " " * 8


def doctor(path: str, patterns: Sequence[str], *, as_json: bool) -> bool:
    """Show what is wrong with the machine and the circuits that fit. Return whether nothing is.

    Raises VelaError, also if a pattern fits no circuit.
    """
    with Connection(path) as connection:
        status = dict(connection.ask({"command": "status"}))
        config: Document = connection.ask({"command": "show-config"})["config"]
    names = {each["name"] for each in fitting(status["circuits"], patterns)}
    findings = list(diagnose(status, config, look(status["pid"]), local_address, names))
    if as_json:
        output.write_json(
            {"healthy": not findings, "findings": [asdict(each) for each in findings]}
        )
    else:
        output.write(lines(findings, len(names), output.width()))
    return not findings


def lines(findings: Sequence[Finding], circuits: int, width: int) -> Iterator[str]:
    """Yield the screen: each finding, and how many there are."""
    looked_at = f"looked at this machine and {plural(circuits, 'circuit')}"
    for each in findings:
        yield f"{each.circuit or 'machine'}: {each.check.replace('_', ' ')}"
        for title, text in (("seen", each.seen), ("do", each.advice)):
            yield from textwrap.wrap(
                text,
                width,
                initial_indent=f"  {title:<6}",
                subsequent_indent=_INDENT,
                break_on_hyphens=False,
            )
        yield ""
    yield f"{looked_at}: {plural(len(findings), 'finding') if findings else 'nothing is wrong'}"
