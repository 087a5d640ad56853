"""The state machine of one circuit, for either role. Pure: no sockets, no clock.

docs/protocol.md, section 4. The contract, after aioquic's:

    in    receive_datagram(data, source, now, local_address)   handle_timer(now)
          start, accept, suspend, close, probe, set_local, set_remote
    out   next_event()   datagrams_to_send()   next_timer()

now is monotonic seconds. After each call in, ask the outs: next_event() first, so that nothing is
announced that cannot be done (suspend), next_timer() last. local_address is the address of this
host that a datagram came to. Send from the listening socket, and from Datagram.local_address. A
daemon has one Cookies, one Responder, and a Session for each circuit:

    header = read_header(data)                    # RemoteProtocolError: count it
    session = sessions.get((source.address, header.circuit_id))
    if session is not None:
        session.receive_datagram(data, source, now, local_address)
    else:
        requested = responder.receive_datagram(data, source, now, ...)
        if requested is not None:                 # make the interface, or responder.reject(...)
            session = Session(requested.circuit_id, local, remote=None, key=key, cookies=cookies,
                              randomness=SystemRandom(), policy=policy)
            session.accept(requested, now)

For a circuit of the configuration: Session(..., offer=...), then start(). For one that a remote
set up, after a restart of this host: policy=, remote= its last address, offer= the settings that
were kept (requested.offer), then start(). It asks the remote to resume the session, and is back
before the remote has missed it.

Events, in the order in which they happen:

    Agreed(agreement)     MACs, MTU, elision, checksums, keepalive, NAT: before Up, and again when
                          the remote says that one of them changed
    Up                    carrier on
    Down(reason)          carrier off; the session seeks the remote again by itself
    ResolveWanted         look the name up, and call set_remote(endpoint)
    Unanswered(reason)    after every three requests: for the status, until the next event; call
                          set_remote(endpoint) if the remote has another address
    Rejected(code, text)  for the status; the session asks again later
    OfferChanged(requested)  the remote that set this circuit up wants other settings, and the
                          policy allows them: replace this session as above, or reject
    ProbeAnswered(size)
    Closed(by_remote)     the session is over, and its last datagrams are still to be sent.
                          by_remote: the remote deleted the circuit; delete it here too if the
                          remote set it up. start() begins again

In the status, REQUESTING, CONFIRMING and LINKED are "connecting" before the first Up and "down"
after a Down; REJECTED is "rejected", UP "up", CLOSED "disabled", SUSPENDED "failed".
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from vela.address import Endpoint, IPAddress
from vela.backoff import Jitter
from vela.errors import RemoteProtocolError
from vela.signaling import contention, events
from vela.signaling.agreement import Agreement
from vela.signaling.attempt import CONFIRM_TIMEOUT_S, Attempt
from vela.signaling.codec import MALFORMED, WRONG_TAG, decode, rejection
from vela.signaling.contention import Claim, Decision
from vela.signaling.cookie import Cookies
from vela.signaling.events import CircuitRequested, Datagram, Event
from vela.signaling.inputs import HANDSHAKE, AnyInput, Input, Received, State, classify
from vela.signaling.limiter import TokenBucket
from vela.signaling.link import Link
from vela.signaling.messages import (
    Acknowledge,
    Close,
    CloseReason,
    Confirm,
    Description,
    Keepalive,
    Message,
    MessageType,
    Offer,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.outbox import Outbox
from vela.signaling.policy import Policy

# A session that only one end may know of.
LINKED_REPEAT_S = 0.5
LINKED_TIMEOUT_S = 3.0

# The third keepalive in a row is missed after 3 intervals; half of one is for delay, and both
# ends must have noticed within 4.
MISSED_INTERVALS = 3.5
KEEPALIVE_JITTER = 0.1

CLOSE_REPEAT_S = 0.2
CLOSE_TIMEOUT_S = 1.0
RESTART_PAUSE_S = 1.0  # a remote that stops is not asked before

# Answers to REQUESTs. An honest remote sends one each second, but without a key anybody can forge
# them: fewer answers would let a few hundred forgeries a second keep a remote out.
ANSWER_RATE, ANSWER_BURST = 300.0, 300.0


class Session:
    """A circuit's session with its remote: nonces, liveness, and what both ends agree on."""

    def __init__(
        self,
        circuit_id: int,
        local: Description,
        *,
        remote: Endpoint | None,
        local_address: IPAddress | None = None,
        key: bytes | None,
        cookies: Cookies,
        randomness: random.Random,
        offer: Offer | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Prepare a circuit of the configuration, or with a policy one that the remote set up.

        local.seen is filled in here, and local.own corrected by what messages
        show. local_address: see set_remote. offer: the settings for the
        remote's end; with a policy, those that the remote last wanted here, if
        they were kept. Nonces come from randomness: in production it is a
        random.SystemRandom.
        """
        self.circuit_id = circuit_id
        self.policy = policy
        self.ignored = 0
        """Messages that were stale, replayed, or of another session."""
        self.rtt_s: float | None = None
        self.last_heard_at: float | None = None
        self._local = local
        self._passive = policy is not None
        self._offer = Offer() if offer is None else offer
        self._remote = remote
        self._local_address = local_address
        self._key = key
        self._cookies = cookies
        self._randomness = randomness
        self._keepalive_jitter = Jitter(randomness, shorter=KEEPALIVE_JITTER)
        self._attempt = Attempt(randomness)
        self._state = State.IDLE
        self._link: Link | None = None
        # A request beside a session that the remote resumed with outdated settings.
        self._renewal: Link | None = None
        # A part of every cookie: with each new session, those issued before are void.
        self._binding = self._nonce()
        self._answers = TokenBucket(ANSWER_RATE, ANSWER_BURST)
        self._due: dict[Input, float] = {}
        self._close_reason = CloseReason.STOPPING
        # Why it is suspended, and how the remote described itself then.
        self._obstacle = ""
        self._suspended_for: Description | None = None
        self._outbox = Outbox(key)
        self._events: deque[Event] = deque()

    @property
    def state(self) -> State:
        return self._state

    @property
    def remote(self) -> Endpoint | None:
        """Where messages go: the endpoint of the session, or the one that is asked."""
        return self._remote if self._link is None else self._link.endpoint

    @property
    def local_address(self) -> IPAddress | None:
        """The address of this host that messages leave from; None: the kernel chooses."""
        return self._local_address if self._link is None else self._link.local_address

    @property
    def local_nonces(self) -> tuple[int, ...]:
        """What the remote puts into its messages, except to ask: the nonces of this end."""
        return tuple(link.local_nonce for link in (self._link, self._renewal) if link is not None)

    @property
    def agreement(self) -> Agreement | None:
        """What both ends agreed on in this session."""
        return None if self._link is None else self._link.agreement

    # Calls of the owner.

    def start(self, now: float) -> None:
        """Seek the remote; also again, after the session was closed or suspended."""
        self._step(Input.START, Received(now))

    def accept(self, requested: CircuitRequested, now: float) -> None:
        """Begin with the CONFIRM that the responder passed on, in place of start()."""
        received = Received(now, requested.confirm, requested.source, requested.local_address)
        self._step(Input.ACCEPT, received)

    def close(self, reason: CloseReason, now: float) -> None:
        """Say goodbye. Closed follows within 1 s; nobody has to wait for it."""
        self._close_reason = reason
        self._step(Input.CLOSE_WANTED, Received(now))

    def suspend(self, obstacle: str) -> None:
        """Carry nothing until start(): the remote goes down, and is refused with the obstacle.

        Datagrams and events that were not handed over yet are forgotten.
        """
        if self._state in (State.IDLE, State.CLOSING, State.CLOSED):
            return
        self._obstacle = obstacle
        if self._state is State.SUSPENDED:
            return
        self._outbox.clear()
        self._events.clear()
        link = self._link
        self._suspended_for = None if link is None else link.remote_description
        if link is not None and link.remote_nonce:
            self._send(link.close(CloseReason.STOPPING), link)
        self._drop_link()
        self._state = State.SUSPENDED

    def set_remote(
        self, remote: Endpoint, now: float, local_address: IPAddress | None = None
    ) -> None:
        """Say where the remote is now. A session that is up stays where it is until it fails.

        local_address: the address of this host to ask from; None: the kernel chooses.
        """
        self._local_address = local_address
        if remote == self._remote:
            return
        self._remote = remote
        self._attempt.change_endpoint()
        if self._state is State.REQUESTING:
            self._send_soon(now)

    def set_local(self, local: Description, now: float) -> None:
        """Say what changed at this end, such as the MTU; the remote is told at once."""
        if local == self._local:
            return
        self._local = local
        if self._state in (State.LINKED, State.UP):
            self._settle()
            self._send_keepalive(now)

    def probe(self, size: int) -> bool:
        """Send a PROBE of this size, in bytes of UDP payload; False: the session is not up."""
        link = self._link
        if link is None or self._state is not State.UP:
            return False
        self._send(link.probe(size), link, dont_fragment=True)
        return True

    # Datagrams and time.

    def receive_datagram(
        self, data: bytes, source: Endpoint, now: float, local_address: IPAddress | None = None
    ) -> None:
        """Take a control message about this circuit from an address of the remote's.

        local_address: the address of this host that it came to, where that is
        known. The answer leaves from there, and so does all of a session from
        where its CONFIRM or ACKNOWLEDGE came to. Raises RemoteProtocolError,
        to be counted; nothing has changed then.
        """
        try:
            message = decode(data, self._key)
        except RemoteProtocolError as err:
            self._attempt.wrong_tag |= err.reason == WRONG_TAG
            raise
        if message.circuit_id != self.circuit_id:
            raise RemoteProtocolError(MALFORMED, f"about circuit {message.circuit_id}")
        self.receive(message, source, now, local_address)

    def receive(
        self, message: Message, source: Endpoint, now: float, local_address: IPAddress | None = None
    ) -> None:
        """Take a message whose tag is right."""
        received = Received(now, message, source, local_address)
        found = classify(received, self._state, self._link, self._renewal, self._has_valid_cookie)
        if found is None:
            self.ignored += 1
            return
        if self._link is not None and found not in HANDSHAKE:
            self._link.heard = message.counter
            self.last_heard_at = now
        self._step(found, received)

    def handle_timer(self, now: float) -> None:
        """Do what is due; to be called at next_timer() or later."""
        for timer in (Input.EXPIRED, Input.SEND_DUE, Input.RENEWAL_DUE):
            if timer in self._due and self._due[timer] <= now:
                del self._due[timer]
                self._step(timer, Received(now))

    def next_timer(self) -> float | None:
        """Return when to call handle_timer; ask again after every other call."""
        return min(self._due.values(), default=None)

    def datagrams_to_send(self) -> list[Datagram]:
        """Hand over what is to be sent; each is handed over once."""
        return self._outbox.take_all()

    def next_event(self) -> Event | None:
        """Hand over the oldest event."""
        return self._events.popleft() if self._events else None

    # Dispatch.

    def _step(self, happened: AnyInput, received: Received) -> None:
        action = _TABLE.get((self._state, happened))
        if action is None:
            raise RuntimeError(f"circuit {self.circuit_id}: {happened.name} in {self._state.name}")
        action(self, received)

    def _has_valid_cookie(self, received: Received) -> bool:
        message = received.message_of(Confirm)
        return self._cookies.check(message, received.source, self._binding, received.now)

    def _ignore(self, received: Received) -> None:
        pass

    # Seeking the remote.

    def _begin(self, received: Received) -> None:
        """Seek the remote, with a fresh nonce, from now on."""
        self._attempt.begin(received.now)
        self._seek(received)

    def _seek(self, received: Received) -> None:
        """Ask with a fresh nonce, in the same attempt."""
        self._drop_link()
        self._state = State.REQUESTING
        self._due[Input.SEND_DUE] = received.now

    def _send_request(self, received: Received) -> None:
        attempt = self._attempt
        if self._remote is None:
            return  # set_remote goes on
        if self._link is None:
            self._link = Link(self.circuit_id, self._nonce(), 0, self._remote, self._local_address)
        link = self._link
        link.endpoint, link.local_address = self._remote, self._local_address
        self._due[Input.SEND_DUE] = received.now + attempt.count_request(received.now)
        if attempt.is_unanswered:
            self._events.append(events.Unanswered(attempt.unanswered_reason(self._remote)))
        if attempt.wants_lookup:
            self._events.append(events.ResolveWanted())
        self._send(link.request(self._local, self._offer, self._passive), link)

    def _take_acknowledge(self, received: Received) -> None:
        link = self._the_link()
        self._drop_renewal()
        link.acknowledge(received.message_of(Acknowledge), received.source, received.local_address)
        self._state = State.CONFIRMING
        self._due[Input.EXPIRED] = received.now + CONFIRM_TIMEOUT_S
        self._attempt.begin_confirming()
        self._send_confirm(received)

    def _send_confirm(self, received: Received) -> None:
        link = self._the_link()
        self._send(link.confirm(self._local, self._offer, self._passive), link)
        self._due[Input.SEND_DUE] = received.now + self._attempt.confirm_delay_s()

    def _on_reject(self, received: Received) -> None:
        message = received.message_of(Reject)
        self._events.append(
            events.Rejected(message.code, message.text or f"refused, code {message.code}")
        )
        self._drop_link()
        self._state = State.REJECTED
        # A disabled circuit says nothing about the settings.
        self._attempt.refused = message.code != RejectCode.DISABLED
        self._due[Input.SEND_DUE] = received.now + self._attempt.rejected_delay_s()

    def _send_soon(self, now: float) -> None:
        """Send the next REQUEST now, or as soon after the last one as is allowed."""
        at = self._attempt.earliest_request(now)
        self._due[Input.SEND_DUE] = min(self._due.get(Input.SEND_DUE, at), at)

    # Answering a remote that seeks this end.

    def _acknowledge(self, received: Received) -> None:
        """Answer a REQUEST, and store nothing before a CONFIRM brings the cookie back."""
        message = received.message_of(Request)
        if not self._answers.take(received.now):
            return
        answer = self._cookies.acknowledge(message, received.source, self._binding, received.now)
        self._answer(answer, received)

    def _on_request_while_requesting(self, received: Received) -> None:
        if self._insists(received.message_of(Request)):
            self._send_soon(received.now)
        else:
            self._acknowledge(received)

    def _on_confirm_while_requesting(self, received: Received) -> None:
        message = received.message_of(Confirm)
        decision = contention.on_confirm_while_requesting(
            insists=self._insists(message),
            outdated=self._is_outdated(message),
            refused=self._attempt.refused,
        )
        self._carry_out(decision, received)

    def _resolve_collision(self, received: Received) -> None:
        ours = Claim(not self._passive, self._local.mac, self._the_link().local_nonce)
        theirs = Claim.of(received.message_of(Confirm))
        self._carry_out(contention.on_confirm_while_confirming(ours, theirs), received)

    def _on_confirm_while_rejected(self, received: Received) -> None:
        message = received.message_of(Confirm)
        decision = contention.on_confirm_while_rejected(
            outdated=self._is_outdated(message),
            refused=self._attempt.refused,
            resumes_ours=message.resuming and not self._passive,
        )
        self._carry_out(decision, received)

    def _carry_out(self, decision: Decision, received: Received) -> None:
        match decision:
            case Decision.TAKE:
                self._take_confirm(received)
            case Decision.REFUSE:
                self._refuse(received, RejectCode.OUTDATED, contention.OUTDATED_TEXT)
            case Decision.DECLINE | Decision.ASK:
                # A copy that comes later must not begin a session.
                self._cookies.spend(received.message_of(Confirm), received.now)
                if decision is Decision.ASK:
                    self._send_soon(received.now)

    def _insists(self, message: Request | Confirm) -> bool:
        """Tell whether the remote resumes, and should hear this end's settings instead."""
        if not self._is_outdated(message) or self._remote is None:
            return False
        return self._attempt.insists()

    def _is_outdated(self, message: Request | Confirm) -> bool:
        return not self._passive and contention.is_outdated(message, self._offer)

    def _take_confirm(self, received: Received) -> None:
        """Begin the session that a CONFIRM with a valid cookie asks for; it replaces any other."""
        message = received.message_of(Confirm)
        if self.policy is not None and not message.resuming:
            source = received.source.address
            refused = self.policy.judge(message.description, message.offer, source)
            if refused is not None:
                self._refuse(received, refused.code, refused.text)
                return
            if message.offer != self._offer:
                # The cookie stays valid, so that each repetition is answered.
                requested = CircuitRequested(received.source, message, received.local_address)
                self._events.append(events.OfferChanged(requested))
                return
        if self._state is State.SUSPENDED and self._suspended_for in (None, message.description):
            self._refuse(received, RejectCode.FAILED, self._obstacle)
            return
        self._tell_down("the other end began a new session")
        self._adopt(received)

    def _adopt(self, received: Received) -> None:
        """Begin the session of a CONFIRM, without a judgement."""
        message = received.message_of(Confirm)
        if self._passive:
            self._remote, self._local_address = received.source, received.local_address
            if not message.resuming:
                self._offer = message.offer
        self._cookies.spend(message, received.now)
        self._link = Link.accept(message, received.source, received.local_address)
        self.last_heard_at = received.now
        self._enter_link(received.now)
        if self._is_outdated(message):
            self._due[Input.RENEWAL_DUE] = received.now + self._attempt.renewal_delay_s()
        self._send_keepalive(received.now)

    def _refuse(self, received: Received, code: RejectCode, text: str) -> None:
        message = received.message_of(Confirm)
        self._answer(rejection(message, message.size, code, text), received)

    # Having a session.

    def _enter_link(self, now: float) -> None:
        self._state = State.LINKED
        self._binding = self._nonce()
        self._attempt.succeed()
        self._drop_renewal()
        self._due[Input.EXPIRED] = now + LINKED_TIMEOUT_S
        self._due[Input.SEND_DUE] = now + LINKED_REPEAT_S
        self._settle()

    def _settle(self) -> None:
        """Agree with the remote, and tell if anything changed."""
        agreement = self._the_link().settle(self._local)
        if agreement is not None:
            self._events.append(events.Agreed(agreement))

    def _on_first_keepalive(self, received: Received) -> None:
        """Enter the session: the KEEPALIVE shows that the responder has it."""
        link = self._the_link()
        link.remote_description = received.message_of(Keepalive).description
        self._attempt.end_renewals()
        self._enter_link(received.now)
        self._on_keepalive(received)

    def _on_keepalive(self, received: Received) -> None:
        now, message, link = received.now, received.message_of(Keepalive), self._the_link()
        rtt_s = link.take_keepalive(message, now)
        self.rtt_s = self.rtt_s if rtt_s is None else rtt_s
        self._settle()
        if self._state is State.LINKED and message.heard >= link.proof:
            self._state = State.UP
            self._events.append(events.Up())
            self._send_keepalive(now)
        elif not message.up and not link.remote_was_up:
            self._send_keepalive(now)
        if self._state is State.UP:
            self._due[Input.EXPIRED] = now + MISSED_INTERVALS * link.keepalive_s
        if message.up:
            link.remote_was_up = True
        elif link.remote_was_up:
            self._on_loss("the other end no longer hears this one", received)

    def _keep_alive(self, received: Received) -> None:
        self._send_keepalive(received.now)

    def _send_keepalive(self, now: float, *, farewell: bool = False) -> None:
        link = self._the_link()
        up = self._state is State.UP and not farewell
        self._send(link.keepalive(self._local, now, up=up), link)
        delay_s = self._keepalive_jitter.apply(link.keepalive_s) if up else LINKED_REPEAT_S
        self._due[Input.SEND_DUE] = now + delay_s

    def _answer_probe(self, received: Received) -> None:
        link = self._the_link()
        self._send(link.probe_reply(received.message_of(Probe).size), link)

    def _on_probe_reply(self, received: Received) -> None:
        self._events.append(events.ProbeAnswered(received.message_of(ProbeReply).size))

    def _renew(self, received: Received) -> None:
        """Ask for a session with this end's settings; the present one goes on meanwhile."""
        link = self._the_link()
        self._renewal = Link(self.circuit_id, self._nonce(), 0, link.endpoint, link.local_address)
        self._send(self._renewal.request(self._local, self._offer, self._passive), self._renewal)
        self._due[Input.RENEWAL_DUE] = received.now + self._attempt.renewal_delay_s()

    def _take_renewal(self, received: Received) -> None:
        """Give the session up for the new one, now that the remote has answered.

        Not before: if no answer ever comes, the circuit would go up and down for ever.
        """
        self._tell_down("the other end has outdated settings, and gets the present ones")
        self._attempt.begin(received.now)
        self._link = self._renewal
        self._take_acknowledge(received)

    # Losing it.

    def _on_timeout(self, received: Received) -> None:
        """Tell the remote that three keepalives are missing: one direction may still work."""
        interval_s = self._the_link().keepalive_s
        self._send_keepalive(received.now, farewell=True)
        self._on_loss(f"three keepalives missed in a row, {interval_s:g} s apart or less", received)

    def _on_loss(self, reason: str, received: Received) -> None:
        self._tell_down(reason)
        self._events.append(events.ResolveWanted())
        self._begin(received)

    def _tell_down(self, reason: str) -> None:
        if self._state is State.UP:
            self._events.append(events.Down(reason))

    def _on_unknown_session(self, received: Received) -> None:
        """Begin anew: the remote restarted, and lost the session."""
        self._tell_down("the other end lost the session")
        self._begin(received)

    def _on_close(self, received: Received) -> None:
        """Answer with the same, once, so that the remote need not repeat it."""
        message, link = received.message_of(Close), self._the_link()
        deleted = message.reason == CloseReason.DELETED
        self._send(link.close(CloseReason.DELETED if deleted else CloseReason.STOPPING), link)
        if deleted:
            self._end(by_remote=True)
            return
        self._tell_down("the other end is stopping")
        self._begin(received)
        self._due[Input.SEND_DUE] = received.now + RESTART_PAUSE_S

    def _leave(self, received: Received) -> None:
        self._state = State.CLOSING
        self._drop_renewal()
        self._due[Input.EXPIRED] = received.now + CLOSE_TIMEOUT_S
        self._send_close(received)

    def _send_close(self, received: Received) -> None:
        link = self._the_link()
        self._send(link.close(self._close_reason), link)
        self._due[Input.SEND_DUE] = received.now + CLOSE_REPEAT_S

    def _finish(self, received: Received) -> None:
        self._end(by_remote=False)

    def _end(self, *, by_remote: bool) -> None:
        self._drop_link()
        self._state = State.CLOSED
        self._events.append(events.Closed(by_remote))

    def _drop_link(self) -> None:
        """Forget the session, and all that was to be done in it."""
        self._link = self._renewal = None
        self._due.clear()

    def _drop_renewal(self) -> None:
        self._renewal = None
        self._due.pop(Input.RENEWAL_DUE, None)

    # Parts of the above.

    def _the_link(self) -> Link:
        if self._link is None:
            raise RuntimeError(f"circuit {self.circuit_id}: {self._state.name} without a link")
        return self._link

    def _nonce(self) -> int:
        return self._randomness.getrandbits(64) or 1

    def _send(self, message: Message, link: Link, *, dont_fragment: bool = False) -> None:
        self._outbox.put(message, link.endpoint, link.local_address, dont_fragment=dont_fragment)

    def _answer(self, message: Message, received: Received) -> None:
        self._outbox.put(message, received.source, received.local_address)


# All that can happen, and what is done. A pair that is not here is a bug of the caller's or of
# this module's: classify lets through only the messages that fit the state.
_Action = Callable[[Session, Received], None]
_S, _I, _M = State, Input, MessageType
_TABLE: dict[tuple[State, AnyInput], _Action] = {
    (_S.IDLE, _I.START): Session._begin,
    (_S.IDLE, _I.ACCEPT): Session._adopt,
    (_S.IDLE, _I.CLOSE_WANTED): Session._finish,
    (_S.IDLE, _M.REQUEST): Session._ignore,
    (_S.IDLE, _M.CONFIRM): Session._ignore,
    #
    (_S.REQUESTING, _I.CLOSE_WANTED): Session._finish,
    (_S.REQUESTING, _I.SEND_DUE): Session._send_request,
    (_S.REQUESTING, _M.REQUEST): Session._on_request_while_requesting,
    (_S.REQUESTING, _M.ACKNOWLEDGE): Session._take_acknowledge,
    (_S.REQUESTING, _M.CONFIRM): Session._on_confirm_while_requesting,
    (_S.REQUESTING, _M.REJECT): Session._on_reject,
    #
    (_S.CONFIRMING, _I.CLOSE_WANTED): Session._leave,
    (_S.CONFIRMING, _I.SEND_DUE): Session._send_confirm,
    (_S.CONFIRMING, _I.EXPIRED): Session._seek,
    (_S.CONFIRMING, _M.REQUEST): Session._acknowledge,
    (_S.CONFIRMING, _M.CONFIRM): Session._resolve_collision,
    (_S.CONFIRMING, _M.KEEPALIVE): Session._on_first_keepalive,
    (_S.CONFIRMING, _M.CLOSE): Session._on_close,
    (_S.CONFIRMING, _M.REJECT): Session._on_reject,
    (_S.CONFIRMING, _M.PROBE): Session._ignore,
    (_S.CONFIRMING, _M.PROBE_REPLY): Session._ignore,
    #
    (_S.REJECTED, _I.CLOSE_WANTED): Session._finish,
    (_S.REJECTED, _I.SEND_DUE): Session._begin,
    (_S.REJECTED, _M.REQUEST): Session._acknowledge,
    (_S.REJECTED, _M.CONFIRM): Session._on_confirm_while_rejected,
    #
    (_S.LINKED, _I.CLOSE_WANTED): Session._leave,
    (_S.LINKED, _I.SEND_DUE): Session._keep_alive,
    (_S.LINKED, _I.EXPIRED): Session._begin,
    (_S.LINKED, _M.REQUEST): Session._acknowledge,
    (_S.LINKED, _M.CONFIRM): Session._take_confirm,
    (_S.LINKED, _I.CONFIRM_AGAIN): Session._keep_alive,
    (_S.LINKED, _M.KEEPALIVE): Session._on_keepalive,
    (_S.LINKED, _M.CLOSE): Session._on_close,
    (_S.LINKED, _M.REJECT): Session._on_unknown_session,
    (_S.LINKED, _M.PROBE): Session._answer_probe,
    (_S.LINKED, _M.PROBE_REPLY): Session._ignore,
    #
    (_S.UP, _I.CLOSE_WANTED): Session._leave,
    (_S.UP, _I.SEND_DUE): Session._keep_alive,
    (_S.UP, _I.EXPIRED): Session._on_timeout,
    (_S.UP, _I.RENEWAL_DUE): Session._renew,
    (_S.UP, _M.REQUEST): Session._acknowledge,
    (_S.UP, _M.ACKNOWLEDGE): Session._take_renewal,
    (_S.UP, _M.CONFIRM): Session._take_confirm,
    (_S.UP, _I.CONFIRM_AGAIN): Session._keep_alive,
    (_S.UP, _M.KEEPALIVE): Session._on_keepalive,
    (_S.UP, _M.CLOSE): Session._on_close,
    (_S.UP, _M.REJECT): Session._on_unknown_session,
    (_S.UP, _M.PROBE): Session._answer_probe,
    (_S.UP, _M.PROBE_REPLY): Session._on_probe_reply,
    #
    (_S.SUSPENDED, _I.START): Session._begin,
    (_S.SUSPENDED, _I.CLOSE_WANTED): Session._finish,
    (_S.SUSPENDED, _M.REQUEST): Session._acknowledge,
    (_S.SUSPENDED, _M.CONFIRM): Session._take_confirm,
    #
    (_S.CLOSING, _I.CLOSE_WANTED): Session._ignore,
    (_S.CLOSING, _I.SEND_DUE): Session._send_close,
    (_S.CLOSING, _I.EXPIRED): Session._finish,
    (_S.CLOSING, _M.REQUEST): Session._ignore,
    (_S.CLOSING, _M.CONFIRM): Session._ignore,
    (_S.CLOSING, _I.CONFIRM_AGAIN): Session._ignore,
    (_S.CLOSING, _M.KEEPALIVE): Session._ignore,
    (_S.CLOSING, _M.CLOSE): Session._finish,
    (_S.CLOSING, _M.REJECT): Session._finish,
    (_S.CLOSING, _M.PROBE): Session._ignore,
    (_S.CLOSING, _M.PROBE_REPLY): Session._ignore,
    #
    (_S.CLOSED, _I.START): Session._begin,
    (_S.CLOSED, _I.ACCEPT): Session._adopt,
    (_S.CLOSED, _I.CLOSE_WANTED): Session._ignore,
    (_S.CLOSED, _M.REQUEST): Session._ignore,
    (_S.CLOSED, _M.CONFIRM): Session._ignore,
}
