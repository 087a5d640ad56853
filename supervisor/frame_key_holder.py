"""Encrypted circuits in the key holder: handshakes, and the keys of frames in key pages.

What is asked is in key_requests.py. vela.signaling.session_secrets does the handshakes,
vela.dataplane.key_page writes the keys where the circuit's worker finds them.
"""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from vela.dataplane.key_page import PHASES, KeyPage, KeyPair
from vela.public_key import PUBLIC_KEY_LENGTH
from vela.signaling import noise
from vela.signaling.frame_keys import Answer
from vela.signaling.messages import HandshakePattern
from vela.signaling.session_secrets import NO_PSK, Keys, SessionSecrets, psk_of
from vela.signaling.signer import SessionKeys
from vela.wire import Suite

from .config.key import read_key
from .key_requests import (
    ANSWER,
    GENERATION,
    KEY,
    MAX_KEYS,
    MAX_SESSIONS,
    OPENING,
    USAGE,
    RefusedError,
    Request,
)

_NO_PUBLIC_KEY = bytes(PUBLIC_KEY_LENGTH)


@dataclass(slots=True)
class _Session:
    """One session of an encrypted circuit."""

    page: KeyPage
    secrets: SessionSecrets
    keys: dict[int, Keys] = field(default_factory=dict)
    """By generation: at most the last three."""
    serials: dict[int, int] = field(default_factory=dict)
    """By generation, under which number its keys are in the page."""


