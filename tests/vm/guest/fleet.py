"""The unit under traffic on twenty circuits: restarted, replaced, and stopped by a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.daemon import Velad
from lab.pings import Pings
from lab.waiting import eventually
from vm.at_boot import REMOTE, UNIT
from vm.guest.service import (
    Note,
    await_stored,
    file,
    index,
    interface,
    lay_cable,
    log,
    other_router,
    run,
    seconds,
    show,
    states,
)

pytestmark = pytest.mark.needs_net_admin

CIRCUITS = {f"vela{number}": number for number in range(20, 40)}
"""Their ids, by name."""
CIRCUIT = """
[circuits.{name}]
id = {id}
remote = "{remote}"
addresses = ["172.17.{id}.1/30"]
keepalive = 30.0

[circuits.{name}.peer]
interface = "{name}"
addresses = ["172.17.{id}.2/30"]
"""
TARGETS = [f"172.17.{number}.2" for number in CIRCUITS.values()]
IN_CONTAINER = Path("/run/systemd/container").exists()
PING_INTERVAL_S = 0.01 if IN_CONTAINER else 1.0
"""Of each circuit. Twenty pings a second through all of them must not keep an emulated machine
busy."""
WATCHDOG_S = 30.0
"""The unit's."""
BY_HAND = "by-hand"


@pytest.fixture(scope="module")
def remote() -> Iterator[Velad]:
    """All circuits are up, at both ends."""
    config = "".join(
        CIRCUIT.format(name=name, id=number, remote=REMOTE) for name, number in CIRCUITS.items()
    )
    with other_router() as velad, file(config):
        lay_cable(velad)
        run("systemctl", "restart", UNIT)
        _await_up(velad)
        _name_neighbours(velad)
        yield velad
        run("systemctl", "stop", UNIT)


@dataclass
class Traffic:
    """Pings through all circuits while something happens."""

    pings: Pings
    began: float
    up: float = 0.0
    """When all circuits were up afterwards. Monotonic seconds, both."""

    def lost_afterwards(self) -> int:
        return sum(map(len, self.pings.unanswered(after=self.up)))

    def lost_before(self) -> int:
        """Without what was under way when it began."""
        under_way = self.began - 2 * PING_INTERVAL_S
        return sum(at < under_way for each in self.pings.unanswered() for at in each)


@contextmanager
def _traffic(remote: Velad, note: Note) -> Iterator[Traffic]:
    """What happens inside happens under traffic, which goes on until all circuits are up."""
    with Pings(TARGETS, PING_INTERVAL_S) as pings:
        pings.await_answers(5)
        traffic = Traffic(pings, time.monotonic())
        yield traffic
        _await_up(remote)
        traffic.up = time.monotonic()
        pings.await_answers(5)
        pings.stop()
    lost = [len(each) for each in pings.unanswered()]
    note("pings", sum(pings.asked()))
    note("lost", f"{sum(lost)}, of each circuit {min(lost)} to {max(lost)}")
    note("longest gap", f"{max(pings.gaps()):.2f} s")
    note("all up after", f"{traffic.up - traffic.began:.1f} s")


def test_restart_loses_nothing_and_remotes_do_not_notice(
    remote: Velad, record_property: Note
) -> None:
    before, flaps, pid = _indices(), _transitions(remote), show("MainPID")
    await_stored()

    with _traffic(remote, record_property) as traffic:
        run("systemctl", "restart", UNIT)

    assert traffic.pings.unanswered() == [[]] * len(CIRCUITS), log("-n", "60")
    assert _indices() == before
    assert _transitions(remote) == flaps
    assert show("MainPID") not in (pid, "0")
    assert show("NRestarts") == "0"


def test_stop_of_the_unit_is_told_to_remotes(remote: Velad) -> None:
    run("systemctl", "stop", UNIT)

    there = {each["name"]: each["reason"] for each in remote.status()["circuits"]}
    # Long before keepalives are missing.
    assert len([name for name, reason in there.items() if "stopp" in reason]) == len(CIRCUITS)
    eventually(
        lambda: not any(interface(name).exists() for name in CIRCUITS), 10, "interfaces to go", 0.1
    )
    run("systemctl", "start", UNIT)
    _await_up(remote)
    _name_neighbours(remote)


