"""What a changed key does to a circuit that runs: one row for each key. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum

from .records import CircuitConfig, Encapsulation, PeerConfig


class Effect(Enum):
    """What survives a change, from most to least. The values are what an operator reads."""

    NOTHING = "nothing"  # all
    LIVE = "live"  # interface and worker
    NEW_WORKER = "new worker"  # the interface: index, qdisc, VLANs and routes on it
    NEW_INTERFACE = "new interface"  # nothing

    @property
    def severity(self) -> int:
        return _ORDER.index(self)


_ORDER = tuple(Effect)


@dataclass(frozen=True, slots=True)
class Row:
    """The effect of one key."""

    effect: Effect
    new_session: bool = False
    """The session with the remote cannot go on: frames wait until there is another one."""


_LIVE, _NEW_WORKER = Row(Effect.LIVE), Row(Effect.NEW_WORKER)
_NEW_SESSION = Row(Effect.NEW_WORKER, new_session=True)

CIRCUIT_EFFECTS: dict[str, Row] = {
    "name": Row(Effect.NEW_INTERFACE),  # to be exact, another circuit
    "id": Row(Effect.NEW_INTERFACE),
    # The session stays if the new name or address leads to the machine that it is with.
    "remote": _LIVE,
    "description": _LIVE,
    "enabled": _NEW_WORKER,
    "family": _LIVE,
    "addresses": _LIVE,
    # A bridge decides how the MSS of TCP is clamped.
    "bridge": _NEW_WORKER,
    "mtu": _NEW_WORKER,
    "fragmentation": _NEW_WORKER,
    "clamp_mss": _NEW_WORKER,
    "packet_too_big": _NEW_WORKER,
    "mac": _NEW_WORKER,
    "encapsulation": _NEW_WORKER,
    "encryption": _NEW_SESSION,
    "peer_key": _NEW_SESSION,
    "source_port": _NEW_WORKER,
    "rate": _LIVE,
    # The remote knows this end by its address.
    "bind": _NEW_SESSION,
    "device": _NEW_SESSION,
    "mark": _NEW_SESSION,
    "dscp": _NEW_WORKER,
    "cpu": _NEW_WORKER,
    "latency": _NEW_WORKER,
    "keepalive": _LIVE,
    "autoconfigure": _NEW_SESSION,
    "key_file": _LIVE,
    "accept_ra": _LIVE,
    "up": _LIVE,
    "down": _LIVE,
}
"""Of the keys of a circuit, but for its table "peer". What both ends agree on, or the way to the
remote, may change with any of them; where it does, there is a new worker, too."""

PEER_EFFECTS: dict[str, Row] = {
    "interface": _LIVE,
    "addresses": _LIVE,
    "bridge": _LIVE,
    "mac": _NEW_WORKER,  # of a static circuit; else once the remote has changed it
    "checksum_offload": _NEW_WORKER,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """How two configurations of one circuit differ."""

    keys: tuple[str, ...]
    """Key paths within the circuit's table: "mtu", "peer.addresses"."""
    effect: Effect
    new_session: bool = False


def difference(before: CircuitConfig, after: CircuitConfig) -> Difference:
    """Return how a circuit changes from one configuration to another."""
    rows = dict(_changed_rows(before, after))
    effects = (Effect.NOTHING, *(row.effect for row in rows.values()))
    return Difference(
        keys=tuple(rows),
        effect=max(effects, key=lambda effect: effect.severity),
        new_session=any(row.new_session for row in rows.values()),
    )


def _changed_rows(before: CircuitConfig, after: CircuitConfig) -> Iterator[tuple[str, Row]]:
    for field in fields(CircuitConfig):
        if field.name == "peer":
            yield from _changed_peer_rows(before.peer, after.peer)
            continue
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        row = CIRCUIT_EFFECTS[field.name]
        # The original VELA has no handshake.
        if field.name == "encapsulation" and Encapsulation.IP in (old, new):
            row = _NEW_SESSION
        # An interface that is made with one queue never has more.
        if field.name == "cpu" and len(before.cpus) < 2 <= len(after.cpus):
            row = Row(Effect.NEW_INTERFACE)
        yield field.name, row


def _changed_peer_rows(before: PeerConfig, after: PeerConfig) -> Iterator[tuple[str, Row]]:
    for field in fields(PeerConfig):
        if getattr(before, field.name) != getattr(after, field.name):
            yield f"peer.{field.name}", PEER_EFFECTS[field.name]
