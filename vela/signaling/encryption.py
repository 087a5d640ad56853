"""The keys of one encrypted session: when they are made, used and wiped. Pure.

docs/protocol.md, sections 4.11 and 4.12. The state machine never sees a key: it tells a KeyHolder
what to do. The contract is that of the session, which drives it:

    in    begin, respond              the first generation, from the CONFIRM
          receive                     what a KEEPALIVE of the session says of keys
          installed, used, want_rekey what the worker and its owner tell
          handle_timer, wipe
    out   fields()                    goes into every KEEPALIVE
          take_keepalive_wanted()     True: send a KEEPALIVE now
          next_event(), next_timer()

now is seconds of CLOCK_BOOTTIME, so that a key is old when a sleeping machine wakes.

A generation of keys is made by one Noise handshake. Both ends are ready to receive with it before
either one sends with it:

    initiator                                 responder
    ASKING       message 1  ───────────────▶  INSTALLING   its worker takes the keys
    INSTALLING   ◀──────────────  message 2   ANSWERING    can receive with them
    ANNOUNCING   generation ───────────────▶  SETTLED      sends with them
    SETTLED      ◀──────────────  generation

What is lost is said again: message 1 and the initiator's generation each second, message 2 in
each KEEPALIVE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from vela.errors import RemoteProtocolError
from vela.reasons import Cause, Reason
from vela.signaling.frame_keys import Answer, KeyHolder, KeysUnavailable, Role
from vela.signaling.generations import EncryptionStatus, Generation, Generations, Limits
from vela.signaling.limiter import TokenBucket
from vela.signaling.messages import HANDSHAKE, MAX_GENERATION, Suites
from vela.signaling.session_name import SessionName
from vela.signaling.signer import Signer
from vela.signaling.suites import choose, set_of

# A handshake is answered with X25519, twice for an ephemeral and twice for a static key.
HANDSHAKE_RATE, HANDSHAKE_BURST = 10.0, 10.0


class State(Enum):
    """Of the newest generation; see above."""

    IDLE = auto()
    ASKING = auto()
    INSTALLING = auto()
    ANNOUNCING = auto()
    ANSWERING = auto()
    WANTING = auto()  # the responder asks for a new generation
    SETTLED = auto()
    ENDED = auto()


class Input(Enum):
    """What can happen."""

    BEGIN = auto()
    MESSAGE_1 = auto()
    MESSAGE_1_AGAIN = auto()  # the one that this end has answered, or is about to
    MESSAGE_2 = auto()
    GENERATION = auto()  # the other end receives with the newest generation
    NEXT_WANTED = auto()  # the responder asks for the next one
    INSTALLED = auto()  # the worker has the newest generation
    REKEY_DUE = auto()  # at this end
    REPEAT_DUE = auto()
    EXPIRED = auto()
    WIPE = auto()


@dataclass(frozen=True, slots=True)
class Fields:
    """What a KEEPALIVE says of keys: its fields of these names."""

    noise_1: bytes | None = None
    noise_2: bytes | None = None
    generation: int | None = None


# Events.


@dataclass(frozen=True, slots=True)
class Ready:
    """This end sends with this generation from now on."""

    generation: int


@dataclass(frozen=True, slots=True)
class Ended:
    """There are no keys any more: frames are dropped, and the session is of no use."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class SessionWanted:
    """No rekey is possible, as the key holder was lost: seek another session beside this one.

    Frames go on with the keys that the worker has, until they expire.
    """


Event = Ready | Ended | SessionWanted


