"""What the README's first command leaves behind, whatever becomes of it: nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from lab.daemon import ROOT
from lab.namespace import existing, prefix
from lab.quickstart import CONFIG_B, RUNS, Run

# An environment is made, and filled from the index of packages.
TIMEOUT_S = 300.0
# As they share a clone, they run one after the other: see tests/distribution.py.
pytestmark = pytest.mark.timeout(TIMEOUT_S)
QUICKSTART = str(ROOT / "scripts" / "quickstart")


@pytest.mark.needs_net_admin
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_quickstart_interrupted_leaves_nothing(number: signal.Signals, status: int) -> None:
    command = [sys.executable, "-m", "lab.quickstart", "up"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        running.send_signal(number)
        rest = running.stdout.read()

    assert first == "quickstart: making two routers, joined by a cable of MTU 1500\n"
    assert rest.endswith("quickstart: all taken down, nothing left behind\n")
    assert running.returncode == status
    assert not [name for name in existing() if name.startswith(prefix(running.pid))]
    if RUNS.exists():
        owners = [Run.load(path.parent).owner for path in RUNS.glob("*/run.json")]
        assert running.pid not in owners


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that is over; its process id is part of the names of what it makes."""

    pid: int
    status: int
    stdout: str
    stderr: str


def run(command: list[str], env: Mapping[str, str] = os.environ) -> Ended:
    # By files: what is left running may not hold up the reading of a pipe.
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        running = subprocess.Popen(command, env=env, stdout=stdout, stderr=stderr)
        try:
            status = running.wait(TIMEOUT_S)
        finally:
            running.kill()
            running.wait()
        stdout.seek(0)
        stderr.seek(0)
        return Ended(running.pid, status, stdout.read(), stderr.read())


def namespaces_of(pid: int) -> list[str]:
    return sorted(name for name in existing() if name.startswith(prefix(pid)))


