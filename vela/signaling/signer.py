"""What tags control messages and checks their tags, under keys that it does not show. Pure.

docs/protocol.md, sections 4 and 4.9. A session is handed a Key, as it is handed randomness: in
velad, one whose bytes are in the key holder; in tests, a LocalKey.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Protocol

from vela.address import Endpoint
from vela.signaling.messages import Tlv

TAG_LENGTH = 16  # HMAC-SHA-256, cut as RFC 2104, section 5, allows
_SESSION_TLV = struct.pack("!BH", Tlv.SESSION_TAG.number, TAG_LENGTH)
SESSION_TAG_LENGTH = len(_SESSION_TLV) + TAG_LENGTH  # with its TLV's head

# The label keeps what is derived from a key apart from what else may be. The number is the version.
_SESSION_LABEL = b"vela session 1"
_TO_RESPONDER, _TO_INITIATOR = b"\1", b"\2"


class Signer(Protocol):
    """Tags what is sent, and checks what comes."""

    @property
    def overhead(self) -> int:
        """How many bytes sign() returns."""

    def sign(self, body: bytes) -> bytes:
        """Return what goes behind the header and the TLVs of a message."""

    def verify(self, datagram: bytes) -> bool:
        """Tell whether what is behind header and TLVs is right. datagram: a header at least."""


class Context(Protocol):
    """What the keys of a session are bound to."""

    def pack(self) -> bytes: ...


class Key(Signer, Protocol):
    """A pre-shared key. Two are equal if their bytes are."""

    def derive(self, context: Context, *, initiator: bool) -> Signer:
        """Return what signs the messages of a session at this end; initiator: its role."""


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What both ends know of a session when its CONFIRM arrives; its keys are bound to it.

    Endpoints are None where nobody told them. Addresses may be translated on the way, so what
    each end sees is told to the other one, and all four are part of it.
    """

    circuit_id: int
    initiator_nonce: int
    responder_nonce: int
    initiator_own: Endpoint | None
    """TLV 5 of the CONFIRM."""
    responder_seen: Endpoint | None
    """TLV 6 of the CONFIRM: the responder, as the initiator sees it."""
    responder_own: Endpoint | None
    """TLV 5 of the ACKNOWLEDGE."""
    initiator_seen: Endpoint | None
    """TLV 6 of the ACKNOWLEDGE: the initiator, as the responder sees it."""

    def pack(self) -> bytes:
        """Return the bytes that go into the derivation of the session's keys."""
        return b"".join(
            (
                bytes([self.circuit_id]),
                self.initiator_nonce.to_bytes(8),
                self.responder_nonce.to_bytes(8),
                _pack(self.initiator_own),
                _pack(self.responder_seen),
                _pack(self.responder_own),
                _pack(self.initiator_seen),
            )
        )


@dataclass(frozen=True, slots=True)
class PackedContext:
    """A SessionContext of another process."""

    packed: bytes

    def pack(self) -> bytes:
        return self.packed


CONTEXT_LENGTH = 1 + 2 * 8 + 4 * 18
"""What SessionContext.pack() returns, in bytes."""


def _pack(endpoint: Endpoint | None) -> bytes:
    if endpoint is None:
        return bytes(18)
    packed = endpoint.address.packed
    # An IPv4 address as an IPv4-mapped one: RFC 4291, section 2.5.5.2.
    mapped = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    return mapped + endpoint.port.to_bytes(2)


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys that tag a session's messages, as one end sees them."""

    transmit: bytes
    receive: bytes

    def __repr__(self) -> str:
        return "SessionKeys(...)"  # a key has no place in logs and tracebacks


def derive_session_keys(key: bytes, context: bytes, *, initiator: bool) -> SessionKeys:
    """Return a session's keys by HKDF-SHA-256 (RFC 5869): the salt is the label."""
    secret = hmac.digest(_SESSION_LABEL, key, hashlib.sha256)
    # One block of output: the counter is 1.
    to_responder, to_initiator = (
        hmac.digest(secret, context + direction + b"\1", hashlib.sha256)
        for direction in (_TO_RESPONDER, _TO_INITIATOR)
    )
    if initiator:
        return SessionKeys(to_responder, to_initiator)
    return SessionKeys(to_initiator, to_responder)


def sign(body: bytes, key: bytes | None, session: SessionKeys | None = None) -> bytes:
    """Return the tags of a message: of its session if it has keys, and of the key.

    key None: there is no pre-shared one, and its tag is zero.
    """
    session_tag = b""
    if session is not None:
        session_tag = _SESSION_TLV + _tag(session.transmit, body)
    return session_tag + _tag(key, body + session_tag)


def verify(datagram: bytes, key: bytes | None, session: SessionKeys | None = None) -> bool:
    """Tell whether a message's tags are right. key: see sign()."""
    end = len(datagram) - TAG_LENGTH
    if not hmac.compare_digest(_tag(key, datagram[:end]), datagram[end:]):
        return False
    if session is None:
        return True
    at = end - SESSION_TAG_LENGTH
    if at < 0:
        return False
    right = _SESSION_TLV + _tag(session.receive, datagram[:at])
    return hmac.compare_digest(right, datagram[at:end])


def _tag(key: bytes | None, body: bytes) -> bytes:
    if key is None:
        return bytes(TAG_LENGTH)
    return hmac.digest(key, body, hashlib.sha256)[:TAG_LENGTH]


class _Unsigned:
    """Stands for a key where there is none: the tag is zero."""

    overhead = TAG_LENGTH

    def sign(self, body: bytes) -> bytes:
        return bytes(TAG_LENGTH)

    def verify(self, datagram: bytes) -> bool:
        return datagram[-TAG_LENGTH:] == bytes(TAG_LENGTH)


UNSIGNED: Signer = _Unsigned()


@dataclass(frozen=True, slots=True)
class LocalKey:
    """A Key whose bytes are in this process: in tests, and nowhere in velad."""

    key: bytes
    overhead: int = TAG_LENGTH

    def sign(self, body: bytes) -> bytes:
        return sign(body, self.key)

    def verify(self, datagram: bytes) -> bool:
        return verify(datagram, self.key)

    def derive(self, context: Context, *, initiator: bool) -> Signer:
        keys = derive_session_keys(self.key, context.pack(), initiator=initiator)
        return _LocalSession(self.key, keys)


@dataclass(frozen=True, slots=True)
class _LocalSession:
    """What signs a session's messages under keys in this process."""

    key: bytes
    keys: SessionKeys
    overhead: int = SESSION_TAG_LENGTH + TAG_LENGTH

    def sign(self, body: bytes) -> bytes:
        return sign(body, self.key, self.keys)

    def verify(self, datagram: bytes) -> bool:
        return verify(datagram, self.key, self.keys)
