"""The choice between the twins of the data path: by name, or the better of what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from vela.dataplane.calls import native_calls, python_calls
from vela.dataplane.contract import Attachment, DataPlane
from vela.dataplane.reference import PythonDataPlane
from vela.errors import ConfigError
from vela.linux.features import OFFLOADS, Feature, Features
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
    """A twin, and what its circuits are to be given."""

    name: str
    """As the status shows it."""
    offloads: bool
    """Whether it takes what a TAP with offloads gives: frames that the kernel left unfinished."""
    make: Callable[[Attachment], DataPlane]
    calls: Callable[[Attachment], tuple[Rule, ...]]
    """Which system calls it makes while it carries frames."""
    fallback: str = ""
    """Why it is not the one that would be better."""

    def usable(self, features: Features) -> Features:
        """Return those of the kernel's features that this twin uses."""
        return features if self.offloads else features - OFFLOADS


def load_engine(wanted: Engine) -> LoadedEngine:
    """Return the engine of this name. Raises ConfigError where it cannot be loaded."""
    if wanted is Engine.PYTHON:
        return LoadedEngine("python", False, PythonDataPlane, python_calls)
    if not _WHY_NOT_NATIVE:
        return LoadedEngine("native", True, _make_native, native_calls)
    if wanted is Engine.NATIVE:
        raise ConfigError(f'"native" cannot be loaded: {_WHY_NOT_NATIVE}; write "auto" or "python"')
    return LoadedEngine("python", False, PythonDataPlane, python_calls, _WHY_NOT_NATIVE)


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
