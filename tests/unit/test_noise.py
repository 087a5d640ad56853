"""Noise by the published vectors, and what an attacker may do to its messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vela.errors import RemoteProtocolError
from vela.signaling.noise import HandshakeState, KeyPair, Pattern, hkdf

VECTORS = Path(__file__).parents[1] / "vectors" / "noise"
PSK = bytes(range(64, 96))
INITIATOR, RESPONDER = KeyPair(bytes(range(32))), KeyPair(bytes(range(1, 33)))
EPHEMERALS = KeyPair(bytes(range(2, 34))), KeyPair(bytes(range(3, 35)))

# Points of low order on Curve25519 and its twist, also in encodings that are not reduced modulo
# 2^255 - 19: https://cr.yp.to/ecdh.html#validate.
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


@dataclass(frozen=True)
class Vector:
    """A handshake and messages after it, whichever file it comes from."""

    protocol_name: str
    prologue: bytes
    psk: bytes
    ephemerals: tuple[bytes, bytes]
    statics: tuple[bytes | None, bytes | None]
    messages: tuple[tuple[bytes, bytes], ...]
    hash: bytes | None

    def pair(self) -> tuple[HandshakeState, HandshakeState]:
        pattern = next(
            each for each in Pattern if each.protocol_name.decode() == self.protocol_name
        )
        initiator, responder = (static and KeyPair(static) for static in self.statics)
        return (
            HandshakeState(
                pattern,
                initiator=True,
                prologue=self.prologue,
                psk=self.psk,
                ephemeral=KeyPair(self.ephemerals[0]),
                static=initiator or None,
                remote_static=responder.public if responder else None,
            ),
            HandshakeState(
                pattern,
                initiator=False,
                prologue=self.prologue,
                psk=self.psk,
                ephemeral=KeyPair(self.ephemerals[1]),
                static=responder or None,
            ),
        )


def of_cacophony(entry: dict[str, Any]) -> Vector:
    def value(key: str) -> bytes:
        return bytes.fromhex(entry.get(key, ""))

    assert entry["init_prologue"] == entry["resp_prologue"]
    assert entry["init_psks"] == entry["resp_psks"]
    return Vector(
        entry["protocol_name"],
        value("init_prologue"),
        bytes.fromhex(entry["init_psks"][0]),
        (value("init_ephemeral"), value("resp_ephemeral")),
        (value("init_static") or None, value("resp_static") or None),
        tuple(
            (bytes.fromhex(each["payload"]), bytes.fromhex(each["ciphertext"]))
            for each in entry["messages"]
        ),
        value("handshake_hash"),
    )


def of_flynn(entry: dict[str, str]) -> Vector:
    def value(key: str) -> bytes:
        return bytes.fromhex(entry.get(key, ""))

    count = sum(key.endswith("_payload") for key in entry)
    return Vector(
        entry["handshake"],
        value("prologue"),
        value("preshared_key"),
        (value("gen_init_ephemeral"), value("gen_resp_ephemeral")),
        (value("init_static") or None, value("resp_static") or None),
        tuple(
            (value(f"msg_{number}_payload"), value(f"msg_{number}_ciphertext"))
            for number in range(count)
        ),
        None,
    )


def load(name: str, read: Callable[[Any], Vector]) -> list[Any]:
    entries = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
    return [
        pytest.param(read(entry), id=f"{name}-{number}") for number, entry in enumerate(entries)
    ]


ALL = load("cacophony", of_cacophony) + load("flynn", of_flynn)


def nonce(number: int) -> bytes:
    return bytes(4) + number.to_bytes(8, "little")


def handshake(pattern: Pattern, **changed: Any) -> tuple[HandshakeState, HandshakeState]:
    """Return both ends; changed: what is different at the responder."""
    static = pattern.has_static_keys
    both: dict[str, Any] = {"prologue": b"prologue", "psk": PSK}
    responder = {"static": RESPONDER if static else None, **both, **changed}
    return (
        HandshakeState(
            pattern,
            initiator=True,
            ephemeral=EPHEMERALS[0],
            static=INITIATOR if static else None,
            remote_static=RESPONDER.public if static else None,
            **both,
        ),
        HandshakeState(pattern, initiator=False, ephemeral=EPHEMERALS[1], **responder),
    )


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    assert caught.value.reason == "handshake"
    return caught.value.detail


every_pattern = pytest.mark.parametrize("pattern", list(Pattern), ids=lambda each: each.name)


def test_vectors_cover_both_patterns_from_two_sources() -> None:
    names = [each.values[0].protocol_name for each in ALL]

    assert len(ALL) == 10
    for pattern in Pattern:
        assert names.count(pattern.protocol_name.decode()) >= 2


@pytest.mark.parametrize("vector", ALL)
def test_handshake_of_a_vector_has_its_bytes(vector: Vector) -> None:
    initiator, responder = vector.pair()
    (payload1, message1), (payload2, message2), *transport = vector.messages

    assert initiator.write_message(payload1) == message1
    assert responder.read_message(message1) == payload1
    assert responder.write_message(payload2) == message2
    assert initiator.read_message(message2) == payload2

    assert initiator.finished
    assert responder.finished
    assert vector.hash in (None, initiator.hash)
    assert initiator.hash == responder.hash
    assert initiator.split() == responder.split()
    ciphers = [ChaCha20Poly1305(key) for key in initiator.split()]
    for number, (payload, ciphertext) in enumerate(transport):
        sealed = ciphers[number % 2].encrypt(nonce(number // 2), payload, None)
        assert sealed == ciphertext


@pytest.mark.parametrize("vector", ALL)
def test_message_of_a_vector_has_the_length_that_its_pattern_says(vector: Vector) -> None:
    pattern = vector.pair()[0].pattern

    for index in (0, 1):
        payload, message = vector.messages[index]
        assert pattern.message_length(index, len(payload)) == len(message)


def test_first_messages_have_the_lengths_of_the_protocol() -> None:
    assert Pattern.IK_PSK2.message_length(0) == 96
    assert Pattern.NN_PSK0.message_length(0) == 48
    assert [each.message_length(1) for each in Pattern] == [48, 48]


@every_pattern
def test_responder_learns_the_initiators_static_key(pattern: Pattern) -> None:
    initiator, responder = handshake(pattern)

    responder.read_message(initiator.write_message())

    assert responder.remote_static == (INITIATOR.public if pattern.has_static_keys else None)


@every_pattern
@pytest.mark.parametrize("payload", [b"", b"suite"])
def test_message_with_any_bit_flipped_is_refused_and_changes_nothing(
    pattern: Pattern, payload: bytes
) -> None:
    initiator, responder = handshake(pattern)

    for reader, message in _exchange(initiator, responder, payload):
        for bit in range(8 * len(message)):
            changed = bytearray(message)
            changed[bit // 8] ^= 1 << bit % 8
            refused(lambda data=bytes(changed), end=reader: end.read_message(data))  # type: ignore[misc]
        assert reader.read_message(message) == payload


@every_pattern
def test_message_of_any_other_length_is_refused_and_changes_nothing(pattern: Pattern) -> None:
    initiator, responder = handshake(pattern)

    for reader, message in _exchange(initiator, responder, b"suite"):
        for length in range(len(message)):
            refused(lambda data=message[:length], end=reader: end.read_message(data))  # type: ignore[misc]
        refused(lambda data=message + b"\0", end=reader: end.read_message(data))  # type: ignore[misc]
        assert reader.read_message(message) == b"suite"


def _exchange(initiator: HandshakeState, responder: HandshakeState, payload: bytes) -> Any:
    """Yield both messages with who is to read each; the caller lets it do so."""
    yield responder, initiator.write_message(payload)
    yield initiator, responder.write_message(payload)


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        *((pattern, {"prologue": b"another"}) for pattern in Pattern),
        *((pattern, {"psk": bytes(32)}) for pattern in Pattern),
        (Pattern.IK_PSK2, {"static": KeyPair(bytes(range(9, 41)))}),
    ],
)
def test_ends_that_differ_do_not_finish(pattern: Pattern, changed: dict[str, Any]) -> None:
    initiator, responder = handshake(pattern, **changed)

    def run() -> None:
        responder.read_message(initiator.write_message())
        initiator.read_message(responder.write_message())

    assert refused(run) == "keys or messages of both ends differ"
    assert not initiator.finished


@every_pattern
@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
@pytest.mark.parametrize("high_bit", [0, 0x80])
def test_ephemeral_key_of_low_order_is_refused(
    pattern: Pattern, point: bytes, high_bit: int
) -> None:
    initiator, responder = handshake(pattern)
    point = point[:31] + bytes([point[31] | high_bit])  # ignored by X25519: RFC 7748, section 5

    first = initiator.write_message()
    refused(lambda: responder.read_message(point + first[32:]))
    responder.read_message(first)
    second = responder.write_message()
    assert refused(lambda: initiator.read_message(point + second[32:])) == (
        "a public key of low order"
    )


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_static_key_of_low_order_is_refused(point: bytes) -> None:
    initiator = HandshakeState(
        Pattern.IK_PSK2,
        initiator=True,
        prologue=b"",
        psk=PSK,
        ephemeral=EPHEMERALS[0],
        static=INITIATOR,
        remote_static=point,
    )

    assert refused(initiator.write_message) == "a public key of low order"


def test_x25519_has_the_values_of_its_specification() -> None:
    # RFC 7748, section 6.1.
    alice = KeyPair(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = KeyPair(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))

    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.exchange(bob.public).hex() == bob.exchange(alice.public).hex() == shared


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("material", [b"", b"material"])
def test_hkdf_is_rfc_5869_with_an_empty_info(count: int, material: bytes) -> None:
    salt = bytes(range(32))
    derived = HKDF(hashes.SHA256(), 32 * count, salt, b"").derive(material)

    assert b"".join(hkdf(salt, material, count)) == derived


@every_pattern
def test_messages_out_of_turn_are_the_callers_mistake(pattern: Pattern) -> None:
    initiator, responder = handshake(pattern)

    for wrong in (
        lambda: initiator.read_message(b""),
        responder.write_message,
        initiator.split,
        responder.split,
    ):
        with pytest.raises(RuntimeError):
            wrong()
    initiator.write_message()
    with pytest.raises(RuntimeError, match="out of turn"):
        initiator.write_message()


@pytest.mark.parametrize(
    "wrong",
    [
        {"psk": bytes(31)},
        {"psk": bytes(33)},
        {"static": None},
        {"remote_static": None},
        {"initiator": False},
        {"pattern": Pattern.NN_PSK0},
        {"pattern": Pattern.NN_PSK0, "static": None},
    ],
)
def test_keys_that_do_not_fit_the_pattern_are_the_callers_mistake(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "pattern": Pattern.IK_PSK2,
        "initiator": True,
        "prologue": b"",
        "psk": PSK,
        "ephemeral": EPHEMERALS[0],
        "static": INITIATOR,
        "remote_static": RESPONDER.public,
    }
    arguments = {**right, **wrong}

    with pytest.raises(ValueError, match="key"):
        HandshakeState(arguments.pop("pattern"), **arguments)
