"""Answers to machines that no circuit knows: stateless until their CONFIRM. Pure.

docs/protocol.md, section 4. How to drive it: vela.signaling.session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from vela.address import Endpoint, IPAddress
from vela.signaling.codec import decode, encode, rejection
from vela.signaling.cookie import Cookies
from vela.signaling.events import CircuitRequested, Datagram
from vela.signaling.limiter import RateLimiter
from vela.signaling.messages import Acknowledge, Confirm, Keepalive, Message, RejectCode, Request
from vela.signaling.policy import Policy

# Sessions bind their cookies to themselves; 0 stands for none.
_BINDING = 0


class Silence(Enum):
    """Why a message was not answered, beside the reasons of RemoteProtocolError."""

    DISABLED = "disabled"  # no [autoconfigure]
    UNLISTED = "unlisted"  # the source is not among those that may ask
    TOO_FAST = "too_fast"
    STALE = "stale"  # a cookie that is none, or no more; no answer fits the message


class Responder:
    """Takes what is about no circuit that there is. One for a daemon."""

    def __init__(self, policy: Policy | None, key: bytes | None, cookies: Cookies) -> None:
        """policy None: nobody is answered."""
        self.policy = policy
        self.key = key
        self.unanswered = dict.fromkeys(Silence, 0)
        self._cookies = cookies
        self._limiter = RateLimiter()
        self._outgoing: deque[Datagram] = deque()

    def receive_datagram(
        self,
        data: bytes,
        source: Endpoint,
        circuits: Callable[[], int],
        now: float,
        withheld: Callable[[Confirm], str] = lambda _: "",
        here: IPAddress | None = None,
    ) -> CircuitRequested | None:
        """Take a control message; circuits tells how many there are that others set up.

        withheld tells, in a sentence, that the circuit may be there and is not
        to be had at present. Both are asked only for whom has shown its address.
        here: this end's address that it came to; answers leave from it.

        Raises RemoteProtocolError, to be counted; nothing is answered then.
        """
        policy = self.policy
        if policy is None:
            self._be_silent(Silence.DISABLED)
            return None
        if not source.port:  # forged: nothing can be sent back
            self._be_silent(Silence.STALE)
            return None
        # Before any work is spent on strangers.
        if not policy.knows(source.address, authenticated=self.key is not None):
            self._be_silent(Silence.UNLISTED)
            return None
        # Without a key a flood is stopped before it is read; with one, after the
        # tag, or forgeries would use up what their victim may ask.
        if self.key is None and not self._limiter.take(source.address, now):
            self._be_silent(Silence.TOO_FAST)
            return None
        message = decode(data, self.key)
        if not isinstance(message, Request | Confirm | Keepalive) or not message.sender_nonce:
            self._be_silent(Silence.STALE)
            return None
        if self.key is not None and not self._limiter.take(source.address, now):
            self._be_silent(Silence.TOO_FAST)
            return None
        match message:
            case Request(receiver_nonce=0):
                self._acknowledge(message, source, now, here)
            case Confirm():
                return self._take_confirm(policy, message, source, circuits, now, withheld, here)
            case Keepalive():
                # Its nonce in the answer shows the remote that the answer is no forgery.
                refusal = rejection(message, len(data), RejectCode.NO_SUCH_SESSION)
                self._send(refusal, source, here)
            case _:
                self._be_silent(Silence.STALE)
        return None

    def reject(self, requested: CircuitRequested, code: RejectCode, text: str) -> None:
        """Refuse what policy allows, but this machine cannot do; text: why, for the remote."""
        confirm = requested.confirm
        self._send(rejection(confirm, confirm.size, code, text), requested.source, requested.here)

    def datagrams_to_send(self) -> list[Datagram]:
        """Hand over what is to be sent; each is there once."""
        sent = list(self._outgoing)
        self._outgoing.clear()
        return sent

    def _acknowledge(
        self, message: Request, source: Endpoint, now: float, here: IPAddress | None
    ) -> None:
        cookie = self._cookies.issue(
            source, message.circuit_id, message.sender_nonce, _BINDING, now
        )
        answer = Acknowledge(message.circuit_id, cookie, message.sender_nonce, message.counter)
        self._send(answer, source, here)

    def _take_confirm(
        self,
        policy: Policy,
        message: Confirm,
        source: Endpoint,
        circuits: Callable[[], int],
        now: float,
        withheld: Callable[[Confirm], str],
        here: IPAddress | None,
    ) -> CircuitRequested | None:
        valid = self._cookies.check(
            message.receiver_nonce,
            source,
            message.circuit_id,
            message.sender_nonce,
            _BINDING,
            now,
        )
        if not valid:
            self._be_silent(Silence.STALE)
            return None
        why = withheld(message)
        if why:
            refusal = rejection(message, message.size, RejectCode.DISABLED, why)
            self._send(refusal, source, here)
            return None
        if message.resuming:
            refusal = rejection(
                message,
                message.size,
                RejectCode.NO_SUCH_CIRCUIT,
                "the machine that set this circuit up does not have it any more",
            )
            self._send(refusal, source, here)
            return None
        refused = policy.judge_new(message.description, message.offer, circuits())
        if refused is not None:
            self._send(rejection(message, message.size, refused.code, refused.text), source, here)
            return None
        return CircuitRequested(source, message, here)

    def _be_silent(self, why: Silence) -> None:
        self.unanswered[why] += 1

    def _send(self, message: Message, to: Endpoint, here: IPAddress | None) -> None:
        self._outgoing.append(Datagram(encode(message, self.key), to, here))
