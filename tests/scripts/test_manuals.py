"""scripts/manuals: pages and completion that are made cover what the programs take."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.daemon import ROOT
from vela.supervisor import cli
from vela.supervisor.velactl import command_line

PROGRAMS = {"velad": cli.make_parser, "velactl": command_line.make_parser}


@pytest.fixture(scope="module")
def manuals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manuals")
    done = subprocess.run(
        [ROOT / "scripts" / "manuals", folder], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return folder


def words_of(parser: argparse.ArgumentParser) -> tuple[set[str], set[str]]:
    """Return all commands and all long options, those of commands among them."""
    commands: set[str] = set()
    options = {each for action in parser._actions for each in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                commands.add(name)
                options |= words_of(command)[1]
    return commands, {each for each in options if each.startswith("--")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_man_page_has_each_command_and_option(manuals: Path, program: str) -> None:
    page = (manuals / "man8" / f"{program}.8").read_text().replace("\\-", "-")
    commands, options = words_of(PROGRAMS[program]())

    assert page.startswith(f".TH {program.upper()} ")
    assert len(options) > 4
    for option in options:
        assert re.search(rf"{option}\b", page), option
    for command in commands:
        assert re.search(rf"{program} {command}\b", page), command
    # Of text that was meant for a terminal nothing is lost: examples stand line by line.
    assert "$" not in page.split("\n", 1)[0]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man")
def test_man_page_is_shown_without_complaints(manuals: Path, program: str) -> None:
    done = subprocess.run(
        ["man", "--warnings", "--local-file", manuals / "man8" / f"{program}.8"],
        capture_output=True,
        text=True,
        env={"MANPAGER": "cat", "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert program in done.stdout


def completed(manuals: Path, program: str, *words: str) -> set[str]:
    """Return what bash offers behind these words, the last of which is to be completed."""
    script = f"""
source {manuals / "bash-completion" / program}
function=$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=({program} "$@")
COMP_CWORD=$#
"$function" {program} "${{@: -1}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words], capture_output=True, text=True
    )
    return {each.strip() for each in done.stdout.split("\n")} - {""}


def test_bash_completes_commands_and_options(manuals: Path) -> None:
    commands, _ = words_of(command_line.make_parser())

    assert commands <= completed(manuals, "velactl", "")
    assert completed(manuals, "velactl", "re") == {"reload", "restart"}
    assert {"--dry-run", "--confirm"} <= completed(manuals, "velactl", "reload", "--")
    assert "--config" in completed(manuals, "velad", "--")


def test_unknown_arguments_are_refused() -> None:
    for arguments in ([], ["--nothing"], ["a", "b"]):
        done = subprocess.run(
            [ROOT / "scripts" / "manuals", *arguments], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: scripts/manuals FOLDER")
