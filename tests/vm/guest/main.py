"""Run scenarios by pytest and report to the host: what vela-guest.service starts.

The kernel's command line says which: vela.scenarios=circuit,unit. A scenario is a file beside
this one, or one of RUNS.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

from vela.linux.features import ALL_FEATURES, probe, words

REPORTS = "/dev/ttyS1"
HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
TEXT_CHARACTERS = 4000
"""Of a failure: a serial port is slow."""


class Reporter:
    """Tells the host of each test as it ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._seconds: dict[str, float] = {}

    def tell(self, event: str, **fields: Any) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        node = report.nodeid
        self._seconds[node] = self._seconds.get(node, 0.0) + report.duration
        if report.when == "teardown" and report.passed:
            return
        if report.when == "setup" and report.passed:
            return
        text = report.longreprtext if report.failed else ""
        if report.failed:
            text += "".join(f"\n--- {name}\n{body}" for name, body in report.sections)
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        self.tell(
            "test",
            scenario=Path(report.location[0]).stem.removeprefix("test_"),
            name=report.location[2],
            outcome=report.outcome,
            seconds=round(self._seconds[node], 1),
            notes=dict(report.user_properties),
            text=text[-TEXT_CHARACTERS:],
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            name = report.nodeid
            self.tell(
                "test",
                scenario=Path(name).stem,
                name="collection",
                outcome="failed",
                seconds=0.0,
                notes={},
                text=report.longreprtext[-TEXT_CHARACTERS:],
            )


def scenarios(command_line: str) -> list[str]:
    """Return the names after vela.scenarios= in the kernel's command line."""
    for word in command_line.split():
        key, _, value = word.partition("=")
        if key == "vela.scenarios":
            return value.split(",")
    return []


def arguments(names: Sequence[str]) -> list[str]:
    """Return what pytest is told to run."""
    return [str(HERE / f"{name}.py") for name in names]


def main() -> int:
    names = scenarios(Path("/proc/cmdline").read_text())
    with open(REPORTS, "w") as out:
        tty.setraw(out)
        reporter = Reporter(out)
        features = probe()
        reporter.tell(
            "system",
            kernel=platform.release(),
            python=platform.python_version(),
            features=words(features),
            missing=words(ALL_FEATURES - features),
        )
        os.chdir(TESTS.parent)
        options = (
            "-p",
            "no:cacheprovider",
            "-o",
            "timeout=900",
            "-o",
            "addopts=--import-mode=importlib",
        )
        status = pytest.main([*options, *arguments(names)], plugins=[reporter])
        reporter.tell("end", status=int(status))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
