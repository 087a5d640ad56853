"""vela.supervisor.circuit.hooks: which hooks run, in which order, and which files are trusted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vela.address import Remote
from vela.errors import ConfigError
from vela.supervisor.circuit.hooks import (
    AT_ONCE,
    CircuitHooks,
    Hook,
    HookRunner,
    check_hook,
    environment,
)
from vela.supervisor.circuit.setup import Origin
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.registry.pending import PendingCircuits
from vela.supervisor.registry.store import StoredCircuit
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.status import CircuitStatus

pytestmark = pytest.mark.forks


@dataclass
class Subject:
    """As much of a circuit as hooks look at."""

    config: CircuitConfig
    loop: EventLoop
    address: str | None = "192.0.2.9"

    def status(self) -> CircuitStatus:
        pending = PendingCircuits(self.loop, 48621, lambda wanted: None)
        pending.add(StoredCircuit(self.config, Origin.CONFIG))
        (status,) = pending.status()
        return replace(status, remote_address=self.address)


class Scene:
    """Circuits whose hooks write into one file, and wait where a file says so."""

    def __init__(self, directory: Path) -> None:
        self.loop = EventLoop()
        self.runner = HookRunner(self.loop)
        self.written = directory / "written"
        self.hold = directory / "hold"
        self.script = directory / "hook.sh"
        self.script.write_text(
            "#!/bin/sh\n"
            f'echo "begin $VELA_CIRCUIT $VELA_EVENT" >>{self.written}\n'
            f"while test -e {self.hold}; do sleep 0.01; done\n"
            f'echo "end $VELA_CIRCUIT $VELA_EVENT $VELA_REMOTE_ADDRESS" >>{self.written}\n'
        )
        self.script.chmod(0o755)
        self.subject = Subject(self.config(), self.loop)
        self.hooks = self.runner.hooks_of(self.subject)

    def config(self, name: str = "vela0") -> CircuitConfig:
        remote = Remote("192.0.2.9")
        return CircuitConfig(name=name, id=1, remote=remote, up=self.script, down=self.script)

    @property
    def lines(self) -> list[str]:
        return self.written.read_text().splitlines() if self.written.exists() else []

    def until(self, met: Callable[[], bool]) -> None:
        """Run the loop until then."""

        def look() -> None:
            if met():
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.run()

    def until_idle(self) -> None:
        self.runner.when_idle(self.loop.stop)
        self.loop.run()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.loop.close()


def test_hooks_of_a_circuit_run_one_after_the_other(scene: Scene) -> None:
    scene.hold.touch()
    scene.hooks.follow(up=True)
    scene.until(lambda: scene.lines == ["begin vela0 up"])
    scene.subject.address = None  # it is released when it is down
    scene.hooks.follow(up=False)
    scene.hold.unlink()
    scene.until_idle()

    assert scene.lines == [
        "begin vela0 up",
        "end vela0 up 192.0.2.9",
        "begin vela0 down",
        "end vela0 down 192.0.2.9",
    ]


def test_change_that_is_undone_while_a_hook_runs_has_no_hooks(scene: Scene) -> None:
    scene.hold.touch()
    scene.hooks.follow(up=True)
    scene.until(lambda: scene.lines == ["begin vela0 up"])
    for _ in range(10):
        scene.hooks.follow(up=False)
        scene.hooks.follow(up=True)
    scene.hold.unlink()
    scene.until_idle()

    assert scene.lines == ["begin vela0 up", "end vela0 up 192.0.2.9"]
    assert scene.hooks.due


def test_circuit_that_was_never_up_has_no_down_hook(scene: Scene) -> None:
    gone: list[bool] = []

    scene.hooks.follow(up=False)
    scene.hooks.finish("it is removed", lambda: gone.append(True))

    assert gone == [True]
    assert not scene.hooks.due


def test_circuit_goes_when_its_down_hook_has_ended_and_nothing_runs_afterwards(
    scene: Scene,
) -> None:
    scene.hooks.follow(up=True)
    scene.until_idle()
    scene.hold.touch()
    gone: list[list[str]] = []

    scene.hooks.finish("it is removed", lambda: gone.append(scene.lines))
    scene.until(lambda: scene.lines[-1] == "begin vela0 down")
    assert not gone
    scene.hooks.follow(up=True)
    scene.hold.unlink()
    scene.until_idle()

    (seen,) = gone
    assert seen[-1] == scene.lines[-1] == "end vela0 down 192.0.2.9"
    assert not scene.hooks.due


def test_abandoned_hooks_are_killed_and_the_circuit_goes_at_once(scene: Scene) -> None:
    scene.hooks.follow(up=True)
    scene.until_idle()
    scene.hold.touch()
    gone: list[bool] = []
    scene.hooks.finish("it is removed", lambda: gone.append(True))
    scene.until(lambda: scene.lines[-1] == "begin vela0 down")

    scene.hooks.abandon()

    assert gone == [True]
    assert not scene.hooks.due
    scene.until(lambda: not has_children())
    assert scene.lines[-1] == "begin vela0 down"


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def test_hooks_of_many_circuits_run_side_by_side_but_not_all_at_once(scene: Scene) -> None:
    scene.hold.touch()
    many: list[CircuitHooks] = []
    for number in range(AT_ONCE + 3):
        many.append(scene.runner.hooks_of(Subject(scene.config(f"vela{number}"), scene.loop)))
        many[-1].follow(up=True)

    scene.until(lambda: len(scene.lines) >= AT_ONCE)
    ended_early = any("end" in line for line in scene.lines)
    begun = len(scene.lines)
    scene.hold.unlink()
    scene.until_idle()

    assert not ended_early
    assert begun == AT_ONCE
    assert len(scene.lines) == 2 * len(many)


def test_failure_is_the_reason_until_a_hook_succeeds(scene: Scene) -> None:
    failing = scene.script.with_name("failing.sh")
    failing.write_text("#!/bin/sh\nexit 4\n")
    failing.chmod(0o755)
    scene.subject.config = replace(scene.subject.config, up=failing)

    scene.hooks.follow(up=True)
    scene.until_idle()
    assert scene.hooks.reason == f"the up hook {failing} failed: exit status 4"

    scene.hooks.follow(up=False)
    scene.until_idle()
    assert scene.hooks.reason == ""


def test_hook_that_vanished_is_a_reason_and_the_next_one_runs(scene: Scene) -> None:
    absent = scene.script.with_name("absent.sh")
    scene.subject.config = replace(scene.subject.config, up=absent)

    scene.hooks.follow(up=True)
    scene.until_idle()

    why = f"{absent} cannot be read: No such file or directory"
    assert scene.hooks.reason == f"the up hook {absent} is not run: {why}"
    scene.hooks.follow(up=False)
    scene.until_idle()
    assert scene.lines[-1] == "end vela0 down 192.0.2.9"


def test_hook_that_is_configured_later_runs_at_the_next_change(scene: Scene) -> None:
    configured = scene.subject.config
    scene.subject.config = replace(configured, up=None, down=None)
    scene.hooks.follow(up=True)
    assert not scene.hooks.due

    scene.subject.config = configured

    assert scene.hooks.due
    scene.hooks.follow(up=False)
    scene.until_idle()
    assert scene.lines == ["begin vela0 down", "end vela0 down 192.0.2.9"]


def test_words_of_a_remote_cannot_break_the_environment() -> None:
    told = environment(Hook.DOWN, {"REASON": "a\0b\nVELA_EVENT=up"})

    assert told["VELA_REASON"] == "a?b?VELA_EVENT=up"
    assert told["VELA_EVENT"] == "down"


def test_hook_file_that_is_right_is_the_one_that_links_lead_to(scene: Scene) -> None:
    link = scene.script.with_name("link")
    link.symlink_to(scene.script.name)

    assert check_hook(link) == scene.script


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o775, "can be changed by others (mode 0775); run chmod go-w on it"),
        (0o757, "can be changed by others (mode 0757); run chmod go-w on it"),
        (0o644, "is not executable; run chmod u+x on it"),
    ],
)
def test_hook_file_with_a_wrong_mode_is_refused(scene: Scene, mode: int, why: str) -> None:
    scene.script.chmod(mode)

    with pytest.raises(ConfigError) as refused:
        check_hook(scene.script)

    assert str(refused.value) == f"{scene.script} {why}"


def test_hook_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ConfigError, match="is not a regular file"):
            check_hook(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("linked", [False, True])
def test_hook_of_another_user_is_refused(scene: Scene, linked: bool) -> None:
    path = scene.script
    if linked:
        path = scene.script.with_name("link")
        path.symlink_to(scene.script)
    os.chown(path, 65534, 65534, follow_symlinks=False)

    with pytest.raises(ConfigError, match="belongs to user 65534, not to root"):
        check_hook(path)
