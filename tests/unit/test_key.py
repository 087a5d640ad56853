"""vela.supervisor.config.key: what is taken as a pre-shared key, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from exhaustion import no_descriptors

from vela.errors import ConfigError
from vela.supervisor.config.key import open_key, read_key

KEY = b"0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "key"
    made.write_bytes(b" " + KEY + b"\n")
    made.chmod(0o600)
    return made


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        os.close(open_key(path))
    return str(caught.value)


def test_key_is_what_is_in_the_file_without_white_space_around_it(path: Path) -> None:
    fd = open_key(path)
    try:
        assert read_key(fd) == read_key(fd) == KEY
    finally:
        os.close(fd)


def test_key_that_is_not_there_is_to_be_created(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"{tmp_path}/none cannot be read: No such file or directory; create it"
    )


def test_key_that_cannot_be_read_is_told_why_and_nothing_else(path: Path) -> None:
    with no_descriptors():
        assert refusal(path) == f"{path} cannot be read: Too many open files"
    assert refusal(path / "below") == f"{path}/below cannot be read: Not a directory"


def test_key_in_a_fifo_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)

    assert refusal(fifo) == f"{fifo} is not a regular file; name one that is"
    assert refusal(Path("/dev/zero")) == "/dev/zero is not a regular file; name one that is"
    assert refusal(tmp_path) == f"{tmp_path} is not a regular file; name one that is"


def test_key_that_others_can_read_is_refused(path: Path) -> None:
    path.chmod(0o640)

    assert refusal(path) == f"{path} gives others access (mode 0640); run chmod 600 on it"


@pytest.mark.parametrize("size", [0, 15, 1025, 5000])
def test_key_of_another_size_is_refused(path: Path, size: int) -> None:
    path.write_bytes(b"k" * size)

    assert refusal(path).endswith("; 16..1024 are right")


@pytest.mark.parametrize("content", [b" \n" * 8, b"k" * 15 + b"\n", b"\t\v\f\r\n " + b"k" * 15])
def test_white_space_around_a_key_does_not_count(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    assert refusal(path) == (
        f"{path} has a key of {len(content.strip())} bytes; 16..1024 are right"
    )
    path.write_bytes(content.strip() + b"k" * 16 + b" " * 500)
    os.close(open_key(path))
