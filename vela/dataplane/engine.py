"""The choice between the twins of the data path: by name, or the better of what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from vela.dataplane.calls import native_calls, python_calls
from vela.dataplane.contract import Abilities, Attachment, DataPlane
from vela.dataplane.reference import PythonDataPlane
from vela.errors import ConfigError
from vela.linux.features import ALL_FEATURES, OFFLOADS, Feature
from vela.linux.seccomp import Rule

try:
    from vela.dataplane._native import DataPlane as NativeDataPlane
except ImportError as err:
    _WHY_NOT_NATIVE = str(err)
else:
    _WHY_NOT_NATIVE = ""


class Engine(Enum):
    """Which twin of the data path carries frames."""

    AUTO = "auto"
    NATIVE = "native"
    PYTHON = "python"


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that circuits can use."""

    name: str
    """As the status shows it."""
    make: Callable[[Attachment], DataPlane]
    abilities: Abilities
    calls: Callable[[Attachment], tuple[Rule, ...]]
    """Which system calls it makes while it carries frames."""
    fallback: str = ""
    """Why a better engine is not used; empty: there is no better one."""


_PYTHON = LoadedEngine("python", PythonDataPlane, Abilities(ALL_FEATURES - OFFLOADS), python_calls)


def _make_native(attachment: Attachment) -> DataPlane:
    return NativeDataPlane(
        circuit_id=attachment.circuit_id,
        tap_fd=attachment.tap_fd,
        receive_fd=attachment.receive_socket.fileno(),
        send_fd=attachment.send_socket.fileno(),
        divert_fd=attachment.divert_socket.fileno(),
        destination=attachment.destination,
        source_address=attachment.source_address,
        local_mac=attachment.local_mac,
        remote_mac=attachment.remote_mac,
        elision=attachment.elision,
        frame_limit=attachment.frame_limit,
        datagram_limit=attachment.datagram_limit,
        virtio_header=attachment.virtio_header,
        partial_checksums=attachment.partial_checksums,
        nowait=Feature.RWF_NOWAIT in attachment.features,
        segment=Feature.UDP_SEGMENT in attachment.features,
        gro=Feature.UDP_GRO in attachment.features,
        coalesce_tcp=Feature.TSO in attachment.features,
        coalesce_udp=Feature.USO in attachment.features,
        counters=attachment.counters,
    )


_NATIVE = LoadedEngine(
    "native",
    _make_native,
    Abilities(ALL_FEATURES, virtio_header=True, partial_checksums=True, native=True),
    native_calls,
)


def load_engine(wanted: Engine) -> LoadedEngine:
    """Return the engine of this name. Raises ConfigError where it cannot be loaded."""
    if wanted is Engine.PYTHON:
        return _PYTHON
    if not _WHY_NOT_NATIVE:
        return _NATIVE
    if wanted is Engine.NATIVE:
        raise ConfigError(f'"native" cannot be loaded: {_WHY_NOT_NATIVE}; write "auto" or "python"')
    return replace(_PYTHON, fallback=_WHY_NOT_NATIVE)
