"""Control messages as records, and the TLVs that each carries. Pure. docs/protocol.md, section 4.

The annotations are the description of the wire: a field names the TLV that carries it, and
codec.py reads and writes every message by that. A new message is a member of MessageType and a
record here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag, auto
from typing import Annotated, TypeVar, get_args, get_type_hints

from vela.address import MAX_PORT, Endpoint, IPInterface
from vela.rate import MAX_RATE, MIN_RATE, STEP
from vela.wire import (
    IPV6_HEADER,
    MAX_TAP_MTU,
    MAX_UDP_PAYLOAD,
    MIN_IPV6_MTU,
    MIN_TAP_MTU,
    UDP_HEADER,
    Suite,
)

# Every message but PROBE crosses every IPv6 path in one piece (RFC 8200, section 5).
MAX_MESSAGE = MIN_IPV6_MTU - IPV6_HEADER - UDP_HEADER

# The responder goes on counting from the initiator's counter. No session lasts long enough to
# use the upper half, so a message that begins there is malformed, and nothing overflows.
MAX_COUNTER = 2**63 - 1

MAX_ADDRESSES = 32  # in one message, both families together
MIN_KEEPALIVE_MS, MAX_KEEPALIVE_MS = 100, 3_600_000

MAX_GENERATION = 2**32 - 1

HANDSHAKE = "handshake"
"""The reason word of RemoteProtocolError where keys, or what was said with them, do not fit."""


class MessageType(IntEnum):
    """Byte 2 of a message."""

    REQUEST = 1
    ACKNOWLEDGE = 2
    CONFIRM = 3
    CLOSE = 4
    KEEPALIVE = 5
    REJECT = 6
    PROBE = 7
    PROBE_REPLY = 8


class Kind(Enum):
    """The form of a TLV's value; codec.py knows the bytes."""

    FLAG = auto()  # no bytes: the TLV is there or not
    BOOLEAN = auto()
    U16 = auto()
    U32 = auto()
    U64 = auto()
    CAPABILITIES = auto()
    MAC = auto()
    ENDPOINT = auto()
    IPV4 = auto()
    IPV6 = auto()
    NAME = auto()
    TEXT = auto()
    PADDING = auto()
    BYTES_16 = auto()
    CIPHERS = auto()
    NOISE_1 = auto()
    NOISE_2 = auto()


class Tlv(Enum):
    """The type, the kind, the bounds of a number, and whether a message may have several."""

    MAC = 1, Kind.MAC
    MTU = 2, Kind.U32, MIN_TAP_MTU, MAX_TAP_MTU
    CAPABILITIES = 3, Kind.CAPABILITIES
    PORT = 4, Kind.U16, 1, MAX_PORT
    OWN_ENDPOINT = 5, Kind.ENDPOINT
    SEEN_ENDPOINT = 6, Kind.ENDPOINT
    KEEPALIVE = 7, Kind.U32, MIN_KEEPALIVE_MS, MAX_KEEPALIVE_MS
    INTERFACE = 8, Kind.NAME
    IPV4 = 9, Kind.IPV4, 0, None, True
    IPV6 = 10, Kind.IPV6, 0, None, True
    BRIDGE = 11, Kind.NAME
    WANTED_MAC = 12, Kind.MAC
    HEARD = 13, Kind.U64
    TIMESTAMP = 14, Kind.U64
    ECHO = 15, Kind.U64
    UP = 16, Kind.BOOLEAN
    CODE = 17, Kind.U16
    TEXT = 18, Kind.TEXT
    SIZE = 19, Kind.U16
    PADDING = 20, Kind.PADDING, 0, None, True  # in any message
    RESUMING = 21, Kind.FLAG
    CIPHERS = 22, Kind.CIPHERS
    NOISE_1 = 23, Kind.NOISE_1
    NOISE_2 = 24, Kind.NOISE_2
    GENERATION = 25, Kind.U32, 1, MAX_GENERATION
    SESSION_KEYS = 26, Kind.FLAG
    SESSION = 27, Kind.U64
    # The last one, in messages of a session that has keys: signer.py.
    SESSION_TAG = 28, Kind.BYTES_16
    MACHINE = 29, Kind.BYTES_16
    FRAME_PORT = 30, Kind.U16, 1, MAX_PORT
    MTU_IN_PIECES = 31, Kind.U32, MIN_TAP_MTU, MAX_TAP_MTU
    RATE = 32, Kind.U32, MIN_RATE // STEP, MAX_RATE // STEP
    FROM_LISTENING = 33, Kind.FLAG
    ARRIVED = 34, Kind.U64
    FRAME_PORTS = 35, Kind.U16, 2, MAX_PORT

    def __init__(
        self,
        number: int,
        kind: Kind,
        low: int = 0,
        high: int | None = None,
        repeatable: bool = False,
    ) -> None:
        self.number, self.kind = number, kind
        self.low, self.high = low, high
        self.repeatable = repeatable


