"""`velactl reload`: what it does to which circuit, before or after it is done."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator

from vela.errors import VelaError

from . import output
from .client import Document, ask

# Hundreds of circuits may change; systemd waits 90 s.
RELOAD_TIMEOUT_S = 60.0


def reload(arguments: Namespace) -> None:
    """Reload, or with --dry-run say what would happen. Raises VelaError."""
    request = {
        "command": "reload",
        "dry_run": arguments.dry_run,
        "allow_empty": arguments.allow_empty,
        "confirm": arguments.confirm,
    }
    report = ask(arguments.socket, request, RELOAD_TIMEOUT_S)
    if arguments.json:
        output.write_json(report)
    elif "circuits" in report:
        output.write(lines(report))
        if arguments.confirm is not None:
            within = f"within {arguments.confirm:g} s"
            output.write([f"on trial: velactl confirm {within}, or all of it is taken back"])
    failed = {
        each["circuit"]: each["error"] for each in report.get("circuits", ()) if each["error"]
    }
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise VelaError(f"all else was reloaded, but {reasons}")


def lines(report: Document) -> Iterator[str]:
    """Yield a line for each circuit, and what else the operator must know."""
    circuits = report["circuits"]
    width = max((len(each["circuit"]) for each in circuits), default=0)
    for each in circuits:
        line = f"{each['circuit']:{width}}  {each['effect']:13}  {', '.join(each['keys'])}"
        yield line.rstrip()
    counts = Counter(each["effect"] for each in circuits)
    summary = ", ".join(f"{count} {effect}" for effect, count in counts.items())
    yield f"{len(circuits)} circuits{': ' if summary else ''}{summary}"
    if report["autoconfigure_changed"]:
        yield "[autoconfigure] changed: circuits of others that it no longer allows are deleted"
    for key in report["needs_restart"]:
        yield f"{key} changed: restart velad for that to take effect"
