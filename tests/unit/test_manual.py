"""docs/operating.md against the code: log events, drop reasons, messages to operators."""

from __future__ import annotations

import ast
import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vela.dataplane.counters import RX_DROPPED, TX_DROPPED
from vela.signaling.responder import Silence
from vela.supervisor.demux import DropReason

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "docs" / "operating.md").read_text()
LEVELS = ("error", "warning", "info", "debug")
EVENT = re.compile(r"[a-z]+(_[a-z]+)+")


@cache
def modules() -> tuple[ast.Module, ...]:
    paths = (*(ROOT / "vela").rglob("*.py"), *(ROOT / "supervisor").rglob("*.py"))
    # vela/supervisor is a link to supervisor/.
    return tuple(
        ast.parse(path.read_text()) for path in paths if "vela/supervisor" not in str(path)
    )


@cache
def constants() -> dict[str, object]:
    """Return the constants of the modules by name, as a module defines or imports them."""
    found: dict[str, object] = {}
    for module in modules():
        for node in module.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                    found[name] = value
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                    for each, item in zip(names, values, strict=True):
                        if isinstance(item, ast.Constant):
                            found[ast.unparse(each)] = item.value
    return found


def calls() -> Iterator[ast.Call]:
    for module in modules():
        yield from (node for node in ast.walk(module) if isinstance(node, ast.Call))


def logged() -> dict[str, set[str]]:
    """Return the levels of each event that the code logs; empty where it is chosen at run time."""
    found: dict[str, set[str]] = defaultdict(set)
    for call in calls():
        match call:
            case ast.Call(func=function, args=[ast.Constant(value=str(event)), *_]):
                if "log" in ast.unparse(function) and EVENT.fullmatch(event):
                    level = function.attr if isinstance(function, ast.Attribute) else ""
                    level = {"exception": "error"}.get(level, level)
                    found[event] |= {level} & set(LEVELS)
    return found


def listed() -> dict[str, str]:
    """Return the level under which the manual lists each event."""
    section = MANUAL.partition("## Log events")[2]
    found: dict[str, str] = {}
    level = ""
    for line in section.splitlines():
        if named := re.match(r"At level (\w+):", line):
            level = named[1]
        names = line.split("|")[1] if line.startswith("|") else line if level == "debug" else ""
        found |= dict.fromkeys(re.findall(r"`([a-z_]+)`", names), level)
    return found


def test_manual_lists_the_events_that_the_code_logs_and_no_others() -> None:
    assert set(listed()) == set(logged())


def test_manual_lists_each_event_under_a_level_at_which_it_is_logged() -> None:
    manual = listed()

    wrong = {event for event, levels in logged().items() if levels and manual[event] not in levels}
    assert wrong == set()


def test_manual_lists_every_reason_for_which_datagrams_are_dropped() -> None:
    section = MANUAL.partition("### Drops")[2].partition("## Persistence")[0]
    names = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"(?m)^\|.*?\|(.*?)\|", section))))
    errors = {
        f"control_{constants()[ast.unparse(call.args[0])]}"
        for call in calls()
        if ast.unparse(call.func) == "RemoteProtocolError"
    }

    expected = {*TX_DROPPED, *RX_DROPPED, *(reason.value for reason in DropReason), *errors}
    assert names == expected | {f"control_{silence.value}" for silence in Silence}


def filled_in(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "\0"


@cache
def templates() -> tuple[str, ...]:
    """Return the texts of the code, with a zero byte for what is filled in."""
    found = []
    for module in modules():
        for node in ast.walk(module):
            match node:
                case ast.JoinedStr(values=values):
                    parts = (
                        part.value if isinstance(part, ast.Constant) else "\0" for part in values
                    )
                    found.append("".join(map(str, parts)))
                case ast.Constant(value=str(text)):
                    found.append(text)
    return tuple(found)


def quoted() -> list[str]:
    """Return the messages that the manual explains."""
    section = MANUAL.partition("## Troubleshooting")[2].partition("## Log events")[0]
    rows = re.findall(r"(?m)^\| (.*?) \|", section)
    return [text for row in rows for text in re.findall(r"`([^`]*)`", row) if " " in text]


@pytest.mark.parametrize("message", quoted())
def test_message_that_the_manual_explains_is_one_of_the_code(message: str) -> None:
    if message in map(os.strerror, errno.errorcode):
        return
    # Names, addresses, paths, numbers and the kernel's words are filled in. One message may quote
    # another one after "...".
    filling = r"[A-Z]{3,}|vela\d+|br\d+|\[::\]:\d+|\d+|/[a-z/]+|(?<=: )[A-Z][a-z ]+$"
    for part in message.split("..."):
        pattern = ".*".join(re.escape(piece) for piece in re.split(filling, part.strip()))
        assert any(re.search(pattern, text, re.DOTALL) for text in templates()), part


@pytest.mark.parametrize(
    "document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name
)
def test_tests_that_a_document_names_are_there(document: Path) -> None:
    folders = {each.name for each in (ROOT / "tests").iterdir() if each.is_dir()}
    named = re.findall(r"\b([a-z]+)/(test_\w+\.py)", document.read_text())

    missing = [
        f"{folder}/{name}"
        for folder, name in named
        if folder in folders and not (ROOT / "tests" / folder / name).is_file()
    ]

    assert missing == []
