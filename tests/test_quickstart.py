"""What the README's first command leaves behind, whatever becomes of it: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lab.daemon import ROOT
from lab.namespace import existing, prefix
from lab.quickstart import CONFIG_B, RUNS, Run

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


@pytest.mark.needs_net_admin
def test_quickstart_configures_one_router_and_shows_the_circuit_up_on_both() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [sys.executable, "-m", "lab.quickstart", "up"], env=env, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    up = [line for line in done.stdout.splitlines() if line.startswith("quickstart: vela0 in ")]
    assert [line.partition(" is ")[2] for line in up] == [
        "up, MTU 1471, configured there",
        "up, MTU 1471, set up from the other end",
    ]
    assert done.stdout.count("1471 bytes, not to be fragmented: 5 of 5 answered") == 2
    assert "circuits" not in CONFIG_B
    assert done.stdout.endswith("quickstart: all taken down, nothing left behind\n")


def test_quickstart_help_sets_nothing_up() -> None:
    done = subprocess.run([QUICKSTART, "--help"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: scripts/quickstart [--keep | --down | --help]\n")


@pytest.mark.parametrize("arguments", [["--kep"], ["--keep", "--down"], [""]])
def test_quickstart_with_unknown_arguments_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([QUICKSTART, *arguments], capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")
