"""How velactl shows values: durations, rates, tables. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_GAP = " "
_CUT = "…"
_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> list[tuple[int, str]]:
    """Return the sort key of a name: vela2 comes before vela10."""
    return [
        (int(part), "") if part.isdecimal() else (0, part) for part in _DIGITS.split(name) if part
    ]


def octets(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def rate(per_second: float | None) -> str:
    """Return a rate in at most five characters: 0, 950, 9.5k, 950M. -: not known."""
    if per_second is None:
        return "-"
    for unit in ("", "k", "M", "G"):
        if per_second < 999.5:
            digits = 1 if unit and per_second < 9.95 else 0
            return f"{per_second:.{digits}f}{unit}"
        per_second /= 1000
    return f"{per_second:.0f}T"


def milliseconds(value: float | None) -> str:
    """Return a round trip in at most five characters; -: not known."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short_duration(seconds: float | None) -> str:
    """Return a duration in at most five characters: 59s, 59m, 23h, 99d. -: not known."""
    if seconds is None:
        return "-"
    for limit, unit in ((60, "s"), (3600, "m"), (86400, "h")):
        if seconds < limit:
            return f"{int(seconds * 60 / limit) if unit != 'h' else int(seconds / 3600)}{unit}"
    return f"{int(seconds / 86400)}d"


def counts(dropped: Mapping[str, int]) -> str:
    """Return what is counted at all: "3 short, 1 malformed"."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def cut(text: str, width: int) -> str:
    """Return text in at most this many columns. The last one says that there is more."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + _CUT


class Row:
    """The cells of a line, and a text that takes the place of the rest of it."""

    def __init__(self, cells: Sequence[str], rest: str | None = None) -> None:
        """rest: stands where the cells end, if there are fewer than in the header."""
        self.cells = cells
        self.rest = rest


def table(header: Sequence[str], rows: Iterable[Row], width: int) -> list[str]:
    """Return the lines of a table. A header that begins with ">" aligns to the right.

    The last column, and the rest of a row, are cut to the width.
    """
    rows = list(rows)
    titles = [title.removeprefix(">") for title in header]
    right = [title.startswith(">") for title in header]
    widths = [len(title) for title in titles]
    for row in rows:
        for column, cell in enumerate(row.cells):
            widths[column] = max(widths[column], len(cell))
    lines = []
    for row in (Row(titles), *rows):
        cells = [
            cell.rjust(widths[column]) if right[column] else cell.ljust(widths[column])
            for column, cell in enumerate(row.cells)
        ]
        if row.rest is not None:
            cells.append(row.rest)
        lines.append(cut(_GAP.join(cells).rstrip(), width))
    return lines
