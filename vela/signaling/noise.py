"""The Noise Protocol Framework, revision 34, for the two patterns that VELA uses. Pure.

https://noiseprotocol.org/noise.html; section numbers below are of that document. Both patterns
have two messages: the initiator writes the first, the responder the second. X25519,
ChaCha20-Poly1305 and SHA-256 are those of the package cryptography. Ephemeral keys are handed in,
so that nothing here draws a random number.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from vela.errors import RemoteProtocolError
from vela.signaling.messages import HANDSHAKE

KEY_LENGTH = 32  # of private, public and pre-shared keys, and of secrets; bytes
HASH_LENGTH = 32
TAG_LENGTH = 16


class Token(Enum):
    """What a message carries or mixes in: section 7.2, and 9.2 for PSK."""

    E = "e"
    S = "s"
    EE = "ee"
    ES = "es"
    SE = "se"
    SS = "ss"
    PSK = "psk"


_T = Token


class Pattern(Enum):
    """The name of the protocol, and the tokens of its two messages.

    IK: the initiator knows the responder's static public key in advance. NN: nobody has one.
    """

    IK_PSK2 = (
        b"Noise_IKpsk2_25519_ChaChaPoly_SHA256",
        (_T.E, _T.ES, _T.S, _T.SS),
        (_T.E, _T.EE, _T.SE, _T.PSK),
    )
    NN_PSK0 = (
        b"Noise_NNpsk0_25519_ChaChaPoly_SHA256",
        (_T.PSK, _T.E),
        (_T.E, _T.EE),
    )

    def __init__(self, protocol_name: bytes, *messages: tuple[Token, ...]) -> None:
        self.protocol_name = protocol_name
        self.messages = messages

    @property
    def has_static_keys(self) -> bool:
        return any(_T.S in tokens for tokens in self.messages)

    def message_length(self, index: int, payload: int = 0) -> int:
        """Return the size of message 0 or 1 with a payload of this many bytes."""
        tokens = self.messages[index]
        statics = (KEY_LENGTH + TAG_LENGTH) * (_T.S in tokens)
        return KEY_LENGTH + statics + payload + TAG_LENGTH


class KeyPair:
    """An X25519 key pair, from 32 bytes of private key: any 32 bytes are one (RFC 7748, 5)."""

    def __init__(self, private: bytes) -> None:
        """Raises ValueError if there are not 32 bytes."""
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def private(self) -> bytes:
        return self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def exchange(self, public: bytes) -> bytes:
        """Return the shared secret.

        Raises RemoteProtocolError for a public key of low order: with one, the secret would be
        zero whatever the private key is.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as err:
            raise _failed("a public key of low order") from err
        if not any(shared):
            raise _failed("a public key of low order")
        return shared


def hkdf(chaining_key: bytes, material: bytes, count: int) -> tuple[bytes, ...]:
    """Return 2 or 3 outputs of 32 bytes: section 4.3. It is RFC 5869 with an empty info."""
    temporary = _hmac(chaining_key, material)
    outputs: list[bytes] = []
    for number in range(1, count + 1):
        previous = outputs[-1] if outputs else b""
        outputs.append(_hmac(temporary, previous + bytes([number])))
    return tuple(outputs)


@dataclass(frozen=True, slots=True)
class _SymmetricState:
    """The chaining key, the hash of all that was said, and the key of this moment: section 5.2.

    It is a value: a message that fails leaves the state as it was.
    """

    chaining_key: bytes
    hash: bytes
    key: bytes | None = None
    nonce: int = 0

    @classmethod
    def initialize(cls, protocol_name: bytes) -> _SymmetricState:
        name = protocol_name
        # Both names are longer than a hash, but the rule is the specification's.
        start = name.ljust(HASH_LENGTH, b"\0") if len(name) <= HASH_LENGTH else _sha256(name)
        return cls(start, start)

    def mix_key(self, material: bytes) -> _SymmetricState:
        chaining_key, key = hkdf(self.chaining_key, material, 2)
        return replace(self, chaining_key=chaining_key, key=key, nonce=0)

    def mix_hash(self, data: bytes) -> _SymmetricState:
        return replace(self, hash=_sha256(self.hash + data))

    def mix_key_and_hash(self, material: bytes) -> _SymmetricState:
        chaining_key, hashed, key = hkdf(self.chaining_key, material, 3)
        return replace(self.mix_hash(hashed), chaining_key=chaining_key, key=key, nonce=0)

    def encrypt_and_hash(self, plaintext: bytes) -> tuple[_SymmetricState, bytes]:
        ciphertext = self._cipher().encrypt(_nonce(self.nonce), plaintext, self.hash)
        return self._after(ciphertext), ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> tuple[_SymmetricState, bytes]:
        """Raises RemoteProtocolError."""
        if len(ciphertext) < TAG_LENGTH:
            raise _failed(f"{len(ciphertext)} bytes where a tag of {TAG_LENGTH} should be")
        try:
            plaintext = self._cipher().decrypt(_nonce(self.nonce), ciphertext, self.hash)
        except InvalidTag as err:
            raise _failed("keys or messages of both ends differ") from err
        return self._after(ciphertext), plaintext

    def split(self) -> tuple[bytes, bytes]:
        first, second = hkdf(self.chaining_key, b"", 2)
        return first, second

    def _cipher(self) -> ChaCha20Poly1305:
        # In both patterns a key is mixed in before anything is encrypted.
        if self.key is None:
            raise RuntimeError("a Noise pattern that encrypts without a key")
        return ChaCha20Poly1305(self.key)

    def _after(self, ciphertext: bytes) -> _SymmetricState:
        return replace(self.mix_hash(ciphertext), nonce=self.nonce + 1)


