"""Two ends of an encrypted session on a simulated link, with real keys and sealed frames.

What the session does around Encryption is the least that it needs: a CONFIRM that is repeated,
KEEPALIVEs whose counters rise, and a worker that takes a moment to take keys.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from simulated_link import CIRCUIT, LOCAL1, LOCAL2, ROUTER1, ROUTER2, Link

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.signaling.codec import decode, encode, transcript
from vela.signaling.encryption import Encryption, Event, Fields
from vela.signaling.events import Datagram
from vela.signaling.frame_keys import Answer, KeysUnavailable, Role
from vela.signaling.generations import Limits
from vela.signaling.messages import (
    CipherOffer,
    Confirm,
    HandshakePattern,
    Keepalive,
    Message,
    Suites,
)
from vela.signaling.noise import KeyPair
from vela.signaling.session_name import SessionName
from vela.signaling.session_secrets import FrameKey, Keys, SessionSecrets, psk_of
from vela.signaling.signer import Signer
from vela.wire import Suite

PSK = psk_of(bytes(range(32)))
IDENTITIES = KeyPair(bytes(range(32))), KeyPair(bytes(range(1, 33)))
NONCES = 0x0102030405060708, 0x1112131415161718
SESSION = SessionName(*NONCES, CIRCUIT)
BOTH = Suites.AES_256_GCM | Suites.CHACHA20_POLY1305
CONFIRM_REPEAT_S = 0.3

AEADS: dict[Suite, type[AESGCM] | type[ChaCha20Poly1305]] = {
    Suite.AES_256_GCM: AESGCM,
    Suite.CHACHA20_POLY1305: ChaCha20Poly1305,
}


def session_secrets(
    role: Role, pattern: HandshakePattern, dice: random.Random, psk: bytes = PSK
) -> SessionSecrets:
    if pattern is HandshakePattern.NN_PSK0:
        return SessionSecrets(pattern, randomness=dice, psk=psk)
    own, other = IDENTITIES if role is Role.INITIATOR else reversed(IDENTITIES)
    return SessionSecrets(pattern, randomness=dice, psk=psk, static=own, remote_static=other.public)


class Worker:
    """Keys in two places, one for each phase, and the counter of the one that is sent with."""

    def __init__(self) -> None:
        self.places: dict[int, Keys] = {}
        self.sending: Keys | None = None
        self.counter = 0

    def seal(self) -> bytes | None:
        """Return a frame as a datagram; None: there is no key."""
        keys = self.sending
        if keys is None:
            return None
        self.counter += 1
        head = bytes([CIRCUIT, 0x42 | keys.answer.phase]) + self.counter.to_bytes(4)
        return head + _aead(keys, keys.transmit).encrypt(_nonce(keys.transmit, head), b"", None)

    def open(self, datagram: bytes) -> str:
        """Return why a frame is dropped; empty: it is not."""
        keys = self.places.get(datagram[1] & 1)
        if keys is None:
            return "no_key"
        try:
            nonce = _nonce(keys.receive, datagram[:6])
            _aead(keys, keys.receive).decrypt(nonce, datagram[6:], None)
        except InvalidTag:
            return "bad_tag"
        return ""


def _aead(keys: Keys, key: FrameKey) -> AESGCM | ChaCha20Poly1305:
    return AEADS[keys.answer.suite](key.key)


def _nonce(key: FrameKey, head: bytes) -> bytes:
    return key.salt + head[2:6]


@dataclass
class LocalHolder:
    """A KeyHolder in this process. What it hands over, the worker takes when take() is called."""

    secrets: SessionSecrets
    worker: Worker = field(default_factory=Worker)
    lost: bool = False
    """It is gone, and no other has its keys."""
    known: dict[int, Keys] = field(default_factory=dict)
    waiting: list[tuple[int, Keys]] = field(default_factory=list)
    """What the worker is to take: with the number of its installation."""
    log: list[tuple[str, int]] = field(default_factory=list)
    _installations: int = 0
    signer: Signer | None = None

    def begin(self, generation: int, prologue: bytes) -> bytes:
        self._note("begin", generation)
        return self.secrets.begin(generation, prologue)

    def respond(
        self, generation: int, prologue: bytes, message: bytes, answer: Answer
    ) -> tuple[bytes, bytes | None]:
        self._note("respond", generation)
        reply, keys = self.secrets.respond(generation, prologue, message, answer)
        self.known[generation] = keys
        return reply, keys.remote_static

    def finish(self, generation: int, message: bytes) -> Answer:
        self._note("finish", generation)
        keys = self.known[generation] = self.secrets.finish(generation, message)
        return keys.answer

    def install(self, generation: int) -> int:
        self._note("install", generation)
        self._installations += 1
        self.waiting.append((self._installations, self.known[generation]))
        return self._installations

    def transmit(self, generation: int) -> None:
        self._note("transmit", generation)
        # Only keys that the worker has.
        assert self.known[generation] in self.worker.places.values()
        self.worker.sending, self.worker.counter = self.known[generation], 0

    def retire(self, generation: int) -> None:
        self._note("retire", generation)
        keys = self.known.pop(generation)
        assert keys is not self.worker.sending
        for phase, each in list(self.worker.places.items()):
            if each is keys:
                del self.worker.places[phase]

    def wipe(self) -> None:
        self._note("wipe", 0)
        self.secrets.wipe()
        self.known.clear()
        self.waiting.clear()
        self.worker.places.clear()
        self.worker.sending = None

    def take(self) -> int:
        """Let the worker take the oldest keys that it was handed; return their number."""
        number, keys = self.waiting.pop(0)
        self.worker.places[keys.answer.phase] = keys
        return number

    def _note(self, what: str, generation: int) -> None:
        if self.lost:
            raise KeysUnavailable("the key holder was lost")
        self.log.append((what, generation))


class End:
    """One end, as simulated_link.Link drives it."""

    def __init__(
        self,
        role: Role,
        dice: random.Random,
        *,
        pattern: HandshakePattern = HandshakePattern.NN_PSK0,
        suites: Suites = BOTH,
        limits: Limits | None = None,
        keepalive_s: float = 5.0,
        slowness_s: float = 0.05,
        frame_interval_s: float = 0.05,
        phase_in_use: int | None = None,
        psk: bytes = PSK,
    ) -> None:
        """slowness_s: how long the worker takes at most to take keys."""
        initiator = role is Role.INITIATOR
        self.role, self.dice = role, dice
        self.endpoint, self.remote = (ROUTER1, ROUTER2) if initiator else (ROUTER2, ROUTER1)
        self.local = LOCAL1 if initiator else LOCAL2
        self.suites, self.pattern = suites, pattern
        self.keepalive_s, self.slowness_s = keepalive_s, slowness_s
        self.frame_interval_s = frame_interval_s
        self.holder = LocalHolder(session_secrets(role, pattern, dice, psk))
        self.encryption = Encryption(
            role, SESSION, self.holder, suites=suites, phase_in_use=phase_in_use, limits=limits
        )
        self.taken: set[bytes] = set()
        self.events: list[tuple[float, Event]] = []
        self.errors: list[RemoteProtocolError] = []
        self.dropped: dict[str, int] = {"no_key": 0, "bad_tag": 0}
        self.opened = 0
        self.sealed: set[tuple[bytes, int]] = set()
        """Keys and counters that were used."""
        self.stalled = 0
        """Frames that could not be sent, after the first one could."""
        self._sent, self._heard = 0, 0
        self._out: list[bytes] = []
        self._confirm_at: float | None = None
        self._keepalive_at: float | None = None
        self._frame_at: float | None = None
        self._installs: list[float] = []

    @property
    def worker(self) -> Worker:
        return self.holder.worker

    # What the link calls.

    def boot(self, now: float) -> None:
        if self.role is Role.INITIATOR:
            self._send_confirm(now)

    def receive(self, data: bytes, source: Endpoint, now: float) -> None:
        if data[0] == CIRCUIT:
            reason = self.worker.open(data)
            if reason:
                self.dropped[reason] += 1
            else:
                self.opened += 1
            return
        message = decode(data, None)
        if message.counter <= self._heard:
            return
        try:
            self._take(message, data, now)
        except RemoteProtocolError as err:
            self.errors.append(err)
        self._settle(now)

    def handle_timer(self, now: float) -> None:
        encryption = self.encryption
        while self._installs and self._installs[0] <= now:
            self._installs.pop(0)
            if self.holder.waiting:
                encryption.installed(self.holder.take(), now)
        due = encryption.next_timer()
        if due is not None and due <= now:
            encryption.handle_timer(now)
        if self._confirm_at is not None and self._confirm_at <= now:
            self._send_confirm(now)
        if self._keepalive_at is not None and self._keepalive_at <= now:
            self._send_keepalive(now)
        if self._frame_at is not None and self._frame_at <= now:
            self._send_frame(now)
        self._settle(now)

    def next_timer(self) -> float | None:
        times = [self._confirm_at, self._keepalive_at, self._frame_at]
        times += [self.encryption.next_timer(), *self._installs[:1]]
        return min((at for at in times if at is not None), default=None)

    def sent(self) -> list[Datagram]:
        out, self._out = self._out, []
        return [Datagram(data, self.remote) for data in out]

    # What a session does.

    def _take(self, message: Message, data: bytes, now: float) -> None:
        self._heard = message.counter
        match message:
            case Confirm(noise_1=bytes(noise_1), ciphers=CipherOffer(suites=suites)):
                if self._keepalive_at is None:
                    self.encryption.respond(transcript(data), noise_1, suites, now)
                    self._keepalive_at = now + self.keepalive_s
                elif not self.encryption.silent:
                    self._send_keepalive(now)
            case Keepalive():
                self._confirm_at = None
                if self._keepalive_at is None:
                    self._keepalive_at = now + self.keepalive_s
                fields = Fields(message.noise_1, message.noise_2, message.generation)
                self.encryption.receive(fields, now)

    def _settle(self, now: float) -> None:
        """Do what Encryption wants done."""
        while len(self._installs) < len(self.holder.waiting):
            at = now + self.dice.uniform(0, self.slowness_s)
            self._installs = sorted([*self._installs, at])
        while (event := self.encryption.next_event()) is not None:
            self.events.append((now, event))
        if self.encryption.take_keepalive_wanted():
            self._send_keepalive(now)
        if self._frame_at is None and self.encryption.ready:
            self._frame_at = now

    def _header(self) -> tuple[int, int, int, int]:
        self._sent += 1
        own, other = NONCES if self.role is Role.INITIATOR else reversed(NONCES)
        return CIRCUIT, own, other, self._sent

    def _send_confirm(self, now: float) -> None:
        offer = CipherOffer(self.pattern, self.suites)
        header = self._header()
        if self._confirm_at is None:
            draft = Confirm(*header, self.local, size=320, ciphers=offer, noise_1=self._blank())
            self._noise_1 = self.encryption.begin(transcript(encode(draft, None)), now)
        confirm = Confirm(*header, self.local, size=320, ciphers=offer, noise_1=self._noise_1)
        self._out.append(encode(confirm, None))
        self._confirm_at = now + CONFIRM_REPEAT_S

    def _blank(self) -> bytes:
        return bytes(96 if self.pattern is HandshakePattern.IK_PSK2 else 48)

    def _send_keepalive(self, now: float) -> None:
        said = self.encryption.fields()
        message = Keepalive(
            *self._header(),
            self.local,
            self._heard,
            0,
            None,
            True,
            said.noise_1,
            said.noise_2,
            said.generation,
        )
        self._out.append(encode(message, None))
        self._keepalive_at = now + self.keepalive_s

    def _send_frame(self, now: float) -> None:
        self._frame_at = now + self.frame_interval_s
        datagram = self.worker.seal()
        if datagram is None:
            self.stalled += 1
            return
        assert self.worker.sending is not None
        used = (self.worker.sending.transmit.key, self.worker.counter)
        assert used not in self.sealed
        self.sealed.add(used)
        self._out.append(datagram)


class FrameLink(Link):
    """A link that carries frames, too."""

    def throw(self, source: Endpoint, to: Endpoint, data: bytes) -> None:
        if data[0] != CIRCUIT:
            super().throw(source, to, data)
            return
        weather, dice = self.weather, self.randomness
        for _ in range(1 + (dice.random() < weather.duplication)):
            if dice.random() >= weather.loss:
                at = self.now + dice.uniform(weather.shortest_delay, weather.longest_delay)
                heapq.heappush(self._way, (at, next(self._order), source, to, data))


def link_of(initiator: End, responder: End, dice: random.Random) -> FrameLink:
    return FrameLink((initiator, responder), dice)  # type: ignore[arg-type]
