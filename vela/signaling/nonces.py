"""The numbers by which this daemon's sessions are known, so that its own messages are. Pure."""

from __future__ import annotations

import random
from weakref import WeakValueDictionary

from vela.errors import RemoteProtocolError
from vela.signaling.messages import Message

REFLECTED = "reflected"
"""The reason word of RemoteProtocolError."""


class Nonces:
    """Draws nonces, and knows those in use. All circuits of a daemon share one.

    A message with such a sender's nonce was sent by this daemon: somebody gives it back,
    perhaps from another address, or to another circuit. It needs no list of cookies that were
    sent and not confirmed: an ACKNOWLEDGE counts only with a nonce of this daemon's as the
    receiver's, and a REQUEST with such a nonce never gets a cookie.
    """

    def __init__(self, randomness: random.Random) -> None:
        """In production randomness is a random.SystemRandom."""
        self._randomness = randomness
        self._holders: WeakValueDictionary[int, object] = WeakValueDictionary()

    def draw(self) -> int:
        """Return a nonce that is not in use, nor 0."""
        while True:
            nonce = self._randomness.getrandbits(64)
            if nonce and nonce not in self._holders:
                return nonce

    def hold(self, nonce: int, holder: object) -> None:
        """Take a nonce for this daemon's for as long as its holder lives."""
        self._holders[nonce] = holder

    def reject_reflected(self, message: Message) -> None:
        """Raise RemoteProtocolError if this daemon sent the message."""
        if message.sender_nonce in self._holders:
            raise RemoteProtocolError(REFLECTED, "this daemon's own message came back")
