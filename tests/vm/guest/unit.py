"""The unit file with the systemd of this system, enabled when it booted: see vm.at_boot.

The tests build on each other, in their order.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.daemon import Velad
from lab.pings import Pings
from lab.waiting import eventually
from vela.linux.secret_memory import create, is_hidden
from vm.at_boot import BRIDGES, CIRCUIT, REMOTE, UNIT
from vm.guest.service import (
    CONFIG,
    CONTROL_SOCKET,
    Note,
    await_stored,
    await_up,
    circuits,
    drop_in,
    file,
    index,
    interface,
    lay_cable,
    log,
    master,
    other_router,
    run,
    seconds,
    show,
    states,
    worker,
)

pytestmark = pytest.mark.needs_net_admin

LATE = "br-late"
MISTAKE = "[daemon]\nprot = 1\n"
MAX_EXPOSURE = 3.0
"""Of systemd-analyze security, from 0 to 10; newer versions of systemd judge more strictly."""
RESTART_PAUSE_S = 2.0
"""RestartSec of the unit."""
FAR = "172.16.16.2"
"""The other end of vela0."""


@pytest.fixture(scope="module")
def remote() -> Iterator[Velad]:
    """No way to it yet."""
    with other_router() as velad:
        yield velad


def test_unit_file_has_no_mistakes() -> None:
    done = run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}", check=False)

    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line]
    # It looks for commands without ExecSearchPath (systemd 252).
    assert [line for line in said if "is not executable: No such file" not in line] == []


def test_unit_is_confined(record_property: Note) -> None:
    done = run("systemd-analyze", "security", "--no-pager", UNIT)

    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout
    record_property("exposure level", found[1])
    assert float(found[1]) <= MAX_EXPOSURE, done.stdout


def test_unit_is_active_after_a_boot_whose_network_is_late() -> None:
    eventually(lambda: show("ActiveState") == "active", 60, f"{UNIT} to be active")

    assert run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
    assert show("NRestarts") == "0"
    assert not interface(LATE).exists()
    assert set(states()) == set(BRIDGES)
    assert "the bridge br-late does not exist; waiting for it" in circuits()["vela2"]["reason"]


def test_unit_starts_behind_what_makes_bridges(record_property: Note) -> None:
    began = seconds("ExecMainStartTimestampMonotonic")
    said = log()
    record_property("seconds behind networking.service", round(began - _active("networking"), 3))

    for service in ("systemd-networkd", "networking"):
        assert _active(service) <= began, service
    # ifupdown's was made before velad began; networkd's service is ready before its bridge is.
    assert not re.search(r"bridge_missing +bridge=br-ifupdown", said)
    for name in ("vela0", "vela1"):
        joined = lambda name=name: master(name) == BRIDGES[name]  # noqa: E731
        eventually(joined, 10, f"{name} to join {BRIDGES[name]}")


def test_circuits_come_up_when_the_network_does(remote: Velad) -> None:
    lay_cable(remote)

    await_up()
    assert show("NRestarts") == "0"

    run("ip", "link", "add", LATE, "type", "bridge")
    eventually(lambda: master("vela2") == LATE, 10, f"vela2 to join {LATE}")
    for number, bridge in enumerate(BRIDGES.values(), start=16):
        run("ip", "address", "add", f"172.16.{number}.1/30", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", f"172.16.{number}.2")
    assert [circuit["reason"] for circuit in circuits().values()] == ["", "", ""]


def test_reload_takes_a_good_file_over_and_lets_the_others_run(
    remote: Velad, record_property: Note
) -> None:
    before = worker("vela0")
    another = CIRCUIT.format(name="vela9", id=19, remote=REMOTE, bridge=LATE)

    with file(CONFIG.read_text() + another):
        done = run("systemctl", "reload", UNIT)
        record_property("exit status", done.returncode)
        eventually(lambda: states().get("vela9") == "up", 20, "vela9 to be up")
    run("systemctl", "reload", UNIT)

    assert "vela9" not in states()
    assert worker("vela0") == before


def test_reload_of_a_file_with_mistakes_fails_and_changes_nothing(
    remote: Velad, record_property: Note
) -> None:
    before, pid = states(), show("MainPID")

    with file(MISTAKE + CONFIG.read_text()):
        done = run("systemctl", "reload", UNIT, check=False)

    record_property("exit status", done.returncode)
    assert done.returncode == 1
    assert f"Job for {UNIT} failed" in done.stderr
    eventually(
        lambda: "daemon.prot: is an unknown key" in run("systemctl", "status", UNIT).stdout,
        10,
        "the mistake to be in the log",
    )
    assert (states(), show("MainPID"), show("ActiveState")) == (before, pid, "active")


def test_reload_finds_a_control_socket_that_is_elsewhere(remote: Velad) -> None:
    elsewhere = Path("/run/vela-elsewhere.sock")
    with file(f'[daemon]\ncontrol_socket = "{elsewhere}"\n{CONFIG.read_text()}'):
        run("systemctl", "restart", UNIT)
        assert elsewhere.is_socket()
        run("systemctl", "reload", UNIT)
    assert run("systemctl", "reload", UNIT).returncode == 0
    run("systemctl", "restart", UNIT)
    await_up()


def test_restart_keeps_interfaces_and_what_is_on_them(remote: Velad, record_property: Note) -> None:
    run("ip", "address", "add", "10.77.0.1/24", "dev", "vela0")
    before = {name: index(name) for name in BRIDGES}
    await_stored()
    with Pings([FAR], 0.05) as pings:
        pings.await_answers(5)
        run("systemctl", "restart", UNIT)
        await_up()
        pings.await_answers(5)
        pings.stop()
    record_property("seconds without a reply over a restart", round(max(pings.gaps()), 2))

    assert {name: index(name) for name in BRIDGES} == before
    assert "10.77.0.1/24" in run("ip", "address", "show", "dev", "vela0").stdout
    assert {name: master(name) for name in BRIDGES} == {**BRIDGES, "vela2": LATE}
    run("ip", "address", "delete", "10.77.0.1/24", "dev", "vela0")


def test_supervisor_that_is_killed_under_a_ping_is_started_again(
    remote: Velad, record_property: Note
) -> None:
    start_s = _start_seconds()
    restarts = int(show("NRestarts"))
    with Pings([FAR], 0.1) as pings:
        pings.await_answers(5)
        os.kill(int(show("MainPID")), signal.SIGKILL)
        eventually(lambda: int(show("NRestarts")) == restarts + 1, 30, "another start", 0.2)
        eventually(lambda: show("ActiveState") == "active", 30, "another velad", 0.2)
        await_up()
        pings.await_answers(5)
        pings.stop()
    (without,) = pings.gaps()
    record_property("seconds without a reply", round(without, 1))
    record_property("seconds of a start", round(start_s, 1))

    # As long as an ordinary start on this machine, with the pause before it: nothing waits for
    # the remote to miss the one that was killed.
    assert without < RESTART_PAUSE_S + 2 * start_s + 2
    assert int(show("NRestarts")) == restarts + 1
    assert CONTROL_SOCKET.is_socket()


def test_unit_that_crashed_six_times_in_a_row_is_started_again(remote: Velad) -> None:
    run("systemctl", "stop", UNIT)
    count = Path("/run/vela-crashes")
    count.write_text("")
    crash = f"/bin/sh -c 'echo >>{count}; test $(wc -l <{count}) -gt 6 || kill -9 $$$$'"
    # Faster than any start limit's interval.
    with drop_in(f"[Service]\nRestartSec=100ms\nExecStartPre={crash}\n"):
        run("systemctl", "start", "--no-block", UNIT)
        eventually(lambda: show("ActiveState") == "active", 60, f"{UNIT} to be active")

    assert count.read_text().count("\n") == 7
    assert show("NRestarts") == "6"
    await_up()


def test_nothing_was_denied_to_velad_and_its_workers(remote: Velad) -> None:
    """By the unit's filters: they would be the one reason for EPERM."""
    said = log()

    assert "not permitted" not in said
    assert "Traceback" not in said
    assert "worker_exited" not in said
    # Nor seccomp, with which workers restrict themselves.
    assert "system_calls_not_filtered" not in said
    assert "steering_programs_classic" not in said
    assert {circuit["worker"]["engine"] for circuit in circuits().values()} == {"native"}