class Encryption:
    """The generations of keys of one session, at one end."""

    def __init__(
        self,
        role: Role,
        session: SessionName,
        holder: KeyHolder,
        *,
        suites: Suites,
        phase_in_use: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        """suites: what this end can do.

        phase_in_use: that of the session before, whose keys the worker may still have; the
        responder begins with the other one.
        """
        self.role = role
        self.ignored = 0
        """Handshakes that came too fast."""
        self.remote_static: bytes | None = None
        """The public key that the initiator has proved to have, at the responder."""
        self._session, self._holder = session, holder
        self._suites, self._phase_in_use = suites, phase_in_use
        self._limits = Limits() if limits is None else limits
        self._table = _TABLES[role]
        self._state = State.IDLE
        self._message_1 = self._message_2 = b""
        self._keys = Generations(holder, self._limits)
        self._rekey_wanted = self._keepalive_wanted = self._answering = False
        self._begun_at: float | None = None
        self._handshakes = TokenBucket(HANDSHAKE_RATE, HANDSHAKE_BURST)
        self._repeat_at: float | None = None
        self._rekey_at: float | None = None
        self._events: deque[Event] = deque()

    @property
    def state(self) -> State:
        return self._state

    @property
    def ready(self) -> bool:
        """Whether this end may send frames: the other one is known to receive them."""
        return self._keys.sending is not None and self._state is not State.ENDED

    @property
    def silent(self) -> bool:
        """Whether a responder sends no KEEPALIVE yet: it cannot receive frames.

        The first one brings message 2; without it, it would say that this end does not encrypt.
        """
        return self._state is State.INSTALLING and self._keys.sending is None

    @property
    def signer(self) -> Signer | None:
        """What tags the session's control messages; None: there are no keys yet."""
        return self._holder.signer

    @property
    def installation(self) -> int:
        """The number that installed() waits for; 0: the worker has all keys."""
        return self._keys.installation if self._state is State.INSTALLING else 0

    @property
    def sending(self) -> int:
        """The generation that this end sends with; 0: none."""
        return 0 if self._keys.sending is None else self._keys.sending.number

    @property
    def phase(self) -> int | None:
        """That of the newest keys: the next session begins with the other one."""
        newest = self._keys.newest
        return None if newest is None else newest.answer.phase

    def status(self, now: float) -> EncryptionStatus | None:
        return None if self._state is State.ENDED else self._keys.status(now)

    # The first generation.

    def begin(self, confirm_tlvs: bytes, now: float) -> bytes:
        """Return message 1 for the CONFIRM, at the initiator; the session repeats it.

        confirm_tlvs: codec.transcript(). A CONFIRM with other TLVs needs another Encryption: a
        handshake is for one prologue. Raises KeysUnavailable.
        """
        self._check_role(Role.INITIATOR)
        self._step_allowed(Input.BEGIN)
        self._message_1 = self._holder.begin(1, self._session.prologue(confirm_tlvs))
        self._begun_at = now
        self._state = State.ASKING
        return self._message_1

    def respond(self, confirm_tlvs: bytes, message: bytes, offered: Suites, now: float) -> None:
        """Take the CONFIRM, at the responder.

        Raises RemoteProtocolError if message 1 is wrong, KeysUnavailable, and ValueError where
        refusal() should have been asked before.
        """
        self._check_role(Role.RESPONDER)
        self._step_allowed(Input.BEGIN)
        suite = choose(self._suites, offered)
        if suite is None:
            raise ValueError("no suite in common")
        phase = 0 if self._phase_in_use is None else 1 - self._phase_in_use
        answer = Answer(suite, phase)
        self._answer_with(1, self._session.prologue(confirm_tlvs), message, answer, now)

    # What the other end says.

    def receive(self, fields: Fields, now: float) -> None:
        """Take what a KEEPALIVE of the session says; its counter is higher than all before.

        Raises RemoteProtocolError, to be counted; nothing has changed then.
        """
        if self._state in (State.IDLE, State.ENDED):
            return
        happened = self._classify(fields)
        if happened is not None:
            self._step(happened, now, fields)

    def _classify(self, fields: Fields) -> Input | None:
        if self.role is Role.RESPONDER:
            if fields.noise_2 is not None:
                raise _refused("message 2 from the initiator")
            if fields.noise_1 is not None:
                again = fields.noise_1 == self._message_1
                return Input.MESSAGE_1_AGAIN if again else Input.MESSAGE_1
        else:
            if fields.noise_1 is not None:
                raise _refused("message 1 from the responder")
            if fields.noise_2 is not None:
                return Input.MESSAGE_2
        if fields.generation is None:
            return None
        newest = self._keys.number
        if fields.generation == newest:
            return Input.GENERATION
        if self.role is Role.INITIATOR and fields.generation == newest + 1:
            return Input.NEXT_WANTED
        raise _refused(f"generation {fields.generation}; {newest} is the newest one")

    # What this end's worker and owner say.

    def installed(self, installation: int, now: float) -> None:
        """Say that the worker has the keys that KeyHolder.install() gave this number."""
        if installation == self._keys.installation:
            self._step(Input.INSTALLED, now)

    def used(self, generation: int, frames: int, octets: int, now: float) -> None:
        """Say how much was sent with a key: frames, and their bytes."""
        if not self.ready or generation != self.sending:
            return
        self._keys.frames = frames
        if frames >= self._limits.expire_frames:
            self._step(Input.EXPIRED, now)
        elif frames >= self._limits.rekey_frames or octets >= self._limits.rekey_bytes:
            self.want_rekey(now)

    def want_rekey(self, now: float) -> None:
        """Ask for new keys as soon as may be: a worker that had the present ones died."""
        if self.ready:
            self._step(Input.REKEY_DUE, now)

    def lose_holder(self, now: float) -> None:
        """Say that the key holder is another one, which knows nothing of this session."""
        if self._state not in (State.IDLE, State.ENDED):
            self._want_session(now)

    def wipe(self) -> None:
        """Wipe all keys: the session is over. No event follows."""
        self._step(Input.WIPE, 0.0)

    # Time.

    def next_timer(self) -> float | None:
        """Return when to call handle_timer; ask again after every other call."""
        if self._state in (State.IDLE, State.ENDED):
            return None
        keys = self._keys
        times = (keys.expires_at, self._repeat_at, self._rekey_at, keys.retires_at)
        return min((at for at in times if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due; to be called at next_timer() or later."""
        expires_at = None if self._state is State.ENDED else self._keys.expires_at
        if expires_at is not None and expires_at <= now:
            self._step(Input.EXPIRED, now)
        retires_at = self._keys.retires_at
        if retires_at is not None and retires_at <= now:
            self._keys.retire()
        if self._repeat_at is not None and self._repeat_at <= now:
            self._repeat_at = None
            self._step(Input.REPEAT_DUE, now)
        if self._rekey_at is not None and self._rekey_at <= now:
            self._rekey_at = None
            self._step(Input.REKEY_DUE, now)

    # What this end says.

    def fields(self) -> Fields:
        """Return what the next KEEPALIVE says."""
        newest = self._keys.number
        match self._state:
            case State.ASKING if newest:  # the first message 1 is in the CONFIRM
                return Fields(noise_1=self._message_1)
            case State.ANSWERING:
                return Fields(noise_2=self._message_2)
            case State.ANNOUNCING:
                return Fields(generation=newest)
            case State.WANTING:
                return Fields(generation=newest + 1)
            case State.SETTLED if self._answering:
                self._answering = False
                return Fields(generation=newest)
        return Fields()

    def take_keepalive_wanted(self) -> bool:
        """Tell whether a KEEPALIVE is to be sent now; it is asked for once."""
        wanted, self._keepalive_wanted = self._keepalive_wanted, False
        return wanted

    def next_event(self) -> Event | None:
        """Hand over the oldest event."""
        return self._events.popleft() if self._events else None

    # Dispatch.

    def _check_role(self, role: Role) -> None:
        if self.role is not role:
            raise RuntimeError(f"a call for the {role.name.lower()}")

    def _step_allowed(self, happened: Input) -> None:
        if (self._state, happened) not in self._table:
            raise RuntimeError(f"{happened.name} in {self._state.name}")

    def _step(self, happened: Input, now: float, fields: Fields | None = None) -> None:
        self._step_allowed(happened)
        self._table[self._state, happened](self, now, fields or Fields())

    def _ignore(self, now: float, fields: Fields) -> None:
        pass

    # The initiator.

    def _ask(self, now: float, fields: Fields) -> None:
        """Begin the next generation, unless the last one was begun a moment ago."""
        if self._defers_rekey(now):
            return
        newest = self._keys.the_newest().number
        if newest == MAX_GENERATION:
            return  # after 136 years at one a second; the key expires
        try:
            prologue = self._session.rekey_prologue(newest + 1)
            self._message_1 = self._holder.begin(newest + 1, prologue)
        except KeysUnavailable:
            self._want_session(now)
            return
        self._begun_at = now
        self._rekey_at, self._rekey_wanted = None, False
        self._state = State.ASKING
        self._say_now_and_again(now)

    def _say_now_and_again(self, now: float, _: Fields | None = None) -> None:
        self._keepalive_wanted = True
        self._repeat_at = now + self._limits.repeat_s

    def _finish(self, now: float, fields: Fields) -> None:
        """Take message 2, and let the worker receive before it sends."""
        number = self._keys.number + 1
        try:
            answer = self._holder.finish(number, fields.noise_2 or b"")
            self._check_answer(answer)
            self._keys.install(Generation(number, answer, now))
        except KeysUnavailable:
            self._want_session(now)
            return
        self._state, self._repeat_at = State.INSTALLING, None

    def _check_answer(self, answer: Answer) -> None:
        """Raises RemoteProtocolError."""
        newest = self._keys.newest
        if newest is None:
            if not set_of(answer.suite) & self._suites:
                raise _refused(f"suite {answer.suite}, which was not offered")
        elif answer != Answer(newest.answer.suite, 1 - newest.answer.phase):
            raise _refused("another suite, or the phase that is in use")

    def _announce(self, now: float, fields: Fields) -> None:
        """Send with the newest generation, and say so until the responder has heard it."""
        if self._switch(now):
            self._state = State.ANNOUNCING
            self._say_now_and_again(now)

    def _settle(self, now: float, fields: Fields) -> None:
        """The responder sends with the newest generation, too."""
        self._state, self._repeat_at = State.SETTLED, None
        self._keys.settle(now)
        self._rekey_at = self._keys.the_newest().born + self._limits.rekey_after_s
        if self._rekey_wanted:
            self._ask(now, fields)

    def _settle_and_ask(self, now: float, fields: Fields) -> None:
        self._settle(now, fields)
        if self._state is State.SETTLED:
            self._ask(now, fields)

    # The responder.

    def _answer(self, now: float, fields: Fields) -> None:
        """Answer message 1 of the generation after the one that is sent with."""
        sending = self._keys.sending
        if sending is None:
            return  # the first one is in the CONFIRM
        if not self._handshakes.take(now):
            self.ignored += 1
            return
        number, answer = sending.number + 1, sending.answer
        if number > MAX_GENERATION:
            return
        answer = Answer(answer.suite, 1 - answer.phase)
        prologue = self._session.rekey_prologue(number)
        try:
            self._answer_with(number, prologue, fields.noise_1 or b"", answer, now)
        except KeysUnavailable:
            self._want_session(now)

    def _answer_with(
        self, number: int, prologue: bytes, message: bytes, answer: Answer, now: float
    ) -> None:
        """Raises RemoteProtocolError, KeysUnavailable."""
        self._message_2, public = self._holder.respond(number, prologue, message, answer)
        self._message_1 = message
        self.remote_static = public
        self._state, self._repeat_at = State.INSTALLING, None
        self._keys.install(Generation(number, answer, now))

    def _can_receive(self, now: float, fields: Fields) -> None:
        self._state = State.ANSWERING
        self._keepalive_wanted = True

    def _say_again(self, now: float, fields: Fields) -> None:
        self._keepalive_wanted = True

    def _follow(self, now: float, fields: Fields) -> None:
        """Send with the newest generation, now that the initiator does."""
        if self._switch(now):
            self._state = State.SETTLED
            self._keys.settle(now)
            self._acknowledge(now, fields)
            if self._rekey_wanted:
                self._want(now, fields)

    def _acknowledge(self, now: float, fields: Fields) -> None:
        """Say again that this end sends with the newest generation: the last answer was lost."""
        self._answering = self._keepalive_wanted = True

    def _want(self, now: float, fields: Fields) -> None:
        """Ask the initiator for a new generation."""
        if self._defers_rekey(now):
            return
        self._rekey_at, self._rekey_wanted = None, False
        self._begun_at = now
        self._state = State.WANTING
        self._say_now_and_again(now)

    # Both.

    def _defers_rekey(self, now: float) -> bool:
        """Tell whether it is too early for a rekey; then it comes by itself."""
        if self._begun_at is None:
            return False
        at = self._begun_at + self._limits.repeat_s
        if at <= now:
            return False
        self._rekey_at = at
        return True

    def _remember_rekey(self, now: float, fields: Fields) -> None:
        """Rekey when the one that is under way has ended: it may be of before the reason."""
        self._rekey_wanted = True

    def _switch(self, now: float) -> bool:
        """Send with the newest generation; False: the keys are gone."""
        try:
            self._keys.switch(now)
        except KeysUnavailable:
            self._want_session(now)
            return False
        self._events.append(Ready(self.sending))
        return True

    def _want_session(self, now: float) -> None:
        """The key holder was lost. The worker goes on with the keys that it has."""
        self._events.append(SessionWanted())
        if self._keys.sending is not None:
            self._keys.stay()
            self._state, self._repeat_at = State.SETTLED, None
            self._rekey_at = now + self._limits.rekey_after_s

    def _expire(self, now: float, fields: Fields) -> None:
        self._end(now, fields)
        limits = self._limits
        if self._keys.frames >= limits.expire_frames:
            reason = Cause.KEY_USED_UP.say(frames=limits.expire_frames)
        else:
            reason = Cause.KEY_TOO_OLD.say(age_s=limits.expire_after_s)
        self._events.append(Ended(reason))

    def _end(self, now: float, fields: Fields) -> None:
        self._state = State.ENDED
        self._repeat_at = self._rekey_at = None
        self._message_1 = self._message_2 = b""
        self._keepalive_wanted = self._answering = False
        self._keys.wipe()


# All that can happen, and what is done. A pair that is not here is a bug: classify and the timers
# let through only what fits the state. What is the same in all states of both is added below.
_Action = Callable[[Encryption, float, Fields], None]
_S, _I, _E = State, Input, Encryption
_INITIATOR: dict[tuple[State, Input], _Action] = {
    (_S.IDLE, _I.BEGIN): _E._ignore,  # begin() does it
    #
    (_S.ASKING, _I.MESSAGE_2): _E._finish,
    (_S.ASKING, _I.GENERATION): _E._ignore,
    (_S.ASKING, _I.NEXT_WANTED): _E._ignore,
    (_S.ASKING, _I.INSTALLED): _E._ignore,
    (_S.ASKING, _I.REKEY_DUE): _E._ignore,
    (_S.ASKING, _I.REPEAT_DUE): _E._say_now_and_again,
    #
    (_S.INSTALLING, _I.MESSAGE_2): _E._ignore,
    (_S.INSTALLING, _I.GENERATION): _E._ignore,
    (_S.INSTALLING, _I.NEXT_WANTED): _E._remember_rekey,
    (_S.INSTALLING, _I.INSTALLED): _E._announce,
    (_S.INSTALLING, _I.REKEY_DUE): _E._remember_rekey,
    #
    (_S.ANNOUNCING, _I.MESSAGE_2): _E._say_again,
    (_S.ANNOUNCING, _I.GENERATION): _E._settle,
    (_S.ANNOUNCING, _I.NEXT_WANTED): _E._settle_and_ask,
    (_S.ANNOUNCING, _I.INSTALLED): _E._ignore,
    (_S.ANNOUNCING, _I.REKEY_DUE): _E._remember_rekey,
    (_S.ANNOUNCING, _I.REPEAT_DUE): _E._say_now_and_again,
    #
    (_S.SETTLED, _I.MESSAGE_2): _E._ignore,
    (_S.SETTLED, _I.GENERATION): _E._ignore,
    (_S.SETTLED, _I.NEXT_WANTED): _E._ask,
    (_S.SETTLED, _I.INSTALLED): _E._ignore,
    (_S.SETTLED, _I.REKEY_DUE): _E._ask,
}
_RESPONDER: dict[tuple[State, Input], _Action] = {
    (_S.IDLE, _I.BEGIN): _E._ignore,  # respond() does it
    #
    (_S.INSTALLING, _I.MESSAGE_1): _E._answer,
    (_S.INSTALLING, _I.MESSAGE_1_AGAIN): _E._ignore,
    (_S.INSTALLING, _I.GENERATION): _E._ignore,
    (_S.INSTALLING, _I.INSTALLED): _E._can_receive,
    (_S.INSTALLING, _I.REKEY_DUE): _E._remember_rekey,
    #
    (_S.ANSWERING, _I.MESSAGE_1): _E._answer,
    (_S.ANSWERING, _I.MESSAGE_1_AGAIN): _E._say_again,
    (_S.ANSWERING, _I.GENERATION): _E._follow,
    (_S.ANSWERING, _I.INSTALLED): _E._ignore,
    (_S.ANSWERING, _I.REKEY_DUE): _E._remember_rekey,
    #
    (_S.SETTLED, _I.MESSAGE_1): _E._answer,
    (_S.SETTLED, _I.MESSAGE_1_AGAIN): _E._ignore,
    (_S.SETTLED, _I.GENERATION): _E._acknowledge,
    (_S.SETTLED, _I.INSTALLED): _E._ignore,
    (_S.SETTLED, _I.REKEY_DUE): _E._want,
    #
    (_S.WANTING, _I.MESSAGE_1): _E._answer,
    (_S.WANTING, _I.MESSAGE_1_AGAIN): _E._ignore,
    (_S.WANTING, _I.GENERATION): _E._ignore,  # the initiator takes the wish for an answer, too
    (_S.WANTING, _I.INSTALLED): _E._ignore,
    (_S.WANTING, _I.REKEY_DUE): _E._ignore,
    (_S.WANTING, _I.REPEAT_DUE): _E._say_now_and_again,
}
for _table in (_INITIATOR, _RESPONDER):
    _states = {state for state, _ in _table} - {_S.IDLE}
    _table.update({(state, _I.EXPIRED): _E._expire for state in _states})
    _table.update({(state, _I.WIPE): _E._end for state in _states | {_S.IDLE}})
    _table.update({(_S.ENDED, each): _E._ignore for each in _I if each is not _I.BEGIN})
_TABLES: Mapping[Role, Mapping[tuple[State, Input], _Action]] = {
    Role.INITIATOR: _INITIATOR,
    Role.RESPONDER: _RESPONDER,
}


def _refused(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(HANDSHAKE, detail)
