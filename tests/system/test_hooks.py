"""Hooks of real circuits: what they see, and that nothing waits for them."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.process import descendants
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

STATIC = """
[circuits.{name}]
id = {id}
remote = "10.201.0.2"
autoconfigure = false
{more}
"""
# How long a hook may run, in these tests.
LIMIT_S = 3.0
SHORT_LIMIT = f"from vela.supervisor.circuit import hooks; hooks.LIMIT_S = {LIMIT_S}"


class Script:
    """A hook that notes each of its runs: its environment, and what it sees of the interface."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self._notes = directory / "notes"
        self.path = directory / "hook.sh"
        self.path.write_text(
            "#!/bin/bash\n"
            "exec 9<&-\n"
            f"{more}\n"
            "up=$(ip -o link show dev $VELA_INTERFACE 2>&1)\n"
            f"{{ env; echo LINK=$up; echo; }} >>{self._notes}\n"
        )
        self.path.chmod(0o755)

    @property
    def keys(self) -> dict[str, Any]:
        return {"up": str(self.path), "down": str(self.path)}

    @property
    def toml(self) -> str:
        return "\n".join(f'{key} = "{path}"' for key, path in self.keys.items())

    @property
    def runs(self) -> list[dict[str, str]]:
        if not self._notes.exists():
            return []
        notes = self._notes.read_text().split("\n\n")[:-1]
        return [dict(line.split("=", 1) for line in note.splitlines()) for note in notes]

    def wait_for(self, *events: str) -> list[dict[str, str]]:
        """Return all runs, as soon as there are so many; they are these."""
        eventually(lambda: len(self.runs) >= len(events), 20, f"{len(events)} runs of a hook")
        runs = self.runs
        assert [run["VELA_EVENT"] for run in runs] == list(events)
        return runs


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def zombies(velad: Velad) -> list[int]:
    found = []
    for pid in descendants(velad.pid):
        try:
            state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state == "Z":
            found.append(pid)
    return found


def test_hooks_follow_the_circuit_and_the_last_one_still_sees_it_work(
    routers: TwoRouters, script: Script
) -> None:
    config = asking(routers.b.ipv4, description="to Zürich", **script.keys)
    with ends(routers, config, policy()) as both:
        wait_until_up(both)
        (up,) = script.wait_for("up")
        mtu = both.a.circuit(NAME)["mtu"]
        both.b.stop()
        _, down = script.wait_for("up", "down")
        both.b.start()
        wait_until_up(both)
        script.wait_for("up", "down", "up")
        # The circuit that A set up on B has none.
        assert both.b.circuit(NAME)["reason"] == ""
        assert both.a.stop() == 0
        *_, last = script.wait_for("up", "down", "up", "down")

    assert {key: value for key, value in up.items() if key.startswith("VELA_")} == {
        "VELA_EVENT": "up",
        "VELA_CIRCUIT": NAME,
        "VELA_INTERFACE": NAME,
        "VELA_ID": "1",
        "VELA_DESCRIPTION": "to Zürich",
        "VELA_STATE": "up",
        "VELA_REASON": "",
        "VELA_REMOTE": "10.201.0.2",
        "VELA_REMOTE_ADDRESS": "10.201.0.2",
        "VELA_REMOTE_PORT": "48621",
        "VELA_MTU": str(mtu),
        "VELA_ADDRESSES": "172.16.16.1/30 fd00:16::1/64",
        "VELA_BRIDGE": "",
    }
    assert set(up) - {"LINK", "PATH", "LC_ALL", "PWD", "SHLVL", "_"} <= set(down)
    assert "NOTIFY_SOCKET" not in up
    assert (down["VELA_STATE"], down["VELA_REASON"]) == ("down", "the other end is stopping")
    assert down["VELA_REMOTE_ADDRESS"] == "10.201.0.2"
    assert (last["VELA_STATE"], last["VELA_REASON"]) == ("removed", "velad stops")
    assert "LOWER_UP" in up["LINK"]
    assert "NO-CARRIER" in down["LINK"]
    # It may still take routes away before frames are lost.
    assert "LOWER_UP" in last["LINK"]


