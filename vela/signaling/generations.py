"""The generations of keys that one end has in an encrypted session. Pure.

docs/protocol.md, section 4.12. There are two phases, so at most three generations are known: the
one that is sent with, the one before, and the next one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from vela.signaling.frame_keys import Answer, KeyHolder, KeysUnavailable
from vela.wire import Suite


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a key is used. The defaults are the protocol's; tests have shorter ones.

    RFC 9001, section 6.6, allows AES-GCM 2^28 packets of 2^11 bytes under one key.
    """

    rekey_after_s: float = 120.0
    rekey_frames: int = 2**27
    rekey_bytes: int = 2**38
    expire_after_s: float = 180.0
    expire_frames: int = 2**28
    repeat_s: float = 1.0
    """Between two of the same; and between two rekeys at least."""
    keep_old_s: float = 10.0
    """The previous receive key, for frames that are on their way when the sender changes."""


@dataclass(frozen=True, slots=True)
class EncryptionStatus:
    """What the operator sees."""

    suite: Suite
    generation: int
    age_s: float
    frames_left: int
    """That this end may send with this key."""


@dataclass(slots=True)
class Generation:
    """Keys that this end can receive with, or will in a moment."""

    number: int
    answer: Answer
    born: float


class Generations:
    """Those of one session, at one end. A KeyHolder has the keys themselves."""

    def __init__(self, holder: KeyHolder, limits: Limits) -> None:
        self.sending: Generation | None = None
        """The one that this end sends with."""
        self.newest: Generation | None = None
        """The one that this end received last."""
        self.installation = 0
        """The number that KeyHolder.install() gave the newest one."""
        self.frames = 0
        """How many were sent with the present key."""
        self._holder = holder
        self._limits = limits
        # Still received with, after the newest one is sent with.
        self._old: Generation | None = None
        self._retire_at = 0.0

    @property
    def number(self) -> int:
        """That of the newest one; 0: there is none."""
        return 0 if self.newest is None else self.newest.number

    @property
    def expires_at(self) -> float | None:
        """When frames stop: the key that is sent with, or else the first one, is too old."""
        key = self.sending or self.newest
        return None if key is None else key.born + self._limits.expire_after_s

    @property
    def retires_at(self) -> float | None:
        """When to call retire(); None: there is no old one."""
        return None if self._old is None else self._retire_at

    def the_newest(self) -> Generation:
        if self.newest is None:
            raise RuntimeError("no keys")
        return self.newest

    def status(self, now: float) -> EncryptionStatus | None:
        """None: this end does not send."""
        current = self.sending
        if current is None:
            return None
        return EncryptionStatus(
            current.answer.suite,
            current.number,
            now - current.born,
            max(0, self._limits.expire_frames - self.frames),
        )

    def install(self, generation: Generation) -> None:
        """Let the worker receive with the next one. Raises KeysUnavailable."""
        # There are two phases. What has the same one is older than what is sent with.
        self.retire()
        self.newest = generation
        self.installation = self._holder.install(generation.number)

    def switch(self, now: float) -> None:
        """Send with the newest one. Raises KeysUnavailable."""
        newest = self.the_newest()
        self._holder.transmit(newest.number)
        self._old, self.sending, self.frames = self.sending, newest, 0
        # Until the other end is known to send with the newest one: as long as the key is good.
        self._retire_at = now + self._limits.expire_after_s
        if self._old is not None:
            self._retire_at = self._old.born + self._limits.expire_after_s

    def settle(self, now: float) -> None:
        """Keep the old one no longer than for what is on its way: both ends send with another."""
        self._retire_at = now + self._limits.keep_old_s

    def retire(self) -> None:
        """Receive with the old one no more."""
        old, self._old = self._old, None
        if old is not None:
            # A holder that is gone wipes nothing; the worker drops keys by their age.
            with suppress(KeysUnavailable):
                self._holder.retire(old.number)

    def stay(self) -> None:
        """Give up the next one, if there is one that is sent with."""
        if self.sending is not None:
            self.newest = self.sending

    def wipe(self) -> None:
        """Wipe all keys."""
        self.sending = self._old = None
        with suppress(KeysUnavailable):
            self._holder.wipe()
