"""The state machine of one circuit, for either role. Pure: no sockets, no clock.

docs/protocol.md, section 4. The contract, after aioquic's:

    in    receive_datagram(data, source, now, local_address)   handle_timer(now)
          start, accept, suspend, close, probe, set_local, await_heard, set_remotes, set_policy
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

The events, and what each of them asks for, are in events.py.

In the status, REQUESTING, CONFIRMING and LINKED are "connecting" before the first Up and "down"
after a Down; REJECTED is "rejected", UP "up", CLOSED "disabled", SUSPENDED "failed".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TypeVar

from vela.address import Endpoint, IPAddress
from vela.reasons import Cause, Reason
from vela.signaling import adjacency, contention, events
from vela.signaling.acceptor import Accepted, Acceptor
from vela.signaling.adjacency import Adjacency
from vela.signaling.admission import Admission
from vela.signaling.agreement import Agreement
from vela.signaling.answers import Answers
from vela.signaling.attempt import Asked
from vela.signaling.caller import Caller
from vela.signaling.candidates import Candidate
from vela.signaling.codec import transcript
from vela.signaling.contention import Claim, Decision
from vela.signaling.continuation import Continuation, continuation_of
from vela.signaling.cookie import Cookies
from vela.signaling.encryption import Encryption
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import CircuitRequested, Datagram, Event
from vela.signaling.frame_keys import FrameKeys
from vela.signaling.generations import EncryptionStatus
from vela.signaling.goodbye import Goodbye
from vela.signaling.inbox import Inbox
from vela.signaling.inputs import HANDSHAKE_TYPES, AnyInput, Input, Received, State, classify
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import (
    CloseReason,
    Confirm,
    Description,
    Keepalive,
    Message,
    MessageType,
    Offer,
    RejectCode,
    Request,
)
from vela.signaling.policy import Policy, Rejection
from vela.signaling.remote_port import RemotePort
from vela.signaling.renewal import SEAMLESS, Purpose
from vela.signaling.renewer import Renewer
from vela.signaling.seeker import Seeker
from vela.signaling.session_cipher import SessionCipher
from vela.signaling.signer import Key
from vela.signaling.variables import SessionVariables


class Session:
    """A circuit's session with its remote: nonces, liveness, and what both ends agree on."""

    def __init__(
        self,
        circuit_id: int,
        local: Description,
        *,
        remote: Endpoint | None,
        local_address: IPAddress | None = None,
        key: Key | None,
        cookies: Cookies,
        randomness: random.Random,
        offer: Offer | None = None,
        policy: Policy | None = None,
        machine: bytes | None = None,
        maker: bytes | None = None,
        frame_keys: FrameKeys | None = None,
        echoes_arrived: Callable[[], int] | None = None,
    ) -> None:
        """Prepare a circuit of the configuration, or with a policy one that the remote set up.

        local.seen is filled in here, and local.own corrected by what messages
        show. local_address: see Candidate. offer: the settings for the
        remote's end; with a policy, those that the remote last wanted here, if
        they were kept. machine: what tells this machine from others, where it
        sets the circuit up. maker: with a policy, which machine set it up, by
        identity.maker_of; None: not known. Nonces come from randomness: in production it is a
        random.SystemRandom. frame_keys: of an encrypted circuit; None: it is not encrypted.
        echoes_arrived: how many echo requests have reached this end's worker, modulo 2**64; None:
        the remote is not told.
        """
        self.circuit_id = circuit_id
        self.ignored = 0
        """Messages that were stale, replayed, or of another session."""
        self._vars = SessionVariables(circuit_id)
        self._admission = Admission(policy, maker)
        self._remote_port = RemotePort()
        self._local = LocalEnd(
            local,
            Offer() if offer is None else offer,
            passive=policy is not None,
            machine=machine,
            key=key,
            cipher=None if frame_keys is None else SessionCipher(frame_keys),
        )
        self._events = EventQueue()
        self._seeker = Seeker(self._vars, self._local, cookies.nonces, self._events, randomness)
        if remote is not None:
            self._seeker.stay_with(Candidate(remote, local_address))
        self._nonces = cookies.nonces
        self._answers = Answers(cookies, randomness)
        self._acceptor = Acceptor(
            self._vars, self._local, self._admission, self._answers, cookies.nonces, self._events
        )
        self._due = self._vars.due
        self._renewer = Renewer(self._vars, self._local, cookies.nonces, randomness)
        self._adjacency = Adjacency(
            self._vars,
            self._local,
            self._renewer,
            self._remote_port,
            self._events,
            randomness,
            echoes_arrived=echoes_arrived,
            lose=self._lose,
        )
        self._goodbye = Goodbye(self._vars, self._local, self._seeker, self._acceptor, self._events)
        self._inbox = Inbox(
            self._vars,
            self._local,
            cookies.nonces,
            self._remote_port,
            self._seeker,
            self._acceptor,
            self._renewer,
        )

    @property
    def state(self) -> State:
        return self._vars.state

    @property
    def rtt_s(self) -> float | None:
        return self._vars.rtt_s

    @property
    def last_heard_at(self) -> float | None:
        return self._vars.last_heard_at

    @property
    def remote(self) -> Endpoint | None:
        """Where messages go: the endpoint of the session, or the one that is asked."""
        if self._link is not None:
            return self._link.endpoint
        first = self._seeker.first
        return None if first is None else first.endpoint

    @property
    def local_address(self) -> IPAddress | None:
        """The address of this host that messages leave from; None: the kernel chooses."""
        if self._link is not None:
            return self._link.local_address
        first = self._seeker.first
        return None if first is None else first.local_address

    @property
    def local_nonces(self) -> tuple[int, ...]:
        """What the remote puts into its messages, except to ask: the nonces of this end."""
        return self._vars.local_nonces

    @property
    def agreement(self) -> Agreement | None:
        """What both ends agreed on in this session."""
        return None if self._link is None else self._link.agreement

    @property
    def asked(self) -> Asked | None:
        """What was sent to a remote, to have a session; None: there is one, or nothing was."""
        return self._seeker.asked

    def encryption_status(self, now: float) -> EncryptionStatus | None:
        """Return how frames are encrypted; None: they are not, or there are no keys at present."""
        link = self._link
        return None if link is None or link.encryption is None else link.encryption.status(now)

    @property
    def maker(self) -> bytes | None:
        """Which machine set the circuit up, or has called; None: not known, or this one."""
        return self._acceptor.maker

    @property
    def remote_static(self) -> bytes | None:
        """The public key that the initiator has proved to have, at the responder."""
        link = self._link
        return None if link is None or link.encryption is None else link.encryption.remote_static

    # Calls of the owner.

    def start(self, now: float) -> None:
        """Seek the remote; also again, after the session was closed or suspended."""
        self._admission.start(now)
        self._step(Input.START, Received(now))

    def accept(
        self, requested: CircuitRequested, now: float, encryption: Encryption | None = None
    ) -> None:
        """Begin with the CONFIRM that the responder passed on, in place of start().

        encryption: with the keys of the session, on an encrypted circuit.
        """
        received = Received(
            now,
            requested.confirm,
            requested.source,
            requested.local_address,
            encryption=encryption,
        )
        self._step(Input.ACCEPT, received)

    @property
    def changes_over(self) -> bool:
        """Whether another session takes the place of the present one: a matter of a round trip.

        No other process can go on meanwhile: which of the two the remote has is not known.
        """
        renewal = self._vars.renewal
        return self._vars.state is State.LINKED or (renewal is not None and renewal.confirming)

    def continuation(self) -> Continuation | None:
        """Return what another process needs to go on with the session; None: it is not up."""
        link = self._link
        if link is None or self._vars.state is not State.UP:
            return None
        return continuation_of(
            link,
            heard_at=self.last_heard_at,
            rtt_s=self.rtt_s,
            translated=self._remote_port.translated,
            phase=None if self._local.cipher is None else self._local.cipher.phase,
        )

    def resume(self, former: Continuation, now: float) -> None:
        """Go on with a session of another process that is over, in place of start().

        The remote does not notice. Where frames are encrypted they go on with the keys that the
        worker has, and renew_keys() is to follow before the remote misses KEEPALIVEs: none can be
        tagged. Raises ValueError, also if the remote may have missed this end since; the session
        is then to be forgotten.
        """
        link = former.link(self.circuit_id)
        self._local.resume(link, former)
        self._admission.start(now)
        self._vars.link = link
        self._nonces.hold(link.local_nonce, link)
        if self._acceptor.caller is None:
            self._seeker.stay_with(Candidate(link.endpoint, link.local_address))
        self._vars.last_heard_at, self._vars.rtt_s = former.heard_at, former.rtt_s
        self._adjacency.go_on(now)
        self._remote_port.translated = former.translated

    @property
    def renews(self) -> bool:
        """Whether another session is sought, or takes the place of the present one."""
        return self._vars.renewal is not None or self._vars.state is State.LINKED

    def renew_keys(self, now: float) -> None:
        """Seek another session beside one that was resumed and whose keys were another process's.

        Not if it is over, or if another one is sought or has followed.
        """
        link = self._link
        if link is not None and link.keys_lost and self._vars.renewal is None:
            self._renewer.seek(Purpose.KEYS, now)

    def close(self, reason: CloseReason, now: float) -> None:
        """Say goodbye. Closed follows within 1 s; nobody has to wait for it."""
        self._goodbye.reason = reason
        self._step(Input.CLOSE_WANTED, Received(now))

    def suspend(self, obstacle: str, code: RejectCode = RejectCode.FAILED) -> None:
        """Carry nothing until start(): the remote goes down, and is refused with the obstacle.

        Datagrams and events that were not handed over yet are forgotten.
        """
        if self._vars.state in (State.IDLE, State.CLOSING, State.CLOSED):
            return
        rejection = Rejection(code, obstacle)
        if self._vars.state is State.SUSPENDED:
            self._admission.change_obstacle(rejection)
            return
        self._local.outbox.clear()
        self._events.forget()
        link = self._link
        self._admission.suspend(rejection, None if link is None else link.remote_description)
        if link is not None and link.remote_nonce:
            self._local.send(link.close(CloseReason.STOPPING), link)
        self._vars.drop()
        self._vars.state = State.SUSPENDED

    def set_remotes(self, candidates: Iterable[Candidate], now: float) -> None:
        """Say where the remote may be now, the best first; at least one.

        A session that is up stays where it is until it fails.
        """
        self._seeker.look_at(candidates, now)

    def set_caller(self, caller: Caller | None, now: float) -> None:
        """Ask nobody from now on, and let the remote call; None: set_remotes() says whom to ask.

        A session goes on.
        """
        self._acceptor.caller = caller
        if caller is None:
            return
        self._seeker.look_at((), now)
        if self._seeker.is_seeking:
            self._seeker.begin(Received(now))

    def set_local(self, local: Description, now: float) -> None:
        """Say what changed at this end, such as the MTU; the remote is told at once."""
        if local == self._local.description:
            return
        self._local.description = local
        if self._vars.in_session:
            self._adjacency.tell(now)

    def await_heard(self, now: float) -> None:
        """Repeat what set_local() said last until the remote has heard it; Heard follows.

        Not where the session is not up: then nothing follows.
        """
        self._adjacency.await_heard(now)

    def announce(self, now: float) -> None:
        """Send a KEEPALIVE beside those that are due, if the session is up."""
        self._adjacency.announce(now)

    def give_up(self, reason: Reason, now: float) -> None:
        """End the session as if the remote were silent, and seek the remote anew."""
        if self._vars.in_session:
            self._lose(reason, now)

    def set_offer(self, offer: Offer, now: float) -> None:
        """Say what the remote's end is to be like. The session goes on until another one says so.

        Not for a circuit that the remote set up.
        """
        if offer == self._local.offer:
            return
        self._local.offer = offer
        self._ask_anew(now)

    def set_key(self, key: Key | None, now: float) -> bool:
        """Use this key from now on. The session goes on under its own keys until another one is up.

        False: it has no keys of its own, and cannot go on; close it, and begin anew.
        """
        links = (self._link,) if self._vars.in_session else ()
        if key is None or any(link is None or link.signer is None for link in links):
            return False
        self._local.key = key
        self._ask_anew(now)
        return True

    def _ask_anew(self, now: float) -> None:
        """Let what this end asks for, or by which key, be another one from now on."""
        if self._vars.in_session:
            link = self._vars.the_link()
            link.outdated = True
            self._vars.drop_renewal()
            self._renewer.settle()
            self._renewer.seek(Purpose.CHANGED, now)
        else:
            self._seeker.change(now)

    def set_policy(self, policy: Policy) -> None:
        """Judge the remote by these rules from now on."""
        self._admission.policy = policy

    def probe(self, size: int) -> bool:
        """Send a PROBE of this size, in bytes of UDP payload; False: the session is not up."""
        return self._adjacency.probe(size)

    # Keys of frames: see Adjacency.

    def keys_installed(self, installation: int, now: float) -> None:
        self._adjacency.keys_installed(installation, now)

    def keys_used(self, generation: int, frames: int, octets: int, now: float) -> None:
        self._adjacency.keys_used(generation, frames, octets, now)

    def want_rekey(self, now: float) -> None:
        self._adjacency.want_rekey(now)

    def lose_keys(self, now: float) -> None:
        self._adjacency.lose_keys(now)

    @property
    def awaited_installations(self) -> tuple[int, ...]:
        """The numbers that keys_installed() waits for."""
        numbers = (encryption.installation for encryption in self._vars.encryptions())
        return tuple(number for number in numbers if number)

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
        received = Received(now, None, source, local_address)
        message = self._inbox.open(data, received, self.remote)
        if message is not None:
            said = transcript(data) if isinstance(message, Confirm) else b""
            self.receive(message, source, now, local_address, said)

    def receive(
        self,
        message: Message,
        source: Endpoint,
        now: float,
        local_address: IPAddress | None = None,
        said: bytes = b"",
    ) -> None:
        """Take a message whose tag is right. said: codec.transcript() of a CONFIRM."""
        received = Received(now, message, source, local_address, said)
        found = classify(
            received, self._vars.state, self._link, self._vars.renewal, self._answers.comes_back_in
        )
        if found is None:
            self.ignored += 1
            return
        link = self._link
        if found is Input.RENEWED:
            link = self._vars.beside
        if link is not None and found not in HANDSHAKE_TYPES | {Input.RENEWAL_REFUSED}:
            link.hear(message.counter)
            self._vars.last_heard_at = now
            if link is self._link and self._acceptor.follow(received):
                self._adjacency.tell(now)
        self._step(found, received)

    def handle_timer(self, now: float) -> None:
        """Do what is due; to be called at next_timer() or later."""
        for timer in (Input.EXPIRED, Input.SEND_DUE, Input.RENEWAL_DUE, Input.KEYS_DUE):
            if timer in self._due and self._due[timer] <= now:
                del self._due[timer]
                self._step(timer, Received(now))

    def next_timer(self) -> float | None:
        """Return when to call handle_timer; ask again after every other call."""
        return min(self._due.values(), default=None)

    def datagrams_to_send(self) -> list[Datagram]:
        """Hand over what is to be sent; each is handed over once."""
        return self._local.outbox.take_all()

    def next_event(self) -> Event | None:
        """Hand over the oldest event."""
        return self._events.next()

    # Dispatch.

    def _step(self, happened: AnyInput, received: Received) -> None:
        action = _TABLE.get((self._vars.state, happened))
        if action is None:
            raise RuntimeError(
                f"circuit {self.circuit_id}: {happened.name} in {self._vars.state.name}"
            )
        action(self, received)

    def _ignore(self, received: Received) -> None:
        pass

    # Answering a remote that seeks this end.

    def _on_request_while_requesting(self, received: Received) -> None:
        if self._seeker.insists(received.message_of(Request)):
            self._seeker.ask_soon(received.now)
        else:
            self._acceptor.acknowledge(received)

    def _on_confirm_while_requesting(self, received: Received) -> None:
        self._carry_out(self._seeker.decide(received.message_of(Confirm)), received)

    def _resolve_collision(self, received: Received) -> None:
        """Decide between the CONFIRM that came and the one that this end sent."""
        link = self._vars.beside or self._vars.the_link()
        theirs = Claim.of(received.message_of(Confirm))
        decision = contention.on_confirm_while_confirming(self._local.claim(link), theirs)
        self._carry_out(decision, received)

    def _on_confirm_in_session(self, received: Received) -> None:
        renewal = self._vars.renewal
        if renewal is not None and renewal.confirming:
            self._resolve_collision(received)
        else:
            self._take_confirm(received)

    def _on_confirm_while_rejected(self, received: Received) -> None:
        self._carry_out(self._seeker.decide_while_refused(received.message_of(Confirm)), received)

    def _carry_out(self, decision: Decision, received: Received) -> None:
        match decision:
            case Decision.TAKE:
                self._take_confirm(received)
            case Decision.REFUSE:
                self._acceptor.refuse_outdated(received)
            case Decision.DECLINE | Decision.ASK:
                self._acceptor.decline(received)
                if decision is Decision.ASK:
                    self._seeker.ask_soon(received.now)

    def _take_confirm(self, received: Received) -> None:
        """Begin the session that a CONFIRM with a valid cookie asks for; it replaces any other."""
        accepted = self._acceptor.judge(received)
        if accepted is None:
            return
        if not accepted.follows:
            self._events.down(Cause.NEW_SESSION.say())
        self._adopt(received, accepted)

    def _on_accept(self, received: Received) -> None:
        self._adopt(received, Accepted(received.encryption, follows=False))

    def _adopt(self, received: Received, accepted: Accepted) -> None:
        """Begin the session of a CONFIRM."""
        if self._local.passive:
            self._seeker.stay_with(Candidate(received.source, received.local_address))
        self._acceptor.admit(received)
        previous = self._link
        self._vars.link = link = self._local.take_confirm(received, accepted.encryption)
        self._vars.drop_renewal()
        self._adjacency.succeed(previous, follows=accepted.follows)
        self._nonces.hold(link.local_nonce, link)
        self._vars.last_heard_at = received.now
        self._enter_link(received.now)
        link.outdated = self._local.is_outdated(received.message_of(Confirm))
        self._renewer.end(received.now)
        self._adjacency.keep_alive(received)

    # Having a session.

    def _enter_link(self, now: float) -> None:
        self._answers.void()
        self._seeker.succeed()
        self._adjacency.enter(now)

    def _on_first_keepalive(self, received: Received) -> None:
        """Enter the session: the KEEPALIVE shows that the responder has it."""
        link = self._vars.the_link()
        link.remote_description = received.message_of(Keepalive).description
        self._renewer.settle()
        self._enter_link(received.now)
        self._adjacency.take_keepalive(received)

    # Another session beside it.

    def _on_renewed(self, received: Received) -> None:
        """Give the session up for the new one, which both ends have now."""
        renewal = self._renewer.take_over()
        follows = renewal.purpose in SEAMLESS and self._vars.state is State.UP
        if not follows:
            self._events.down(renewal.purpose.value.say())
        self._seeker.reset(received.now)
        previous, self._vars.link = self._link, renewal.link
        self._adjacency.succeed(previous, follows=follows)
        self._on_first_keepalive(received)

    def _on_renewal_refused(self, received: Received) -> None:
        if self._renewer.take_refusal(received.now):
            self._events.down(Purpose.OUTDATED.value.say())
            self._seeker.take_reject(received)

    # Losing it.

    def _on_link_timeout(self, received: Received) -> None:
        """Seek the remote anew: it may not know of the session."""
        self._events.down(Cause.KEYS_NOT_FOLLOWED.say())
        self._seeker.begin(received)

    def _lose(self, reason: Reason, now: float) -> None:
        """Seek the remote anew, as the session is of no use any more."""
        self._events.down(reason)
        self._events.put(events.ResolveWanted())
        self._seeker.begin(Received(now))

    @property
    def _link(self) -> Link | None:
        return self._vars.link


