"""Pre-shared keys, in files that only their owner can read.

The supervisor opens and checks the files. It never reads a key: that is the key holder's.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

from vela.errors import ConfigError

MIN_KEY, MAX_KEY = 16, 1024  # bytes; RFC 2104, section 3: a shorter key is weaker than the tag

_WHITE_SPACE = frozenset(b" \t\n\r\x0b\x0c")  # what bytes.strip() removes


def open_key(path: Path) -> int:
    """Return a descriptor of a file that has a key in it.

    Raises ConfigError if the file cannot be read, if its mode gives others access,
    or if the key has the wrong size.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check(fd, path)
        except BaseException:
            os.close(fd)
            raise
    except OSError as err:
        advice = "; create it" if err.errno == errno.ENOENT else ""
        raise ConfigError(f"{path} cannot be read: {err.strerror}{advice}") from err
    return fd


def read_key(fd: int) -> bytes:
    """Return the key in an open file, without white space around it. For the key holder alone."""
    return os.pread(fd, MAX_KEY + 1, 0).strip()


def is_key(key: bytes) -> bool:
    return MIN_KEY <= len(key) <= MAX_KEY


def _check(fd: int, path: Path) -> None:
    """Raises ConfigError, or OSError."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a regular file; name a file with a key in it")
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} gives others access (mode {mode:04o}); run chmod 600 on it")
    size = _key_size(fd, status.st_size)
    if not MIN_KEY <= size <= MAX_KEY:
        raise ConfigError(f"{path} has a key of {size} bytes; {MIN_KEY}..{MAX_KEY} are right")


def _key_size(fd: int, size: int) -> int:
    """Return the size of what read_key() would return. No byte of it stays in this process."""
    if size == 0:
        return 0
    with mmap.mmap(fd, min(size, MAX_KEY + 1), access=mmap.ACCESS_READ) as key:
        first, last = 0, len(key)
        while first < last and key[first] in _WHITE_SPACE:
            first += 1
        while last > first and key[last - 1] in _WHITE_SPACE:
            last -= 1
        return last - first
