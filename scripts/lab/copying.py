"""A file copied from one namespace to another over TCP, its content made and hashed on the way."""

from __future__ import annotations

import hashlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from lab.errors import LabError
from lab.namespace import Namespace
from lab.waiting import PATIENCE

BLOCK = 1 << 18
# Prime, so that no block has the content of one that is near.
_STEP = 7919
_POOL = 1 << 20
_NUMBER_BYTES = 8
_SEED = 48621


@dataclass(frozen=True, slots=True)
class Copied:
    """What was sent and what arrived: lengths in bytes, SHA-256."""

    sent: int
    received: int
    sent_digest: str
    received_digest: str
    seconds: float


def content(length: int) -> Iterator[bytes]:
    """Yield a file of length bytes, the same each time, in blocks no two of which are equal."""
    pool = random.Random(_SEED).randbytes(_POOL + BLOCK)
    number = 0
    while length > 0:
        start = number * _STEP % _POOL
        block = number.to_bytes(_NUMBER_BYTES, "big") + pool[start : start + BLOCK - _NUMBER_BYTES]
        yield block[:length]
        length -= BLOCK
        number += 1


def copy(
    source: Namespace,
    target: Namespace,
    address: str,
    length: int,
    *,
    timeout_s: float,
    under_way: Callable[[], None] | None = None,
) -> Copied:
    """Copy a file of length bytes to address, which is the target's.

    under_way is called once, after half was given to TCP, by the thread that
    sends: the other half is sent when it is done.

    Raises LabError, saying how far it came, if it is not done after timeout_s, on a busy machine
    PATIENCE times that: see lab.waiting.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    limit_s = PATIENCE * timeout_s
    deadline = time.monotonic() + limit_s
    begun = time.monotonic()
    received, digest = 0, hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with (
        ThreadPoolExecutor(1) as executor,
        target.socket(family, socket.SOCK_STREAM) as listening,
        source.socket(family, socket.SOCK_STREAM) as sender,
    ):
        listening.bind((address, 0))
        listening.listen(1)
        listening.settimeout(limit_s)
        target_address = listening.getsockname()[:2]
        sending = executor.submit(_send, sender, target_address, length, deadline, under_way)
        try:
            receiver, _ = listening.accept()
            with receiver:
                while count := _within(receiver, deadline).recv_into(buffer):
                    digest.update(buffer[:count])
                    received += count
            sent, sent_digest = sending.result()
        except OSError as err:
            raise LabError(
                f"copying to {address}: {received} of {length} bytes "
                f"after {time.monotonic() - begun:.1f} s: {err}"
            ) from err
    seconds = time.monotonic() - begun
    return Copied(sent, received, sent_digest, digest.hexdigest(), seconds)


def _send(
    sender: socket.socket,
    target: tuple[str, int],
    length: int,
    deadline: float,
    under_way: Callable[[], None] | None,
) -> tuple[int, str]:
    sent, digest = 0, hashlib.sha256()
    _within(sender, deadline).connect(target)
    try:
        for block in content(length):
            if under_way is not None and sent >= length // 2:
                under_way()
                under_way = None
            digest.update(block)
            _within(sender, deadline).sendall(block)
            sent += len(block)
    finally:
        # Else the receiver would wait in vain, and hide what happened here.
        with suppress(OSError):
            sender.shutdown(socket.SHUT_WR)
    return sent, digest.hexdigest()


def _within(used: socket.socket, deadline: float) -> socket.socket:
    """Return the socket, which now waits no longer than to the deadline."""
    used.settimeout(max(0.001, deadline - time.monotonic()))
    return used
