"""vela.supervisor.runtime.program: real programs, in a real event loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from lab.waiting import eventually
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.program import MOST_CHARACTERS, MOST_LINES, Program, printable

pytestmark = pytest.mark.forks

# Far more than a shell takes to start; nothing waits for it but what fails.
LIMIT_S = 60.0


class Runner:
    """Runs one program to its end, in a loop of its own."""

    def __init__(self, directory: Path) -> None:
        self.loop = EventLoop()
        self.lines: list[str] = []
        self.program: Program | None = None
        self._path = directory / "program"

    def script(self, text: str, mode: int = 0o755) -> Path:
        self._path.write_text(f"#!/bin/sh\n{text}\n")
        self._path.chmod(mode)
        return self._path

    def run(
        self,
        text: str,
        *,
        environment: Mapping[str, str] | None = None,
        limit_s: float = LIMIT_S,
        mode: int = 0o755,
        meanwhile: Callable[[str], None] = lambda line: None,
    ) -> str:
        """Return why it failed. meanwhile is called with each line of its output."""
        ends: list[str] = []

        def on_line(line: str) -> None:
            self.lines.append(line)
            meanwhile(line)

        def on_end(error: str) -> None:
            ends.append(error)
            self.loop.stop()

        path = self.script(text, mode)
        env = {"PATH": os.environ["PATH"], **(environment or {})}
        self.program = Program(self.loop, path, env, limit_s, on_line, on_end)
        self.loop.run()
        (error,) = ends
        return error


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    made = Runner(tmp_path)
    yield made
    made.loop.close()


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def test_program_that_succeeds_has_its_output_in_lines_and_leaves_no_zombie(
    runner: Runner,
) -> None:
    assert runner.run("echo one; echo two >&2; printf three") == ""

    assert runner.lines == ["one", "two", "three"]
    assert not has_children()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("exit 3", "failed: exit status 3"),
        ("kill -9 $$", "failed: SIGKILL"),
        # What Python ignores in velad, or velad in its children.
        ("kill -PIPE $$", "failed: SIGPIPE"),
        ("kill -HUP $$", "failed: SIGHUP"),
        ("kill -INT $$", "failed: SIGINT"),
    ],
)
def test_program_that_fails_says_how(runner: Runner, text: str, error: str) -> None:
    assert runner.run(text) == error


def test_program_that_cannot_be_executed_says_why(runner: Runner) -> None:
    assert runner.run("", mode=0o644) == "failed: exit status 127"

    assert runner.lines == ["cannot be executed: Permission denied"]


def test_program_that_hangs_is_killed_with_all_that_it_started(runner: Runner) -> None:
    pids: list[int] = []
    began = time.monotonic()

    error = runner.run(
        "sleep 3600 & echo $!; wait", limit_s=2.0, meanwhile=lambda line: pids.append(int(line))
    )

    assert error == "did not end within 2 s, and was killed"
    assert time.monotonic() - began < LIMIT_S
    (pid,) = pids
    eventually(lambda: not is_running(pid), 5, "what it started to end")


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that waits for init to reap it does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def test_end_does_not_wait_for_what_the_program_leaves_behind(runner: Runner) -> None:
    pids: list[int] = []

    error = runner.run("sleep 3600 & echo $!", meanwhile=lambda line: pids.append(int(line)))

    (pid,) = pids
    assert error == ""
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


def test_program_has_no_descriptors_but_three_and_no_other_environment(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of velad")
    reader, writer = os.pipe()
    try:
        os.set_inheritable(writer, True)
        # By ls itself: the shell has the script open.
        error = runner.run("ls /proc/self/fd; exec env", environment={"VELA_ID": "1"})
    finally:
        os.close(reader)
        os.close(writer)

    assert error == ""
    # The fourth is ls's, on the folder.
    assert runner.lines[:4] == ["0", "1", "2", "3"]
    assert not runner.lines[4].isdecimal()
    told = dict(line.split("=", 1) for line in runner.lines[4:])
    assert told["VELA_ID"] == "1"
    # PWD and such are the shell's.
    assert set(told) - {"PATH", "VELA_ID"} <= {"PWD", "SHLVL", "_", "OLDPWD"}


def test_output_that_is_long_is_cut_and_counted(runner: Runner) -> None:
    count = MOST_LINES + 7

    runner.run(f"printf '%09999d\\n' 0; yes | head -n {count - 1}")

    assert runner.lines[0] == "0" * MOST_CHARACTERS + "..."
    assert runner.lines[1:MOST_LINES] == ["y"] * (MOST_LINES - 1)
    assert runner.lines[MOST_LINES:] == ["... and 7 more lines"]


def test_program_that_writes_without_end_is_killed(runner: Runner) -> None:
    assert runner.run("exec yes") == "wrote more than 1 MiB, and was killed"

    assert len(runner.lines) == MOST_LINES + 1


def test_program_without_a_newline_at_all_is_killed_and_its_line_is_bounded(
    runner: Runner,
) -> None:
    error = runner.run("exec tr '\\0' x </dev/zero")

    assert error == "wrote more than 1 MiB, and was killed"
    assert runner.lines == ["x" * MOST_CHARACTERS + "..."]


def test_bytes_that_are_no_text_are_made_printable(runner: Runner) -> None:
    runner.run(r"printf 'a\033[31m\377\000b\n'")

    assert runner.lines == ["a?[31m\ufffd?b"]


def test_text_for_an_environment_has_no_zero_byte() -> None:
    assert printable("a\0b\nc") == "a?b?c"
