"""Why a remote does not answer: which causes the status of this end excludes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from .client import Document


class Cause(Enum):
    """Why a machine with an address and a route does not answer; the values ask for it."""

    NO_VELAD = "Is the other machine up, and does velad run there (velactl status)?"
    FIREWALL = "Does a firewall here, there or between drop {ports} (nft list ruleset)?"
    UNLISTED = "Does [autoconfigure] there list this machine in `from`?"
    KEY = "Is the key the same on both (sha256sum)?"


# Of ICMP errors that the remote or a router sends. What a velad has read has no such answer.
_NOT_READ = (Cause.UNLISTED, Cause.KEY)
_NOT_THERE = ("host unreachable", "network unreachable", "address unreachable", "no route")

Excluded = Mapping[Cause, str]
"""With what shows that it is not the cause."""


def excluded(circuit: Document, status: Document, tables: Mapping[str, Document]) -> Excluded:
    """Return what cannot be why a circuit's remote does not answer.

    status: of all circuits. tables: of the configuration in effect, by circuit.
    """
    return dict(_found(circuit, status, tables))


def _found(
    circuit: Document, status: Document, tables: Mapping[str, Document]
) -> Iterator[tuple[Cause, str]]:
    asking = circuit.get("asking")
    if not asking:
        return
    back = asking["undelivered"]
    if back is not None and back["source"] is None:
        for cause in (Cause.NO_VELAD, *_NOT_READ):
            yield cause, "this machine did not send"
    elif back is not None:
        why = f"{back['what']} came back"
        for cause in _NOT_READ:
            yield cause, why
        if back["what"].endswith("prohibited"):
            yield Cause.NO_VELAD, why
        elif back["what"].endswith(_NOT_THERE):
            yield Cause.FIREWALL, why
    key = tables.get(circuit["name"], {}).get("key_file")
    for other in status["circuits"]:
        if other["state"] == "up" and _endpoint(other) in asking["remotes"]:
            why = f"{other['name']} to the same machine is up"
            yield Cause.NO_VELAD, why
            yield Cause.FIREWALL, why
            if tables.get(other["name"], {}).get("key_file") == key:
                yield Cause.KEY, f"{other['name']} with the same key is up"


def _endpoint(circuit: Document) -> str:
    address = circuit["remote_address"] or ""
    return (
        f"[{address}]:{circuit['remote_port']}"
        if ":" in address
        else (f"{address}:{circuit['remote_port']}")
    )


def shown(found: Excluded) -> str:
    """Return the causes that are excluded, in a sentence; empty: none is."""
    words = {
        Cause.NO_VELAD: "no velad there",
        Cause.FIREWALL: "a firewall",
        Cause.UNLISTED: "its `from`",
        Cause.KEY: "its key",
    }
    reasons: dict[str, list[str]] = {}
    for cause in Cause:
        if cause in found:
            reasons.setdefault(found[cause], []).append(words[cause])
    said = "; ".join(f"{', '.join(causes)} ({why})" for why, causes in reasons.items())
    return f"it is not: {said}" if said else ""
