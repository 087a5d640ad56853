"""Modules that others import and seldom use."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands for a module until something of it is used.

    importlib.util.LazyLoader does not do: an import statement that finds its module loads it
    (Python 3.11, import_ensure_initialized in Python/import.c asks it for __spec__).
    """

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        # What looks through all modules, as inspect.getmodule() does, uses none of them.
        if attribute.startswith("__") and attribute != "__path__":
            raise AttributeError(f"module {name!r} has no attribute {attribute!r} yet")
        if sys.modules.get(name) is self:
            del sys.modules[name]
        return getattr(import_module(name), attribute)


def defer(name: str) -> None:
    """Let a top-level module be loaded when something of it is first used, not when imported.

    Nothing happens if it is loaded already.
    """
    if name not in sys.modules:
        sys.modules[name] = _Deferred(name)
