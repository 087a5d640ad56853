"""What velads say to each other of a circuit, when one takes over from another version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vela.supervisor.circuit.standing import Standing

STANDING = Standing(
    remote="192.0.2.9",
    source="192.0.2.1",
    member="member",
    index=1,
    session=None,
    key=None,
    listening=False,
    probed_mtu=None,
    used=0,
    held=False,
    failures=[],
    hooked=False,
    maker="00" * 16,
)

LATER = ("maker", "further")
"""What an older velad does not say."""


def test_standing_is_read_as_it_was_written() -> None:
    assert Standing.parse(STANDING.format()) == STANDING


def test_standing_of_an_older_velad_is_read() -> None:
    written = {key: value for key, value in STANDING.format().items() if key not in LATER}

    assert Standing.parse(written) == replace(STANDING, maker=None)


@pytest.mark.parametrize("key", [each for each in STANDING.format() if each not in LATER])
def test_standing_without_anything_else_is_refused(key: str) -> None:
    written = STANDING.format()
    del written[key]

    with pytest.raises(KeyError, match=key):
        Standing.parse(written)
