"""Which ciphers and handshakes two ends have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from vela.signaling.messages import CipherOffer, HandshakePattern, Suites
from vela.wire import Suite

_PATTERN_WORDS: Mapping[int, str] = {
    HandshakePattern.IK_PSK2: "public keys (peer_key)",
    HandshakePattern.NN_PSK0: "a pre-shared key alone",
}


def set_of(suite: Suite) -> Suites:
    return Suites(1 << (suite - 1))


def choose(own: Suites, offered: Suites) -> Suite | None:
    """Return the suite that the responder takes: the first that both have."""
    return next((suite for suite in Suite if set_of(suite) & own & offered), None)


def refusal(own: CipherOffer | None, offered: CipherOffer | None) -> str:
    """Return why a responder refuses a CONFIRM, for the operator of the initiator; empty: nothing.

    own: what this end requires and can do; None: it does not encrypt. There is nothing between
    required and none: an attacker, or a mistake, would turn it into none.
    """
    if own is None and offered is None:
        return ""
    if offered is None:
        return "the other end requires encryption, and this end does not encrypt"
    if own is None:
        return "this end requires encryption, and the other end does not encrypt"
    if own.pattern != offered.pattern:
        ours, theirs = (
            _PATTERN_WORDS.get(each.pattern, "another handshake") for each in (offered, own)
        )
        return f"this end encrypts by {ours}, the other end by {theirs}"
    if choose(own.suites, offered.suites) is None:
        return "both ends encrypt, and have no cipher in common"
    return ""
