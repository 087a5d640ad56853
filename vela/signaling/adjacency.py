"""The session of two ends that hear each other, or are about to: keepalives, agreement, keys. Pure.

docs/protocol.md, sections 4.3, 4.11 and 4.12. The name is that of OSPF and LDP. What happens to it
in the states LINKED and UP is here; how a session begins, and what follows its loss, is Session's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from vela.backoff import Jitter
from vela.reasons import Cause, Reason
from vela.signaling import events
from vela.signaling.encryption import Fields
from vela.signaling.event_queue import EventQueue
from vela.signaling.inputs import Input, Received, State
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import Keepalive, MessageType, Probe, ProbeReply
from vela.signaling.remote_port import RemotePort
from vela.signaling.renewal import Purpose
from vela.signaling.renewer import Renewer
from vela.signaling.session_cipher import settle_keys
from vela.signaling.variables import SessionVariables

# A session that only one end may know of.
LINKED_REPEAT_S = 0.5
LINKED_TIMEOUT_S = 3.0

# The third keepalive in a row is missed after 3 intervals; half of one is for delay, and both
# ends must have noticed within 4.
MISSED_INTERVALS = 3.5
KEEPALIVE_JITTER = 0.1


class Adjacency:
    """The present session of one circuit, from session to session."""

    def __init__(
        self,
        variables: SessionVariables,
        local: LocalEnd,
        renewer: Renewer,
        remote_port: RemotePort,
        events: EventQueue,
        randomness: random.Random,
        *,
        echoes_arrived: Callable[[], int] | None,
        lose: Callable[[Reason, float], None],
    ) -> None:
        """Of the state it writes UP, where it was LINKED; of the timers those of a session.

        echoes_arrived: see Session. lose is called with the reason and the
        time when the session is of no use any more.
        """
        self._vars = variables
        self._due = variables.due
        self._local = local
        self._renewer = renewer
        self._remote_port = remote_port
        self._events = events
        self._jitter = Jitter(randomness, shorter=KEEPALIVE_JITTER)
        self._echoes_arrived = echoes_arrived
        self._lose = lose

    # Both ends have it.

    def enter(self, now: float) -> None:
        """Begin the session that there is a link of."""
        self._vars.state = State.LINKED
        self._vars.drop_renewal()
        self._due.pop(Input.KEYS_DUE, None)
        self._due[Input.EXPIRED] = now + LINKED_TIMEOUT_S
        self._due[Input.SEND_DUE] = now + LINKED_REPEAT_S
        self._settle()

    def go_on(self, now: float) -> None:
        """Go on with the session of another process, which is up.

        Raises ValueError if the remote may have missed this end since; the session is then to be
        forgotten.
        """
        link = self._vars.the_link()
        self._vars.state = State.UP
        self._events.note(up=True)
        self._settle()
        heard_at = self._vars.last_heard_at
        silence_s = 0.0 if heard_at is None else now - heard_at
        if silence_s > MISSED_INTERVALS * link.keepalive_s:
            raise ValueError(f"the remote was last heard {silence_s:.0f} s ago")
        self._renewer.end(now)
        self._due[Input.SEND_DUE] = now
        self._await_keepalives(link, now)

    def succeed(self, previous: Link | None, *, follows: bool) -> None:
        """Give up the keys of the session before, now or, if frames go on with them, soon."""
        if previous is None:
            return
        if follows:
            self._vars.the_link().follow(previous)
        else:
            previous.wipe_keys()

    def _settle(self) -> None:
        """Agree with the remote, and tell if anything changed."""
        link = self._vars.the_link()
        agreement = link.settle(self._local.description)
        if agreement is not None:
            self._remote_port.agreed(agreement, link.endpoint)
            self._events.put(events.Agreed(agreement))

    def tell(self, now: float) -> None:
        """Agree anew and tell the remote at once, as this end or the remote's place has changed."""
        self._settle()
        self._send(now)

    # Keepalives.

    def keep_alive(self, received: Received) -> None:
        """Send the KEEPALIVE that is due."""
        self._send(received.now)

    def announce(self, now: float) -> None:
        """Send a KEEPALIVE beside those that are due, if the session is up."""
        if self._vars.state is State.UP:
            self._send(now)

    def await_heard(self, now: float) -> None:
        """Repeat KEEPALIVEs until the remote has heard one that was sent last; Heard follows."""
        if self._vars.link is not None and self._vars.state is State.UP:
            self._vars.link.unheard = self._vars.link.sent
            self._due[Input.SEND_DUE] = now + LINKED_REPEAT_S

    def take_keepalive(self, received: Received) -> None:
        """Take a KEEPALIVE of the session. Raises RemoteProtocolError where its keys are wrong."""
        now, message, link = received.now, received.message_of(Keepalive), self._vars.the_link()
        before = link.remote_description
        rtt_s = link.take_keepalive(message, now)
        self._vars.rtt_s = self._vars.rtt_s if rtt_s is None else rtt_s
        self._settle()
        if message.arrived is not None:
            self._events.put(events.EchoesArrived(message.arrived))
        link.heard_back = link.heard_back or message.heard >= link.proof
        if not self._go_up(now) and not message.up and not link.remote_was_up:
            self._send(now)
        if self._vars.state is State.UP:
            self._await_keepalives(link, now)
            if before is not None and before.frame_port not in (
                None,
                message.description.frame_port,
            ):
                # Its frames leave from there as soon as it knows that this end knows.
                self._send(now)
        if link.unheard and message.heard >= link.unheard:
            link.unheard = 0
            self._events.put(events.Heard())
        renewal = self._vars.renewal
        if renewal is not None and renewal.is_refuted_by_the_session:
            self._renewer.end(now)
        if message.up:
            link.remote_was_up = True
        elif link.remote_was_up:
            self._lose(Cause.NOT_HEARD.say(), now)
            return
        if link.encryption is not None:
            said = Fields(message.noise_1, message.noise_2, message.generation)
            try:
                link.encryption.receive(said, now)
            finally:
                self._after_keys(now)

    def miss_keepalives(self, received: Received) -> None:
        """Tell the remote that three keepalives are missing: one direction may still work."""
        interval_s = self._vars.the_link().keepalive_s
        self._send(received.now, farewell=True)
        self._lose(Cause.KEEPALIVES_MISSED.say(interval_s=interval_s), received.now)

    def _await_keepalives(self, link: Link, now: float) -> None:
        self._due[Input.EXPIRED] = now + MISSED_INTERVALS * link.keepalive_s

    def _go_up(self, now: float) -> bool:
        """Go up if both ends hear each other, and this one can send frames."""
        link = self._vars.the_link()
        linked = self._vars.state is State.LINKED
        if not linked or not (link.heard_back and link.sends_frames):
            return False
        self._vars.state = State.UP
        self._events.up()
        self._send(now)
        self._await_keepalives(link, now)
        return True

    def _send(self, now: float, *, farewell: bool = False) -> None:
        link = self._vars.the_link()
        up = self._vars.state is State.UP and not farewell
        if link.keys_lost or (link.encryption is not None and link.encryption.silent):
            self._due[Input.SEND_DUE] = now + LINKED_REPEAT_S
            return
        arrived = None if self._echoes_arrived is None else self._echoes_arrived()
        said = link.keepalive(self._local.description, now, up=up, arrived=arrived)
        self._local.send(said, link)
        rests = up and not link.unheard
        delay_s = self._jitter.apply(link.keepalive_s) if rests else LINKED_REPEAT_S
        self._due[Input.SEND_DUE] = now + delay_s

    # Probes.

    def probe(self, size: int) -> bool:
        """Send a PROBE of this size, in bytes of UDP payload; False: the session is not up."""
        link = self._vars.link
        if link is None or self._vars.state is not State.UP:
            return False
        self._local.send(link.probe(size), link, dont_fragment=True)
        return True

    def answer_probe(self, received: Received) -> None:
        link = self._vars.the_link()
        self._local.send(link.probe_reply(received.message_of(Probe).size), link)

    def take_probe_reply(self, received: Received) -> None:
        if self._vars.state is State.UP:
            self._events.put(events.ProbeAnswered(received.message_of(ProbeReply).size))

    # Keys of frames. Each call is for the encryption that there is; others change nothing.

    def keys_installed(self, installation: int, now: float) -> None:
        """Say that the worker has the keys of this number: see encryption.KeyHolder.install."""
        for encryption in self._vars.encryptions():
            if encryption.installation == installation:
                encryption.installed(installation, now)
                self._after_keys(now)
                return

    def keys_used(self, generation: int, frames: int, octets: int, now: float) -> None:
        """Say how much this end has sent with a generation's key."""
        if self._vars.link is not None and self._vars.link.encryption is not None:
            self._vars.link.encryption.used(generation, frames, octets, now)
            self._after_keys(now)

    def want_rekey(self, now: float) -> None:
        """Ask for new keys as soon as may be."""
        if self._vars.link is not None and self._vars.link.encryption is not None:
            self._vars.link.encryption.want_rekey(now)
            self._after_keys(now)

    def lose_keys(self, now: float) -> None:
        """Say that the key holder was replaced: the session's keys are lost, but for the worker's.

        Control messages cannot be tagged any more, so another session is sought at once.
        """
        for encryption in self._vars.encryptions():
            encryption.lose_holder(now)
        self._after_keys(now)

    def handle_keys_timer(self, received: Received) -> None:
        link = self._vars.the_link()
        if link.encryption is not None:
            link.encryption.handle_timer(received.now)
        self._after_keys(received.now)

    def _after_keys(self, now: float) -> None:
        """Do what the encryption of the session wants done; to be called after each call of it."""
        link = self._vars.link
        if link is None or link.encryption is None:
            return
        outcome = settle_keys(link, now, in_session=self._vars.in_session)
        if outcome.session_wanted and self._vars.renewal is None:
            self._renewer.seek(Purpose.KEYS, now)
        if outcome.ended is not None:
            self._lose(outcome.ended, now)
            return
        if self._local.cipher is not None and link.encryption.phase is not None:
            self._local.cipher.phase = link.encryption.phase
        if not self._vars.in_session:
            return
        wanted = link.encryption.take_keepalive_wanted()
        if not self._go_up(now) and wanted:
            self._send(now)
        due = min(link.encryption.next_timer() or math.inf, link.predecessor_until)
        if due == math.inf:
            self._due.pop(Input.KEYS_DUE, None)
        else:
            self._due[Input.KEYS_DUE] = due


ACTIONS: dict[MessageType, Callable[[Adjacency, Received], None]] = {
    MessageType.KEEPALIVE: Adjacency.take_keepalive,
    MessageType.PROBE: Adjacency.answer_probe,
    MessageType.PROBE_REPLY: Adjacency.take_probe_reply,
}
"""What the messages of a session do that both ends have; how it ends is Session's."""
