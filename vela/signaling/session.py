"""Autoconfiguration, and the liveness of every circuit that is not static. Pure.

docs/protocol.md, section 4. All of it is here by name; it does no I/O and reads no clock. The
contract of Session, after aioquic's:

    in    receive_datagram(data, source, now, here)   handle_timer(now)
          start, accept, suspend, close, retry, probe, set_local, set_remote
    out   datagrams_to_send()   next_event()   next_timer()

now is monotonic seconds; after each call in, the outs are asked: next_event() first, so that
nothing is announced that cannot be done (suspend), next_timer() last. here is which of this end's
addresses a datagram came to. Send from the listening socket, and the address that Datagram.here
names. A daemon has one Cookies, one Responder, and a Session for each circuit:

    header = read_header(data)                    # RemoteProtocolError: count it
    session = sessions.get((source.address, header.circuit_id))
    if session is not None:
        session.receive_datagram(data, source, now, here)
    else:
        requested = responder.receive_datagram(data, source, count, now, here=here)
        if requested is not None:                 # make the interface, or responder.reject(...)
            session = Session(requested.circuit_id, local, remote=None, key=key, cookies=cookies,
                              randomness=SystemRandom(), policy=policy)
            session.accept(requested, now)

A circuit of the configuration: Session(..., offer=config.peer), then start(). One that another
machine set up, after a restart here: policy=, remote= where it was last, offer= what was kept
(requested.offer), then start(): it asks for the session to be resumed, so
it is back before the remote has missed it. A circuit that is set up anew gets cookies of its own
session; those for an earlier session, or for one not begun from here, count no more.

Events, in the order in which they happened:

    Agreed(agreement)     MACs, MTU, elision, checksums, keepalive, NAT: for this session, before
                          Up; and again when the remote says that one changed
    Up                    carrier on
    Down(reason)          carrier off; it seeks the remote again by itself
    ResolveWanted         look the name up, set_remote(endpoint)
    Unanswered(reason)    every three requests in a row: for the status, until the next event;
                          set_remote(endpoint), if the remote has another one
    Rejected(code, text)  for the status; asked again later
    OfferChanged(requested)  the machine that set this circuit up wants it otherwise, and the policy
                          allows it: as above, with a session in place of this one, or reject
    ProbeAnswered(size)
    Closed(by_remote)     over. by_remote: the circuit was deleted there, delete it here if it was
                          set up from there. Its last datagrams are still to be sent. start()
                          begins again.

States and the status words: REQUESTING, CONFIRMING, LINKED are "connecting" before the first Up
and "down" after a Down; REJECTED is "rejected", UP is "up", CLOSED "disabled", SUSPENDED "failed".

The handshake. The initiator's nonce is fresh for every attempt; the responder's is the cookie, so
a pair of nonces names a session that both ends have shown to be able to hear of. Cookies are bound
to the session that the responder has when it issues them: once another one begins, the others are
void, and a CONFIRM that was delayed or replayed starts nothing. In a session only counters larger
than every one heard count. An ACKNOWLEDGE and a REJECT carry the counter of what they answer; the
responder's own counters go on from that of the CONFIRM.

Both ends seek each other: each answers the other's REQUEST. If each has sent a CONFIRM, the session
of the end that configured the circuit wins over one that only resumes it, then the one of the end
with the larger MAC address. Each end's own configuration wins for that end.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeVar

from vela.address import Endpoint, IPAddress
from vela.circuit import PeerConfig
from vela.errors import RemoteProtocolError
from vela.signaling.agreement import Agreement, agree
from vela.signaling.codec import MALFORMED, WRONG_TAG, decode, encode, rejection
from vela.signaling.cookie import Cookies
from vela.signaling.events import (
    Agreed,
    CircuitRequested,
    Closed,
    Datagram,
    Down,
    Event,
    OfferChanged,
    ProbeAnswered,
    Rejected,
    ResolveWanted,
    Unanswered,
    Up,
)
from vela.signaling.limiter import TokenBucket
from vela.signaling.messages import (
    Acknowledge,
    Close,
    CloseReason,
    Confirm,
    Description,
    Keepalive,
    Message,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.policy import Policy

_M = TypeVar("_M", bound=Message)

# Requests and confirmations have at least this size, so that every answer fits: bytes.
PADDED_SIZE = 320

# While there is no session: a request each second, so that a link that comes
# back carries frames again within two; after five minutes fewer and fewer.
FIRST_REPEAT_S = 0.5
REPEAT_S = 1.0
LONGEST_REPEAT_S = 30.0
EAGER_S = 300.0
JITTER = 0.2  # taken off: many circuits must not ask in step

# A cookie may have died with the remote's restart, so not for long; yet
# longer than any path's round trip.
CONFIRM_REPEAT_S = 0.3
CONFIRM_TIMEOUT_S = 2.5
# A session that one end alone knows of.
LINKED_REPEAT_S = 0.5
LINKED_TIMEOUT_S = 3.0

# The third keepalive in a row is missed after 3 intervals; half of one is
# for delay, and both ends must have noticed within 4.
MISSED_INTERVALS = 3.5
KEEPALIVE_JITTER = 0.1

CLOSE_REPEAT_S = 0.2
CLOSE_TIMEOUT_S = 1.0
RESTART_PAUSE_S = 1.0  # a remote that stops is not asked before

FIRST_REJECTED_S = 2.0

# Asking beside a session with settings of before: no hurry, as it works.
FIRST_RENEWAL_S = 10.0
LONGEST_RENEWAL_S = 300.0

UNANSWERED_TRIES = 3  # requests to an address, until another one is to be tried
INSISTING_TRIES = 3  # requests, until a remote may resume with settings of before
RESOLVE_TRIES = 8  # requests, between looking the name up

# Answers to REQUESTs, which anybody can forge: one a second is asked for.
ANSWER_RATE, ANSWER_BURST = 10.0, 10.0


class State(Enum):
    """IDLE and CLOSED do nothing, SUSPENDED refuses; the others strive for UP, but for CLOSING."""

    IDLE = auto()
    REQUESTING = auto()
    CONFIRMING = auto()
    REJECTED = auto()
    LINKED = auto()  # both have the session; not yet known that both hear
    UP = auto()
    SUSPENDED = auto()  # this end cannot carry frames
    CLOSING = auto()
    CLOSED = auto()


class Input(Enum):
    """What can happen. Messages are inputs only if they are fresh and of this session."""

    START = auto()
    ACCEPT = auto()
    CLOSE_WANTED = auto()
    SEND_DUE = auto()
    RENEWAL_DUE = auto()
    EXPIRED = auto()
    REQUEST = auto()
    ACKNOWLEDGE = auto()
    CONFIRM = auto()
    CONFIRM_AGAIN = auto()
    KEEPALIVE = auto()
    CLOSE = auto()
    REJECT = auto()
    PROBE = auto()
    PROBE_REPLY = auto()


@dataclass(slots=True)
class _Link:
    """A pair of nonces, and how far each direction has come. remote_nonce 0: asked, unanswered."""

    local_nonce: int
    remote_nonce: int
    endpoint: Endpoint
    here: IPAddress | None
    """Which of this end's addresses the remote speaks to; None: not known yet."""
    sent: int = 0
    heard: int = 0
    proof: int = 0
    """A counter of ours: that the remote heard it, or a later one, shows that it hears us."""
    accepted: bool = False
    """The remote asked, this end answered."""
    remote: Description | None = None
    remote_was_up: bool = False
    clock_heard: int | None = None
    """Microseconds of the remote's clock, at clock_heard_at of ours."""
    clock_heard_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Happening:
    """An input with what belongs to it; message and source where it is a message."""

    now: float
    message: Message | None
    source: Endpoint | None
    here: IPAddress | None

    def message_of(self, kind: type[_M]) -> _M:
        if not isinstance(self.message, kind):
            raise RuntimeError(f"{self.message} where {kind.__name__} is due")
        return self.message

    @property
    def whence(self) -> Endpoint:
        if self.source is None:
            raise RuntimeError("an input that comes from nowhere")
        return self.source


