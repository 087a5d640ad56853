"""What a configuration names and this machine does not have: a warning, as it may come."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from vela.errors import ConfigError
from vela.reasons import Cause

from .circuit.hooks import check_hook
from .config.key import MissingKeyError, open_identity, open_key
from .config.records import CircuitConfig, Config

_LATER = frozenset({Cause.DEVICE_MISSING.code, Cause.SOURCE_MISSING.code})


def find_lacking(config: Config) -> Iterator[str]:
    """Yield what is missing, one line each, with key path and what it means."""
    present = {name for _, name in socket.if_nameindex()}
    shared = config.autoconfigure
    yield from _find_key("daemon.identity", config.daemon.identity, open_identity)
    if shared is not None:
        yield from _find_key("autoconfigure.key_file", shared.key_file, open_key)
    for circuit in config.circuits:
        yield from _of_circuit(f"circuits.{circuit.name}", circuit, present)


def _of_circuit(table: str, circuit: CircuitConfig, present: set[str]) -> Iterator[str]:
    if circuit.bridge is not None and circuit.bridge not in present:
        yield f"{table}.bridge: there is no bridge {circuit.bridge} now; velad waits for it"
    yield from _find_key(f"{table}.key_file", circuit.key_file, open_key)
    _, obstacle = circuit.underlay.presence()
    if obstacle.code in _LATER:
        key = "device" if obstacle.code == Cause.DEVICE_MISSING.code else "bind"
        # In the words of the status, which say that velad waits.
        yield f"{table}.{key}: {obstacle}"
    for key, path in (("up", circuit.up), ("down", circuit.down)):
        if path is None:
            continue
        try:
            check_hook(path)
        except ConfigError as err:
            yield f"{table}.{key}: {err}; it would not be run"


def _find_key(key: str, path: Path | None, opened: Callable[[Path], int]) -> Iterator[str]:
    """Yield that there is no such file; what is wrong with one that there is, is a mistake."""
    if path is None:
        return
    with suppress(ConfigError):
        try:
            os.close(opened(path))
        except MissingKeyError as err:
            yield f"{key}: {err}; velad does not start without it"
