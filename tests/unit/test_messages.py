"""Every message by its descriptor: no test here names one, so a new message is tested by itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path
from typing import Any

import pytest

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.signaling.codec import HEADER_LENGTH, MIN_PROBE, decode, encode, lengths
from vela.signaling.messages import (
    DESCRIPTORS,
    Capability,
    CipherOffer,
    Descriptor,
    Field,
    Kind,
    Message,
    MessageType,
    Size,
    Suites,
    Tlv,
)
from vela.signaling.signer import TAG_LENGTH, Key, LocalKey

ROOT = Path(__file__).resolve().parents[2]
KEY = LocalKey(bytes(range(32)))
TAG = bytes(TAG_LENGTH)
# Values of each kind, no two the same, none with a zero that could pass for a part of the tag.
SAMPLES: dict[Kind, tuple[Any, Any]] = {
    Kind.FLAG: (True, True),
    Kind.BOOLEAN: (True, True),
    Kind.U16: (0x1212, 0x1313),
    Kind.U32: (1001, 1002),
    Kind.U64: (0x0102030405060708, 0x1112131415161718),
    Kind.CAPABILITIES: (Capability.ELISION, Capability.NATIVE_ENGINE),
    Kind.MAC: (bytes.fromhex("02005e100001"), bytes.fromhex("02005e100002")),
    Kind.ENDPOINT: (
        Endpoint(ip_address("192.0.2.1"), 48621),
        Endpoint(ip_address("2001:db8::1"), 48622),
    ),
    Kind.IPV4: (IPv4Interface("172.16.16.2/30"), IPv4Interface("172.16.16.5/30")),
    Kind.IPV6: (IPv6Interface("fd00:16::2/64"), IPv6Interface("fd00:17::3/64")),
    Kind.NAME: ("vela0", "br-lan"),
    Kind.TEXT: ("bücke!", "words"),
    Kind.PADDING: (bytes(9), bytes(5)),
    Kind.BYTES_16: (bytes(range(1, 17)), bytes(range(2, 18))),
    Kind.CIPHERS: (CipherOffer(1, Suites.AES_256_GCM), CipherOffer(2, Suites(3))),
    Kind.NOISE_1: (bytes(range(1, 97)), bytes(range(1, 49))),
    Kind.NOISE_2: (bytes(range(1, 51)), bytes(range(2, 52))),
}

Tlvs = list[tuple[int, bytes]]


def sample(field: Field, *, full: bool) -> Any:
    """Return a value for a field; full: also where its TLV may be missing."""
    if field.record is not None:
        assert dataclasses.is_dataclass(field.record)
        return field.record(*(sample(inner, full=full) for inner in field.fields))
    if field.size is not None:
        return MIN_PROBE + 20 if field.size is Size.EXACTLY else 0
    if field.tlvs[0].repeatable:
        return tuple(value for tlv in field.tlvs for value in SAMPLES[tlv.kind]) if full else ()
    kind = field.tlvs[0].kind
    if full or not field.optional:
        return SAMPLES[kind][0]
    return {Kind.FLAG: False, Kind.TEXT: ""}.get(kind)


def by_number(number: int) -> Tlv:
    return next(tlv for tlv in Tlv if tlv.number == number)


def message(descriptor: Descriptor, *, full: bool) -> Message:
    values = [sample(field, full=full) for field in descriptor.fields]
    return descriptor.record(7, 0xA1A2A3A4A5A6A7A8, 0xB1B2B3B4B5B6B7B8, 0x0102, *values)


def sized(wanted: Message, descriptor: Descriptor, size: int) -> Message:
    """Return a message as it is decoded from a datagram of this size."""
    field = descriptor.size
    if field is None or field.size is Size.EXACTLY:
        return wanted
    return dataclasses.replace(wanted, **{field.name: size})


def split(datagram: bytes) -> Tlvs:
    at, end, found = HEADER_LENGTH, len(datagram) - TAG_LENGTH, []
    while at < end:
        length = int.from_bytes(datagram[at + 1 : at + 3])
        found.append((datagram[at], datagram[at + 3 : at + 3 + length]))
        at += 3 + length
    return found


def join(datagram: bytes, tlvs: Tlvs) -> bytes:
    body = b"".join(bytes([number]) + len(value).to_bytes(2) + value for number, value in tlvs)
    return datagram[:HEADER_LENGTH] + body + TAG


def refusal(datagram: bytes, key: Key | None = None) -> str:
    """Return why a datagram is refused; empty: it is not."""
    try:
        decode(datagram, key)
    except RemoteProtocolError as err:
        return f"{err.reason}: {err.detail}"
    return ""


every_message = pytest.mark.parametrize(
    "descriptor", [pytest.param(each, id=each.number.name) for each in DESCRIPTORS.values()]
)


def test_every_type_has_a_record_and_every_kind_a_sample() -> None:
    assert set(DESCRIPTORS) == set(MessageType)
    assert len({each.record for each in DESCRIPTORS.values()}) == len(MessageType)
    assert set(SAMPLES) == set(Kind)


def test_every_tlv_has_a_number_of_its_own_and_is_in_a_message() -> None:
    used = {tlv for each in DESCRIPTORS.values() for tlv in each.required + each.optional}

    assert len({tlv.number for tlv in Tlv}) == len(Tlv)
    assert used == set(Tlv) - {Tlv.PADDING, Tlv.SESSION_TAG}


@every_message
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("key", [None, KEY])
def test_message_encoded_and_decoded_is_the_same(
    descriptor: Descriptor, full: bool, key: Key | None
) -> None:
    said = message(descriptor, full=full)

    datagram = encode(said, key)

    assert decode(datagram, key) == sized(said, descriptor, len(datagram))
    assert datagram[2] == descriptor.number
    carried = {number for number, _ in split(datagram)} - {Tlv.PADDING.number}
    wanted = descriptor.required + (descriptor.optional if full else ())
    assert carried == {tlv.number for tlv in wanted}


@every_message
@pytest.mark.parametrize("key", [None, KEY])
def test_message_truncated_at_any_byte_is_refused(descriptor: Descriptor, key: Key | None) -> None:
    datagram = encode(message(descriptor, full=True), key)

    for length in range(len(datagram)):
        assert refusal(datagram[:length], key), length


@every_message
def test_message_whose_tlvs_are_truncated_is_refused_unless_what_is_left_is_whole(
    descriptor: Descriptor,
) -> None:
    datagram = encode(message(descriptor, full=True), None)
    tlvs = split(datagram)
    whole = {len(join(datagram, tlvs[:count])): tlvs[:count] for count in range(len(tlvs) + 1)}
    required = {tlv.number for tlv in descriptor.required}

    for length in range(HEADER_LENGTH, len(datagram) - TAG_LENGTH):
        cut = datagram[:length] + TAG
        left = {number for number, _ in whole.get(len(cut), ())}
        is_whole = len(cut) in whole and left >= required
        is_whole = is_whole and not (descriptor.size and descriptor.size.tlvs)
        assert bool(refusal(cut)) is not is_whole, length


@every_message
def test_message_without_a_required_tlv_is_malformed(descriptor: Descriptor) -> None:
    datagram = encode(message(descriptor, full=True), None)

    for tlv in descriptor.required:
        tlvs = [each for each in split(datagram) if each[0] != tlv.number]
        assert refusal(join(datagram, tlvs)) == f"malformed: TLV {tlv.number} is missing"


@every_message
def test_message_with_a_tlv_twice_is_malformed_unless_it_may_be_repeated(
    descriptor: Descriptor,
) -> None:
    datagram = encode(message(descriptor, full=True), None)
    tlvs = split(datagram)

    for number, value in tlvs:
        tlv = by_number(number)
        twice = refusal(join(datagram, [*tlvs, (number, value)]))
        if tlv is Tlv.PADDING:
            continue  # a probe, which has another size then
        assert twice.startswith("malformed: ")
        # A value may not be repeated where the TLV may: full messages have several values.
        assert twice == f"malformed: TLV {number} twice" or tlv.repeatable


@every_message
def test_message_with_a_value_of_another_length_is_malformed(descriptor: Descriptor) -> None:
    datagram = encode(message(descriptor, full=True), None)
    tlvs = split(datagram)

    for at, (number, value) in enumerate(tlvs):
        tlv = by_number(number)
        right = lengths(tlv)
        if right is None:
            continue
        for length in {0, len(value) - 1, len(value) + 1, 300} - set(right) - {-1}:
            wrong = (value * 300)[:length] if value else bytes(length)
            changed = [*tlvs[:at], (number, wrong), *tlvs[at + 1 :]]
            assert f"TLV {number} of {length} bytes" in refusal(join(datagram, changed))


@every_message
def test_message_with_a_number_out_of_its_bounds_is_malformed(descriptor: Descriptor) -> None:
    datagram = encode(message(descriptor, full=True), None)
    tlvs = split(datagram)

    for at, (number, value) in enumerate(tlvs):
        tlv = by_number(number)
        if tlv.high is None:
            continue
        for wrong in {max(tlv.low - 1, 0), tlv.high + 1} - {tlv.low}:
            if wrong < 256 ** len(value):
                changed = [*tlvs[:at], (number, wrong.to_bytes(len(value))), *tlvs[at + 1 :]]
                assert f"{tlv.name} {wrong}; " in refusal(join(datagram, changed))


@every_message
def test_message_with_more_values_than_it_may_have_is_refused_by_their_number_alone(
    descriptor: Descriptor,
) -> None:
    datagram = encode(message(descriptor, full=True), None)

    for leaf in descriptor.leaves:
        if leaf.at_most is None:
            continue
        # Of the right size; what they say makes no sense, and is not looked at.
        value = bytes(min(lengths(leaf.tlvs[0]) or [0]))
        many = [*split(datagram), *[(leaf.tlvs[0].number, value)] * (leaf.at_most + 1)]
        assert f"{leaf.name}; {leaf.at_most} at most are right" in refusal(join(datagram, many))


@every_message
@pytest.mark.parametrize(("suffix", "key"), [("", None), ("_keyed", KEY)])
def test_message_has_a_vector_that_was_written_by_hand(
    descriptor: Descriptor, suffix: str, key: Key | None
) -> None:
    path = ROOT / "tests" / "vectors" / f"{descriptor.number.name.lower()}{suffix}.hex"
    lines = path.read_text().splitlines()
    vector = bytes.fromhex("".join(line.partition("#")[0] for line in lines))

    assert vector[2] == descriptor.number
    assert encode(decode(vector, key), key) == vector


# docs/protocol.md, which other implementations are written from.


@cache
def tables() -> dict[str, list[list[str]]]:
    """Return the rows of the tables of section 4, by the first cell of their heads."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    section = text.partition("## 4. Control messages")[2].partition("### 4.2")[0]
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in section.splitlines():
        if not line.startswith("|"):
            rows = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not rows:
            found["/".join(cells[:2])] = rows
        rows.append(cells)
    return {head: rows[2:] for head, rows in found.items()}


