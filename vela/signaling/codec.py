"""Control messages: records to bytes and back. Pure: no sockets, no clock.

docs/protocol.md, section 4. This module knows the header, the tag and the bytes of each kind of
value; what a message carries is said by its record in messages.py. All numbers are big-endian.

A datagram is checked in this order: its header, the sizes and counts of its TLVs, its tag, the
values. What comes before the tag is cheap, whatever a stranger sends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

from vela.address import (
    MAX_INTERFACE_NAME,
    MAX_PORT,
    Endpoint,
    IPAddress,
    IPInterface,
    check_interface,
    parse_interface_name,
)
from vela.errors import RemoteProtocolError
from vela.mac import MAC_LENGTH, check_mac
from vela.signaling.messages import (
    DESCRIPTORS,
    MAX_COUNTER,
    Capability,
    CipherOffer,
    Descriptor,
    Field,
    Header,
    Kind,
    Message,
    MessageType,
    Reject,
    RejectCode,
    Size,
    Suites,
    Tlv,
)
from vela.signaling.signer import TAG_LENGTH, UNSIGNED, Signer
from vela.wire import CONTROL_CIRCUIT_ID, MAX_UDP_PAYLOAD

VERSION = 1
# Byte 0, version, type, circuit id, both nonces, counter.
_HEADER = struct.Struct("!BBBBQQQ")
HEADER_LENGTH = _HEADER.size
MIN_MESSAGE = HEADER_LENGTH + TAG_LENGTH

_TLV = struct.Struct("!BH")
_U16, _U32, _U64 = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("!Q")

# The size and the padding of a probe are one TLV each.
MIN_PROBE = MIN_MESSAGE + _TLV.size + _U16.size + _TLV.size

MAX_TEXT = 200  # bytes of UTF-8

# Messages of the two Noise patterns: message 1 has no payload, message 2 has suite and phase.
NOISE_1_LENGTHS = (48, 96)
NOISE_2_LENGTH = 50

MALFORMED, WRONG_VERSION, WRONG_TAG = "malformed", "version", "tag"
"""The reason words of RemoteProtocolError."""

_CAPABILITY_BITS, _SUITE_BITS = sum(Capability), sum(Suites)
_KNOWN = {tlv.number: tlv for tlv in Tlv}
_SINGLE = frozenset(tlv.number for tlv in Tlv if not tlv.repeatable)

_Tlvs = dict[int, list[bytes]]
"""The values of the known TLVs of one datagram, by type number."""


def encode(message: Message, signer: Signer | None) -> bytes:
    """Return the datagram; without a signer, with a tag of zeros.

    Raises ValueError for what no datagram can say: a caller's bug.
    """
    signer = signer or UNSIGNED
    descriptor, size, tlvs = _WRITERS[type(message)]
    body = _HEADER.pack(
        CONTROL_CIRCUIT_ID,
        VERSION,
        descriptor.number,
        message.circuit_id,
        message.sender_nonce,
        message.receiver_nonce,
        message.counter,
    ) + tlvs(message)
    if size is not None:
        body = _pad(body, getattr(message, size.name), size, signer.overhead)
    length = len(body) + signer.overhead
    if length > descriptor.limit:
        raise ValueError(f"a control message of {length} bytes; {descriptor.limit} are allowed")
    return body + signer.sign(body)


def rejection(asked: Message, size: int, code: RejectCode, text: str = "") -> Reject:
    """Return the REJECT that answers a message of size bytes. Its text is cut to be no larger.

    It needs no state: the nonces change places, and the counter is that of the message.
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


def fit_text(text: str, limit: int) -> str:
    """Return text, printable, cut to at most limit bytes of UTF-8."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return clean.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def read_header(datagram: bytes) -> Header:
    """Return the header, unauthenticated: only to choose the key and the circuit.

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
    descriptor = DESCRIPTORS.get(number)
    if descriptor is None:
        raise _malformed(f"type {number}")
    if circuit_id == CONTROL_CIRCUIT_ID:
        raise _malformed("about circuit 0")
    if counter > MAX_COUNTER:
        raise _malformed(f"counter {counter}; {MAX_COUNTER} at most is right")
    if len(datagram) > descriptor.limit:
        raise _malformed(f"{len(datagram)} bytes; {descriptor.limit} at most are right")
    return Header(descriptor.number, circuit_id, sender, receiver, counter)


