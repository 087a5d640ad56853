"""vela.supervisor.config.files: which files are trusted, and what is said of others."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vela.supervisor.config.files import (
    Access,
    UntrustedError,
    check_directory,
    close_directory,
    open_trusted,
    resolve_links,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_text("content")
    made.chmod(0o600)
    return made


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UntrustedError) as caught:
        call()
    return str(caught.value)


def refused(path: Path, others: Access = Access.READ) -> str:
    return refusal(lambda: os.close(open_trusted(path, others)))


@pytest.mark.parametrize("others", list(Access))
def test_file_of_its_owner_alone_is_opened(path: Path, others: Access) -> None:
    fd = open_trusted(path, others)

    with open(fd) as file:
        assert file.read() == "content"
        assert not os.get_inheritable(file.fileno())


@pytest.mark.parametrize("mode", range(0o600, 0o700))
def test_modes_that_let_others_in_are_refused(path: Path, mode: int) -> None:
    path.chmod(mode)

    if mode & 0o022:
        assert refused(path) == (
            f"{path} can be changed by others (mode {mode:04o}); run chmod go-w on it"
        )
    else:
        os.close(open_trusted(path, Access.READ))
    if mode & 0o077:
        assert refused(path, Access.NONE) == (
            f"{path} gives others access (mode {mode:04o}); run chmod 600 on it"
        )
    else:
        os.close(open_trusted(path, Access.NONE))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: os.mkfifo(path, 0o600),
        lambda path: path.mkdir(mode=0o700),
    ],
    ids=["fifo", "directory"],
)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "other"
    make(path)

    assert refused(path) == f"{path} is not a regular file; name one that is"


def test_symbolic_link_is_refused_wherever_it_leads(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    for target in (path, tmp_path / "nowhere", link):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert refused(link) == f"{link} is a symbolic link; name the file itself"


@as_root
def test_file_of_somebody_else_is_refused(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)

    assert refused(path) == f"{path} belongs to user 65534, not to root; run chown root on it"


@as_root
def test_user_trusts_root_and_itself(path: Path, tmp_path: Path) -> None:
    path.chmod(0o644)
    own, other = tmp_path / "own", tmp_path / "other"
    for each, owner in ((own, NOBODY), (other, 1)):
        each.write_text("content")
        os.chown(each, owner, owner)
        each.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)

    os.seteuid(NOBODY)
    try:
        for each in (path, own):
            os.close(open_trusted(each, Access.READ))
        said = refused(other)
    finally:
        os.seteuid(0)

    assert said == f"{other} belongs to user 1, not to root or user 65534; run chown root on it"


def test_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_trusted(tmp_path / "none", Access.READ)


def test_no_descriptor_is_left_by_a_refusal(path: Path) -> None:
    path.chmod(0o666)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(10):
        refused(path)

    assert len(os.listdir("/proc/self/fd")) == before


# Links.


def test_links_are_followed_to_the_file(path: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "folder" / "second"
    second.parent.mkdir()
    first.symlink_to("folder/second")
    second.symlink_to("../file")

    assert resolve_links(first).samefile(path)
    assert resolve_links(path) == path


@as_root
def test_link_of_somebody_else_is_refused(path: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.symlink_to(theirs)
    theirs.symlink_to(path)
    os.lchown(theirs, NOBODY, NOBODY)

    assert refusal(lambda: resolve_links(ours)).startswith(f"{theirs} belongs to user 65534")


def test_links_in_a_circle_are_an_error_of_the_system(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)

    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ELOOP))):
        resolve_links(link)


# Directories.


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_directory_that_others_cannot_write_is_trusted(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)

    check_directory(folder)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)

    assert refusal(lambda: check_directory(folder)) == (
        f"{folder} can be changed by others (mode {mode:04o}); run chmod go-w on it"
    )


def test_sticky_directory_of_velads_own_is_closed_and_no_other(tmp_path: Path) -> None:
    modes = {}
    for mode in (0o1777, 0o1775, 0o1755, 0o777, 0o700):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        close_directory(folder)
        modes[mode] = stat.S_IMODE(folder.stat().st_mode)
    close_directory(tmp_path / "missing")

    assert modes == {0o1777: 0o755, 0o1775: 0o755, 0o1755: 0o755, 0o777: 0o777, 0o700: 0o700}


@as_root
def test_sticky_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    os.chown(tmp_path, NOBODY, NOBODY)

    close_directory(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


@as_root
def test_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)

    assert "belongs to user 65534" in refusal(lambda: check_directory(tmp_path))


def test_directory_by_a_link_or_none_at_all_is_refused(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)

    assert refusal(lambda: check_directory(link)) == (
        f"{link} is a symbolic link; name the directory itself"
    )
    assert refusal(lambda: check_directory(path)) == f"{path} is no directory"