def numbers(cell: str) -> set[int]:
    """Return 1, 5, 6, 7 for "1; 5 to 7, in words"."""
    found = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", cell):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def shown(right: Collection[int] | None) -> str:
    if right is None:
        return "any"
    return (
        f"{min(right)}..{max(right)}" if isinstance(right, range) else " or ".join(map(str, right))
    )


@every_message
def test_message_is_documented_with_its_tlvs(descriptor: Descriptor) -> None:
    name = descriptor.number.name
    documented = {row[1]: int(row[0]) for row in tables()["type/name"]}
    [row] = [each for each in tables()["message/must carry"] if name in each[0].split(", ")]

    assert documented[name] == descriptor.number
    assert numbers(row[1]) == {tlv.number for tlv in descriptor.required}
    assert numbers(row[2]) == {tlv.number for tlv in descriptor.optional}


def test_documents_name_no_message_that_there_is_not() -> None:
    documented = {row[1] for row in tables()["type/name"]}

    assert documented == {each.name for each in MessageType}


def test_tlvs_are_documented_with_their_lengths_bounds_and_whether_they_repeat() -> None:
    rows = {int(row[0]): row for row in tables()["type/bytes"]}

    assert set(rows) == {tlv.number for tlv in Tlv}
    for tlv in Tlv:
        _, size, meaning = rows[tlv.number]
        assert size == shown(lengths(tlv)), tlv
        assert ("may be repeated" in meaning) is tlv.repeatable, tlv
        if tlv.high is not None and tlv.low > 1:
            bounds = f"{tlv.low}..{tlv.high}"
            assert bounds in re.sub(r"(?<=\d) (?=\d)", "", meaning), tlv


@every_message
def test_sizes_and_counts_are_judged_before_the_tag_and_the_tag_before_the_values(
    descriptor: Descriptor,
) -> None:
    datagram = encode(message(descriptor, full=True), KEY)
    forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
    tlvs = split(datagram)

    with pytest.raises(RemoteProtocolError) as refused:
        decode(forged, KEY)
    assert refused.value.reason == "tag"
    for number, value in tlvs:
        if number == 20:
            continue
        with pytest.raises(RemoteProtocolError) as refused:
            decode(join(forged, [*tlvs, (number, value + bytes(300))]), KEY)
        assert refused.value.reason == "malformed"
    for leaf in descriptor.leaves:
        if leaf.at_most is None:
            continue
        value = bytes(min(lengths(leaf.tlvs[0]) or [0]))
        many = [*tlvs, *[(leaf.tlvs[0].number, value)] * (leaf.at_most + 1)]
        with pytest.raises(RemoteProtocolError) as refused:
            decode(join(forged, many), KEY)
        assert refused.value.reason == "malformed"
