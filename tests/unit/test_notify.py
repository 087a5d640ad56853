"""vela.supervisor.notify: sd_notify(3) toward a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from vela.supervisor.notify import FEEDS_PER_TIMEOUT, MOST_UNSENT, ServiceManager

WATCHDOG_S = 20.0
Told = Callable[[dict[str, str]], ServiceManager]

WATCHDOG = {"WATCHDOG_USEC": "20000000"}


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """The manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(tmp_path / "notify"))
        yield manager


@pytest.fixture
def told(listening: socket.socket) -> Iterator[Told]:
    """Make what tells that manager, with more in its environment."""
    with ExitStack() as opened:

        def make(environment: dict[str, str]) -> ServiceManager:
            path = str(listening.getsockname())
            manager = ServiceManager({**environment, "NOTIFY_SOCKET": path})
            opened.callback(manager.close)
            return manager

        yield make


def fill(listening: socket.socket) -> int:
    """Send until it takes no more. Return how many messages that were."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
        for sent in count():
            try:
                other.sendto(b"full", listening.getsockname())
            except BlockingIOError:
                return sent
    raise AssertionError


def heard(listening: socket.socket) -> list[bytes]:
    messages = []
    try:
        while True:
            messages.append(listening.recv(1000))
    except BlockingIOError:
        return messages


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive_at_the_manager(tmp_path: Path, abstract: bool) -> None:
    name = f"vela-test-{os.getpid()}"
    path = str(tmp_path / name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(f"\0{name}" if abstract else path)
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}" if abstract else path})

        manager.ready()
        manager.show("1 circuit: 1 up")
        manager.show("1 circuit: 1 up")
        manager.stopping()
        manager.close()

        expected = [b"READY=1", b"STATUS=1 circuit: 1 up", b"STOPPING=1"]
        assert heard(listening) == expected


def test_reload_says_when_it_began(listening: socket.socket, told: Told) -> None:
    before_us = time.monotonic_ns() // 1000

    told({}).reloading()

    (message,) = heard(listening)
    state, _, stamp = message.partition(b"\nMONOTONIC_USEC=")
    assert state == b"RELOADING=1"
    assert before_us <= int(stamp) <= time.monotonic_ns() // 1000


def test_watchdog_is_fed_in_time_and_no_more_often_than_needed(
    listening: socket.socket, told: Told
) -> None:
    manager = told(WATCHDOG)

    fed = []
    for now in range(100, 160):
        manager.feed(float(now))
        fed += [now] * len(heard(listening))

    interval = WATCHDOG_S / FEEDS_PER_TIMEOUT
    assert fed == [100 + interval * n for n in range(int(60 / interval))]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {**WATCHDOG, "WATCHDOG_PID": "1"},
    ],
)
def test_watchdog_that_is_not_this_process_s_is_not_fed(
    listening: socket.socket, told: Told, environment: dict[str, str]
) -> None:
    manager = told(environment)

    for now in range(100):
        manager.feed(float(now))

    assert heard(listening) == []


def test_watchdog_of_this_process_is_fed(listening: socket.socket, told: Told) -> None:
    manager = told({**WATCHDOG, "WATCHDOG_PID": str(os.getpid())})

    manager.feed(0.0)

    assert heard(listening) == [b"WATCHDOG=1"]


def test_manager_that_does_not_read_delays_nobody_and_misses_no_state(
    listening: socket.socket, told: Told
) -> None:
    manager = told(WATCHDOG)
    sent = fill(listening)

    manager.ready()
    manager.show("no circuits")
    manager.feed(0.0)

    assert heard(listening) == [b"full"] * sent
    manager.feed(1.0)
    assert heard(listening) == [b"READY=1", b"STATUS=no circuits", b"WATCHDOG=1"]


def test_states_that_wait_for_the_manager_are_bounded_and_the_last_ones_stay(
    listening: socket.socket, told: Told
) -> None:
    manager = told({})
    fill(listening)

    for number in range(10 * MOST_UNSENT):
        manager.show(f"number {number}")
    manager.ready()

    heard(listening)
    messages = []
    # Its queue is shorter.
    for _ in range(MOST_UNSENT):
        manager.feed(0.0)
        messages += heard(listening)
    assert messages[-2:] == [b"STATUS=number %d" % (10 * MOST_UNSENT - 1), b"READY=1"]
    assert len(messages) <= MOST_UNSENT


@pytest.mark.parametrize("path", [None, "", "/nowhere/notify", "@vela-test-nobody", "x" * 300])
def test_manager_that_is_not_there_is_no_error(path: str | None) -> None:
    manager = ServiceManager(WATCHDOG if path is None else {**WATCHDOG, "NOTIFY_SOCKET": path})

    manager.ready()
    manager.show("no circuits")
    manager.feed(0.0)
    manager.stopping()
    manager.close()
