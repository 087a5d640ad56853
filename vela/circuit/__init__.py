"""The records of the configuration that signaling still takes; they go to vela.supervisor.config.

Frozen, and already validated. Nothing here reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vela.address import IPInterface, IPNetwork


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """What the other end gets by autoconfiguration."""

    interface: str | None = None
    addresses: tuple[IPInterface, ...] = ()
    bridge: str | None = None
    mac: bytes | None = None
    """Its TAP's; on a static circuit, the one thing that lets frames be elided."""
    checksum_offload: bool = False
    """On a static circuit: it completes inner checksums that are left to the outer one."""


@dataclass(frozen=True, slots=True)
class AutoconfigureConfig:
    """The [autoconfigure] table: what other machines may set up here."""

    accept: bool = True
    sources: tuple[IPNetwork | str, ...] = ()
    """Networks, and host names still to be resolved. The key is called "from"."""
    key_file: Path | None = None
    networks: tuple[IPNetwork, ...] = ()
    bridges: tuple[str, ...] = ()
    interfaces: str = "vela*"
    """A shell pattern (fnmatch)."""
    max_circuits: int = 64
