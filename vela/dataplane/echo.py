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
from vela.wire import DATA_HEADER, FRAME_COUNTER, PHASE, put_data_header

IDENTIFIER = 8
"""Bytes. Whoever is not on the path cannot guess what is random."""

TO_BE_SENT = 0
"""Byte 0 of what the supervisor hands over to the worker of an encrypted circuit to be sealed and
sent. No circuit has this id, so no datagram of one begins so."""
SEAL_ROOM = PHASE + FRAME_COUNTER
"""Bytes before the request, so that it is sealed in its own place."""

SEND_TRIES = 2  # a connected socket first reports what ICMP said of an earlier datagram

_MESSAGE = struct.Struct(f">BB{IDENTIFIER}sQ")
"""Behind the data header."""
assert DATA_HEADER + _MESSAGE.size == VERIFICATION_HEADER


def echo_request(circuit_id: int, identifier: bytes, now: float, size: int = 0) -> bytes:
    """Return a request.

    now: seconds, for who looks at the packet. size: of the datagram, in bytes
    of UDP payload; no smaller than the message without padding.
    """
    timestamp_us = int(now * 1e6)
    message = bytearray(max(size, VERIFICATION_HEADER))
    put_data_header(message, DATA_HEADER, circuit_id)
    said = VERIFICATION_BYTE, ECHO_REQUEST, identifier, timestamp_us
    _MESSAGE.pack_into(message, DATA_HEADER, *said)
    return bytes(message)


def answered_request(datagram: bytes | bytearray | memoryview) -> bytes | None:
    """Return the identifier of the request that a datagram answers; None: it is no echo reply."""
    if len(datagram) < VERIFICATION_HEADER:
        return None
    first, kind, identifier, _ = _MESSAGE.unpack_from(datagram, DATA_HEADER)
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
