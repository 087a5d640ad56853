"""When keys of an encrypted session are made, used and wiped: by table, and on a bad network."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from ipaddress import ip_address
from typing import Any

import pytest
from encrypted_ends import (
    BOTH,
    IDENTITIES,
    NONCES,
    SESSION,
    End,
    LocalHolder,
    link_of,
    session_secrets,
)
from simulated_link import CIRCUIT, LOCAL1, ROUTER1, ROUTER2, Weather

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.reasons import Reason
from vela.signaling import encryption
from vela.signaling.codec import encode, transcript
from vela.signaling.encryption import (
    Encryption,
    Ended,
    Fields,
    Input,
    Ready,
    SessionWanted,
    State,
)
from vela.signaling.frame_keys import Answer, Role
from vela.signaling.generations import Limits
from vela.signaling.messages import (
    MAX_GENERATION,
    CipherOffer,
    Confirm,
    HandshakePattern,
    Keepalive,
    Suites,
)
from vela.signaling.session_name import SessionName
from vela.signaling.session_secrets import psk_of
from vela.signaling.signer import TAG_LENGTH
from vela.signaling.suites import choose, refusal
from vela.wire import Suite

NOW = 1000.0
IK, NN = HandshakePattern.IK_PSK2, HandshakePattern.NN_PSK0
AES, CHACHA = Suites.AES_256_GCM, Suites.CHACHA20_POLY1305
TLVS = bytes(range(40))
SHORT = Limits(rekey_after_s=4.0, expire_after_s=6.0, repeat_s=0.5, keep_old_s=1.0)

every_pattern = pytest.mark.parametrize(
    "pattern", list(HandshakePattern), ids=lambda each: each.name
)


class Pair:
    """Both ends, each asked and answered by hand, without a network."""

    def __init__(
        self,
        pattern: HandshakePattern = NN,
        *,
        limits: Limits | None = None,
        suites: tuple[Suites, Suites] = (BOTH, BOTH),
        phase_in_use: int | None = None,
    ) -> None:
        dice = random.Random(1)
        self.now = NOW
        self.holders = {role: LocalHolder(session_secrets(role, pattern, dice)) for role in Role}
        self.ends = {
            role: Encryption(
                role,
                SESSION,
                self.holders[role],
                suites=suites[0] if role is Role.INITIATOR else suites[1],
                limits=limits,
                phase_in_use=phase_in_use,
            )
            for role in Role
        }
        self.initiator, self.responder = self.ends[Role.INITIATOR], self.ends[Role.RESPONDER]
        self.suites = suites

    def confirm(self) -> None:
        message = self.initiator.begin(TLVS, self.now)
        self.responder.respond(TLVS, message, self.suites[0], self.now)

    def install(self, role: Role) -> None:
        self.ends[role].installed(self.holders[role].take(), self.now)

    def say(self, role: Role) -> Fields:
        """Let an end say what it has to say to the other one."""
        end = self.ends[role]
        end.take_keepalive_wanted()
        said = end.fields()
        other = Role.RESPONDER if role is Role.INITIATOR else Role.INITIATOR
        self.ends[other].receive(said, self.now)
        return said

    def come_up(self) -> None:
        self.confirm()
        self.finish()

    def finish(self) -> None:
        """Go on from message 1 at the responder."""
        self.install(Role.RESPONDER)
        self.say(Role.RESPONDER)
        self.install(Role.INITIATOR)
        self.say(Role.INITIATOR)
        self.say(Role.RESPONDER)

    def begin_again(self) -> None:
        """Let another message 1 of the second generation take the place of the one there was."""
        secrets = self.holders[Role.INITIATOR].secrets
        message = secrets.begin(2, SESSION.rekey_prologue(2))
        self.responder.receive(Fields(noise_1=message), self.now)

    def later(self, seconds: float) -> None:
        self.now += seconds
        for end in self.ends.values():
            due = end.next_timer()
            if due is not None and due <= self.now:
                end.handle_timer(self.now)

    def events(self, role: Role) -> list[Any]:
        end = self.ends[role]
        return list(iter(end.next_event, None))


def pair_in(role: Role, state: State) -> Pair:
    """Return a pair of which one end is in this state."""
    pair = Pair()
    if state is State.IDLE:
        return pair
    pair.confirm()
    if role is Role.INITIATOR:
        if state in (State.INSTALLING, State.ANNOUNCING):
            pair.install(Role.RESPONDER)
            pair.say(Role.RESPONDER)
        if state is State.ANNOUNCING:
            pair.install(Role.INITIATOR)
    elif state is State.ANSWERING:
        pair.install(Role.RESPONDER)
    if state in (State.SETTLED, State.WANTING, State.ENDED):
        pair.finish()
        pair.later(2.0)
    if state is State.WANTING:
        pair.responder.want_rekey(pair.now)
    if state is State.ENDED:
        pair.ends[role].wipe()
    assert pair.ends[role].state is state
    return pair


STATES = {
    Role.INITIATOR: (
        *(State.IDLE, State.ASKING, State.INSTALLING, State.ANNOUNCING, State.SETTLED),
        State.ENDED,
    ),
    Role.RESPONDER: (
        *(State.IDLE, State.INSTALLING, State.ANSWERING, State.SETTLED, State.WANTING),
        State.ENDED,
    ),
}
# Inputs that classify and timers let through in a state; all other pairs are bugs.
IMPOSSIBLE = {
    Role.INITIATOR: {Input.MESSAGE_1, Input.MESSAGE_1_AGAIN},
    Role.RESPONDER: {Input.MESSAGE_2, Input.NEXT_WANTED},
}
REPEATING = {State.ASKING, State.ANNOUNCING, State.WANTING}


@pytest.mark.parametrize(
    ("role", "state", "happened"),
    [
        pytest.param(role, state, happened, id=f"{role.name}-{state.name}-{happened.name}")
        for role in Role
        for state in STATES[role]
        for happened in Input
    ],
)
def test_every_state_takes_what_can_happen_in_it_and_no_more(
    role: Role, state: State, happened: Input
) -> None:
    possible = (
        (state is State.ENDED and happened is not Input.BEGIN)
        or happened is Input.WIPE
        or (happened is Input.BEGIN and state is State.IDLE)
        or (
            happened not in IMPOSSIBLE[role] | {Input.BEGIN}
            and state is not State.IDLE
            and (happened is not Input.REPEAT_DUE or state in REPEATING)
        )
    )

    assert ((state, happened) in encryption._TABLES[role]) is possible
    if not possible:
        end = pair_in(role, state).ends[role]
        with pytest.raises(RuntimeError, match=f"{happened.name} in {state.name}"):
            end._step(happened, NOW)
        assert end.state is state


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_every_state_of_a_role_can_be_reached(role: Role) -> None:
    for state in STATES[role]:
        pair_in(role, state)
    assert {state for state, _ in encryption._TABLES[role]} == set(STATES[role])


@pytest.mark.parametrize(
    ("role", "state"),
    [
        pytest.param(role, state, id=f"{role.name}-{state.name}")
        for role in Role
        for state in STATES[role]
    ],
)
def test_keys_are_wiped_from_every_state(role: Role, state: State) -> None:
    pair = pair_in(role, state)

    pair.ends[role].wipe()

    end, holder = pair.ends[role], pair.holders[role]
    assert end.state is State.ENDED
    assert not end.ready
    assert end.next_timer() is None
    assert end.fields() == Fields()
    assert not end.take_keepalive_wanted()
    assert holder.worker.places == {}
    assert holder.worker.sending is None
    assert holder.worker.seal() is None


# The first generation.


@every_pattern
def test_ends_come_up_with_keys_in_common(pattern: HandshakePattern) -> None:
    pair = Pair(pattern)

    pair.come_up()

    assert [end.state for end in pair.ends.values()] == [State.SETTLED] * 2
    assert [end.sending for end in pair.ends.values()] == [1, 1]
    workers = [holder.worker for holder in pair.holders.values()]
    for sender, receiver in (workers, reversed(workers)):
        frame = sender.seal()
        assert frame is not None
        assert receiver.open(frame) == ""
        assert sender.open(frame) == "bad_tag"  # given back to its sender
    assert pair.events(Role.INITIATOR) == pair.events(Role.RESPONDER) == [Ready(1)]
    assert pair.responder.remote_static == (IDENTITIES[0].public if pattern is IK else None)


def test_responder_speaks_when_it_can_receive_and_sends_after_the_initiator() -> None:
    pair = Pair()
    pair.confirm()
    assert pair.responder.silent
    assert not pair.responder.take_keepalive_wanted()

    pair.install(Role.RESPONDER)
    assert not pair.responder.silent
    assert pair.responder.take_keepalive_wanted()
    assert not pair.responder.ready

    pair.say(Role.RESPONDER)
    assert pair.initiator.state is State.INSTALLING
    assert not pair.initiator.ready
    assert pair.initiator.fields() == Fields()

    pair.install(Role.INITIATOR)
    assert pair.initiator.ready
    assert not pair.responder.ready

    assert pair.say(Role.INITIATOR) == Fields(generation=1)
    assert pair.responder.ready
    assert pair.initiator.state is State.ANNOUNCING

    assert pair.say(Role.RESPONDER) == Fields(generation=1)
    assert pair.initiator.state is State.SETTLED
    assert pair.say(Role.RESPONDER) == Fields()


@pytest.mark.parametrize("in_use", [None, 0, 1])
def test_phase_of_a_new_session_is_not_that_in_use(in_use: int | None) -> None:
    pair = Pair(phase_in_use=in_use)

    pair.come_up()

    assert pair.initiator.phase == pair.responder.phase == (1 if in_use == 0 else 0)


@pytest.mark.parametrize(
    ("suites", "taken"),
    [
        ((BOTH, BOTH), Suite.AES_256_GCM),
        ((BOTH, CHACHA), Suite.CHACHA20_POLY1305),
        ((CHACHA, BOTH), Suite.CHACHA20_POLY1305),
        ((AES, BOTH), Suite.AES_256_GCM),
    ],
)
def test_suite_is_the_first_that_both_ends_have(
    suites: tuple[Suites, Suites], taken: Suite
) -> None:
    pair = Pair(suites=suites)

    pair.come_up()

    for end in pair.ends.values():
        status = end.status(pair.now)
        assert status is not None
        assert (status.suite, status.generation, status.frames_left) == (taken, 1, 2**28)
    assert choose(*suites) is taken


def test_suite_that_was_not_offered_is_refused() -> None:
    pair = Pair(suites=(CHACHA, AES))
    message = pair.initiator.begin(TLVS, NOW)
    pair.responder.respond(TLVS, message, BOTH, NOW)  # as if the offer had been changed on the way
    pair.install(Role.RESPONDER)

    with pytest.raises(RemoteProtocolError, match="not offered"):
        pair.say(Role.RESPONDER)

    assert pair.initiator.state is State.ASKING


def confirm(size: int = 320, **changed: Any) -> bytes:
    message = Confirm(
        *(CIRCUIT, *NONCES, 2, changed.pop("local", LOCAL1)),
        size=size,
        ciphers=changed.pop("ciphers", CipherOffer(NN, BOTH)),
        noise_1=changed.pop("noise_1", bytes(48)),
        **changed,
    )
    return encode(message, None)


def test_transcript_is_all_tlvs_of_the_confirm_but_message_1() -> None:
    with_zeros, with_ones = confirm(), confirm(noise_1=b"\1" * 48)

    assert transcript(with_zeros) == transcript(with_ones)
    assert len(transcript(with_zeros)) == len(with_zeros) - 28 - TAG_LENGTH - 3 - 48
    # A TLV that this version does not know counts, too: here, a made-up one before the tag.
    later = with_zeros[:-TAG_LENGTH] + b"\xc8\0\1\7" + bytes(TAG_LENGTH)
    assert transcript(later) == transcript(with_zeros) + b"\xc8\0\1\7"


def test_confirm_with_any_bit_of_its_tlvs_changed_breaks_the_handshake() -> None:
    noise_1_at = confirm().index(bytes(48))
    pair = Pair()
    message = pair.initiator.begin(transcript(confirm()), NOW)
    sent = confirm(noise_1=message)
    right = pair.holders[Role.RESPONDER]
    answer = Answer(Suite.AES_256_GCM, 0)

    for bit in range(28 * 8, 8 * (len(sent) - TAG_LENGTH)):
        changed = bytearray(sent)
        changed[bit // 8] ^= 1 << bit % 8
        data = bytes(changed)
        try:
            seen = transcript(data)
        except Exception:
            continue  # lengths that no longer fit; decode() has refused it
        noise_1 = data[noise_1_at : noise_1_at + 48]
        with pytest.raises(RemoteProtocolError):
            right.secrets.respond(1, SESSION.prologue(seen), noise_1, answer)
    right.secrets.respond(1, SESSION.prologue(transcript(sent)), message, answer)


@pytest.mark.parametrize("changed", ["initiator_nonce", "responder_nonce", "circuit_id"])
def test_handshake_of_another_session_is_refused(changed: str) -> None:
    pair = Pair()
    message = pair.initiator.begin(TLVS, NOW)
    values = {field.name: getattr(SESSION, field.name) for field in fields(SESSION)}
    values[changed] += 1
    other = Encryption(
        Role.RESPONDER,
        SessionName(**values),
        LocalHolder(session_secrets(Role.RESPONDER, NN, random.Random(2))),
        suites=BOTH,
    )

    with pytest.raises(RemoteProtocolError):
        other.respond(TLVS, message, BOTH, NOW)

    assert other.state is State.IDLE


def test_prologue_is_what_the_protocol_says() -> None:
    head = b"vela encryption 1" + bytes.fromhex("0102030405060708 1112131415161718 07")

    assert SESSION.prologue(TLVS) == head + TLVS
    assert SESSION.rekey_prologue(2) == head + b"\0\0\0\2"


# Rekey.


@every_pattern
def test_rekey_after_two_minutes_is_the_initiators(pattern: HandshakePattern) -> None:
    pair = Pair(pattern)
    pair.come_up()

    pair.later(119.9)
    assert not pair.initiator.take_keepalive_wanted()
    pair.later(0.2)
    assert pair.initiator.state is State.ASKING
    assert pair.initiator.take_keepalive_wanted()
    assert pair.responder.state is State.SETTLED

    said = pair.say(Role.INITIATOR)
    assert said.noise_1 is not None
    assert len(said.noise_1) == (96 if pattern is IK else 48)
    pair.finish()

    assert [end.sending for end in pair.ends.values()] == [2, 2]
    assert [end.phase for end in pair.ends.values()] == [1, 1]


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
@pytest.mark.parametrize(
    ("frames", "octets", "asks"),
    [(2**27 - 1, 2**38 - 1, False), (2**27, 0, True), (1, 2**38, True)],
)
def test_rekey_comes_when_either_end_has_used_its_key(
    role: Role, frames: int, octets: int, asks: bool
) -> None:
    pair = Pair()
    pair.come_up()
    pair.later(5.0)

    pair.ends[role].used(1, frames, octets, pair.now)

    if role is Role.RESPONDER and asks:
        assert pair.say(Role.RESPONDER) == Fields(generation=2)
    assert (pair.initiator.state is State.ASKING) is asks
    status = pair.ends[role].status(pair.now)
    assert status is not None
    assert status.frames_left == 2**28 - frames


def test_count_of_an_older_key_does_not_count() -> None:
    pair = Pair()
    pair.come_up()
    pair.later(121.0)
    pair.say(Role.INITIATOR)
    pair.finish()
    pair.later(5.0)

    pair.initiator.used(1, 2**28, 0, pair.now)

    assert pair.initiator.state is State.SETTLED


def test_responder_repeats_its_wish_each_second_until_message_1_comes() -> None:
    pair = pair_in(Role.RESPONDER, State.WANTING)
    assert pair.responder.take_keepalive_wanted()

    for _ in range(3):
        pair.later(1.0)
        assert pair.responder.take_keepalive_wanted()
        assert pair.responder.fields() == Fields(generation=2)

    pair.say(Role.RESPONDER)
    pair.say(Role.INITIATOR)
    assert pair.responder.state is State.INSTALLING
    pair.finish()
    assert pair.responder.sending == 2


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_wish_of_a_worker_that_died_during_a_rekey_makes_another_one(role: Role) -> None:
    pair = Pair()
    pair.come_up()
    pair.later(2.0)
    pair.initiator.want_rekey(pair.now)
    pair.say(Role.INITIATOR)
    pair.ends[role].want_rekey(pair.now)
    if role is Role.INITIATOR:  # which is asking: what comes is newer than the wish
        pair.finish()
        pair.later(1.0)
        assert pair.initiator.state is State.SETTLED
        return

    pair.install(Role.RESPONDER)
    pair.say(Role.RESPONDER)
    pair.install(Role.INITIATOR)
    pair.later(1.0)
    pair.say(Role.INITIATOR)

    assert pair.responder.state is State.WANTING
    assert pair.say(Role.RESPONDER) == Fields(generation=3)
    assert pair.initiator.state is State.ASKING


def test_rekeys_come_at_most_once_a_second() -> None:
    pair = Pair()
    pair.come_up()
    pair.later(5.0)
    pair.initiator.want_rekey(pair.now)
    pair.say(Role.INITIATOR)
    pair.finish()

    for _ in range(5):
        pair.initiator.want_rekey(pair.now)
    begun = []
    for _ in range(3):
        begun.append([what for what, _ in pair.holders[Role.INITIATOR].log].count("begin"))
        pair.later(0.5)

    assert begun == [2, 2, 3]


def test_message_1_is_answered_idempotently() -> None:
    pair = Pair()
    pair.come_up()
    pair.later(121.0)
    said = pair.say(Role.INITIATOR)
    pair.responder.receive(said, pair.now)
    assert pair.responder.fields() == Fields()  # the worker does not have the keys yet
    pair.install(Role.RESPONDER)
    first = pair.responder.fields()
    assert pair.responder.take_keepalive_wanted()

    pair.responder.receive(said, pair.now)

    assert pair.responder.take_keepalive_wanted()
    assert pair.responder.fields() == first
    assert [what for what, _ in pair.holders[Role.RESPONDER].log].count("respond") == 2


def test_another_message_1_before_the_switch_replaces_the_first() -> None:
    pair = Pair()
    pair.come_up()
    pair.later(121.0)
    pair.say(Role.INITIATOR)
    pair.install(Role.RESPONDER)
    pair.begin_again()

    pair.finish()

    assert [end.sending for end in pair.ends.values()] == [2, 2]
    frame = pair.holders[Role.INITIATOR].worker.seal()
    assert frame is not None
    assert pair.holders[Role.RESPONDER].worker.open(frame) == ""


def test_acknowledgement_of_keys_that_were_replaced_does_not_count() -> None:
    pair = Pair()
    pair.come_up()
    pair.later(121.0)
    pair.say(Role.INITIATOR)
    replaced = pair.holders[Role.RESPONDER].take()
    pair.begin_again()

    pair.responder.installed(replaced, pair.now)

    assert pair.responder.state is State.INSTALLING


def test_handshakes_that_come_too_fast_are_ignored() -> None:
    pair = Pair()
    pair.come_up()
    pair.later(5.0)
    for number in range(20):
        message = pair.holders[Role.INITIATOR].secrets.begin(2, SESSION.rekey_prologue(2))
        pair.responder.receive(Fields(noise_1=message), pair.now + number / 1000)

    assert pair.responder.ignored == 10


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_old_receive_key_is_kept_for_ten_seconds_and_wiped_then(role: Role) -> None:
    pair = Pair()
    pair.come_up()
    other = Role.RESPONDER if role is Role.INITIATOR else Role.INITIATOR
    pair.later(121.0)
    late = pair.holders[other].worker.seal()
    assert late is not None
    pair.say(Role.INITIATOR)
    pair.finish()
    worker = pair.holders[role].worker

    pair.later(9.9)
    assert worker.open(late) == ""
    pair.later(0.2)
    assert worker.open(late) == "no_key"
    assert ("retire", 1) in pair.holders[role].log
    assert list(pair.holders[role].known) == [2]


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_keys_end_after_three_minutes_whatever_is_said_meanwhile(role: Role) -> None:
    pair = Pair()
    pair.come_up()
    pair.events(role)

    for _ in range(179):
        pair.later(1.0)  # nothing that an end says arrives
    assert pair.ends[role].ready
    pair.later(1.1)

    end = pair.ends[role]
    assert end.state is State.ENDED
    assert pair.holders[role].worker.places == {}
    assert pair.events(role) == [Ended(Reason("the keys are 180 s old, and no new ones came"))]
    assert end.status(pair.now) is None


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_keys_end_with_their_frames(role: Role) -> None:
    pair = Pair()
    pair.come_up()
    pair.events(role)

    pair.ends[role].used(1, 2**28, 0, pair.now)

    assert pair.ends[role].state is State.ENDED
    (ended,) = pair.events(role)
    assert ended.reason.startswith("268435456 frames")


def test_responder_that_is_never_announced_to_ends_too() -> None:
    pair = Pair()
    pair.confirm()
    pair.install(Role.RESPONDER)

    pair.later(181.0)

    assert pair.responder.state is State.ENDED


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (Role.INITIATOR, Fields(noise_1=bytes(48))),
        (Role.RESPONDER, Fields(noise_2=bytes(50))),
        (Role.INITIATOR, Fields(generation=3)),
        (Role.INITIATOR, Fields(generation=MAX_GENERATION)),
        (Role.RESPONDER, Fields(generation=2)),
        (Role.RESPONDER, Fields(noise_1=bytes(48))),
    ],
)
def test_what_the_other_end_cannot_say_changes_nothing(role: Role, said: Fields) -> None:
    pair = Pair()
    pair.come_up()

    with pytest.raises(RemoteProtocolError) as caught:
        pair.ends[role].receive(said, pair.now)

    assert caught.value.reason == "handshake"
    assert pair.ends[role].state is State.SETTLED
    pair.later(121.0)
    pair.say(Role.INITIATOR)
    pair.finish()
    assert pair.initiator.sending == pair.responder.sending == 2


def test_message_2_in_any_bit_wrong_is_refused_and_the_right_one_taken() -> None:
    pair = Pair(IK)
    pair.confirm()
    pair.install(Role.RESPONDER)
    right = pair.responder.fields().noise_2
    assert right is not None

    for bit in range(8 * len(right)):
        changed = bytearray(right)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            pair.initiator.receive(Fields(noise_2=bytes(changed)), pair.now)

    pair.initiator.receive(Fields(noise_2=right), pair.now)
    assert pair.initiator.state is State.INSTALLING


@pytest.mark.parametrize("payload", [b"", b"\1", b"\0\0", b"\3\0", b"\1\2", b"\1\0\0"])
def test_answer_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Answer.unpack(payload)


@pytest.mark.parametrize(
    "answer", [Answer(Suite.AES_256_GCM, 0), Answer(Suite.CHACHA20_POLY1305, 1)]
)
def test_rekey_with_another_suite_or_the_phase_in_use_is_refused(answer: Answer) -> None:
    pair = Pair()
    pair.come_up()
    pair.later(121.0)
    message = pair.initiator.fields().noise_1
    assert message is not None
    secrets = pair.holders[Role.RESPONDER].secrets
    reply, _ = secrets.respond(2, SESSION.rekey_prologue(2), message, answer)

    with pytest.raises(RemoteProtocolError, match="phase"):
        pair.initiator.receive(Fields(noise_2=reply), pair.now)

    assert pair.initiator.sending == 1


# A key holder that was lost.


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
def test_lost_key_holder_makes_another_session_wanted_and_frames_go_on(role: Role) -> None:
    pair = Pair()
    pair.come_up()
    pair.events(role)
    pair.holders[role].lost = True

    pair.later(121.0)
    if role is Role.RESPONDER:
        pair.say(Role.INITIATOR)

    assert pair.events(role) == [SessionWanted()]
    assert pair.ends[role].ready
    assert pair.holders[role].worker.seal() is not None
    pair.later(60.0)
    assert pair.ends[role].state is State.ENDED
    assert isinstance(pair.events(role)[-1], Ended)


# Policy.


@pytest.mark.parametrize(
    ("own", "offered", "said"),
    [
        (None, None, ""),
        (CipherOffer(NN, BOTH), CipherOffer(NN, CHACHA), ""),
        (CipherOffer(IK, BOTH), None, "the other end requires encryption, and this end does not"),
        (None, CipherOffer(IK, BOTH), "this end requires encryption, and the other end does not"),
        (
            CipherOffer(IK, BOTH),
            CipherOffer(NN, BOTH),
            "this end encrypts by a pre-shared key alone, the other end by public keys",
        ),
        (
            CipherOffer(NN, BOTH),
            CipherOffer(9, BOTH),
            "this end encrypts by another handshake, the other end by a pre-shared key alone",
        ),
        (CipherOffer(NN, AES), CipherOffer(NN, CHACHA), "no cipher in common"),
        (CipherOffer(NN, AES), CipherOffer(NN, Suites(0)), "no cipher in common"),
    ],
)
def test_what_ends_cannot_agree_on_is_refused_in_words(
    own: CipherOffer | None, offered: CipherOffer | None, said: str
) -> None:
    found = refusal(own, offered)

    assert bool(found) is bool(said)
    assert said in found


# On a network.


def ends(seed: int, **options: Any) -> tuple[End, End, random.Random]:
    dice = random.Random(seed)
    return End(Role.INITIATOR, dice, **options), End(Role.RESPONDER, dice, **options), dice


def run(initiator: End, responder: End, dice: random.Random, weather: Weather, until: float) -> Any:
    link = link_of(initiator, responder, dice)
    link.weather = weather
    link.boot()
    link.run(link.now + until)
    return link


@every_pattern
@pytest.mark.parametrize("seed", range(5))
def test_frames_on_a_good_network_are_never_lost_over_many_rekeys(
    pattern: HandshakePattern, seed: int
) -> None:
    limits = Limits(rekey_after_s=1.0, expire_after_s=6.0)
    pair = ends(seed, pattern=pattern, limits=limits, keepalive_s=30.0, frame_interval_s=0.01)

    run(*pair, Weather(longest_delay=0.2), until=60.0)

    initiator, responder, _ = pair
    for end in (initiator, responder):
        assert end.dropped == {"no_key": 0, "bad_tag": 0}
        assert end.stalled == 0
        assert end.errors == []
        assert end.encryption.sending >= 40
        assert end.opened > 5800
        assert not [each for _, each in end.events if not isinstance(each, Ready)]


@every_pattern
@pytest.mark.parametrize("seed", range(25))
def test_ends_on_a_bad_network_always_have_a_key_in_common(
    pattern: HandshakePattern, seed: int
) -> None:
    dice = random.Random(seed)
    weather = Weather(
        loss=dice.choice((0.1, 0.3)),
        duplication=0.3,
        longest_delay=dice.choice((0.02, 0.3)),
    )
    limits = Limits(rekey_after_s=dice.choice((2.0, 5.0)), expire_after_s=60.0, keep_old_s=2.0)
    pair = ends(
        seed,
        pattern=pattern,
        limits=limits,
        slowness_s=dice.choice((0.0, 0.5)),
        keepalive_s=dice.choice((0.3, 5.0)),
    )

    link = run(*pair, weather, until=60.0)

    # Whatever reached the other end could be opened there.
    for end in pair[:2]:
        assert end.dropped == {"no_key": 0, "bad_tag": 0}, seed
        assert end.errors == [], seed
        assert end.encryption.sending >= 3, seed
        assert end.opened > 100
    # And once the network is good again, nothing is left over.
    link.weather = Weather()
    link.run(link.now + 1.9)
    numbers = sorted(end.encryption.sending for end in pair[:2])
    assert numbers[1] - numbers[0] <= 1
    assert all(end.encryption.ready for end in pair[:2])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("deaf", [ROUTER1, ROUTER2])
def test_ends_of_which_one_hears_nothing_stop_and_send_nothing_in_clear(
    seed: int, deaf: Any
) -> None:
    pair = ends(seed, limits=SHORT, keepalive_s=1.0)
    link = run(*pair, Weather(), until=10.0)
    link.deaf.add(deaf)

    link.run(link.now + 20.0)

    for end in pair[:2]:
        assert end.encryption.state is State.ENDED
        assert end.worker.seal() is None
        assert end.stalled > 0
        assert [each for _, each in end.events if isinstance(each, Ended)]


@pytest.mark.parametrize("seed", range(10))
def test_ends_with_different_keys_never_come_up(seed: int) -> None:
    dice = random.Random(seed)
    initiator = End(Role.INITIATOR, dice)
    responder = End(Role.RESPONDER, dice, psk=psk_of(b"another key of a good length, I think"))

    run(initiator, responder, dice, Weather(), until=5.0)

    assert not initiator.encryption.ready
    assert responder.encryption.state is State.IDLE
    assert len(responder.errors) > 10
    assert initiator.opened == responder.opened == 0


# Sizes.


def test_messages_keep_the_sizes_of_the_protocol() -> None:
    six = Endpoint(ip_address("2001:db8::1"), 48621)
    local = replace(LOCAL1, own=six, seen=six)
    asking = Confirm(CIRCUIT, *NONCES, 2, local, ciphers=CipherOffer(IK, BOTH), noise_1=bytes(96))
    answering = Keepalive(
        CIRCUIT, *NONCES, 3, local, 2, 0, 0, False, noise_2=bytes(50), generation=1
    )

    assert len(encode(asking, None)) == 226  # below the 320 that it is padded to
    assert len(encode(answering, None)) == 218