class Session:
    """A circuit's state machine: nonces, counters, liveness; what both ends agree on.

    See the module for the contract.
    """

    def __init__(
        self,
        circuit_id: int,
        local: Description,
        *,
        remote: Endpoint | None,
        here: IPAddress | None = None,
        key: bytes | None,
        cookies: Cookies,
        randomness: random.Random,
        offer: PeerConfig | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Prepare a circuit of the configuration, or with a policy one that the remote set up.

        local.seen is filled in here, and local.own corrected where a message
        shows it. here: this end's address to seek the remote from, see
        set_remote. offer: what the remote shall get; with a policy, what the
        remote last asked for, where that was kept. In production randomness
        is a random.SystemRandom: nonces come from it.
        """
        self.circuit_id = circuit_id
        self.policy = policy
        self.ignored = 0
        """Messages that were stale, replayed, or of another session."""
        self.rtt_s: float | None = None
        self.last_heard_at: float | None = None
        self.agreement: Agreement | None = None
        self._local = local
        self._passive = policy is not None
        # What the remote shall get; of a passive end, what the remote wanted here.
        self._offer = PeerConfig() if offer is None else offer
        self._remote = remote
        self._here = here
        self._key = key
        self._cookies = cookies
        self._randomness = randomness
        self._state = State.IDLE
        self._link: _Link | None = None
        # In every cookie: with each new session, those given out before are void.
        self._binding = self._nonce()
        self._answers = TokenBucket(ANSWER_RATE, ANSWER_BURST)
        self._send_at: float | None = None
        self._expire_at: float | None = None
        self._renew_at: float | None = None
        self._renew_s = FIRST_RENEWAL_S
        # A request beside a session that the remote resumed with settings of before.
        self._renewal: _Link | None = None
        self._sent_at = 0.0
        self._outage_at = 0.0
        self._tries = self._tries_here = 0
        # How many there were when a remote was first heard that resumes.
        self._insisting_from: int | None = None
        self._repeat_s = REPEAT_S
        self._rejections = 0
        # The settings of this end are; that a circuit is disabled says nothing of them.
        self._refused = False
        self._confirm_repeat_s = CONFIRM_REPEAT_S
        self._close_reason = CloseReason.STOPPING
        # Why it is suspended, and with what the other end said of itself.
        self._obstacle = ""
        self._suspended_for: Description | None = None
        self._wrong_tag = False
        self._settled: tuple[Description, Description] | None = None
        self._outgoing: deque[Datagram] = deque()
        self._events: deque[Event] = deque()

    @property
    def state(self) -> State:
        return self._state

    @property
    def remote(self) -> Endpoint | None:
        """Where messages go: the session's endpoint, or where one is sought."""
        return self._remote if self._link is None else self._link.endpoint

    @property
    def here(self) -> IPAddress | None:
        """Return which of this end's addresses messages leave from; None: the kernel's choice."""
        return self._here if self._link is None else self._link.here

    @property
    def session_id(self) -> tuple[int, int] | None:
        """Both nonces, the smaller first, where both are known: the same for both ends."""
        link = self._link
        if link is None or not link.remote_nonce:
            return None
        low, high = sorted((link.local_nonce, link.remote_nonce))
        return low, high

    # What the caller wants.

    def start(self, now: float) -> None:
        """Look for the remote; also again, after the session was closed or suspended."""
        self._step(Input.START, now)

    def accept(self, requested: CircuitRequested, now: float) -> None:
        """Begin with the CONFIRM that the responder passed on, in place of start()."""
        self._step(Input.ACCEPT, now, requested.confirm, requested.source, requested.here)

    def close(self, reason: CloseReason, now: float) -> None:
        """Say goodbye. Closed follows within 1 s; who is in a hurry need not wait for it."""
        self._close_reason = reason
        self._step(Input.CLOSE_WANTED, now)

    def suspend(self, obstacle: str) -> None:
        """Carry nothing until start(): the other end goes down, and is refused with the obstacle.

        What it was to hear that was not handed over yet, and events not yet
        seen, are forgotten.
        """
        if self._state in (State.IDLE, State.CLOSING, State.CLOSED):
            return
        self._obstacle = obstacle
        if self._state is State.SUSPENDED:
            return
        self._outgoing.clear()
        self._events.clear()
        link = self._link
        self._suspended_for = None if link is None else link.remote
        if link is not None and link.remote_nonce:
            self._send_close(CloseReason.STOPPING, link)
        self._drop_link()
        self._state = State.SUSPENDED

    def set_remote(self, remote: Endpoint, now: float, here: IPAddress | None = None) -> None:
        """Say where the remote is now. A session that is up goes on where it is until it fails.

        here: this end's address to seek it from; None: whichever the kernel takes.
        """
        self._here = here
        if remote == self._remote:
            return
        self._remote = remote
        self._tries_here = 0
        if self._state is State.REQUESTING:
            self._hasten(now)

    def set_local(self, local: Description, now: float) -> None:
        """Say what changed at this end, as the MTU or the address; the remote is told at once."""
        if local == self._local:
            return
        self._local = local
        if self._state in (State.LINKED, State.UP):
            self._settle()
            self._send_keepalive(now)

    def retry(self, now: float) -> None:
        """Ask again now, where the next time was later."""
        if self._state in (State.REQUESTING, State.REJECTED):
            self._hasten(now)

    def probe(self, size: int, now: float) -> bool:
        """Send a PROBE of this size, in bytes of UDP payload; False: the session is not up."""
        link = self._link
        if link is None or self._state is not State.UP:
            return False
        message = Probe(self.circuit_id, link.local_nonce, link.remote_nonce, _count(link), size)
        self._send(message, link.endpoint, link.here, dont_fragment=True)
        return True

    # What happens.

    def receive_datagram(
        self, data: bytes, source: Endpoint, now: float, here: IPAddress | None = None
    ) -> None:
        """Take a control message about this circuit from the remote's address.

        here: this end's address that it came to, where that is known. It is
        answered from there; what comes of a CONFIRM or an ACKNOWLEDGE stays there.

        Raises RemoteProtocolError, to be counted; nothing has changed then.
        """
        try:
            message = decode(data, self._key)
        except RemoteProtocolError as err:
            self._wrong_tag = self._wrong_tag or err.reason == WRONG_TAG
            raise
        if message.circuit_id != self.circuit_id:
            raise RemoteProtocolError(MALFORMED, f"about circuit {message.circuit_id}")
        self.receive(message, source, now, here)

    def receive(
        self, message: Message, source: Endpoint, now: float, here: IPAddress | None = None
    ) -> None:
        """Take a message whose tag is right."""
        happened = self._classify(message, source, now)
        if happened is None:
            self.ignored += 1
            return
        self._step(happened, now, message, source, here)

    def handle_timer(self, now: float) -> None:
        """Do what is due; to be called at next_timer(), or somewhat later."""
        if self._expire_at is not None and self._expire_at <= now:
            self._expire_at = None
            self._step(Input.EXPIRED, now)
        if self._send_at is not None and self._send_at <= now:
            self._send_at = None
            self._step(Input.SEND_DUE, now)
        if self._renew_at is not None and self._renew_at <= now:
            self._renew_at = None
            self._step(Input.RENEWAL_DUE, now)

    def next_timer(self) -> float | None:
        """Return when to call handle_timer; ask again after every other call."""
        times = (self._send_at, self._expire_at, self._renew_at)
        return min((at for at in times if at is not None), default=None)

    def datagrams_to_send(self) -> list[Datagram]:
        """Hand over what is to be sent; each is there once."""
        sent = list(self._outgoing)
        self._outgoing.clear()
        return sent

    def next_event(self) -> Event | None:
        """Hand over the oldest event not yet seen."""
        return self._events.popleft() if self._events else None

    # Whose message it is.

    def _classify(self, message: Message, source: Endpoint, now: float) -> Input | None:
        """Return which input a message is; None: it changes nothing and is not answered."""
        link = self._link
        match message:
            case Request():
                asked = (link, self._renewal)
                reflected = any(each and message.sender_nonce == each.local_nonce for each in asked)
                if not source.port:  # forged: nothing can be sent back
                    return None
                if message.receiver_nonce or not message.sender_nonce or reflected:
                    return None
                return Input.REQUEST
            case Acknowledge():
                request = self._renewal or link
                expected = (
                    request is not None
                    and not request.remote_nonce
                    and message.receiver_nonce == request.local_nonce
                    and message.sender_nonce != 0
                )
                return Input.ACKNOWLEDGE if expected else None
            case Confirm():
                return self._classify_confirm(message, source, now)
            case Reject():
                return self._classify_reject(message)
        if link is None or not _advances(link, message):
            return None
        self._hear(link, message, now)
        return _INPUTS[type(message)]

    def _classify_confirm(self, message: Confirm, source: Endpoint, now: float) -> Input | None:
        link = self._link
        if link is not None and link.accepted and _belongs(link, message):
            if message.counter <= link.heard:
                return None
            self._hear(link, message, now)
            return Input.CONFIRM_AGAIN
        valid = self._cookies.check(
            message.receiver_nonce,
            source,
            self.circuit_id,
            message.sender_nonce,
            self._binding,
            now,
        )
        return Input.CONFIRM if valid else None

    def _classify_reject(self, message: Reject) -> Input | None:
        link = self._link
        if (
            link is None
            or link.accepted
            or message.receiver_nonce != link.local_nonce
            or message.counter > link.sent
        ):
            return None
        # The nonce is known to the remote alone, so nobody off the path can say this.
        lost = message.code == RejectCode.NO_SUCH_SESSION
        if lost != (self._state in (State.LINKED, State.UP, State.CLOSING)):
            return None
        return Input.REJECT

    def _hear(self, link: _Link, message: Message, now: float) -> None:
        link.heard = message.counter
        self.last_heard_at = now

    # Doing it.

    def _step(
        self,
        happened: Input,
        now: float,
        message: Message | None = None,
        source: Endpoint | None = None,
        here: IPAddress | None = None,
    ) -> None:
        action = _TABLE.get((self._state, happened))
        if action is None:
            raise RuntimeError(f"circuit {self.circuit_id}: {happened.name} in {self._state.name}")
        action(self, _Happening(now, message, source, here))

    def _ignore(self, what: _Happening) -> None:
        pass

    def _begin(self, what: _Happening) -> None:
        """Seek the remote, with a fresh nonce, from now on."""
        self._begin_outage(what.now)
        self._seek(what.now)

    def _begin_outage(self, now: float) -> None:
        self._outage_at = now
        self._tries = self._tries_here = 0
        self._insisting_from = None
        self._repeat_s = REPEAT_S

    def _seek(self, now: float) -> None:
        self._drop_link()
        self._state = State.REQUESTING
        self._send_at = now

    def _drop_link(self) -> None:
        """Forget the session, and all that was to be done in it."""
        self._link = self._renewal = None
        self._send_at = self._expire_at = self._renew_at = None

    def _send_request(self, what: _Happening) -> None:
        now = what.now
        if self._remote is None:
            return  # set_remote goes on
        if self._link is None:
            self._link = _Link(self._nonce(), 0, self._remote, self._here)
        link = self._link
        link.endpoint, link.here = self._remote, self._here
        self._tries += 1
        self._tries_here += 1
        if self._tries_here % UNANSWERED_TRIES == 0:
            self._events.append(Unanswered(self._silence(self._remote)))
        if self._tries % RESOLVE_TRIES == 0:
            self._events.append(ResolveWanted())
        self._request(link)
        self._sent_at = now
        self._send_at = now + self._next_repeat_s(now) * self._randomness.uniform(1 - JITTER, 1)

    def _request(self, link: _Link) -> None:
        request = Request(
            self.circuit_id,
            link.local_nonce,
            0,
            _count(link),
            self._description(link),
            self._offer,
            self._passive,
            PADDED_SIZE,
        )
        self._send(request, link.endpoint, link.here)

    def _next_repeat_s(self, now: float) -> float:
        if self._tries <= 1:
            return FIRST_REPEAT_S
        if now - self._outage_at >= EAGER_S:
            self._repeat_s = min(self._repeat_s * 2, LONGEST_REPEAT_S)
        return self._repeat_s

    def _silence(self, remote: Endpoint) -> str:
        if self._wrong_tag:
            return f"messages from {remote} carry a wrong tag: the keys of both ends differ"
        return (
            f"no answer from {remote}: no velad there, a firewall between, "
            "or its autoconfigure does not list this machine or has another key"
        )

    def _answer_request(self, what: _Happening) -> None:
        """Acknowledge, and forget it: nothing is kept before a CONFIRM brings the cookie back."""
        message, source = what.message_of(Request), what.whence
        if not self._answers.take(what.now):
            return
        cookie = self._cookies.issue(
            source, self.circuit_id, message.sender_nonce, self._binding, what.now
        )
        answer = Acknowledge(self.circuit_id, cookie, message.sender_nonce, message.counter)
        self._send(answer, source, what.here)

    def _yield_to_request(self, what: _Happening) -> None:
        """Both seek each other."""
        message = what.message_of(Request)
        if self._has_news_for(message):
            self._hasten(what.now)
        else:
            self._answer_request(what)

    def _has_news_for(self, message: Request | Confirm) -> bool:
        """Tell whether the remote, which resumes, should hear this end's settings instead.

        Not for long from when it is first heard: perhaps it can reach this
        end, and this end cannot reach it.
        """
        if not self._is_outdated(message) or self._remote is None:
            return False
        if self._insisting_from is None:
            self._insisting_from = self._tries
        return self._tries - self._insisting_from <= INSISTING_TRIES

    def _is_outdated(self, message: Request | Confirm) -> bool:
        """Tell whether the remote resumes what this end, which is configured, wants otherwise."""
        return (
            message.resuming
            and not self._passive
            and _on_the_wire(message.offer) != _on_the_wire(self._offer)
        )

    def _take_acknowledgement(self, what: _Happening) -> None:
        link = self._the_link()
        message = what.message_of(Acknowledge)
        self._renewal = self._renew_at = None
        link.remote_nonce = message.sender_nonce
        link.heard = message.counter
        link.proof = link.sent + 1
        link.here = what.here or link.here
        if link.endpoint.address != what.whence.address:
            # One that was asked before the present one, and is slow.
            link.endpoint = Endpoint(what.whence.address, link.endpoint.port)
        self._state = State.CONFIRMING
        self._expire_at = what.now + CONFIRM_TIMEOUT_S
        self._confirm_repeat_s = CONFIRM_REPEAT_S
        self._send_confirm(what)

    def _send_confirm(self, what: _Happening) -> None:
        link = self._the_link()
        confirm = Confirm(
            self.circuit_id,
            link.local_nonce,
            link.remote_nonce,
            _count(link),
            self._description(link),
            self._offer,
            self._passive,
            PADDED_SIZE,
        )
        self._send(confirm, link.endpoint, link.here)
        self._send_at = what.now + self._confirm_repeat_s
        self._confirm_repeat_s *= 2

    def _seek_again(self, what: _Happening) -> None:
        """Give up what did not come to be, and ask with a fresh nonce."""
        self._seek(what.now)

    def _yield_to_confirm(self, what: _Happening) -> None:
        """Take a session that the remote began, while this end sought one too."""
        message = what.message_of(Confirm)
        if self._has_news_for(message):
            self._decline(message, what.now)
            self._hasten(what.now)
        elif self._refused and self._is_outdated(message):
            self._refuse_outdated(what)
        else:
            self._take_confirm(what)

    def _take_confirm_while_rejected(self, what: _Happening) -> None:
        """Take no session with settings of before, or nobody would see that these are refused."""
        message = what.message_of(Confirm)
        if self._refused and self._is_outdated(message):
            self._refuse_outdated(what)
        elif message.resuming and not self._passive:  # it may not reject this end any more
            self._decline(message, what.now)
            self._hasten(what.now)
        else:
            self._take_confirm(what)

    def _refuse_outdated(self, what: _Happening) -> None:
        message = what.message_of(Confirm)
        refusal = rejection(
            message,
            message.size,
            RejectCode.OUTDATED,
            "the other end wants this circuit otherwise, and is refused that here",
        )
        self._send(refusal, what.whence, what.here)

    def _decline(self, message: Confirm, now: float) -> None:
        """Leave it unanswered for good: a copy that comes later must not start a session."""
        self._cookies.spend(message.receiver_nonce, now)

    def _settle_tie(self, what: _Happening) -> None:
        """Take the remote's session, or insist on this end's: both ends decide alike.

        Who configured the circuit goes before who resumes it; then the larger MAC address
        does, and not what is drawn anew with each attempt: one of before, which is of no
        use any more, would have it over the other end's time and again.
        """
        message = what.message_of(Confirm)
        ours = (not self._passive, self._local.mac, self._the_link().local_nonce)
        if (not message.resuming, message.description.mac, message.sender_nonce) > ours:
            self._take_confirm(what)
        else:
            self._decline(message, what.now)

    def _take_confirm(self, what: _Happening) -> None:
        """Begin the session that a CONFIRM with a good cookie asks for; it replaces any other."""
        message, source = what.message_of(Confirm), what.whence
        if self.policy is not None and not message.resuming:
            refused = self.policy.judge(message.description, message.offer)
            if refused is not None:
                refusal = rejection(message, message.size, refused.code, refused.text)
                self._send(refusal, source, what.here)
                return
            if message.offer != self._offer:
                # The cookie stays good, so that each repetition is answered.
                self._events.append(OfferChanged(CircuitRequested(source, message, what.here)))
                return
        if self._state is State.SUSPENDED and self._suspended_for in (None, message.description):
            refusal = rejection(message, message.size, RejectCode.FAILED, self._obstacle)
            self._send(refusal, source, what.here)
            return
        if self._state is State.UP:
            self._events.append(Down("the other end began anew"))
        self._adopt(what)

    def _adopt(self, what: _Happening) -> None:
        message, source = what.message_of(Confirm), what.whence
        if self._passive:
            self._remote, self._here = source, what.here
            if not message.resuming:
                self._offer = message.offer
        self._cookies.spend(message.receiver_nonce, what.now)
        self._link = _Link(
            message.receiver_nonce,
            message.sender_nonce,
            source,
            what.here,
            sent=message.counter,
            heard=message.counter,
            proof=message.counter + 1,
            accepted=True,
            remote=message.description,
        )
        self.last_heard_at = what.now
        self._enter_link(what.now)
        if self._is_outdated(message):
            self._renew_later(what.now)
        self._send_keepalive(what.now)

    def _renew_later(self, now: float) -> None:
        self._renew_at = now + self._renew_s * self._randomness.uniform(1 - JITTER, 1)
        self._renew_s = min(self._renew_s * 2, LONGEST_RENEWAL_S)

    def _renew(self, what: _Happening) -> None:
        """Ask for a session with this end's settings, beside the one that goes on meanwhile."""
        link = self._the_link()
        self._renewal = _Link(self._nonce(), 0, link.endpoint, link.here)
        self._request(self._renewal)
        self._renew_later(what.now)

    def _take_renewal(self, what: _Happening) -> None:
        """Give the session up for the new one, now that what this end asks is answered.

        Not before, or it would go up and down for ever where that is never so.
        """
        self._events.append(Down("the other end has settings of before, and gets the present ones"))
        self._begin_outage(what.now)
        self._link = self._renewal
        self._take_acknowledgement(what)

    def _enter_link(self, now: float) -> None:
        self._state = State.LINKED
        self._binding = self._nonce()
        self._rejections = 0
        self._refused = False
        self._wrong_tag = False
        self._renewal = self._renew_at = None
        self._expire_at = now + LINKED_TIMEOUT_S
        self._send_at = now + LINKED_REPEAT_S
        self.agreement = None
        self._settle()

    def _settle(self) -> None:
        link = self._the_link()
        if link.remote is None:
            return
        local = self._description(link)
        terms = (local, link.remote)
        if terms == self._settled and self.agreement is not None:
            return
        self._settled = terms
        agreement = agree(local, link.remote, link.endpoint)
        if agreement != self.agreement:
            self.agreement = agreement
            self._events.append(Agreed(agreement))

    def _confirm_again(self, what: _Happening) -> None:
        self._send_keepalive(what.now)

    def _be_linked(self, what: _Happening) -> None:
        """Take the first KEEPALIVE: the responder has set the session up."""
        link = self._the_link()
        link.remote = what.message_of(Keepalive).description
        self._renew_s = FIRST_RENEWAL_S
        self._enter_link(what.now)
        self._take_keepalive(what)

    def _take_keepalive(self, what: _Happening) -> None:
        now, message, link = what.now, what.message_of(Keepalive), self._the_link()
        link.remote = message.description
        link.clock_heard, link.clock_heard_at = message.timestamp, now
        if message.echo is not None and _microseconds(now) >= message.echo:
            self.rtt_s = (_microseconds(now) - message.echo) / 1e6
        self._settle()
        if self._state is State.LINKED and message.heard >= link.proof:
            self._state = State.UP
            self._events.append(Up())
            self._send_keepalive(now)
        elif not message.up and not link.remote_was_up:
            self._send_keepalive(now)
        if self._state is State.UP:
            self._expire_at = now + MISSED_INTERVALS * self._interval_s
        if message.up:
            link.remote_was_up = True
        elif link.remote_was_up:
            self._events.append(Down("the other end no longer hears this one"))
            self._lose(what)

    @property
    def _interval_s(self) -> float:
        if self.agreement is None:
            raise RuntimeError("no agreement in a session")
        return self.agreement.keepalive_s

    def _keep_alive(self, what: _Happening) -> None:
        self._send_keepalive(what.now)

    def _send_keepalive(self, now: float, *, farewell: bool = False) -> None:
        link = self._the_link()
        echo = None
        if link.clock_heard is not None:
            echo = link.clock_heard + _microseconds(now - link.clock_heard_at)
        up = self._state is State.UP and not farewell
        keepalive = Keepalive(
            self.circuit_id,
            link.local_nonce,
            link.remote_nonce,
            _count(link),
            self._description(link),
            link.heard,
            _microseconds(now),
            None if echo is None else echo & 0xFFFF_FFFF_FFFF_FFFF,
            up,
        )
        self._send(keepalive, link.endpoint, link.here)
        delay_s = LINKED_REPEAT_S
        if up:
            delay_s = self._interval_s * self._randomness.uniform(1 - KEEPALIVE_JITTER, 1)
        self._send_at = now + delay_s

    def _miss(self, what: _Happening) -> None:
        """Three keepalives are missing. Tell the remote: perhaps only one direction is dead."""
        interval_s = self._interval_s
        self._send_keepalive(what.now, farewell=True)
        self._events.append(
            Down(f"three keepalives missed in a row, {interval_s:g} s apart or less")
        )
        self._lose(what)

    def _lose(self, what: _Happening) -> None:
        self._events.append(ResolveWanted())
        self._begin(what)

    def _be_rejected(self, what: _Happening) -> None:
        message = what.message_of(Reject)
        self._events.append(Rejected(message.code, message.text or f"refused, code {message.code}"))
        self._drop_link()
        self._state = State.REJECTED
        self._refused = message.code != RejectCode.DISABLED
        delay_s = min(FIRST_REJECTED_S * 2 ** min(self._rejections, 8), LONGEST_REPEAT_S)
        self._rejections += 1
        self._send_at = what.now + delay_s * self._randomness.uniform(1 - JITTER, 1)

    def _be_forgotten(self, what: _Happening) -> None:
        """Begin anew with a remote that restarted, and lost the session."""
        if self._state is State.UP:
            self._events.append(Down("the other end lost the session"))
        self._begin(what)

    def _be_closed(self, what: _Happening) -> None:
        """Answer with the same, once, so that the remote need not repeat it."""
        message, link = what.message_of(Close), self._the_link()
        deleted = message.reason == CloseReason.DELETED
        self._send_close(CloseReason.DELETED if deleted else CloseReason.STOPPING, link)
        if deleted:
            self._end(by_remote=True)
            return
        if self._state is State.UP:
            self._events.append(Down("the other end is stopping"))
        self._begin(what)
        self._send_at = what.now + RESTART_PAUSE_S

    def _leave(self, what: _Happening) -> None:
        self._state = State.CLOSING
        self._renewal = self._renew_at = None
        self._expire_at = what.now + CLOSE_TIMEOUT_S
        self._repeat_close(what)

    def _repeat_close(self, what: _Happening) -> None:
        self._send_close(self._close_reason, self._the_link())
        self._send_at = what.now + CLOSE_REPEAT_S

    def _send_close(self, reason: CloseReason, link: _Link) -> None:
        message = Close(self.circuit_id, link.local_nonce, link.remote_nonce, _count(link), reason)
        self._send(message, link.endpoint, link.here)

    def _finish(self, what: _Happening) -> None:
        self._end(by_remote=False)

    def _end(self, *, by_remote: bool) -> None:
        self._drop_link()
        self._state = State.CLOSED
        self._events.append(Closed(by_remote))

    def _answer_probe(self, what: _Happening) -> None:
        link, message = self._the_link(), what.message_of(Probe)
        answer = ProbeReply(
            self.circuit_id, link.local_nonce, link.remote_nonce, _count(link), message.size
        )
        self._send(answer, link.endpoint, link.here)

    def _take_probe_reply(self, what: _Happening) -> None:
        self._events.append(ProbeAnswered(what.message_of(ProbeReply).size))

    # Small things.

    def _hasten(self, now: float) -> None:
        at = max(now, self._sent_at + CONFIRM_REPEAT_S)
        self._send_at = at if self._send_at is None else min(self._send_at, at)

    def _the_link(self) -> _Link:
        if self._link is None:
            raise RuntimeError(f"circuit {self.circuit_id}: {self._state.name} without a link")
        return self._link

    def _description(self, link: _Link) -> Description:
        """Return what this end says of itself to a remote that speaks to it where link says."""
        own = self._local.own
        if link.here is not None:
            own = Endpoint(link.here, self._local.port)
        return replace(self._local, own=own, seen=link.endpoint)

    def _nonce(self) -> int:
        return self._randomness.getrandbits(64) or 1

    def _send(
        self,
        message: Message,
        to: Endpoint,
        here: IPAddress | None,
        *,
        dont_fragment: bool = False,
    ) -> None:
        self._outgoing.append(Datagram(encode(message, self._key), to, here, dont_fragment))


def _count(link: _Link) -> int:
    link.sent += 1
    return link.sent


def _belongs(link: _Link, message: Message) -> bool:
    return (
        link.remote_nonce != 0
        and message.sender_nonce == link.remote_nonce
        and message.receiver_nonce == link.local_nonce
    )


def _advances(link: _Link, message: Message) -> bool:
    """Tell whether it is of this session, and neither a replay nor overtaken by a later one."""
    return _belongs(link, message) and message.counter > link.heard


def _on_the_wire(offer: PeerConfig) -> tuple[object, ...]:
    """Return what messages tell of it; addresses have no order there."""
    return offer.interface, frozenset(offer.addresses), offer.bridge, offer.mac


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)


