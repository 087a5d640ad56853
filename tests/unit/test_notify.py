"""vela.supervisor.notify: sd_notify(3) toward a real socket."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from exhaustion import no_descriptors, open_descriptors
from structlog.testing import capture_logs

from vela.supervisor import notify
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


def test_manager_reads_what_it_is_to_keep_or_to_forget(
    listening: socket.socket, told: Told
) -> None:
    manager = told({})
    reader, writer = os.pipe()

    assert manager.store("tap-vela0", writer)
    assert manager.forget("tap-vela0")

    message, (kept,), _, _ = socket.recv_fds(listening, 1000, 1)
    assert message == b"FDSTORE=1\nFDNAME=tap-vela0"
    # A copy: it stays when the one who stored it has closed its own.
    os.close(writer)
    os.write(kept, b"x")
    assert os.read(reader, 2) == b"x"
    assert heard(listening) == [b"FDSTOREREMOVE=1\nFDNAME=tap-vela0"]
    os.close(kept)
    os.close(reader)


def test_manager_that_takes_nothing_at_present_has_not_stored_it(
    listening: socket.socket, told: Told
) -> None:
    manager = told({})
    fill(listening)

    assert not manager.store("tap-vela0", 0)
    assert not manager.forget("tap-vela0")

    heard(listening)
    assert manager.store("tap-vela0", 0)


def test_other_process_that_takes_over_is_told_and_can_talk_to_the_same_manager(
    listening: socket.socket, told: Told
) -> None:
    manager = told({**WATCHDOG, "WATCHDOG_PID": "1", "HOME": "/root"})

    manager.hand_over(4711)
    successor = ServiceManager(manager.environment)
    successor.feed(0.0)
    successor.close()

    # WATCHDOG_PID would name the process that ends.
    assert manager.environment == {**WATCHDOG, "NOTIFY_SOCKET": listening.getsockname()}
    assert heard(listening) == [b"MAINPID=4711", b"WATCHDOG=1"]


def test_without_a_manager_there_is_nothing_to_hand_on_or_to_wait_for() -> None:
    manager = ServiceManager(WATCHDOG)

    manager.hand_over(4711)
    manager.wait_until_read()

    assert not manager.told
    assert manager.environment == {}


def test_wait_ends_when_the_manager_has_read_all_that_it_was_told(
    listening: socket.socket, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "BARRIER_S", 60.0)
    manager = told({})
    read: list[bytes] = []

    def serve() -> None:
        while b"BARRIER=1" not in read:
            select.select([listening], [], [])
            message, fds, _, _ = socket.recv_fds(listening, 1000, 1)
            read.append(message)
            for fd in fds:
                os.close(fd)

    manager.forget("tap-vela0")
    serving = threading.Thread(target=serve)
    serving.start()
    before = time.monotonic()
    manager.wait_until_read()

    assert time.monotonic() - before < 60
    # All of it, as the barrier comes last.
    assert read == [b"FDSTOREREMOVE=1\nFDNAME=tap-vela0", b"BARRIER=1"]
    serving.join()


def test_wait_for_a_manager_that_reads_nothing_ends_in_time(
    listening: socket.socket, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "BARRIER_S", 0.05)
    manager = told({})
    before, descriptors = time.monotonic(), open_descriptors()

    manager.wait_until_read()

    assert time.monotonic() - before >= 0.05
    assert open_descriptors() == descriptors


def test_wait_for_a_manager_that_takes_nothing_is_none(
    listening: socket.socket, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "BARRIER_S", 60.0)
    manager = told({})
    fill(listening)
    before = time.monotonic()

    manager.wait_until_read()

    assert time.monotonic() - before < 60


def test_velad_that_has_no_descriptor_for_its_manager_says_so_and_goes_on(
    listening: socket.socket,
) -> None:
    with capture_logs() as log, no_descriptors():
        manager = ServiceManager({"NOTIFY_SOCKET": listening.getsockname()})

    manager.ready()
    manager.feed(0.0)

    assert [entry["event"] for entry in log] == ["service_manager_not_told"]
    assert not manager.told
    assert heard(listening) == []
