"""Parsed TOML, read key by key: types, ranges, key paths, and every mistake on a line. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from typing import TypeVar

from vela.address import shown

T = TypeVar("T")
D = TypeVar("D")
W = TypeVar("W")
E = TypeVar("E", bound=Enum)

Parser = Callable[[object], T]
"""Turns a TOML value into a T, or raises ValueError: what is wrong; what would be right."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, Keys


class Table:
    """One table. Keys that were asked for are known; finish() reports the others.

    A mistake is noted and the default returned, so that reading goes on to the next mistake.
    """

    def __init__(self, values: Mapping[str, object], mistakes: list[str], path: str = "") -> None:
        self._values = values
        self._mistakes = mistakes
        self._path = path
        self._known: list[str] = []

    def path(self, key: str) -> str:
        """Return the key path as the file would write it: circuits."eth0.5".id."""
        bare = key if _BARE_KEY.fullmatch(key) else json.dumps(key)
        return f"{self._path}.{bare}" if self._path else bare

    def report(self, key: str, mistake: str) -> None:
        self._mistakes.append(f"{self.path(key)}: {mistake}")

    def read(self, key: str, parser: Parser[T], default: D) -> T | D:
        """Return the key's value; the default where it is absent or wrong."""
        self._known.append(key)
        if key not in self._values:
            return default
        try:
            return parser(self._values[key])
        except ValueError as err:
            self.report(key, str(err))
            return default

    def require(self, key: str, parser: Parser[T], right: str) -> T | None:
        """Return the key's value; None, and a mistake is noted, where it is absent or wrong."""
        if key not in self._values:
            self.report(key, f"is missing; {right} would be right")
        return self.read(key, parser, None)

    def read_list(
        self,
        key: str,
        parser: Parser[T],
        default: tuple[T, ...] = (),
        same: Callable[[T], object] = lambda item: item,
        may_be_empty: bool = True,
    ) -> tuple[T, ...]:
        """Return the items that are right; two that are the same are a mistake."""
        values = self.read(key, _list, None)
        if values is None:
            return default
        if not values and not may_be_empty:
            self.report(key, "is empty; at least one item would be right")
        items: list[T] = []
        seen: dict[object, int] = {}
        for index, value in enumerate(values):
            try:
                item = parser(value)
            except ValueError as err:
                self._mistakes.append(f"{self.path(key)}[{index}]: {err}")
                continue
            first = seen.setdefault(same(item), index)
            if first != index:
                self._mistakes.append(
                    f"{self.path(key)}[{index}]: {_shown(value)} repeats {key}[{first}]"
                )
            items.append(item)
        return tuple(items)

    def table(self, key: str) -> Table | None:
        """Return a table in this one; None where it is absent or something else."""
        values = self.read(key, _table, None)
        return None if values is None else Table(values, self._mistakes, self.path(key))

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Yield all that is in this table, by name: for tables whose keys the operator makes up."""
        for key in self._values:
            inner = self.table(key)
            if inner is not None:
                yield key, inner

    def finish(self) -> None:
        """Report what nobody asked for."""
        for key in self._values:
            if key in self._known:
                continue
            what = "table" if isinstance(self._values[key], dict) else "key"
            close = get_close_matches(key.lower(), self._known, n=1)
            right = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(self._known)
            self.report(key, f"is an unknown {what}; {right}")


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(value, "true or false")
    return value


def integer(low: int, high: int | None = None) -> Parser[int]:
    """Make a parser of whole numbers from low to high, both included."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value, "a whole number")
        if high is not None and not low <= value <= high:
            raise ValueError(f"{_shown(value)} is outside {low}..{high}")
        if value < low:
            raise ValueError(f"{_shown(value)} is less than {low}")
        return value

    return parse


def number(low: float, high: float) -> Parser[float]:
    """Make a parser of numbers, whole or not, from low to high, both included."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(value, "a number")
        if not low <= value <= high:  # so written, nan is outside
            raise ValueError(f"{_shown(value)} is outside {low}..{high}")
        return float(value)

    return parse


def text(parse_text: Callable[[str], T]) -> Parser[T]:
    """Make a parser of strings that hold what parse_text takes."""

    def parse(value: object) -> T:
        if not isinstance(value, str):
            raise wrong_type(value, "a string")
        # NUL ends a path early, and a lone surrogate cannot be encoded.
        if not value.isprintable():
            raise ValueError(f"{_shown(value)} holds unprintable characters")
        return parse_text(value)

    return parse


def word(words: Mapping[str, W]) -> Parser[W]:
    """Make a parser of a few words."""
    right = " or ".join(f"'{word}'" for word in words)

    def parse(value: object) -> W:
        if not isinstance(value, str):
            raise wrong_type(value, right)
        if value not in words:
            raise ValueError(f"{_shown(value)} is unknown here; {right} would be right")
        return words[value]

    return parse


def known_word(words: Mapping[str, W]) -> Parser[W]:
    """Make a parser of more words than one would like to read in each message."""
    known = ", ".join(words)

    def parse(value: object) -> W:
        if not isinstance(value, str):
            raise wrong_type(value, f"a word of {known}")
        if value not in words:
            close = get_close_matches(value.lower(), words, n=1)
            right = f"did you mean {close[0]!r}?" if close else f"known: {known}"
            raise ValueError(f"{_shown(value)} is unknown here; {right}")
        return words[value]

    return parse


def member(enum: type[E]) -> Parser[E]:
    """Make a parser of the enumeration's values."""
    return word({str(item.value): item for item in enum})


def word_or(words: Mapping[str, W], parser: Parser[T], right: str) -> Parser[W | T]:
    """Make a parser of a few words, and of what is no string; right describes both."""

    def parse(value: object) -> W | T:
        if isinstance(value, bool | list | dict):
            raise wrong_type(value, right)
        if not isinstance(value, str):
            return parser(value)
        if value not in words:
            raise ValueError(f"{_shown(value)} is unknown here; {right} would be right")
        return words[value]

    return parse


def wrong_type(value: object, right: str) -> ValueError:
    return ValueError(f"{_shown(value)} is {_kind(value)}; {right} would be right")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise wrong_type(value, "a list in [ ]")
    return value


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise wrong_type(value, "a table, with its keys and values,")
    return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number with a fraction"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return "a date or time"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return shown(value)
    # str() refuses integers of more than 4300 digits.
    if isinstance(value, int) and value.bit_length() <= 64:
        return str(value)
    if isinstance(value, float):
        return str(value)
    return "this"
