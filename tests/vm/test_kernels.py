"""Debian 12 as it comes, booted: its kernel has no RWF_NOWAIT on a TAP and no USO."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The image is made once, and cached; a guest needs less than two minutes of an idle CPU.
TIMEOUT_S = 1500


@pytest.mark.needs_net_admin
@pytest.mark.emulated
@pytest.mark.timeout(TIMEOUT_S)
def test_circuit_crosses_on_the_kernel_of_debian_12(figure: Callable[[str], None]) -> None:
    command = [
        str(ROOT / "scripts/kernels"),
        "6.1",
        "--keep-cache",
        "--scenarios",
        "circuit,sandbox",
    ]

    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S - 30,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        check=False,
    )

    print(done.stdout)
    row = done.stdout.splitlines()[-1]
    figure(row)
    assert done.returncode == 0
    assert "rwf_nowait, uso" in row