def decode(datagram: bytes, signer: Signer | None) -> Message:
    """Return what a datagram says. Raises RemoteProtocolError, and nothing else."""
    header = read_header(datagram)
    end = len(datagram) - TAG_LENGTH
    shape, read = _READERS[header.type]
    try:
        tlvs = _split(datagram, end, shape)
    except ValueError as err:
        raise _malformed(str(err)) from err
    if not (signer or UNSIGNED).verify(datagram):
        raise RemoteProtocolError(WRONG_TAG, "the tag is wrong: not the same key")
    try:
        return read(header, tlvs, len(datagram))
    except ValueError as err:
        raise _malformed(str(err)) from err


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(MALFORMED, detail)


# TLVs.


def _tlv(number: int, value: bytes) -> bytes:
    return _TLV.pack(number, len(value)) + value


@dataclass(frozen=True, slots=True)
class _Shape:
    """What can be wrong with the TLVs of a kind of message before any value is looked at."""

    lengths: dict[int, Collection[int]]
    """By type: how many bytes its value may have. Types that are not here may have any number."""
    required: tuple[int, ...]
    groups: dict[int, int]
    """Types of which there may be several, but only so many, to the group that they count in."""
    limits: tuple[tuple[str, int], ...]
    """Of each group: its name, and how many there may be."""


def _split(datagram: bytes, end: int, shape: _Shape) -> _Tlvs:
    """Return the known TLVs between the header and end; their sizes and counts are right.

    Raises ValueError at the first one that is wrong.
    """
    tlvs: _Tlvs = {}
    counts = [0] * len(shape.limits)
    at = HEADER_LENGTH
    while at < end:
        if end - at < _TLV.size:
            raise ValueError(f"{end - at} bytes where a TLV should begin")
        number, length = _TLV.unpack_from(datagram, at)
        at += _TLV.size
        if end - at < length:
            raise ValueError(f"TLV {number} of {length} bytes; {end - at} are left")
        if number in _KNOWN:
            group = shape.groups.get(number)
            if group is not None:
                counts[group] += 1
                name, at_most = shape.limits[group]
                if counts[group] > at_most:
                    raise ValueError(f"{counts[group]} {name}; {at_most} at most are right")
            right = shape.lengths.get(number)
            if right is not None and length not in right:
                shown = " or ".join(map(str, right))
                raise ValueError(f"TLV {number} of {length} bytes; {shown} are right")
            values = tlvs.setdefault(number, [])
            if values and number in _SINGLE:
                raise ValueError(f"TLV {number} twice")
            values.append(datagram[at : at + length])
        at += length
    for number in shape.required:
        if number not in tlvs:
            raise ValueError(f"TLV {number} is missing")
    return tlvs


def transcript(datagram: bytes) -> bytes:
    """Return the TLVs of a datagram as they are, also unknown ones and padding, without NOISE_1.

    It is what both ends of an encrypted circuit must have seen alike of a CONFIRM. The datagram
    is one that encode() has made or decode() has taken.
    """
    kept = b""
    at, end = HEADER_LENGTH, len(datagram) - TAG_LENGTH
    while at < end:
        number, length = _TLV.unpack_from(datagram, at)
        after = at + _TLV.size + length
        if number != Tlv.NOISE_1.number:
            kept += datagram[at:after]
        at = after
    return kept


def _pad(body: bytes, size: int, field: Field, behind: int) -> bytes:
    """Return body with the padding that makes a datagram of this size, with so many bytes behind.

    Raises ValueError.
    """
    missing = size - behind - len(body)
    if missing > 0 or (missing and field.size is Size.EXACTLY):
        # The head of a TLV has three bytes, so there may be up to two more than are missing.
        body += _tlv(Tlv.PADDING.number, bytes(max(0, missing - _TLV.size)))
    if field.size is Size.EXACTLY and len(body) + behind != size:
        least = MIN_PROBE - TAG_LENGTH + behind
        raise ValueError(f"no probe has {size} bytes; {least} or more are right")
    return body


# Values: each kind to bytes and back. What is read raises ValueError.


@dataclass(frozen=True, slots=True)
class _Form:
    """The bytes of a kind of value."""

    lengths: Collection[int] | None
    """None: any."""
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]
    absent: Any = None
    """The value of a field whose TLV is missing."""
    type: type = object
    """Of the values, where a field has several TLVs."""
    identity: Callable[[bytes], bytes] = bytes
    """What two values of a message may not share, where a field has several."""


