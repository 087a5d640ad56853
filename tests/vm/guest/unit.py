"""The unit file with the systemd of this system, enabled when it booted: see vm.at_boot.

The tests build on each other, in their order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab.daemon import Velad
from lab.link import Interface
from lab.namespace import Namespace
from lab.waiting import PATIENCE, eventually
from vm.at_boot import BRIDGES, CIRCUIT, REMOTE, UNIT

pytestmark = pytest.mark.needs_net_admin

CONFIG = Path("/etc/vela.toml")
DROP_INS = Path("/run/systemd/system", f"{UNIT}.d")
LATE = "br-late"
REMOTE_CONFIG = """
[autoconfigure]
from = ["10.201.0.0/24"]
networks = ["172.16.0.0/12"]
"""
MISTAKE = "[daemon]\nprot = 1\n"
MAX_EXPOSURE = 3.0
"""Of systemd-analyze security, from 0 to 10; newer versions of systemd judge more strictly."""
WATCHDOG_S = 15
RESTART_PAUSE_S = 2.0
"""RestartSec of the unit."""

Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def remote() -> Iterator[Velad]:
    """Another router; velad runs there, and lets this machine set up circuits. No way to it yet."""
    with Namespace("remote") as namespace:
        velad = Velad(namespace, REMOTE_CONFIG)
        try:
            velad.start()
            yield velad
        finally:
            velad.close()


def test_unit_file_has_no_mistakes() -> None:
    done = _run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}", check=False)

    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line]
    # It looks for commands without ExecSearchPath (systemd 252).
    assert [line for line in said if "is not executable: No such file" not in line] == []


def test_unit_is_confined(record_property: Note) -> None:
    done = _run("systemd-analyze", "security", "--no-pager", UNIT)

    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout
    record_property("exposure level", found[1])
    assert float(found[1]) <= MAX_EXPOSURE, done.stdout


def test_unit_is_active_after_a_boot_whose_network_is_late() -> None:
    eventually(lambda: _show("ActiveState") == "active", 60, f"{UNIT} to be active")

    assert _run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
    assert _show("NRestarts") == "0"
    assert not _interface(LATE).exists()
    assert set(_states()) == set(BRIDGES)
    assert "the bridge br-late does not exist; waiting for it" in _circuits()["vela2"]["reason"]


def test_unit_starts_behind_what_makes_bridges(record_property: Note) -> None:
    began = _started(UNIT)
    log = _run("journalctl", "-b", "-u", UNIT, "--no-pager").stdout
    record_property("seconds behind networking.service", round(began - _active("networking"), 3))

    for service in ("systemd-networkd", "networking"):
        assert _active(service) <= began, service
    # ifupdown's was made before velad began; networkd's service is ready before its bridge is.
    assert not re.search(r"bridge_missing +bridge=br-ifupdown", log)
    for name in ("vela0", "vela1"):
        joined = lambda name=name: _master(name) == BRIDGES[name]  # noqa: E731
        eventually(joined, 10, f"{name} to join {BRIDGES[name]}")


def test_circuits_come_up_when_the_network_does(remote: Velad) -> None:
    _run("ip", "link", "add", "cable", "type", "veth", "peer", "eth0", "netns", _name(remote))
    _run("ip", "address", "add", "10.201.0.1/24", "dev", "cable")
    _run("ip", "link", "set", "cable", "up")
    end = Interface(remote.namespace, "eth0")
    end.add_address(f"{REMOTE}/24")
    end.set_up()

    eventually(lambda: set(_states().values()) == {"up"}, 60, "all circuits to be up")
    assert _show("NRestarts") == "0"

    _run("ip", "link", "add", LATE, "type", "bridge")
    eventually(lambda: _master("vela2") == LATE, 10, f"vela2 to join {LATE}")
    for number, bridge in enumerate(BRIDGES.values(), start=16):
        _run("ip", "address", "add", f"172.16.{number}.1/30", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        _run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", f"172.16.{number}.2")
    assert [circuit["reason"] for circuit in _circuits().values()] == ["", "", ""]


def test_reload_takes_a_good_file_over_and_lets_the_others_run(
    remote: Velad, record_property: Note
) -> None:
    worker = _worker("vela0")
    another = CIRCUIT.format(name="vela9", id=19, remote=REMOTE, bridge=LATE)

    with _file(CONFIG.read_text() + another):
        done = _run("systemctl", "reload", UNIT)
        record_property("exit status", done.returncode)
        eventually(lambda: _states().get("vela9") == "up", 20, "vela9 to be up")
    _run("systemctl", "reload", UNIT)

    assert "vela9" not in _states()
    assert _worker("vela0") == worker


def test_reload_of_a_file_with_mistakes_fails_and_changes_nothing(
    remote: Velad, record_property: Note
) -> None:
    before, pid = _states(), _show("MainPID")

    with _file(MISTAKE + CONFIG.read_text()):
        done = _run("systemctl", "reload", UNIT, check=False)

    record_property("exit status", done.returncode)
    assert done.returncode == 1
    assert f"Job for {UNIT} failed" in done.stderr
    eventually(
        lambda: "daemon.prot: is an unknown key" in _run("systemctl", "status", UNIT).stdout,
        10,
        "the mistake to be in the log",
    )
    assert (_states(), _show("MainPID"), _show("ActiveState")) == (before, pid, "active")


def test_reload_finds_a_control_socket_that_is_elsewhere(remote: Velad) -> None:
    elsewhere = Path("/run/vela-elsewhere.sock")
    with _file(f'[daemon]\ncontrol_socket = "{elsewhere}"\n{CONFIG.read_text()}'):
        _run("systemctl", "restart", UNIT)
        assert elsewhere.is_socket()
        _run("systemctl", "reload", UNIT)
    assert _run("systemctl", "reload", UNIT).returncode == 0
    _restart_seconds()


def test_restart_keeps_interfaces_and_what_is_on_them(remote: Velad, record_property: Note) -> None:
    _run("ip", "address", "add", "10.77.0.1/24", "dev", "vela0")
    before = {name: _index(name) for name in BRIDGES}
    enough = lambda: int(_show("NFileDescriptorStore")) > len(BRIDGES)  # noqa: E731
    eventually(enough, 10, "descriptors to be stored")
    with subprocess.Popen(
        ("ping", "-n", "-D", "-i", "0.01", "172.16.16.2"), stdout=subprocess.PIPE, text=True
    ) as ping:
        assert ping.stdout is not None
        try:
            replies = [_reply(ping.stdout)]
            _run("systemctl", "restart", UNIT)
            eventually(lambda: set(_states().values()) == {"up"}, 30, "all circuits to be up")
            up = time.time()
            while replies[-1] < up:
                replies.append(_reply(ping.stdout))
        finally:
            ping.send_signal(signal.SIGINT)
    without = max(after - before for before, after in pairwise(replies))
    record_property("seconds without a reply over a restart", round(without, 2))

    assert {name: _index(name) for name in BRIDGES} == before
    assert "10.77.0.1/24" in _run("ip", "address", "show", "dev", "vela0").stdout
    assert {name: _master(name) for name in BRIDGES} == {**BRIDGES, "vela2": LATE}
    _run("ip", "address", "delete", "10.77.0.1/24", "dev", "vela0")


def test_supervisor_that_is_killed_under_a_ping_is_started_again(
    remote: Velad, record_property: Note
) -> None:
    restart_s = _restart_seconds()
    restarts = int(_show("NRestarts"))
    # -D: each reply with the time at which it came. Not -w: it ends at the first ICMP error.
    with subprocess.Popen(
        ("ping", "-n", "-D", "-i", "0.1", "172.16.16.2"),
        stdout=subprocess.PIPE,
        text=True,
    ) as ping:
        assert ping.stdout is not None
        try:
            assert _reply(ping.stdout) > 0
            killed = time.time()
            os.kill(int(_show("MainPID")), signal.SIGKILL)
            eventually(lambda: int(_show("NRestarts")) == restarts + 1, 30, "another start")
            eventually(lambda: _show("ActiveState") == "active", 30, "another velad")
            eventually(lambda: _states()["vela0"] == "up", 30, "vela0 to be up")
            replies, up = [killed], time.time()
            while replies[-1] < up:
                replies.append(_reply(ping.stdout))
        finally:
            ping.send_signal(signal.SIGINT)
    without = max(after - before for before, after in pairwise(replies))
    record_property("seconds without a reply", round(without, 1))
    record_property("seconds of a restart", round(restart_s, 1))

    # As long as an ordinary restart on this machine, with the pause before it: nothing waits for
    # the remote to miss the one that was killed.
    assert without < RESTART_PAUSE_S + 2 * restart_s + 1
    assert int(_show("NRestarts")) == restarts + 1
    assert Path("/run/vela/velad.sock").is_socket()


def test_supervisor_that_is_stopped_is_started_again_by_the_watchdog(
    remote: Velad, record_property: Note
) -> None:
    restarts = int(_show("NRestarts"))
    # So that the test takes less long; the unit's own is longer.
    DROP_INS.mkdir(parents=True)
    (DROP_INS / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    try:
        _run("systemctl", "daemon-reload")
        _restart_seconds()
        assert _show("StatusText") == f"{len(BRIDGES)} circuits: {len(BRIDGES)} up"
        stopped = time.monotonic()
        os.kill(int(_show("MainPID")), signal.SIGSTOP)
        eventually(
            lambda: int(_show("NRestarts")) > restarts, WATCHDOG_S + 20, "another start", 0.2
        )
        eventually(lambda: _show("ActiveState") == "active", 30, "another velad")
        record_property("seconds until another velad", round(time.monotonic() - stopped, 1))
    finally:
        shutil.rmtree(DROP_INS)
        _run("systemctl", "daemon-reload")
        _run("systemctl", "restart", UNIT)
    eventually(lambda: set(_states().values()) == {"up"}, 30, "all circuits to be up")
    log = _run("journalctl", "-b", "-u", UNIT, "--no-pager").stdout
    assert "Fatal Python error: Aborted" in log


def test_unit_that_crashed_six_times_in_a_row_is_started_again(remote: Velad) -> None:
    _run("systemctl", "stop", UNIT)
    DROP_INS.mkdir(parents=True)
    count = Path("/run/vela-crashes")
    count.write_text("")
    # Faster than any start limit's interval.
    (DROP_INS / "crash.conf").write_text(
        "[Service]\nRestartSec=100ms\n"
        f"ExecStartPre=/bin/sh -c 'echo >>{count}; test $(wc -l <{count}) -gt 6 || kill -9 $$$$'\n"
    )
    try:
        _run("systemctl", "daemon-reload")
        _run("systemctl", "start", "--no-block", UNIT)
        eventually(lambda: _show("ActiveState") == "active", 60, f"{UNIT} to be active")
    finally:
        shutil.rmtree(DROP_INS)
        _run("systemctl", "daemon-reload")

    assert count.read_text().count("\n") == 7
    assert _show("NRestarts") == "6"
    eventually(lambda: set(_states().values()) == {"up"}, 30, "all circuits to be up")


def test_nothing_was_denied_to_velad_and_its_workers(remote: Velad) -> None:
    """By the unit's filters: they would be the one reason for EPERM."""
    log = _run("journalctl", "-b", "-u", UNIT, "--no-pager").stdout

    assert "not permitted" not in log
    assert "Traceback" not in log
    assert "worker_exited" not in log
    # Nor seccomp, with which workers restrict themselves.
    assert "system_calls_not_filtered" not in log
    assert "steering_programs_classic" not in log
    assert {circuit["worker"]["engine"] for circuit in _circuits().values()} == {"native"}


