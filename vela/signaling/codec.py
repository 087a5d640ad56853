"""Control messages and their bytes. Pure: no sockets, no clock.

docs/protocol.md, section 4: the header, the tag, the table of TLVs, and which of them each
message must and may carry. All numbers are big-endian; class _Tlv has the TLVs' names.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from vela.address import Endpoint, IPAddress, IPInterface, parse_interface, parse_interface_name
from vela.circuit import PeerConfig
from vela.datagram import CONTROL_CIRCUIT_ID
from vela.errors import RemoteProtocolError
from vela.mac import MAC_LENGTH, format_mac, parse_mac
from vela.signaling.messages import (
    MAX_ADDRESSES,
    Acknowledge,
    Capability,
    Close,
    Confirm,
    Description,
    Header,
    Keepalive,
    Message,
    MessageType,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
)
from vela.wire import (
    IPV6_HEADER,
    MAX_TAP_MTU,
    MAX_UDP_PAYLOAD,
    MIN_IPV6_MTU,
    MIN_TAP_MTU,
    UDP_HEADER,
)

VERSION = 1
# Byte 0, version, type, circuit id, both nonces, counter.
_HEADER = struct.Struct("!BBBBQQQ")
HEADER_LENGTH = _HEADER.size
TAG_LENGTH = 16  # HMAC-SHA-256, cut as RFC 2104, section 5, allows
_NO_TAG = bytes(TAG_LENGTH)
MIN_MESSAGE = HEADER_LENGTH + TAG_LENGTH
# All but PROBE cross every IPv6 path in one piece (RFC 8200, section 5).
MAX_MESSAGE = MIN_IPV6_MTU - IPV6_HEADER - UDP_HEADER

_TLV = struct.Struct("!BH")
_U16, _U32, _U64 = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("!Q")

# The smallest probe that can be padded: its size and the padding are one TLV each.
MIN_PROBE = MIN_MESSAGE + _TLV.size + _U16.size + _TLV.size

# A session counts on from what its initiator began with. No session lasts long
# enough for the upper half, so who begins there is refused, and nothing overflows.
MAX_COUNTER = 2**63 - 1

MAX_TEXT = 200  # bytes of UTF-8
MIN_KEEPALIVE_MS, MAX_KEEPALIVE_MS = 100, 3_600_000

MALFORMED, WRONG_VERSION, WRONG_TAG = "malformed", "version", "tag"
"""The reason words of RemoteProtocolError."""


class _Tlv(IntEnum):
    MAC = 1
    MTU = 2
    CAPABILITIES = 3
    PORT = 4
    OWN_ENDPOINT = 5
    SEEN_ENDPOINT = 6
    KEEPALIVE = 7
    INTERFACE = 8
    IPV4 = 9
    IPV6 = 10
    BRIDGE = 11
    WANTED_MAC = 12
    HEARD = 13
    TIMESTAMP = 14
    ECHO = 15
    UP = 16
    CODE = 17
    TEXT = 18
    SIZE = 19
    PADDING = 20
    RESUMING = 21


_REPEATABLE = frozenset({_Tlv.IPV4, _Tlv.IPV6, _Tlv.PADDING})
_KNOWN = frozenset(_Tlv)


_CAPABILITY_BITS = int(Capability.ELISION | Capability.CHECKSUM_OFFLOAD | Capability.NATIVE_ENGINE)


_TYPES: dict[type[Message], MessageType] = {
    Request: MessageType.REQUEST,
    Acknowledge: MessageType.ACKNOWLEDGE,
    Confirm: MessageType.CONFIRM,
    Close: MessageType.CLOSE,
    Keepalive: MessageType.KEEPALIVE,
    Reject: MessageType.REJECT,
    Probe: MessageType.PROBE,
    ProbeReply: MessageType.PROBE_REPLY,
}


def encode(message: Message, key: bytes | None) -> bytes:
    """Return the datagram. Raises ValueError for what no datagram can say: a caller's bug."""
    body = _HEADER.pack(
        CONTROL_CIRCUIT_ID,
        VERSION,
        _TYPES[type(message)],
        message.circuit_id,
        message.sender_nonce,
        message.receiver_nonce,
        message.counter,
    ) + b"".join(_tlvs(message))
    limit = MAX_MESSAGE
    if isinstance(message, Request | Confirm) and len(body) + TAG_LENGTH < message.size:
        body += _padding(message.size - TAG_LENGTH - len(body))
    elif isinstance(message, Probe):
        limit = MAX_UDP_PAYLOAD
        if len(body) + TAG_LENGTH != message.size:
            body += _padding(message.size - TAG_LENGTH - len(body))
        if len(body) + TAG_LENGTH != message.size:
            raise ValueError(f"no probe has {message.size} bytes; {MIN_PROBE} or more would do")
    if len(body) + TAG_LENGTH > limit:
        raise ValueError(f"{len(body) + TAG_LENGTH} bytes of control message; {limit} are allowed")
    return body + _tag(body, key)


