"""Keys of an encrypted circuit's frames, and the remote's side: by the package cryptography."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from vela.dataplane.key_page import KeyPair
from vela.wire import Suite

CIRCUIT = 7
CIPHERS: dict[Suite, type[AESGCM] | type[ChaCha20Poly1305]] = {
    Suite.AES_256_GCM: AESGCM,
    Suite.CHACHA20_POLY1305: ChaCha20Poly1305,
}


class Keys:
    """One generation's, and the remote's side of them."""

    def __init__(
        self,
        phase: int = 0,
        suite: Suite = Suite.AES_256_GCM,
        number: int = 1,
        circuit_id: int = CIRCUIT,
    ) -> None:
        self.phase = phase
        self.circuit_id = circuit_id
        self.pair = KeyPair(
            suite,
            bytes(range(number, number + 32)),
            bytes(range(number, number + 8)),
            bytes(range(number + 100, number + 132)),
            bytes(range(number + 100, number + 108)),
        )
        cipher = CIPHERS[suite]
        self._opens, self._seals = cipher(self.pair.tx_key), cipher(self.pair.rx_key)

    def open(self, datagram: bytes) -> tuple[int, bytes]:
        """Return the counter and the text. docs/protocol.md, 3.6."""
        assert datagram[:2] == bytes([self.circuit_id, 0x42 | self.phase])
        counter = int.from_bytes(datagram[2:6], "big")
        nonce = self.pair.tx_salt + datagram[2:6]
        return counter, self._opens.decrypt(nonce, datagram[6:], None)

    def seal(self, counter: int, text: bytes) -> bytes:
        number = counter.to_bytes(4, "big")
        sealed = self._seals.encrypt(self.pair.rx_salt + number, text, None)
        return bytes([self.circuit_id, 0x42 | self.phase]) + number + sealed
