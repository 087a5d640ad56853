"""The installed commands, interrupted while they start."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a script of pip's does, with ^C at the import of a module that the command needs.
SCRIPT = """
import signal, sys
# What a shell has run in the background, such as these tests, may ignore ^C.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from {package} import {function}
sys.exit({function}())
"""


def run(command: str, module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as setup.cfg installs it, and interrupt it at the import of a module."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    targets = dict(line.split(" = ") for line in lines if line)
    package, _, function = targets[command].partition(":")
    code = SCRIPT.format(module=module, package=package, function=function)
    argv = (sys.executable, "-c", code, *argv)
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "module"),
    [("velad", "argparse"), ("velad", "vela.supervisor.daemon"), ("velactl", "argparse")],
)
def test_command_that_is_interrupted_while_it_starts_ends_quietly(
    command: str, module: str
) -> None:
    done = run(command, module, "--version")

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("command", ["velad", "velactl"])
def test_command_that_is_not_interrupted_has_its_own_exit_status(command: str) -> None:
    version, mistaken = run(command, "no_such_module", "--version"), run(command, "none", "--none")

    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith(f"{command} ")
    assert mistaken.returncode == 2