def rejection(asked: Message, size: int, code: RejectCode, text: str = "") -> Reject:
    """Return the refusal of a message; its text is cut so that it is no larger: size, bytes.

    It is stateless: nonces change places, and the counter is that of the message.
    """
    room = min(size - MIN_MESSAGE - _TLV.size - _U16.size - _TLV.size, MAX_TEXT)
    return Reject(
        asked.circuit_id,
        asked.receiver_nonce,
        asked.sender_nonce,
        asked.counter,
        code,
        fit_text(text, room) if room > 0 else "",
    )


def read_header(datagram: bytes) -> Header:
    """Return the header, unauthenticated: only for the choice of key and circuit.

    Raises RemoteProtocolError.
    """
    if len(datagram) < MIN_MESSAGE:
        raise _malformed(f"{len(datagram)} bytes; {MIN_MESSAGE} at least are right")
    if len(datagram) > MAX_UDP_PAYLOAD:
        raise _malformed(f"{len(datagram)} bytes do not fit one datagram")
    zero, version, number, circuit_id, sender, receiver, counter = _HEADER.unpack_from(datagram)
    if zero != CONTROL_CIRCUIT_ID:
        raise _malformed("not a control message")
    if version != VERSION:
        raise RemoteProtocolError(WRONG_VERSION, f"version {version}; {VERSION} is spoken here")
    if not MessageType.REQUEST <= number <= MessageType.PROBE_REPLY:
        raise _malformed(f"type {number}")
    if circuit_id == CONTROL_CIRCUIT_ID:
        raise _malformed("about circuit 0")
    if counter > MAX_COUNTER:
        raise _malformed(f"counter {counter}; nothing could come after it")
    if len(datagram) > MAX_MESSAGE and number != MessageType.PROBE:
        raise _malformed(f"{len(datagram)} bytes; {MAX_MESSAGE} at most are right")
    return Header(MessageType(number), circuit_id, sender, receiver, counter)


def decode(datagram: bytes, key: bytes | None) -> Message:
    """Return what a datagram says. Raises RemoteProtocolError, and nothing else."""
    header = read_header(datagram)
    end = len(datagram) - TAG_LENGTH
    if not hmac.compare_digest(_tag(datagram[:end], key), datagram[end:]):
        raise RemoteProtocolError(WRONG_TAG, "the tag is wrong: not the same key")
    try:
        return _build(header, _Fields(datagram, end), len(datagram))
    except ValueError as err:
        raise _malformed(str(err)) from err


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(MALFORMED, detail)


def _tag(body: bytes, key: bytes | None) -> bytes:
    return _NO_TAG if key is None else hmac.digest(key, body, hashlib.sha256)[:TAG_LENGTH]


# Encoding.


def _tlv(number: _Tlv, value: bytes = b"") -> bytes:
    return _TLV.pack(number, len(value)) + value


def _padding(length: int) -> bytes:
    """Return padding of length bytes, or of up to two more: a TLV's head has three."""
    return _tlv(_Tlv.PADDING, bytes(max(0, length - _TLV.size)))


def _tlvs(message: Message) -> Iterator[bytes]:
    match message:
        case Request() | Confirm():
            yield from _description_tlvs(message.description)
            yield from _offer_tlvs(message.offer)
            if message.resuming:
                yield _tlv(_Tlv.RESUMING)
        case Keepalive():
            yield from _description_tlvs(message.description)
            yield _tlv(_Tlv.HEARD, _U64.pack(message.heard))
            yield _tlv(_Tlv.TIMESTAMP, _U64.pack(message.timestamp))
            if message.echo is not None:
                yield _tlv(_Tlv.ECHO, _U64.pack(message.echo))
            yield _tlv(_Tlv.UP, bytes([message.up]))
        case Close():
            yield _tlv(_Tlv.CODE, _U16.pack(message.reason))
        case Reject():
            yield _tlv(_Tlv.CODE, _U16.pack(message.code))
            if message.text:
                yield _tlv(_Tlv.TEXT, fit_text(message.text, MAX_TEXT).encode())
        case Probe() | ProbeReply():
            yield _tlv(_Tlv.SIZE, _U16.pack(message.size))


