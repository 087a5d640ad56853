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


def test_standing_is_read_as_it_was_written() -> None:
    assert Standing.parse(STANDING.format()) == STANDING


def test_standing_of_a_velad_that_does_not_know_who_called_is_read() -> None:
    written = STANDING.format()
    del written["maker"]

    assert Standing.parse(written) == replace(STANDING, maker=None)


@pytest.mark.parametrize("key", [each for each in STANDING.format() if each != "maker"])
def test_standing_without_anything_else_is_refused(key: str) -> None:
    written = STANDING.format()
    del written[key]

    with pytest.raises(KeyError, match=key):
        Standing.parse(written)
