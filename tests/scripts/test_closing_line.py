"""The sum of several passes of pytest, as the last line of scripts/test."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.closing_line import closing_line

PASSED = "def test_passed(): pass\n"
ALL_KINDS = f"""
import pytest
{PASSED}
def test_failed(): assert False
def test_skipped(): pytest.skip("no")
@pytest.fixture
def broken(): raise ValueError
def test_error(broken): pass
"""

pytest_plugins = ["pytester"]


def report(pytester: pytest.Pytester, name: str, tests: str) -> tuple[Path, str]:
    """Return the report of a pass, and the pass's own closing line."""
    path = pytester.path / f"{name}.xml"
    pytester.makepyfile(**{name: tests})
    ran = pytester.runpytest_subprocess(f"{name}.py", f"--junit-xml={path}")
    return path, ran.outlines[-1]


def test_closing_line_of_one_pass_is_its_own(pytester: pytest.Pytester) -> None:
    path, own = report(pytester, "test_kinds", ALL_KINDS)

    counts, _, took = closing_line([path]).strip("= ").rpartition(" in ")
    assert counts == own.strip("= ").rpartition(" in ")[0]
    assert counts == "1 failed, 1 passed, 1 skipped, 1 error"
    assert float(took.removesuffix("s")) > 0


def test_closing_line_of_two_passes_is_the_sum(pytester: pytest.Pytester) -> None:
    reports = [report(pytester, name, ALL_KINDS)[0] for name in ("test_one", "test_other")]
    reports.append(report(pytester, "test_third", PASSED)[0])

    counts = closing_line(reports).strip("= ").rpartition(" in ")[0]
    assert counts == "2 failed, 3 passed, 2 skipped, 2 errors"


def test_closing_line_of_a_long_run_has_its_hours_and_minutes(tmp_path: Path) -> None:
    path = tmp_path / "long.xml"
    counts = 'tests="1700" failures="0" errors="0" skipped="1"'
    path.write_text(f'<testsuites><testsuite {counts} time="4000.254"/></testsuites>')

    line = closing_line([path])

    assert line.strip("=") == " 1699 passed, 1 skipped in 4000.25s (1:06:40) "
    assert len(line) == 80