def test_python_engine_runs_in_the_unit(remote: Velad) -> None:
    with _file(f'[daemon]\nengine = "python"\n{CONFIG.read_text()}'):
        _run("systemctl", "restart", UNIT)
    eventually(lambda: set(_states().values()) == {"up"}, 30, "all circuits to be up")

    _run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "172.16.16.2")
    assert {circuit["worker"]["engine"] for circuit in _circuits().values()} == {"python"}


def test_stop_takes_everything_down_and_the_remote_is_told(remote: Velad) -> None:
    _run("systemctl", "disable", "--now", UNIT)

    assert _show("Result") == "success"
    assert _show("ExecMainStatus") == "0"
    # systemd closes what it has kept a moment later.
    gone = lambda: not any(_interface(name).exists() for name in BRIDGES)  # noqa: E731
    eventually(gone, 10, "the interfaces to be gone")
    remote.wait_for_state("vela0", "down")
    # Its status says another reason as soon as the requests that follow stay unanswered.
    told = "the other end is stopping"
    eventually(lambda: told in remote.log(), 10, "the remote to be told")


@contextmanager
def _file(text: str) -> Iterator[None]:
    """Let the configuration be another one."""
    before = CONFIG.read_text()
    CONFIG.write_text(text)
    try:
        yield
    finally:
        CONFIG.write_text(before)


