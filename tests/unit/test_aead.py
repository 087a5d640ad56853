"""Both twins of the AEAD: by Project Wycheproof's vectors, and against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_cipher import NativeAead

from vela.dataplane.aead import Aead
from vela.wire import Suite

VECTORS = Path(__file__).parents[1] / "vectors" / "wycheproof"
FILES = {
    Suite.AES_256_GCM: "aes_gcm_test.json",
    Suite.CHACHA20_POLY1305: "chacha20_poly1305_test.json",
}
TWINS = (Aead, NativeAead)


def vectors() -> list[Any]:
    found = []
    for suite, name in FILES.items():
        document = json.loads((VECTORS / name).read_text())
        for group in document["testGroups"]:
            for test in group["tests"]:
                values = {
                    part: bytes.fromhex(test[part]) for part in ("key", "iv", "msg", "ct", "tag")
                }
                valid = test["result"] == "valid"
                found.append(pytest.param(suite, values, valid, id=f"{suite.name}-{test['tcId']}"))
    return found


def test_vectors_are_those_that_were_taken_over() -> None:
    assert len(vectors()) == 47 + 44
    assert sum(not each.values[2] for each in vectors()) == 27


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("suite", "values", "valid"), vectors())
def test_aead_by_wycheproof(
    twin: type[Aead] | type[NativeAead], suite: Suite, values: dict[str, bytes], valid: bool
) -> None:
    aead = twin(suite, values["key"], values["iv"][:8])
    counter = int.from_bytes(values["iv"][8:], "big")
    sealed = values["ct"] + values["tag"]

    assert aead.open_frame(counter, sealed) == (values["msg"] if valid else None)
    assert (aead.seal(counter, values["msg"]) == sealed) is valid


@given(
    suite=st.sampled_from(list(Suite)),
    key=st.binary(min_size=32, max_size=32),
    salt=st.binary(min_size=8, max_size=8),
    frames=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=3000)), max_size=5
    ),
)
def test_twins_seal_and_open_alike(
    suite: Suite, key: bytes, salt: bytes, frames: list[tuple[int, bytes]]
) -> None:
    """One context serves many frames, also after one whose tag was wrong."""
    one, other = Aead(suite, key, salt), NativeAead(suite, key, salt)
    for counter, text in frames:
        sealed = one.seal(counter, text)
        assert other.seal(counter, text) == sealed
        wrong = sealed[:-1] + bytes([sealed[-1] ^ 1])
        for twin in (one, other):
            assert twin.open_frame(counter, wrong) is None
            assert twin.open_frame(counter ^ 1, sealed) is None
            assert twin.open_frame(counter, sealed) == text
