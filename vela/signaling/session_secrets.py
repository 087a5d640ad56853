"""What one end of an encrypted session knows: handshakes in, keys of frames out. Pure.

docs/protocol.md, section 4.11. All of it is secret, so it belongs into the key holder. The state
machine in encryption.py says when; it never sees a key. Randomness is handed in.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable
from dataclasses import dataclass

from vela.errors import RemoteProtocolError
from vela.public_key import fingerprint
from vela.signaling.frame_keys import Answer
from vela.signaling.messages import HANDSHAKE, MAX_GENERATION, HandshakePattern
from vela.signaling.noise import KEY_LENGTH, HandshakeState, KeyPair, Pattern
from vela.wire import Suite

SALT_LENGTH = 8  # of a nonce's 12 bytes; the other 4 are the frame's counter
NO_PSK = bytes(KEY_LENGTH)  # of IKpsk2 where both ends have no pre-shared key

_NOISE = {
    HandshakePattern.IK_PSK2: Pattern.IK_PSK2,
    HandshakePattern.NN_PSK0: Pattern.NN_PSK0,
}

# Labels keep what is derived from one secret apart. The number is the version.
_PSK_LABEL = b"vela psk"
_FRAMES_LABEL = b"vela frames 1"
_CONTROL_LABEL = b"vela control 1"
_CHAIN_LABEL = b"vela chain 1"
_REKEY_LABEL = b"vela rekey 1"


@dataclass(frozen=True, slots=True)
class FrameKey:
    """What seals the frames of one direction, in one generation."""

    key: bytes
    """32 bytes, for either suite."""
    salt: bytes
    """8 bytes: the first ones of each nonce."""

    def __repr__(self) -> str:
        return "FrameKey(...)"  # a key has no place in logs and tracebacks


@dataclass(frozen=True, slots=True)
class Keys:
    """What a handshake gives one end. transmit and receive are as this end sees them."""

    generation: int
    answer: Answer
    transmit: FrameKey
    receive: FrameKey
    transmit_control: bytes
    receive_control: bytes
    """Tag the session's control messages; 32 bytes each."""
    remote_static: bytes | None
    """The public key that the other end has proved to have; None with NNpsk0."""

    def __repr__(self) -> str:
        return f"Keys(generation={self.generation}, ...)"


def psk_of(key: bytes | None) -> bytes:
    """Return what Noise takes in place of a pre-shared key of any length."""
    return NO_PSK if key is None else hashlib.sha256(_PSK_LABEL + key).digest()


