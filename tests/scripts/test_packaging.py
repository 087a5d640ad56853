"""The source distribution: whole, so that an installation from it has the native data path."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def test_source_distribution_holds_all_that_the_extension_is_built_from(tmp_path: Path) -> None:
    for name in SOURCES:
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("vela", "supervisor"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)

    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )

    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        held = {Path(*Path(name).parts[1:]) for name in packed.getnames()}
    wanted = {Path("vela/dataplane/_native.pyi"), Path("supervisor/daemon.py")}
    wanted |= {Path("supervisor/config/reader.py")}
    wanted |= {
        path.relative_to(ROOT) for path in (ROOT / "vela" / "dataplane" / "native").iterdir()
    }
    assert len(wanted) > 10
    assert wanted <= held


def test_installation_holds_every_package_of_the_tree() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()

    found = {
        ".".join((*package, *path.relative_to(ROOT / folder).parts))
        for folder, package in (("vela", ("vela",)), ("supervisor", ("vela", "supervisor")))
        for path in (each.parent for each in (ROOT / folder).rglob("__init__.py"))
        if "supervisor" not in path.relative_to(ROOT / folder).parts  # the link
    }

    assert sorted(listed) == sorted(found)
