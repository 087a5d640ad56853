"""Modules that are loaded when something of them is first used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vela.deferred import defer

NAME = "seldom_used"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with one function and one module; "loaded" beside it tells how often."""
    package = tmp_path / NAME
    package.mkdir()
    (package / "__init__.py").write_text(
        "from pathlib import Path\n"
        "with Path(__file__).with_name('loaded').open('a') as file: file.write('x')\n"
        "def answer(): return 42\n"
    )
    (package / "part.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package / "loaded"
    for name in [each for each in sys.modules if each.partition(".")[0] == NAME]:
        del sys.modules[name]


def test_module_is_loaded_once_something_of_it_is_used(module: Path) -> None:
    defer(NAME)
    import seldom_used  # type: ignore[import-not-found]

    # What looks through all modules does not use them.
    inspect.getmodule(defer)
    assert not module.exists()

    assert (seldom_used.answer(), seldom_used.answer()) == (42, 42)
    assert module.read_text() == "x"
    assert sys.modules[NAME].__file__ is not None


def test_name_and_part_of_a_deferred_module_can_be_imported(module: Path) -> None:
    defer(NAME)
    from seldom_used import answer
    from seldom_used.part import VALUE  # type: ignore[import-not-found]

    assert (answer(), VALUE) == (42, 7)
    assert module.read_text() == "x"


def test_name_that_a_module_lacks_is_an_attribute_error(module: Path) -> None:
    defer(NAME)
    import seldom_used

    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = seldom_used.no_such_thing
    assert module.exists()


def test_module_that_is_loaded_stays() -> None:
    defer("inspect")

    assert sys.modules["inspect"] is inspect


def test_velad_starts_without_asyncio() -> None:
    code = (
        "import sys; sys.argv = ['velad', '--version']\n"
        "from vela.supervisor.entry import velad\n"
        "try: velad()\n"
        "except SystemExit: pass\n"
        "print(sorted({'asyncio.events', 'ssl'}.intersection(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