class HandshakeState:
    """One handshake at one end: section 5.3. Write and read the two messages in turn, then split.

    An ephemeral key is for one handshake. A second first message under it, with another prologue,
    would use a nonce twice.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        initiator: bool,
        prologue: bytes,
        psk: bytes,
        ephemeral: KeyPair,
        static: KeyPair | None = None,
        remote_static: bytes | None = None,
    ) -> None:
        """Begin. static: this end's, of IK; remote_static: the responder's, at IK's initiator.

        Raises ValueError for keys that do not fit the pattern, or a psk that has not 32 bytes.
        """
        if len(psk) != KEY_LENGTH:
            raise ValueError(f"a pre-shared key of {len(psk)} bytes; {KEY_LENGTH} are right")
        if (static is not None) is not pattern.has_static_keys:
            raise ValueError(f"{pattern.name} {'lacks' if static is None else 'has no'} static key")
        if (remote_static is not None) is not (pattern.has_static_keys and initiator):
            raise ValueError("the responder's static key is for the initiator of IK alone")
        self.pattern, self.initiator = pattern, initiator
        self._psk, self._ephemeral, self._static = psk, ephemeral, static
        self._remote_static = remote_static
        self._remote_ephemeral: bytes | None = None
        self._next = 0
        state = _SymmetricState.initialize(pattern.protocol_name).mix_hash(prologue)
        if static is not None:  # the pre-message "<- s" of IK
            state = state.mix_hash(remote_static or static.public)
        self._symmetric = state

    @property
    def remote_static(self) -> bytes | None:
        """The other end's static public key, as soon as it is known."""
        return self._remote_static

    @property
    def finished(self) -> bool:
        return self._next == len(self.pattern.messages)

    @property
    def hash(self) -> bytes:
        """The hash of all that was said: names the session, once it is finished (11.2)."""
        return self._symmetric.hash

    def write_message(self, payload: bytes = b"") -> bytes:
        """Return the next message, which is this end's.

        Raises RemoteProtocolError if the other end's public key is of low order.
        """
        tokens = self._turn(writing=True)
        state, message = self._symmetric, b""
        for token in tokens:
            match token:
                case Token.E:
                    message += self._ephemeral.public
                    state = _mix_ephemeral(state, self._ephemeral.public)
                case Token.S:
                    state, sealed = state.encrypt_and_hash(self._own_static().public)
                    message += sealed
                case _:
                    state = self._mix(token, state, self._remote_static, self._remote_ephemeral)
        state, sealed = state.encrypt_and_hash(payload)
        self._symmetric = state
        self._next += 1
        return message + sealed

    def read_message(self, message: bytes) -> bytes:
        """Return the payload of the next message, which is the other end's.

        Raises RemoteProtocolError; then nothing has changed, and another message may be tried.
        """
        tokens = self._turn(writing=False)
        state, rest = self._symmetric, message
        static, ephemeral = self._remote_static, self._remote_ephemeral
        for token in tokens:
            match token:
                case Token.E:
                    ephemeral, rest = _take(rest, KEY_LENGTH)
                    state = _mix_ephemeral(state, ephemeral)
                case Token.S:
                    sealed, rest = _take(rest, KEY_LENGTH + TAG_LENGTH)
                    state, static = state.decrypt_and_hash(sealed)
                case _:
                    state = self._mix(token, state, static, ephemeral)
        state, payload = state.decrypt_and_hash(rest)
        self._symmetric, self._remote_static, self._remote_ephemeral = state, static, ephemeral
        self._next += 1
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """Return the secrets of both directions: the initiator's, the responder's (section 5.2)."""
        if not self.finished:
            raise RuntimeError("a Noise handshake that is split before its end")
        return self._symmetric.split()

    def _turn(self, *, writing: bool) -> tuple[Token, ...]:
        """Return the tokens of the next message, which is to be written or read here."""
        if self.finished or writing is not (self.initiator is (self._next == 0)):
            raise RuntimeError("a Noise message out of turn")
        return self.pattern.messages[self._next]

    def _mix(
        self, token: Token, state: _SymmetricState, static: bytes | None, ephemeral: bytes | None
    ) -> _SymmetricState:
        """Mix in the psk, or a secret of two keys: the first letter is the initiator's key."""
        if token is Token.PSK:
            return state.mix_key_and_hash(self._psk)
        ours, theirs = token.value if self.initiator else reversed(token.value)
        private = self._ephemeral if ours == "e" else self._own_static()
        public = ephemeral if theirs == "e" else static
        if public is None:
            raise RuntimeError(f"a Noise pattern that mixes {token.name} too early")
        return state.mix_key(private.exchange(public))

    def _own_static(self) -> KeyPair:
        if self._static is None:
            raise RuntimeError("a static key in a Noise pattern that has none")
        return self._static


def _mix_ephemeral(state: _SymmetricState, public: bytes) -> _SymmetricState:
    # Also into the key, in all patterns with a psk: section 9.2.
    return state.mix_hash(public).mix_key(public)


def _take(data: bytes, length: int) -> tuple[bytes, bytes]:
    if len(data) < length:
        raise _failed(f"{len(data)} bytes where {length} should be")
    return data[:length], data[length:]


def _nonce(number: int) -> bytes:
    # Section 12: 32 zero bits, then the number, little-endian.
    return bytes(4) + number.to_bytes(8, "little")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256)


def _failed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(HANDSHAKE, detail)
