"""vela.supervisor.frame_keys: both ends' keys in one real key holder, also one that is lost."""

from __future__ import annotations

import base64
import gc
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from encrypted_machine import SECRET, write_key
from exhaustion import open_descriptors
from users import child_user

from vela.dataplane.key_page import KeyPage, SlotWord, Word, slot_start
from vela.errors import ConfigError, RemoteProtocolError
from vela.public_key import fingerprint
from vela.signaling.frame_keys import Answer, KeysUnavailable, Role
from vela.signaling.messages import HandshakePattern, Suites
from vela.signaling.noise import KeyPair
from vela.supervisor.config import identity
from vela.supervisor.frame_keys import CircuitKeys, Identity, SessionFrameKeys
from vela.supervisor.keys import Keys
from vela.supervisor.runtime.loop import EventLoop
from vela.wire import Suite

pytestmark = pytest.mark.forks

BOTH = Suites.AES_256_GCM | Suites.CHACHA20_POLY1305
PROLOGUE = b"what both ends have seen"
BODY = bytes(range(60))
ANSWER = Answer(Suite.CHACHA20_POLY1305, 1)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


@pytest.fixture
def keys(loop: EventLoop, tmp_path: Path) -> Iterator[Keys]:
    made = Keys(loop, child_user(), tmp_path / "state")
    yield made
    gc.collect()  # sessions say goodbye to the holder that there is
    made.close()


@dataclass
class Ends:
    """The two ends of one circuit."""

    initiator: CircuitKeys
    responder: CircuitKeys

    def open(self) -> tuple[SessionFrameKeys, SessionFrameKeys]:
        return self.initiator.open(Role.INITIATOR), self.responder.open(Role.RESPONDER)

    def shake_hands(
        self, ours: SessionFrameKeys, theirs: SessionFrameKeys, generation: int = 1
    ) -> bytes | None:
        """Return the public key that the responder has seen."""
        message = ours.begin(generation, PROLOGUE)
        reply, public = theirs.respond(generation, PROLOGUE, message, ANSWER)
        assert ours.finish(generation, reply) == ANSWER
        return public

    def close(self) -> None:
        self.initiator.close()
        self.responder.close()


@pytest.fixture
def ends(keys: Keys, tmp_path: Path) -> Iterator[Ends]:
    """With a pre-shared key alone."""
    psk = keys.load(write_key(tmp_path / "psk"))
    made = Ends(*(CircuitKeys(keys, BOTH, psk=psk, identity=None) for _ in range(2)))
    yield made
    made.close()


@dataclass
class Named(Ends):
    """Ends that have public keys."""

    identities: tuple[Identity, Identity]


@pytest.fixture
def named(keys: Keys, tmp_path: Path) -> Iterator[Named]:
    """The responder serves this initiator, whose public key it learns."""
    found = []
    for name in ("one", "two"):
        identity.generate(tmp_path / name)
        found.append(Identity(keys, tmp_path / name))
    one, two = found
    initiator = CircuitKeys(keys, BOTH, psk=None, identity=one, remote_static=two.public)
    responder = CircuitKeys(keys, BOTH, psk=None, identity=two, allowed=(one.public,))
    made = Named(initiator, responder, (one, two))
    yield made
    made.close()


def kill(keys: Keys) -> None:
    """Kill the holder, and wait for its end."""
    assert keys.pid is not None
    os.kill(keys.pid, signal.SIGKILL)
    os.waitid(os.P_PID, keys.pid, os.WEXITED | os.WNOWAIT)


def turn(loop: EventLoop) -> None:
    loop.call_later(0.0, loop.stop)
    loop.run()


def take(circuit: CircuitKeys) -> None:
    """Take up the keys in the page, as a worker does."""
    with KeyPage(circuit.page_fd) as page:
        for phase in range(2):
            slot = slot_start(phase)
            page.words[slot + SlotWord.RECEIVES] = page.words[slot + SlotWord.SERIAL]


def key_material(circuit: CircuitKeys, phase: int) -> tuple[bytes, bytes]:
    """Return the keys of a phase: to send with, and to receive with."""
    with KeyPage(circuit.page_fd) as page:
        words, slot = page.words, slot_start(phase)
        tx, rx = (
            words[slot + first : slot + first + 4].tobytes()
            for first in (SlotWord.TX_KEY, SlotWord.RX_KEY)
        )
    return tx, rx


def test_handshake_gives_both_ends_the_same_keys_crosswise(ends: Ends) -> None:
    ours, theirs = ends.open()
    assert ends.shake_hands(ours, theirs) is None

    for session in (ours, theirs):
        session.install(1)
    sending, receiving = key_material(ends.initiator, ANSWER.phase)
    assert key_material(ends.responder, ANSWER.phase) == (receiving, sending)
    assert sending != receiving
    assert any(sending)
    assert any(receiving)


