"""vela.log: one write for each line, so that lines of several processes never mix."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys

import pytest


def writes(code: str, unbuffered: bool) -> list[bytes]:
    """Run code with a stderr that keeps writes apart, and return them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = os.environ | {"PYTHONUNBUFFERED": "1" if unbuffered else ""}
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs.fileno(), check=True, env=env, timeout=30
        )
        theirs.close()
        found = []
        while data := ours.recv(1 << 20):
            found.append(data)
    return found


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_each_event_is_one_write(log_format: str, unbuffered: bool) -> None:
    code = f"""
import structlog
from vela.log import configure
configure("info", {log_format!r})
log = structlog.get_logger().bind(circuit="vela0")
log.debug("not_shown")
log.info("circuit_started", remote="192.0.2.9", text="x" * 20000)
log.warning("worker_exited")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("worker_crashed")
"""
    found = writes(code, unbuffered)

    assert len(found) == 3
    assert all(each.endswith(b"\n") for each in found)
    for each, event in zip(
        found, (b"circuit_started", b"worker_exited", b"worker_crashed"), strict=True
    ):
        assert event in each
        assert b"vela0" in each
    assert b"ZeroDivisionError" in found[2]
    assert b"\x1b[" not in b"".join(found)


def test_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    code = """
import sys
import structlog
from vela.log import configure
configure("info", "console")
structlog.get_logger().info("daemon_started")
sys.stderr.flush()
print("still here")
"""
    env = os.environ | {"PYTHONUNBUFFERED": ""}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, env=env, timeout=30
        )

    assert done.stdout == b"still here\n"


def test_json_is_an_object_a_line_with_level_and_time() -> None:
    code = """
import structlog
from vela.log import configure
configure("warning", "json")
log = structlog.get_logger()
log.info("not_shown")
log.warning("worker_exited", circuit="vela0", uptime_s=12.4, text="two\\nlines")
"""
    (line,) = writes(code, unbuffered=False)

    assert line.count(b"\n") == 1
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "level": "warning",
        "event": "worker_exited",
        "circuit": "vela0",
        "uptime_s": 12.4,
        "text": "two\nlines",
    }


def test_level_changed_at_run_time_holds_for_loggers_that_exist() -> None:
    code = """
import structlog
from vela.log import configure, level, set_level
configure("info", "json")
early = structlog.get_logger().bind(circuit="vela0")
early.info("first")
early.debug("not_shown")
set_level("debug")
early.debug("second")
structlog.get_logger().debug("third")
set_level("error")
early.warning("not_shown")
early.bind(more=1).info("not_shown")
early.error(level())
"""
    events = [json.loads(line)["event"] for line in writes(code, False)]

    assert events == ["first", "second", "third", "error"]


STALLED = """
import os, structlog
from vela.log import configure
configure("info", "json")
log = structlog.get_logger()
for number in range(20000):
    log.info("something_happened", number=number, text="x" * 100)
os.write(1, b"all said\\n")
os.read(0, 1)
log.info("afterwards")
"""


def read_now(reader: int) -> bytes:
    """Return what has been written so far; nothing waits for more."""
    said = b""
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 1 << 20):
            said += data
    os.set_blocking(reader, True)
    return said


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_reader_that_stalls_stops_nobody_and_lost_lines_are_counted(kind: str) -> None:
    if kind == "pipe":
        ours, theirs = os.pipe()
    elif kind == "socket":
        ours, theirs = (end.detach() for end in socket.socketpair())
    else:
        ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", STALLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert os.get_blocking(theirs)
        os.close(theirs)
        # It comes to its end although nobody reads.
        assert writer.stdout.readline() == b"all said\n"
        said = read_now(ours)
        writer.stdin.write(b"x")
        writer.stdin.flush()
        with contextlib.suppress(OSError):  # a terminal that nobody has any more
            while data := os.read(ours, 1 << 20):
                said += data
        os.close(ours)

    lines = said.decode().splitlines()
    *before, last, told = [json.loads(line) for line in lines if line[-1:] == "}"]
    assert last["event"] == "afterwards"
    assert told["event"] == "log_lines_lost"
    # The kernel moves on what is in a terminal while it is written to: losses can be told early.
    whole = [entry for entry in before if entry["event"] == "something_happened"]
    losses = [told, *(entry for entry in before if entry["event"] == "log_lines_lost")]
    assert 0 < len(whole) < 20000
    assert len(whole) + sum(entry["lines"] for entry in losses) == 20000


NO_ROOM_FOR_THE_REPORT = """
import os, structlog
from vela.log import configure
configure("info", "json")
log = structlog.get_logger()
for _ in range(100):
    log.info("x" * 3990)
os.write(1, b"a page\\n")
os.read(0, 1)
log.info("x" * 3990)
os.write(1, b"all\\n")
os.read(0, 1)
log.info("afterwards")
"""


def test_losses_are_told_later_where_the_report_finds_no_room() -> None:
    """A line that fills the one page of a pipe that is free leaves no room to report what was lost.

    A pipe takes up to PIPE_BUF bytes, a page, whole or not at all (pipe(7)).
    """
    ours, theirs = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", NO_ROOM_FOR_THE_REPORT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        os.close(theirs)
        assert writer.stdout.readline() == b"a page\n"
        said = b""
        while said.count(b"\n") < 1:
            said += os.read(ours, 1)
        writer.stdin.write(b"x")
        writer.stdin.flush()
        assert writer.stdout.readline() == b"all\n"
        said += read_now(ours)
        writer.stdin.write(b"x")
        writer.stdin.flush()
        while data := os.read(ours, 1 << 20):
            said += data
        os.close(ours)

    *whole, last, told = [json.loads(line) for line in said.splitlines()]
    assert {len(entry["event"]) for entry in whole} == {3990}
    assert last["event"] == "afterwards"
    assert told["event"] == "log_lines_lost"
    assert len(whole) + told["lines"] == 101
