"""What a session asks of whoever keeps its frame keys. Interfaces, and what passes through them.

A session never sees a key: it says which generation is made, used and wiped. docs/protocol.md,
sections 4.11 and 4.12; docs/security.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from vela.errors import RemoteProtocolError, VelaError
from vela.signaling.messages import HANDSHAKE, CipherOffer
from vela.signaling.signer import Signer
from vela.wire import Suite


class Role(Enum):
    """Of an end in the session."""

    INITIATOR = auto()
    RESPONDER = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """The payload of message 2: what the responder decides."""

    suite: Suite
    phase: int
    """0 or 1: the lowest bit of byte 1 of frames under these keys."""

    def pack(self) -> bytes:
        return bytes([self.suite, self.phase])

    @classmethod
    def unpack(cls, payload: bytes) -> Answer:
        """Raises RemoteProtocolError."""
        if len(payload) != 2 or payload[0] not in list(Suite) or payload[1] not in (0, 1):
            raise RemoteProtocolError(HANDSHAKE, "message 2 has another payload")
        return cls(Suite(payload[0]), payload[1])


class KeysUnavailable(VelaError):
    """The key holder is gone, or is another one than had the keys of this session."""


class KeyHolder(Protocol):
    """The keys of one session at one end, wherever they are kept.

    All methods raise KeysUnavailable. begin() and respond() may be called again for a generation
    that was not sent with yet; what there was of it is forgotten then.
    """

    def begin(self, generation: int, prologue: bytes) -> bytes:
        """Return message 1."""

    def respond(
        self, generation: int, prologue: bytes, message: bytes, answer: Answer
    ) -> tuple[bytes, bytes | None]:
        """Return message 2, and the static public key of the initiator, if the pattern has one.

        Raises RemoteProtocolError if message 1 is wrong, and then nothing has changed.
        """

    def finish(self, generation: int, message: bytes) -> Answer:
        """Take message 2. Raises RemoteProtocolError likewise."""

    def install(self, generation: int) -> int:
        """Hand the keys of a generation to the worker, in the place of its phase.

        Returns a number, another one each time, for Encryption.installed(): it is called when
        the worker receives with these keys.
        """

    def transmit(self, generation: int) -> None:
        """Let the worker send with this generation from now on."""

    def retire(self, generation: int) -> None:
        """Let the worker receive with this one no more; wipe it."""

    def wipe(self) -> None:
        """Wipe all keys of this session: the worker uses none of them any more."""

    @property
    def signer(self) -> Signer | None:
        """What tags the session's control messages; None before respond() or finish()."""


class FrameKeys(Protocol):
    """The keys of one circuit, from session to session."""

    @property
    def offer(self) -> CipherOffer:
        """What this end requires and can do."""

    def open(self, role: Role) -> KeyHolder:
        """Return the keys of another session. Raises KeysUnavailable."""
