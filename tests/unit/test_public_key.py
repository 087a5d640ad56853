"""vela.public_key: the text of public keys."""

from __future__ import annotations

import pytest

from vela.public_key import fingerprint, format_public_key, parse_public_key

# RFC 7748, section 6.1: Alice's.
KEY = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
TEXT = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="


def test_public_key_is_base64_as_wireguard_has_it() -> None:
    assert parse_public_key(TEXT) == KEY
    assert format_public_key(KEY) == TEXT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 bytes, not 32"),
        ("key", "is not base64"),
        (TEXT[:-1], "is not base64"),
        (TEXT[:-2], "is not base64"),
        (TEXT[4:], "has 29 bytes, not 32"),
        (TEXT[:-4] + "AAAA", "has 33 bytes, not 32"),
        (TEXT + "\n", "is not base64"),
        (" " + TEXT, "is not base64"),
        (TEXT.replace("/", "_"), "is not base64"),
        (TEXT[:-2] + "p=", "has bits behind its end"),
        (TEXT[:10] + "é" + TEXT[11:], "is not base64"),
        ("A" * 43 + "=", "is zero"),
        (KEY.hex(), "has 48 bytes, not 32"),
    ],
)
def test_public_key_of_another_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_public_key(text)

    assert str(caught.value).endswith("as velad --show-key prints it there, would be right")


def test_fingerprint_is_that_of_ssh_keygen() -> None:
    # printf 'hello' | openssl dgst -sha256 -binary | base64, without padding
    assert fingerprint(b"hello") == "SHA256:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"
