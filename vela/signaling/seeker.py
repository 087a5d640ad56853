"""Asks for the session of a circuit that has none: whom, how often, and what it makes of answers.

Pure. docs/protocol.md, sections 4.2 and 4.6. Candidates says whom, Attempt when.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from vela.address import Endpoint
from vela.reasons import Cause
from vela.signaling import contention
from vela.signaling.attempt import Asked, Attempt
from vela.signaling.candidates import Candidate, Candidates
from vela.signaling.contention import Decision
from vela.signaling.event_queue import EventQueue
from vela.signaling.events import Rejected, ResolveWanted, Unanswered
from vela.signaling.inputs import Received
from vela.signaling.link import Link, open_link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Confirm, RejectCode, Request
from vela.signaling.nonces import Nonces


class Seeker:
    """Of one circuit, from session to session. A link is the one that is asked for."""

    def __init__(
        self,
        circuit_id: int,
        local: LocalEnd,
        nonces: Nonces,
        events: EventQueue,
        randomness: random.Random,
    ) -> None:
        """events: where the owner is told what it has to know of the search."""
        self._circuit_id = circuit_id
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
        """Where the remote may be, the best first."""
        return self._candidates.endpoints

    @property
    def asked(self) -> Asked | None:
        """What was sent since begin(); None: nothing yet."""
        return self._attempt.asked(self._candidates.endpoints)

    def stay_with(self, candidate: Candidate) -> None:
        """Seek the remote where it was heard."""
        self._candidates.replace(candidate)

    def look_at(self, candidates: Iterable[Candidate]) -> bool:
        """Seek the remote there from now on. Tell whether any of it is new."""
        is_new = self._candidates.replace(*candidates)
        if is_new:
            self._attempt.note_answer()
        return is_new

    # When, and what.

    def begin(self, now: float) -> None:
        """Begin to seek the remote."""
        self._attempt.begin(now)
        self._candidates.begin()

    def request(self, link: Link | None, now: float) -> tuple[Link, float] | None:
        """Send the next REQUEST. Return what it asks for, and when the next one is due.

        None: there is nobody to ask, or all have refused: see refusal.
        """
        attempt, candidates = self._attempt, self._candidates
        if not candidates or self.refusal is not None:
            return None
        candidate = candidates.next()
        endpoint, local_address = candidate.endpoint, candidate.local_address
        if link is None:
            link = open_link(self._circuit_id, self._nonces, endpoint, local_address)
        link.endpoint, link.local_address = endpoint, local_address
        delay_s = attempt.count_request(now, ends_round=candidates.round_is_over)
        if attempt.is_unanswered:
            self._events.put(Unanswered(attempt.unanswered_reason(candidates.endpoints)))
        if attempt.wants_lookup:
            self._events.put(ResolveWanted())
        self._local.send(self._local.request(link), link)
        return link, now + delay_s

    def take_acknowledge(self, link: Link, received: Received) -> bool:
        """Take the answer to a REQUEST; confirm() follows. False: see LocalEnd."""
        answers = self._candidates.at(received.source)
        if answers is not None:  # it may have been asked before others
            link.endpoint, link.local_address = answers.endpoint, answers.local_address
        if not self._local.take_acknowledge(link, received):
            return False
        self._attempt.begin_confirming()
        return True

    def confirm(self, link: Link, now: float) -> float:
        """Send the next CONFIRM. Return when it is to be repeated."""
        self._local.send(self._local.confirm(link, now), link)
        return now + self._attempt.confirm_delay_s()

    def earliest_request(self, now: float) -> float:
        """Return when the next REQUEST may be sent, if there is a reason to hurry."""
        return self._attempt.earliest_request(now)

    # What comes of it.

    @property
    def refusal(self) -> Rejected | None:
        """Why the remote refuses at all of its addresses; None: it does not, as far as known."""
        candidates = self._candidates
        return candidates.refusal if candidates and candidates.round_is_over else None

    def goes_on_after(self, refusal: Rejected) -> bool:
        """Tell whether others are to be asked: another address may be another machine's."""
        if self._candidates.round_is_over:
            return False
        self._candidates.refusal = refusal
        return True

    def be_refused(self, code: int, now: float) -> float:
        """Take note of a refusal. Return when to ask again."""
        # A disabled circuit says nothing about the settings.
        self._attempt.refused = code != RejectCode.DISABLED
        return now + self._attempt.rejected_delay_s()

    def change(self) -> None:
        """Take note that this end wants other settings, or has another key."""
        self._attempt.refused = False

    def succeed(self) -> None:
        """Take note that there is a session."""
        self._attempt.succeed()

    def note_wrong_tag(self) -> None:
        self._attempt.wrong_tag = True

    def note_wrong_handshake(self, link: Link) -> None:
        """Take note that a remote answers REQUESTs, and says nothing to a CONFIRM."""
        self._events.put(Unanswered(Cause.WRONG_HANDSHAKE.say(remote=link.endpoint)))
        self._attempt.note_answer()

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
