"""The keys of encrypted circuits, as the supervisor uses them: all are in the key holder.

A circuit has one key page for as long as it lives. The supervisor makes it, hands its descriptor to
the key holder, which writes keys, and to the worker, which uses them, and maps it itself never.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vela.dataplane.key_page import SIZE, page_size, room
from vela.errors import ConfigError, DeviceError, RemoteProtocolError, VelaError
from vela.linux import secret_memory
from vela.public_key import PUBLIC_KEY_LENGTH, fingerprint
from vela.signaling.frame_keys import Answer, KeysUnavailable, Role
from vela.signaling.messages import HANDSHAKE, CipherOffer, HandshakePattern, Suites
from vela.signaling.signer import SESSION_TAG_LENGTH, TAG_LENGTH, Key, Signer

from .config.key import open_identity
from .key_requests import ANSWER, GENERATION, KEY, NUMBER, OPENING, SESSION, USAGE, Operation
from .keys import HeldKey, HolderLostError, Keys

_page_numbers = itertools.count(1)


class Usage(NamedTuple):
    """What became of the keys of one phase of a key page."""

    phase: int
    serial: int
    """Under which number they are in the page."""
    generation: int
    frames: int
    """That this end has sent with them."""
    octets: int
    expires_in_s: float
    receives: bool
    """The worker can receive with them."""


class Identity:
    """This machine's private key, in the holder."""

    def __init__(self, keys: Keys, path: Path) -> None:
        """Load it. Raises ConfigError."""
        self._keys, self._path = keys, path
        self._generation = -1
        self._number = 0  # there is nothing to close yet
        keys.require_encryption()
        self._fd = open_identity(path)
        self.public = b""
        try:
            self._load()
        except VelaError as err:
            os.close(self._fd)
            raise ConfigError(f"{path}: the key holder does not take it: {err}") from err

    def __del__(self) -> None:
        if self._number:
            os.close(self._fd)

    @property
    def number(self) -> int:
        """Its number in the holder that there is now. Raises VelaError."""
        if self._generation != self._keys.generation:
            self._load()
        return self._number

    def _load(self) -> None:
        said = self._keys.load_file(self._fd, Operation.IDENTITY)
        if len(said) != KEY.size + PUBLIC_KEY_LENGTH:
            raise HolderLostError(f"it answered with {len(said)} bytes for an identity")
        (self._number,) = KEY.unpack_from(said)
        self.public = said[KEY.size :]
        self._generation = self._keys.generation


class CircuitKeys:
    """The keys of one encrypted circuit: an encryption.FrameKeys."""

    def __init__(
        self,
        keys: Keys,
        suites: Suites,
        *,
        psk: HeldKey | None,
        identity: Identity | None,
        remote_static: bytes | None = None,
        allowed: tuple[bytes, ...] = (),
        page_fd: int | None = None,
    ) -> None:
        """Make the key page. Raises DeviceError.

        page_fd: that of another velad, whose worker has keys in it until there are others.

        With an identity both ends prove to have their private keys: the remote that of
        remote_static, or at a responder of one of those that are allowed. Without one, psk is
        all that both ends prove.
        """
        keys.require_encryption()
        pattern = HandshakePattern.NN_PSK0 if identity is None else HandshakePattern.IK_PSK2
        self.offer = CipherOffer(pattern, suites)
        self.psk = psk
        self.remote_static = remote_static
        self._keys, self._identity, self._allowed = keys, identity, allowed
        self._on_installing: Callable[[], None] | None = None
        self._on_lost: Callable[[], None] | None = None
        self._number = next(_page_numbers)
        # Of the holder that has the page; -1: of none.
        self._generation = -1
        try:
            self.sequences = room(SIZE if page_fd is None else page_size(page_fd))
            """Of counters, that there is room for."""
            self.page_fd = secret_memory.create(SIZE) if page_fd is None else page_fd
        except OSError as err:
            raise DeviceError(f"no memory for keys: {err.strerror}") from err
        except ValueError as err:
            assert page_fd is not None
            os.close(page_fd)
            raise DeviceError(f"no memory for keys: {err}") from err
        keys.follow(self)

    def set_psk(self, psk: Key | None) -> None:
        """Use another pre-shared key from the next session on."""
        if psk is None or isinstance(psk, HeldKey):
            self.psk = psk

    def set_handlers(self, installing: Callable[[], None], lost: Callable[[], None]) -> None:
        """Let these be called when keys wait for the worker, and when another holder has none."""
        self._on_installing, self._on_lost = installing, lost

    def close(self) -> None:
        """Wipe the keys and give the page up."""
        self._on_installing = self._on_lost = None
        if self.page_fd < 0:
            return
        with suppress(VelaError):  # a holder that is gone took its map along
            self.ask_holder(self._generation, Operation.END_PAGE, KEY.pack(self._number))
        os.close(self.page_fd)
        self.page_fd = -1

    def open(self, role: Role) -> SessionFrameKeys:
        """Return the keys of another session. Raises KeysUnavailable."""
        try:
            return self._keys.attempt(lambda: self._open(role))
        except VelaError as err:
            raise KeysUnavailable(str(err)) from err

    def usages(self) -> tuple[Usage, ...]:
        """Return what became of the keys in the page; nothing where the holder cannot be asked."""
        try:
            said = self.ask_holder(self._generation, Operation.USAGE, KEY.pack(self._number))
            found = USAGE.iter_unpack(said)
            return tuple(
                Usage(phase, serial, generation, frames, octets, left_us / 1e6, receives)
                for phase, serial, generation, frames, octets, left_us, receives in found
            )
        except (VelaError, ValueError):
            return ()

    def on_holder_replaced(self) -> None:
        if self._generation != self._keys.generation and self._on_lost is not None:
            self._on_lost()

    # For its sessions.

    def ask_holder(self, generation: int, operation: Operation, arguments: bytes) -> bytes:
        """Return the result of a holder with this number. Raises KeysUnavailable, or VelaError."""

        def ask() -> bytes:
            if generation != self._keys.generation:
                raise KeysUnavailable("the key holder was replaced")
            return self._keys.ask(operation, arguments)

        try:
            return self._keys.attempt(ask)
        except HolderLostError as err:
            raise KeysUnavailable(str(err)) from err

    def check_remote(self, public: bytes | None) -> None:
        """Raise RemoteProtocolError if a responder does not serve who has this public key."""
        if public is not None and self.remote_static is None and public not in self._allowed:
            raise RemoteProtocolError(HANDSHAKE, f"unknown public key {fingerprint(public)}")

    def expect_installation(self) -> None:
        if self._on_installing is not None:
            self._on_installing()

    def _open(self, role: Role) -> SessionFrameKeys:
        keys = self._keys
        identity = 0 if self._identity is None else self._identity.number
        if self._generation != keys.generation:
            keys.ask(Operation.PAGE, KEY.pack(self._number), (self.page_fd,))
            self._generation = keys.generation
        number = keys.next_session()
        psk = 0 if self.psk is None else self.psk.number
        if not psk and (self.psk is not None or identity == 0):
            raise KeysUnavailable("the pre-shared key can no longer be read")
        opening = OPENING.pack(
            number,
            self._number,
            psk,
            identity,
            self.offer.pattern,
            role is Role.INITIATOR,
        )
        keys.ask(Operation.OPEN, opening + (self.remote_static or bytes(PUBLIC_KEY_LENGTH)))
        return SessionFrameKeys(self, number, keys.generation, psk)