class SessionSecrets:
    """The handshakes of one session, one for each generation, at one end.

    One handshake is under way at most. begin() and respond() of a generation may be repeated:
    each repetition has an ephemeral key of its own, and replaces the one before.
    """

    def __init__(
        self,
        pattern: HandshakePattern,
        *,
        randomness: random.Random,
        psk: bytes,
        static: KeyPair | None = None,
        remote_static: bytes | None = None,
        is_allowed: Callable[[bytes], bool] = lambda public: False,
    ) -> None:
        """static: this machine's identity, with IKpsk2.

        remote_static: the public key that the other end must have; None at a responder that
        serves all whose public key is_allowed. Raises ValueError for keys that do not fit.
        """
        if len(psk) != KEY_LENGTH:
            raise ValueError(f"a pre-shared key of {len(psk)} bytes; {KEY_LENGTH} are right")
        self._pattern, self._psk, self._static = pattern, psk, static
        self._remote_static, self._is_allowed = remote_static, is_allowed
        self._randomness = randomness
        self._handshake: tuple[int, HandshakeState] | None = None
        # Of the last generation that finished here, and of the one before: the other end may
        # not have finished the last one.
        self._chains: dict[int, bytes] = {}

    def begin(self, generation: int, prologue: bytes) -> bytes:
        """Return message 1 of a handshake for this generation, which this end initiates."""
        handshake = self._begin(generation, prologue, initiator=True)
        message = handshake.write_message()
        self._handshake = generation, handshake
        return message

    def respond(
        self, generation: int, prologue: bytes, message: bytes, answer: Answer
    ) -> tuple[bytes, Keys]:
        """Answer message 1 with message 2, and return the keys.

        Raises RemoteProtocolError, and then nothing has changed.
        """
        handshake = self._begin(generation, prologue, initiator=False)
        if handshake.read_message(message):
            raise RemoteProtocolError(HANDSHAKE, "message 1 has a payload")
        self._check_remote(handshake.remote_static)
        reply = handshake.write_message(answer.pack())
        return reply, self._finish(generation, handshake, answer)

    def finish(self, generation: int, message: bytes) -> Keys:
        """Take message 2, and return the keys.

        Raises RemoteProtocolError, and then nothing has changed: another message 2 may come.
        """
        if self._handshake is None or self._handshake[0] != generation:
            raise RemoteProtocolError(HANDSHAKE, f"no handshake for generation {generation}")
        handshake = self._handshake[1]
        answer = Answer.unpack(handshake.read_message(message))
        self._handshake = None
        return self._finish(generation, handshake, answer)

    def wipe(self) -> None:
        """Forget all. Python cannot overwrite what it has freed; the process ends for that."""
        self._handshake, self._psk = None, NO_PSK
        self._static = self._remote_static = None
        self._chains.clear()

    def _begin(self, generation: int, prologue: bytes, *, initiator: bool) -> HandshakeState:
        if not 1 <= generation <= MAX_GENERATION:
            raise ValueError(f"generation {generation}; 1..{MAX_GENERATION} are right")
        return HandshakeState(
            _NOISE[self._pattern],
            initiator=initiator,
            prologue=prologue,
            psk=self._psk_for(generation),
            ephemeral=KeyPair(self._randomness.randbytes(KEY_LENGTH)),
            static=self._static,
            remote_static=self._remote_static if initiator else None,
        )

    def _psk_for(self, generation: int) -> bytes:
        """Return the psk, mixed with what only the ends of the previous generation know."""
        if generation == 1:
            return self._psk
        chain = self._chains.get(generation - 1)
        if chain is None:
            raise RemoteProtocolError(HANDSHAKE, f"no generation {generation - 1} to go on from")
        return derive(chain, self._psk, _REKEY_LABEL + _number(generation), KEY_LENGTH)

    def _check_remote(self, public: bytes | None) -> None:
        if public is None:
            return
        if self._remote_static is not None:
            allowed = hmac.compare_digest(public, self._remote_static)
        else:
            allowed = self._is_allowed(public)
        if not allowed:
            raise RemoteProtocolError(HANDSHAKE, f"unknown public key {fingerprint(public)}")

    def _finish(self, generation: int, handshake: HandshakeState, answer: Answer) -> Keys:
        bound, (ours, theirs) = handshake.hash, handshake.split()
        chain = derive(bound, ours + theirs, _CHAIN_LABEL, KEY_LENGTH)
        if not handshake.initiator:
            ours, theirs = theirs, ours
        self._chains = {
            each: known for each, known in self._chains.items() if each == generation - 1
        } | {generation: chain}
        # All later generations are with the same machine.
        self._remote_static = handshake.remote_static
        return Keys(
            generation,
            answer,
            transmit=frame_key(bound, ours, answer.suite, generation),
            receive=frame_key(bound, theirs, answer.suite, generation),
            transmit_control=derive(bound, ours, _CONTROL_LABEL, KEY_LENGTH),
            receive_control=derive(bound, theirs, _CONTROL_LABEL, KEY_LENGTH),
            remote_static=handshake.remote_static,
        )


def frame_key(handshake_hash: bytes, secret: bytes, suite: Suite, generation: int) -> FrameKey:
    """Return key and salt of one direction, whose secret Split() gave."""
    info = _FRAMES_LABEL + bytes([suite]) + _number(generation)
    derived = derive(handshake_hash, secret, info, KEY_LENGTH + SALT_LENGTH)
    return FrameKey(derived[:KEY_LENGTH], derived[KEY_LENGTH:])


def derive(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    """Return HKDF-SHA-256 of RFC 5869."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    block, derived = b"", b""
    for number in range(1, -(-length // hashlib.sha256().digest_size) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), hashlib.sha256)
        derived += block
    return derived[:length]


def _number(value: int) -> bytes:
    return value.to_bytes(4)