def test_removed_circuit_keeps_its_interface_until_its_hook_has_ended(
    routers: TwoRouters, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    script = Script(tmp_path, f"while test -e {hold}; do sleep 0.02; done")
    circuit = STATIC.format(name="vela0", id=1, more=script.toml)
    other = STATIC.format(name="vela1", id=2, more="")
    with Velad(routers.a.namespace, circuit + other) as velad:
        script.wait_for("up")
        index = routers.a.namespace.run("cat", "/sys/class/net/vela0/ifindex").stdout

        hold.touch()
        velad.configure(other)
        velad.control("reload")
        assert [each["name"] for each in velad.status()["circuits"]] == ["vela1"]
        assert "NO-CARRIER" in routers.a.namespace.run("ip", "link", "show", "vela0").stdout
        # Another circuit of this name waits for it, and needs nobody.
        velad.configure(STATIC.format(name="vela0", id=9, more="") + other)
        velad.control("reload")
        (waiting,) = [each for each in velad.status()["circuits"] if each["name"] == "vela0"]
        assert waiting["reason"].endswith("the former circuit of this name runs its down hook")
        hold.unlink()

        _, down = script.wait_for("up", "down")
        assert "NO-CARRIER" in down["LINK"]
        assert (down["VELA_STATE"], down["VELA_REASON"]) == ("removed", "the circuit is removed")
        velad.wait_for_state("vela0", "unmonitored")
        assert routers.a.namespace.run("cat", "/sys/class/net/vela0/ifindex").stdout != index
        assert zombies(velad) == []


def test_hook_that_fails_is_a_reason_and_its_output_is_in_the_log(
    routers: TwoRouters, tmp_path: Path
) -> None:
    script = Script(tmp_path, "echo no such table; echo on stderr >&2; exit 7")
    more = f'up = "{script.path}"'
    with Velad(routers.a.namespace, STATIC.format(name="vela0", id=1, more=more)) as velad:
        reason = f"the up hook {script.path} failed: exit status 7"
        velad.wait_for(
            lambda status: status["circuits"][0]["reason"] == reason, 10, "the hook's reason"
        )

        assert velad.circuit("vela0")["state"] == "unmonitored"
        assert reason in velad.control("status", "vela0").stdout
        for line in ("no such table", "on stderr"):
            assert f"line='{line}'" in velad.log()
        assert zombies(velad) == []


def test_nothing_waits_for_a_hook_that_hangs(routers: TwoRouters, tmp_path: Path) -> None:
    script = Script(tmp_path, "sleep 3600 & sleep 3600")
    config = STATIC.format(name="vela0", id=1, more=script.toml)
    config += STATIC.format(name="vela1", id=2, more="")
    with Velad(routers.a.namespace, config, before=SHORT_LIMIT) as velad:

        def hung() -> list[int]:
            return [pid for pid in descendants(velad.pid) if is_named(pid, "sleep")]

        eventually(lambda: len(hung()) == 2, 10, "the hook to hang")
        # Frames of the circuit itself go on, and so does all else.
        velad.control("down", "vela1")
        velad.control("up", "vela1")
        velad.wait_for_state("vela1", "unmonitored")
        assert velad.circuit("vela0")["state"] == "unmonitored"
        assert len(hung()) == 2

        reason = f"the up hook {script.path} did not end within {LIMIT_S:g} s, and was killed"
        velad.wait_for(
            lambda status: status["circuits"][0]["reason"] == reason, 15, "the hook's reason"
        )
        eventually(lambda: not hung(), 5, "what the hook started to end")
        assert zombies(velad) == []
        # Its down hook hangs, too.
        before = time.monotonic()
        assert velad.stop() == 0
        assert time.monotonic() - before >= LIMIT_S


def test_second_signal_does_not_wait_for_hooks(routers: TwoRouters, tmp_path: Path) -> None:
    script = Script(tmp_path, 'test "$VELA_EVENT" = up || sleep 3600')
    with Velad(routers.a.namespace, STATIC.format(name="vela0", id=1, more=script.toml)) as velad:
        script.wait_for("up")
        before = time.monotonic()
        os.kill(velad.pid, 15)
        eventually(
            lambda: any(is_named(pid, "sleep") for pid in descendants(velad.pid)), 10, "the hook"
        )

        assert velad.stop() == 0

        # Its own limit is 10 s.
        assert time.monotonic() - before < 9.0
        assert not Path("/sys/class/net/vela0").exists()


def is_named(pid: int, name: str) -> bool:
    try:
        return Path("/proc", str(pid), "comm").read_text().strip() == name
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_hook_that_others_can_change_is_not_run(routers: TwoRouters, script: Script) -> None:
    script.path.chmod(0o777)
    with Velad(routers.a.namespace, STATIC.format(name="vela0", id=1, more=script.toml)) as velad:
        velad.wait_for(
            lambda status: "can be changed by others" in status["circuits"][0]["reason"],
            10,
            "the reason",
        )

        assert script.runs == []


def test_hook_has_nothing_of_velad_s(routers: TwoRouters, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    key.chmod(0o600)
    seen = tmp_path / "seen"
    script = Script(
        tmp_path,
        # By ls itself: the shell has the script open. Signals that are ignored or blocked.
        f"{{ ls -l /proc/self/fd; grep -E 'SigIgn|SigBlk' /proc/self/status; }} >{seen}.new; "
        f"mv {seen}.new {seen}",
    )
    config = asking(routers.b.ipv4, key_file=str(key), **script.keys)
    with ends(routers, config, policy(sources=None, key_file=str(key))) as both:
        wait_until_up(both)
        (up,) = script.wait_for("up")
        eventually(seen.exists, 5, "what the hook saw")

    lines = seen.read_text().splitlines()
    descriptors = [line.partition(" -> ")[2] for line in lines if " -> " in line]
    # Input, the file above, the pipe to the log, and ls's own.
    assert descriptors[:2] == ["/dev/null", f"{seen}.new"]
    assert descriptors[2].startswith("pipe:")
    assert descriptors[3].startswith("/proc/")
    assert len(descriptors) == 4
    masks = [int(line.split()[1], 16) for line in lines if line.startswith("Sig")]
    assert masks == [0, 0]
    assert not any("0123456789abcdef" in value for value in up.values())


def test_command_gives_a_circuit_no_hooks(routers: TwoRouters, script: Script) -> None:
    settings: dict[str, Any] = {"remote": "10.201.0.2", "autoconfigure": False, **script.keys}
    request = {"command": "add", "circuit": "vela7", "settings": settings}
    with Velad(routers.a.namespace, "") as velad:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking_socket:
            asking_socket.connect(str(velad.control_socket))
            asking_socket.sendall(json.dumps(request).encode() + b"\n")
            answer = asking_socket.makefile().readline()

        assert "hooks are for circuits of the file" in answer
        assert velad.status()["circuits"] == []
