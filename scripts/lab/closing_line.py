"""One closing line for a test suite that ran in several passes: the sum of their reports."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

WIDTH = 80


def closing_line(reports: Iterable[Path]) -> str:
    """Return the sum of JUnit reports of pytest, in the form of pytest's own last line.

    Raises OSError or ElementTree.ParseError if a report is not there or not whole.
    """
    counts: Counter[str] = Counter()
    seconds = 0.0
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            failed, errors, skipped, tests = (
                int(suite.attrib[name]) for name in ("failures", "errors", "skipped", "tests")
            )
            counts["failed"] += failed
            counts["passed"] += tests - failed - errors - skipped
            counts["skipped"] += skipped
            counts["errors"] += errors
            seconds += float(suite.attrib["time"])
    if counts["errors"] == 1:
        counts["error"] = counts.pop("errors")
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    clock = f" ({timedelta(seconds=int(seconds))})" if seconds >= 60 else ""
    return f" {said or 'no tests ran'} in {seconds:.2f}s{clock} ".center(WIDTH, "=")


if __name__ == "__main__":
    print(closing_line(map(Path, sys.argv[1:])), flush=True)
