"""VELA of this tree, installed into a root as a user would: from wheels and a compiler in there.

What a root needs for it is in PACKAGES. The tests go to /opt/vela/tree, without the sources of
VELA: what they import is what was installed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vm.images import Say, cache, command, is_usable, locked, say

ROOT = Path(__file__).resolve().parents[2]

PREFIX = "/opt/vela"
"""The virtual environment, in the root."""
TREE = f"{PREFIX}/tree"
"""What of this tree the tests need, in the root."""

PACKAGES = ("python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "libssl-dev")
REQUIREMENTS = (
    *("setuptools", "wheel", "packaging"),
    *("python-pytun", "psutil", "toml", "structlog", "cryptography"),
    *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "jsonschema"),
)

_SOURCES = (
    *("vela", "supervisor", "setup.py", "setup.cfg", "pyproject.toml"),
    *("README.md", "LICENSE", "MANIFEST.in"),
)
_TREE = ("tests", "scripts", "config", "pyproject.toml")
IGNORED = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", ".*")
COMPILE_FLAGS = "-Werror"


def install(
    root: Path,
    *,
    requirements: Sequence[str] = REQUIREMENTS,
    any_age: bool = False,
    rebuild: bool = False,
    say: Say = say,
) -> None:
    """Install VELA and what its tests need into PREFIX of a root. Raises ImageError."""
    version = command("python3", "-c", "import sys; print(*sys.version_info[:2])", root=root)
    python = ".".join(version.split())
    collected = wheels(python, requirements, any_age=any_age, rebuild=rebuild, say=say)
    say(f"installing VELA for Python {python}, its C extension compiled with {COMPILE_FLAGS}")
    # In the root, as chroot sees nothing else; gone afterwards.
    with tempfile.TemporaryDirectory(prefix="vela-build-", dir=root) as folder:
        build = Path(folder)
        shutil.copytree(collected, build / "wheels")
        _copy(_SOURCES, build / "source")
        inside = Path("/", build.name)
        command("python3", "-m", "venv", PREFIX, root=root)
        pip = (f"{PREFIX}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        offline = ("install", "--no-index", "--find-links", str(inside / "wheels"))
        command(*pip, *offline, *requirements, root=root)
        command(
            *("env", f"CFLAGS={COMPILE_FLAGS}", *pip, *offline),
            *("--no-deps", "--no-build-isolation", str(inside / "source")),
            root=root,
        )
    _copy(_TREE, root / TREE.lstrip("/"))


def _copy(names: Sequence[str], destination: Path) -> None:
    destination.mkdir(parents=True)
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, destination / name, symlinks=True, ignore=IGNORED)
        else:
            shutil.copy(source, destination)


def wheels(
    python: str, requirements: Sequence[str], *, any_age: bool, rebuild: bool, say: Say
) -> Path:
    """Return a folder with the wheels of requirements, and of what these require, from pip.

    python is a version, "3.13". Raises ImageError.
    """
    digest = hashlib.sha256(json.dumps(sorted(requirements)).encode()).hexdigest()[:12]
    folder = cache() / f"wheels-{python}-{digest}"
    with locked(folder.with_name(f"{folder.name}.lock"), say):
        if rebuild or not is_usable(folder, any_age):
            say(f"downloading wheels for Python {python}")
            draft = Path(tempfile.mkdtemp(prefix="wheels-", dir=folder.parent))
            try:
                command(
                    *(sys.executable, "-m", "pip", "--quiet", "download"),
                    *("--only-binary", ":all:", "--python-version", python),
                    *("--dest", str(draft), *requirements),
                    timeout_s=600.0,
                )
                shutil.rmtree(folder, ignore_errors=True)
                draft.replace(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder
