"""In-circuit echo messages, as the supervisor asks and is answered. docs/protocol.md, section 5."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from vela.dataplane.contract import Attachment
from vela.dataplane.frame import (
    ECHO_REPLY,
    ECHO_REQUEST,
    VERIFICATION_BYTE,
    VERIFICATION_HEADER,
)
from vela.wire import FRAME_COUNTER, PHASE

IDENTIFIER = 8
"""Bytes. Whoever is not on the path cannot guess what is random."""

TO_BE_SENT = 0
"""Byte 0 of what the supervisor hands over to the worker of an encrypted circuit to be sealed and
sent. No circuit has this id, so no datagram of one begins so."""
SEAL_ROOM = PHASE + FRAME_COUNTER
"""Bytes before the request, so that it is sealed in its own place."""

SEND_TRIES = 2  # a connected socket first reports what ICMP said of an earlier datagram

_MESSAGE = struct.Struct(f">BBB{IDENTIFIER}sQ")
assert _MESSAGE.size == VERIFICATION_HEADER


def echo_request(circuit_id: int, identifier: bytes, now: float, size: int = 0) -> bytes:
    """Return a request.

    now: seconds, for who looks at the packet. size: of the datagram, in bytes
    of UDP payload; no smaller than the message without padding.
    """
    timestamp_us = int(now * 1e6)
    message = _MESSAGE.pack(circuit_id, VERIFICATION_BYTE, ECHO_REQUEST, identifier, timestamp_us)
    return message.ljust(size, b"\0")


def answered_request(datagram: bytes | bytearray | memoryview) -> bytes | None:
    """Return the identifier of the request that a datagram answers; None: it is no echo reply."""
    if len(datagram) < VERIFICATION_HEADER:
        return None
    _, first, kind, identifier, _ = _MESSAGE.unpack_from(datagram)
    return identifier if (first, kind) == (VERIFICATION_BYTE, ECHO_REPLY) else None


def send_echo(attachment: Attachment, worker: socket.socket, request: bytes) -> None:
    """Send a request from where frames leave. One that cannot be sent is as one that is lost.

    worker: where an encrypted circuit's worker takes what is handed over.
    """
    if attachment.key_page is not None:
        with suppress(OSError):  # its queue is full
            worker.send(bytes((TO_BE_SENT,)).ljust(SEAL_ROOM, b"\0") + request)
        return
    source = attachment.source_address
    ancillary = () if source is None else (source,)
    for _ in range(SEND_TRIES):
        with suppress(OSError):
            attachment.send_socket.sendmsg(
                (request,), ancillary, socket.MSG_DONTWAIT, attachment.destination
            )
            return
