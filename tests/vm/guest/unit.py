"""The unit file, as the README has it installed, with the systemd of this system."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.daemon import ROOT, Velad
from lab.link import Interface
from lab.namespace import Namespace
from lab.quickstart import CONFIG_B, PEER_ADDRESSES
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

UNIT = "vela.service"
CONFIG = Path("/etc/vela.toml")
CIRCUIT = """\
[circuits.{name}]
id = {id}
remote = "10.201.0.2"
addresses = ["172.16.{net}.1/30"]

[circuits.{name}.peer]
addresses = ["172.16.{net}.2/30"]
"""
FIRST = CIRCUIT.format(name="vela0", id=1, net=16)
SECOND = CIRCUIT.format(name="vela1", id=2, net=17)
MISTAKE = "[daemon]\nprot = 1\n"


@pytest.fixture
def remote() -> Iterator[Velad]:
    """Another router, by a cable; velad runs there, and lets this machine set up circuits."""
    with Namespace("remote") as namespace:
        _run("ip", "link", "add", "cable", "type", "veth", "peer", "eth0", "netns", namespace.name)
        _run("ip", "address", "add", "10.201.0.1/24", "dev", "cable")
        _run("ip", "link", "set", "cable", "up")
        end = Interface(namespace, "eth0")
        end.add_address("10.201.0.2/24")
        end.set_up()
        with Velad(namespace, CONFIG_B) as velad:
            yield velad


@pytest.fixture
def installed() -> Iterator[None]:
    """The unit installed, the commands where it looks for them, one circuit configured."""
    for command in ("velad", "velactl"):
        link = Path("/usr/local/bin", command)
        if not link.exists():
            link.symlink_to(f"/opt/vela/bin/{command}")
    shutil.copy(ROOT / "config" / UNIT, Path("/etc/systemd/system", UNIT))
    CONFIG.write_text(FIRST)
    _run("systemctl", "daemon-reload")
    yield
    _run("systemctl", "disable", "--now", UNIT, check=False)


def test_unit_file_has_no_mistakes(installed: None) -> None:
    done = _run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}", check=False)

    assert done.returncode == 0
    assert UNIT not in done.stdout + done.stderr


def test_unit_is_enabled_started_reloaded_and_stopped(installed: None, remote: Velad) -> None:
    _run("systemctl", "enable", UNIT)
    _run("systemctl", "start", UNIT)
    assert _run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    assert _run("systemctl", "is-active", UNIT).stdout.strip() == "active"
    assert _show("NRestarts") == "0"
    eventually(lambda: _states().get("vela0") == "up", 20, "vela0 to be up")
    _run("ping", "-n", "-c", "2", "-i", "0.2", PEER_ADDRESSES[0])
    worker = _worker("vela0")

    CONFIG.write_text(FIRST + SECOND)
    _run("systemctl", "reload", UNIT)
    eventually(lambda: _states().get("vela1") == "up", 20, "vela1 to be up")
    assert _worker("vela0") == worker

    CONFIG.write_text(MISTAKE + FIRST)
    done = _run("systemctl", "reload", UNIT, check=False)
    assert done.returncode != 0, "a file with mistakes was taken for good"
    assert _states() == {"vela0": "up", "vela1": "up"}
    assert _worker("vela0") == worker

    _run("systemctl", "stop", UNIT)
    assert _show("Result") == "success"
    assert not Path("/sys/class/net/vela0").exists()
    remote.wait_for(lambda status: all(one["state"] != "up" for one in status["circuits"]), 10)


def _run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        log = subprocess.run(
            ("journalctl", "-u", UNIT, "-n", "30", "--no-pager"), capture_output=True, text=True
        )
        pytest.fail(
            f"{' '.join(argv)}: {done.returncode}: {done.stderr}{done.stdout}\n{log.stdout}"
        )
    return done


def _show(key: str) -> str:
    return _run("systemctl", "show", "--value", "-p", key, UNIT).stdout.strip()


def _circuits() -> list[dict[str, Any]]:
    done = _run("/opt/vela/bin/velactl", "status", "--json")
    circuits: list[dict[str, Any]] = json.loads(done.stdout)["circuits"]
    return circuits


def _states() -> dict[str, str]:
    return {one["name"]: one["state"] for one in _circuits()}


def _worker(name: str) -> int:
    (pid,) = (one["worker"]["pid"] for one in _circuits() if one["name"] == name)
    return int(pid)
