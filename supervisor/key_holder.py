"""The process that alone has keys, and what it is asked: files in, tags and verdicts out.

The supervisor forks it before any key is read and holds the other end of a SOCK_SEQPACKET pair;
see keys.py. A request has its number, an operation and its arguments; the reply has the number,
a status, and the result. Neither side trusts the other's messages: the supervisor may have been
taken over by what it reads, and this process by nobody, if requests are parsed with care.

A new operation, as a handshake needs it, is a member of Operation and a method in _HANDLERS.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from vela.errors import VelaError
from vela.linux.memory import lock_memory
from vela.linux.sandbox import User, confine
from vela.linux.seccomp import Filter
from vela.signaling.identity import MACHINE_SECRET_LENGTH, token
from vela.signaling.signer import (
    CONTEXT_LENGTH,
    SessionKeys,
    derive_session_keys,
    sign,
    verify,
)
from vela.wire import MAX_UDP_PAYLOAD

from .config.key import is_key, read_key

NAME = "velad-keys"
"""What ps and top call the process."""

MAX_REQUEST = MAX_UDP_PAYLOAD + 64  # bytes: a PROBE, and what goes before it
MAX_REPLY = 256
# What a supervisor may make this process keep: ids of 255 remotes each, and rekeys.
MAX_KEYS, MAX_SESSIONS = 4096, 1 << 17
MAX_TOKEN_CONTEXT = 1024
MAX_DESCRIPTORS = 1  # in one request

REQUEST = struct.Struct("!QB")  # number, operation
REPLY = struct.Struct("!QB")  # number, status
KEY = struct.Struct("!Q")
SESSION = struct.Struct("!QQ")  # key, session; session 0: none
DERIVATION = struct.Struct("!QQB")  # key, session, whether this end is the initiator
NUMBER = struct.Struct("!Q")


class Operation(IntEnum):
    """What can be asked for: the arguments, and the result."""

    LOAD = 1  # a descriptor of a file: KEY; equal keys are one
    DROP = 2  # KEY: nothing
    SIGN = 3  # SESSION, a message without its tags: the tags
    VERIFY = 4  # SESSION, a message: one byte, 1 or 0
    DERIVE = 5  # DERIVATION, a context: nothing
    FORGET = 6  # numbers of sessions: nothing
    TOKEN = 8  # KEY of the machine's secret, a context: what tells this machine from others
    GENERATE = 9  # a descriptor of an empty file: nothing; there is a new key in it then
    HELLO = 7  # nothing: why this memory may be swapped; empty: it may not


class Status(IntEnum):
    """How a request ended."""

    DONE = 0
    REFUSED = 1  # the request makes no sense; the result is a sentence


class RefusedError(VelaError):
    """A request that makes no sense, or that cannot be done; the text is for the log."""


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    operation: int
    arguments: bytes
    descriptors: tuple[int, ...]


class KeyHolder:
    """Keys by number, and the keys of sessions by the number that the supervisor gave them."""

    def __init__(self, unlocked: str = "") -> None:
        """unlocked: why this memory is not locked."""
        self._unlocked = unlocked
        self._keys: dict[int, bytes] = {}
        self._sessions: dict[int, SessionKeys] = {}
        self._last_key = 0

    def answer(self, request: Request) -> bytes:
        """Return the reply. Raises nothing that a request could cause."""
        try:
            handler = _HANDLERS.get(request.operation)
            if handler is None:
                raise RefusedError(f"operation {request.operation}")
            result, status = handler(self, request), Status.DONE
        except RefusedError as err:
            result, status = str(err).encode("ascii", "replace")[:MAX_REPLY], Status.REFUSED
        return REPLY.pack(request.number, status) + result[: MAX_REPLY - REPLY.size]

    def _load(self, request: Request) -> bytes:
        if request.arguments or len(request.descriptors) != 1:
            raise RefusedError("LOAD takes one descriptor and nothing else")
        try:
            key = read_key(request.descriptors[0])
        except OSError as err:
            raise RefusedError(f"the key cannot be read: {err.strerror}") from err
        if not is_key(key):
            raise RefusedError(f"a key of {len(key)} bytes")
        for number, known in self._keys.items():
            if known == key:
                return KEY.pack(number)
        if len(self._keys) >= MAX_KEYS:
            raise RefusedError(f"{MAX_KEYS} keys")
        self._last_key += 1
        self._keys[self._last_key] = key
        return KEY.pack(self._last_key)

    def _drop(self, request: Request) -> bytes:
        (number,) = _unpack(KEY, request.arguments)
        self._keys.pop(number, None)
        return b""

    def _sign(self, request: Request) -> bytes:
        key, session, body = self._key_and_session(request.arguments)
        return sign(body, key, session)

    def _verify(self, request: Request) -> bytes:
        key, session, datagram = self._key_and_session(request.arguments)
        return bytes([verify(datagram, key, session)])

    def _derive(self, request: Request) -> bytes:
        arguments = request.arguments
        if len(arguments) != DERIVATION.size + CONTEXT_LENGTH:
            raise RefusedError(f"DERIVE with {len(arguments)} bytes")
        number, session, initiator = DERIVATION.unpack_from(arguments)
        if session == 0 or initiator > 1:
            raise RefusedError("DERIVE of no session")
        if len(self._sessions) >= MAX_SESSIONS:
            raise RefusedError(f"{MAX_SESSIONS} sessions")
        context = arguments[DERIVATION.size :]
        keys = derive_session_keys(self._key(number), context, initiator=bool(initiator))
        self._sessions[session] = keys
        return b""

    def _forget(self, request: Request) -> bytes:
        if len(request.arguments) % NUMBER.size:
            raise RefusedError("FORGET with a part of a number")
        for (number,) in NUMBER.iter_unpack(request.arguments):
            self._sessions.pop(number, None)
        return b""

    def _token(self, request: Request) -> bytes:
        if not KEY.size <= len(request.arguments) <= KEY.size + MAX_TOKEN_CONTEXT:
            raise RefusedError(f"TOKEN with {len(request.arguments)} bytes")
        (number,) = KEY.unpack_from(request.arguments)
        return token(self._key(number), request.arguments[KEY.size :])

    def _generate(self, request: Request) -> bytes:
        if request.arguments or len(request.descriptors) != 1:
            raise RefusedError("GENERATE takes one descriptor and nothing else")
        secret = secrets.token_hex(MACHINE_SECRET_LENGTH).encode() + b"\n"
        try:
            if os.write(request.descriptors[0], secret) != len(secret):
                raise RefusedError("the key cannot be written whole")
        except OSError as err:
            raise RefusedError(f"the key cannot be written: {err.strerror}") from err
        return b""

    def _hello(self, request: Request) -> bytes:
        return self._unlocked.encode("ascii", "replace")

    def _key_and_session(self, arguments: bytes) -> tuple[bytes, SessionKeys | None, bytes]:
        if len(arguments) < SESSION.size:
            raise RefusedError(f"a message with {len(arguments)} bytes")
        number, session = SESSION.unpack_from(arguments)
        if session and session not in self._sessions:
            raise RefusedError(f"no session {session}")
        keys = self._sessions[session] if session else None
        return self._key(number), keys, arguments[SESSION.size :]

    def _key(self, number: int) -> bytes:
        try:
            return self._keys[number]
        except KeyError:
            raise RefusedError(f"no key {number}") from None


_HANDLERS: dict[int, Callable[[KeyHolder, Request], bytes]] = {
    Operation.LOAD: KeyHolder._load,
    Operation.DROP: KeyHolder._drop,
    Operation.SIGN: KeyHolder._sign,
    Operation.VERIFY: KeyHolder._verify,
    Operation.DERIVE: KeyHolder._derive,
    Operation.FORGET: KeyHolder._forget,
    Operation.TOKEN: KeyHolder._token,
    Operation.GENERATE: KeyHolder._generate,
    Operation.HELLO: KeyHolder._hello,
}


def _unpack(layout: struct.Struct, arguments: bytes) -> tuple[int, ...]:
    if len(arguments) != layout.size:
        raise RefusedError(f"{len(arguments)} bytes where {layout.size} are right")
    return layout.unpack(arguments)


def run(channel: socket.socket, user: User, supervisor_pid: int, calls: Filter | None) -> None:
    """Be the key holder: a fork of the supervisor, from before it could have read a key.

    calls: vela.linux.sandbox.key_holder_filter, made by the supervisor.
    """
    with suppress(OSError):  # a name is not worth more
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")
    unlocked = lock_memory()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    confine(user, supervisor_pid)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    if calls is not None:
        calls.install()
    serve(channel, KeyHolder(unlocked))


def serve(channel: socket.socket, holder: KeyHolder) -> None:
    """Answer requests until the other side closes the channel."""
    channel.setblocking(True)
    while True:
        data, descriptors, flags, _ = socket.recv_fds(channel, MAX_REQUEST, MAX_DESCRIPTORS)
        try:
            if not data and not descriptors:
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) < REQUEST.size:
                continue  # there is no number to answer
            channel.send(_answer(holder, data, descriptors), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            for fd in descriptors:
                os.close(fd)


def _answer(holder: KeyHolder, data: bytes, descriptors: Sequence[int]) -> bytes:
    number, operation = REQUEST.unpack_from(data)
    arguments = data[REQUEST.size :]
    return holder.answer(Request(number, operation, arguments, tuple(descriptors)))