# All that can happen, and what is done. A pair that is not here is a bug of the caller's or of
# this module's: classify lets through only the messages that fit the state.
_Action = Callable[[Session, Received], None]
_Part = TypeVar("_Part")


def _of(
    part: Callable[[Session], _Part],
) -> Callable[[Callable[[_Part, Received], None]], _Action]:
    """Return what makes an action of a part's one of the session's."""
    return lambda action: lambda session, received: action(part(session), received)


_in_seeker = _of(lambda session: session._seeker)
_in_acceptor = _of(lambda session: session._acceptor)
_in_goodbye = _of(lambda session: session._goodbye)
_in_renewer = _of(lambda session: session._renewer)
_in_adjacency = _of(lambda session: session._adjacency)

_S, _I, _M = State, Input, MessageType
_TABLE: dict[tuple[State, AnyInput], _Action] = {
    (_S.IDLE, _I.START): _in_seeker(Seeker.begin),
    (_S.IDLE, _I.ACCEPT): Session._on_accept,
    (_S.IDLE, _I.CLOSE_WANTED): _in_goodbye(Goodbye.finish),
    (_S.IDLE, _M.REQUEST): Session._ignore,
    (_S.IDLE, _M.CONFIRM): Session._ignore,
    #
    (_S.REQUESTING, _I.CLOSE_WANTED): _in_goodbye(Goodbye.finish),
    (_S.REQUESTING, _I.SEND_DUE): _in_seeker(Seeker.request),
    (_S.REQUESTING, _M.REQUEST): Session._on_request_while_requesting,
    (_S.REQUESTING, _M.ACKNOWLEDGE): _in_seeker(Seeker.take_acknowledge),
    (_S.REQUESTING, _M.CONFIRM): Session._on_confirm_while_requesting,
    (_S.REQUESTING, _M.REJECT): _in_seeker(Seeker.take_reject),
    #
    (_S.CONFIRMING, _I.CLOSE_WANTED): _in_goodbye(Goodbye.begin),
    (_S.CONFIRMING, _I.SEND_DUE): _in_seeker(Seeker.confirm),
    (_S.CONFIRMING, _I.EXPIRED): _in_seeker(Seeker.give_up_confirming),
    (_S.CONFIRMING, _M.REQUEST): _in_acceptor(Acceptor.acknowledge),
    (_S.CONFIRMING, _M.CONFIRM): Session._resolve_collision,
    (_S.CONFIRMING, _M.KEEPALIVE): Session._on_first_keepalive,
    (_S.CONFIRMING, _M.CLOSE): _in_goodbye(Goodbye.answer),
    (_S.CONFIRMING, _M.REJECT): _in_seeker(Seeker.take_reject),
    #
    (_S.REJECTED, _I.CLOSE_WANTED): _in_goodbye(Goodbye.finish),
    (_S.REJECTED, _I.SEND_DUE): _in_seeker(Seeker.begin),
    (_S.REJECTED, _M.REQUEST): _in_acceptor(Acceptor.acknowledge),
    (_S.REJECTED, _M.CONFIRM): Session._on_confirm_while_rejected,
    #
    (_S.LINKED, _I.EXPIRED): Session._on_link_timeout,
    #
    (_S.UP, _I.EXPIRED): _in_adjacency(Adjacency.miss_keepalives),
    # What is the same in these two is added below, and what a session's messages do.
    #
    (_S.SUSPENDED, _I.START): _in_seeker(Seeker.begin),
    (_S.SUSPENDED, _I.CLOSE_WANTED): _in_goodbye(Goodbye.finish),
    (_S.SUSPENDED, _M.REQUEST): _in_acceptor(Acceptor.acknowledge),
    (_S.SUSPENDED, _M.CONFIRM): Session._take_confirm,
    #
    (_S.CLOSING, _I.CLOSE_WANTED): Session._ignore,
    (_S.CLOSING, _I.SEND_DUE): _in_goodbye(Goodbye.say),
    (_S.CLOSING, _I.EXPIRED): _in_goodbye(Goodbye.finish),
    (_S.CLOSING, _M.REQUEST): Session._ignore,
    (_S.CLOSING, _M.CONFIRM): Session._ignore,
    (_S.CLOSING, _I.CONFIRM_AGAIN): Session._ignore,
    (_S.CLOSING, _M.CLOSE): _in_goodbye(Goodbye.finish),
    (_S.CLOSING, _M.REJECT): _in_goodbye(Goodbye.finish),
    #
    (_S.CLOSED, _I.START): _in_seeker(Seeker.begin),
    (_S.CLOSED, _I.ACCEPT): Session._on_accept,
    (_S.CLOSED, _I.CLOSE_WANTED): Session._ignore,
    (_S.CLOSED, _M.REQUEST): Session._ignore,
    (_S.CLOSED, _M.CONFIRM): Session._ignore,
}
for _state in (_S.LINKED, _S.UP):
    _TABLE |= {
        (_state, _I.CLOSE_WANTED): _in_goodbye(Goodbye.begin),
        (_state, _I.SEND_DUE): _in_adjacency(Adjacency.keep_alive),
        (_state, _I.RENEWAL_DUE): _in_renewer(Renewer.handle_timer),
        (_state, _I.KEYS_DUE): _in_adjacency(Adjacency.handle_keys_timer),
        (_state, _I.RENEWED): Session._on_renewed,
        (_state, _I.RENEWAL_REFUSED): Session._on_renewal_refused,
        (_state, _I.CONFIRM_AGAIN): _in_adjacency(Adjacency.keep_alive),
        (_state, _M.REQUEST): _in_acceptor(Acceptor.acknowledge),
        (_state, _M.ACKNOWLEDGE): _in_renewer(Renewer.take_acknowledge),
        (_state, _M.CONFIRM): Session._on_confirm_in_session,
        (_state, _M.CLOSE): _in_goodbye(Goodbye.answer),
        (_state, _M.REJECT): _in_renewer(Renewer.take_unknown),
    }
    _TABLE |= {(_state, said): _in_adjacency(action) for said, action in adjacency.ACTIONS.items()}
# Before both ends have a session, and when this one has left it.
for _state in (_S.CONFIRMING, _S.CLOSING):
    _TABLE |= {
        (_state, said): Session._ignore
        for said in adjacency.ACTIONS
        if (_state, said) not in _TABLE
    }