_INPUTS: dict[type[Message], Input] = {
    Keepalive: Input.KEEPALIVE,
    Close: Input.CLOSE,
    Probe: Input.PROBE,
    ProbeReply: Input.PROBE_REPLY,
}

# All that can happen, and what is done; a pair that is not here is a bug of the caller's or
# of this module's, as _classify lets through only what fits the state.
_Action = Callable[[Session, _Happening], None]
_S, _I = State, Input
_TABLE: dict[tuple[State, Input], _Action] = {
    (_S.IDLE, _I.START): Session._begin,
    (_S.IDLE, _I.ACCEPT): Session._adopt,
    (_S.IDLE, _I.CLOSE_WANTED): Session._finish,
    (_S.IDLE, _I.REQUEST): Session._ignore,
    (_S.IDLE, _I.CONFIRM): Session._ignore,
    #
    (_S.REQUESTING, _I.CLOSE_WANTED): Session._finish,
    (_S.REQUESTING, _I.SEND_DUE): Session._send_request,
    (_S.REQUESTING, _I.REQUEST): Session._yield_to_request,
    (_S.REQUESTING, _I.ACKNOWLEDGE): Session._take_acknowledgement,
    (_S.REQUESTING, _I.CONFIRM): Session._yield_to_confirm,
    (_S.REQUESTING, _I.REJECT): Session._be_rejected,
    #
    (_S.CONFIRMING, _I.CLOSE_WANTED): Session._leave,
    (_S.CONFIRMING, _I.SEND_DUE): Session._send_confirm,
    (_S.CONFIRMING, _I.EXPIRED): Session._seek_again,
    (_S.CONFIRMING, _I.REQUEST): Session._answer_request,
    (_S.CONFIRMING, _I.CONFIRM): Session._settle_tie,
    (_S.CONFIRMING, _I.KEEPALIVE): Session._be_linked,
    (_S.CONFIRMING, _I.CLOSE): Session._be_closed,
    (_S.CONFIRMING, _I.REJECT): Session._be_rejected,
    (_S.CONFIRMING, _I.PROBE): Session._ignore,
    (_S.CONFIRMING, _I.PROBE_REPLY): Session._ignore,
    #
    (_S.REJECTED, _I.CLOSE_WANTED): Session._finish,
    (_S.REJECTED, _I.SEND_DUE): Session._begin,
    (_S.REJECTED, _I.REQUEST): Session._answer_request,
    (_S.REJECTED, _I.CONFIRM): Session._take_confirm_while_rejected,
    #
    (_S.LINKED, _I.CLOSE_WANTED): Session._leave,
    (_S.LINKED, _I.SEND_DUE): Session._keep_alive,
    (_S.LINKED, _I.EXPIRED): Session._begin,
    (_S.LINKED, _I.REQUEST): Session._answer_request,
    (_S.LINKED, _I.CONFIRM): Session._take_confirm,
    (_S.LINKED, _I.CONFIRM_AGAIN): Session._confirm_again,
    (_S.LINKED, _I.KEEPALIVE): Session._take_keepalive,
    (_S.LINKED, _I.CLOSE): Session._be_closed,
    (_S.LINKED, _I.REJECT): Session._be_forgotten,
    (_S.LINKED, _I.PROBE): Session._answer_probe,
    (_S.LINKED, _I.PROBE_REPLY): Session._ignore,
    #
    (_S.UP, _I.CLOSE_WANTED): Session._leave,
    (_S.UP, _I.SEND_DUE): Session._keep_alive,
    (_S.UP, _I.EXPIRED): Session._miss,
    (_S.UP, _I.RENEWAL_DUE): Session._renew,
    (_S.UP, _I.REQUEST): Session._answer_request,
    (_S.UP, _I.ACKNOWLEDGE): Session._take_renewal,
    (_S.UP, _I.CONFIRM): Session._take_confirm,
    (_S.UP, _I.CONFIRM_AGAIN): Session._confirm_again,
    (_S.UP, _I.KEEPALIVE): Session._take_keepalive,
    (_S.UP, _I.CLOSE): Session._be_closed,
    (_S.UP, _I.REJECT): Session._be_forgotten,
    (_S.UP, _I.PROBE): Session._answer_probe,
    (_S.UP, _I.PROBE_REPLY): Session._take_probe_reply,
    #
    (_S.SUSPENDED, _I.START): Session._begin,
    (_S.SUSPENDED, _I.CLOSE_WANTED): Session._finish,
    (_S.SUSPENDED, _I.REQUEST): Session._answer_request,
    (_S.SUSPENDED, _I.CONFIRM): Session._take_confirm,
    #
    (_S.CLOSING, _I.CLOSE_WANTED): Session._ignore,
    (_S.CLOSING, _I.SEND_DUE): Session._repeat_close,
    (_S.CLOSING, _I.EXPIRED): Session._finish,
    (_S.CLOSING, _I.REQUEST): Session._ignore,
    (_S.CLOSING, _I.CONFIRM): Session._ignore,
    (_S.CLOSING, _I.CONFIRM_AGAIN): Session._ignore,
    (_S.CLOSING, _I.KEEPALIVE): Session._ignore,
    (_S.CLOSING, _I.CLOSE): Session._finish,
    (_S.CLOSING, _I.REJECT): Session._finish,
    (_S.CLOSING, _I.PROBE): Session._ignore,
    (_S.CLOSING, _I.PROBE_REPLY): Session._ignore,
    #
    (_S.CLOSED, _I.START): Session._begin,
    (_S.CLOSED, _I.ACCEPT): Session._adopt,
    (_S.CLOSED, _I.CLOSE_WANTED): Session._ignore,
    (_S.CLOSED, _I.REQUEST): Session._ignore,
    (_S.CLOSED, _I.CONFIRM): Session._ignore,
}
