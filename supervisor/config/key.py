"""Pre-shared keys, from files that only their owner can read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vela.errors import ConfigError

MIN_KEY, MAX_KEY = 16, 1024  # bytes; RFC 2104, section 3: a shorter key is weaker than the tag


def load_key(path: Path) -> bytes:
    """Return the key in a file, without white space around it.

    Raises ConfigError if the file cannot be read, if its mode gives others access,
    or if the key has the wrong size.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is not a regular file; name a file with a key in it")
            data = os.read(fd, MAX_KEY + 1)
        finally:
            os.close(fd)
    except OSError as err:
        advice = "; create it" if err.errno == errno.ENOENT else ""
        raise ConfigError(f"{path} cannot be read: {err.strerror}{advice}") from err
    mode = stat.S_IMODE(mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} gives others access (mode {mode:04o}); run chmod 600 on it")
    key = data.strip()
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise ConfigError(f"{path} has a key of {len(key)} bytes; {MIN_KEY}..{MAX_KEY} are right")
    return key
