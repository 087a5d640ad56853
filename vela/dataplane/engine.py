"""The choice between the twins of the data path: by name, or the better of what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from vela.dataplane.calls import native_calls, python_calls
from vela.dataplane.contract import Abilities, Attachment, DataPlane
from vela.dataplane.key_page import map_key_page
from vela.dataplane.mss import MssClamp
from vela.errors import ConfigError
from vela.linux.features import ALL_FEATURES, OFFLOADS, Feature
from vela.linux.processor import has_aes_instructions
from vela.linux.seccomp import Rule
from vela.wire import Suite

try:
    from vela.dataplane._native import DataPlane as NativeDataPlane
    from vela.dataplane._native import encryption_obstacle as native_obstacle
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
    prepare: Callable[[Attachment], Callable[[], DataPlane]]
    """Returns what makes the data path. A worker calls that; its memory then is its own, while all
    that is made ahead of its fork is shared."""
    abilities: Abilities
    calls: Callable[[Attachment], tuple[Rule, ...]]
    """Which system calls it makes while it carries frames."""
    fallback: str = ""
    """Why a better engine is not used; empty: there is no better one."""
    encryption_obstacle: Callable[[], str | None] = lambda: "this engine does not encrypt"
    """Returns why it cannot encrypt, in words; None if it can. To be asked before any fork: all
    workers then share what it loads."""

    def make(self, attachment: Attachment) -> DataPlane:
        """Return a data path of this engine. Raises OSError."""
        return self.prepare(attachment)()

    def suites(self) -> tuple[Suite, ...]:
        """Return the ciphers that this machine offers, the better one first; none: no encryption.

        Without instructions for it AES-GCM is slower than ChaCha20-Poly1305.
        """
        if self.encryption_obstacle() is not None:
            return ()
        if has_aes_instructions():
            return Suite.AES_256_GCM, Suite.CHACHA20_POLY1305
        return (Suite.CHACHA20_POLY1305,)


def _load_python() -> LoadedEngine:
    # With the package cryptography it takes 10 MB, which the native engine does without.
    from vela.dataplane.reference import PythonDataPlane

    return LoadedEngine(
        "python",
        lambda attachment: partial(PythonDataPlane, attachment),
        Abilities(ALL_FEATURES - OFFLOADS),
        python_calls,
        encryption_obstacle=lambda: None,
    )


def _native_obstacle() -> str | None:
    return native_obstacle()


def _prepare_native(attachment: Attachment) -> Callable[[], DataPlane]:
    clamp = attachment.mss_clamp or MssClamp()
    make = partial(
        NativeDataPlane,
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
        clamp_datagram_limit=clamp.datagram_limit or 0,
        clamp_mss=clamp.mss or 0,
        fragmentation=attachment.fragmentation,
        packet_too_big=attachment.packet_too_big,
        dscp=-1 if attachment.dscp is None else attachment.dscp,
        carry_ecn=attachment.carry_ecn,
        outer_ipv4=attachment.outer_ipv4,
        counters=attachment.counters,
        queue=attachment.queue[0],
        queues=attachment.queue[1],
        sequences=attachment.sequences,
        bundle_limit=attachment.bundle_limit,
    )
    page = attachment.key_page
    # Mapped in the worker alone.
    return lambda: make(key_page=None if page is None else map_key_page(page))


_NATIVE = LoadedEngine(
    "native",
    _prepare_native,
    Abilities(
        ALL_FEATURES, virtio_header=True, partial_checksums=True, several_queues=True, native=True
    ),
    native_calls,
    encryption_obstacle=_native_obstacle,
)


def load_engine(wanted: Engine) -> LoadedEngine:
    """Return the engine of this name. Raises ConfigError where it cannot be loaded."""
    if wanted is Engine.PYTHON:
        return _load_python()
    if not _WHY_NOT_NATIVE:
        return _NATIVE
    if wanted is Engine.NATIVE:
        raise ConfigError(f'"native" cannot be loaded: {_WHY_NOT_NATIVE}; write "auto" or "python"')
    return replace(_load_python(), fallback=_WHY_NOT_NATIVE)
