"""Seeks another session beside the present one, which goes on meanwhile. Pure.

docs/protocol.md, sections 4.5 and 4.6. There is one attempt at a time: a Renewal.
"""

from __future__ import annotations

import random

from vela.backoff import Backoff, Jitter
from vela.signaling.attempt import CONFIRM_REPEAT_S, CONFIRM_TIMEOUT_S, JITTER
from vela.signaling.inputs import Input, Received
from vela.signaling.limiter import TokenBucket
from vela.signaling.link import open_link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Acknowledge
from vela.signaling.nonces import Nonces
from vela.signaling.renewal import LOST_REPEAT_S, LOST_TRIES, PATIENT, Purpose, Renewal
from vela.signaling.variables import SessionVariables

# A REQUEST beside a session with outdated settings. There is no hurry, as the session works.
FIRST_RENEWAL_S = 10.0
LONGEST_RENEWAL_S = 300.0

# Answers that the remote does not have the session make this end ask, and no more often. Who
# can have them made by a machine with the same key gets no more than these REQUESTs.
HINT_RATE, HINT_BURST = 0.2, 3.0


class Renewer:
    """What is sought beside the sessions of one circuit."""

    def __init__(
        self,
        variables: SessionVariables,
        local: LocalEnd,
        nonces: Nonces,
        randomness: random.Random,
    ) -> None:
        """Of the variables it writes the renewal and its timer."""
        self._vars = variables
        self._local = local
        self._nonces = nonces
        self._hints = TokenBucket(HINT_RATE, HINT_BURST)
        self._confirms = Backoff(CONFIRM_REPEAT_S, CONFIRM_TIMEOUT_S)
        self._requests = Backoff(
            FIRST_RENEWAL_S, LONGEST_RENEWAL_S, Jitter(randomness, shorter=JITTER)
        )

    def seek(self, purpose: Purpose, now: float) -> None:
        """Ask for another session, in place of one that is sought already."""
        present = self._vars.the_link()
        link = open_link(present.circuit_id, self._nonces, present.endpoint, present.local_address)
        self._vars.renewal = renewal = Renewal(link, purpose)
        self._ask(renewal, now)

    def take_unknown(self, received: Received) -> None:
        """Ask for another session, as the remote says that it does not have the present one.

        It may have restarted. Nobody takes a session down with such a message, wherever it was
        had: it goes when another one is there, or when its keepalives are missed.
        """
        if self._vars.renewal is None and self._hints.take(received.now):
            self.seek(Purpose.LOST, received.now)

    def handle_timer(self, received: Received) -> None:
        """Ask for a session with this end's settings, or go on with what is asked for already.

        The present session goes on meanwhile: if no answer ever comes, the circuit would go up
        and down for ever.
        """
        renewal, now = self._vars.renewal, received.now
        if renewal is None:
            self.seek(Purpose.OUTDATED, now)
        elif renewal.confirming and renewal.given_up_at > now:
            self._confirm(renewal, now)
        elif renewal.confirming:
            self.end(now)
        elif renewal.purpose in PATIENT:
            self.seek(renewal.purpose, now)
        else:
            self._ask(renewal, now)

    def take_acknowledge(self, received: Received) -> None:
        """Take the answer to the REQUEST."""
        renewal, message = self._the_renewal(), received.message_of(Acknowledge)
        if renewal.purpose is Purpose.LOST and message.session == self._session_of_remote():
            self.end(received.now)  # the remote has the session after all
            return
        link = renewal.link
        if not self._local.take_acknowledge(link, received, self._followed(renewal)):
            renewal.link = open_link(
                link.circuit_id, self._nonces, link.endpoint, link.local_address
            )
            return
        renewal.given_up_at = received.now + CONFIRM_TIMEOUT_S
        self._confirms.reset()
        self._confirm(renewal, received.now)

    def take_refusal(self, now: float) -> bool:
        """Take a REJECT of what is sought. Tell whether the present session is to be given up.

        It is if the present settings are refused: else nobody would see it. Not if the session
        seems to be lost: what refuses may be another machine with the key.
        """
        if self._the_renewal().purpose is not Purpose.LOST:
            return True
        self.end(now)
        return False

    def take_over(self) -> Renewal:
        """Hand over what was sought, as both ends have it now."""
        renewal, self._vars.renewal = self._the_renewal(), None
        return renewal

    def settle(self) -> None:
        """Take note that the remote has the settings that this end wants, or is asked anew."""
        self._requests.reset()

    def end(self, now: float) -> None:
        """Seek nothing for the present; later, if the session has outdated settings."""
        self._vars.drop_renewal()
        if self._vars.the_link().outdated:
            self._vars.due[Input.RENEWAL_DUE] = now + self._requests.next_delay_s()

    def _ask(self, renewal: Renewal, now: float) -> None:
        if renewal.tries == LOST_TRIES:
            self.end(now)
            return
        renewal.tries += 1
        self._local.send(self._local.request(renewal.link), renewal.link)
        in_a_hurry = renewal.purpose not in PATIENT
        delay_s = LOST_REPEAT_S if in_a_hurry else self._requests.next_delay_s()
        self._vars.due[Input.RENEWAL_DUE] = now + delay_s

    def _confirm(self, renewal: Renewal, now: float) -> None:
        confirm = self._local.confirm(renewal.link, now, self._followed(renewal))
        self._local.send(confirm, renewal.link)
        self._vars.due[Input.RENEWAL_DUE] = now + self._confirms.next_delay_s()

    def _the_renewal(self) -> Renewal:
        if self._vars.renewal is None:
            raise RuntimeError("no session is sought beside the present one")
        return self._vars.renewal

    def _followed(self, renewal: Renewal) -> int | None:
        """Return the remote's nonce in the session that another is to follow without a gap."""
        return self._session_of_remote() if renewal.purpose is Purpose.KEYS else None

    def _session_of_remote(self) -> int:
        return self._vars.the_link().remote_nonce
