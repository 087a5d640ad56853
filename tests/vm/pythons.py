"""Run the tests that need no root with several Pythons, each in a root that is not booted.

What scripts/pythons calls. The C extension is compiled with -Werror, and deprecations are errors,
in the tests and in the programs that they start.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vm import installation
from vm.images import ImageError, command, make_root

ROOT = Path(__file__).resolve().parents[2]
# In a root.
SOURCE = "/source"
VENV = "/venv"

TESTS_TIMEOUT_S = 900.0
BUILD_TIMEOUT_S = 300.0
SHOWN_LINES = 150

DEPRECATIONS = "error::DeprecationWarning,error::PendingDeprecationWarning"

# In a mount namespace of its own. $1: a root; the rest runs in there, as nobody.
RUN = """
set -e
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
exec chroot --userspec=nobody:nogroup "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Python:
    """One row of the table."""

    version: str
    suite: str
    """Of the root."""
    own: bool = False
    """Debian has no suite with it: that of this machine is copied into the root, if it has one."""


PYTHONS = (
    Python("3.11", "bookworm"),
    Python("3.12", "bookworm", own=True),
    Python("3.13", "trixie"),
    Python("3.14", "unstable"),
)


@dataclass(slots=True)
class Row:
    python: Python
    release: str = ""
    compiler: str = ""
    result: str = "no result"
    good: bool = False
    seconds: float = 0.0


def say(text: str) -> None:
    print(f"pythons: {text}", flush=True)


def run(python: Python, arguments: Sequence[str], *, rebuild: bool, any_age: bool) -> Row:
    """Make the root, build VELA in it, run the tests. Faults are in the row."""
    row = Row(python)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="vela-pythons-") as folder:
            # Whose root it is does not matter, but nobody has to get into it.
            Path(folder).chmod(0o755)
            root = Path(folder, "root")
            _run(row, root, arguments, rebuild, any_age)
    except ImageError as err:
        row.result = str(err).splitlines()[0]
        say(f"{python.version}: {err}")
    row.seconds = time.monotonic() - began
    say(f"{python.version}: {row.result}, {row.seconds:.0f} s")
    return row


def _run(row: Row, root: Path, arguments: Sequence[str], rebuild: bool, any_age: bool) -> None:
    version = row.python.version
    own = find_own(version) if row.python.own else None
    if row.python.own and own is None:
        raise ImageError("cannot be had: no suite of Debian has it, nor has this machine")
    make_root(
        row.python.suite,
        packages(row.python),
        root,
        rebuild=rebuild,
        any_age=any_age,
        say=lambda text: say(f"{version}: {text}"),
    )
    interpreter = f"/usr/bin/python{version}"
    if own is not None:
        say(f"{version}: copying {own}")
        interpreter = install_own(own, root, version)
    row.release = command(interpreter, "-c", _RELEASE, root=root).strip()
    row.compiler = command("gcc", "-dumpfullversion", root=root).strip()
    wheels = installation.wheels(
        version, installation.REQUIREMENTS, any_age=any_age, rebuild=rebuild, say=say
    )
    shutil.copytree(wheels, root / "wheels")
    shutil.copytree(ROOT, root / SOURCE.lstrip("/"), symlinks=True, ignore=_ignored)
    say(f"{version}: building VELA with {installation.COMPILE_FLAGS}, Python {row.release}")
    build(root, interpreter)
    say(f"{version}: running the tests that need no root")
    row.good, row.result = run_tests(root, arguments)


_RELEASE = "import platform; print(platform.python_version())"


def packages(python: Python) -> list[str]:
    """Return what a root needs to build VELA for it and to run the tests that need no root."""
    version = "3.11" if python.own else python.version
    names = [f"python{version}{part}" for part in ("", "-venv", "-dev")]
    return [*names, "gcc", "libc6-dev", "libssl-dev", "git", "iproute2"]


def find_own(version: str) -> Path | None:
    """Return the folder of an installation of this Python on this machine, outside /usr."""
    found = shutil.which(f"python{version}")
    candidates = [Path(found)] if found else []
    candidates += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for interpreter in candidates:
        code = "import sys; print(sys.base_prefix)"
        done = subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True)
        prefix = Path(done.stdout.strip())
        if done.returncode == 0 and prefix not in (Path("/usr"), Path("/")):
            return prefix
    return None


