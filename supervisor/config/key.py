"""Pre-shared keys: read from files that nobody else can read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vela.errors import ConfigError

MIN_KEY, MAX_KEY = 16, 1024  # bytes; RFC 2104, section 3: shorter ones are weaker than the tag


def load_key(path: Path) -> bytes:
    """Return the key in a file, without white space around it.

    Raises ConfigError if it cannot be read, if others than its owner can
    read it, or if it is no key.
    """
    try:
        # Not waiting for the writer of a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is no file with a key in it; name one that is")
            data = os.read(fd, MAX_KEY + 1)
        finally:
            os.close(fd)
    except OSError as err:
        advice = "; create it" if err.errno == errno.ENOENT else ""
        raise ConfigError(f"{path} cannot be read: {err.strerror}{advice}") from err
    mode = stat.S_IMODE(mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} is open to others (mode {mode:04o}); chmod 600 it")
    key = data.strip()
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise ConfigError(f"{path} has a key of {len(key)} bytes; {MIN_KEY} to {MAX_KEY} are right")
    return key
