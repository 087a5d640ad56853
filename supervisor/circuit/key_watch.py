"""What the session of an encrypted circuit is told about the keys that its worker has."""

from __future__ import annotations

from vela.signaling.messages import HandshakePattern
from vela.signaling.session import Session

from ..frame_keys import CircuitKeys
from ..runtime.loop import EventLoop, Timer
from ..status import CipherStatus
from .signaling import SignalingChannel

# The worker looks for new keys at its next batch, and where there is none twenty times a second
# before its first key, twice a second afterwards.
FIRST_LOOK_S = 0.01
LONGEST_LOOK_S = 0.16
# A key lives for 180 s, and is replaced after 120.
KEYS_ARE_OLD_S = 50.0


class KeyWatch:
    """Reads the key page's counters, and reports to the session."""

    def __init__(self, keys: CircuitKeys, loop: EventLoop) -> None:
        self._keys = keys
        self._loop = loop
        self._signaling: SignalingChannel | None = None
        self._look: Timer | None = None
        self._restarts = 0
        self._closed = False
        keys.set_handlers(self.expect, self._on_lost)

    def follow(self, signaling: SignalingChannel) -> None:
        """Report to the session of this channel from now on."""
        self._signaling = signaling

    def close(self) -> None:
        """Report nothing more, and close the keys."""
        self._closed = True
        if self._look is not None:
            self._look.cancel()
        self._keys.close()

    def status(self) -> CipherStatus | None:
        """Return how frames are encrypted; None: there are no keys at present."""
        if self._signaling is None:
            return None
        session = self._signaling.session
        status = session.encryption_status(self._loop.now())
        if status is None:
            return None
        pattern = HandshakePattern(self._keys.offer.pattern)
        return CipherStatus.of(status, pattern, session.remote_static or self._keys.remote_static)

    def expect(self) -> None:
        """Look until the worker has taken the keys that were handed to it."""
        if self._look is None:
            self._look_after(FIRST_LOOK_S)

    def check(self, restarts: int | None) -> None:
        """Have keys replaced before they are used up. To be called once a second.

        restarts: how often the worker was restarted; None: there is none.
        """
        if self._signaling is None or self._closed:
            return
        session = self._signaling.session
        status = session.encryption_status(self._loop.now())
        if status is None:
            return
        self._report_usage(session, status.generation)
        if restarts not in (None, self._restarts):
            self._restarts = restarts
            session.want_rekey(self._loop.now())
        self._signaling.pump()

    def _report_usage(self, session: Session, generation: int | None) -> None:
        now = self._loop.now()
        for usage in self._keys.usages():
            if usage.generation == generation:
                session.keys_used(usage.generation, usage.frames, usage.octets, now)
                # Their age goes on while the machine sleeps, and timers do not.
                if usage.expires_in_s < KEYS_ARE_OLD_S:
                    session.want_rekey(now)

    def _look_after(self, delay_s: float) -> None:
        def look() -> None:
            self._look = None
            signaling = self._signaling
            if signaling is None:
                return
            waiting = signaling.session.awaited_installations
            if not waiting:
                return
            for usage in self._keys.usages():
                if usage.receives and usage.serial in waiting:
                    signaling.session.keys_installed(usage.serial, self._loop.now())
            signaling.pump()
            if signaling.session.awaited_installations and not self._closed:
                self._look_after(min(2 * delay_s, LONGEST_LOOK_S))

        self._look = self._loop.call_later(delay_s, look)

    def _on_lost(self) -> None:
        if self._signaling is not None and not self._closed:
            self._signaling.session.lose_keys(self._loop.now())
            self._signaling.pump()