def install_own(prefix: Path, root: Path, version: str) -> str:
    """Copy it to the same path in a root; return its interpreter there."""
    ignored = shutil.ignore_patterns("__pycache__", "test", "tests", "site-packages", "*.a")
    destination = root / str(prefix).lstrip("/")
    shutil.copytree(prefix, destination, symlinks=True, ignore=ignored)
    (destination / f"lib/python{version}/site-packages").mkdir()
    for folder in (destination, *destination.parents):
        if folder == root:
            break
        folder.chmod(0o755)
    return str(prefix / "bin" / f"python{version}")


def _ignored(folder: str, names: list[str]) -> set[str]:
    """Leave out what is built, or not of the tree."""
    return set(installation.IGNORED(folder, names)) - {".ci"} | {
        name for name in names if name in ("build", "dist")
    }


def build(root: Path, interpreter: str) -> None:
    """Build VELA in a virtual environment in a root. Raises ImageError."""
    command(interpreter, "-m", "venv", VENV, root=root)
    pip = (f"{VENV}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    offline = ("--no-index", "--find-links", "/wheels")
    command(*pip, *offline, *installation.REQUIREMENTS, root=root, timeout_s=BUILD_TIMEOUT_S)
    command(
        *("env", f"CFLAGS={installation.COMPILE_FLAGS}", *pip, *offline),
        *("--no-deps", "--no-build-isolation", "-e", SOURCE),
        root=root,
        timeout_s=BUILD_TIMEOUT_S,
    )


def run_tests(root: Path, arguments: Sequence[str]) -> tuple[bool, str]:
    """Run pytest in a root as nobody; return whether all is good, and what it counted."""
    inside = [
        *("env", "-i", "-C", SOURCE, "HOME=/tmp", "LC_ALL=C.UTF-8", f"PATH={VENV}/bin:/usr/bin"),
        *(f"PYTHONWARNINGS={DEPRECATIONS}", "PYTHONDONTWRITEBYTECODE=1"),
        *(
            "python",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--color=no",
            "-rfE",
            "--tb=short",
            *arguments,
        ),
    ]
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", RUN, "sh", str(root), *inside],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TESTS_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"FAILED: not done after {TESTS_TIMEOUT_S:g} s"
    lines = done.stdout.splitlines()
    counted = re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")) if lines else "no output"
    if done.returncode == 0:
        return True, counted
    print("\n".join(lines[-SHOWN_LINES:]), flush=True)
    return False, f"FAILED: {counted}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, a line each."""
    titles = ("PYTHON", "RELEASE", "SYSTEM", "GCC", "TIME", "RESULT")
    lines = [titles]
    for row in rows:
        system = "this machine's" if row.python.own else row.python.suite
        lines.append(
            (
                row.python.version,
                row.release or "-",
                system,
                row.compiler or "-",
                f"{row.seconds:.0f} s",
                row.result,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(argv: list[str]) -> int:
    known = ", ".join(each.version for each in PYTHONS)
    parser = argparse.ArgumentParser(
        prog="scripts/pythons",
        description="Build VELA with several Pythons and run the tests that need no root.",
        epilog="Each runs in a root of Debian, made by mmdebstrap and cached in "
        "$XDG_CACHE_HOME/vela. No suite of Debian has 3.12: that of this machine, if any, is "
        "copied into a root. Arguments behind -- go to pytest. Exit status: 0 all is good; 1 it "
        "is not, or one cannot be had; 2 a mistake in the command line.",
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"{known} (default: all)")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--rebuild", action="store_true", help="make the roots anew")
    when.add_argument("--keep-cache", action="store_true", help="use cached roots at any age")
    own, arguments = argv, []
    if "--" in argv:
        at = argv.index("--")
        own, arguments = argv[:at], argv[at + 1 :]
    options = parser.parse_args(own)
    unknown = set(options.versions) - {each.version for each in PYTHONS}
    if unknown:
        parser.error(f"no such version: {', '.join(sorted(unknown))}; there are {known}")
    chosen = [each for each in PYTHONS if not options.versions or each.version in options.versions]
    rows = [
        run(each, arguments, rebuild=options.rebuild, any_age=options.keep_cache) for each in chosen
    ]
    print(table(rows))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
