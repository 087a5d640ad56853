"""The fuzzers of the native data path (tests/fuzz), for a short while: scripts/fuzz."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIRECTIONS = ("egress", "ingress", "cipher", "mss")
FUZZING_S = 8
# All are compiled first, with sanitizers, at the same time.
TIMEOUT_S = 280.0

pytestmark = [
    pytest.mark.timeout(TIMEOUT_S + 20),
    pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed"),
]


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    log: str

    def executions(self) -> int:
        return int(self.figure(r"^stat::number_of_executed_units: +(\d+)$"))

    def reached(self) -> dict[str, int]:
        counts = re.findall(r"([A-Za-z][A-Za-z ]*) (\d+)", self.figure(r"^reached: (.*)$"))
        return {what: int(count) for what, count in counts}

    def figure(self, pattern: str) -> str:
        found = re.findall(pattern, self.log, re.MULTILINE)
        assert found, self.log[-4000:]
        last: str = found[-1]
        return last


def start(root: Path, direction: str, seconds: int, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [root / "scripts" / "fuzz", direction, "--seconds", str(seconds)],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    try:
        _, log = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.terminate()
        process.wait()
    return Outcome(process.returncode, log)


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All at the same time."""
    folder = tmp_path_factory.mktemp("fuzz")
    running = {each: start(ROOT, each, FUZZING_S, folder) for each in DIRECTIONS}
    yield running
    for process in running.values():
        process.terminate()
        process.communicate()


@pytest.mark.parametrize(
    ("direction", "what"),
    [
        (
            "egress",
            {
                *("frames", "cut", "checksums left", "sent segmented", "limits renewed"),
                *("sent singly", "TAP polled", "pieces", "marked", "told"),
                *("lost early", "marked early"),
            },
        ),
        (
            "ingress",
            {"frames", "joined", "joined UDP", "checksums left", "in pieces", "in bundles"},
        ),
        (
            "cipher",
            {"sealed", "opened", "replayed", "bad tag", "no key", "clear", "short"},
        ),
        ("mss", {"SYNs", "lowered"}),
    ],
)
def test_fuzzer_from_its_corpus_reaches_all_and_finds_nothing(
    fuzzers: dict[str, subprocess.Popen[str]], direction: str, what: set[str]
) -> None:
    outcome = finish(fuzzers[direction])

    findings = re.findall(r"^(?:violated|SUMMARY|fuzz: .* found by).*$", outcome.log, re.MULTILINE)
    assert (outcome.status, findings) == (0, []), outcome.log[-4000:]
    seeds = len(list((ROOT / "tests" / "fuzz" / "corpus" / direction).iterdir()))
    assert outcome.executions() > seeds
    assert {name for name, count in outcome.reached().items() if count} == what


def test_fuzzer_of_code_that_joins_what_is_wrong_fails_and_prints_the_input(tmp_path: Path) -> None:
    for folder in ("vela/dataplane/native", "tests/fuzz", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    joining = tmp_path / "vela" / "dataplane" / "native" / "coalesce.c"
    right = "return vela_fold(transport->pseudo_header + sum) == 0xffff;"
    source = joining.read_text()
    assert source.count(right) == 1
    joining.write_text(source.replace(right, "return sum != 0;"))

    outcome = finish(start(tmp_path, "ingress", 0, tmp_path))

    assert outcome.status == 1
    found = outcome.figure(r"^fuzz: ingress: found by ([0-9a-f]+)$")
    kept = Path(outcome.figure(r"^fuzz: ingress: kept as (.+)$"))
    assert kept.read_bytes() == bytes.fromhex(found)
