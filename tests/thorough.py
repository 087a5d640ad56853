"""Values for parametrize, of which a quick run takes a part: scripts/test runs all (--thorough)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(values: Iterable[object], count: int) -> list[Any]:
    """Return all values; those after the first count are for thorough runs only."""
    everything = list(values)
    others = (pytest.param(value, marks=pytest.mark.thorough) for value in everything[count:])
    return [*everything[:count], *others]
