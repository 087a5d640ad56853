"""Tables of TOML or JSON values, read key by key: types, ranges, and all mistakes. Pure.

Key, ListKey and TableKey describe the keys of a table once, for reading and for writing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from difflib import get_close_matches
from enum import Enum
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from vela.address import shown

T = TypeVar("T")
D = TypeVar("D")
W = TypeVar("W")
E = TypeVar("E", bound=Enum)
R = TypeVar("R", bound="Record")

Parser = Callable[[object], T]
"""Turns a value of TOML into a T, or raises ValueError: what is wrong; what would be right."""
Formatter = Callable[[T], object]
"""Turns a T into the value of TOML that its parser reads."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, Keys


def key_path(*keys: str) -> str:
    """Return the path of a key as a file can write it: circuits."eth0.5".id."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else json.dumps(key) for key in keys)


class Table:
    """One table. read() and the like make a key known; finish() reports unknown keys.

    A mistake is recorded and the default returned, so that reading finds all mistakes.
    """

    def __init__(
        self, values: Mapping[str, object], mistakes: list[str], path: tuple[str, ...] = ()
    ) -> None:
        """path: the keys that lead to this table. Mistakes of all its tables go to mistakes."""
        self._values = values
        self.mistakes = mistakes
        self._path = path
        self._known: list[str] = []

    def report(self, key: str, mistake: str) -> None:
        self.mistakes.append(f"{key_path(*self._path, key)}: {mistake}")

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
        """Return the key's value. Where it is absent or wrong, record a mistake and return None."""
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
        """Return the valid items of a list; two items that are the same are a mistake."""
        values = self.read(key, _list, None)
        if values is None:
            return default
        if not values and not may_be_empty:
            self.report(key, "is empty; at least one item would be right")
        items: list[T] = []
        seen: dict[object, int] = {}
        path = key_path(*self._path, key)
        for index, value in enumerate(values):
            try:
                item = parser(value)
            except ValueError as err:
                self.mistakes.append(f"{path}[{index}]: {err}")
                continue
            first = seen.setdefault(same(item), index)
            if first != index:
                self.mistakes.append(f"{path}[{index}]: {_shown(value)} repeats {key}[{first}]")
            items.append(item)
        return tuple(items)

    def read_list_or_none(self, key: str, parser: Parser[T]) -> tuple[T, ...] | None:
        """Return the valid items of a list; None if it is absent."""
        items = self.read_list(key, parser)
        return items if key in self._values else None

    def table(self, key: str) -> Table | None:
        """Return the table of this name in this one; None if it is absent or not a table."""
        values = self.read(key, _table, None)
        return None if values is None else Table(values, self.mistakes, (*self._path, key))

    def has_list(self, key: str) -> bool:
        """Tell whether the key's value is a list."""
        return isinstance(self._values.get(key), list)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Yield the name and table of each key, where the operator chooses the names."""
        for key in self._values:
            inner = self.table(key)
            if inner is not None:
                yield key, inner

    def finish(self) -> None:
        """Report all keys that were not read."""
        for key in self._values:
            if key in self._known:
                continue
            what = "table" if isinstance(self._values[key], dict) else "key"
            close = get_close_matches(key.lower(), self._known, n=1)
            right = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(self._known)
            self.report(key, f"is an unknown {what}; {right}")


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class TableField(Protocol):
    """One key of a table, for the field of that name in the table's record."""

    @property
    def name(self) -> str: ...

    def read(self, table: Table, default: Any, /) -> Any:
        """Return the value for the field; the default if the key is absent or wrong."""

    def write(self, value: Any, /) -> object:
        """Return the value of TOML that is read as value."""


def plain(value: object) -> object:
    """Return the value of an enumeration's member; everything else as it is."""
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True, slots=True)
class Key(Generic[T]):
    """A key with one value."""

    name: str
    parse: Parser[T]
    write: Formatter[T] = plain
    required: str = ""
    """What would be right, for the message if the key is missing; empty: it may be absent."""

    def read(self, table: Table, default: T) -> T:
        if not self.required:
            return table.read(self.name, self.parse, default)
        value = table.require(self.name, self.parse, self.required)
        return default if value is None else value


@dataclass(frozen=True, slots=True)
class ListKey(Generic[T]):
    """A key with a list of values."""

    name: str
    parse_item: Parser[T]
    write_item: Formatter[T]
    same: Callable[[T], object]
    """Two items for which this is equal are a mistake."""

    def read(self, table: Table, default: tuple[T, ...]) -> tuple[T, ...]:
        return table.read_list(self.name, self.parse_item, default, self.same)

    def write(self, items: tuple[T, ...]) -> list[object]:
        return [self.write_item(item) for item in items]


@dataclass(frozen=True, slots=True)
class TableKey(Generic[R]):
    """A key whose value is a table, with a record of its own."""

    name: str
    fields: Sequence[TableField]
    default: R

    def read(self, table: Table, default: R) -> R:
        inner = table.table(self.name)
        return default if inner is None else read_record(inner, self.fields, default)

    def write(self, record: R) -> dict[str, object]:
        return write_record(record, self.fields, self.default)


def read_record(table: Table, fields: Sequence[TableField], default: R) -> R:
    """Return the record of a table. The default has the values of absent keys."""
    values = {field.name: field.read(table, getattr(default, field.name)) for field in fields}
    table.finish()
    return replace(default, **values)


def write_record(record: R, fields: Sequence[TableField], default: R) -> dict[str, object]:
    """Return the table of a record, without keys that have their defaults."""
    return {
        field.name: field.write(value)
        for field in fields
        if (value := getattr(record, field.name)) != getattr(default, field.name)
    }


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(value, "true or false")
    return value


def integer(low: int, high: int | None = None) -> Parser[int]:
    """Return a parser of whole numbers from low to high, both included."""

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
    """Return a parser of numbers, whole or not, from low to high, both included."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(value, "a number")
        if not low <= value <= high:  # so written, nan is outside
            raise ValueError(f"{_shown(value)} is outside {low}..{high}")
        return float(value)

    return parse


def text(parse_text: Callable[[str], T]) -> Parser[T]:
    """Return a parser of strings. parse_text raises ValueError for a string that is not valid."""

    def parse(value: object) -> T:
        if not isinstance(value, str):
            raise wrong_type(value, "a string")
        # NUL would end a path early; a lone surrogate cannot be encoded.
        if not value.isprintable():
            raise ValueError(f"{_shown(value)} has unprintable characters")
        return parse_text(value)

    return parse


def word(words: Mapping[str, W]) -> Parser[W]:
    """Return a parser of words, to what they stand for."""
    right = " or ".join(f"'{word}'" for word in words)

    def parse(value: object) -> W:
        if not isinstance(value, str):
            raise wrong_type(value, right)
        if value not in words:
            raise ValueError(f"{_shown(value)} is not valid; {right} would be right")
        return words[value]

    return parse


def known_word(words: Mapping[str, W]) -> Parser[W]:
    """Return a parser of words that are too many to list in each message."""
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
    """Return a parser of the values of an enumeration, to its members."""
    return word({str(item.value): item for item in enum})


def word_or(words: Mapping[str, W], parser: Parser[T], right: str) -> Parser[W | T]:
    """Return a parser of words, and of other values than strings. right describes all of them."""

    def parse(value: object) -> W | T:
        if isinstance(value, bool | list | dict):
            raise wrong_type(value, right)
        if not isinstance(value, str):
            return parser(value)
        if value not in words:
            raise ValueError(f"{_shown(value)} is not valid; {right} would be right")
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
        return "a boolean"
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
