"""config/vela.service as far as no systemd is needed: its capabilities, its reload.

vm/guest/unit.py runs it.
"""

from __future__ import annotations

import pwd
import re
import subprocess
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

from lab import daemon
from lab.daemon import ROOT, Velad, entry_point
from lab.errors import LabError
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

UNIT = (ROOT / "config" / "vela.service").read_text()
CAPABILITIES = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)[0].split()
NOBODY = str(pwd.getpwnam("nobody").pw_uid)

CONFIG = """
[daemon]
port = 500
[circuits.vela0]
id = 1
remote = "10.201.0.2"
autoconfigure = false
"""
SECOND = """
[circuits.vela1]
id = 2
remote = "10.201.0.2"
autoconfigure = false
"""

# What velad logs without a capability.
WITHOUT = {
    "CAP_NET_ADMIN": r"velad: .*cannot create a TAP.*: Operation not permitted",
    "CAP_NET_BIND_SERVICE": r"velad: cannot listen on \[::\]:500: Permission denied",
    "CAP_SETUID": r"os\.setresuid\(.*\n(.*\n)?PermissionError",
    "CAP_SETGID": r"os\.(setgroups|setresgid)\(.*\n(.*\n)?PermissionError",
    "CAP_KILL": r"velad: it has no CAP_KILL: its workers, which run as others, would outlive it",
    "CAP_BPF": r"steering_programs_classic",
    "CAP_NET_RAW": r"icmp_errors_not_read",
    "CAP_SYS_NICE": r"threads_not_moved",
}
# What velad works without, less well.
BETTER_WITH = {"CAP_BPF", "CAP_NET_RAW", "CAP_SYS_NICE"}


def work(velad: Velad) -> None:
    """Let velad do what it needs privileges for. Raises LabError or AssertionError."""
    with velad:
        pids = [velad.worker_pid(name) for name in ("vela0", "vela1")]
        for pid in pids:
            eventually(partial(is_nobodys, pid), 5, f"process {pid} to be nobody's")
        velad.configure(CONFIG)
        velad.control("reload")
        assert not Path("/proc", str(pids[1])).exists()
        assert velad.circuit("vela0")["worker"]["restarts"] == 0
        assert velad.stop() == 0


def is_nobodys(pid: int) -> bool:
    try:
        status = Path("/proc", str(pid), "status").read_text()
    except FileNotFoundError:
        return False
    return set(re.findall(r"^Uid:(.*)$", status, re.MULTILINE)[0].split()) == {NOBODY}


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[str]], None]:
    """Let velad have some capabilities alone, as a unit's CapabilityBoundingSet does."""

    def limit(capabilities: Iterable[str]) -> None:
        names = [name.removeprefix("CAP_").lower() for name in capabilities]
        bounds = ",".join(["-all", *(f"+{name}" for name in names)])

        def limited(script: str, module: str) -> tuple[list[str], dict[str, str]]:
            command, env = entry_point(script, module)
            return ["setpriv", f"--bounding-set={bounds}", "--no-new-privs", *command], env

        monkeypatch.setattr(daemon, "entry_point", limited)

    return limit


def test_capabilities_of_the_unit_suffice(
    routers: TwoRouters, allow: Callable[[Iterable[str]], None]
) -> None:
    allow(CAPABILITIES)

    velad = Velad(routers.a.namespace, CONFIG + SECOND)
    work(velad)

    assert not any(re.search(said, velad.log()) for said in WITHOUT.values())


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_each_capability_of_the_unit_is_needed(
    routers: TwoRouters, allow: Callable[[Iterable[str]], None], missing: str
) -> None:
    allow(set(CAPABILITIES) - {missing})
    velad = Velad(routers.a.namespace, CONFIG + SECOND)

    if missing in BETTER_WITH:
        work(velad)
    else:
        with pytest.raises((LabError, AssertionError)):
            work(velad)

    assert re.search(WITHOUT[missing], velad.log())


def test_reload_of_the_unit_finds_the_control_socket_by_the_main_process(
    routers: TwoRouters,
) -> None:
    (reload,) = re.findall(r"^ExecReload=(.*)$", UNIT, re.MULTILINE)
    script, *arguments = reload.split()
    command, env = entry_point(script, "vela.supervisor.velactl")
    with Velad(routers.a.namespace, CONFIG) as velad:
        env |= {"MAINPID": str(velad.pid)}
        velad.configure(CONFIG + SECOND)
        good = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True)
        names = [circuit["name"] for circuit in velad.status()["circuits"]]
        velad.config_path.write_text("[daemon]\nprot = 1\n")
        bad = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True)

    assert (good.returncode, good.stderr) == (0, "")
    assert names == ["vela0", "vela1"]
    assert bad.returncode == 1
    assert "daemon.prot: is an unknown key; did you mean 'port'?" in bad.stderr


def test_main_process_that_is_none_of_velad_means_the_usual_socket() -> None:
    command, env = entry_point("velactl", "vela.supervisor.velactl")

    done = subprocess.run(
        [*command, "reload"], env=env | {"MAINPID": "1"}, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "/run/vela/velad.sock" in done.stderr
