"""Keys, in files that only their owner can read: pre-shared ones, and this machine's own.

The supervisor opens and checks the files. It never reads a key: that is the key holder's.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from vela.errors import ConfigError

from .files import Access, UntrustedError, open_trusted

MIN_KEY, MAX_KEY = 16, 1024  # bytes; RFC 2104, section 3: a shorter key is weaker than the tag
# What is encrypted under a weak key can be kept, and the key guessed at leisure.
MIN_ENCRYPTION_KEY = 32
IDENTITY_PATH = Path("/etc/vela/identity.key")  # where the configuration names none
IDENTITY_LENGTH = 44  # 32 bytes in base64

_WHITE_SPACE = frozenset(b" \t\n\r\x0b\x0c")  # what bytes.strip() removes


class MissingKeyError(ConfigError):
    """There is no such file."""


def open_key(path: Path, least: int = MIN_KEY) -> int:
    """Return a descriptor of a file that has a pre-shared key in it, of so many bytes at least.

    Raises ConfigError if the file cannot be read, is somebody else's, gives others access,
    or if the key has the wrong size; MissingKeyError if there is no file.
    """
    return _open(path, least, MAX_KEY, f"{least}..{MAX_KEY} are right", "create it")


def open_identity(path: Path) -> int:
    """Return a descriptor of a file with this machine's private key in it.

    Whether it is base64 shows when it is read. Raises ConfigError as open_key() does.
    """
    size = IDENTITY_LENGTH
    right = f"{size} are right, as velad --generate-key writes them"
    return _open(path, size, size, right, "velad --generate-key makes it")


def _open(path: Path, least: int, most: int, right: str, creation: str) -> int:
    try:
        fd = open_trusted(path, Access.NONE)
        try:
            size = _key_size(fd, os.fstat(fd).st_size)
            if not least <= size <= most:
                raise ConfigError(f"{path} has a key of {size} bytes; {right}")
        except BaseException:
            os.close(fd)
            raise
    except UntrustedError as err:
        raise ConfigError(str(err)) from err
    except OSError as err:
        why = f"{path} cannot be read: {err.strerror}"
        if err.errno == errno.ENOENT:
            raise MissingKeyError(f"{why}; {creation}") from err
        raise ConfigError(why) from err
    return fd


def read_key(fd: int) -> bytes:
    """Return the key in an open file, without white space around it. For the key holder alone."""
    return os.pread(fd, MAX_KEY + 1, 0).strip()


def is_key(key: bytes) -> bool:
    return MIN_KEY <= len(key) <= MAX_KEY


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
