"""What is derived from a handshake, by cryptography alone; and what may not be mixed up."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from encrypted_ends import IDENTITIES, PSK, session_secrets

from vela.errors import RemoteProtocolError
from vela.public_key import fingerprint
from vela.signaling.frame_keys import Answer, Role
from vela.signaling.messages import HandshakePattern
from vela.signaling.noise import HandshakeState, KeyPair, Pattern
from vela.signaling.session_secrets import (
    NO_PSK,
    Keys,
    SessionSecrets,
    derive,
    frame_key,
    psk_of,
)
from vela.wire import Suite

ANSWER = Answer(Suite.AES_256_GCM, 0)
IK, NN = HandshakePattern.IK_PSK2, HandshakePattern.NN_PSK0


def hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def both(pattern: HandshakePattern = NN) -> tuple[SessionSecrets, SessionSecrets]:
    dice = random.Random(1)
    return (
        session_secrets(Role.INITIATOR, pattern, dice),
        session_secrets(Role.RESPONDER, pattern, dice),
    )


def generation(
    initiator: SessionSecrets, responder: SessionSecrets, number: int, answer: Answer = ANSWER
) -> tuple[Keys, Keys]:
    message = initiator.begin(number, b"prologue")
    reply, theirs = responder.respond(number, b"prologue", message, answer)
    return initiator.finish(number, reply), theirs


def test_vector_of_a_frame_key() -> None:
    # By hand: HMAC-SHA-256 with openssl(1); the salt of HKDF is the handshake's hash, and info
    # the label, suite 1 and generation 2.
    #   extracted=$(printf SECRET | xxd -r -p | openssl dgst -sha256 -mac HMAC -macopt hexkey:HASH)
    #   T1 = HMAC(extracted, info | 01), T2 = HMAC(extracted, T1 | info | 02)
    found = frame_key(bytes(range(32)), bytes(range(32, 64)), Suite.AES_256_GCM, 2)

    assert found.key.hex() == "8cda69e34591dcc2fbe1d9a1285ea0685052f41888393d3c11c03c6e98e7d14b"
    assert found.salt.hex() == "90b9591e60a89c03"
    info = b"vela frames 1" + bytes.fromhex("01 00000002")
    assert found.key + found.salt == hkdf(bytes(range(32)), bytes(range(32, 64)), info, 40)


@pytest.mark.parametrize("length", [1, 32, 33, 40, 64, 100])
@pytest.mark.parametrize("info", [b"", b"info"])
def test_derive_is_hkdf(length: int, info: bytes) -> None:
    salt, secret = bytes(range(32)), b"secret"

    assert derive(salt, secret, info, length) == hkdf(salt, secret, info, length)


@pytest.mark.parametrize("pattern", [IK, NN])
def test_keys_of_both_ends_are_those_of_the_handshake(pattern: HandshakePattern) -> None:
    ours, theirs = generation(*both(pattern), 1)

    # The same handshake without SessionSecrets: the randomness is that of both().
    dice = random.Random(1)
    static = pattern is IK
    noise = Pattern.IK_PSK2 if static else Pattern.NN_PSK0
    initiator = HandshakeState(
        noise,
        initiator=True,
        prologue=b"prologue",
        psk=PSK,
        ephemeral=KeyPair(dice.randbytes(32)),
        static=IDENTITIES[0] if static else None,
        remote_static=IDENTITIES[1].public if static else None,
    )
    responder = HandshakeState(
        noise,
        initiator=False,
        prologue=b"prologue",
        psk=PSK,
        ephemeral=KeyPair(dice.randbytes(32)),
        static=IDENTITIES[1] if static else None,
    )
    responder.read_message(initiator.write_message())
    initiator.read_message(responder.write_message(ANSWER.pack()))
    bound, (to_responder, to_initiator) = initiator.hash, initiator.split()
    info = b"vela frames 1" + bytes.fromhex("01 00000001")

    for sent, received, secret in (
        (ours, theirs, to_responder),
        (theirs, ours, to_initiator),
    ):
        assert sent.transmit == received.receive
        assert sent.transmit.key + sent.transmit.salt == hkdf(bound, secret, info, 40)
        assert sent.transmit_control == received.receive_control
        assert sent.transmit_control == hkdf(bound, secret, b"vela control 1", 32)
    assert theirs.remote_static == (IDENTITIES[0].public if static else None)
    assert ours.remote_static == (IDENTITIES[1].public if static else None)


def test_no_two_keys_are_the_same() -> None:
    initiator, responder = both()
    keys = [
        key
        for number in (1, 2, 3)
        for keys in generation(initiator, responder, number)
        for key in (keys.transmit.key, keys.transmit_control)
    ]

    assert len(set(keys)) == 12
    bound, secret = bytes(32), b"\1" * 32
    other = [frame_key(bound, secret, suite, number) for suite in Suite for number in (1, 2)]
    other.append(frame_key(b"\1" * 32, secret, Suite.AES_256_GCM, 1))
    assert len({each.key for each in other}) == len({each.salt for each in other}) == 5


@pytest.mark.parametrize("pattern", [IK, NN])
def test_rekey_needs_the_generation_before(pattern: HandshakePattern) -> None:
    initiator, responder = both(pattern)
    generation(initiator, responder, 1)
    # Others with the same keys, who were not there.
    dice = random.Random(9)
    stranger, partner = (session_secrets(role, pattern, dice) for role in Role)
    generation(stranger, partner, 1)

    # With IKpsk2 it is message 2 that shows it.
    with pytest.raises(RemoteProtocolError, match="differ"):
        generation(stranger, responder, 2)

    ours, theirs = generation(initiator, responder, 2)
    assert ours.transmit == theirs.receive


def test_rekey_without_the_generation_before_is_refused() -> None:
    initiator, responder = both()

    with pytest.raises(RemoteProtocolError, match="no generation 1"):
        initiator.begin(2, b"")
    with pytest.raises(RemoteProtocolError, match="no generation 1"):
        responder.respond(2, b"", bytes(48), ANSWER)


def test_handshake_that_was_begun_again_takes_only_the_answer_to_the_last_message() -> None:
    initiator, responder = both()
    first = initiator.begin(1, b"prologue")
    second = initiator.begin(1, b"prologue")
    assert first[:32] != second[:32]  # another ephemeral key
    reply, _ = responder.respond(1, b"prologue", first, ANSWER)
    with pytest.raises(RemoteProtocolError):
        initiator.finish(1, reply)

    reply, theirs = responder.respond(1, b"prologue", second, ANSWER)

    assert initiator.finish(1, reply).transmit == theirs.receive
    with pytest.raises(RemoteProtocolError, match="no handshake"):
        initiator.finish(1, reply)


def ik_responder(**arguments: Any) -> SessionSecrets:
    return SessionSecrets(
        IK, randomness=random.Random(2), psk=PSK, static=IDENTITIES[1], **arguments
    )


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        ({"remote_static": IDENTITIES[0].public}, True),
        ({"remote_static": IDENTITIES[1].public}, False),
        ({"is_allowed": lambda public: public == IDENTITIES[0].public}, True),
        ({"is_allowed": lambda public: False}, False),
        ({}, False),
        ({"remote_static": IDENTITIES[1].public, "is_allowed": lambda public: True}, False),
    ],
)
def test_initiator_is_answered_only_if_its_key_is_known(
    arguments: dict[str, Any], taken: bool
) -> None:
    initiator, _ = both(IK)
    message = initiator.begin(1, b"")
    responder = ik_responder(**arguments)

    if taken:
        responder.respond(1, b"", message, ANSWER)
        return
    with pytest.raises(RemoteProtocolError) as caught:
        responder.respond(1, b"", message, ANSWER)
    assert caught.value.reason == "handshake"
    assert fingerprint(IDENTITIES[0].public) in caught.value.detail


def test_later_generations_are_with_the_same_machine() -> None:
    initiator, _ = both(IK)
    responder = ik_responder(is_allowed=lambda public: True)
    generation(initiator, responder, 1)
    other = SessionSecrets(
        IK,
        randomness=random.Random(3),
        psk=PSK,
        static=KeyPair(bytes(range(5, 37))),
        remote_static=IDENTITIES[1].public,
    )
    # It even knows the secret of the first generation.
    other._chains = initiator._chains

    with pytest.raises(RemoteProtocolError, match="unknown public key"):
        responder.respond(2, b"", other.begin(2, b""), ANSWER)


def test_psk_of_a_key_and_of_none() -> None:
    # printf 'vela psk%s' 0123456789abcdef0123456789abcdef | sha256sum
    assert (
        psk_of(b"0123456789abcdef0123456789abcdef").hex()
        == "120cf0bde56fa595ec24d7387c7d8ec11334b09604d4d7109ead7e7441e23846"
    )
    assert psk_of(None) == NO_PSK == bytes(32)


def test_wiped_secrets_are_of_no_use() -> None:
    initiator, responder = both()
    generation(initiator, responder, 1)
    message = initiator.begin(2, b"")

    responder.wipe()

    with pytest.raises(RemoteProtocolError):
        responder.respond(2, b"", message, ANSWER)


def test_keys_are_not_shown() -> None:
    ours, _ = generation(*both(), 1)

    assert ours.transmit.key.hex() not in repr(ours)
    assert repr(ours.transmit.key) not in repr(ours)
    assert repr(ours.transmit) == "FrameKey(...)"


@pytest.mark.parametrize("number", [0, -1, 2**32])
def test_generation_out_of_bounds_is_the_callers_mistake(number: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        both()[0].begin(number, b"")
