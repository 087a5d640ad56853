"""The unit in a guest: what systemd and velactl say of it, and the router at the other end.

No scenario: see unit and fleet.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.daemon import Velad, ask
from lab.link import Interface
from lab.namespace import Namespace
from lab.waiting import PATIENCE, eventually
from vm.at_boot import REMOTE, UNIT

CONFIG = Path("/etc/vela.toml")
CONTROL_SOCKET = Path("/run/vela/velad.sock")
_DROP_INS = Path("/run/systemd/system", f"{UNIT}.d")
_REMOTE_CONFIG = """
[autoconfigure]
from = ["10.201.0.0/24"]
networks = ["172.16.0.0/12"]
max_circuits = 32
"""

Note = Callable[[str, object], None]


@contextmanager
def other_router() -> Iterator[Velad]:
    """Another router; velad runs there, and lets this machine set up circuits. No way to it yet."""
    with Namespace("remote") as namespace:
        velad = Velad(namespace, _REMOTE_CONFIG)
        try:
            velad.start()
            yield velad
        finally:
            velad.close()


def lay_cable(remote: Velad) -> None:
    """Make the way to the other router. It goes with that."""
    name = remote.namespace.name
    run("ip", "link", "add", "cable", "type", "veth", "peer", "eth0", "netns", name)
    run("ip", "address", "add", "10.201.0.1/24", "dev", "cable")
    run("ip", "link", "set", "cable", "up")
    end = Interface(remote.namespace, "eth0")
    end.add_address(f"{REMOTE}/24")
    end.set_up()


@contextmanager
def file(text: str) -> Iterator[None]:
    """Let the configuration be another one."""
    before = CONFIG.read_text()
    CONFIG.write_text(text)
    try:
        yield
    finally:
        CONFIG.write_text(before)


@contextmanager
def drop_in(text: str) -> Iterator[None]:
    """Add settings to the unit. They have no effect on what runs already."""
    _DROP_INS.mkdir(parents=True)
    try:
        (_DROP_INS / "test.conf").write_text(text)
        run("systemctl", "daemon-reload")
        yield
    finally:
        shutil.rmtree(_DROP_INS)
        run("systemctl", "daemon-reload")


def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Unless check is unset, a failure fails the test, with the log."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * PATIENCE)
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(argv)}: {done.returncode}: {done.stderr}{done.stdout}\n{log('-n', '30')}"
        )
    return done


def log(*options: str) -> str:
    """Return what the journal has of the unit since the boot, and what systemd says of it."""
    argv = ("journalctl", "-b", "-u", UNIT, "--no-pager", "-o", "short-monotonic", *options)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60 * PATIENCE).stdout


def show(key: str, unit: str = UNIT) -> str:
    """Return a property as systemd shows it."""
    return run("systemctl", "show", "--value", "-p", key, unit).stdout.strip()


def seconds(key: str, unit: str = UNIT) -> float:
    """Return a monotonic time stamp that systemd shows, in seconds since the boot."""
    return int(show(key, unit)) / 1e6


def circuits() -> dict[str, Any]:
    """Return the status of each circuit, by name."""
    answer = ask(CONTROL_SOCKET, {"command": "status"})
    return {one["name"]: one for one in answer["circuits"]}


def states() -> dict[str, str]:
    """Return the state of each circuit; of none where velad does not answer, or ends meanwhile."""
    try:
        return {name: one["state"] for name, one in circuits().items()}
    except (OSError, ValueError):
        return {}


def await_up() -> None:
    """Wait until there is nothing but circuits that are up."""
    eventually(lambda: set(states().values()) == {"up"}, 30, "all circuits to be up", 0.2)


def await_stored() -> None:
    """Wait until systemd has a copy of each interface's descriptor, and more."""
    interfaces = len(states())
    enough = lambda: int(show("NFileDescriptorStore")) > interfaces  # noqa: E731
    eventually(enough, 10, "descriptors to be stored", 0.2)


def worker(name: str) -> int:
    """Return the process id of a circuit's worker."""
    return int(circuits()[name]["worker"]["pid"])


def interface(name: str) -> Path:
    return Path("/sys/class/net", name)


def index(name: str) -> int:
    return int((interface(name) / "ifindex").read_text())


def master(name: str) -> str:
    """Return the bridge that an interface is in."""
    return (interface(name) / "master").resolve().name