class SessionFrameKeys:
    """The keys of one session, in the holder: an encryption.KeyHolder."""

    def __init__(self, circuit: CircuitKeys, number: int, generation: int, psk: int) -> None:
        self._circuit, self._number, self._generation, self._psk = circuit, number, generation, psk
        self._signer: Signer | None = None
        self._is_over = False

    def __del__(self) -> None:
        self.wipe()

    @property
    def signer(self) -> Signer | None:
        return self._signer

    def begin(self, generation: int, prologue: bytes) -> bytes:
        return self._ask(Operation.BEGIN, generation, prologue)

    def respond(
        self, generation: int, prologue: bytes, message: bytes, answer: Answer
    ) -> tuple[bytes, bytes | None]:
        packed = ANSWER.pack(answer.suite, answer.phase, len(prologue))
        said = self._ask(Operation.RESPOND, generation, packed + prologue + message)
        reply, public = said[:-PUBLIC_KEY_LENGTH], said[-PUBLIC_KEY_LENGTH:]
        if self._circuit.offer.pattern == HandshakePattern.NN_PSK0:
            reply, public = said, b""
        self._circuit.check_remote(public or None)
        self._have_signer()
        return reply, public or None

    def finish(self, generation: int, message: bytes) -> Answer:
        answer = Answer.unpack(self._ask(Operation.FINISH, generation, message))
        self._have_signer()
        return answer

    def install(self, generation: int) -> int:
        said = self._ask(Operation.INSTALL, generation)
        if len(said) != KEY.size:
            raise KeysUnavailable("the key holder answers nonsense")
        self._circuit.expect_installation()
        serial: int = KEY.unpack(said)[0]
        return serial

    def transmit(self, generation: int) -> None:
        self._ask(Operation.TRANSMIT, generation)

    def retire(self, generation: int) -> None:
        self._ask(Operation.RETIRE, generation)

    def wipe(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        with suppress(VelaError):  # a holder that is gone has nothing to wipe; keys expire
            packed = NUMBER.pack(self._number)
            self._circuit.ask_holder(self._generation, Operation.WIPE, packed)

    def _have_signer(self) -> None:
        if self._signer is None:
            numbers = SESSION.pack(self._psk, self._number)
            self._signer = _ControlSigner(self._circuit, self._generation, numbers)

    def _ask(self, operation: Operation, generation: int, arguments: bytes = b"") -> bytes:
        packed = GENERATION.pack(self._number, generation) + arguments
        try:
            return self._circuit.ask_holder(self._generation, operation, packed)
        except (KeysUnavailable, RemoteProtocolError):
            raise
        except VelaError as err:
            raise KeysUnavailable(f"the key holder refuses: {err}") from err


class _ControlSigner:
    """What tags the control messages of an encrypted session, by keys of its handshake."""

    overhead = SESSION_TAG_LENGTH + TAG_LENGTH

    def __init__(self, circuit: CircuitKeys, generation: int, numbers: bytes) -> None:
        self._circuit, self._generation, self._numbers = circuit, generation, numbers

    def sign(self, body: bytes) -> bytes:
        tags = self._ask(Operation.SIGN, body)
        # A message that cannot be tagged is lost, as on any network.
        return tags if len(tags) == self.overhead else bytes(self.overhead)

    def verify(self, datagram: bytes) -> bool:
        return self._ask(Operation.VERIFY, datagram) == b"\1"

    def _ask(self, operation: Operation, message: bytes) -> bytes:
        try:
            return self._circuit.ask_holder(self._generation, operation, self._numbers + message)
        except VelaError:
            return b""
