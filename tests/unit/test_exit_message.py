"""A worker's last words in shared memory, and what the supervisor makes of them."""

from __future__ import annotations

import os
import random

import pytest

from vela.dataplane.counters import Counters, CounterSlab
from vela.dataplane.exit_message import ExitMessage
from vela.supervisor.runtime.process import fork


def message() -> tuple[memoryview, ExitMessage]:
    memory = Counters().exit_message
    return memory, ExitMessage(memory)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(95, "Operation not supported"), "egress: Operation not supported"),
        (OSError(95, "tun"), "egress: tun"),
        (OSError(2, "No such file or directory", "/nowhere"), "egress: No such file or directory"),
        (OSError("no number"), "egress: OSError: no number"),
        (ValueError("two\nlines\tand  more"), "egress: ValueError: two lines and more"),
        (MemoryError(), "egress: MemoryError"),
        (KeyError("k"), "egress: KeyError: 'k'"),
        (ValueError("größer"), "egress: ValueError: gr??er"),
    ],
)
def test_error_is_told_in_one_short_line(error: BaseException, text: str) -> None:
    _, told = message()
    told.write("egress", error)

    assert told.read() == text


@pytest.mark.forks  # it forks
def test_message_of_a_forked_child_outlives_it_until_it_is_cleared() -> None:
    _, told = message()
    fork(lambda: told.write("start", PermissionError(1, os.strerror(1))), ()).reap()

    assert told.read() == "start: Operation not permitted"
    told.clear()
    assert told.read() == ""


def test_first_of_two_errors_is_the_message() -> None:
    _, told = message()
    told.write("ingress", OSError(5, os.strerror(5)))
    told.write("egress", OSError(95, os.strerror(95)))

    assert told.read() == "ingress: Input/output error"


def test_message_longer_than_the_memory_is_cut_off() -> None:
    memory, told = message()
    told.write("egress", ValueError("x" * 100_000))

    assert told.read() == "egress: ValueError: ".ljust(len(memory), "x")
    assert len(memory) == 128


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_read_as_one_line_of_printable_ascii(seed: int) -> None:
    memory, told = message()
    memory[:] = random.Random(seed).randbytes(len(memory)).replace(b"\0", b"\x1b")

    text = told.read()

    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 128


def test_control_sequences_are_defused_and_what_follows_a_null_is_left_out() -> None:
    memory, told = message()
    text = b" \x1b[2Jup\n\x7f\xff\0more"
    memory[: len(text)] = text

    assert told.read() == "?[2Jup???"


def test_messages_of_two_circuits_and_their_counters_are_apart() -> None:
    slab = CounterSlab()
    one, other = slab.take(), slab.take()
    ExitMessage(one.exit_message).write("egress", ValueError("x" * 1000))

    assert ExitMessage(other.exit_message).read() == ""
    assert not any(one.worker)
    assert not any(other.page.memory)
    slab.give_back(one)
    assert ExitMessage(slab.take().exit_message).read() == ""
