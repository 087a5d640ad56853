"""Nonces that prove an address without state: the responder's, in its ACKNOWLEDGE. Pure.

After RFC 5996, section 2.6, and WireGuard's cookies: a number that only this process can compute
is sent to an address, and comes back from there.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections import OrderedDict

from vela.address import Endpoint, IPAddress
from vela.signaling.messages import Acknowledge, Confirm, Request
from vela.signaling.nonces import Nonces

# A secret is used for this long, and known for as long again: a cookie is valid for 10 to 20 s.
PERIOD_S = 10.0
SECRET_LENGTH = 32
# Used cookies that are remembered until their secret is forgotten. This many circuits can be set
# up, deleted and set up again within 20 s.
MAX_SPENT = 4096


class Cookies:
    """Issues and checks cookies. The responder and all sessions of a daemon share one.

    A cookie is for one address, port, circuit id and initiator's nonce, for the
    address of this host that was asked, and for a binding: what its issuer can
    change to make earlier cookies void.
    """

    def __init__(self, randomness: random.Random) -> None:
        """In production randomness is a random.SystemRandom."""
        self.nonces = Nonces(randomness)
        """Those of this daemon: a cookie becomes one of them when a session begins with it."""
        self._randomness = randomness
        self._period = -1
        self._secrets = (b"", b"")
        self._spent: OrderedDict[int, int] = OrderedDict()

    def acknowledge(
        self,
        request: Request,
        source: Endpoint,
        local_address: IPAddress | None,
        binding: int,
        now: float,
    ) -> Acknowledge:
        """Return the answer to a REQUEST, with a cookie. local_address: where it came to."""
        self._rotate(now)
        cookie = _compute(self._secrets[0], request, source, local_address, binding)
        return Acknowledge(request.circuit_id, cookie, request.sender_nonce, request.counter)

    def check(
        self,
        confirm: Confirm,
        source: Endpoint,
        local_address: IPAddress | None,
        binding: int,
        now: float,
    ) -> bool:
        """Tell whether a CONFIRM brings back a cookie that is still valid and was not spent."""
        self._rotate(now)
        cookie = confirm.receiver_nonce
        matches = [
            hmac.compare_digest(
                _compute(secret, confirm, source, local_address, binding).to_bytes(8),
                cookie.to_bytes(8),
            )
            for secret in self._secrets
            if secret
        ]
        return any(matches) and cookie not in self._spent

    def spend(self, confirm: Confirm, now: float) -> None:
        """Let check() refuse this cookie from now on: it was used."""
        self._rotate(now)
        self._spent[confirm.receiver_nonce] = self._period
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


def _compute(
    secret: bytes,
    asked: Request | Confirm,
    source: Endpoint,
    local_address: IPAddress | None,
    binding: int,
) -> int:
    known = b"".join(
        (
            source.address.packed,
            source.port.to_bytes(2),
            b"" if local_address is None else local_address.packed,
            bytes([asked.circuit_id]),
            asked.sender_nonce.to_bytes(8),
            binding.to_bytes(8),
        )
    )
    digest = hmac.digest(secret, known, hashlib.sha256)
    # 0 stands for "not known" on the wire.
    return int.from_bytes(digest[:8]) or 1