def fit_text(text: str, limit: int) -> str:
    """Return text, printable, cut to at most limit bytes of UTF-8."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return clean.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _description_tlvs(description: Description) -> Iterator[bytes]:
    yield _tlv(_Tlv.MAC, description.mac)
    yield _tlv(_Tlv.MTU, _U32.pack(description.mtu))
    yield _tlv(_Tlv.CAPABILITIES, _U32.pack(description.capabilities))
    yield _tlv(_Tlv.PORT, _U16.pack(description.port))
    yield _tlv(_Tlv.KEEPALIVE, _U32.pack(description.keepalive_ms))
    if description.own is not None:
        yield _tlv(_Tlv.OWN_ENDPOINT, _pack_endpoint(description.own))
    if description.seen is not None:
        yield _tlv(_Tlv.SEEN_ENDPOINT, _pack_endpoint(description.seen))


def _offer_tlvs(offer: PeerConfig) -> Iterator[bytes]:
    if len(offer.addresses) > MAX_ADDRESSES:
        raise ValueError(f"{len(offer.addresses)} addresses; {MAX_ADDRESSES} fit a message")
    if offer.interface is not None:
        yield _tlv(_Tlv.INTERFACE, offer.interface.encode())
    for interface in offer.addresses:
        number = _Tlv.IPV4 if interface.version == 4 else _Tlv.IPV6
        yield _tlv(number, interface.ip.packed + bytes([interface.network.prefixlen]))
    if offer.bridge is not None:
        yield _tlv(_Tlv.BRIDGE, offer.bridge.encode())
    if offer.mac is not None:
        yield _tlv(_Tlv.WANTED_MAC, offer.mac)


def _pack_endpoint(endpoint: Endpoint) -> bytes:
    return endpoint.address.packed + _U16.pack(endpoint.port)


# Decoding.


class _Fields:
    """The known TLVs of one message, by number. Its methods raise ValueError."""

    def __init__(self, datagram: bytes, end: int) -> None:
        self._values: dict[int, list[bytes]] = {}
        at = HEADER_LENGTH
        while at < end:
            if end - at < _TLV.size:
                raise ValueError(f"{end - at} bytes where a TLV should begin")
            number, length = _TLV.unpack_from(datagram, at)
            at += _TLV.size
            if end - at < length:
                raise ValueError(f"TLV {number} of {length} bytes; {end - at} are left")
            if number in _KNOWN:
                values = self._values.setdefault(number, [])
                if values and number not in _REPEATABLE:
                    raise ValueError(f"TLV {number} twice")
                values.append(datagram[at : at + length])
            at += length

    def all(self, number: _Tlv, length: int) -> list[bytes]:
        values = self._values.get(number, [])
        for value in values:
            if len(value) != length:
                raise ValueError(f"TLV {number} of {len(value)} bytes; {length} would be right")
        return values

    def find(self, number: _Tlv) -> bytes | None:
        values = self._values.get(number)
        return values[0] if values else None

    def sized(self, number: _Tlv, length: int) -> bytes | None:
        values = self.all(number, length)
        return values[0] if values else None

    def require(self, number: _Tlv, length: int) -> bytes:
        value = self.sized(number, length)
        if value is None:
            raise ValueError(f"TLV {number} is missing")
        return value

    def u16(self, number: _Tlv) -> int:
        return int.from_bytes(self.require(number, 2))

    def u32(self, number: _Tlv) -> int:
        return int.from_bytes(self.require(number, 4))

    def u64(self, number: _Tlv) -> int:
        return int.from_bytes(self.require(number, 8))


def _build(header: Header, fields: _Fields, size: int) -> Message:
    common = (header.circuit_id, header.sender_nonce, header.receiver_nonce, header.counter)
    match header.type:
        case MessageType.REQUEST:
            return Request(*common, *_read_request(fields), size)
        case MessageType.ACKNOWLEDGE:
            return Acknowledge(*common)
        case MessageType.CONFIRM:
            return Confirm(*common, *_read_request(fields), size)
        case MessageType.CLOSE:
            return Close(*common, fields.u16(_Tlv.CODE))
        case MessageType.KEEPALIVE:
            echo = fields.sized(_Tlv.ECHO, 8)
            return Keepalive(
                *common,
                _read_description(fields),
                heard=fields.u64(_Tlv.HEARD),
                timestamp=fields.u64(_Tlv.TIMESTAMP),
                echo=None if echo is None else int.from_bytes(echo),
                up=_read_flag(fields.require(_Tlv.UP, 1)),
            )
        case MessageType.REJECT:
            return Reject(*common, fields.u16(_Tlv.CODE), _read_text(fields.find(_Tlv.TEXT)))
        case MessageType.PROBE:
            if fields.u16(_Tlv.SIZE) != size:
                raise ValueError(f"a probe of {fields.u16(_Tlv.SIZE)} bytes has {size}")
            return Probe(*common, size)
        case MessageType.PROBE_REPLY:
            return ProbeReply(*common, fields.u16(_Tlv.SIZE))


def _read_request(fields: _Fields) -> tuple[Description, PeerConfig, bool]:
    resuming = fields.sized(_Tlv.RESUMING, 0) is not None
    return _read_description(fields), _read_offer(fields), resuming


def _read_description(fields: _Fields) -> Description:
    return Description(
        mac=_read_mac(fields.require(_Tlv.MAC, MAC_LENGTH)),
        mtu=_within(fields.u32(_Tlv.MTU), MIN_TAP_MTU, MAX_TAP_MTU, "MTU"),
        capabilities=Capability(fields.u32(_Tlv.CAPABILITIES) & _CAPABILITY_BITS),
        port=_within(fields.u16(_Tlv.PORT), 1, 0xFFFF, "port"),
        keepalive_ms=_within(
            fields.u32(_Tlv.KEEPALIVE), MIN_KEEPALIVE_MS, MAX_KEEPALIVE_MS, "keepalive"
        ),
        own=_read_endpoint(fields.find(_Tlv.OWN_ENDPOINT)),
        seen=_read_endpoint(fields.find(_Tlv.SEEN_ENDPOINT)),
    )


def _read_offer(fields: _Fields) -> PeerConfig:
    addresses: list[IPInterface] = []
    for number, length in ((_Tlv.IPV4, 5), (_Tlv.IPV6, 17)):
        for value in fields.all(number, length):
            address = _read_address(value[:-1])
            interface = parse_interface(f"{address}/{value[-1]}")
            if any(interface.ip == other.ip for other in addresses):
                raise ValueError(f"{interface.ip} twice")
            addresses.append(interface)
    if len(addresses) > MAX_ADDRESSES:
        raise ValueError(f"{len(addresses)} addresses; {MAX_ADDRESSES} at most are right")
    mac = fields.sized(_Tlv.WANTED_MAC, MAC_LENGTH)
    return PeerConfig(
        interface=_read_name(fields.find(_Tlv.INTERFACE)),
        addresses=tuple(addresses),
        bridge=_read_name(fields.find(_Tlv.BRIDGE)),
        mac=None if mac is None else _read_mac(mac),
    )


def _within(value: int, lowest: int, highest: int, name: str) -> int:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} {value}; {lowest}..{highest} would be right")
    return value


def _read_mac(value: bytes) -> bytes:
    return parse_mac(format_mac(value))


def _read_flag(value: bytes) -> bool:
    return value != b"\0"


def _read_name(value: bytes | None) -> str | None:
    # UnicodeDecodeError is a ValueError.
    return None if value is None else parse_interface_name(value.decode("ascii"))


def _read_text(value: bytes | None) -> str:
    if value is None:
        return ""
    if len(value) > MAX_TEXT:
        raise ValueError(f"a text of {len(value)} bytes; {MAX_TEXT} at most are right")
    text = value.decode()
    if not text.isprintable():
        raise ValueError("a text that is not printable")
    return text


def _read_address(value: bytes) -> IPAddress:
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)


def _read_endpoint(value: bytes | None) -> Endpoint | None:
    if value is None:
        return None
    if len(value) not in (6, 18):
        raise ValueError(f"an address and port of {len(value)} bytes; 6 or 18 would be right")
    port = _within(int.from_bytes(value[-2:]), 1, 0xFFFF, "port")
    return Endpoint(_read_address(value[:-2]), port)
