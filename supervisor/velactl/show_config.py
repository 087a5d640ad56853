"""`velactl show-config`: what is in effect, as a configuration file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from . import output
from .client import ask

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, Keys


def show_config(path: str, *, as_json: bool) -> None:
    """Show it. Raises VelaError."""
    shown = ask(path, {"command": "show-config"})
    if as_json:
        output.write_json(shown)
        return
    output.write(toml_lines(shown["config"], shown["origins"], shown.get("files")))


def toml_lines(
    config: Mapping[str, object],
    origins: Mapping[str, str],
    files: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yield the lines of a configuration file.

    origins: of the circuits, by name; files: those that they are in, where there are several.
    """
    for index, (names, table) in enumerate(_tables((), config)):
        if index:
            yield ""
        if len(names) == 2 and names[0] == "circuits" and origins[names[1]] != "config":
            yield f"# Not in the file: {_SAID[origins[names[1]]]}."
        elif files and len(names) == 2 and names[1] in files:
            yield f"# In {files[names[1]]}."
        yield f"[{'.'.join(_key(each) for each in names)}]"
        for key, value in table.items():
            if value is None:
                yield f"# {key}: not set"
            elif not isinstance(value, Mapping):
                yield f"{key} = {_value(value)}"


_SAID = {"command": "velactl set it up", "peer": "another machine set it up"}


def _tables(
    names: tuple[str, ...], table: Mapping[str, object]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, object]]]:
    """Yield all tables that have values, with the keys that lead to them."""
    if any(not isinstance(each, Mapping) for each in table.values()):
        yield names, table
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _tables((*names, key), value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)


def _value(value: object) -> str:
    """Return a value as TOML has it: strings, numbers, booleans and lists are as in JSON.

    But for the escapes of what is outside ASCII: configured text is printable as it is.
    """
    return json.dumps(value, ensure_ascii=False)