class FrameKeyHolder:
    """Key pages, identities and sessions by the numbers that requests have."""

    def __init__(self, psks: Mapping[int, bytes], controls: dict[int, SessionKeys]) -> None:
        """psks: pre-shared keys by number. controls: gets what tags a session's messages."""
        self._psks, self._controls = psks, controls
        self._pages: dict[int, KeyPage] = {}
        self._identities: dict[int, noise.KeyPair] = {}
        self._sessions: dict[int, _Session] = {}
        self._randomness = random.SystemRandom()

    def page(self, request: Request) -> bytes:
        number = self._number(request.arguments)
        if len(request.descriptors) != 1 or number in self._pages:
            raise RefusedError("PAGE takes one descriptor, and a number that is free")
        if len(self._pages) >= MAX_KEYS:
            raise RefusedError(f"{MAX_KEYS} pages")
        try:
            self._pages[number] = KeyPage(request.descriptors[0])
        except (OSError, ValueError) as err:
            raise RefusedError(f"the key page cannot be mapped: {err}") from err
        return b""

    def end_page(self, request: Request) -> bytes:
        page = self._pages.pop(self._number(request.arguments), None)
        if page is not None:
            page.wipe_all()
            for number in [n for n, each in self._sessions.items() if each.page is page]:
                self._forget(number)
            page.close()
        return b""

    def identity(self, request: Request) -> bytes:
        if request.arguments or len(request.descriptors) != 1:
            raise RefusedError("IDENTITY takes one descriptor and nothing else")
        try:
            private = base64.b64decode(read_key(request.descriptors[0]), validate=True)
            identity = noise.KeyPair(private)
        except OSError as err:
            raise RefusedError(f"the identity cannot be read: {err.strerror}") from err
        except (binascii.Error, ValueError):
            raise RefusedError("the identity is no private key in base64") from None
        for number, known in self._identities.items():
            if known.public == identity.public:
                return KEY.pack(number) + identity.public
        if len(self._identities) >= MAX_KEYS:
            raise RefusedError(f"{MAX_KEYS} identities")
        number = len(self._identities) + 1
        self._identities[number] = identity
        return KEY.pack(number) + identity.public

    def open(self, request: Request) -> bytes:
        arguments = request.arguments
        if len(arguments) != OPENING.size + PUBLIC_KEY_LENGTH:
            raise RefusedError(f"OPEN with {len(arguments)} bytes")
        number, page, psk, identity, pattern, _ = OPENING.unpack_from(arguments)
        public = arguments[OPENING.size :]
        if number == 0 or number in self._sessions or page not in self._pages:
            raise RefusedError("OPEN of a session that there is, or on no page")
        if len(self._sessions) >= MAX_SESSIONS:
            raise RefusedError(f"{MAX_SESSIONS} sessions")
        if pattern == HandshakePattern.NN_PSK0 and not psk:
            raise RefusedError("OPEN with nothing that the ends could prove")
        if bool(identity) is not (pattern == HandshakePattern.IK_PSK2):
            raise RefusedError("OPEN with an identity and without public keys, or the reverse")
        try:
            secrets = SessionSecrets(
                HandshakePattern(pattern),
                randomness=self._randomness,
                psk=psk_of(self._psks[psk]) if psk else NO_PSK,
                static=self._identities[identity] if identity else None,
                remote_static=None if public == _NO_PUBLIC_KEY else public,
                # The supervisor says whom it serves; it judges the key that comes out.
                is_allowed=lambda _: True,
            )
        except (KeyError, ValueError) as err:
            raise RefusedError(f"OPEN with keys that do not fit: {err}") from None
        self._sessions[number] = _Session(self._pages[page], secrets)
        return b""

    def begin(self, request: Request) -> bytes:
        session, generation, prologue = self._session(request)
        try:
            return session.secrets.begin(generation, prologue)
        except ValueError as err:
            raise RefusedError(f"BEGIN: {err}") from err

    def respond(self, request: Request) -> bytes:
        """Raises RemoteProtocolError if message 1 is wrong."""
        session, generation, rest = self._session(request)
        if len(rest) < ANSWER.size:
            raise RefusedError("RESPOND without an answer")
        suite, phase, length = ANSWER.unpack_from(rest)
        prologue, message = rest[ANSWER.size :][:length], rest[ANSWER.size :][length:]
        try:
            answer = Answer(Suite(suite), phase)
            reply, keys = session.secrets.respond(generation, prologue, message, answer)
        except ValueError as err:
            raise RefusedError(f"RESPOND: {err}") from err
        self._take(request, session, keys)
        return reply + (keys.remote_static or b"")

    def finish(self, request: Request) -> bytes:
        """Raises RemoteProtocolError if message 2 is wrong."""
        session, generation, message = self._session(request)
        keys = session.secrets.finish(generation, message)
        self._take(request, session, keys)
        return keys.answer.pack()

    def install(self, request: Request) -> bytes:
        session, generation, _ = self._session(request)
        keys = self._keys_of(session, generation)
        pair = KeyPair(
            keys.answer.suite,
            keys.transmit.key,
            keys.transmit.salt,
            keys.receive.key,
            keys.receive.salt,
        )
        serial = session.page.install(keys.answer.phase, pair, generation)
        session.serials[generation] = serial
        return KEY.pack(serial)

    def transmit(self, request: Request) -> bytes:
        session, generation, _ = self._session(request)
        phase = self._keys_of(session, generation).answer.phase
        if session.page.serial(phase) != session.serials.get(generation):
            raise RefusedError("TRANSMIT with keys that are not in the page")
        session.page.send_with(phase)
        return b""

    def retire(self, request: Request) -> bytes:
        session, generation, _ = self._session(request)
        self._wipe(session, generation)
        return b""

    def wipe(self, request: Request) -> bytes:
        number = self._number(request.arguments)
        session = self._sessions.get(number)
        if session is not None:
            for generation in tuple(session.keys):
                self._wipe(session, generation)
            self._forget(number)
        return b""

    def usage(self, request: Request) -> bytes:
        page = self._pages.get(self._number(request.arguments))
        if page is None:
            raise RefusedError("USAGE of no page")
        said = b""
        for phase in range(PHASES):
            usage = page.usage(phase)
            if usage is not None:
                said += USAGE.pack(
                    phase,
                    page.serial(phase),
                    usage.generation,
                    usage.frames_sent,
                    usage.octets_sent,
                    round(usage.expires_in_s * 1e6),
                    usage.receives,
                )
        return said

    def _take(self, request: Request, session: _Session, keys: Keys) -> None:
        """Keep a generation's keys; the first one's tag the messages of the session."""
        session.keys[keys.generation] = keys
        for generation in [each for each in session.keys if each < keys.generation - 2]:
            del session.keys[generation]
        if keys.generation == 1:
            number, _ = GENERATION.unpack_from(request.arguments)
            self._controls[number] = SessionKeys(keys.transmit_control, keys.receive_control)

    def _wipe(self, session: _Session, generation: int) -> None:
        keys, serial = session.keys.pop(generation, None), session.serials.pop(generation, None)
        # Another generation, or another session, may have the place by now.
        if keys is not None and session.page.serial(keys.answer.phase) == serial:
            session.page.wipe(keys.answer.phase)

    def _forget(self, number: int) -> None:
        self._sessions.pop(number).secrets.wipe()
        self._controls.pop(number, None)

    def _session(self, request: Request) -> tuple[_Session, int, bytes]:
        """Return the session, the generation, and what follows them."""
        if len(request.arguments) < GENERATION.size:
            raise RefusedError(f"{len(request.arguments)} bytes for a session")
        number, generation = GENERATION.unpack_from(request.arguments)
        session = self._sessions.get(number)
        if session is None:
            raise RefusedError(f"no session {number}")
        return session, generation, request.arguments[GENERATION.size :]

    def _keys_of(self, session: _Session, generation: int) -> Keys:
        keys = session.keys.get(generation)
        if keys is None:
            raise RefusedError(f"no generation {generation}")
        return keys

    def _number(self, arguments: bytes) -> int:
        if len(arguments) != KEY.size:
            raise RefusedError(f"{len(arguments)} bytes where {KEY.size} are right")
        number: int = KEY.unpack(arguments)[0]
        return number
