"""vela.supervisor.runtime.names: a real helper process, also one that is killed or stopped."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from exhaustion import no_descriptors
from structlog.testing import capture_logs
from users import child_user

from vela.address import Family
from vela.supervisor.runtime import names
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.names import Names
from vela.supervisor.runtime.resolver import Answer

pytestmark = pytest.mark.forks

TIMEOUT_S = 20.0


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


class Asker:
    """Names on a loop, and the helper's process id."""

    def __init__(self) -> None:
        before = children()
        self.loop = EventLoop()
        self.names = Names(self.loop, child_user())
        (self.helper,) = children() - before
        self.answers: list[Answer] = []
        self.delays: list[str] = []

    def close(self) -> None:
        self.names.close()
        self.loop.close()

    def close_and_open(self) -> None:
        """Begin with another helper, by the intervals that hold now."""
        self.close()
        fresh = Asker()
        self.loop, self.names, self.helper = fresh.loop, fresh.names, fresh.helper

    def ask(self, host: str, family: Family | None = None) -> None:
        self.names.ask(host, family, self.answers.append, self.delays.append)

    def run_for(self, seconds: float) -> None:
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()

    def wait_for(self, count: int) -> list[Answer]:
        expired = self.loop.call_later(TIMEOUT_S, self.loop.stop)

        def look() -> None:
            if len(self.answers) >= count:
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        self.loop.call_soon(look)
        self.loop.run()
        expired.cancel()
        assert len(self.answers) == count, self.answers
        return self.answers


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let helpers that are forked from now on wait for ever for what is under example.net."""
    look_up = socket.getaddrinfo

    def wait(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".example.net"):
            threading.Event().wait()
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)


@pytest.fixture
def asker() -> Iterator[Asker]:
    if os.geteuid() != 0 and set(os.getgroups()) - {os.getgid()}:
        pytest.skip("only root can drop supplementary groups, as the helper does")
    made = Asker()
    yield made
    made.close()


def test_address_is_its_own_answer_but_not_within_the_call(asker: Asker) -> None:
    asker.ask("192.0.2.9")
    asker.ask("2001:db8::9", Family.IPV6)
    assert asker.answers == []

    assert asker.wait_for(2) == [
        Answer("192.0.2.9", None, (ip_address("192.0.2.9"),), None),
        Answer("2001:db8::9", Family.IPV6, (ip_address("2001:db8::9"),), None),
    ]


def test_name_is_answered_to_all_who_ask(asker: Asker) -> None:
    for _ in range(3):
        asker.ask("localhost", Family.IPV4)

    assert (
        asker.wait_for(3)
        == [Answer("localhost", Family.IPV4, (ip_address("127.0.0.1"),), None)] * 3
    )


def test_one_who_asked_and_fails_keeps_nobody_else_from_the_answer(asker: Asker) -> None:
    def fail(_: Answer) -> None:
        raise ZeroDivisionError

    asker.names.ask("localhost", Family.IPV4, fail)
    asker.ask("localhost", Family.IPV4)

    assert asker.wait_for(1)[0].addresses == (ip_address("127.0.0.1"),)


def test_name_too_long_is_answered_with_an_error(asker: Asker) -> None:
    asker.ask("x" * 1000)

    (answer,) = asker.wait_for(1)
    assert answer.addresses == ()
    assert "longer than a host name can be" in str(answer.error)


def test_helper_that_is_killed_is_replaced_and_asked_again(asker: Asker) -> None:
    # Stopped, so that the question is open when it is killed.
    os.kill(asker.helper, signal.SIGSTOP)
    asker.ask("localhost", Family.IPV4)
    os.kill(asker.helper, signal.SIGKILL)

    assert asker.wait_for(1)[0].addresses == (ip_address("127.0.0.1"),)
    assert asker.helper not in children()


def test_name_asked_while_there_is_no_helper_is_answered_by_the_next(asker: Asker) -> None:
    os.kill(asker.helper, signal.SIGKILL)
    asker.ask("127.0.0.2")
    asker.wait_for(1)
    asker.loop.call_later(0.1, lambda: asker.ask("localhost", Family.IPV4))

    assert asker.wait_for(2)[1].addresses == (ip_address("127.0.0.1"),)


def test_helper_is_replaced_as_soon_as_there_are_descriptors_for_it(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "RESTART_DELAY_S", 0.05)
    os.kill(asker.helper, signal.SIGKILL)
    asker.ask("localhost", Family.IPV4)
    asker.loop.call_later(0.3, asker.loop.stop)
    with no_descriptors():
        asker.loop.run()
    assert asker.answers == []

    assert asker.wait_for(1)[0].addresses == (ip_address("127.0.0.1"),)


def test_names_closed_while_the_helper_cannot_be_replaced_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "RESTART_DELAY_S", 0.05)
    asker = Asker()
    os.kill(asker.helper, signal.SIGKILL)
    asker.loop.call_later(0.02, asker.loop.stop)
    asker.loop.run()
    asker.names.close()

    asker.loop.call_later(0.2, asker.loop.stop)
    asker.loop.run()

    assert children() == set()
    asker.loop.close()


def test_helper_that_is_stopped_is_replaced_and_that_is_told(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "BEAT_INTERVAL_S", 0.5)
    monkeypatch.setattr(names, "RESTART_DELAY_S", 0.1)
    asker.close_and_open()
    os.kill(asker.helper, signal.SIGSTOP)
    asker.ask("localhost", Family.IPV4)

    with capture_logs() as log:
        (answer,) = asker.wait_for(1)

    assert answer.addresses == (ip_address("127.0.0.1"),)
    assert asker.delays == [
        "localhost: the resolver process does not answer; another one is started"
    ]
    assert [(entry["event"], entry["error"]) for entry in log] == [
        ("resolver_lost", "the resolver process does not answer")
    ]
    assert asker.helper not in children()


def test_helper_that_is_busy_is_not_replaced(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, silent_server: None
) -> None:
    monkeypatch.setattr(names, "BEAT_INTERVAL_S", 0.5)
    monkeypatch.setattr(names, "SLOW_S", 0.5)
    asker.close_and_open()
    for number in range(40):
        asker.ask(f"router{number}.example.net")

    asker.run_for(2.5)

    assert asker.answers == []
    assert asker.helper in children()
    assert sorted(asker.delays) == sorted(
        f"router{number}.example.net: the name server has not answered yet" for number in range(40)
    )


def test_look_up_that_never_ends_is_given_up_with_the_helper(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, silent_server: None
) -> None:
    monkeypatch.setattr(names, "BEAT_INTERVAL_S", 0.5)
    monkeypatch.setattr(names, "STUCK_S", 0.5)
    monkeypatch.setattr(names, "RESTART_DELAY_S", 0.1)
    asker.close_and_open()
    asker.ask("router.example.net")

    (answer,) = asker.wait_for(1)
    assert answer.error == "router.example.net: the look-up did not end in 0.5 s"
    asker.ask("localhost", Family.IPV4)
    assert asker.wait_for(2)[1].addresses == (ip_address("127.0.0.1"),)
    assert asker.helper not in children()


def test_names_with_a_helper_that_is_stopped_are_closed_at_once(asker: Asker) -> None:
    other = Asker()
    os.kill(other.helper, signal.SIGSTOP)

    other.close()

    assert other.helper not in children()


def test_closed_names_leave_no_process(asker: Asker) -> None:
    other = Asker()
    assert other.helper in children()

    other.close()

    assert other.helper not in children()
