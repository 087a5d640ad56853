"""vela.supervisor.key_holder: what it does for the supervisor, and what it does not take."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from exhaustion import open_descriptors

from vela.signaling.signer import CONTEXT_LENGTH, derive_session_keys, sign
from vela.supervisor import key_holder
from vela.supervisor.key_holder import KeyHolder, serve
from vela.supervisor.key_requests import (
    DERIVATION,
    KEY,
    MAX_REPLY,
    NUMBER,
    REPLY,
    REQUEST,
    SESSION,
    Operation,
    Request,
    Status,
)

SECRET = b"a key of more than sixteen bytes"
CONTEXT = bytes(range(CONTEXT_LENGTH))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "key"
    made.write_bytes(SECRET + b"\n")
    return made


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


def ask(
    holder: KeyHolder, operation: int, arguments: bytes = b"", *descriptors: int
) -> tuple[int, bytes]:
    reply = holder.answer(Request(7, operation, arguments, descriptors))
    number, status = REPLY.unpack_from(reply)
    assert number == 7
    assert len(reply) <= MAX_REPLY
    return status, reply[REPLY.size :]


def loaded(fd: int) -> KeyHolder:
    """Return a holder that has key 1, and session 9 of it."""
    holder = KeyHolder()
    assert ask(holder, Operation.LOAD, b"", fd) == (Status.DONE, KEY.pack(1))
    derivation = DERIVATION.pack(1, 9, 1) + CONTEXT
    assert ask(holder, Operation.DERIVE, derivation) == (Status.DONE, b"")
    return holder


def test_holder_signs_and_verifies_under_a_key_and_a_session(fd: int) -> None:
    holder, body = loaded(fd), bytes(range(60))
    ours = derive_session_keys(SECRET, CONTEXT, initiator=True)
    theirs = derive_session_keys(SECRET, CONTEXT, initiator=False)

    for session, tags in ((0, sign(body, SECRET)), (9, sign(body, SECRET, ours))):
        arguments = SESSION.pack(1, session) + body
        assert ask(holder, Operation.SIGN, arguments) == (Status.DONE, tags)
    for session, datagram, right in (
        (0, body + sign(body, SECRET), 1),
        (0, body + bytes(16), 0),
        (9, body + sign(body, SECRET, theirs), 1),
        (9, body + sign(body, SECRET, ours), 0),
        (9, body + sign(body, SECRET), 0),
        (9, b"", 0),
    ):
        arguments = SESSION.pack(1, session) + datagram
        assert ask(holder, Operation.VERIFY, arguments) == (Status.DONE, bytes([right]))


def test_equal_keys_are_one_and_a_dropped_one_is_gone(fd: int, tmp_path: Path) -> None:
    holder = loaded(fd)
    other = tmp_path / "other"
    other.write_bytes(SECRET[::-1])

    assert ask(holder, Operation.LOAD, b"", fd) == (Status.DONE, KEY.pack(1))
    with other.open("rb") as file:
        assert ask(holder, Operation.LOAD, b"", file.fileno()) == (Status.DONE, KEY.pack(2))
    assert ask(holder, Operation.DROP, KEY.pack(1)) == (Status.DONE, b"")
    assert ask(holder, Operation.SIGN, SESSION.pack(1, 0)) == (Status.REFUSED, b"no key 1")
    assert ask(holder, Operation.LOAD, b"", fd) == (Status.DONE, KEY.pack(3))


def test_session_that_is_over_is_forgotten(fd: int) -> None:
    holder = loaded(fd)

    assert ask(holder, Operation.FORGET, NUMBER.pack(9) + NUMBER.pack(77)) == (Status.DONE, b"")

    assert ask(holder, Operation.SIGN, SESSION.pack(1, 9)) == (Status.REFUSED, b"no session 9")


def test_token_is_the_machines_and_differs_with_the_context(fd: int) -> None:
    holder = loaded(fd)

    status, said = ask(holder, Operation.TOKEN, KEY.pack(1) + b"7 router2")

    # By openssl: printf 'vela machine 17 router2' | openssl dgst -sha256 -hmac SECRET
    assert (status, said.hex()) == (Status.DONE, "0181989d7700266202dcdc156c94a527")
    assert ask(holder, Operation.TOKEN, KEY.pack(1) + b"8 router2")[1] != said


def test_generated_key_is_in_the_file_and_no_two_are_the_same(tmp_path: Path) -> None:
    holder = KeyHolder()
    found = set()
    for number in range(2):
        with (tmp_path / str(number)).open("w+b") as file:
            assert ask(holder, Operation.GENERATE, b"", file.fileno()) == (Status.DONE, b"")
        found.add((tmp_path / str(number)).read_bytes())
    assert len(found) == 2
    assert {len(bytes.fromhex(each.decode().strip())) for each in found} == {32}


def test_key_that_cannot_be_written_is_refused(fd: int) -> None:
    status, why = ask(KeyHolder(), Operation.GENERATE, b"", fd)  # open for reading

    assert (status, why) == (Status.REFUSED, b"the key cannot be written: Bad file descriptor")


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (0, b""),
        (255, b""),
        (Operation.LOAD, b""),  # without a descriptor
        (Operation.LOAD, b"x"),
        (Operation.DROP, b""),
        (Operation.DROP, bytes(9)),
        (Operation.SIGN, b""),
        (Operation.SIGN, bytes(15)),
        (Operation.SIGN, SESSION.pack(0, 0)),
        (Operation.SIGN, SESSION.pack(1, 10)),
        (Operation.VERIFY, SESSION.pack(2**64 - 1, 0)),
        (Operation.DERIVE, DERIVATION.pack(1, 10, 1)),
        (Operation.DERIVE, DERIVATION.pack(1, 0, 1) + CONTEXT),
        (Operation.DERIVE, DERIVATION.pack(1, 10, 2) + CONTEXT),
        (Operation.DERIVE, DERIVATION.pack(2, 10, 1) + CONTEXT),
        (Operation.DERIVE, DERIVATION.pack(1, 10, 1) + CONTEXT + b"x"),
        (Operation.FORGET, bytes(7)),
        (Operation.TOKEN, bytes(7)),
        (Operation.TOKEN, KEY.pack(1) + bytes(1025)),
        (Operation.TOKEN, KEY.pack(2)),
        (Operation.GENERATE, b""),
    ],
)
def test_request_that_makes_no_sense_is_refused_and_changes_nothing(
    operation: int, arguments: bytes, fd: int
) -> None:
    holder = loaded(fd)

    status, why = ask(holder, operation, arguments)

    assert status == Status.REFUSED
    assert why
    assert ask(holder, Operation.SIGN, SESSION.pack(1, 9))[0] == Status.DONE


def test_what_is_no_key_is_not_loaded(tmp_path: Path) -> None:
    holder = KeyHolder()
    for content in (b"", b"k" * 15, b"k" * 1025):
        (tmp_path / "key").write_bytes(content)
        with (tmp_path / "key").open("rb") as file:
            assert ask(holder, Operation.LOAD, b"", file.fileno())[0] == Status.REFUSED
    ours, theirs = socket.socketpair()
    with ours, theirs:  # nothing that can be read at an offset
        assert ask(holder, Operation.LOAD, b"", ours.fileno())[0] == Status.REFUSED


def test_keys_and_sessions_are_bounded(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = loaded(fd)
    monkeypatch.setattr(key_holder, "MAX_SESSIONS", 1)
    monkeypatch.setattr(key_holder, "MAX_KEYS", 0)

    derivation = DERIVATION.pack(1, 10, 1) + CONTEXT
    assert ask(holder, Operation.DERIVE, derivation) == (Status.REFUSED, b"1 sessions")
    assert ask(holder, Operation.DROP, KEY.pack(1)) == (Status.DONE, b"")
    assert ask(holder, Operation.LOAD, b"", fd) == (Status.REFUSED, b"0 keys")


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_raise_nothing_and_change_no_key(seed: int, fd: int) -> None:
    dice = random.Random(seed)
    holder = loaded(fd)
    ok = SESSION.pack(1, 9) + b"body"
    right = ask(holder, Operation.SIGN, ok)
    others = [each for each in range(256) if each not in (Operation.DROP, Operation.FORGET)]

    for _ in range(5000):
        arguments = struct.pack("!QQ", dice.randrange(3), dice.randrange(11))
        arguments += dice.randbytes(dice.randrange(200))
        arguments = arguments[: dice.randrange(len(arguments) + 1)]
        # A session that is derived again has other keys: not number 9.
        if arguments[8:16] != NUMBER.pack(9):
            ask(holder, dice.choice(others), arguments)

    assert ask(holder, Operation.SIGN, ok) == right


@contextmanager
def served() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    thread = threading.Thread(target=serve, args=(theirs, KeyHolder()))
    thread.start()
    with theirs:
        with ours:
            yield ours
        thread.join(20)
    assert not thread.is_alive()


def test_holder_takes_a_descriptor_answers_and_ends_with_its_channel(path: Path) -> None:
    with served() as channel, path.open("rb") as file:
        socket.send_fds(channel, [REQUEST.pack(5, Operation.LOAD)], [file.fileno()])
        assert channel.recv(100) == REPLY.pack(5, Status.DONE) + KEY.pack(1)
        body = bytes(65507)
        channel.send(REQUEST.pack(6, Operation.SIGN) + SESSION.pack(1, 0) + body)
        assert channel.recv(100) == REPLY.pack(6, Status.DONE) + sign(body, SECRET)


def test_holder_closes_what_it_was_handed_and_goes_on_after_nonsense(path: Path) -> None:
    before = open_descriptors()
    with served() as channel, path.open("rb") as file:
        for message in (b"x", bytes(8), REQUEST.pack(1, 99), bytes(70_000)):
            socket.send_fds(channel, [message], [file.fileno()] * 3)
        channel.send(REQUEST.pack(2, Operation.HELLO))
        # What is cut off, or has more descriptors than fit, is not answered.
        assert channel.recv(300) == REPLY.pack(2, Status.DONE)
    assert open_descriptors() == before