def test_ends_with_other_pre_shared_keys_do_not_get_through(keys: Keys, tmp_path: Path) -> None:
    files = [write_key(tmp_path / str(n), bytes([n]) + SECRET) for n in range(2)]
    ends = Ends(*(CircuitKeys(keys, BOTH, psk=keys.load(path), identity=None) for path in files))
    ours, theirs = ends.open()

    message = ours.begin(1, PROLOGUE)
    with pytest.raises(RemoteProtocolError):
        theirs.respond(1, PROLOGUE, message, ANSWER)
    ends.close()


def test_control_messages_are_tagged_with_keys_of_the_handshake(ends: Ends) -> None:
    ours, theirs = ends.open()
    assert ours.signer is None
    ends.shake_hands(ours, theirs)
    one, two = ours.signer, theirs.signer
    assert one is not None
    assert two is not None

    tagged = BODY + one.sign(BODY)

    assert len(tagged) == len(BODY) + one.overhead
    assert two.verify(tagged)
    assert not one.verify(tagged)  # it is not its own remote
    assert not two.verify(tagged[:-1] + bytes([tagged[-1] ^ 1]))
    # Another generation has the same.
    ends.shake_hands(ours, theirs, 2)
    assert (ours.signer, theirs.signer) == (one, two)


def test_installed_keys_are_known_by_their_serial_and_used_when_that_is_said(ends: Ends) -> None:
    announced: list[str] = []
    ends.initiator.set_handlers(lambda: announced.append("installing"), lambda: None)
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    assert ends.initiator.usages() == ()

    serial = ours.install(1)

    assert announced == ["installing"]
    (usage,) = ends.initiator.usages()
    assert (usage.serial, usage.generation, usage.phase) == (serial, 1, ANSWER.phase)
    assert not usage.receives
    assert 0 < usage.expires_in_s <= 180
    take(ends.initiator)
    (usage,) = ends.initiator.usages()
    assert usage.receives
    with KeyPage(ends.initiator.page_fd) as page:
        assert page.words[Word.SENDING] == 0
        ours.transmit(1)
        assert page.words[Word.SENDING] == serial
    ours.retire(1)
    assert ends.initiator.usages() == ()


def test_what_was_sent_is_told(ends: Ends) -> None:
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    serial = ours.install(1)
    slot = slot_start(ANSWER.phase)
    with KeyPage(ends.initiator.page_fd) as page:
        page.words[slot + SlotWord.NEXT] = serial << 32 | 1001
        page.words[slot + SlotWord.OCTETS] = 5_000_000

    (usage,) = ends.initiator.usages()

    assert (usage.frames, usage.octets) == (1000, 5_000_000)


def test_session_that_is_over_leaves_no_keys(ends: Ends) -> None:
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    ours.install(1)

    ours.wipe()

    assert ends.initiator.usages() == ()
    assert key_material(ends.initiator, ANSWER.phase) == (bytes(32), bytes(32))
    with pytest.raises(KeysUnavailable):
        ours.install(1)
    ours.wipe()  # once more is no mistake


def test_session_that_nobody_has_any_more_leaves_no_keys(ends: Ends) -> None:
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    ours.install(1)

    del ours
    gc.collect()

    assert ends.initiator.usages() == ()


def test_signer_of_a_session_that_is_over_signs_and_verifies_nothing(ends: Ends) -> None:
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    one, two = ours.signer, theirs.signer
    assert one is not None
    assert two is not None
    tagged = BODY + one.sign(BODY)

    ours.wipe()
    theirs.wipe()

    assert one.sign(BODY) == bytes(one.overhead)
    assert not two.verify(tagged)


def test_circuit_that_is_closed_wipes_its_page_and_closes_it(ends: Ends) -> None:
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    ours.install(1)
    page = os.dup(ends.initiator.page_fd)
    before = open_descriptors()

    ends.initiator.close()

    assert ends.initiator.page_fd == -1
    assert open_descriptors() == before - 1
    with KeyPage(page) as left:
        assert left.serial(ANSWER.phase) == 0
    os.close(page)
    ends.initiator.close()  # once more is no mistake
    with pytest.raises(KeysUnavailable):
        ours.begin(2, PROLOGUE)


def test_keys_of_another_velad_stay_in_its_page_until_there_are_others(
    keys: Keys, ends: Ends
) -> None:
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    serial = ours.install(1)

    page = os.dup(ends.initiator.page_fd)
    successor = CircuitKeys(keys, BOTH, psk=ends.initiator.psk, identity=None, page_fd=page)

    assert successor.page_fd == page
    with KeyPage(page) as left:
        assert left.serial(ANSWER.phase) == serial
    successor.close()


def test_lost_holder_is_told_and_sessions_of_it_have_no_keys(
    keys: Keys, loop: EventLoop, ends: Ends
) -> None:
    lost: list[str] = []
    for name, circuit in (("one", ends.initiator), ("two", ends.responder)):
        circuit.set_handlers(lambda: None, partial(lost.append, name))
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    signer = ours.signer
    assert signer is not None
    kill(keys)

    with pytest.raises(KeysUnavailable, match="the key holder was replaced"):
        ours.begin(2, PROLOGUE)

    assert signer.sign(BODY) == bytes(signer.overhead)
    assert not signer.verify(BODY + bytes(signer.overhead))
    assert ends.initiator.usages() == ()
    turn(loop)
    assert sorted(lost) == ["one", "two"]
    # Another session has keys of the holder that there is now.
    ours, theirs = ends.open()
    ends.shake_hands(ours, theirs)
    ours.install(1)
    assert len(ends.initiator.usages()) == 1
    lost.clear()
    ends.initiator.on_holder_replaced()
    assert lost == []  # it has the page already


