"""Nonces that prove an address without state: the responder's ACKNOWLEDGE. Pure.

The idea of RFC 5996, section 2.6, and of WireGuard's cookies: what only this process can have
sent, and only to that address, comes back from there.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections import OrderedDict

from vela.address import Endpoint

# A secret is used for this long, and known for as long again: a cookie is good for 10 to 20 s.
PERIOD_S = 10.0
SECRET_LENGTH = 32
# Cookies that were used up, until their secret is forgotten: as many circuits can be set up,
# deleted and set up again within 20 s.
MAX_SPENT = 4096


class Cookies:
    """Issues and checks nonces. One for a daemon: the responder and all sessions share it."""

    def __init__(self, randomness: random.Random) -> None:
        """In production randomness is a random.SystemRandom."""
        self._randomness = randomness
        self._period = -1
        self._secrets = (b"", b"")
        self._spent: OrderedDict[int, int] = OrderedDict()

    def issue(self, source: Endpoint, circuit_id: int, nonce: int, binding: int, now: float) -> int:
        """Return the cookie for an initiator's nonce; one with another binding is another."""
        self._rotate(now)
        return self._cookie(self._secrets[0], source, circuit_id, nonce, binding)

    def check(
        self,
        cookie: int,
        source: Endpoint,
        circuit_id: int,
        nonce: int,
        binding: int,
        now: float,
    ) -> bool:
        """Tell whether issue() said so not long ago, and nobody spent it since."""
        self._rotate(now)
        matches = [
            hmac.compare_digest(
                self._cookie(secret, source, circuit_id, nonce, binding).to_bytes(8),
                cookie.to_bytes(8),
            )
            for secret in self._secrets
            if secret
        ]
        return any(matches) and cookie not in self._spent

    def spend(self, cookie: int, now: float) -> None:
        """Let check() refuse a cookie from now on: its circuit is set up."""
        self._rotate(now)
        self._spent[cookie] = self._period
        if len(self._spent) > MAX_SPENT:
            self._spent.popitem(last=False)

    def _rotate(self, now: float) -> None:
        period = int(now // PERIOD_S)
        if period <= self._period:
            return
        fresh = self._randomness.randbytes(SECRET_LENGTH)
        previous = self._secrets[0] if period == self._period + 1 else b""
        self._secrets = (fresh, previous)
        self._period = period
        while self._spent and next(iter(self._spent.values())) < period - 1:
            self._spent.popitem(last=False)

    def _cookie(
        self, secret: bytes, source: Endpoint, circuit_id: int, nonce: int, binding: int
    ) -> int:
        known = b"".join(
            (
                source.address.packed,
                source.port.to_bytes(2),
                bytes([circuit_id]),
                nonce.to_bytes(8),
                binding.to_bytes(8),
            )
        )
        digest = hmac.digest(secret, known, hashlib.sha256)
        # 0 stands for "not known" on the wire.
        return int.from_bytes(digest[:8]) or 1
