"""Authenticated encryption of frames, by the package cryptography. C twin: native/aead.c.

docs/protocol.md, 3.6. A nonce is the key's salt and the frame's counter. There is no associated
data: circuit id, phase and counter choose key and nonce, so a changed one fails the tag.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from vela.wire import FRAME_COUNTER, TAG, Suite

_CIPHERS: dict[Suite, type[AESGCM] | type[ChaCha20Poly1305]] = {
    Suite.AES_256_GCM: AESGCM,
    Suite.CHACHA20_POLY1305: ChaCha20Poly1305,
}


class Aead:
    """A key."""

    def __init__(self, suite: Suite, key: bytes, salt: bytes) -> None:
        self._cipher = _CIPHERS[suite](key)
        self._salt = salt

    def seal(self, counter: int, text: bytes | memoryview) -> bytes:
        """Return text encrypted, and its tag. Each counter at most once under a key."""
        return self._cipher.encrypt(self._nonce(counter), text, None)

    def open_frame(self, counter: int, sealed: bytes | memoryview) -> bytes | None:
        """Return the text; None where the tag is wrong."""
        if len(sealed) < TAG:
            return None
        try:
            return self._cipher.decrypt(self._nonce(counter), sealed, None)
        except InvalidTag:
            return None

    def _nonce(self, counter: int) -> bytes:
        return self._salt + counter.to_bytes(FRAME_COUNTER, "big")
