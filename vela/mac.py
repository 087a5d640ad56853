"""MAC addresses as six bytes: text form and the derived default. Pure."""

from __future__ import annotations

import hashlib
import re

MAC_LENGTH = 6
_TEXT = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
# Locally administered and unicast. Outside 0x40..0x4f and 0x60..0x6f, so that frames
# toward it never need the escape (docs/protocol.md, section 3).
_DERIVED_FIRST_BYTE = 0x02


def parse_mac(text: str) -> bytes:
    """Return the six bytes of "02:00:5e:10:00:01".

    Raises ValueError, saying what would be right.
    """
    if not _TEXT.fullmatch(text):
        raise ValueError(f'{text!r} is not a MAC address such as "02:00:5e:10:00:01"')
    return check_mac(bytes.fromhex(text.replace(":", "")))


def check_mac(mac: bytes) -> bytes:
    """Return the six bytes if an interface can have them as its address. Raises ValueError."""
    if mac[0] & 1:
        raise ValueError(
            f"{format_mac(mac)} is a group address; an interface needs an individual one"
        )
    if mac == bytes(MAC_LENGTH):
        raise ValueError(f"{format_mac(mac)} is not an address")
    return mac


def format_mac(mac: bytes) -> str:
    """Return six bytes as "02:00:5e:10:00:01"."""
    return mac.hex(":")


def derive_mac(*identity: str) -> bytes:
    """Return a locally administered address, derived from identity alone."""
    digest = hashlib.sha256("\0".join(identity).encode()).digest()
    return bytes([_DERIVED_FIRST_BYTE]) + digest[: MAC_LENGTH - 1]