def test_session_begins_with_the_holder_that_takes_the_place_of_a_lost_one(
    keys: Keys, named: Named
) -> None:
    named.open()
    kill(keys)

    ours, theirs = named.open()

    assert named.shake_hands(ours, theirs) == named.identities[0].public


def test_pre_shared_key_that_can_no_longer_be_read_is_said(
    keys: Keys, ends: Ends, tmp_path: Path
) -> None:
    (tmp_path / "psk").write_bytes(b"short")  # of the file that is open
    kill(keys)

    with pytest.raises(KeysUnavailable, match="the pre-shared key can no longer be read"):
        ends.initiator.open(Role.INITIATOR)


def test_other_pre_shared_key_is_used_from_the_next_session_on(
    keys: Keys, ends: Ends, tmp_path: Path
) -> None:
    other = keys.load(write_key(tmp_path / "other", SECRET[::-1]))
    before = ends.open()

    ends.initiator.set_psk(other)
    with pytest.raises(RemoteProtocolError):
        ends.shake_hands(*ends.open())
    ends.responder.set_psk(other)
    ends.shake_hands(*ends.open())

    ends.shake_hands(*before)
    ends.responder.set_psk(None)
    with pytest.raises(KeysUnavailable):
        ends.responder.open(Role.RESPONDER)


def test_responder_learns_the_public_key_of_the_initiator(named: Named) -> None:
    assert named.initiator.offer.pattern == HandshakePattern.IK_PSK2
    ours, theirs = named.open()

    assert named.shake_hands(ours, theirs) == named.identities[0].public


def test_initiator_with_a_public_key_that_is_not_served_is_refused_by_name(
    keys: Keys, named: Named
) -> None:
    one, two = named.identities
    stranger = CircuitKeys(keys, BOTH, psk=None, identity=two, remote_static=two.public)
    ours = stranger.open(Role.INITIATOR)
    theirs = named.responder.open(Role.RESPONDER)

    message = ours.begin(1, PROLOGUE)
    with pytest.raises(RemoteProtocolError, match="unknown public key") as refused:
        theirs.respond(1, PROLOGUE, message, ANSWER)

    assert fingerprint(two.public) in str(refused.value)
    assert theirs.signer is None
    # As anybody's that is served.
    named.responder.check_remote(one.public)
    named.responder.check_remote(None)
    # An initiator has proved it by the handshake.
    named.initiator.check_remote(one.public)
    stranger.close()


def test_identity_is_the_one_of_the_file_and_is_loaded_into_each_holder(
    keys: Keys, tmp_path: Path
) -> None:
    public = identity.generate(tmp_path / "identity")
    made = Identity(keys, tmp_path / "identity")
    assert made.public == public

    (tmp_path / "identity").unlink()  # the descriptor stays
    kill(keys)
    psk = keys.load(write_key(tmp_path / "psk"))  # of another holder
    ours = CircuitKeys(keys, BOTH, psk=psk, identity=made, remote_static=public)
    theirs = CircuitKeys(keys, BOTH, psk=psk, identity=made, allowed=(public,))
    ends = Ends(ours, theirs)

    assert ends.shake_hands(*ends.open()) == public
    assert keys.generation == 2
    ends.close()


def test_identity_that_is_none_is_refused_with_its_file_and_leaves_nothing_open(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: raised.append(each.exc_value))
    path = tmp_path / "identity"
    with pytest.raises(ConfigError, match=r"identity cannot be read.*velad --generate-key makes"):
        Identity(keys, path)
    path.write_bytes(b"!" * 44)
    path.chmod(0o600)
    keys.load(write_key(tmp_path / "psk"))  # so that there is a holder
    before = open_descriptors()

    with pytest.raises(ConfigError, match=f"{path}: the key holder does not take it"):
        Identity(keys, path)

    gc.collect()
    assert open_descriptors() == before
    assert raised == []


def test_identity_that_nobody_has_any_more_is_closed(keys: Keys, tmp_path: Path) -> None:
    identity.generate(tmp_path / "identity")
    keys.load(write_key(tmp_path / "psk"))
    keys.require_encryption()
    before = open_descriptors()
    made = Identity(keys, tmp_path / "identity")
    assert open_descriptors() == before + 1

    del made
    gc.collect()

    assert open_descriptors() == before


def test_public_keys_are_those_of_the_private_ones(named: Named, tmp_path: Path) -> None:
    private = base64.b64decode((tmp_path / "one").read_bytes())

    assert named.identities[0].public == KeyPair(private).public
