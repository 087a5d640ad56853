"""Man pages, and completion for shells, of what the programs' --help says: scripts/manuals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

from vela import __version__
from vela.supervisor import cli
from vela.supervisor.velactl import command_line

PARSERS = {"velad": cli.make_parser, "velactl": command_line.make_parser}
SECTION = 8


def main(folder: Path) -> None:
    for program, make_parser in PARSERS.items():
        parser = make_parser()
        _show_commands(parser)
        page = Manpage(
            parser,
            {
                "project_name": "VELA",
                "version": __version__,
                "manual_section": SECTION,
                "manual_title": "System administration",
                "description": (parser.description or "").rstrip("."),
            },
        )
        _write(folder / f"man{SECTION}" / f"{program}.{SECTION}", str(page))
        _write(folder / "bash-completion" / program, shtab.complete(parser, "bash"))
        _write(folder / "zsh" / f"_{program}", shtab.complete(parser, "zsh"))


def _show_commands(parser: argparse.ArgumentParser) -> None:
    """Let the parser list its commands, which --help does in its own words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = "what to do"
            for name, command in action.choices.items():
                text = (command.description or "").partition(".")[0].replace("\n", " ")
                action._choices_actions.append(action._ChoicesPseudoAction(name, (), text))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
