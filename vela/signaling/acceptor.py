"""Answers who seeks a session of a circuit, and judges whose CONFIRM begins one. Pure.

docs/protocol.md, sections 4.2, 4.5 and 4.14. Answers has the cookies, Admission the rules, Caller
what there is to know where no remote is named. The other role is the Seeker's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vela.errors import VelaError
from vela.signaling import contention, events
from vela.signaling.admission import Admission
from vela.signaling.answers import Answers
from vela.signaling.caller import (
    ELSEWHERE,
    PROBES_AT_ONCE,
    SMALLEST_QUESTION,
    Caller,
    Situation,
)
from vela.signaling.codec import decode, rejection
from vela.signaling.encryption import Encryption
from vela.signaling.event_queue import EventQueue
from vela.signaling.inputs import Received, State
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import (
    Confirm,
    HandshakePattern,
    Header,
    MessageType,
    ProbeReply,
    RejectCode,
)
from vela.signaling.nonces import Nonces
from vela.signaling.policy import Rejection
from vela.signaling.variables import SessionVariables


@dataclass(frozen=True, slots=True)
class Accepted:
    """A CONFIRM begins a session."""

    encryption: Encryption | None
    """With its keys, on an encrypted circuit."""
    follows: bool
    """Only the keys of the present session are lost: frames go on meanwhile."""


class Acceptor:
    """Of one circuit, from session to session."""

    def __init__(
        self,
        variables: SessionVariables,
        local: LocalEnd,
        admission: Admission,
        answers: Answers,
        nonces: Nonces,
        events: EventQueue,
    ) -> None:
        """Of the variables it writes none."""
        self.caller: Caller | None = None
        """Where no remote is named: who has the circuit."""
        self._vars = variables
        self._local = local
        self._admission = admission
        self._answers = answers
        self._nonces = nonces
        self._events = events

    @property
    def maker(self) -> bytes | None:
        """Which machine set the circuit up, or has called; None: not known, or this one."""
        return self._admission.maker if self.caller is None else self.caller.maker

    def leave(self, *, deleted: bool) -> None:
        """Let another machine have the circuit, as the one before said goodbye, or deleted it."""
        if self.caller is not None:
            self.caller.leave()
        if not deleted:
            self._admission.leave()

    # Answers.

    def acknowledge(self, received: Received) -> None:
        """Answer a REQUEST, and store nothing before a CONFIRM brings the cookie back."""
        answer = self._answers.acknowledge(received)
        if answer is None:
            return
        link = self._vars.session
        # Where no key says who asks, a stranger must not learn it.
        if link is not None and self._local.key is None and received.source != link.endpoint:
            link = None
        present = None if link is None else link.local_nonce
        self._local.answer(self._local.offer_keys(answer, received, present), received)

    def decline(self, received: Received) -> None:
        """Leave a CONFIRM unanswered for good: a copy that comes later must begin no session."""
        self._answers.spend(received)

    def refuse_outdated(self, received: Received) -> None:
        """Refuse a CONFIRM that resumes other settings than this end wants the remote to have."""
        self._refuse(received, Rejection(RejectCode.OUTDATED, contention.OUTDATED_TEXT))

    def deny_session(self, data: bytes, header: Header, received: Received) -> None:
        """Answer a remote that goes on with a session of before a restart: it then calls anew.

        Raises RemoteProtocolError.
        """
        if self.caller is None or self._vars.state is not State.REQUESTING:
            return
        if header.type is not MessageType.KEEPALIVE:
            return
        message = decode(data, self._local.key)
        self._nonces.reject_reflected(message)
        if self._answers.take(received.now):
            answer = rejection(message, len(data), RejectCode.NO_SUCH_SESSION)
            self._local.answer(replace(answer, seen=received.source), received)

    def _refuse(self, received: Received, why: Rejection) -> None:
        message = received.message_of(Confirm)
        self._local.answer(rejection(message, message.size, why.code, why.text), received)

    def _turn_away(self, received: Received, why: Rejection) -> None:
        """Refuse a CONFIRM, and let the operator of this end know, too."""
        self._refuse(received, why)
        self._events.put(events.Refused(received.source, why.code, why.text))

    # Who is let in.

    def judge(self, received: Received) -> Accepted | None:
        """Judge a CONFIRM with a valid cookie; None: it begins no session, and was answered.

        Raises RemoteProtocolError where its handshake is wrong.
        """
        message = received.message_of(Confirm)
        refused = self._admission.judge(
            message,
            received.source.address,
            self._local.ciphers,
            linked=self._vars.in_session,
            heard_at=self._vars.last_heard_at,
            now=received.now,
        )
        if refused is not None:
            self._turn_away(received, refused)
            return None
        if self._local.passive and not message.resuming and message.offer != self._local.offer:
            # The cookie stays valid, so that each repetition is answered.
            requested = events.CircuitRequested(
                received.source, message, received.local_address, received.transcript
            )
            self._events.put(events.OfferChanged(requested))
            return None
        suspended = self._vars.state is State.SUSPENDED
        obstacle = self._admission.obstacle(message) if suspended else None
        if obstacle is not None:
            self._refuse(received, obstacle)
            return None
        if self.caller is not None and not self._lets_in(self.caller, received):
            return None
        encryption = None
        if self._local.cipher is not None:
            # Raises where message 1 is wrong, and then nothing has changed.
            encryption = self._local.cipher.answer(message, received.transcript, received.now)
            if encryption is None:
                return None
        # Only now: who calls has proved the key, or its identity.
        if self.caller is not None and not self._describes_itself(self.caller, received):
            if encryption is not None:
                encryption.wipe()
            return None
        # Where only the keys are lost, nobody has to notice. The handshake says who wrote it.
        follows = (
            encryption is not None
            and self._vars.state is State.UP
            and message.follows == self._vars.the_link().local_nonce
        )
        return Accepted(encryption, follows)

    def admit(self, received: Received) -> None:
        """Take note of a CONFIRM that begins a session."""
        message = received.message_of(Confirm)
        if self._local.passive and not message.resuming:
            self._local.offer = message.offer
        self._admission.admit(message)
        if self.caller is not None:
            self.caller.admit(message)
        self._answers.spend(received)

    def _lets_in(self, caller: Caller, received: Received) -> bool:
        """Tell whether who calls may be the remote; if not, it is told why, as far as is known."""
        link, cipher = self._vars.session, self._local.cipher
        known = Situation(
            None if link is None else link.endpoint,
            self._vars.last_heard_at,
            proves_itself=cipher is not None and cipher.offer.pattern == HandshakePattern.IK_PSK2,
        )
        text = caller.obstacle(received.message_of(Confirm), received.source, known, received.now)
        if text:
            self._turn_away(received, Rejection(RejectCode.ID_TAKEN, text))
        elif text is None and link is not None:
            # Is the remote still where it was? The CONFIRM is repeated.
            for _ in range(PROBES_AT_ONCE):
                self._local.send(link.probe(SMALLEST_QUESTION), link)
        return text == ""

    def _describes_itself(self, caller: Caller, received: Received) -> bool:
        """Tell whether this end can have its remote there, and describe it accordingly."""
        try:
            self._local.description = caller.describe(received.source, received.local_address)
        except VelaError as err:
            text = ELSEWHERE + str(err).splitlines()[0]
            self._turn_away(received, Rejection(RejectCode.FAILED, text))
            return False
        return True

    # Where a remote that calls is.

    def follow(self, received: Received) -> bool:
        """Take note of where a message of the session came from. Return whether the remote moved.

        A message alone may be a copy, which somebody else sends before it arrives: messages go
        there once the remote has answered there.
        """
        link, caller = self._vars.the_link(), self.caller
        message, source = received.message, received.source
        if caller is None or source == link.endpoint:
            return False
        if isinstance(message, ProbeReply) and caller.is_answered(source, message.size):
            caller.forget_questions()
            return self._move(caller, received)
        size = caller.question(source, received.now)
        if size is not None:
            self._local.send_beside(link.probe(size), link, received)
        return False

    def _move(self, caller: Caller, received: Received) -> bool:
        try:
            self._local.description = caller.describe(received.source, received.local_address)
        except VelaError:
            return False  # the session ends by itself; a new call is told why
        for link in self._vars.links():
            link.move(received.source, received.local_address)
        self._events.put(events.Moved(received.source))
        return True
