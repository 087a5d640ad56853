"""The configuration in effect, as tables with all keys. What they say is read as the same records.

No key is in it: the configuration names files of private and pre-shared keys, and has public keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from enum import Enum
from typing import Any

from vela.public_key import format_public_key

from .reader import CIRCUIT_KEYS, PEER_KEYS, format_circuit
from .records import (
    UNREAD_CIRCUIT,
    AutoconfigureConfig,
    CircuitConfig,
    Config,
    PeerConfig,
    SourceRules,
)
from .tables import TableField

Tables = dict[str, Any]

# The words for an absent value, where there is one.
_ABSENT = {"family": "any", "mtu": "auto", "cpu": "auto"}


def format_config(config: Config, circuits: Iterable[CircuitConfig]) -> Tables:
    """Return the tables of a file. None stands for keys that are not set and have no word."""
    tables: Tables = {"daemon": _record(config.daemon)}
    if config.autoconfigure is not None:
        tables["autoconfigure"] = _autoconfigure(config.autoconfigure)
    if config.defaults != UNREAD_CIRCUIT:
        tables["defaults"] = format_circuit(config.defaults)
    tables["circuits"] = {each.name: _circuit(each) for each in circuits}
    return tables


def _autoconfigure(autoconfigure: AutoconfigureConfig) -> Tables:
    table = _record(autoconfigure)
    table["from"] = table.pop("sources")
    del table["per_source"]
    table["peers"] = [format_public_key(key) for key in autoconfigure.peers]
    if autoconfigure.per_source:
        table["sources"] = {str(each.source): _rules(each) for each in autoconfigure.per_source}
    return table


def _rules(rules: SourceRules) -> Tables:
    table = _record(rules)
    del table["source"]
    return table


def _circuit(circuit: CircuitConfig) -> Tables:
    table = _fields(circuit, CIRCUIT_KEYS)
    table["peer"] = _fields(circuit.peer, PEER_KEYS)
    return table


def _fields(record: CircuitConfig | PeerConfig, keys: Iterable[TableField]) -> Tables:
    table: Tables = {}
    for key in keys:
        value = getattr(record, key.name)
        table[key.name] = _ABSENT.get(key.name) if value is None else key.write(value)
    return table


def _record(record: Any) -> Tables:
    return {each.name: _value(getattr(record, each.name)) for each in fields(record)}


def _value(value: object) -> object:
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