def test_unit_lets_keys_have_the_memory_that_the_kernel_has_for_them(remote: Velad) -> None:
    """As this process has, which is under no filter."""
    page = create(4096)
    hidden = is_hidden(page)
    os.close(page)
    key = Path("/etc/vela-test.key")
    key.touch(0o600)
    key.write_text("k" * 40)
    another = CIRCUIT.format(name="vela9", id=19, remote="198.51.100.1", bridge=LATE)
    another = another.replace("id = 19", f'id = 19\nencryption = "required"\nkey_file = "{key}"')

    with file(CONFIG.read_text() + another):
        run("systemctl", "reload", UNIT)
        eventually(lambda: "vela9" in states(), 20, "vela9")
        folder = Path("/proc", show("MainPID"), "fd")
        open_files = [os.readlink(each) for each in folder.iterdir()]
    run("systemctl", "reload", UNIT)

    assert any("memfd:vela-keys" in each for each in open_files) == (not hidden), open_files
    assert any("secretmem" in each for each in open_files) == hidden, open_files


def test_python_engine_runs_in_the_unit(remote: Velad) -> None:
    with file(f'[daemon]\nengine = "python"\n{CONFIG.read_text()}'):
        run("systemctl", "restart", UNIT)
    await_up()

    run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "172.16.16.2")
    assert {circuit["worker"]["engine"] for circuit in circuits().values()} == {"python"}


def test_stop_takes_everything_down_and_the_remote_is_told(remote: Velad) -> None:
    run("systemctl", "disable", "--now", UNIT)

    assert show("Result") == "success"
    assert show("ExecMainStatus") == "0"
    # systemd closes what it has kept a moment later.
    gone = lambda: not any(interface(name).exists() for name in BRIDGES)  # noqa: E731
    eventually(gone, 10, "the interfaces to be gone")
    remote.wait_for_state("vela0", "down")
    # Its status says another reason as soon as the requests that follow stay unanswered.
    told = "the other end is stopping"
    eventually(lambda: told in remote.log(), 10, "the remote to be told")


def _active(service: str) -> float:
    """Return when a service became active last, in seconds since the boot."""
    return seconds("ActiveEnterTimestampMonotonic", f"{service}.service")


def _start_seconds() -> float:
    """Stop and start the unit. Return how long it took from the start until all circuits are up."""
    run("systemctl", "stop", UNIT)
    began = time.monotonic()
    run("systemctl", "start", UNIT)
    await_up()
    return time.monotonic() - began
