"""vela.supervisor.status: the key names of `velactl status --json`, as the contract has them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from vela.dataplane.counters import Counters, Slot
from vela.signaling.generations import EncryptionStatus
from vela.signaling.messages import HandshakePattern
from vela.supervisor.status import CipherStatus, CounterStatus
from vela.wire import Suite


def test_counters_of_both_writers_stand_under_their_names() -> None:
    counters = Counters()
    for slot in Slot:
        counters.worker[slot] = 100 + slot
        counters.supervisor[slot] = 1000

    assert asdict(CounterStatus.of(counters)) == {
        "tx_frames": 1100,
        "tx_bytes": 1101,
        "tx_elided": 1102,
        "tx_fragmented": 1103,
        "tx_pieced": 1109,
        "rx_joined": 1133,
        "mss_clamped": 1108 + 1132,
        "tx_too_big_sent": 1111,
        "tx_marked": 1113,
        "tx_errors": 1104,
        "tx_dropped": {"not_ip": 1105, "no_key": 1107, "too_large": 1110, "backlog": 1112},
        "rx_frames": 1116,
        "rx_bytes": 1117,
        "rx_elided": 1118,
        "rx_dropped": {
            "short": 1120,
            "unknown_circuit": 1121,
            "reserved": 1122,
            "oversized": 1123,
            "malformed": 1124,
            "interface_down": 1125,
            "congested": 1126,
            "clear": 1128,
            "no_key": 1129,
            "replayed": 1130,
            "bad_tag": 1131,
            "incomplete": 1134,
            "duplicate": 1135,
            "ecn": 1136,
        },
    }


@pytest.mark.parametrize(
    ("suite", "pattern", "peer_key", "words"),
    [
        (
            *(Suite.AES_256_GCM, HandshakePattern.IK_PSK2, b"hello"),
            ("AES-256-GCM", "IKpsk2", "SHA256:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"),
        ),
        (
            *(Suite.CHACHA20_POLY1305, HandshakePattern.NN_PSK0, None),
            ("ChaCha20-Poly1305", "NNpsk0", None),
        ),
    ],
)
def test_cipher_stands_under_the_words_of_its_specification(
    suite: Suite,
    pattern: HandshakePattern,
    peer_key: bytes | None,
    words: tuple[str, str, str | None],
) -> None:
    status = CipherStatus.of(EncryptionStatus(suite, 3, 41.23456, 2**28), pattern, peer_key)

    assert asdict(status) == {
        "suite": words[0],
        "pattern": words[1],
        "peer_fingerprint": words[2],
        "generation": 3,
        "age_seconds": 41.235,
        "frames_left": 268435456,
    }
