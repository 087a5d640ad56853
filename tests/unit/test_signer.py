"""The keys of a session, and both tags of a message: literal ones, and what each is bound to."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import fields, replace
from ipaddress import ip_address
from typing import Any

import pytest

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.signaling.codec import decode, encode
from vela.signaling.messages import Close, Probe
from vela.signaling.signer import (
    CONTEXT_LENGTH,
    UNSIGNED,
    LocalKey,
    SessionContext,
    derive_session_keys,
)

KEY = bytes(range(32))
CONTEXT = SessionContext(
    circuit_id=7,
    initiator_nonce=0x1122334455667788,
    responder_nonce=0xF1F2F3F4F5F6F7F8,
    initiator_own=Endpoint(ip_address("10.0.0.1"), 48621),
    responder_seen=Endpoint(ip_address("192.0.2.9"), 48621),
    responder_own=Endpoint(ip_address("2001:db8::9"), 48621),
    initiator_seen=None,
)
# By openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:KEY -kdfopt "salt:vela session 1"
# -kdfopt hexinfo:PACKED01 HKDF, and 02; PACKED was written by hand from docs/protocol.md, 4.9.
PACKED = (
    "07 1122334455667788 f1f2f3f4f5f6f7f8"
    "00000000000000000000ffff0a000001 bded 00000000000000000000ffffc0000209 bded"
    "20010db8000000000000000000000009 bded 00000000000000000000000000000000 0000"
)
TO_RESPONDER = "40681dac5b1ff6938034058ffe90f81a3c6be717cbf0dd812a3c3d35aa8ad626"
TO_INITIATOR = "23ed705e50c24d1fefce95512193be25d0a466a565f1e558105f96ecdad516cf"
CLOSE = Close(7, CONTEXT.initiator_nonce, CONTEXT.responder_nonce, 9, 1)


def test_session_keys_are_those_of_hkdf_and_exchanged_between_the_roles() -> None:
    packed = CONTEXT.pack()

    initiator = derive_session_keys(KEY, packed, initiator=True)
    responder = derive_session_keys(KEY, packed, initiator=False)

    assert packed == bytes.fromhex(PACKED)
    assert len(packed) == CONTEXT_LENGTH
    assert (initiator.transmit.hex(), initiator.receive.hex()) == (TO_RESPONDER, TO_INITIATOR)
    assert (responder.transmit, responder.receive) == (initiator.receive, initiator.transmit)


def test_keys_are_in_no_representation() -> None:
    assert TO_RESPONDER not in repr(derive_session_keys(KEY, CONTEXT.pack(), initiator=True))


def test_message_of_a_session_has_both_tags_where_the_document_says() -> None:
    datagram = encode(CLOSE, LocalKey(KEY).derive(CONTEXT, initiator=True))

    body, session_tag, tag = datagram[:-35], datagram[-35:-16], datagram[-16:]
    assert body == encode(CLOSE, None)[:-16]
    inner = hmac.digest(bytes.fromhex(TO_RESPONDER), body, hashlib.sha256)[:16]
    assert session_tag == b"\x1c\0\x10" + inner
    assert tag == hmac.digest(KEY, datagram[:-16], hashlib.sha256)[:16]
    # An end that has no such session knows the sender all the same, and skips TLV 28.
    assert decode(datagram, LocalKey(KEY)) == CLOSE


def test_message_is_taken_only_by_the_other_end_of_its_session() -> None:
    key = LocalKey(KEY)
    ours, theirs = (key.derive(CONTEXT, initiator=initiator) for initiator in (True, False))
    datagram = encode(CLOSE, ours)

    assert decode(datagram, theirs) == CLOSE
    refused = [
        (datagram, ours),  # reflected
        (encode(CLOSE, key), theirs),  # without a tag of the session
        (encode(CLOSE, None), theirs),
        (encode(CLOSE, LocalKey(KEY[::-1]).derive(CONTEXT, initiator=True)), theirs),
        (datagram[:-1] + bytes([datagram[-1] ^ 1]), theirs),
    ]
    for each, verifier in refused:
        with pytest.raises(RemoteProtocolError, match="tag: "):
            decode(each, verifier)


@pytest.mark.parametrize("name", [each.name for each in fields(SessionContext)])
def test_keys_differ_if_anything_differs_that_they_are_bound_to(name: str) -> None:
    value = getattr(CONTEXT, name)
    another = value ^ 1 if isinstance(value, int) else Endpoint(ip_address("192.0.2.77"), 1)
    changed: dict[str, Any] = {name: another}
    key = LocalKey(KEY)

    other = key.derive(replace(CONTEXT, **changed), initiator=False)

    with pytest.raises(RemoteProtocolError, match="tag: "):
        decode(encode(CLOSE, key.derive(CONTEXT, initiator=True)), other)


def test_message_that_is_too_short_for_its_tags_is_not_right() -> None:
    session = LocalKey(KEY).derive(CONTEXT, initiator=False)

    for length in range(64):
        body = bytes(length)
        datagram = body + hmac.digest(KEY, body, hashlib.sha256)[:16]
        assert not session.verify(datagram)
    assert not UNSIGNED.verify(bytes(10))


def test_probe_of_a_session_has_the_size_that_it_is_to_have() -> None:
    signer = LocalKey(KEY).derive(CONTEXT, initiator=True)
    nonces = CONTEXT.initiator_nonce, CONTEXT.responder_nonce

    for size in (71, 73, 1472, 65507):
        assert len(encode(Probe(7, *nonces, 9, size=size), signer)) == size
    with pytest.raises(ValueError, match="no probe has 70 bytes; 71 or more are right"):
        encode(Probe(7, *nonces, 9, size=70), signer)
