"""Seeks another session beside the present one, which goes on meanwhile. Pure.

docs/protocol.md, sections 4.5 and 4.6. There is one attempt at a time: a Renewal.
"""

from __future__ import annotations

import random

from vela.backoff import Backoff, Jitter
from vela.signaling.attempt import CONFIRM_REPEAT_S, CONFIRM_TIMEOUT_S, JITTER
from vela.signaling.inputs import Input, Received
from vela.signaling.limiter import TokenBucket
from vela.signaling.link import Link, open_link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Acknowledge
from vela.signaling.nonces import Nonces
from vela.signaling.renewal import LOST_REPEAT_S, LOST_TRIES, PATIENT, Purpose, Renewal

# A REQUEST beside a session with outdated settings. There is no hurry, as the session works.
FIRST_RENEWAL_S = 10.0
LONGEST_RENEWAL_S = 300.0

# Answers that the remote does not have the session make this end ask, and no more often. Who
# can have them made by a machine with the same key gets no more than these REQUESTs.
HINT_RATE, HINT_BURST = 0.2, 3.0


class Renewer:
    """What is sought beside the sessions of one circuit. present: the session that there is."""

    def __init__(
        self, local: LocalEnd, nonces: Nonces, due: dict[Input, float], randomness: random.Random
    ) -> None:
        """due: the timers of the circuit's session, of which this one sets RENEWAL_DUE."""
        self.renewal: Renewal | None = None
        """What is sought; None: nothing at present."""
        self._local = local
        self._nonces = nonces
        self._due = due
        self._hints = TokenBucket(HINT_RATE, HINT_BURST)
        self._confirms = Backoff(CONFIRM_REPEAT_S, CONFIRM_TIMEOUT_S)
        self._requests = Backoff(
            FIRST_RENEWAL_S, LONGEST_RENEWAL_S, Jitter(randomness, shorter=JITTER)
        )

    @property
    def link(self) -> Link | None:
        """The session that is sought."""
        return None if self.renewal is None else self.renewal.link

    def seek(self, purpose: Purpose, present: Link, now: float) -> None:
        """Ask for another session, in place of one that is sought already."""
        link = open_link(present.circuit_id, self._nonces, present.endpoint, present.local_address)
        self.renewal = Renewal(link, purpose)
        self._ask(self.renewal, present, now)

    def seek_lost(self, present: Link, now: float) -> None:
        """Ask for another session, as the remote says that it does not have the present one."""
        if self.renewal is None and self._hints.take(now):
            self.seek(Purpose.LOST, present, now)

    def handle_timer(self, present: Link, now: float) -> None:
        """Ask for a session with this end's settings, or go on with what is asked for already.

        The present session goes on meanwhile: if no answer ever comes, the circuit would go up
        and down for ever.
        """
        renewal = self.renewal
        if renewal is None:
            self.seek(Purpose.OUTDATED, present, now)
        elif renewal.confirming and renewal.given_up_at > now:
            self._confirm(renewal, present, now)
        elif renewal.confirming:
            self.end(present, now)
        elif renewal.purpose in PATIENT:
            self.seek(renewal.purpose, present, now)
        else:
            self._ask(renewal, present, now)

    def take_acknowledge(self, present: Link, received: Received) -> None:
        """Take the answer to the REQUEST."""
        renewal, message = self._the_renewal(), received.message_of(Acknowledge)
        if renewal.purpose is Purpose.LOST and message.session == present.remote_nonce:
            self.end(present, received.now)  # the remote has the session after all
            return
        link = renewal.link
        if not self._local.take_acknowledge(link, received, _followed(renewal, present)):
            renewal.link = open_link(
                link.circuit_id, self._nonces, link.endpoint, link.local_address
            )
            return
        renewal.given_up_at = received.now + CONFIRM_TIMEOUT_S
        self._confirms.reset()
        self._confirm(renewal, present, received.now)

    def take_refusal(self, present: Link, now: float) -> bool:
        """Take a REJECT of what is sought. Tell whether the present session is to be given up.

        It is if the present settings are refused: else nobody would see it. Not if the session
        seems to be lost: what refuses may be another machine with the key.
        """
        if self._the_renewal().purpose is not Purpose.LOST:
            return True
        self.end(present, now)
        return False

    def take_over(self) -> Renewal:
        """Hand over what was sought, as both ends have it now."""
        renewal, self.renewal = self._the_renewal(), None
        return renewal

    def settle(self) -> None:
        """Take note that the remote has the settings that this end wants, or is asked anew."""
        self._requests.reset()

    def end(self, present: Link, now: float) -> None:
        """Seek nothing for the present; later, if the session has outdated settings."""
        self.drop()
        if present.outdated:
            self._due[Input.RENEWAL_DUE] = now + self._requests.next_delay_s()

    def drop(self) -> None:
        """Seek nothing."""
        if self.renewal is not None:
            self.renewal.link.wipe_keys()
        self.renewal = None
        self._due.pop(Input.RENEWAL_DUE, None)

    def _ask(self, renewal: Renewal, present: Link, now: float) -> None:
        if renewal.tries == LOST_TRIES:
            self.end(present, now)
            return
        renewal.tries += 1
        self._local.send(self._local.request(renewal.link), renewal.link)
        in_a_hurry = renewal.purpose not in PATIENT
        delay_s = LOST_REPEAT_S if in_a_hurry else self._requests.next_delay_s()
        self._due[Input.RENEWAL_DUE] = now + delay_s

    def _confirm(self, renewal: Renewal, present: Link, now: float) -> None:
        confirm = self._local.confirm(renewal.link, now, _followed(renewal, present))
        self._local.send(confirm, renewal.link)
        self._due[Input.RENEWAL_DUE] = now + self._confirms.next_delay_s()

    def _the_renewal(self) -> Renewal:
        if self.renewal is None:
            raise RuntimeError("no session is sought beside the present one")
        return self.renewal


def _followed(renewal: Renewal, present: Link) -> int | None:
    """Return the remote's nonce in a session that another one is to follow without a gap."""
    return present.remote_nonce if renewal.purpose is Purpose.KEYS else None
