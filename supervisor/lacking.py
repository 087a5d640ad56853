"""What a configuration names and this machine does not have: a warning, as it may come."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from vela.errors import ConfigError

from .circuit.hooks import check_hook
from .config.records import Config


def find_lacking(config: Config) -> Iterator[str]:
    """Yield what is missing, one line each, with key path and what it means."""
    present = {name for _, name in socket.if_nameindex()}
    for circuit in config.circuits:
        table = f"circuits.{circuit.name}"
        if circuit.bridge is not None and circuit.bridge not in present:
            yield f"{table}.bridge: there is no bridge {circuit.bridge} now; velad waits for it"
        for key, path in (("up", circuit.up), ("down", circuit.down)):
            if path is None:
                continue
            try:
                check_hook(path)
            except ConfigError as err:
                yield f"{table}.{key}: {err}; it would not be run"
