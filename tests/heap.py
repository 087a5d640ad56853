"""The garbage of one test alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from vela.supervisor.runtime import process


def _nothing() -> None:
    pass


@contextmanager
def own_heap() -> Iterator[None]:
    """Let the garbage collector look only at what is made inside.

    A look at all that a process has after some thousand tests takes a second.
    """
    gc.freeze()
    with pytest.MonkeyPatch.context() as patches:
        # A fork would undo it.
        patches.setattr(process, "gc", SimpleNamespace(freeze=_nothing, unfreeze=_nothing))
        try:
            yield
        finally:
            gc.unfreeze()
