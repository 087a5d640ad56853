"""This machine's identity: a private key (X25519) in a file, in base64 as wg(8) has it.

For velad --generate-key and --show-key. A running velad leaves the file to its key holder.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from vela.errors import ConfigError, DeviceError
from vela.public_key import PUBLIC_KEY_LENGTH
from vela.signaling.noise import KeyPair

from .key import open_identity, read_key


def generate(path: Path) -> bytes:
    """Write a new private key, for its owner's eyes only; return the public one.

    The folder is made if only it is missing. Raises DeviceError: also if anything is there already.
    """
    # As wg genkey does it: RFC 7748, section 5.
    private = bytearray(secrets.token_bytes(PUBLIC_KEY_LENGTH))
    private[0] &= 248
    private[31] = private[31] & 127 | 64
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # The umask can only have taken bits away: the owner may have to read it.
            os.fchmod(fd, 0o600)
            _write_all(fd, base64.b64encode(private) + b"\n")
            os.fsync(fd)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
    except OSError as err:
        if err.errno == errno.EEXIST:
            raise DeviceError(
                f"{path} exists, and is not overwritten; velad --show-key prints its public key"
            ) from err
        raise DeviceError(f"{path} cannot be written: {err.strerror}") from err
    return KeyPair(bytes(private)).public


def public_of(path: Path) -> bytes:
    """Return the public key of the private one in a file. Raises ConfigError."""
    fd = open_identity(path)
    try:
        text = read_key(fd)
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror}") from err
    finally:
        os.close(fd)
    return parse_private_key(text, path).public


def parse_private_key(text: bytes, path: Path) -> KeyPair:
    """Return the key pair. path is for the message. Raises ConfigError."""
    try:
        private = base64.b64decode(text, validate=True)
        return KeyPair(private)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"{path} has no private key in it; velad --generate-key makes one"
        ) from None


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
