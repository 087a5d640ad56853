"""Root file systems of Debian suites, made by mmdebstrap and cached as tar archives.

A root serves chroot on this machine's kernel, for another Python, and a guest (vm.boot). Needs
root. From the command line, in tests/:

    python3 -m vm.images trixie /tmp/root --include python3-venv,gcc
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Raise this when the same packages shall give another root.
RECIPE = 2
MAX_AGE_S = 30 * 24 * 3600.0
"""An older archive is built anew: Debian's point releases and security fixes come monthly."""

# Half of a root otherwise: what nobody reads in there, and drivers of hardware that QEMU has not.
_NO_DRIVERS = (
    *("gpu", "media", "infiniband", "iio", "staging", "usb", "scsi", "isdn", "mtd", "target"),
    *("hwmon", "hid", "input", "net/wireless", "net/ethernet", "comedi", "edac", "mmc"),
)
_LEFT_OUT = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"),
    *("/lib/modules/*/kernel/sound/*", "/usr/lib/modules/*/kernel/sound/*"),
    *(f"/lib/modules/*/kernel/drivers/{name}/*" for name in _NO_DRIVERS),
    *(f"/usr/lib/modules/*/kernel/drivers/{name}/*" for name in _NO_DRIVERS),
)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "DEBIAN_MIRROR"
BUILD_TIMEOUT_S = 1200.0
STEP_TIMEOUT_S = 300.0

Say = Callable[[str], None]


class ImageError(Exception):
    """A root could not be made; the message says which step failed, and how."""


def say(text: str) -> None:
    print(f"kernels: {text}", flush=True)


def make_root(
    suite: str,
    packages: Sequence[str],
    destination: Path,
    *,
    kernels: Sequence[str] = (),
    rebuild: bool = False,
    any_age: bool = False,
    say: Say = say,
) -> None:
    """Unpack a root of a Debian suite, with these packages, into a new folder.

    It is minimal (mmdebstrap's minbase) besides. kernels are further suites: their
    kernel is put into the same root, so that one root boots with several. The archive
    comes from the cache, unless it is older than MAX_AGE_S (any_age: however old) or
    rebuild is set. Raises ImageError.
    """
    archive = root_archive(
        suite, packages, kernels=kernels, rebuild=rebuild, any_age=any_age, say=say
    )
    destination.mkdir(parents=True)
    say(f"unpacking the root of {suite}")
    unpack(archive, destination)


def root_archive(
    suite: str,
    packages: Sequence[str],
    *,
    kernels: Sequence[str] = (),
    rebuild: bool = False,
    any_age: bool = False,
    say: Say = say,
) -> Path:
    """Return the archive that make_root unpacks, building it if need be."""
    recipe = json.dumps([RECIPE, suite, sorted(set(packages)), list(kernels)])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    archive = cache() / f"root-{suite}-{digest}.tar"
    with locked(archive.with_suffix(".lock"), say):
        if rebuild or not is_usable(archive, any_age):
            _build(suite, packages, kernels, archive, say)
    return archive


def cache() -> Path:
    """Return the folder for what is slow to make, existing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "vela")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_usable(path: Path, any_age: bool) -> bool:
    """Return whether a cached file or folder is there, and young enough."""
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    return any_age or 0 <= age_s < MAX_AGE_S


@contextmanager
def locked(path: Path, say: Say = say) -> Iterator[None]:
    """Hold a lock, so that of two processes one builds and the other one waits and uses it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes {path.stem}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a root's archive, with owners, devices and capabilities, into an existing folder."""
    command("tar", "--xattrs", "--xattrs-include=*", "-xpf", str(archive), "-C", str(destination))


