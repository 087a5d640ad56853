"""Answers messages about circuits that do not exist; it stores nothing before a CONFIRM. Pure.

docs/protocol.md, sections 4.2 and 4.7. How to drive it: vela.signaling.session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from vela.address import Endpoint, IPAddress
from vela.signaling.codec import decode, rejection, transcript
from vela.signaling.cookie import Cookies
from vela.signaling.events import CircuitRequested, Datagram
from vela.signaling.limiter import RateLimiter
from vela.signaling.link import offer_session_keys, own_endpoint
from vela.signaling.messages import (
    CipherOffer,
    Confirm,
    HandshakePattern,
    Keepalive,
    RejectCode,
    Request,
)
from vela.signaling.outbox import Outbox
from vela.signaling.policy import PeerCircuits, Policy, Rejection
from vela.signaling.signer import Key
from vela.signaling.suites import refusal

# Sessions bind their cookies to themselves; 0 stands for no session.
_BINDING = 0


class Silence(Enum):
    """Why a message was not answered, beside the reasons of RemoteProtocolError."""

    DISABLED = "disabled"  # no [autoconfigure]
    UNLISTED = "unlisted"  # the source is not among those that may ask
    TOO_FAST = "too_fast"
    STALE = "stale"  # an invalid or expired cookie, or a message that nothing answers


class Responder:
    """Judges requests for new circuits. A daemon has one."""

    def __init__(self, policy: Policy | None, key: Key | None, cookies: Cookies, port: int) -> None:
        """policy None: nobody is answered. port: the one that this host listens on."""
        self.policy = policy
        self.key = key
        self.ciphers: CipherOffer | None = None
        """How circuits that remotes set up here are encrypted; None: they are not."""
        self.unanswered = dict.fromkeys(Silence, 0)
        self._cookies = cookies
        self._limiter = RateLimiter()
        self._port = port
        self._outbox = Outbox()

    def receive_datagram(
        self,
        data: bytes,
        source: Endpoint,
        now: float,
        *,
        peer_circuits: Callable[[], PeerCircuits],
        deferral_reason: Callable[[Confirm], str] = lambda _: "",
        local_address: IPAddress | None = None,
        refused: Callable[[CircuitRequested, RejectCode, str], None] = lambda *_: None,
        is_remote: Callable[[IPAddress], bool] = lambda _: False,
    ) -> CircuitRequested | None:
        """Take a control message; return the request for a circuit, if it is one and is allowed.

        peer_circuits returns how many circuits remotes have set up.
        deferral_reason returns, in a sentence, why the circuit may exist and
        cannot be had at present; else an empty string. Both may be slow: they
        are called only for a remote that has proved its address.
        local_address: the address of this host that it came to; answers leave
        from there. refused is told what the policy does not allow. is_remote
        tells whether a circuit of this machine has, or had, its remote there:
        such a machine is told, whatever the policy, that a circuit which it
        resumes is gone; not where there are keys, as the circuit's is gone, too.
        Raises RemoteProtocolError, to be counted.
        """
        policy = self.policy
        silence = self._silence_toward(source)
        # Before any work is spent on strangers.
        if silence is not None and (
            not source.port or self.key is not None or not is_remote(source.address)
        ):
            self._be_silent(silence)
            return None
        # Without a key a flood is stopped before it is read; with one after the tag, or
        # forgeries would use up what their victim may ask.
        if self.key is None and not self._limiter.take(source.address, now):
            self._be_silent(Silence.TOO_FAST)
            return None
        message = decode(data, self.key)
        self._cookies.nonces.reject_reflected(message)
        if not isinstance(message, Request | Confirm | Keepalive) or not message.sender_nonce:
            self._be_silent(Silence.STALE)
            return None
        if silence is not None and (isinstance(message, Keepalive) or not message.resuming):
            self._be_silent(silence)
            return None
        if self.key is not None and not self._limiter.take(source.address, now):
            self._be_silent(Silence.TOO_FAST)
            return None
        match message:
            case Request(receiver_nonce=0):
                answer = self._cookies.acknowledge(message, source, local_address, _BINDING, now)
                if self.key is not None:
                    own = own_endpoint(local_address, self._port)
                    answer = offer_session_keys(answer, message, own, source)
                self._outbox.put(answer, self.key, source, local_address)
            case Confirm() if self._cookies.check(message, source, local_address, _BINDING, now):
                requested = CircuitRequested(source, message, local_address, transcript(data))
                judged = self._judge(policy, requested, peer_circuits, deferral_reason)
                if judged is None:
                    return requested
                refused(requested, judged.code, judged.text)
                self.reject(requested, judged.code, judged.text)
            case Keepalive():
                # The nonce of the session proves to the remote that the answer is not forged,
                # and the endpoint that it is for the remote.
                refusal = rejection(message, len(data), RejectCode.NO_SUCH_SESSION)
                self._outbox.put(replace(refusal, seen=source), self.key, source, local_address)
            case _:
                self._be_silent(Silence.STALE)
        return None

    def reject(self, requested: CircuitRequested, code: RejectCode, text: str) -> None:
        """Refuse a request, with a sentence for the operator of the remote."""
        confirm = requested.confirm
        answer = rejection(confirm, confirm.size, code, text)
        self._outbox.put(answer, self.key, requested.source, requested.local_address)

    def datagrams_to_send(self) -> list[Datagram]:
        """Hand over what is to be sent; each is handed over once."""
        return self._outbox.take_all()

    @property
    def _authenticates(self) -> bool:
        """Whether who asks proves who it is: by the key, or in the handshake by its identity."""
        ciphers = self.ciphers
        by_identity = ciphers is not None and ciphers.pattern == HandshakePattern.IK_PSK2
        return self.key is not None or by_identity

    def _silence_toward(self, source: Endpoint) -> Silence | None:
        """Return why whoever is there is not answered; None: it may ask."""
        if self.policy is None:
            return Silence.DISABLED
        if not source.port:  # forged: no answer can be sent there
            return Silence.STALE
        if not self.policy.knows(source.address, authenticated=self._authenticates):
            return Silence.UNLISTED
        return None

    def _be_silent(self, reason: Silence) -> None:
        self.unanswered[reason] += 1

    def _judge(
        self,
        policy: Policy | None,
        requested: CircuitRequested,
        peer_circuits: Callable[[], PeerCircuits],
        deferral_reason: Callable[[Confirm], str],
    ) -> Rejection | None:
        """Return why a remote that has proved its address may not have the circuit."""
        message = requested.confirm
        reason = deferral_reason(message)
        if reason:
            return Rejection(RejectCode.DISABLED, reason)
        if message.resuming:
            return Rejection(
                RejectCode.NO_SUCH_CIRCUIT,
                "the machine that set this circuit up no longer has it",
            )
        if policy is None:
            raise RuntimeError("only what resumes a circuit is read without a policy")
        reason = refusal(self.ciphers, message.ciphers)
        if reason:
            return Rejection(RejectCode.ENCRYPTION, reason)
        return policy.judge_new(
            message.description, message.offer, requested.source.address, peer_circuits()
        )
