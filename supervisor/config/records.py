"""The configuration as frozen records. Nothing here reads, writes or validates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from pathlib import Path

from vela.address import Endpoint, Family, IPAddress, IPInterface, IPNetwork, Remote
from vela.dataplane.engine import Engine
from vela.linux.choice import UnderlayChoice
from vela.linux.features import Feature
from vela.wire import DEFAULT_PORT

from ..constants import CONTROL_SOCKET


class Encapsulation(Enum):
    """Which frames are sent without their Ethernet header."""

    AUTO = "auto"  # frames whose header the remote can rebuild
    ETHERNET = "ethernet"  # no frames
    IP = "ip"  # all frames; only IP packets are sent (for remotes with the original VELA)


class Encryption(Enum):
    """Whether frames are encrypted. There is nothing between: an attacker would make it NONE."""

    NONE = "none"
    REQUIRED = "required"  # or the circuit is not up


class Fragment(Enum):
    """How frames travel that are larger than a datagram."""

    AUTO = "auto"  # in pieces if the remote can, else as the outer IP cuts them
    TUNNEL = "tunnel"  # likewise; without a handshake, in pieces
    IP = "ip"  # as the outer IP cuts them
    OFF = "off"  # not at all: they are dropped


class ClampMss(Enum):
    """Whether the MSS of TCP is lowered, where it is not a number."""

    AUTO = "auto"  # where segments would otherwise exceed a datagram
    ON = True
    OFF = False


class Latency(Enum):
    """What a worker does while no frame comes."""

    NORMAL = "normal"  # it sleeps
    LOW = "low"  # it polls for a while, on CPUs that it has for itself


class SourcePort(Enum):
    """The port that a circuit sends from, if the configuration gives no number."""

    AUTO = "auto"  # a port of its own, derived from the circuit
    LISTEN = "listen"  # the port that the daemon listens on


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
    """One [circuits.NAME] table. NAME is the name of the interface."""

    name: str
    id: int
    remote: Remote
    description: str = ""
    """For people: in the status, in log lines, and as the interface's alias."""
    enabled: bool = True
    """False: administratively down, as long as the file says so."""
    family: Family | None = None
    """None: IPv4 or IPv6, whatever the name resolves to."""
    addresses: tuple[IPInterface, ...] = ()
    bridge: str | None = None
    mtu: int | None = None
    """Bytes; None: from the route toward the remote."""
    fragmentation: Fragment = Fragment.AUTO
    clamp_mss: ClampMss | int = ClampMss.AUTO
    """A number is the largest MSS, in bytes."""
    packet_too_big: bool = False
    """Hosts that send what is larger than a datagram hear by ICMP what would fit."""
    mac: bytes | None = None
    """Six bytes; None: derived."""
    encapsulation: Encapsulation = Encapsulation.AUTO
    encryption: Encryption = Encryption.NONE
    peer_key: bytes | None = None
    """The remote's public key."""
    source_port: SourcePort | int = SourcePort.AUTO
    bind: IPAddress | None = None
    """Address of this machine to send from; None: as routes say."""
    device: str | None = None
    """Interface, or VRF, by which the remote is reached; None: as routes say."""
    mark: int | None = None
    """Firewall mark of all packets to the remote."""
    dscp: int | None = None
    """Of the outer headers of frames; None: that of each inner packet."""
    rate: int | None = None
    """How much each end sends at most, in bits per second; None: no limit."""
    cpu: int | tuple[int, ...] | None = None
    """Several: a queue on each. None: the CPU with the fewest workers, of those that the daemon may
    use."""
    latency: Latency = Latency.NORMAL
    keepalive: float = 5.0
    """Seconds between keepalives."""
    autoconfigure: bool = True
    key_file: Path | None = None
    accept_ra: bool = False
    """Router advertisements that come from the circuit give the interface addresses and routes."""
    up: Path | None = None
    """A program that is run when the circuit begins to carry frames."""
    down: Path | None = None
    """Likewise, when it no longer does, and before its interface goes."""
    peer: PeerConfig = field(default_factory=PeerConfig)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs of its queues, as they are configured; none: any one."""
        if self.cpu is None:
            return ()
        return self.cpu if isinstance(self.cpu, tuple) else (self.cpu,)

    @property
    def underlay(self) -> UnderlayChoice:
        return UnderlayChoice(self.bind, self.device, self.mark)


UNREAD_CIRCUIT = CircuitConfig(name="", id=0, remote=Remote(""))
"""The defaults. A circuit keeps this id or remote if its table has no valid one."""


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What is otherwise for some of the machines that may ask. None: as for all."""

    source: IPNetwork | str
    networks: tuple[IPNetwork, ...] | None = None
    bridges: tuple[str, ...] | None = None
    interfaces: str | None = None
    max_circuits: int | None = None
    """Of each machine."""


@dataclass(frozen=True, slots=True)
class AutoconfigureConfig:
    """The [autoconfigure] table: what other machines may set up here."""

    accept: bool = True
    sources: tuple[IPNetwork | str, ...] = ()
    """Networks, and host names still to be resolved. The key is called "from"."""
    key_file: Path | None = None
    peers: tuple[bytes, ...] = ()
    """Public keys of machines that may ask."""
    encryption: Encryption = Encryption.NONE
    networks: tuple[IPNetwork, ...] = ()
    bridges: tuple[str, ...] = ()
    interfaces: str = "vela*"
    """A shell pattern (fnmatch)."""
    max_circuits: int = 64
    max_circuits_per_remote: int = 16
    accept_ra: bool = False
    """Of all circuits that remotes set up here."""
    packet_too_big: bool = False
    """Likewise."""
    per_source: tuple[SourceRules, ...] = ()
    """The [autoconfigure.sources."..."] tables."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The [daemon] table."""

    listen: tuple[IPAddress, ...] = (IPv6Address("::"),)
    port: int = DEFAULT_PORT
    control_socket: Path = Path(CONTROL_SOCKET)
    control_group: str | None = None
    """The group that may use the control socket beside root. None: none."""
    state_directory: Path = Path("/var/lib/vela")
    user: str = "nobody"
    engine: Engine = Engine.AUTO
    disable_features: tuple[Feature, ...] = ()
    """Not to be used, though the kernel may have them."""
    log_level: str = "info"
    log_format: str = "console"
    identity: Path | None = None
    """The file with this machine's private key."""
    metrics: Endpoint | None = None
    """The TCP address that shows metrics. None: nothing does."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration."""

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    autoconfigure: AutoconfigureConfig | None = None
    """None: remotes may set up nothing on this host."""
    defaults: CircuitConfig = UNREAD_CIRCUIT
    """The [defaults] table: what circuits of the file and of commands are like."""
    circuits: tuple[CircuitConfig, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict, compare=False)
    """By circuit name, where there are several: the file that it is in."""
