"""daemon.engine: each twin by its name, and what becomes of "auto" where one is not there."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.circuit import NAME, circuit_table
from lab.daemon import ROOT, Velad, entry_point
from lab.namespace import Namespace
from vela.dataplane.engine import Engine, load_engine

CONFIG = '[daemon]\nengine = "{}"\n' + circuit_table(
    "127.0.0.2", mac="02:00:5e:10:00:01", peer_mac=None
)


EXTENSION = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.fixture
def without_native(tmp_path: Path) -> Iterator[None]:
    """What starts inside finds a package whose extension cannot be loaded."""
    shutil.copytree(ROOT / "vela", tmp_path / "vela", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "vela" / "dataplane" / EXTENSION).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        yield


def engine_in_use(velad: Velad) -> str:
    velad.worker_pid(NAME)
    engine: str = velad.circuit(NAME)["worker"]["engine"]
    return engine


@pytest.mark.needs_net_admin
@pytest.mark.parametrize(
    ("wanted", "used"), [("auto", "native"), ("native", "native"), ("python", "python")]
)
def test_engine_by_its_name_is_the_workers(wanted: str, used: str) -> None:
    with (
        Namespace("engine") as namespace,
        Velad(namespace, CONFIG.format(wanted)) as velad,
    ):
        assert engine_in_use(velad) == used
        assert "native_engine_missing" not in velad.log()


@pytest.mark.needs_net_admin
def test_auto_without_the_native_engine_carries_on_in_python_and_says_so_loudly(
    without_native: None,
) -> None:
    with Namespace("engine") as namespace, Velad(namespace, CONFIG.format("auto")) as velad:
        assert engine_in_use(velad) == "python"
        (line,) = (line for line in velad.log().splitlines() if "native_engine_missing" in line)
        assert "[error" in line
        assert f"{EXTENSION}: file too short" in line


def test_native_without_the_native_engine_is_refused_in_one_line(
    without_native: None, tmp_path: Path
) -> None:
    path = tmp_path / "vela.toml"
    path.write_text('[daemon]\nengine = "native"\n')
    command, env = entry_point("velad", "vela.supervisor.cli")

    done = subprocess.run(
        [*command, "--config", str(path), "--check"],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.returncode == 2
    assert done.stderr == (
        f'{path}: daemon.engine: "native" cannot be loaded: {tmp_path}/vela/dataplane/{EXTENSION}: '
        'file too short; write "auto" or "python"\n'
    )


def test_engine_where_the_extension_was_built_is_the_native_one() -> None:
    assert load_engine(Engine.AUTO).name == load_engine(Engine.NATIVE).name == "native"
    assert load_engine(Engine.AUTO).fallback == ""
    assert load_engine(Engine.PYTHON).name == "python"