def _run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * PATIENCE)
    if check and done.returncode:
        log = subprocess.run(
            ("journalctl", "-u", UNIT, "-n", "30", "--no-pager"), capture_output=True, text=True
        )
        pytest.fail(
            f"{' '.join(argv)}: {done.returncode}: {done.stderr}{done.stdout}\n{log.stdout}"
        )
    return done


def _show(key: str, unit: str = UNIT) -> str:
    return _run("systemctl", "show", "--value", "-p", key, unit).stdout.strip()


def _active(service: str) -> float:
    """Return when a service became active last, in seconds since the boot."""
    return int(_show("ActiveEnterTimestampMonotonic", f"{service}.service")) / 1e6


def _started(service: str) -> float:
    """Return when the main process of a service was started, in seconds since the boot."""
    return int(_show("ExecMainStartTimestampMonotonic", service)) / 1e6


def _circuits() -> dict[str, Any]:
    done = _run("/opt/vela/bin/velactl", "status", "--json")
    return {one["name"]: one for one in json.loads(done.stdout)["circuits"]}


def _index(name: str) -> int:
    return int((_interface(name) / "ifindex").read_text())


def _states() -> dict[str, str]:
    return {name: one["state"] for name, one in _circuits().items()}


def _restart_seconds() -> float:
    """Restart the unit, and return how long it took until all circuits are up."""
    began = time.monotonic()
    _run("systemctl", "restart", UNIT)
    eventually(lambda: set(_states().values()) == {"up"}, 30, "all circuits to be up")
    return time.monotonic() - began


def _worker(name: str) -> int:
    return int(_circuits()[name]["worker"]["pid"])


def _interface(name: str) -> Path:
    return Path("/sys/class/net", name)


def _master(name: str) -> str:
    return (_interface(name) / "master").resolve().name


def _name(velad: Velad) -> str:
    return velad.namespace.name


def _reply(lines: Any) -> float:
    """Return when the next reply to ping -D came."""
    for line in lines:
        if found := re.match(r"\[([\d.]+)\] \d+ bytes from", line):
            return float(found[1])
    pytest.fail("ping ended")