def _number(layout: struct.Struct) -> _Form:
    return _Form((layout.size,), int.from_bytes, layout.pack)


def _read_capabilities(value: bytes) -> Capability:
    return Capability(int.from_bytes(value) & _CAPABILITY_BITS)


def _read_ciphers(value: bytes) -> CipherOffer:
    return CipherOffer(value[0], Suites(int.from_bytes(value[1:]) & _SUITE_BITS))


def _write_ciphers(ciphers: CipherOffer) -> bytes:
    return bytes([ciphers.pattern]) + _U16.pack(ciphers.suites)


def _read_name(value: bytes) -> str:
    # UnicodeDecodeError is a ValueError.
    return parse_interface_name(value.decode("ascii"))


def _read_text(value: bytes) -> str:
    text = value.decode()
    if not text.isprintable():
        raise ValueError("a text that is not printable")
    return text


def _read_address(value: bytes) -> IPAddress:
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)


def _read_endpoint(value: bytes) -> Endpoint:
    port = int.from_bytes(value[-2:])
    if not port:
        raise ValueError(f"port {port}; 1..{MAX_PORT} are right")
    return Endpoint(_read_address(value[:-2]), port)


def _write_endpoint(endpoint: Endpoint) -> bytes:
    return endpoint.address.packed + _U16.pack(endpoint.port)


def _read_interface(value: bytes) -> IPInterface:
    address, prefix = value[:-1], value[-1]
    if prefix > 8 * len(address):
        raise ValueError(f"prefix length {prefix}; 1..{8 * len(address)} are right")
    interface = IPv4Interface if len(address) == 4 else IPv6Interface
    return check_interface(interface((address, prefix)))


def _write_interface(interface: IPInterface) -> bytes:
    return interface.packed + bytes([interface.network.prefixlen])


def _without_prefix(value: bytes) -> bytes:
    return value[:-1]


_FORMS: dict[Kind, _Form] = {
    Kind.FLAG: _Form((0,), lambda _: True, lambda _: b"", absent=False),
    Kind.BOOLEAN: _Form((1,), any, lambda value: bytes([value])),
    Kind.U16: _number(_U16),
    Kind.U32: _number(_U32),
    Kind.U64: _number(_U64),
    Kind.CAPABILITIES: _Form((4,), _read_capabilities, _U32.pack),
    Kind.MAC: _Form((MAC_LENGTH,), check_mac, bytes),
    Kind.ENDPOINT: _Form((6, 18), _read_endpoint, _write_endpoint),
    Kind.IPV4: _Form(
        (5,), _read_interface, _write_interface, type=IPv4Interface, identity=_without_prefix
    ),
    Kind.IPV6: _Form(
        (17,), _read_interface, _write_interface, type=IPv6Interface, identity=_without_prefix
    ),
    Kind.NAME: _Form(range(1, MAX_INTERFACE_NAME + 1), _read_name, str.encode),
    Kind.TEXT: _Form(
        range(MAX_TEXT + 1), _read_text, lambda text: fit_text(text, MAX_TEXT).encode(), absent=""
    ),
    Kind.PADDING: _Form(None, bytes, bytes),
    Kind.BYTES_16: _Form((16,), bytes, bytes),
    Kind.CIPHERS: _Form((3,), _read_ciphers, _write_ciphers),
    Kind.NOISE_1: _Form(NOISE_1_LENGTHS, bytes, bytes),
    Kind.NOISE_2: _Form((NOISE_2_LENGTH,), bytes, bytes),
}


def lengths(tlv: Tlv) -> Collection[int] | None:
    """Return how many bytes its value may have; None: any number."""
    return _FORMS[tlv.kind].lengths


# Records: made once, when this module is imported, from the descriptors.

_Reader = Callable[[_Tlvs, int], Any]
_Writer = Callable[[Any], bytes]


def _value_reader(tlv: Tlv) -> Callable[[bytes], Any]:
    read, low, high = _FORMS[tlv.kind].read, tlv.low, tlv.high

    def read_value(value: bytes) -> Any:
        found = read(value)
        if high is not None and not low <= found <= high:
            raise ValueError(f"{tlv.name} {found}; {low}..{high} are right")
        return found

    return read_value


