"""scripts/setup with the real package manager, in a private copy of this machine's file system.

The copy is an overlay whose upper layer is in memory. Its only package source is a folder in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.daemon import ROOT

# A busy machine reads its package lists in seconds; setup itself may run pip.
TIMEOUT_S = 110.0
SETUP = str(ROOT / "scripts" / "setup")

pytestmark = [
    pytest.mark.needs_net_admin,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get"),
]

# Runs in a mount namespace of its own, which lives until its standard input ends. $1: a folder.
MAKE_NAMESPACE = """
set -e
mount -t tmpfs vela-test "$1"
echo ready
exec cat
"""

# Makes a root directory in $1, with $2 and the tree $3 in it; $2 are layers, the topmost first.
MAKE_ROOT = """
set -e
mkdir "$1"
cd "$1"
mkdir upper work upper-tree work-tree root
mount -t overlay vela-test -o "lowerdir=$2,upperdir=upper,workdir=work" root
# Before the tree, which may lie in /tmp.
mount -t tmpfs vela-test root/tmp
mkdir -p "root$3"
mount -t overlay vela-test -o "lowerdir=$3,upperdir=upper-tree,workdir=work-tree" "root$3"
mount --rbind /proc root/proc
mount --rbind /dev root/dev
"""

# Holds a lock, as apt and dpkg do, until its standard input ends.
HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


class Machine:
    """A private copy of this machine."""

    def __init__(self, maker: int, folder: Path, layers: str) -> None:
        """Make it in a folder that does not exist; maker is a process in the mount namespace.

        Raises OSError where this file system cannot be a layer of an overlay.
        """
        self._enter = ["nsenter", f"--mount=/proc/{maker}/ns/mnt"]
        self._root = str(folder / "root")
        self.path = Path(f"/proc/{maker}/root{folder}/root")
        """Its root directory, seen from this process."""
        script = ["sh", "-c", MAKE_ROOT, "sh", str(folder), layers, str(ROOT)]
        made = subprocess.run([*self._enter, *script], capture_output=True, text=True)
        if made.returncode != 0:
            raise OSError(made.stderr.strip())

    def command(self, *command: str) -> list[str]:
        """Return what runs a command on it."""
        return [*self._enter, "chroot", self._root, *command]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command),
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def lose(self, *packages: str) -> None:
        """Remove packages, whatever needs them."""
        done = self.run("dpkg", "--purge", "--force-all", *packages)
        assert done.returncode == 0, done.stderr

    def offer(self, package: str, version: str) -> None:
        """Let its source have a package with a program of that name, in place of other versions."""
        repository = self.path / "repository"
        repository.mkdir(exist_ok=True)
        for old in repository.glob(f"{package}_*"):
            old.unlink()
        build = self.path / "build"
        (build / "DEBIAN").mkdir(parents=True)
        (build / "usr/bin").mkdir(parents=True)
        program = build / "usr/bin" / package
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        control = (
            f"Package: {package}\nVersion: {version}\nArchitecture: all\n"
            "Maintainer: nobody <nobody@example.net>\nDescription: stands for the real one\n"
        )
        (build / "DEBIAN/control").write_text(control)
        name = f"{package}_{version}.deb"
        built = self.run("dpkg-deb", "--build", "/build", f"/repository/{name}")
        assert built.returncode == 0, built.stderr
        shutil.rmtree(build)
        data = (repository / name).read_bytes()
        (repository / f"{package}_index").write_text(
            f"{control}Filename: ./{name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n"
        )
        indexes = [path.read_text() for path in sorted(repository.glob("*_index"))]
        (repository / "Packages").write_text("".join(indexes))

    def read_lists(self) -> None:
        done = self.run("apt-get", "update")
        assert done.returncode == 0, done.stderr

    @contextmanager
    def held(self, lock: str) -> Iterator[subprocess.Popen[str]]:
        """Hold a lock of the package manager."""
        command = self.command("/usr/bin/env", "python3", "-c", HOLD, lock)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            try:
                assert holder.stdout.readline() == "held\n"
                yield holder
            finally:
                holder.stdin.close()


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A mount namespace, and a folder in it with a machine in its folder "first"."""
    folder = tmp_path_factory.mktemp("machines")
    command = ["unshare", "--mount", "sh", "-c", MAKE_NAMESPACE, "sh", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            try:
                first = Machine(process.pid, folder / "first", "/")
            except OSError as err:
                pytest.skip(f"no overlay of this file system: {err}")
            sources = first.path / "etc/apt"
            for path in (*sources.glob("sources.list"), *sources.glob("sources.list.d/*")):
                path.unlink()
            (sources / "sources.list").write_text("deb [trusted=yes] file:/repository ./\n")
            shutil.rmtree(first.path / "var/lib/apt/lists")
            (first.path / "var/lib/apt/lists/partial").mkdir(parents=True)
            (first.path / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
            # No index of manual pages is made after each package: seconds.
            (first.path / "var/lib/dpkg/triggers/File").write_text("")
            first.lose("iperf3")
            first.offer("iperf3", "99")
            yield process.pid, folder
        finally:
            process.stdin.close()


@pytest.fixture
def machine(maker: tuple[int, Path], request: pytest.FixtureRequest) -> Machine:
    """A machine that lacks iperf3, and whose only source has it. It has no package lists yet."""
    pid, folder = maker
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return Machine(pid, folder / name, f"{folder}/first/upper:/")


@pytest.mark.parametrize(
    "lock",
    [
        "/var/lib/dpkg/lock-frontend",
        "/var/lib/dpkg/lock",
        "/var/lib/apt/lists/lock",
        "/var/cache/apt/archives/lock",
    ],
)
def test_lock_of_another_program_is_waited_for(machine: Machine, lock: str) -> None:
    with (
        machine.held(lock) as holder,
        subprocess.Popen(
            machine.command(SETUP, "runtime"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as setup,
    ):
        assert setup.stdout is not None
        said = []
        for line in setup.stdout:
            said.append(line)
            if "waiting" in line:
                assert holder.stdin is not None
                holder.stdin.close()
                break
        said += setup.stdout
        status = setup.wait(TIMEOUT_S)

    waiting = [line for line in said if "waiting" in line]
    assert re.fullmatch(
        r"setup: python3[\d.]* \(pid \d+\) holds the package manager's lock; waiting, "
        r"\d s so far, 300 s at most\n",
        waiting[0],
    )
    assert f"(pid {holder.pid})" in waiting[0]
    assert status == 0, said
    again = machine.run(SETUP, "runtime")
    assert (again.returncode, again.stdout) == (0, "setup: nothing to do\n")


def test_lock_that_stays_taken_is_named_at_the_end(machine: Machine) -> None:
    machine.read_lists()
    with machine.held("/var/lib/dpkg/lock-frontend") as holder:
        done = machine.run(SETUP, "runtime", SETUP_WAIT="1")

    assert done.returncode == 1
    assert re.search(
        rf"^setup: python3[\d.]* \(pid {holder.pid}\) still holds the package manager's lock "
        r"after [1-9]\d* s; try again later$",
        done.stderr,
        re.MULTILINE,
    )
    assert not (machine.path / "usr/sbin/policy-rc.d").exists()


def test_lists_are_read_if_they_are_old(machine: Machine) -> None:
    machine.read_lists()
    machine.lose("ethtool")
    machine.offer("ethtool", "99")
    lists = machine.path / "var/lib/apt/lists"
    two_days_ago = lists.stat().st_mtime - 2 * 86400
    for path in (lists, lists / "partial"):
        os.utime(path, (two_days_ago, two_days_ago))

    done = machine.run(SETUP, "runtime")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "setup: reading the package lists\nsetup: installing iperf3 ethtool\n"
    )


def test_lists_of_today_are_used_as_they_are(machine: Machine) -> None:
    machine.read_lists()

    done = machine.run(SETUP, "runtime")

    assert done.returncode == 0, done.stderr
    assert "reading the package lists" not in done.stdout


def test_package_that_the_mirror_has_replaced_is_looked_up_again(machine: Machine) -> None:
    machine.read_lists()
    machine.offer("iperf3", "100")

    done = machine.run(SETUP, "runtime")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("setup: installing iperf3\nsetup: reading the package lists\n")


def test_packages_that_cannot_be_had_are_named_and_the_others_are_installed(
    machine: Machine,
) -> None:
    machine.lose("ethtool", "iputils-ping")

    done = machine.run(SETUP, "runtime")

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("setup: without: iputils-ping: ")
    assert "; ethtool: " in last
    assert "iperf3" not in last
    assert machine.run("which", "iperf3").returncode == 0


def test_package_without_its_program_is_named(machine: Machine) -> None:
    machine.read_lists()
    assert machine.run("apt-get", "-y", "install", "iperf3").returncode == 0
    (machine.path / "usr/bin/iperf3").unlink()

    done = machine.run(SETUP, "runtime")

    assert done.returncode == 1
    assert done.stderr.endswith(
        "setup: without: iperf3: it is installed, but iperf3 is missing; reinstall it\n"
    )


def test_interrupted_dpkg_is_completed_first(machine: Machine) -> None:
    machine.read_lists()
    # What dpkg leaves when it is killed: a record that is not merged into its database yet.
    shown = machine.run("dpkg", "--status", "base-files")
    (machine.path / "var/lib/dpkg/updates/0001").write_text(shown.stdout)

    done = machine.run(SETUP, "runtime")

    assert done.returncode == 0, done.stderr
    assert "completing it with dpkg --configure -a" in done.stdout


def test_other_user_is_told_what_to_run_as_root(machine: Machine) -> None:
    # Without the directories of a root login, too.
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

    done = machine.run(*nobody, "env", "PATH=/usr/bin:/bin", SETUP, "runtime")

    assert done.returncode == 1
    assert done.stderr == (
        "setup: missing: iperf3. Run this as root, or first run as root: apt-get install iperf3\n"
    )


@pytest.mark.parametrize("arguments", [["all"], ["runtime", "development"]])
def test_unknown_arguments_are_refused(arguments: list[str]) -> None:
    done = subprocess.run([SETUP, *arguments], capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")


def test_interpreter_that_does_not_suit_is_named() -> None:
    variables = os.environ | {"PYTHON": "/bin/false"}

    done = subprocess.run([SETUP, "runtime"], env=variables, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr == (
        "setup: PYTHON=/bin/false is not Python 3.11 or newer with venv and headers\n"
    )
