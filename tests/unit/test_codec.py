"""Control messages and their bytes: literal ones, every truncation, every flipped byte."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.signaling.codec import decode, encode, read_header, rejection
from vela.signaling.messages import (
    MAX_MESSAGE,
    Acknowledge,
    Capability,
    Close,
    Confirm,
    Description,
    Header,
    Keepalive,
    Message,
    MessageType,
    Offer,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.signer import Key, LocalKey

VECTORS = Path(__file__).parents[1] / "vectors"
KEY = LocalKey(bytes.fromhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"))

ROUTER1 = Endpoint(ip_address("192.0.2.1"), 48621)
ROUTER2 = Endpoint(ip_address("192.0.2.9"), 48621)
DESCRIPTION = Description(
    mac=bytes.fromhex("02005e100001"),
    mtu=1471,
    capabilities=Capability.ELISION | Capability.CHECKSUM_OFFLOAD,
    port=48621,
    keepalive_ms=5000,
    own=ROUTER1,
    seen=ROUTER2,
)
OFFER = Offer(
    interface="vela0",
    addresses=(IPv4Interface("172.16.16.2/30"), IPv6Interface("fd00:16::2/64")),
    bridge="br-lan",
    mac=bytes.fromhex("02005e100002"),
)
COOKIE = 0xF1F2F3F4F5F6F7F8
NONCE = 0x1122334455667788
# What tests/vectors says, in our words; the sizes are counted there.
SPOKEN: dict[str, Message] = {
    "request": Request(1, NONCE, 0, 1, DESCRIPTION, OFFER, size=151),
    "acknowledge": Acknowledge(1, COOKIE, NONCE, 1),
    "confirm": Confirm(1, NONCE, COOKIE, 2, DESCRIPTION, OFFER, size=151),
    "close": Close(1, NONCE, COOKIE, 9, reason=2),
    "keepalive": Keepalive(
        255,
        0xA1A2A3A4A5A6A7A8,
        0xB1B2B3B4B5B6B7B8,
        65538,
        Description(
            mac=bytes.fromhex("02005e100002"),
            mtu=1415,
            capabilities=Capability.ELISION | Capability.NATIVE_ENGINE,
            port=48621,
            keepalive_ms=1000,
            seen=Endpoint(ip_address("2001:db8::1"), 48621),
        ),
        heard=65537,
        timestamp=1_000_000_000,
        echo=1_000_000,
        up=True,
    ),
    "reject": Reject(2, 0xC1C2C3C4C5C6C7C8, 0xD1D2D3D4D5D6D7D8, 3, code=3, text="bücke!"),
    "probe": Probe(1, NONCE, COOKIE, 10, size=64),
    "probe_reply": ProbeReply(1, COOKIE, NONCE, 11, size=64),
}


@cache
def vector(name: str) -> bytes:
    lines = (VECTORS / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))


def with_tlvs(name: str, *tlvs: str) -> bytes:
    """Return an untagged vector with more TLVs behind those it has."""
    return vector(name)[:-16] + bytes.fromhex("".join(tlvs)) + bytes(16)


def reason_for(datagram: bytes, key: Key | None) -> str | None:
    """Return why it is refused; None: it is not. Anything but the one error comes through."""
    try:
        decode(datagram, key)
    except RemoteProtocolError as err:
        return err.reason
    return None


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize(("suffix", "key"), [("", None), ("_keyed", KEY)])
def test_message_as_in_the_vectors_is_decoded_and_encoded(
    name: str, suffix: str, key: Key | None
) -> None:
    message, datagram = SPOKEN[name], vector(name + suffix)

    assert decode(datagram, key) == message
    assert encode(message, key) == datagram


def test_header_is_read_before_the_key_is_known() -> None:
    header = read_header(vector("keepalive_keyed"))

    assert header == Header(
        MessageType.KEEPALIVE, 255, 0xA1A2A3A4A5A6A7A8, 0xB1B2B3B4B5B6B7B8, 65538
    )


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("key", [None, KEY])
def test_message_truncated_at_any_byte_is_refused(name: str, key: Key | None) -> None:
    datagram = vector(name if key is None else f"{name}_keyed")

    reasons = {reason_for(datagram[:length], key) for length in range(len(datagram))}

    assert reasons <= {"malformed", "tag"}


@pytest.mark.parametrize("name", SPOKEN)
def test_message_without_key_with_any_byte_changed_raises_only_the_protocol_error(
    name: str,
) -> None:
    datagram = vector(name)

    for at in range(len(datagram)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            changed = datagram[:at] + bytes([datagram[at] ^ flip]) + datagram[at + 1 :]
            reason = reason_for(changed, None)
            assert reason in (None, "malformed", "tag", "version")
            if at >= len(datagram) - 16:
                assert reason == "tag"


@pytest.mark.parametrize("name", SPOKEN)
def test_message_with_key_with_any_byte_changed_is_refused(name: str) -> None:
    datagram = vector(f"{name}_keyed")

    for at in range(len(datagram)):
        for flip in (1, 0x80, 0xFF):
            changed = datagram[:at] + bytes([datagram[at] ^ flip]) + datagram[at + 1 :]
            assert reason_for(changed, KEY) in ("tag", "version", "malformed")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("request", KEY),  # no tag where there is a key
        ("request_keyed", None),  # a tag where there is none
        ("request_keyed", LocalKey(KEY.key[::-1])),
        ("request_keyed", LocalKey(b"")),
    ],
)
def test_message_under_another_key_is_refused_for_its_tag(name: str, key: Key | None) -> None:
    assert reason_for(vector(name), key) == "tag"


def test_message_of_another_version_is_refused_for_it() -> None:
    datagram = vector("request")

    assert reason_for(b"\0\2" + datagram[2:], None) == "version"


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_behind_a_good_header_raise_only_the_protocol_error(seed: int) -> None:
    dice = random.Random(seed)

    for _ in range(5000):
        number, body = dice.randrange(10), dice.randbytes(dice.randrange(80))
        datagram = struct.pack("!BBBBQQQ", 0, 1, number, 1, 1, 2, 3) + body + bytes(16)
        assert reason_for(datagram, None) in (None, "malformed", "tag")
        assert reason_for(dice.randbytes(dice.randrange(100)), KEY) in ("malformed", "version")


@given(data=st.binary(max_size=1400))
def test_any_bytes_raise_only_the_protocol_error(data: bytes) -> None:
    assert reason_for(data, None) in (None, "malformed", "tag", "version")


TLV_BYTES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=12)


@given(number=st.integers(1, 8), tlvs=TLV_BYTES)
def test_any_tlvs_raise_only_the_protocol_error(number: int, tlvs: list[tuple[int, bytes]]) -> None:
    body = b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    datagram = struct.pack("!BBBBQQQ", 0, 1, number, 1, 1, 2, 3) + body + bytes(16)

    assert reason_for(datagram, None) in (None, "malformed")


def test_unknown_tlvs_are_skipped() -> None:
    datagram = with_tlvs("request", "c8 0003 010203", "c9 0000", "c8 0000")

    message = decode(datagram, None)
    assert message == Request(1, NONCE, 0, 1, DESCRIPTION, OFFER, size=151 + 6 + 3 + 3)


@pytest.mark.parametrize(
    ("tlv", "said"),
    [
        ("01 0006 02005e100009", "TLV 1 twice"),
        ("08 0005 76656c6131", "TLV 8 twice"),
        ("15 0000 15 0000", "TLV 21 twice"),
        ("09 0005 ac101002 1e", "172.16.16.2/30 twice"),
        ("09 0004 ac101002", "TLV 9 of 4 bytes"),
        ("09 0005 ac101002 21", "prefix length"),
        ("09 0005 ac101002 00", "covers every destination"),
        ("09 0005 ac101003 1e", "broadcast"),
        ("09 0005 7f000001 08", "not an interface address"),
        ("09 0005 e0000001 18", "multicast"),
        ("0a 0011 00000000000000000000ffffc0000201 40", "IPv4-mapped"),
        ("15 0001 00", "TLV 21 of 1 bytes"),
        ("c8 0004 010203", "3 are left"),
        ("c8 00", "where a TLV should begin"),
    ],
)
def test_request_with_a_wrong_tlv_is_malformed(tlv: str, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said) as caught:
        decode(with_tlvs("request", tlv), None)

    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("010006 02005e100001", "010006 03005e100001", "group address"),
        ("010006 02005e100001", "010006 000000000000", "not an address"),
        ("020004 000005bf", "020004 00000043", "MTU 67"),
        ("020004 000005bf", "020004 ffffffff", "MTU 4294967295"),
        ("020004 000005bf", "c80004 000005bf", "TLV 2 is missing"),
        ("040002 bded", "040002 0000", "PORT 0"),
        ("070004 00001388", "070004 00000063", "KEEPALIVE 99"),
        ("080005 76656c6130", "080005 76652f6130", "not an interface name"),
        ("080005 76656c6130", "080005 76656cff30", "ascii"),
        ("0b0006 62722d6c616e", "0b0006 62720a6c616e", "not an interface name"),
    ],
)
def test_request_with_a_wrong_value_is_malformed(old: str, new: str, said: str) -> None:
    changed = vector("request").replace(bytes.fromhex(old), bytes.fromhex(new))
    assert changed != vector("request")

    with pytest.raises(RemoteProtocolError, match=said):
        decode(changed, None)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u202e", "\x00"])
def test_reject_with_unprintable_text_is_malformed(text: str) -> None:
    value = text.encode()
    head = vector("reject")[: 28 + 5]
    datagram = head + struct.pack("!BH", 18, len(value)) + value + bytes(16)

    assert reason_for(datagram, None) == "malformed"


def test_message_about_circuit_0_is_malformed() -> None:
    datagram = vector("acknowledge")

    assert reason_for(datagram[:3] + b"\0" + datagram[4:], None) == "malformed"


def test_message_whose_counter_leaves_no_room_for_others_is_malformed() -> None:
    datagram = vector("acknowledge")

    assert reason_for(datagram[:20] + b"\x80" + bytes(7) + datagram[28:], None) == "malformed"
    assert reason_for(datagram[:20] + b"\x7f" + b"\xff" * 7 + datagram[28:], None) is None


def test_message_over_1232_bytes_is_malformed_unless_it_is_a_probe() -> None:
    padding = "14 %04x" % (MAX_MESSAGE - 151 - 3)
    body = bytes(MAX_MESSAGE - 151 - 3)

    assert MAX_MESSAGE == 1232  # 1280 - 40 - 8
    assert reason_for(with_tlvs("request", padding, body.hex()), None) is None
    assert reason_for(with_tlvs("request", padding, body.hex(), "c80000"), None) == "malformed"
    assert decode(encode(Probe(1, 2, 3, 4, size=9000), KEY), KEY) == Probe(1, 2, 3, 4, size=9000)


def test_probe_of_another_size_than_it_says_is_malformed() -> None:
    assert reason_for(with_tlvs("probe", "c80000"), None) == "malformed"


def test_rejection_is_never_larger_than_what_it_answers() -> None:
    asked = SPOKEN["confirm"]

    for size in range(44 + 5, 400):
        answer = rejection(asked, size, RejectCode.BRIDGE, "ü" * 300)
        assert len(encode(answer, KEY)) <= size
    assert (answer.sender_nonce, answer.receiver_nonce, answer.counter) == (COOKIE, NONCE, 2)


def test_request_with_too_much_to_say_is_refused_here() -> None:
    addresses = tuple(IPv4Interface(f"10.0.{i}.1/24") for i in range(33))

    with pytest.raises(ValueError, match="33 addresses; 32 fit"):
        encode(Request(1, 2, 0, 1, DESCRIPTION, Offer(addresses=addresses)), None)


U64 = st.integers(0, 2**64 - 1)
MACS = st.binary(min_size=5, max_size=5).map(lambda tail: b"\x02" + tail)
ENDPOINTS = st.builds(Endpoint, st.ip_addresses(), st.integers(1, 65535))
DESCRIPTIONS = st.builds(
    Description,
    mac=MACS,
    mtu=st.integers(68, 65487),
    capabilities=st.integers(0, 7).map(Capability),
    port=st.integers(1, 65535),
    keepalive_ms=st.integers(100, 3_600_000),
    own=st.none() | ENDPOINTS,
    seen=st.none() | ENDPOINTS,
)
NAMES = st.none() | st.from_regex(r"[a-z][a-z0-9._-]{0,14}", fullmatch=True).filter(
    lambda name: name not in ("lo", "all", "default")
)
ADDRESSES = st.integers(0, 16).flatmap(
    lambda count: st.tuples(
        st.just(tuple(IPv4Interface(f"10.0.{i}.1/24") for i in range(count))),
        st.integers(0, 16).map(
            lambda six: tuple(IPv6Interface(f"fd00:{i}::1/64") for i in range(six))
        ),
    ).map(lambda both: both[0] + both[1])
)
OFFERS = st.builds(Offer, interface=NAMES, addresses=ADDRESSES, bridge=NAMES, mac=st.none() | MACS)
COMMON = (st.integers(1, 255), U64, U64, st.integers(0, 2**63 - 1))
TEXTS = st.text(max_size=50).filter(str.isprintable)
MESSAGES = st.one_of(
    st.builds(Request, *COMMON, DESCRIPTIONS, OFFERS, st.booleans()),
    st.builds(Acknowledge, *COMMON),
    st.builds(Confirm, *COMMON, DESCRIPTIONS, OFFERS, st.booleans()),
    st.builds(Close, *COMMON, st.integers(0, 65535)),
    st.builds(Keepalive, *COMMON, DESCRIPTIONS, U64, U64, st.none() | U64, st.booleans()),
    st.builds(Reject, *COMMON, st.integers(0, 65535), TEXTS),
    st.builds(Probe, *COMMON, st.integers(52, 65507)),
    st.builds(ProbeReply, *COMMON, st.integers(0, 65535)),
)


@settings(max_examples=150)
@given(message=MESSAGES, key=st.none() | st.builds(LocalKey, st.binary(min_size=1, max_size=64)))
def test_message_encoded_and_decoded_is_the_same(message: Message, key: Key | None) -> None:
    datagram = encode(message, key)

    if isinstance(message, Request | Confirm):
        message = replace(message, size=len(datagram))
    assert decode(datagram, key) == message
    assert isinstance(message, Probe) or len(datagram) <= 1232
