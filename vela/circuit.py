"""What the operator asks for: frozen records, already validated. Nothing here reads or writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from pathlib import Path

from vela.features import Feature
from vela.mtu import Family

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

DEFAULT_PORT = 48621
MIN_CIRCUIT_ID, MAX_CIRCUIT_ID = 1, 255
# docs/protocol.md, 3.4: where circuits send from (RFC 6335, section 6: dynamic ports).
MIN_SOURCE_PORT, MAX_SOURCE_PORT = 49152, 65535


class Encapsulation(Enum):
    """Which frames leave with their Ethernet header elided."""

    AUTO = "auto"  # those that the remote can rebuild
    ETHERNET = "ethernet"  # none
    IP = "ip"  # all; anything but IP is dropped (peers that speak the original VELA)


class SourcePort(Enum):
    """The words that stand for a sending port; a number is one itself."""

    AUTO = "auto"  # one of its own, derived
    LISTEN = "listen"  # the daemon's


class Engine(Enum):
    """Which twin of the data path carries frames."""

    AUTO = "auto"
    NATIVE = "native"
    PYTHON = "python"


@dataclass(frozen=True, slots=True)
class Remote:
    """Where the other end is: a host name or an address, and its listening port."""

    host: str
    port: int | None = None
    """None: the same as the local daemon's."""

    @property
    def address(self) -> IPAddress | None:
        """The host's address; None: host is a name, to be resolved."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port is not None else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a UDP or TCP port."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def family(self) -> Family:
        return Family.IPV4 if self.address.version == 4 else Family.IPV6


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


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The [daemon] table."""

    listen: tuple[IPAddress, ...] = (IPv6Address("::"),)
    port: int = DEFAULT_PORT
    control_socket: Path = Path("/run/vela/velad.sock")
    state_directory: Path = Path("/var/lib/vela")
    user: str = "nobody"
    engine: Engine = Engine.AUTO
    disable_features: tuple[Feature, ...] = ()
    """Not to be used, though the kernel may have them."""
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