class Size(Enum):
    """Marks the field that holds the size of the whole datagram, in bytes."""

    AT_LEAST = auto()  # to be encoded: padded to it
    EXACTLY = auto()  # likewise; decoded, the TLV must name the size that arrived


@dataclass(frozen=True, slots=True)
class AtMost:
    """Marks a field of repeatable TLVs: it has no more values than this."""

    count: int


class Presence(Enum):
    """Marks a field whose TLV may be missing."""

    OPTIONAL = auto()


OPTIONAL = Presence.OPTIONAL


class Capability(IntFlag):
    """What one end can do, or does."""

    ELISION = 1
    CHECKSUM_OFFLOAD = 2
    NATIVE_ENGINE = 4
    PIECES = 8
    ECN = 16
    ECHO = 32
    PORTS = 64  # takes frames from several
    SEQUENCES = 128  # has a replay window for each of several sequences of counters
    BUNDLES = 256  # takes several frames in a sealed datagram


class HandshakePattern(IntEnum):
    """How the ends of an encrypted circuit know each other: section 4.11."""

    IK_PSK2 = 1  # by public keys
    NN_PSK0 = 2  # by a pre-shared key alone


class Suites(IntFlag):
    """A set of suites: bit n - 1 for suite n."""

    AES_256_GCM = 1 << (Suite.AES_256_GCM - 1)
    CHACHA20_POLY1305 = 1 << (Suite.CHACHA20_POLY1305 - 1)


class CloseReason(IntEnum):
    """Why a circuit goes away; an unknown one is read as STOPPING."""

    STOPPING = 1  # it comes back
    DELETED = 2  # for good


class RejectCode(IntEnum):
    """Why a circuit is refused. Later versions may add codes: a Reject carries any number."""

    NOT_ACCEPTING = 1  # no remote may set up a circuit
    ADDRESS = 2  # an address outside the allowed networks
    BRIDGE = 3  # a bridge that is not among the allowed ones
    INTERFACE = 4  # an interface name that does not match the pattern
    TOO_MANY = 5  # the number of circuits is reached
    MAC = 6  # both ends would have the same MAC address
    CONFLICT = 7  # a name, an address or an id that is in use
    FAILED = 8  # the sender could not set the circuit up
    NO_SUCH_CIRCUIT = 9  # answers a CONFIRM that resumes a circuit the sender does not have
    NO_SUCH_SESSION = 10  # answers a KEEPALIVE of a session that the sender does not have
    DISABLED = 11  # the sender's operator took the circuit down; it comes back
    OUTDATED = 12  # answers a CONFIRM that resumes settings that the sender wants to replace
    ENCRYPTION = 13  # one end requires encryption and the other has none, or their keys differ
    ID_TAKEN = 14  # another machine at the receiver's address has the circuit id


@dataclass(frozen=True, slots=True)
class Header:
    """What every message begins with. It can be read before the key is known."""

    type: MessageType
    circuit_id: int
    sender_nonce: int
    receiver_nonce: int
    counter: int


@dataclass(frozen=True, slots=True)
class Description:
    """What an end says about itself."""

    mac: Annotated[bytes, Tlv.MAC]
    mtu: Annotated[int, Tlv.MTU]
    capabilities: Annotated[Capability, Tlv.CAPABILITIES]
    port: Annotated[int, Tlv.PORT]
    """The UDP port that it listens on."""
    keepalive_ms: Annotated[int, Tlv.KEEPALIVE]
    own: Annotated[Endpoint | None, Tlv.OWN_ENDPOINT, OPTIONAL] = None
    """Its own address and port, as far as it knows."""
    seen: Annotated[Endpoint | None, Tlv.SEEN_ENDPOINT, OPTIONAL] = None
    """The other end's address and port, as it sees them."""
    frame_port: Annotated[int | None, Tlv.FRAME_PORT, OPTIONAL] = None
    """The UDP port that its frames come from."""
    frame_ports: Annotated[int | None, Tlv.FRAME_PORTS, OPTIONAL] = None
    """They come from so many in a row, from that one on; None: from that one alone."""
    mtu_in_pieces: Annotated[int | None, Tlv.MTU_IN_PIECES, OPTIONAL] = None
    """The TAP MTU that it would have if frames travelled in pieces; None: no other one."""
    rate_kbit: Annotated[int | None, Tlv.RATE, OPTIONAL] = None
    """How much either end is to send at most, in kilobits per second; None: no limit."""
    from_listening: Annotated[bool, Tlv.FROM_LISTENING, OPTIONAL] = False
    """Frames do not cross, as far as it knows: both ends are to send from the listening ports."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The settings that one end wants the other end to have."""

    interface: Annotated[str | None, Tlv.INTERFACE, OPTIONAL] = None
    """None: the other end chooses the name."""
    addresses: Annotated[tuple[IPInterface, ...], Tlv.IPV4, Tlv.IPV6, AtMost(MAX_ADDRESSES)] = ()
    bridge: Annotated[str | None, Tlv.BRIDGE, OPTIONAL] = None
    mac: Annotated[bytes | None, Tlv.WANTED_MAC, OPTIONAL] = None


