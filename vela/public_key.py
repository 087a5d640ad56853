"""Public keys of machines (X25519): their text, as WireGuard has it, and what shows them. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib

PUBLIC_KEY_LENGTH = 32  # bytes

_RIGHT = "a machine's public key, as velad --show-key prints it there, would be right"


def parse_public_key(text: str) -> bytes:
    """Return the 32 bytes of a key in base64. Raises ValueError, saying what would be right."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"is not base64; {_RIGHT}") from None
    if len(key) != PUBLIC_KEY_LENGTH:
        raise ValueError(f"has {len(key)} bytes, not {PUBLIC_KEY_LENGTH}; {_RIGHT}")
    # The last character has two bits too many: one key has one text.
    if format_public_key(key) != text:
        raise ValueError(f"has bits behind its end; {_RIGHT}")
    if not any(key):
        raise ValueError(f"is zero; {_RIGHT}")
    return key


def format_public_key(key: bytes) -> str:
    return base64.b64encode(key).decode()


def fingerprint(key: bytes) -> str:
    """Return what tells a key from others in a line, as ssh-keygen(1) does."""
    digest = hashlib.sha256(key).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