def command(
    *argv: str,
    timeout_s: float = STEP_TIMEOUT_S,
    root: Path | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """Run argv, in a chroot of root if that is given; return its output.

    on_line is called with each line of it as it comes. Raises ImageError, with the
    end of the output, if it fails or takes longer than timeout_s; it is then killed.
    """
    env = dict(os.environ)
    line = list(argv)
    if root is not None:
        line = ["chroot", str(root), *argv]
        # This machine's settings of pip, and its temporary folder, are not in there.
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    env |= {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as err:
        raise ImageError(f"{argv[0]} is not installed: run scripts/setup development") from err
    said = []
    expiry = threading.Timer(timeout_s, os.killpg, (process.pid, signal.SIGKILL))
    expiry.start()
    with process:
        try:
            assert process.stdout is not None
            for text in process.stdout:
                said.append(text)
                on_line(text.rstrip())
            process.wait()
        finally:
            expiry.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
    if process.returncode:
        took = f", killed after {timeout_s:g} s" if process.returncode == -signal.SIGKILL else ""
        end = "".join(said[-20:])
        raise ImageError(f"{' '.join(argv)}: exit status {process.returncode}{took}:\n{end}")
    return "".join(said)


def mirror() -> str:
    """Return the URI of the Debian mirror that this machine's apt uses. Raises ImageError."""
    if named := os.environ.get(MIRROR_VARIABLE):
        return named
    fields = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    lines = command("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    targets = [line.split("|") for line in lines.splitlines()]
    # Without package lists apt does not know the origin: then by the path that mirrors have.
    for origin, label, component, uri in targets:
        if component == "main" and (origin, label) == ("Debian", "Debian"):
            return uri
    for _, _, component, uri in targets:
        if component == "main" and uri.rstrip("/").endswith("/debian"):
            return uri
    raise ImageError(f"apt has no mirror of Debian here: name one by {MIRROR_VARIABLE}")


def _source(suite: str) -> str:
    if not KEYRING.exists():
        raise ImageError(f"no {KEYRING}: run scripts/setup development")
    return f"deb [signed-by={KEYRING}] {mirror()} {suite} main"


def _build(
    suite: str, packages: Sequence[str], kernels: Sequence[str], archive: Path, say: Say
) -> None:
    if os.geteuid() != 0:
        raise ImageError("only root can make a root file system")
    draft = archive.with_suffix(".new.tar")
    say(f"building a root of {suite}, {len(packages)} packages (about 90 s)")
    began = time.monotonic()
    try:
        command(
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
            *(f"--include={','.join(sorted(set(packages)))}", suite, str(draft), _source(suite)),
            timeout_s=BUILD_TIMEOUT_S,
            on_line=lambda line: say(line[3:]) if line.startswith("I: ") else None,
        )
        if kernels:
            with tempfile.TemporaryDirectory(prefix="vela-root-", dir=archive.parent) as folder:
                root = Path(folder, "root")
                root.mkdir()
                unpack(draft, root)
                for kernel in kernels:
                    say(f"adding the kernel of {kernel}")
                    _add_kernel(kernel, root, Path(folder))
                command("tar", "--xattrs", "-cpf", str(draft), "-C", str(root), ".")
        draft.replace(archive)
    finally:
        draft.unlink(missing_ok=True)
    say(f"built in {time.monotonic() - began:.0f} s: {archive}")


def _add_kernel(suite: str, root: Path, work: Path) -> None:
    """Unpack the kernel of another suite over root, and make its initrd there."""
    # Beside it first: /lib, a folder in old packages, is a link in the root.
    tree = work / f"{suite}-tree"
    for package in _download_kernel(suite, work / suite):
        command("dpkg-deb", "--extract", str(package), str(tree))
    found = [*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")]
    if len(found) != 1:
        raise ImageError(f"the kernel of {suite} has {len(found)} folders of modules, not one")
    (modules,) = found
    release = modules.name
    for name in ("sound", *(f"drivers/{name}" for name in _NO_DRIVERS)):
        shutil.rmtree(modules / "kernel" / name, ignore_errors=True)
    shutil.copytree(modules, root / "usr/lib/modules" / release, symlinks=True)
    for path in tree.glob("boot/*"):
        shutil.copy(path, root / "boot")
    for name in ("vmlinuz", "config"):
        # From Linux 7.0 on they lie with the modules, and the package's scripts copy them.
        if not (root / "boot" / f"{name}-{release}").exists():
            shutil.copy(modules / name, root / "boot" / f"{name}-{release}")
    command("depmod", release, root=root)
    command("update-initramfs", "-c", "-k", release, root=root)


def _download_kernel(suite: str, folder: Path) -> list[Path]:
    """Return the packages of a suite's kernel: its image and whatever linux-* that needs."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    sources = folder / "sources.list"
    sources.write_text(f"{_source(suite)}\n")
    # An apt of its own: this machine's lists and preferences have no part in it.
    settings = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    command("apt-get", *options, "-qq", "update")
    wanted = ["linux-image-amd64"]
    seen = set(wanted)
    while wanted:
        package = wanted.pop()
        listed = command("apt-cache", *options, "depends", "--important", package)
        needed = {line.split()[-1] for line in listed.splitlines() if "Depends:" in line}
        # Its maintainer scripts do not run, so what they would call is not needed.
        new = {name for name in needed if name.startswith("linux-")} - seen
        seen |= new
        wanted += sorted(new)
    fetch = ("apt-get", *options, "-qq", "download", *sorted(seen))
    command(*fetch, timeout_s=BUILD_TIMEOUT_S, cwd=folder)
    return sorted(folder.glob("*.deb"))


def kernel_releases(root: Path) -> list[str]:
    """Return the releases of the kernels in a root, sorted."""
    modules = root / "usr/lib/modules"
    return sorted(path.name for path in modules.iterdir()) if modules.is_dir() else []


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m vm.images",
        description="Unpack a root of a Debian suite into a new folder.",
    )
    parser.add_argument("suite", help="bookworm, trixie, unstable, ...")
    parser.add_argument("destination", type=Path, help="the new folder")
    parser.add_argument("--include", default="", metavar="PACKAGE,...", help="further packages")
    parser.add_argument("--rebuild", action="store_true", help="build it anew, cached or not")
    parser.add_argument("--keep-cache", action="store_true", help="use the cache at any age")
    options = parser.parse_args(argv)
    packages = [name for name in options.include.split(",") if name]
    try:
        make_root(
            options.suite,
            packages,
            options.destination,
            rebuild=options.rebuild,
            any_age=options.keep_cache,
        )
    except ImageError as err:
        print(f"kernels: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
