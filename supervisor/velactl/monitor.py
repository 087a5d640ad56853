"""`velactl monitor`: changes of circuits, as they come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

from . import output
from .client import Document
from .wait import watched


def monitor(path: str, patterns: Sequence[str], *, as_json: bool) -> None:
    """Show changes until velad ends, which raises VelaError, or somebody stops this."""
    with watched(path) as connection:
        while True:
            event = connection.read()
            if event is None:
                continue
            name = event.get("circuit")
            if patterns and name and not any(fnmatchcase(name, each) for each in patterns):
                continue
            if as_json:
                output.write_json(event, indent=None)
            else:
                output.write([_line(event)])


def _line(event: Document) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    match event:
        case {"event": "state", "circuit": name, "state": state, "was": was, "reason": reason}:
            before = f" (was {was})" if was != state else ""
            return f"{when} {name} {state}{before}" + (f": {reason}" if reason else "")
        case {"event": "lost", "events": count}:
            return f"{when} {count} events lost: this reader was too slow"
        case {"event": what, "circuit": name}:
            return f"{when} {name} {what}"
    return f"{when} {event['event']}"