def _single_reader(field: Field) -> _Reader:
    (tlv,) = field.tlvs
    number, absent, read = tlv.number, _FORMS[tlv.kind].absent, _value_reader(tlv)

    def read_single(tlvs: _Tlvs, _size: int) -> Any:
        values = tlvs.get(number)
        return absent if values is None else read(values[0])

    def read_size(tlvs: _Tlvs, size: int) -> Any:
        found = read_single(tlvs, size)
        if found != size:
            raise ValueError(f"a probe of {found} bytes has {size}")
        return found

    return read_size if field.size is Size.EXACTLY else read_single


def _several_reader(field: Field) -> _Reader:
    readers = [(tlv.number, _value_reader(tlv), _FORMS[tlv.kind].identity) for tlv in field.tlvs]

    def read_several(tlvs: _Tlvs, _size: int) -> tuple[Any, ...]:
        seen: set[bytes] = set()
        found = []
        for number, read, identity in readers:
            for value in tlvs.get(number, ()):
                found.append(read(value))
                seen.add(identity(value))
                if len(seen) < len(found):
                    raise ValueError(f"{found[-1]} twice")
        return tuple(found)

    return read_several


def _record_reader(record: Callable[..., Any], fields: Iterable[Field]) -> _Reader:
    readers = [_reader(each) for each in fields]

    def read_record(tlvs: _Tlvs, size: int) -> Any:
        return record(*[read(tlvs, size) for read in readers])

    return read_record


def _reader(field: Field) -> _Reader:
    if field.record is not None:
        return _record_reader(field.record, field.fields)
    if not field.tlvs:
        return lambda _, size: size
    if field.tlvs[0].repeatable:
        return _several_reader(field)
    return _single_reader(field)


def _shape(descriptor: Descriptor) -> _Shape:
    limited = [leaf for leaf in descriptor.leaves if leaf.at_most is not None]
    return _Shape(
        lengths={
            tlv.number: right
            for leaf in descriptor.leaves
            for tlv in leaf.tlvs
            if (right := lengths(tlv)) is not None
        },
        required=tuple(tlv.number for tlv in descriptor.required),
        groups={tlv.number: group for group, leaf in enumerate(limited) for tlv in leaf.tlvs},
        limits=tuple((leaf.name, leaf.at_most or 0) for leaf in limited),
    )


def _message_reader(descriptor: Descriptor) -> Callable[[Header, _Tlvs, int], Message]:
    record, readers = descriptor.record, [_reader(each) for each in descriptor.fields]

    def read_message(header: Header, tlvs: _Tlvs, size: int) -> Message:
        return record(
            header.circuit_id,
            header.sender_nonce,
            header.receiver_nonce,
            header.counter,
            *[read(tlvs, size) for read in readers],
        )

    return read_message


def _single_writer(field: Field) -> _Writer:
    (tlv,) = field.tlvs
    number, form, name = tlv.number, _FORMS[tlv.kind], field.name
    optional, absent, write = field.optional, form.absent, form.write

    def write_single(record: Any) -> bytes:
        value = getattr(record, name)
        return b"" if optional and value == absent else _tlv(number, write(value))

    return write_single


def _several_writer(field: Field) -> _Writer:
    name, at_most = field.name, field.at_most
    forms = [(tlv.number, _FORMS[tlv.kind]) for tlv in field.tlvs]

    def write_several(record: Any) -> bytes:
        values = getattr(record, name)
        if at_most is not None and len(values) > at_most:
            raise ValueError(f"{len(values)} {name}; {at_most} fit a message")
        return b"".join(
            _tlv(number, form.write(value))
            for value in values
            for number, form in forms
            if isinstance(value, form.type)
        )

    return write_several


def _record_writer(name: str, fields: Iterable[Field]) -> _Writer:
    write = _fields_writer(fields)
    return lambda record: write(getattr(record, name))


def _fields_writer(fields: Iterable[Field]) -> _Writer:
    writers = [_writer(each) for each in fields if each.record is not None or each.tlvs]
    return lambda record: b"".join([write(record) for write in writers])


def _writer(field: Field) -> _Writer:
    if field.record is not None:
        return _record_writer(field.name, field.fields)
    if field.tlvs[0].repeatable:
        return _several_writer(field)
    return _single_writer(field)


_READERS: dict[MessageType, tuple[_Shape, Callable[[Header, _Tlvs, int], Message]]] = {
    number: (_shape(each), _message_reader(each)) for number, each in DESCRIPTORS.items()
}
_WRITERS: dict[type[Message], tuple[Descriptor, Field | None, _Writer]] = {
    each.record: (each, each.size, _fields_writer(each.fields)) for each in DESCRIPTORS.values()
}
