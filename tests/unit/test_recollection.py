"""What the kernel's messages say: read once, and forgotten when dumps no longer have them."""

from __future__ import annotations

import pytest

from vela.linux.recollection import MOST, Recollection


class Reader:
    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.recollection = Recollection(self.read)

    def read(self, body: bytes) -> str | None:
        self.calls.append(body)
        return None if body == b"nothing" else body.decode()

    def dump(self, *bodies: bytes) -> list[str | None]:
        self.calls.clear()
        said = [self.recollection.read(each) for each in bodies]
        self.recollection.end_dump()
        return said


def test_message_that_each_dump_has_is_read_once() -> None:
    reader = Reader()
    assert reader.dump(b"a", b"nothing", b"a") == ["a", None, "a"]
    assert reader.calls == [b"a", b"nothing"]

    for _ in range(3):
        assert reader.dump(b"nothing", b"a") == [None, "a"]
        assert reader.calls == []


def test_message_that_no_dump_has_any_more_is_forgotten() -> None:
    reader = Reader()
    for number in range(1000):
        reader.dump(b"stays", b"%d" % number)

    assert len(reader.recollection) <= 4
    reader.dump(b"stays", b"0")
    assert reader.calls == [b"0"]


def test_messages_that_are_read_without_a_dump_are_bounded() -> None:
    reader = Reader()
    for number in range(3 * MOST):
        reader.recollection.read(b"%d" % number)

    assert len(reader.recollection) <= 2 * MOST


def test_message_that_cannot_be_read_is_not_kept() -> None:
    reader = Reader()
    with pytest.raises(UnicodeDecodeError):
        reader.recollection.read(b"\xff")

    assert len(reader.recollection) == 0
