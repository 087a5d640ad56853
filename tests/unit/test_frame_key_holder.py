"""Encrypted circuits in the key holder: what it answers, and what it refuses."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vela.dataplane.key_page import (
    SEQUENCES,
    KeyPage,
    SlotWord,
    Word,
    create,
    sequence_start,
    slot_start,
)
from vela.dataplane.key_page import KeyPair as FrameKeys
from vela.signaling.messages import HandshakePattern
from vela.signaling.noise import KeyPair
from vela.signaling.signer import UNSIGNED
from vela.supervisor.key_holder import KeyHolder
from vela.supervisor.key_requests import (
    ANSWER,
    GENERATION,
    KEY,
    OPENING,
    REPLY,
    SESSION,
    USAGE,
    Operation,
    Request,
    Status,
)
from vela.wire import Suite

PSK = b"a pre-shared key of 32 bytes....."
PROLOGUE = b"what both ends have seen"
NOBODY = bytes(32)
IK, NN = HandshakePattern.IK_PSK2, HandshakePattern.NN_PSK0
NEW = range(Operation.PAGE, Operation.USAGE + 1)


class Holder:
    """A key holder with one page, 1, and one pre-shared key, 1."""

    def __init__(self, folder: Path, private: bytes) -> None:
        self.holder = KeyHolder(encrypts=True)
        self.fd = create()
        self.page = KeyPage(self.fd)
        psk, identity = folder / "psk", folder / "identity"
        psk.write_bytes(PSK)
        identity.write_bytes(base64.b64encode(private))
        self.files = [os.open(path, os.O_RDONLY) for path in (psk, identity)]
        self.ask(Operation.LOAD, fds=self.files[:1])
        said = self.ask(Operation.IDENTITY, fds=self.files[1:])
        self.public = said[KEY.size :]
        self.ask(Operation.PAGE, KEY.pack(1), fds=[self.fd])

    def close(self) -> None:
        self.page.close()
        for fd in (self.fd, *self.files):
            os.close(fd)

    def answer(
        self, operation: int, arguments: bytes = b"", fds: list[int] | None = None
    ) -> tuple[int, bytes]:
        reply = self.holder.answer(Request(7, operation, arguments, tuple(fds or ())))
        number, status = REPLY.unpack_from(reply)
        assert number == 7
        return status, reply[REPLY.size :]

    def ask(self, operation: int, arguments: bytes = b"", fds: list[int] | None = None) -> bytes:
        status, result = self.answer(operation, arguments, fds)
        assert status == Status.DONE, result
        return result

    def open(
        self, number: int, pattern: HandshakePattern, initiator: bool, remote: bytes = NOBODY
    ) -> None:
        identity = 1 if pattern is IK else 0
        self.ask(Operation.OPEN, OPENING.pack(number, 1, 1, identity, pattern, initiator) + remote)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Holder, Holder]]:
    both = []
    for name, private in (("a", bytes(range(32))), ("b", bytes(range(1, 33)))):
        (tmp_path / name).mkdir()
        both.append(Holder(tmp_path / name, private))
    yield both[0], both[1]
    for each in both:
        each.close()


def shake_hands(a: Holder, b: Holder, generation: int = 1, phase: int = 0) -> None:
    first = a.ask(Operation.BEGIN, GENERATION.pack(1, generation) + PROLOGUE)
    answer = ANSWER.pack(1, phase, len(PROLOGUE))
    said = b.ask(Operation.RESPOND, GENERATION.pack(1, generation) + answer + PROLOGUE + first)
    second = said[:50]
    assert a.ask(Operation.FINISH, GENERATION.pack(1, generation) + second) == bytes([1, phase])
    for each in (a, b):
        each.ask(Operation.INSTALL, GENERATION.pack(1, generation))


def usages(holder: Holder) -> list[tuple[int, int, int]]:
    """Return phase, serial number and generation of the keys in the page."""
    return [each[:3] for each in USAGE.iter_unpack(holder.ask(Operation.USAGE, KEY.pack(1)))]


@pytest.mark.parametrize("pattern", [IK, NN])
def test_two_holders_have_keys_that_fit(
    pair: tuple[Holder, Holder], pattern: HandshakePattern
) -> None:
    a, b = pair
    a.open(1, pattern, True, b.public if pattern is IK else NOBODY)
    b.open(1, pattern, False)
    shake_hands(a, b)
    for each in pair:
        each.ask(Operation.TRANSMIT, GENERATION.pack(1, 1))

    (first, second) = (each.page._memory[:] for each in pair)
    # One end's sending key is the other's receiving one: words 24 to 31 of the page.
    at = 8 * 24
    assert first[at : at + 32] == second[at + 32 : at + 64] != bytes(32)
    assert first[at + 32 : at + 64] == second[at : at + 32] != bytes(32)
    # The messages of the session are tagged alike; nobody else's are.
    body = bytes(60)
    tags = a.ask(Operation.SIGN, SESSION.pack(0, 1) + body)
    assert b.ask(Operation.VERIFY, SESSION.pack(0, 1) + body + tags) == b"\1"
    assert a.ask(Operation.VERIFY, SESSION.pack(0, 1) + body + tags) == b"\0"
    assert b.ask(Operation.VERIFY, SESSION.pack(0, 1) + body + UNSIGNED.sign(body)) == b"\0"


def test_generations_take_turns_in_the_page_and_an_old_one_wipes_no_newer(
    pair: tuple[Holder, Holder],
) -> None:
    a, b = pair
    a.open(1, NN, True)
    b.open(1, NN, False)
    for generation in range(1, 4):
        shake_hands(a, b, generation, (generation - 1) % 2)
        a.ask(Operation.TRANSMIT, GENERATION.pack(1, generation))
    assert [generation for _, _, generation in usages(a)] == [3, 2]

    a.ask(Operation.RETIRE, GENERATION.pack(1, 1))
    assert [generation for _, _, generation in usages(a)] == [3, 2]
    a.ask(Operation.RETIRE, GENERATION.pack(1, 2))
    assert [generation for _, _, generation in usages(a)] == [3]
    a.ask(Operation.WIPE, KEY.pack(1))
    assert usages(a) == []
    assert a.answer(Operation.BEGIN, GENERATION.pack(1, 4))[0] == Status.REFUSED
    assert a.answer(Operation.SIGN, SESSION.pack(0, 1) + bytes(60))[0] == Status.REFUSED


def test_session_that_is_over_wipes_no_keys_of_its_successor(pair: tuple[Holder, Holder]) -> None:
    a, b = pair
    for each, initiator in ((a, True), (b, False)):
        each.open(1, NN, initiator)
        each.open(2, NN, initiator)
    shake_hands(a, b)
    first = a.ask(Operation.BEGIN, GENERATION.pack(2, 1) + PROLOGUE)
    answer = ANSWER.pack(1, 0, len(PROLOGUE))
    second = b.ask(Operation.RESPOND, GENERATION.pack(2, 1) + answer + PROLOGUE + first)[:50]
    a.ask(Operation.FINISH, GENERATION.pack(2, 1) + second)
    a.ask(Operation.INSTALL, GENERATION.pack(2, 1))

    a.ask(Operation.WIPE, KEY.pack(1))

    assert [generation for _, _, generation in usages(a)] == [1]
    a.ask(Operation.TRANSMIT, GENERATION.pack(2, 1))


def test_wrong_handshake_fails_and_changes_nothing(pair: tuple[Holder, Holder]) -> None:
    a, b = pair
    a.open(1, NN, True)
    b.open(1, NN, False)
    first = a.ask(Operation.BEGIN, GENERATION.pack(1, 1) + PROLOGUE)
    wrong = bytes([first[0] ^ 1]) + first[1:]
    answer = ANSWER.pack(1, 0, len(PROLOGUE))
    status, why = b.answer(Operation.RESPOND, GENERATION.pack(1, 1) + answer + PROLOGUE + wrong)
    assert status == Status.FAILED
    assert b"differ" in why
    assert b.answer(Operation.INSTALL, GENERATION.pack(1, 1))[0] == Status.REFUSED

    b.ask(Operation.RESPOND, GENERATION.pack(1, 1) + answer + PROLOGUE + first)


@pytest.mark.parametrize(
    "opening",
    [
        OPENING.pack(0, 1, 1, 0, NN, 1),
        OPENING.pack(1, 2, 1, 0, NN, 1),
        OPENING.pack(1, 1, 2, 0, NN, 1),
        OPENING.pack(1, 1, 1, 2, IK, 0),
        OPENING.pack(1, 1, 1, 0, IK, 0),
        OPENING.pack(1, 1, 1, 1, NN, 0),
        OPENING.pack(1, 1, 0, 0, NN, 1),
        OPENING.pack(1, 1, 1, 0, 3, 1),
    ],
    ids=[
        "session 0",
        "no page",
        "no psk",
        "no identity",
        "identity missing",
        "identity too much",
        "nothing to prove",
        "pattern",
    ],
)
def test_session_with_keys_that_do_not_fit_is_refused(
    pair: tuple[Holder, Holder], opening: bytes
) -> None:
    assert pair[0].answer(Operation.OPEN, opening + NOBODY)[0] == Status.REFUSED


def test_file_that_is_no_private_key_is_refused(
    pair: tuple[Holder, Holder], tmp_path: Path
) -> None:
    path = tmp_path / "no key"
    path.write_bytes(b"short")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert pair[0].answer(Operation.IDENTITY, fds=[fd])[0] == Status.REFUSED
        assert pair[0].answer(Operation.PAGE, KEY.pack(2), fds=[fd])[0] == Status.REFUSED
    finally:
        os.close(fd)
    assert pair[0].public == KeyPair(bytes(range(32))).public


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    """One that has a session under way."""
    holder = Holder(tmp_path_factory.mktemp("hostile"), bytes(range(32)))
    holder.open(1, NN, True)
    holder.ask(Operation.BEGIN, GENERATION.pack(1, 1) + PROLOGUE)
    yield holder
    holder.close()


def test_page_that_a_worker_has_scribbled_over_brings_no_holder_down(
    pair: tuple[Holder, Holder],
) -> None:
    """Its own words: those of all sequences say that the key is used up, or anything else."""
    holder = pair[0]
    keys = FrameKeys(Suite.AES_256_GCM, bytes(32), bytes(8), bytes(32), bytes(8))
    serial = holder.page.install(0, keys, 1)
    words = holder.page.words
    for value in (0, 1, 2**32 - 1, 2**63, 2**64 - 1):
        for word in range(slot_start(0) + SlotWord.NEXT, len(words)):
            words[word] = value
        words[slot_start(1) + SlotWord.SERIAL] = 0
        words[Word.SEQUENCES] = 2**64 - 1
        for sequence in range(SEQUENCES):
            words[sequence_start(0, sequence) + SlotWord.NEXT] = serial << 32 | value % 2**32

        said = holder.ask(Operation.USAGE, KEY.pack(1))

        assert len(said) == USAGE.size


@given(
    st.sampled_from(NEW),
    st.sampled_from([b"", KEY.pack(1), GENERATION.pack(1, 1), GENERATION.pack(1, 0)]),
    st.binary(max_size=300),
)
def test_no_request_brings_the_holder_down(
    hostile: Holder, operation: int, head: bytes, rest: bytes
) -> None:
    status, result = hostile.answer(operation, head + rest)

    assert status in list(Status)
    assert len(result) <= 256
    assert hostile.ask(Operation.HELLO) == b""
