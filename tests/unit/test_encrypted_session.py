"""Sessions of encrypted circuits over a link that loses and reorders, or that an attacker has."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from encrypted_ends import BOTH, IDENTITIES, PSK, LocalHolder, Worker
from simulated_link import (
    CIRCUIT,
    KEY,
    LOCAL1,
    LOCAL2,
    OFFER,
    POLICY,
    ROUTER1,
    ROUTER2,
    Link,
    Machine,
    Weather,
    nonces,
)
from thorough import first_of

from vela.signaling import encryption
from vela.signaling.codec import HEADER_LENGTH, encode, read_header
from vela.signaling.events import Down, Rejected, Unanswered, Up
from vela.signaling.frame_keys import Answer, Role
from vela.signaling.generations import Limits
from vela.signaling.inputs import State
from vela.signaling.messages import (
    CipherOffer,
    Close,
    CloseReason,
    HandshakePattern,
    MessageType,
    Offer,
    Reject,
    RejectCode,
    Tlv,
)
from vela.signaling.session_secrets import NO_PSK, Keys, SessionSecrets
from vela.signaling.signer import (
    SESSION_TAG_LENGTH,
    TAG_LENGTH,
    LocalKey,
    SessionKeys,
    sign,
    verify,
)

IK, NN = HandshakePattern.IK_PSK2, HandshakePattern.NN_PSK0


@dataclass
class Control:
    """Tags a session's messages as the key holder does, and with the pre-shared key if any."""

    keys: SessionKeys
    key: bytes | None
    overhead: int = SESSION_TAG_LENGTH + TAG_LENGTH

    def sign(self, body: bytes) -> bytes:
        return sign(body, self.key, self.keys)

    def verify(self, datagram: bytes) -> bool:
        return verify(datagram, self.key, self.keys)


@dataclass
class SessionHolder(LocalHolder):
    """The keys of one session, and of its messages. The worker belongs to the circuit."""

    key: bytes | None = None

    def respond(
        self, generation: int, prologue: bytes, message: bytes, answer: Answer
    ) -> tuple[bytes, bytes | None]:
        said = super().respond(generation, prologue, message, answer)
        self._have(self.known[generation])
        return said

    def finish(self, generation: int, message: bytes) -> Answer:
        answer = super().finish(generation, message)
        self._have(self.known[generation])
        return answer

    def wipe(self) -> None:
        mine = list(self.known.values())
        self.known.clear()
        self.waiting.clear()
        places = self.worker.places
        for phase in [phase for phase, each in places.items() if any(each is m for m in mine)]:
            del places[phase]
        if any(self.worker.sending is each for each in mine):
            self.worker.sending = None

    def _have(self, keys: Keys) -> None:
        if keys.generation == 1:
            self.signer = Control(
                SessionKeys(keys.transmit_control, keys.receive_control), self.key
            )


@dataclass
class CircuitKeys:
    """Frame keys of one machine, whose worker takes keys at once, or when it is let."""

    pattern: HandshakePattern
    own: int
    dice: random.Random
    key: bytes | None
    slow: bool = False
    worker: Worker = field(default_factory=Worker)
    holders: list[SessionHolder] = field(default_factory=list)

    @property
    def offer(self) -> CipherOffer:
        return CipherOffer(self.pattern, BOTH)

    def open(self, role: Role) -> SessionHolder:
        by_identity = self.pattern is IK
        secrets = SessionSecrets(
            self.pattern,
            randomness=self.dice,
            psk=NO_PSK if by_identity else PSK,
            static=IDENTITIES[self.own] if by_identity else None,
            remote_static=IDENTITIES[1 - self.own].public if by_identity else None,
        )
        self.holders.append(SessionHolder(secrets, self.worker, key=self.key))
        return self.holders[-1]


class EncryptedMachine(Machine):
    """A machine whose worker takes the keys that are handed to it."""

    keys: CircuitKeys

    def _run_timers(self, now: float) -> None:
        super()._run_timers(now)
        session = self.session
        if session is None or self.keys.slow:
            return
        for holder in self.keys.holders:
            while holder.waiting:
                number = holder.take()
                if number in session.awaited_installations:
                    session.keys_installed(number, now)
        super()._run_timers(now)


