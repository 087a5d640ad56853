"""All keys of a circuit: from the file's text to the record, to circuits.json, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from vela.errors import ConfigError
from vela.supervisor.circuit.setup import Origin
from vela.supervisor.config.reader import format_circuit, parse_config
from vela.supervisor.config.records import CircuitConfig, DaemonConfig, PeerConfig
from vela.supervisor.registry.store import StateFile, Stored, StoredCircuit

REQUIRED = {"id": 1, "remote": "router2.example.net"}
CIRCUIT_FIELDS = [each.name for each in fields(CircuitConfig) if each.name not in ("name", "peer")]
# What a key needs beside it, to be right.
COMPANIONS: dict[str, dict[str, object]] = {
    "encryption": {"key_file": "/etc/vela/key"},
    "peer_key": {"encryption": "required"},
    "latency": {"cpu": 1},
}
DAEMON = DaemonConfig(identity=Path("/etc/vela/identity.key"))
PEER_FIELDS = [each.name for each in fields(PeerConfig)]
# What keys take, of each kind; words of enumerations come from the records themselves.
VALUES = (
    "100M",
    *(True, False, 2, 1400, 0.5),
    *("router9", "192.0.2.9", "2001:db8::9", "10.9.0.1/30", "02:00:5e:10:00:09", "/etc/vela/x"),
    "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
    ["router9", "192.0.2.9", "router3.example.net:4711"],
    *(
        ["router9"],
        ["192.0.2.9"],
        ["10.9.0.1/30"],
        ["02:00:5e:10:00:09"],
        ["/etc/vela/x"],
        [2],
        [0, 1],
    ),
)


def words_of(kind: Any) -> Iterator[str]:
    """Yield the values of all enumerations in a type."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        yield from (str(item.value) for item in kind)
    for part in get_args(kind):
        yield from words_of(part)


def text_of(settings: Mapping[str, object]) -> str:
    """Return a file with a circuit of these settings; JSON's scalars and lists are TOML's, too."""
    circuit = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    lines = [f'[daemon]\nidentity = "{DAEMON.identity}"', "[circuits.vela0]"]
    lines += [f"{key} = {json.dumps(each)}" for key, each in circuit.items()]
    for name, table in settings.items():
        if isinstance(table, dict):
            lines.append(f"[circuits.vela0.{name}]")
            lines += [f"{key} = {json.dumps(each)}" for key, each in table.items()]
    return "\n".join(lines) + "\n"


def circuit_of(settings: Mapping[str, object]) -> CircuitConfig:
    (circuit,) = parse_config(text_of(settings), "f").circuits
    return circuit


def circuits_with(name: str, in_peer: bool) -> list[CircuitConfig]:
    """Return circuits in which one field has another value than by default, or than REQUIRED."""
    usual = circuit_of(REQUIRED)
    record: Any = PeerConfig if in_peer else CircuitConfig
    found = []
    for value in (*VALUES, *words_of(get_type_hints(record)[name])):
        key = {**COMPANIONS.get(name, {}), name: value}
        try:
            circuit = circuit_of(REQUIRED | ({"peer": key} if in_peer else key))
        except ConfigError:
            continue
        new, old = (circuit.peer, usual.peer) if in_peer else (circuit, usual)
        if getattr(new, name) != getattr(old, name):
            found.append(circuit)
    return found


@pytest.mark.parametrize(
    ("name", "in_peer"),
    [(name, False) for name in CIRCUIT_FIELDS] + [(name, True) for name in PEER_FIELDS],
)
def test_circuit_value_other_than_its_default_survives_file_and_store(
    name: str, in_peer: bool, tmp_path: Path
) -> None:
    circuits = circuits_with(name, in_peer)

    assert circuits, f"no value in VALUES sets {name}: is it a key, and of a kind that is new here?"
    for circuit in circuits:
        StateFile(tmp_path).save(Stored((StoredCircuit(circuit, Origin.COMMAND),)))
        (kept,) = StateFile(tmp_path).load(DAEMON).circuits
        assert kept.config == circuit
        assert circuit_of(format_circuit(circuit)) == circuit


def test_circuit_of_defaults_is_stored_as_its_required_keys() -> None:
    assert format_circuit(circuit_of(REQUIRED)) == REQUIRED
