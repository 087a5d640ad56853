"""What the operator asks for: frozen records, already validated. Nothing here reads or writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from pathlib import Path

from vela.address import Endpoint, Family, IPAddress, IPInterface, Remote
from vela.circuit import AutoconfigureConfig as AutoconfigureConfig
from vela.circuit import PeerConfig as PeerConfig
from vela.dataplane.engine import Engine
from vela.wire import DEFAULT_PORT


class Encapsulation(Enum):
    """Which frames leave with their Ethernet header elided."""

    AUTO = "auto"  # those that the remote can rebuild
    ETHERNET = "ethernet"  # none
    IP = "ip"  # all; anything but IP is dropped (peers that speak the original VELA)


class SourcePort(Enum):
    """The words that stand for a sending port; a number is one itself."""

    AUTO = "auto"  # one of its own, derived
    LISTEN = "listen"  # the daemon's


@dataclass(frozen=True, slots=True)
class CircuitConfig:
    """One [circuits.NAME] table; NAME is the interface's name."""

    name: str
    id: int
    remote: Remote
    family: Family | None = None
    """None: whichever the name resolves to."""
    addresses: tuple[IPInterface, ...] = ()
    bridge: str | None = None
    mtu: int | None = None
    """Bytes; None: from the route toward the remote."""
    mac: bytes | None = None
    """Six bytes; None: derived."""
    encapsulation: Encapsulation = Encapsulation.AUTO
    source_port: SourcePort | int = SourcePort.AUTO
    cpu: int | None = None
    """None: spread over the CPUs that the process may use."""
    keepalive: float = 5.0
    """Seconds between keepalives."""
    autoconfigure: bool = True
    key_file: Path | None = None
    up: Path | None = None
    down: Path | None = None
    peer: PeerConfig = field(default_factory=PeerConfig)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The [daemon] table."""

    listen: tuple[IPAddress, ...] = (IPv6Address("::"),)
    port: int = DEFAULT_PORT
    control_socket: Path = Path("/run/vela/velad.sock")
    state_directory: Path = Path("/var/lib/vela")
    user: str = "nobody"
    engine: Engine = Engine.AUTO
    log_level: str = "info"
    log_format: str = "console"
    metrics: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration file."""

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    autoconfigure: AutoconfigureConfig | None = None
    """None: nothing may be set up here by others."""
    circuits: tuple[CircuitConfig, ...] = ()
