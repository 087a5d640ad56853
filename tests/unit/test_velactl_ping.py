"""velactl ping, run as a program: what it asks for, what it counts, and how it ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_velad import Velad

FAST = ("ping", "vela0", "--interval", "0.01")


@pytest.fixture
def velad(tmp_path: Path) -> Iterator[Velad]:
    made = Velad(tmp_path / "velad.sock")
    yield made
    made.close()


def answers(*rtt_ms: float | None) -> list[Any]:
    return [{"rtt_ms": each} for each in rtt_ms]


def test_ping_shows_each_answer_then_the_loss_and_the_round_trips(velad: Velad) -> None:
    velad.series["ping"] = answers(3.0, None, 1.25, 250.4)

    status, out, err = velad.control(*FAST, "--count", "4", "--size", "1471")

    assert (status, err) == (0, "")
    # By the nearest rank, the median of three is the second, and the 99th percentile the last.
    assert out.splitlines() == [
        "vela0: 1: answer after 3.000 ms",
        "vela0: 2: no answer",
        "vela0: 3: answer after 1.250 ms",
        "vela0: 4: answer after 250.400 ms",
        "4 sent, 3 answered, 25 % lost",
        "round trip min 1.25, p50 3.00, p99 250, max 250 ms",
    ]
    assert velad.requests == [{"command": "ping", "circuit": "vela0", "size": 1471}] * 4


def test_ping_asks_five_times_with_requests_of_the_default_size(velad: Velad) -> None:
    velad.answer = {"rtt_ms": 1.0}

    _, out, _ = velad.control(*FAST)

    assert [(each["command"], each["size"]) for each in velad.requests] == [("ping", 64)] * 5
    assert out.splitlines()[-2] == "5 sent, 5 answered, 0 % lost"


def test_ping_without_an_answer_shows_no_round_trip_and_exits_with_3(velad: Velad) -> None:
    velad.answer = {"rtt_ms": None}

    status, out, err = velad.control(*FAST, "--count", "2")

    assert (status, err) == (3, "")
    assert out.splitlines() == [
        "vela0: 1: no answer",
        "vela0: 2: no answer",
        "2 sent, 0 answered, 100 % lost",
    ]


def test_ping_in_json_is_one_document(velad: Velad) -> None:
    velad.series["ping"] = answers(2.0, None, 1.0)

    status, out, _ = velad.control("--json", *FAST, "--count", "3", "--size", "100")

    assert status == 0
    assert json.loads(out) == {
        "circuit": "vela0",
        "size": 100,
        "sent": 3,
        "answered": 2,
        "lost": 1,
        "loss_percent": 33.3,
        "rtt_ms": {"min": 1.0, "p50": 1.0, "p99": 2.0, "max": 2.0},
        "answers_ms": [2.0, None, 1.0],
    }


def test_ping_in_json_without_an_answer_has_round_trips_that_are_null(velad: Velad) -> None:
    velad.answer = {"rtt_ms": None}

    status, out, _ = velad.control("--json", *FAST, "--count", "1")

    assert status == 3
    assert json.loads(out)["rtt_ms"] == {"min": None, "p50": None, "p99": None, "max": None}


def test_ping_that_velad_refuses_ends_with_the_reason(velad: Velad) -> None:
    velad.series["ping"] = answers(1.0)
    velad.answer = {"error": "vela0: 1500 bytes do not fit a datagram; 1471 do"}

    status, out, err = velad.control(*FAST)

    assert (status, out) == (1, "vela0: 1: answer after 1.000 ms\n")
    assert err == "velactl: vela0: 1500 bytes do not fit a datagram; 1471 do\n"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let programs end by SIGINT, also where this process was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("at", "status", "shown"),
    [
        (3, 0, "2 sent, 2 answered, 0 % lost"),
        # The first one was not answered yet.
        (1, 3, "0 sent, 0 answered, 0 % lost"),
    ],
)
def test_ping_that_is_interrupted_shows_what_there_is(
    velad: Velad, at: int, status: int, shown: str
) -> None:
    velad.answer = {"rtt_ms": 1.0}
    velad.interrupt_at = at

    ended, out, err = velad.control(*FAST, "--count", "1000")

    assert (ended, err) == (status, "")
    assert [line for line in out.splitlines() if " sent, " in line] == [shown]
