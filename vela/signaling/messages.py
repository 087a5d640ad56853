"""Control messages as records: what each says. Pure. docs/protocol.md, section 4."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from vela.address import Endpoint
from vela.circuit import PeerConfig

MAX_ADDRESSES = 32  # in one message, both families together


class MessageType(IntEnum):
    """Byte 2."""

    REQUEST = 1
    ACKNOWLEDGE = 2
    CONFIRM = 3
    CLOSE = 4
    KEEPALIVE = 5
    REJECT = 6
    PROBE = 7
    PROBE_REPLY = 8


class Capability(IntFlag):
    """What one end can do, or does."""

    ELISION = 1
    CHECKSUM_OFFLOAD = 2
    NATIVE_ENGINE = 4


class CloseReason(IntEnum):
    """Why a circuit goes away; an unknown one is read as STOPPING."""

    STOPPING = 1  # it comes back
    DELETED = 2  # for good


class RejectCode(IntEnum):
    """Why a circuit is refused. Later versions may add codes: a Reject carries any number."""

    NOT_ACCEPTING = 1  # nothing may be set up by others
    ADDRESS = 2  # an address outside the allowed networks
    BRIDGE = 3  # a bridge that is not among the allowed ones
    INTERFACE = 4  # an interface name that does not match the pattern
    TOO_MANY = 5  # the number of circuits is reached
    MAC = 6  # both ends would have one MAC
    CONFLICT = 7  # a name, an address or an id that is in use there
    FAILED = 8  # the other end could not set it up
    NO_SUCH_CIRCUIT = 9  # answers a REQUEST that resumes what the receiver does not have
    NO_SUCH_SESSION = 10  # answers a KEEPALIVE of a session that the receiver does not have
    DISABLED = 11  # the operator there took it down; it comes back
    OUTDATED = 12  # answers what resumes settings in whose place the sender was refused others


@dataclass(frozen=True, slots=True)
class Header:
    """What every message begins with, and what can be read before the key is known."""

    type: MessageType
    circuit_id: int
    sender_nonce: int
    receiver_nonce: int
    counter: int


@dataclass(frozen=True, slots=True)
class Description:
    """What an end says about itself."""

    mac: bytes
    mtu: int
    capabilities: Capability
    port: int
    """The listening one."""
    keepalive_ms: int
    own: Endpoint | None = None
    """Where it believes to be."""
    seen: Endpoint | None = None
    """Where it sees the other end."""


@dataclass(frozen=True, slots=True)
class Message:
    """The part that all have. Nonces and counters are 64 bits wide, 0 where not known."""

    circuit_id: int
    sender_nonce: int
    receiver_nonce: int
    counter: int


@dataclass(frozen=True, slots=True)
class Request(Message):
    """Asks for a circuit. offer: what the receiver's end shall get."""

    description: Description
    offer: PeerConfig = field(default_factory=PeerConfig)
    resuming: bool = False
    size: int = 0
    """Bytes: as decoded, of the datagram; to be encoded, at least these, by padding."""


@dataclass(frozen=True, slots=True)
class Acknowledge(Message):
    """Its sender nonce is a cookie."""


@dataclass(frozen=True, slots=True)
class Confirm(Message):
    """A Request again, from a sender that has shown where it is."""

    description: Description
    offer: PeerConfig = field(default_factory=PeerConfig)
    resuming: bool = False
    size: int = 0
    """Bytes: as decoded, of the datagram; to be encoded, at least these, by padding."""


@dataclass(frozen=True, slots=True)
class Close(Message):
    """reason: of CloseReason, or a later version's."""

    reason: int


@dataclass(frozen=True, slots=True)
class Keepalive(Message):
    """Liveness, and the sender's present description."""

    description: Description
    heard: int
    timestamp: int
    """Microseconds of the sender's clock."""
    echo: int | None
    up: bool


@dataclass(frozen=True, slots=True)
class Reject(Message):
    """code: of RejectCode, or a later version's."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Probe(Message):
    """Padded so that the whole datagram has this size; decoded, the size that arrived."""

    size: int


@dataclass(frozen=True, slots=True)
class ProbeReply(Message):
    """size: that of the Probe that arrived."""

    size: int