def test_velad_that_replaces_the_unit_loses_nothing_and_is_its_main_process(
    remote: Velad, record_property: Note
) -> None:
    before, flaps, pid = _indices(), _transitions(remote), show("MainPID")

    with _traffic(remote, record_property) as traffic:
        _replace(pid)

    assert traffic.pings.unanswered() == [[]] * len(CIRCUITS)
    assert _indices() == before
    assert _transitions(remote) == flaps
    assert (show("ActiveState"), show("NRestarts")) == ("active", "0")
    fed = show("WatchdogTimestampMonotonic")
    eventually(lambda: show("WatchdogTimestampMonotonic") != fed, 30, "the watchdog to be fed", 0.5)


def test_restart_of_a_velad_that_replaced_another_loses_nothing_either(
    remote: Velad, record_property: Note
) -> None:
    """By its process it is the unit's, and by its control group another one's."""
    before, pid = _indices(), show("MainPID")
    await_stored()

    with _traffic(remote, record_property) as traffic:
        run("systemctl", "restart", UNIT)

    assert show("MainPID") not in (pid, "0")
    assert show("ActiveState", BY_HAND) == "inactive"
    assert _indices() == before
    assert traffic.pings.unanswered() == [[]] * len(CIRCUITS)
    assert show("NRestarts") == "0"


def test_velad_that_replaced_another_from_a_shell_and_is_killed_is_started_again(
    remote: Velad, record_property: Note
) -> None:
    """No child of systemd's, which learns by the watchdog that it is gone."""
    before, pid = _indices(), show("MainPID")
    with subprocess.Popen(("/opt/vela/bin/velad", "--replace")) as successor:
        eventually(lambda: show("MainPID") == str(successor.pid), 30, "the main process", 0.2)
        _await_up(remote)
        await_stored()
        assert pid != str(successor.pid)

        with _traffic(remote, record_property) as traffic:
            successor.kill()
            eventually(lambda: show("NRestarts") == "1", 60, "another start", 0.5)

    assert _indices() == before
    assert traffic.lost_afterwards() == 0


def test_supervisor_that_is_stopped_is_started_again_by_the_watchdog_in_its_time(
    remote: Velad, record_property: Note
) -> None:
    before = _indices()
    run("systemctl", "restart", UNIT)
    _await_up(remote)
    await_stored()
    with _traffic(remote, record_property) as traffic:
        os.kill(int(show("MainPID")), signal.SIGSTOP)
        fed = seconds("WatchdogTimestampMonotonic")
        eventually(lambda: show("NRestarts") == "1", 2 * WATCHDOG_S, "another start", 0.5)

    said = log()
    *_, starved = re.findall(r"^\[ *([\d.]+)\] .*: Watchdog timeout", said, re.M)
    record_property("seconds until the watchdog ends it", round(float(starved) - fed, 1))
    # Of its time, and of what an emulated machine may stand still.
    assert WATCHDOG_S - 0.1 < float(starved) - fed < 2 * WATCHDOG_S
    assert "Fatal Python error: Aborted" in said
    assert _indices() == before
    assert traffic.lost_afterwards() == 0


def _replace(pid: str) -> None:
    """Let another velad take over from the unit's main process, as somebody at a shell does."""
    run("systemd-run", f"--unit={BY_HAND}", "--collect", "/opt/vela/bin/velad", "--replace")
    eventually(lambda: show("MainPID") not in (pid, "0"), 30, "another main process", 0.2)


def _name_neighbours(remote: Velad) -> None:
    """Spare the ends ARP: it gives up where nobody answers, and drops what comes next."""
    for name, number in CIRCUITS.items():
        (there,) = json.loads(remote.namespace.run("ip", "-j", "link", "show", name).stdout)
        here = (interface(name) / "address").read_text().strip()
        entry = ("dev", name, "nud", "permanent", "lladdr")
        run("ip", "neigh", "replace", f"172.17.{number}.2", *entry, there["address"])
        remote.namespace.run("ip", "neigh", "replace", f"172.17.{number}.1", *entry, here)


def _indices() -> dict[str, int]:
    return {name: index(name) for name in CIRCUITS}


def _await_up(remote: Velad) -> None:
    """Wait until all circuits are up, at both ends."""

    def up() -> bool:
        there = {each["name"]: each["state"] for each in remote.status()["circuits"]}
        return states() == there == dict.fromkeys(CIRCUITS, "up")

    eventually(up, 60, "all circuits to be up at both ends", 0.5)


def _transitions(remote: Velad) -> dict[str, int]:
    return {each["name"]: each["transitions"] for each in remote.status()["circuits"]}
