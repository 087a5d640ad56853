"""Asks for the session of a circuit that has none: whom, how often, and what it makes of answers.

Pure. docs/protocol.md, sections 4.2 and 4.6. Candidates says whom, Attempt when. What happens in
the states REQUESTING, CONFIRMING and REJECTED is here; the other role is the Acceptor's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from vela.address import Endpoint
from vela.reasons import Cause
from vela.signaling import contention
from vela.signaling.attempt import CONFIRM_TIMEOUT_S, Asked, Attempt
from vela.signaling.candidates import Candidate, Candidates
from vela.signaling.contention import Decision
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Rejected, ResolveWanted, Unanswered
from vela.signaling.inputs import Input, Received, State
from vela.signaling.link import open_link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Confirm, Reject, RejectCode, Request
from vela.signaling.nonces import Nonces
from vela.signaling.variables import SessionVariables


class Seeker:
    """Of one circuit, from session to session. The link is the one that is asked for."""

    def __init__(
        self,
        variables: SessionVariables,
        local: LocalEnd,
        nonces: Nonces,
        events: EventQueue,
        randomness: random.Random,
    ) -> None:
        """Of the variables it writes the state, the link and its timers while there is no session.

        events: where the owner is told what it has to know of the search.
        """
        self._vars = variables
        self._due = variables.due
        self._local = local
        self._nonces = nonces
        self._events = events
        self._candidates = Candidates()
        self._attempt = Attempt(randomness)

    # Whom.

    @property
    def first(self) -> Candidate | None:
        """The best place where the remote may be; None: none is known."""
        return self._candidates.first

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where the remote may be, the best first; none, unless it is asked."""
        return self._candidates.endpoints if self._vars.state is State.REQUESTING else ()

    @property
    def is_seeking(self) -> bool:
        return self._vars.state in (State.REQUESTING, State.CONFIRMING, State.REJECTED)

    @property
    def asked(self) -> Asked | None:
        """What was sent, to have a session; None: there is one, or nothing was."""
        if not self.is_seeking:
            return None
        return self._attempt.asked(self._candidates.endpoints)

    def stay_with(self, candidate: Candidate) -> None:
        """Seek the remote where it was heard."""
        self._candidates.replace(candidate)

    def look_at(self, candidates: Iterable[Candidate], now: float) -> None:
        """Seek the remote there from now on. If any of it is new, it is asked soon."""
        if self._candidates.replace(*candidates):
            self._attempt.note_answer()
            if self._vars.state is State.REQUESTING:
                self.ask_soon(now)

    # When, and what.

    def begin(self, received: Received) -> None:
        """Seek the remote, with a fresh nonce, from now on."""
        self.reset(received.now)
        self._ask_anew(received.now)

    def reset(self, now: float) -> None:
        """Count tries and candidates from now on."""
        self._attempt.begin(now)
        self._candidates.begin()

    def _ask_anew(self, now: float) -> None:
        """Ask with a fresh nonce, in the same attempt."""
        self._vars.drop()
        self._vars.state = State.REQUESTING
        self._due[Input.SEND_DUE] = now

    def request(self, received: Received) -> None:
        """Send the next REQUEST, unless there is nobody to ask: look_at() goes on then."""
        attempt, candidates, now = self._attempt, self._candidates, received.now
        if not candidates:
            return
        if candidates.round_is_over and candidates.refusal is not None:
            self.be_refused(candidates.refusal, now)
            return
        candidate = candidates.next()
        endpoint, local_address = candidate.endpoint, candidate.local_address
        link = self._vars.link
        if link is None:
            link = open_link(self._vars.circuit_id, self._nonces, endpoint, local_address)
        link.endpoint, link.local_address = endpoint, local_address
        delay_s = attempt.count_request(now, ends_round=candidates.round_is_over)
        if attempt.is_unanswered:
            self._events.put(Unanswered(attempt.unanswered_reason(candidates.endpoints)))
        if attempt.wants_lookup:
            self._events.put(ResolveWanted())
        self._local.send(self._local.request(link), link)
        self._vars.link, self._due[Input.SEND_DUE] = link, now + delay_s

    def ask_soon(self, now: float) -> None:
        """Send the next REQUEST now, or as soon after the last one as is allowed."""
        at = self._attempt.earliest_request(now)
        self._due[Input.SEND_DUE] = min(self._due.get(Input.SEND_DUE, at), at)

    def take_acknowledge(self, received: Received) -> None:
        """Take the answer to a REQUEST, and send a CONFIRM."""
        link = self._vars.the_link()
        answers = self._candidates.at(received.source)
        if answers is not None:  # it may have been asked before others
            link.endpoint, link.local_address = answers.endpoint, answers.local_address
        if not self._local.take_acknowledge(link, received):
            # The next REQUEST has another nonce, and perhaps a key holder to go on with.
            self._vars.link = None
            return
        self._attempt.begin_confirming()
        self._vars.state = State.CONFIRMING
        self._due[Input.EXPIRED] = received.now + CONFIRM_TIMEOUT_S
        self.confirm(received)

    def confirm(self, received: Received) -> None:
        """Send the next CONFIRM."""
        link = self._vars.the_link()
        self._local.send(self._local.confirm(link, received.now), link)
        self._due[Input.SEND_DUE] = received.now + self._attempt.confirm_delay_s()

    def give_up_confirming(self, received: Received) -> None:
        """Ask anew, as the CONFIRM was not answered."""
        link = self._vars.the_link()
        if link.encryption is not None:
            # Such a remote answers REQUESTs, and says nothing to a CONFIRM.
            self._events.put(Unanswered(Cause.WRONG_HANDSHAKE.say(remote=link.endpoint)))
            self._attempt.note_answer()
        self._ask_anew(received.now)

    # What comes of it.

    def take_reject(self, received: Received) -> None:
        """Take a refusal. Others are asked first: another address may be another machine's."""
        message = received.message_of(Reject)
        refusal = Rejected(message.code, message.text or f"refused, code {message.code}")
        seeks = self._vars.state in (State.REQUESTING, State.CONFIRMING)
        if seeks and not self._candidates.round_is_over:
            self._candidates.refusal = refusal
            self._ask_anew(received.now)
        else:
            self.be_refused(refusal, received.now)

    def be_refused(self, refusal: Rejected, now: float) -> None:
        """Ask again later, as the remote refuses."""
        self._events.put(refusal)
        self._vars.drop()
        self._vars.state = State.REJECTED
        # A disabled circuit says nothing about the settings.
        self._attempt.refused = refusal.code != RejectCode.DISABLED
        self._due[Input.SEND_DUE] = now + self._attempt.rejected_delay_s()

    def change(self, now: float) -> None:
        """Ask anew, if at all, as this end wants other settings, or has another key."""
        if self.is_seeking:
            self._attempt.refused = False
            self.begin(Received(now))

    def succeed(self) -> None:
        """Take note that there is a session."""
        self._attempt.succeed()

    def note_wrong_tag(self) -> None:
        self._attempt.wrong_tag = True

    def insists(self, message: Request | Confirm) -> bool:
        """Tell whether the remote resumes, and should hear this end's settings instead."""
        if not self._local.is_outdated(message) or not self._candidates:
            return False
        return self._attempt.insists()

    def decide(self, message: Confirm) -> Decision:
        """Decide on a CONFIRM that comes while the remote is asked."""
        return contention.on_confirm_while_requesting(
            insists=self.insists(message),
            outdated=self._local.is_outdated(message),
            refused=self._attempt.refused,
        )

    def decide_while_refused(self, message: Confirm) -> Decision:
        """Decide on a CONFIRM that comes while the remote refuses this end's."""
        return contention.on_confirm_while_rejected(
            outdated=self._local.is_outdated(message),
            refused=self._attempt.refused,
            resumes_ours=message.resuming and not self._local.passive,
        )