@dataclass(frozen=True, slots=True)
class CipherOffer:
    """What an initiator that requires encryption can do."""

    pattern: int
    """Of HandshakePattern, or of a later version."""
    suites: Suites


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of every message. Nonces and counters are 64 bits wide, 0 where not known."""

    circuit_id: int
    sender_nonce: int
    receiver_nonce: int
    counter: int


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record: it is carried by TLVs, or it is a record of such fields."""

    name: str
    tlvs: tuple[Tlv, ...] = ()
    """Several: each value goes into the one of its type."""
    optional: bool = False
    at_most: int | None = None
    size: Size | None = None
    record: type | None = None
    fields: tuple[Field, ...] = ()

    @property
    def leaves(self) -> Iterator[Field]:
        """Yield the fields that TLVs carry, in this one or this one itself."""
        if self.record is None:
            yield self
        for inner in self.fields:
            yield from inner.leaves


@dataclass(frozen=True, slots=True)
class Descriptor:
    """How a message looks on the wire."""

    number: MessageType
    record: type[Message]
    limit: int
    """The largest datagram, in bytes of UDP payload."""
    fields: tuple[Field, ...]

    @property
    def leaves(self) -> tuple[Field, ...]:
        return tuple(leaf for each in self.fields for leaf in each.leaves)

    @property
    def required(self) -> tuple[Tlv, ...]:
        return tuple(
            tlv
            for leaf in self.leaves
            for tlv in leaf.tlvs
            if not leaf.optional and not tlv.repeatable
        )

    @property
    def optional(self) -> tuple[Tlv, ...]:
        """Return the TLVs that may be missing; Tlv.PADDING goes without saying."""
        return tuple(
            tlv for leaf in self.leaves for tlv in leaf.tlvs if leaf.optional or tlv.repeatable
        )

    @property
    def size(self) -> Field | None:
        """Return the field that holds the size of the datagram."""
        return next((leaf for leaf in self.leaves if leaf.size is not None), None)


DESCRIPTORS: dict[MessageType, Descriptor] = {}

_M = TypeVar("_M", bound=Message)


def _message(number: MessageType, limit: int = MAX_MESSAGE) -> Callable[[type[_M]], type[_M]]:
    """Enter a record into DESCRIPTORS."""

    def enter(record: type[_M]) -> type[_M]:
        header = {each.name for each in dataclasses.fields(Message)}
        own = tuple(each for each in _fields_of(record) if each.name not in header)
        DESCRIPTORS[number] = Descriptor(number, record, limit, own)
        return record

    return enter


def _fields_of(record: type) -> tuple[Field, ...]:
    hints = get_type_hints(record, include_extras=True)
    return tuple(_field(name, hint) for name, hint in hints.items())


def _field(name: str, hint: type) -> Field:
    if dataclasses.is_dataclass(hint):
        return Field(name, record=hint, fields=_fields_of(hint))
    marks = get_args(hint)[1:]
    return Field(
        name,
        tlvs=tuple(mark for mark in marks if isinstance(mark, Tlv)),
        optional=OPTIONAL in marks,
        at_most=next((mark.count for mark in marks if isinstance(mark, AtMost)), None),
        size=next((mark for mark in marks if isinstance(mark, Size)), None),
    )


@_message(MessageType.REQUEST)
@dataclass(frozen=True, slots=True)
class Request(Message):
    """Asks for a circuit. The offer is for the receiver's end."""

    description: Description
    offer: Offer = field(default_factory=Offer)
    resuming: Annotated[bool, Tlv.RESUMING, OPTIONAL] = False
    """The sender has this circuit because the receiver once asked for it; offer: what it has."""
    size: Annotated[int, Size.AT_LEAST] = 0
    session_keys: Annotated[bool, Tlv.SESSION_KEYS, OPTIONAL] = False
    """The sender can derive keys for the session."""
    ciphers: Annotated[CipherOffer | None, Tlv.CIPHERS, OPTIONAL] = None
    """None: the sender does not encrypt."""