def machine(
    own: int, pattern: HandshakePattern, dice: random.Random, key: LocalKey | None
) -> Machine:
    here, there = ((ROUTER1, ROUTER2), (ROUTER2, ROUTER1))[own]
    local = (LOCAL1, LOCAL2)[own]
    made = EncryptedMachine(here, there, replace(local, mtu=1450), dice, key=key)
    made.keys = CircuitKeys(pattern, own, dice, None if key is None else key.key)
    made.frame_keys = made.keys
    return made


def link(seed: int, pattern: HandshakePattern = IK, *, key: LocalKey | None = None) -> Link:
    """Router 1 has a circuit; router 2 has only [autoconfigure]."""
    dice = random.Random(seed)
    a, b = (machine(own, pattern, dice, key) for own in (0, 1))
    a.offer, b.policy = OFFER, POLICY
    return Link((a, b), dice)


def workers(net: Link) -> tuple[Worker, Worker]:
    a, b = net.machines
    assert isinstance(a, EncryptedMachine)
    assert isinstance(b, EncryptedMachine)
    return a.keys.worker, b.keys.worker


def carry(net: Link) -> list[str]:
    """Send a frame each way; return why it was dropped, or that it could not be sent."""
    a, b = workers(net)
    found = []
    for sender, receiver in ((a, b), (b, a)):
        sealed = sender.seal()
        found.append("not sent" if sealed is None else receiver.open(sealed))
    return found


