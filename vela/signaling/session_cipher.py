"""What a session of an encrypted circuit does with its handshake, as either role. Pure.

docs/protocol.md, section 4.11. encryption.py is the state machine of the keys; this ties it to the
messages of a session.
"""

from __future__ import annotations

from dataclasses import dataclass

from vela.errors import RemoteProtocolError
from vela.reasons import Reason
from vela.signaling.codec import WRONG_TAG
from vela.signaling.encryption import (
    HANDSHAKE_BURST,
    HANDSHAKE_RATE,
    Encryption,
    Ended,
    Fields,
    Ready,
    SessionWanted,
)
from vela.signaling.frame_keys import FrameKeys, KeysUnavailable, Role
from vela.signaling.limiter import TokenBucket
from vela.signaling.link import Link
from vela.signaling.messages import HANDSHAKE, CipherOffer, Confirm, Keepalive
from vela.signaling.session_name import SessionName

# The keys of a session that another one follows, after this end has changed to that one's.
KEEP_PREDECESSOR_S = 10.0


class SessionCipher:
    """The encryption of one circuit, from session to session."""

    def __init__(self, frame_keys: FrameKeys) -> None:
        self._frame_keys = frame_keys
        self.phase: int | None = None
        """That of the keys that the circuit had last."""
        self._handshakes = TokenBucket(HANDSHAKE_RATE, HANDSHAKE_BURST)

    @property
    def offer(self) -> CipherOffer:
        """What this end requires and can do."""
        return self._frame_keys.offer

    def initiate(self, link: Link) -> None:
        """Give a link that was acknowledged its encryption. Raises KeysUnavailable."""
        link.encryption = Encryption(
            Role.INITIATOR,
            SessionName(link.local_nonce, link.remote_nonce, link.circuit_id),
            self._frame_keys.open(Role.INITIATOR),
            suites=self.offer.suites,
        )

    def answer(self, confirm: Confirm, said: bytes, now: float) -> Encryption | None:
        """Return the keys of the session that a CONFIRM asks for: see answer_handshake().

        None also if handshakes come too fast.
        """
        if not self._handshakes.take(now):
            return None
        return answer_handshake(self._frame_keys, confirm, said, self.phase, now)


def answer_handshake(
    frame_keys: FrameKeys, confirm: Confirm, said: bytes, phase_in_use: int | None, now: float
) -> Encryption | None:
    """Return the keys of the session that a CONFIRM asks for; None: the key holder is lost.

    said: codec.transcript() of the CONFIRM. suites.refusal() must have allowed it. Raises
    RemoteProtocolError where its message 1 is wrong, and then leaves nothing behind.
    """
    if confirm.ciphers is None or confirm.noise_1 is None:
        raise RemoteProtocolError(HANDSHAKE, "no message 1")
    try:
        encryption = Encryption(
            Role.RESPONDER,
            SessionName(confirm.sender_nonce, confirm.receiver_nonce, confirm.circuit_id),
            frame_keys.open(Role.RESPONDER),
            suites=frame_keys.offer.suites,
            phase_in_use=phase_in_use,
        )
    except KeysUnavailable:
        return None
    try:
        encryption.respond(said, confirm.noise_1, confirm.ciphers.suites, now)
    except KeysUnavailable:
        return None
    except RemoteProtocolError:
        encryption.wipe()
        raise
    return encryption


def awaits_handshake(link: Link) -> bool:
    """Tell whether a link's first KEEPALIVE has to bring message 2."""
    encryption = link.encryption
    return encryption is not None and encryption.role is Role.INITIATOR and link.signer is None


def finish_handshake(link: Link, message: Keepalive, datagram: bytes, now: float) -> None:
    """Take message 2 of a first KEEPALIVE, whose own keys are needed to verify the rest of it.

    Raises RemoteProtocolError, also if the tag of the session is wrong.
    """
    if link.encryption is None:
        raise RuntimeError(f"circuit {link.circuit_id}: no handshake to finish")
    link.encryption.receive(Fields(noise_2=message.noise_2), now)
    signer = link.encryption.signer
    if signer is None:
        raise RemoteProtocolError(HANDSHAKE, "the key holder was lost meanwhile")
    if not signer.verify(datagram):
        raise RemoteProtocolError(WRONG_TAG, "the tag is not of the handshake's keys")
    link.signer = signer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows for a session from what its keys have come to."""

    ended: Reason | None = None
    """Why it is of no use any more."""
    session_wanted: bool = False
    """Another session is to be sought beside it."""


def settle_keys(link: Link, now: float, *, in_session: bool) -> Outcome:
    """Take what the encryption of a link has to tell. in_session: both ends have the session."""
    encryption = link.encryption
    if encryption is None:
        return Outcome()
    if link.predecessor_until <= now:
        link.wipe_predecessor()
    wanted = False
    while (event := encryption.next_event()) is not None:
        match event:
            case Ready() if link.predecessor is not None:
                # What is under way, and what the remote sends until it follows.
                link.predecessor_until = now + KEEP_PREDECESSOR_S
            case Ended(reason) if in_session:
                return Outcome(reason, wanted)
            case SessionWanted():
                wanted = wanted or in_session
            case _:
                pass
    return Outcome(session_wanted=wanted)
