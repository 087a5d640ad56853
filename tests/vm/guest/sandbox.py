"""What workers may do on this kernel: their filter as the unit tests know it, and in velad."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.daemon import Velad
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

TESTS = Path(__file__).resolve().parents[2]
# Emulated, a fork takes long: one engine, and such features as these kernels have.
UNIT_TESTS = "native-without or test_seccomp"
STATIC = "[circuits.vela0]\nid = 1\nremote = '10.201.0.2'\nautoconfigure = false\n"


def test_filter_holds_call_by_call() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", UNIT_TESTS),
            *("-o", "addopts=--import-mode=importlib", "-o", "timeout=600"),
            *(
                str(TESTS / name)
                for name in ("system/test_worker_sandbox.py", "unit/test_seccomp.py")
            ),
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )

    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("engine", ["native", "python"])
def test_worker_of_velad_has_its_filter(routers: TwoRouters, engine: str) -> None:
    config = f'[daemon]\nengine = "{engine}"\n{STATIC}'
    with Velad(routers.a.namespace, config) as velad:
        status = Path("/proc", str(velad.worker_pid("vela0")), "status")
        eventually(lambda: "\nSeccomp:\t2\n" in status.read_text(), 20, "its filter")

        assert "system_calls_not_filtered" not in velad.log()