def both_up(net: Link) -> bool:
    return all(each.up for each in net.machines)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let keys be made anew every other second."""
    short = Limits(rekey_after_s=2.0, expire_after_s=30.0, keep_old_s=0.5)
    monkeypatch.setattr(encryption, "Limits", lambda: short)


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
@pytest.mark.parametrize("pattern", [IK, NN])
def test_circuit_is_up_as_soon_as_both_workers_have_keys(
    pattern: HandshakePattern, key: LocalKey | None
) -> None:
    net = link(0, pattern, key=key)
    net.boot()
    net.run(net.now + 0.1)

    assert both_up(net)
    assert carry(net) == ["", ""]
    for each in net.machines:
        assert each.session is not None
        status = each.session.encryption_status(net.now)
        assert status is not None
        assert status.generation == 1


def test_circuit_is_not_up_before_the_worker_has_keys_and_nobody_floods() -> None:
    net = link(0)
    net.boot()
    for each in net.machines:
        assert isinstance(each, EncryptedMachine)
        each.keys.slow = True
    net.run(net.now + 2)
    assert not any(each.up for each in net.machines)
    assert len(net.log) < 30

    for each in net.machines:
        assert isinstance(each, EncryptedMachine)
        each.keys.slow = False
    net.run(net.now + 5)
    assert both_up(net)


def test_settings_that_change_between_two_confirms_break_no_handshake() -> None:
    net = link(12)
    net.unheard.add((ROUTER1, MessageType.CONFIRM))
    net.boot()
    net.run(net.now + 0.1)
    a, b = net.machines
    assert a.session is not None
    a.session.set_local(replace(a.local, mtu=1300), net.now)
    net.unheard.clear()
    net.run(net.now + 1)

    assert both_up(net)
    assert [read_header(data).type for _, _, data in net.log].count(MessageType.REQUEST) == 1
    assert b.session is not None
    assert b.session.agreement is not None
    assert b.session.agreement.mtu == 1300


@pytest.mark.parametrize("slow", [0, 1])
def test_end_whose_worker_has_no_keys_is_not_up(slow: int) -> None:
    net = link(9)
    net.boot()
    late = net.machines[slow]
    assert isinstance(late, EncryptedMachine)
    late.keys.slow = True
    net.run(net.now + 2)
    assert not late.up
    assert len(net.log) < 40

    late.keys.slow = False
    net.run(net.now + 5)
    assert both_up(net)


@pytest.mark.parametrize("pattern", [IK, NN])
def test_keys_are_made_anew_and_no_frame_is_lost(hasty: None, pattern: HandshakePattern) -> None:
    net = link(1, pattern)
    net.boot()
    net.run(net.now + 1)
    for _ in range(400):
        assert carry(net) == ["", ""]
        net.run(net.now + 0.05)
    for each in net.machines:
        assert each.session is not None
        status = each.session.encryption_status(net.now)
        assert status is not None
        assert status.generation >= 8
        assert not each.since(0, Down)


@pytest.mark.parametrize("seed", first_of(range(60), 20))
def test_circuit_heals_after_a_storm(hasty: None, seed: int) -> None:
    net = link(seed, (IK, NN)[seed % 2], key=KEY if seed % 3 else None)
    net.boot()
    net.weather = Weather(0.3, 0.2, 0.0, 0.4)
    for _ in range(12):
        net.run(net.now + net.randomness.uniform(0.1, 3))
        what = net.randomness.randrange(4)
        victim = net.randomness.choice(net.machines)
        if what == 0:
            victim.boot(net.now)
        elif what == 1 and victim.session is not None:
            victim.session.lose_keys(net.now)
        elif what == 2 and victim.session is not None:
            victim.session.want_rekey(net.now)
        net.collect(victim)
    net.weather = Weather()
    net.run(net.now + 60)

    assert both_up(net)
    for _ in range(10):
        assert carry(net) == ["", ""]
        net.run(net.now + 0.5)


@pytest.mark.parametrize("who", [0, 1])
def test_lost_key_holder_costs_no_key_that_is_in_use(who: int) -> None:
    net = link(3)
    net.boot()
    net.run(net.now + 1)
    victim = net.machines[who]
    assert isinstance(victim, EncryptedMachine)
    session = victim.session
    assert session is not None
    before = nonces(session)
    session.lose_keys(net.now)
    net.collect(victim)
    for _ in range(500):
        assert carry(net) == ["", ""]
        net.run(net.now + 0.001)

    assert nonces(session) != before
    assert both_up(net)
    assert not any(each.since(0, Down) for each in net.machines)
    # Of the session before nothing is left.
    net.run(net.now + 15)
    for each in net.machines:
        assert isinstance(each, EncryptedMachine)
        assert [bool(holder.known) for holder in each.keys.holders] == [False, True]
    assert carry(net) == ["", ""]


def test_lost_key_holder_costs_nothing_even_if_the_first_request_is_lost() -> None:
    net = link(15)
    net.boot()
    net.run(net.now + 1)
    a = net.machines[0]
    assert a.session is not None
    net.unheard.add((ROUTER1, MessageType.REQUEST))
    a.session.lose_keys(net.now)
    net.collect(a)
    net.run(net.now + 0.7)
    net.unheard.clear()
    before = nonces(a.session)
    net.run(net.now + 1)

    assert nonces(a.session) != before
    assert both_up(net)
    assert not any(each.since(0, Down) for each in net.machines)


def test_end_that_does_not_follow_to_new_keys_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    net = link(14)
    net.boot()
    net.run(net.now + 1)
    a, b = net.machines
    assert isinstance(a, EncryptedMachine)
    assert isinstance(b, EncryptedMachine)
    assert a.session is not None
    b.keys.slow = True
    a.session.lose_keys(net.now)
    net.collect(a)
    net.run(net.now + 10)

    assert not a.up
    assert not b.up
    assert a.since(0, Down)
    assert b.since(0, Down)


def test_keys_that_do_not_fit_are_the_reason_that_the_operator_reads() -> None:
    net = link(13)
    stranger = net.machines[0]
    assert isinstance(stranger, EncryptedMachine)
    stranger.keys.own = 1  # another identity than the remote expects, and another remote
    net.boot()
    net.run(net.now + 10)

    reasons = [e.reason for e in stranger.since(0, Unanswered) if isinstance(e, Unanswered)]
    assert reasons
    assert all("the keys of both ends do not fit" in reason for reason in reasons)
    assert not any(each.since(0, Up) for each in net.machines)


def strip(data: bytes, number: int) -> bytes:
    """Take a TLV out of a message whose tag is zero."""
    kept, at, end = data[:HEADER_LENGTH], HEADER_LENGTH, len(data) - TAG_LENGTH
    while at < end:
        after = at + 3 + int.from_bytes(data[at + 1 : at + 3])
        kept += b"" if data[at] == number else data[at:after]
        at = after
    return kept + data[end:]


@pytest.mark.parametrize("number", [22, 23, 24])
def test_nobody_on_the_path_takes_the_encryption_out(number: int) -> None:
    net = link(4)
    net.change = lambda _, data: strip(data, number)
    net.boot()
    net.run(net.now + 30)

    assert not any(each.since(0, Up) for each in net.machines)
    assert carry(net) == ["not sent", "not sent"]


def test_remote_that_does_not_know_encryption_is_told_goodbye() -> None:
    net = link(5)
    net.machines[1].frame_keys = None
    net.change = lambda _, data: strip(data, Tlv.CIPHERS.number)
    net.boot()
    net.run(net.now + 1)

    assert [e.code for e in net.machines[0].since(0, Rejected) if isinstance(e, Rejected)] == [
        RejectCode.ENCRYPTION
    ]
    assert not any(each.up for each in net.machines)


@pytest.mark.parametrize("encrypts", [0, 1])
def test_ends_that_differ_do_not_come_up_and_say_why(encrypts: int) -> None:
    net = link(6)
    net.machines[1 - encrypts].frame_keys = None
    net.boot()
    net.run(net.now + 5)

    rejected = [e for e in net.machines[0].since(0, Rejected) if isinstance(e, Rejected)]
    assert {e.code for e in rejected} == {RejectCode.ENCRYPTION}
    assert "encrypt" in rejected[0].reason
    assert not any(each.since(0, Up) for each in net.machines)


@pytest.mark.parametrize("encrypts", [0, 1])
def test_configured_ends_that_differ_do_not_come_up_either(encrypts: int) -> None:
    net = link(10)
    net.machines[1].offer, net.machines[1].policy = Offer(), None
    net.machines[1 - encrypts].frame_keys = None
    net.boot()
    net.run(net.now + 20)

    assert not any(each.since(0, Up) for each in net.machines)
    reasons = [
        e.reason
        for each in net.machines
        for e in each.since(0, Rejected)
        if isinstance(e, Rejected)
    ]
    assert reasons
    assert all("does not encrypt" in reason for reason in reasons)


def test_what_the_first_keepalive_says_is_not_believed_if_somebody_changed_it() -> None:
    net = link(11)
    mtu = b"\x02\x00\x04" + LOCAL2.mtu.to_bytes(4)

    def narrow(source: object, data: bytes) -> bytes:
        if read_header(data).type is MessageType.KEEPALIVE and Tlv.NOISE_2.number in data:
            return data.replace(mtu, b"\x02\x00\x04" + (600).to_bytes(4))
        return data

    net.machines[1].local = replace(net.machines[1].local, mtu=LOCAL2.mtu)
    net.change = narrow
    net.boot()
    net.run(net.now + 0.2)
    assert any(data != narrow(None, data) for _, _, data in net.log)
    session = net.machines[0].session
    assert session is not None
    assert session.agreement is None


@pytest.mark.parametrize("seed", first_of(range(100), 30))
def test_changed_bit_keeps_the_circuit_down_or_is_of_no_effect(seed: int) -> None:
    net = link(seed)
    dice = random.Random(seed)

    def flip(_: object, data: bytes) -> bytes:
        if read_header(data).type not in (MessageType.CONFIRM, MessageType.KEEPALIVE):
            return data
        # Behind the header, whose nonces say whom it is for.
        at = dice.randrange(8 * HEADER_LENGTH, 8 * len(data))
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        return bytes(changed)

    net.change = flip
    net.boot()
    net.run(net.now + 3)
    assert not any(each.since(0, Up) for each in net.machines)

    net.change = lambda _, data: data
    net.run(net.now + 40)
    assert both_up(net)
    assert carry(net) == ["", ""]


@pytest.mark.parametrize("who", [0, 1])
def test_messages_that_an_attacker_on_the_path_forges_are_not_taken(who: int) -> None:
    net = link(7)
    net.boot()
    net.run(net.now + 1)
    victim, other = net.machines[who], net.machines[1 - who]
    assert victim.session is not None
    assert other.session is not None
    session = other.session._link
    assert session is not None
    header = (CIRCUIT, session.local_nonce, session.remote_nonce, session.sent + 100)
    for forged in (
        Close(*header, CloseReason.DELETED),
        Reject(*header, RejectCode.NO_SUCH_SESSION, ""),
        session.keepalive(other.local, net.now, up=False),
    ):
        victim.receive(encode(forged, None), other.endpoint, net.now)
    net.run(net.now + 20)

    assert both_up(net)
    assert not victim.since(0, Down)
    assert victim.session.state is State.UP


def test_messages_of_a_session_are_tagged_with_keys_of_its_handshake() -> None:
    net = link(8, key=KEY)
    net.boot()
    net.run(net.now + 1)

    for each in net.machines:
        assert each.session is not None
        assert each.session._link is not None
        assert isinstance(each.session._link.signer, Control)
