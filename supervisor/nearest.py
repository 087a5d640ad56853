"""The name that somebody who mistyped one may have meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of a sentence that says that there is no such name; empty: none is near."""
    # Not at the top: velactl needs it only where something is wrong.
    from difflib import SequenceMatcher, get_close_matches

    lower = {each.lower(): each for each in sorted(names, reverse=True)}
    close = get_close_matches(name.lower(), lower)

    # Of equally near ones the first by name, which vela0 is of vela0 and vela1.
    def rank(each: str) -> tuple[float, str]:
        return -SequenceMatcher(None, each, name.lower()).ratio(), each

    return f"; did you mean {lower[min(close, key=rank)]}?" if close else ""
