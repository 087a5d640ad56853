"""Which tests pytest-xdist gives to one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling


@cache
def _makes_once(module: Path) -> bool:
    """Tell whether a module has a fixture that all its tests share."""
    return 'scope="module"' in module.read_text()


class Distribution(LoadScopeScheduling):  # type: ignore[misc]  # has no types
    """Gives each process one test after the other, and to the same one those that share a fixture.

    Else each process would make the fixture: build the fuzzers, fill an environment. The groups
    of pytest-xdist 3.8 cannot say it, as they have no effect with pytest 9.2 (its issue 1386).
    """

    config: pytest.Config

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if _makes_once(self.config.rootpath / module) else nodeid
