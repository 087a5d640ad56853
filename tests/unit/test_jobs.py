"""vela.supervisor.jobs and vela.linux.dbus, toward what says what systemd says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from lab.job_list import JobList
from vela.errors import DeviceError
from vela.linux import dbus
from vela.supervisor import jobs
from vela.supervisor.jobs import Restart, find_restart

PID, STORED = 4711, 44

# D-Bus Specification, "Message Format": the type and flags, the version, the length of the body,
# the serial number, the length of the fields; then path, interface, member and signature, each at
# a multiple of 8.
GET_MAIN_PID = (
    b"l\1\0\1" + b"\x20\0\0\0" + b"\7\0\0\0" + b"\x50\0\0\0"
    b"\1\1o\0\4\0\0\0/u/1\0" + b"\0\0\0"
    b"\2\1s\0\x1f\0\0\0org.freedesktop.DBus.Properties\0"
    b"\3\1s\0\3\0\0\0Get\0" + b"\0\0\0\0"
    b"\x08\1g\0\2ss\0"
    b"\x0e\0\0\0org.example.S1\0" + b"\0"
    b"\7\0\0\0MainPID\0"
)


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobList]:
    path = tmp_path / "private"
    monkeypatch.setattr(jobs, "PRIVATE_SOCKET", path)
    with JobList(path, lambda: (PID, STORED)) as made:
        yield made


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Let whoever calls have these bytes behind the right greeting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):  # who has heard enough hangs up
                connection.recv(4096)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(10)


def test_call_is_what_the_specification_says() -> None:
    made = dbus.call_message(
        7, "/u/1", "org.freedesktop.DBus.Properties", "Get", ("org.example.S1", "MainPID")
    )

    assert made.hex(" ") == GET_MAIN_PID.hex(" ")


def test_restart_of_the_unit_is_found(listed: JobList) -> None:
    with listed.restart():
        assert find_restart(PID) == Restart(STORED)


def test_restart_of_another_unit_is_none_of_this_one(listed: JobList) -> None:
    with listed.restart():
        assert find_restart(PID + 1) is None


def test_stop_is_no_restart(listed: JobList) -> None:
    with listed.stop():
        assert find_restart(PID) is None


def test_no_job_is_no_restart(listed: JobList) -> None:
    assert find_restart(PID) is None


def test_manager_that_is_silent_is_waited_for_so_long_only(
    listed: JobList, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LIMIT_S", 0.1)
    listed.silent = True
    began = time.monotonic()

    with listed.restart(), pytest.raises(DeviceError, match="no answer to ListJobs"):
        find_restart(PID)

    assert time.monotonic() - began >= 0.1


def test_without_systemd_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PRIVATE_SOCKET", tmp_path / "private")

    with pytest.raises(DeviceError, match="does not answer"):
        find_restart(PID)


# Type 2 in reply to 1: one job, of a unit "a.service" at "/u/1".
GREETING = b"OK 0123456789abcdef0123456789abcdef\r\n"
JOBS = (
    b"l\2\1\1" + b"\x49\0\0\0" + b"\1\0\0\0" + b"\x17\0\0\0"
    b"\5\1u\0\1\0\0\0"
    b"\x08\1g\0\x09a(usssoo)\0" + b"\0"
    b"\x41\0\0\0" + b"\0\0\0\0"
    b"\1\0\0\0"
    b"\x09\0\0\0a.service\0" + b"\0\0"
    b"\7\0\0\0restart\0"
    b"\7\0\0\0running\0"
    b"\4\0\0\0/j/1\0" + b"\0\0\0"
    b"\4\0\0\0/u/1\0"
)


@pytest.mark.parametrize("length", range(len(GREETING + JOBS)))
def test_answer_that_ends_at_any_byte_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(jobs, "PRIVATE_SOCKET", tmp_path / "private")

    with answering(tmp_path / "private", (GREETING + JOBS)[:length]), pytest.raises(DeviceError):
        find_restart(PID)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"REJECTED EXTERNAL\r\n", "not let in: REJECTED EXTERNAL"),
        (b"\0" * 600, "no D-Bus at the other end"),
        (GREETING + b"x" + JOBS[1:], "no D-Bus message"),
        (GREETING + JOBS[:3] + b"\2" + JOBS[4:], "no D-Bus message"),
        (GREETING + JOBS[:4] + b"\xff\xff\xff\x7f" + JOBS[8:], "too long"),
        (GREETING + JOBS[:12] + b"\xff\xff\xff\x7f" + JOBS[16:], "too long"),
        (GREETING + JOBS[:17] + b"\1x" + JOBS[19:], "a field of type x"),
        # An array, and a string, that would go on behind the end of the message.
        (GREETING + JOBS.replace(b"\x41\0\0\0", b"\xff\0\0\0"), "shorter than it says"),
        (GREETING + JOBS.replace(b"\x09\0\0\0", b"\xf9\0\0\0"), "shorter than it says"),
        (GREETING + b"l\3" + JOBS[2:], "ListJobs is refused"),
    ],
)
def test_answer_that_makes_no_sense_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    monkeypatch.setattr(jobs, "PRIVATE_SOCKET", tmp_path / "private")

    with answering(tmp_path / "private", answer), pytest.raises(DeviceError, match=said):
        find_restart(PID)


def test_signals_and_answers_to_others_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "private"
    signal_ = b"l\4" + JOBS[2:]
    late = JOBS.replace(b"\5\1u\0\1\0\0\0", b"\5\1u\0\x09\0\0\0")

    with answering(path, GREETING + signal_ + late + JOBS), closing(dbus.Peer(path, 5.0)) as peer:
        array = peer.call("/", "a.b", "ListJobs").array()

        array.align(8)
        assert (array.uint32(), array.string(), array.string()) == (1, "a.service", "restart")