def left_behind(clone: Path, pid: int) -> list[str]:
    """Return what there is of a run in a clone: namespaces, processes, its notes."""
    left = namespaces_of(pid)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(clone) in path.read_bytes():
                left.append(str(path))
    if RUNS.exists():
        left += [
            str(path) for path in RUNS.glob("*/run.json") if Run.load(path.parent).owner == pid
        ]
    return left


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A fresh clone, and what its first scripts/quickstart was, which sets up an environment."""
    clone = tmp_path_factory.mktemp("fresh") / "vela"
    git = ["git", "clone", "--quiet", str(ROOT), str(clone)]
    if shutil.which("git") is None or subprocess.run(git).returncode:
        # Of a tree that is none, or another user's, what a clone would have.
        made = (".venv", ".git", "build", "*.egg-info", "*.so", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(*made))
    unwritten = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return clone, run([str(clone / "scripts" / "quickstart")], unwritten)


def test_setup_compiles_the_modules_so_that_no_start_does(first_run: tuple[Path, Ended]) -> None:
    clone, _ = first_run

    modules = [path for room in ("vela", "supervisor") for path in (clone / room).rglob("*.py")]

    assert len(modules) > 100
    assert [path for path in modules if not Path(cache_from_source(str(path))).exists()] == []


@pytest.mark.needs_net_admin
def test_quickstart_from_a_fresh_clone_shows_the_main_job_and_leaves_nothing(
    first_run: tuple[Path, Ended],
) -> None:
    clone, done = first_run

    assert done.status == 0, done.stderr
    assert "quickstart:" not in done.stderr
    assert "setup: building and installing VELA and what it needs into .venv\n" in done.stdout
    up = [line for line in done.stdout.splitlines() if line.startswith("quickstart: vela0 in ")]
    assert [line.partition(" is ")[2] for line in up] == [
        "up, MTU 1471, configured there",
        "up, MTU 1471, set up from the other end",
    ]
    assert done.stdout.count("1471 bytes, not to be fragmented: 5 of 5 answered") == 2
    assert "circuits" not in CONFIG_B
    assert re.search(r"^quickstart: one TCP stream: [1-9][0-9]* Mbit/s$", done.stdout, re.MULTILINE)
    table = re.findall(
        r"^CIRCUIT +ID +STATE +FOR +FLAPS +TX +RX +RTT +REMOTE, OR WHY NOT\n"
        r"vela0 +1 +up +\d+s +\d+ .* (10\.201\.0\.[12])$",
        done.stdout,
        re.MULTILINE,
    )
    assert table == ["10.201.0.2", "10.201.0.1"]
    assert done.stdout.endswith("quickstart: all taken down, nothing left behind\n")
    assert left_behind(clone, done.pid) == []


@pytest.mark.needs_net_admin
@pytest.mark.parametrize(
    ("program", "said"),
    [("iperf3", "iperf3 does not listen: out of order"), ("ping", "ping 172.16.16.2: exit status")],
)
def test_quickstart_in_which_a_program_fails_fails_and_leaves_nothing(
    first_run: tuple[Path, Ended], tmp_path: Path, program: str, said: str
) -> None:
    clone, _ = first_run
    shim = tmp_path / program
    shim.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    shim.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = run([str(clone / "scripts" / "quickstart")], env)

    assert done.status == 1
    assert f"quickstart: failed: {said}" in done.stderr
    assert "all taken down" in done.stdout
    assert left_behind(clone, done.pid) == []


@pytest.mark.needs_net_admin
def test_quickstart_without_iperf3_fails_and_leaves_nothing(
    first_run: tuple[Path, Ended], tmp_path: Path
) -> None:
    """Not by the script, which would install it."""
    clone, _ = first_run
    for program in ("ip", "ping", "ethtool"):
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert found is not None
        (tmp_path / program).symlink_to(found)
    env = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(clone / "scripts")}

    done = run([str(clone / ".venv/bin/python"), "-m", "lab.quickstart", "up"], env)

    assert done.status == 1
    assert "quickstart: failed: " in done.stderr
    assert "iperf3" in done.stderr.partition("---")[0]
    assert left_behind(clone, done.pid) == []


@pytest.mark.needs_net_admin
def test_quickstart_kept_can_be_used_as_it_says_and_is_taken_down(
    first_run: tuple[Path, Ended],
) -> None:
    if RUNS.is_dir() and list(RUNS.iterdir()):
        pytest.skip("somebody keeps one, which --down would take down, too")
    clone, _ = first_run
    quickstart = str(clone / "scripts" / "quickstart")

    kept = run([quickstart, "--keep"])
    try:
        shown = kept.stdout.partition("quickstart: left running; for example:\n")[2].splitlines()
        pings, *statuses = (line.split() for line in shown if " ping " in line or "status" in line)
        names = namespaces_of(kept.pid)
        pinged = run([*pings, "-c", "1", "-W", "10"])
        states = [run(each) for each in statuses]
        left = left_behind(clone, kept.pid)
    finally:
        down = run([quickstart, "--down"])

    assert kept.status == 0, kept.stderr
    assert len(names) == 2
    # Two names, two supervisors with a helper and a worker each, one note.
    assert len(left) >= 2 + 2 * 3 + 1
    assert pinged.status == 0, pinged.stderr
    assert [" up " in each.stdout for each in states] == [True, True]
    assert (down.status, down.stderr) == (0, "")
    assert f"quickstart: taken down: {', '.join(names)}\n" in down.stdout
    assert left_behind(clone, kept.pid) == []


def test_quickstart_help_sets_nothing_up() -> None:
    done = subprocess.run([QUICKSTART, "--help"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: scripts/quickstart [--keep | --down | --help]\n")


@pytest.mark.parametrize("arguments", [["--kep"], ["--keep", "--down"], [""]])
def test_quickstart_with_unknown_arguments_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([QUICKSTART, *arguments], capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")
