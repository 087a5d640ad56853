"""vela.supervisor.config.identity: private keys in files."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from vela.errors import ConfigError, DeviceError
from vela.supervisor.config.identity import generate, public_of
from vela.supervisor.config.key import open_identity

# RFC 7748, section 6.1: Alice's.
PRIVATE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vela" / "identity.key"


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_public_key_is_that_of_the_private_one(path: Path, end: bytes) -> None:
    write(path, base64.b64encode(PRIVATE) + end)  # as wg genkey writes it

    assert public_of(path) == PUBLIC
    os.close(open_identity(path))


def test_generated_key_is_for_its_owner_alone_and_can_be_read(path: Path) -> None:
    before = os.umask(0)
    try:
        public = generate(path)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert public_of(path) == public
    text = path.read_bytes()
    assert len(text) == 45
    assert text.endswith(b"=\n")
    private = base64.b64decode(text)
    assert private[0] & 7 == 0
    assert private[31] & 0xC0 == 0x40


def test_generated_keys_differ(tmp_path: Path) -> None:
    assert len({generate(tmp_path / str(number)) for number in range(5)}) == 5


def test_generated_key_can_be_read_whatever_the_umask_is(path: Path) -> None:
    before = os.umask(0o777)
    try:
        path.parent.mkdir()
        path.parent.chmod(0o700)
        generate(path)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "directory", "fifo"])
def test_what_is_there_is_never_overwritten(path: Path, tmp_path: Path, kind: str) -> None:
    other = write(tmp_path / "other", b"precious")
    path.parent.mkdir()
    match kind:
        case "file":
            write(path, b"precious")
        case "link":
            path.symlink_to(other)
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "directory":
            path.mkdir()
        case _:
            os.mkfifo(path)

    with pytest.raises(DeviceError) as caught:
        generate(path)

    assert str(caught.value) == (
        f"{path} exists, and is not overwritten; velad --show-key prints its public key"
    )
    assert other.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    if kind == "file":
        assert path.read_bytes() == b"precious"


def test_key_that_cannot_be_written_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space")))

    with pytest.raises(DeviceError, match="cannot be written: No space"):
        generate(path)

    assert not path.exists()


def test_folder_is_made_but_not_those_above_it(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be written: No such file or directory"):
        generate(tmp_path / "a" / "b" / "key")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has a key of 0 bytes; 44 are right"),
        (b"short", "has a key of 5 bytes; 44 are right"),
        (b"k" * 45, "has a key of 45 bytes; 44 are right"),
        (b"!" * 44, "has no private key in it; velad --generate-key makes one"),
        (b"A" * 44, "has no private key in it; velad --generate-key makes one"),
    ],
)
def test_file_without_a_private_key_is_refused(path: Path, content: bytes, said: str) -> None:
    write(path, content)

    with pytest.raises(ConfigError, match=said):
        public_of(path)


def test_file_that_is_not_there_can_be_made(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; velad --generate-key makes"):
        public_of(path)


def test_private_key_that_others_can_read_is_refused(path: Path) -> None:
    write(path, base64.b64encode(PRIVATE), 0o640)

    with pytest.raises(ConfigError, match=r"gives others access \(mode 0640\)"):
        open_identity(path)
