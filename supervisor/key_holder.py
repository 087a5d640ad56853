"""The process that alone has keys, and what it is asked: files in, tags and verdicts out.

The supervisor forks it before any key is read and holds the other end of a SOCK_SEQPACKET pair;
see keys.py. A request has its number, an operation and its arguments; the reply has the number,
a status, and the result. Neither side trusts the other's messages: the supervisor may have been
taken over by what it reads, and this process by nobody, if requests are parsed with care.

What it is asked is in key_requests.py; frame_key_holder.py does what encrypted circuits need. A new
operation is a member of Operation and a method in _HANDLERS.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from vela.errors import RemoteProtocolError
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

from .config.key import is_key, read_key
from .key_requests import (
    DERIVATION,
    KEY,
    MAX_DESCRIPTORS,
    MAX_KEYS,
    MAX_REPLY,
    MAX_REQUEST,
    MAX_SESSIONS,
    MAX_TOKEN_CONTEXT,
    NUMBER,
    REPLY,
    REQUEST,
    SESSION,
    Operation,
    RefusedError,
    Request,
    Status,
)

NAME = "velad-keys"
"""What ps and top call the process."""


class KeyHolder:
    """Keys by number, and the keys of sessions by the number that the supervisor gave them."""

    def __init__(self, unlocked: str = "", *, encrypts: bool = False) -> None:
        """unlocked: why this memory is not locked. encrypts: there are encrypted circuits.

        Raises ImportError if what encryption needs is not installed.
        """
        self._unlocked = unlocked
        self._keys: dict[int, bytes] = {}
        self._sessions: dict[int, SessionKeys] = {}
        self._last_key = 0
        self._handlers: dict[int, _Handler] = {
            operation: partial(handler, self) for operation, handler in _HANDLERS.items()
        }
        if encrypts:
            self._handlers |= _frame_key_handlers(self._keys, self._sessions)

    def answer(self, request: Request) -> bytes:
        """Return the reply. Raises nothing that a request could cause."""
        try:
            handler = self._handlers.get(request.operation)
            if handler is None:
                raise RefusedError(f"operation {request.operation}")
            result, status = handler(request), Status.DONE
        except RefusedError as err:
            result, status = str(err).encode("ascii", "replace"), Status.REFUSED
        except RemoteProtocolError as err:
            result, status = str(err).encode("ascii", "replace"), Status.FAILED
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

    def _key_and_session(self, arguments: bytes) -> tuple[bytes | None, SessionKeys | None, bytes]:
        """Return the key, the session's keys, and the message. A session may do without a key."""
        if len(arguments) < SESSION.size:
            raise RefusedError(f"a message with {len(arguments)} bytes")
        number, session = SESSION.unpack_from(arguments)
        if session and session not in self._sessions:
            raise RefusedError(f"no session {session}")
        keys = self._sessions[session] if session else None
        key = self._key(number) if number or not session else None
        return key, keys, arguments[SESSION.size :]

    def _key(self, number: int) -> bytes:
        try:
            return self._keys[number]
        except KeyError:
            raise RefusedError(f"no key {number}") from None


_Handler = Callable[[Request], bytes]

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


def _frame_key_handlers(
    keys: Mapping[int, bytes], sessions: dict[int, SessionKeys]
) -> dict[int, _Handler]:
    """Return what does the operations of encrypted circuits.

    Only who has such circuits pays for loading it: 60 ms and 20 MB. To be called before this
    process loses its privileges, and with them perhaps the right to read the modules' files.
    """
    from .frame_key_holder import FrameKeyHolder

    holder = FrameKeyHolder(keys, sessions)
    return {
        Operation.PAGE: holder.page,
        Operation.END_PAGE: holder.end_page,
        Operation.IDENTITY: holder.identity,
        Operation.OPEN: holder.open,
        Operation.BEGIN: holder.begin,
        Operation.RESPOND: holder.respond,
        Operation.FINISH: holder.finish,
        Operation.INSTALL: holder.install,
        Operation.TRANSMIT: holder.transmit,
        Operation.RETIRE: holder.retire,
        Operation.WIPE: holder.wipe,
        Operation.USAGE: holder.usage,
    }


def _unpack(layout: struct.Struct, arguments: bytes) -> tuple[int, ...]:
    if len(arguments) != layout.size:
        raise RefusedError(f"{len(arguments)} bytes where {layout.size} are right")
    return layout.unpack(arguments)


def run(
    channel: socket.socket,
    user: User,
    supervisor_pid: int,
    calls: Filter | None,
    *,
    encrypts: bool = False,
) -> None:
    """Be the key holder: a fork of the supervisor, from before it could have read a key.

    calls: vela.linux.sandbox.key_holder_filter, made by the supervisor. encrypts: see KeyHolder.
    """
    with suppress(OSError):  # a name is not worth more
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")
    unlocked = lock_memory()
    holder = KeyHolder(unlocked, encrypts=encrypts)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    confine(user, supervisor_pid)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    if calls is not None:
        calls.install()
    serve(channel, holder)


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
