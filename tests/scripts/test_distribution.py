"""Which tests go to one process where they run side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CONFTEST = """\
from distribution import Distribution

def pytest_xdist_make_scheduler(config, log):
    return Distribution(config, log)
"""
SHARING = """\
import os
from pathlib import Path

import pytest

@pytest.fixture(scope="module")
def made():
    Path(__file__).with_name(f"made-{os.getpid()}").touch()

@pytest.mark.parametrize("number", range(6))
def test_sharing(made, number):
    pass
"""
SEPARATE = """\
import os
from pathlib import Path

import pytest

@pytest.mark.parametrize("number", range(2))
def test_separate(number):
    # Each waits until the other one runs, too.
    Path(__file__).with_name(f"separate-{number}").touch()
    while not Path(__file__).with_name(f"separate-{1 - number}").exists():
        pass
"""


def run_side_by_side(folder: Path, text: str) -> None:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "--rootdir", str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [*command, "-c", os.devnull, "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_fixture_of_a_module_is_made_in_one_process(tmp_path: Path) -> None:
    run_side_by_side(tmp_path, SHARING)

    assert len(list(tmp_path.glob("made-*"))) == 1


def test_tests_that_share_nothing_run_side_by_side(tmp_path: Path) -> None:
    run_side_by_side(tmp_path, SEPARATE)