@_message(MessageType.ACKNOWLEDGE)
@dataclass(frozen=True, slots=True)
class Acknowledge(Message):
    """Answers a REQUEST. The sender's nonce is a cookie."""

    session_keys: Annotated[bool, Tlv.SESSION_KEYS, OPTIONAL] = False
    """The sender, too, can derive keys for the session."""
    own: Annotated[Endpoint | None, Tlv.OWN_ENDPOINT, OPTIONAL] = None
    """The address that the REQUEST came to, and the port that the sender listens on."""
    seen: Annotated[Endpoint | None, Tlv.SEEN_ENDPOINT, OPTIONAL] = None
    """Where the REQUEST came from."""
    session: Annotated[int | None, Tlv.SESSION, OPTIONAL] = None
    """The sender's nonce in the session that it has with the initiator at present."""


@_message(MessageType.CONFIRM)
@dataclass(frozen=True, slots=True)
class Confirm(Message):
    """Repeats a REQUEST, with the cookie that proves the sender's address."""

    description: Description
    offer: Offer = field(default_factory=Offer)
    resuming: Annotated[bool, Tlv.RESUMING, OPTIONAL] = False
    size: Annotated[int, Size.AT_LEAST] = 0
    session_keys: Annotated[bool, Tlv.SESSION_KEYS, OPTIONAL] = False
    """The session has keys of its own, as both ends can derive them."""
    machine: Annotated[bytes | None, Tlv.MACHINE, OPTIONAL] = None
    """What tells the machine that sets the circuit up from others: identity.py."""
    ciphers: Annotated[CipherOffer | None, Tlv.CIPHERS, OPTIONAL] = None
    noise_1: Annotated[bytes | None, Tlv.NOISE_1, OPTIONAL] = None
    """Message 1 of the handshake of the first generation of keys."""
    follows: Annotated[int | None, Tlv.SESSION, OPTIONAL] = None
    """The receiver's nonce in the encrypted session that this one follows without a gap."""


@_message(MessageType.CLOSE)
@dataclass(frozen=True, slots=True)
class Close(Message):
    """Ends a session."""

    reason: Annotated[int, Tlv.CODE]
    """Of CloseReason, or of a later version."""


@_message(MessageType.KEEPALIVE)
@dataclass(frozen=True, slots=True)
class Keepalive(Message):
    """Shows that the sender is alive and what it hears, and describes it as it is now."""

    description: Description
    heard: Annotated[int, Tlv.HEARD]
    """The highest counter of the receiver's that the sender has heard."""
    timestamp: Annotated[int, Tlv.TIMESTAMP]
    """Microseconds of the sender's clock."""
    echo: Annotated[int | None, Tlv.ECHO, OPTIONAL]
    """Microseconds of the receiver's clock, by what the sender heard of it."""
    up: Annotated[bool, Tlv.UP]
    noise_1: Annotated[bytes | None, Tlv.NOISE_1, OPTIONAL] = None
    """Of the initiator: begins the next generation of keys."""
    noise_2: Annotated[bytes | None, Tlv.NOISE_2, OPTIONAL] = None
    """Of the responder: answers the last message 1."""
    generation: Annotated[int | None, Tlv.GENERATION, OPTIONAL] = None
    """Of keys: the one that the sender can receive, or that a responder asks for."""
    arrived: Annotated[int | None, Tlv.ARRIVED, OPTIONAL] = None
    """Echo requests of the circuit that have reached the sender's worker, from any moment on."""


@_message(MessageType.REJECT)
@dataclass(frozen=True, slots=True)
class Reject(Message):
    """Refuses what it answers."""

    code: Annotated[int, Tlv.CODE]
    """Of RejectCode, or of a later version."""
    text: Annotated[str, Tlv.TEXT, OPTIONAL]
    """For the operator of the receiver; empty: none."""
    seen: Annotated[Endpoint | None, Tlv.SEEN_ENDPOINT, OPTIONAL] = None
    """With NO_SUCH_SESSION: where the message came from that this answers."""


@_message(MessageType.PROBE, limit=MAX_UDP_PAYLOAD)
@dataclass(frozen=True, slots=True)
class Probe(Message):
    """Is as large as the size under test."""

    size: Annotated[int, Tlv.SIZE, Size.EXACTLY]


@_message(MessageType.PROBE_REPLY)
@dataclass(frozen=True, slots=True)
class ProbeReply(Message):
    """Tells that a PROBE of this size arrived."""

    size: Annotated[int, Tlv.SIZE]


SESSION_TYPES = frozenset(
    {MessageType.CLOSE, MessageType.KEEPALIVE, MessageType.PROBE, MessageType.PROBE_REPLY}
)
"""The messages of a session: they have its tag where it has keys."""


def type_of(message: Message) -> MessageType:
    return _TYPES[type(message)]


_TYPES = {each.record: number for number, each in DESCRIPTORS.items()}
