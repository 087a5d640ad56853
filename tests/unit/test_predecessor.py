"""vela.supervisor.predecessor: a stand-in of the velad that runs, over real sockets."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from exhaustion import open_descriptors
from running_velad import RunningVelad
from structlog.testing import capture_logs

from lab.waiting import eventually
from vela.errors import ConfigError, DeviceError, VelaError
from vela.supervisor import predecessor as module
from vela.supervisor.circuit.standing import Standing
from vela.supervisor.config.reader import parse_circuits
from vela.supervisor.config.records import Config, DaemonConfig
from vela.supervisor.predecessor import AT_A_TIME, Predecessor
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.succession import METRICS, VERSION

TIMEOUT_S = 10.0
SETTINGS = {"id": 1, "remote": "192.0.2.2"}
STANDING = Standing(
    "192.0.2.2",
    "192.0.2.1",
    "udp-7f000001-4711-3",
    3,
    None,
    None,
    False,
    None,
    0,
    False,
    [],
    False,
    None,
    [4],
)
MANAGER = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "20000000"}


class Ended(BaseException):
    """The process has ended, with this status."""


class Scene:
    """A velad that runs, and one that takes over from it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.loop = EventLoop()
        stack.callback(self.loop.close)
        self.running = RunningVelad(folder / "control", stack)
        self.daemon = DaemonConfig(
            listen=(ip_address("127.0.0.1"),),
            port=4711,
            state_directory=folder,
            control_socket=folder / "control",
        )
        self.done: list[str] = []
        self.predecessors: list[Predecessor] = []
        stack.callback(self.leave)

    def said_of_daemon(self, **changes: object) -> dict[str, Any]:
        about = {"listen": ["127.0.0.1"], "port": 4711, "metrics": None}
        about["state_directory"] = str(self.daemon.state_directory)
        return {"daemon": about | changes, "environment": MANAGER}

    def ask(self) -> Predecessor:
        """Return what has been handed the channel."""
        self.running.answer()
        made = Predecessor(self.daemon)
        self.running.join()
        self.predecessors.append(made)
        return made

    def leave(self) -> None:
        """Close what is still there."""
        for each in self.predecessors:
            each.inheritance.close()
            if each._channel.fileno() >= 0:
                each.close()

    def said(self, *names: str, standing: Standing | None = None) -> None:
        """Say all of circuits of these names, and of one descriptor each."""
        self.running.say(self.said_of_daemon())
        for name in names:
            pipe = os.memfd_create(name)
            self.running.say({"descriptors": [f"tap-{name}"]}, [pipe])
            os.close(pipe)
        for name in names:
            self.running.say(
                {
                    "circuit": name,
                    "origin": "config",
                    "settings": SETTINGS,
                    "standing": None if standing is None else asdict(standing),
                }
            )
        self.running.say({"end": True})

    def receive(
        self, predecessor: Predecessor, environment: dict[str, str] | None = None, **daemon: Any
    ) -> Config:
        wanted = Config(daemon=replace(self.daemon, **daemon))
        return predecessor.receive(wanted, {} if environment is None else environment)

    def take_over(self, *names: str, going_on: tuple[str, ...] = ()) -> Predecessor:
        """Have taken over from a velad with these circuits."""
        made = self.ask()
        self.said(*names)
        self.receive(made, {"NOTIFY_SOCKET": "/run/its/own"})
        assert self.running.hear() == {"go": True}
        made.take_over(self.loop, going_on, lambda: self.done.append("done"))
        return made

    def turn_until(self, met: Callable[[], object]) -> None:
        def turned() -> object:
            self.loop.call_soon(self.loop.stop)
            self.loop.run()
            return met()

        eventually(turned, TIMEOUT_S, "what the test turns the loop for", 0.001)

    def hear(self) -> dict[str, Any]:
        self.turn_until(lambda: not self.running.hears_nothing())
        return self.running.hear()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    def end(status: int) -> None:
        raise Ended(status)

    with ExitStack() as stack:
        made = Scene(tmp_path, stack)
        # Behind the start of the other process.
        monkeypatch.setattr(os, "_exit", end)
        yield made


# Asking.


def test_running_velad_is_asked_by_the_version_of_what_velads_say(scene: Scene) -> None:
    predecessor = scene.ask()

    assert scene.running.asked == {"command": "replace", "version": VERSION}
    assert predecessor.pid == scene.running.process.pid
    predecessor.close()
    assert scene.running.hear() == {}


@pytest.mark.parametrize(
    ("answer", "hand", "why"),
    [
        (b'{"error": "only root can replace velad"}', False, "only root can replace velad"),
        (b'{"error": "it is busy"}', True, "it is busy"),
        (
            b'{"error": "velad does not understand {}"}',
            False,
            "it is too old for that; restart velad instead",
        ),
        (b"{", True, "it answers nonsense"),
        (b'{"pid": 1}', False, "it hands nothing over"),
    ],
)
def test_velad_that_refuses_is_not_replaced_and_says_why(
    scene: Scene, answer: bytes, hand: bool, why: str
) -> None:
    scene.running.answer(answer, hand=hand)

    with pytest.raises(DeviceError) as refused:
        Predecessor(scene.daemon)

    assert str(refused.value) == f"the running velad is not replaced: {why}"
    scene.running.join()
    # Nobody has kept the other end.
    assert scene.running.hear() == {}


def test_control_socket_that_is_not_there_means_no_velad(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"there is no velad to replace at .*: No such file"):
        Predecessor(replace(scene.daemon, control_socket=tmp_path / "absent"))


def test_velad_that_does_not_answer_is_not_replaced(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.01)

    with pytest.raises(DeviceError, match=r"does not answer within 0\.01 s; it is not replaced"):
        Predecessor(scene.daemon)


def test_velad_that_has_ended_meanwhile_is_not_replaced(scene: Scene) -> None:
    scene.running.end()
    scene.running.answer()

    with pytest.raises(DeviceError, match=f"{scene.running.process.pid}, is not there") as refused:
        Predecessor(scene.daemon)

    scene.running.join()
    assert scene.running.hear() == {}
    assert refused.traceback  # which keeps what nobody has closed


# What it hands over.


def test_what_the_running_velad_has_is_taken(scene: Scene) -> None:
    predecessor = scene.ask()
    scene.said("vela0", "vela1", standing=STANDING)
    environment = {"WATCHDOG_PID": "1", "HOME": "/root"}

    config = scene.receive(predecessor, environment)

    assert config.circuits == tuple(
        each
        for name in ("vela0", "vela1")
        for each in parse_circuits({name: SETTINGS}, scene.daemon, "a test")
    )
    assert predecessor.inheritance.names() == {"tap-vela0", "tap-vela1"}
    for name in ("vela0", "vela1"):
        fd = predecessor.inheritance.peek(f"tap-{name}")
        assert name in os.readlink(f"/proc/self/fd/{fd}")
        assert not os.get_inheritable(fd)
        assert predecessor.inheritance.former(name) in config.circuits
    assert predecessor.standings == {"vela0": STANDING, "vela1": STANDING}
    # On which nobody else receives.
    assert predecessor.inheritance.in_use(ip_address("127.0.0.1"), 4711) == {3, 4}
    assert environment == {"HOME": "/root", **MANAGER}
    assert predecessor.inheritance.end_worker == predecessor.end_worker


def test_circuits_of_commands_are_not_those_of_the_file(scene: Scene) -> None:
    predecessor = scene.ask()
    scene.running.say(scene.said_of_daemon())
    for name, origin in (("vela0", "config"), ("vela1", "command"), ("vela2", "peer")):
        scene.running.say({"circuit": name, "origin": origin, "settings": SETTINGS})
    scene.running.say({"end": True})

    config = scene.receive(predecessor)

    assert [each.name for each in config.circuits] == ["vela0"]
    assert predecessor.inheritance.former("vela2") is not None


def test_service_manager_of_its_own_is_not_changed(scene: Scene) -> None:
    predecessor = scene.ask()
    scene.said()
    own = {"NOTIFY_SOCKET": "/run/other", "WATCHDOG_PID": "7"}
    environment = dict(own)

    scene.receive(predecessor, environment)

    assert environment == own


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ("127.0.0.1:9", "127.0.0.1:9", True),
        ("127.0.0.1:9", None, False),
        ("127.0.0.1:9", "127.0.0.1:10", False),
    ],
)
def test_socket_of_metrics_is_taken_where_its_address_stays(
    scene: Scene, before: str, now: Any, kept: bool
) -> None:
    predecessor = scene.ask()
    scene.running.say(scene.said_of_daemon(metrics=before))
    with socket.socket() as listening:
        scene.running.say({"descriptors": [METRICS]}, [listening.fileno()])
    scene.running.say({"end": True})

    scene.receive(predecessor, metrics=now)

    assert predecessor.inheritance.names() == ({METRICS} if kept else set())


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"port": 4712}, "daemon.port"),
        ({"listen": ["127.0.0.1", "::1"]}, "daemon.listen"),
        ({"port": 1, "state_directory": "/elsewhere"}, "daemon.port, daemon.state_directory"),
    ],
)
def test_what_cannot_be_taken_over_otherwise_is_named(
    scene: Scene, changes: dict[str, object], keys: str
) -> None:
    predecessor = scene.ask()
    scene.running.say(scene.said_of_daemon(**changes))

    with pytest.raises(ConfigError) as refused:
        scene.receive(predecessor)

    assert str(refused.value) == f"{keys} changed; restart velad for that to take effect"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"hello": 1}, "the running velad says {'hello': 1}"),
        ({"descriptors": ["tap-vela0"]}, "the running velad says {'descriptors'"),
        ({"circuit": "vela0", "settings": SETTINGS}, "the running velad says {'circuit'"),
        (
            {"circuit": "vela0", "settings": SETTINGS, "origin": "elsewhere"},
            "says what is not understood: 'elsewhere' is not a valid Origin",
        ),
        (
            {"circuit": "vela0", "settings": SETTINGS, "origin": "config", "standing": {}},
            "says what is not understood: 'remote'",
        ),
        ({"circuit": "vela0", "settings": {"id": 0}, "origin": "config"}, "the running velad"),
        (b"{", "the running velad says nonsense"),
        (b"[]", "the running velad ended, or gave up"),
    ],
)
def test_what_is_not_understood_ends_the_take_over_and_nothing_stays_open(
    scene: Scene, said: dict[str, object] | bytes, why: str
) -> None:
    predecessor = scene.ask()
    scene.running.say(scene.said_of_daemon())
    pipe = os.memfd_create("a test")
    scene.running.say({"descriptors": ["tap-vela7"]}, [pipe])
    os.close(pipe)
    scene.running.say(said)
    before = open_descriptors()

    with pytest.raises(VelaError, match=re.escape(why)):
        scene.receive(predecessor)
    assert open_descriptors() == before + 1

    predecessor.close()
    # With the channel and the process.
    assert open_descriptors() == before - 2


def test_velad_that_ends_while_it_hands_over_is_said(scene: Scene) -> None:
    predecessor = scene.ask()
    scene.running.say(scene.said_of_daemon())
    scene.running.channel.shutdown(socket.SHUT_WR)

    with pytest.raises(DeviceError, match="the running velad ended, or gave up"):
        scene.receive(predecessor)


def test_velad_that_has_closed_the_channel_cannot_be_told(scene: Scene) -> None:
    predecessor = scene.ask()
    scene.running.channel.close()

    with pytest.raises(DeviceError, match=r"the running velad cannot be told: .*Broken pipe"):
        scene.receive(predecessor)


def test_velad_that_falls_silent_while_it_hands_over_is_not_waited_for_for_ever(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    predecessor = scene.ask()
    predecessor._channel.settimeout(0.01)

    with pytest.raises(DeviceError, match="does not answer within"):
        scene.receive(predecessor)


def test_failure_is_told_and_the_running_velad_goes_on(scene: Scene) -> None:
    predecessor = scene.ask()

    predecessor.fail("the file is wrong")

    assert scene.running.hear() == {"failed": "the file is wrong"}
    assert scene.running.hear() == {}
    assert scene.running.process.poll() is None


# Taking over.


def test_workers_are_ended_a_few_at_a_time_and_then_it_is_done(scene: Scene) -> None:
    names = {f"vela{number}" for number in range(5)}
    scene.take_over(*names)
    released: set[str] = set()
    under_way = [scene.hear()["release"] for _ in range(AT_A_TIME)]
    assert scene.running.hears_nothing()

    while under_way:
        name = under_way.pop(0)
        scene.running.say({"released": name})
        released.add(name)
        if len(released) + len(under_way) < len(names):
            under_way.append(scene.hear()["release"])

    assert released == names
    assert scene.hear() == {"done": False}
    assert scene.done == []


def test_worker_of_a_circuit_that_goes_on_is_ended_when_that_asks_for_it(scene: Scene) -> None:
    gone: list[str] = []
    predecessor = scene.take_over("vela0", going_on=("vela0",))
    assert scene.running.hears_nothing()

    predecessor.end_worker("vela0", lambda: gone.append("one"))
    predecessor.end_worker("vela0", lambda: gone.append("two"))
    assert scene.hear() == {"release": "vela0"}
    assert scene.running.hears_nothing()
    assert gone == []
    scene.running.say({"released": "vela0"})
    assert scene.hear() == {"done": False}

    assert gone == ["one", "two"]
    predecessor.end_worker("vela0", lambda: gone.append("later"))
    assert gone == ["one", "two", "later"]


def test_worker_that_was_to_end_before_the_take_over_is_ended_with_it(scene: Scene) -> None:
    gone: list[str] = []
    made = scene.ask()
    scene.said("vela0", "vela1")
    scene.receive(made)
    scene.running.hear()
    made.end_worker("vela1", lambda: gone.append("vela1"))
    assert scene.running.hears_nothing()

    made.take_over(scene.loop, ("vela0",), lambda: None)
    assert scene.hear() == {"release": "vela1"}
    scene.running.say({"released": "vela1"})
    scene.turn_until(lambda: gone)

    made.inheritance.close()
    assert scene.running.hears_nothing()  # vela0 is still there


def test_velad_without_circuits_is_done_with_at_once(scene: Scene) -> None:
    scene.take_over()

    assert scene.hear() == {"done": False}


def test_service_is_taken_over_with_the_manager(scene: Scene) -> None:
    made = scene.ask()
    scene.said()
    scene.receive(made, {})
    scene.running.hear()
    made.inheritance.close()

    made.take_over(scene.loop, (), lambda: None)

    assert scene.hear() == {"done": True}


def test_end_of_the_running_velad_ends_the_take_over(scene: Scene) -> None:
    scene.take_over()
    scene.hear()
    before = open_descriptors()

    with capture_logs() as lines:
        scene.running.channel.close()
        scene.running.end()
        scene.turn_until(lambda: scene.done)

    assert scene.done == ["done"]
    assert lines == []
    # Each end of the channel, the process, and what it reads.
    assert open_descriptors() == before - 4


def test_velad_that_ends_early_has_no_workers_any_more(scene: Scene) -> None:
    gone: list[str] = []
    predecessor = scene.take_over("vela0", "vela1")
    predecessor.end_worker("vela1", lambda: gone.append("vela1"))

    with capture_logs() as lines:
        scene.running.channel.close()
        scene.running.end()
        scene.turn_until(lambda: scene.done)

    assert gone == ["vela1"]
    (line,) = lines
    assert (line["event"], line["pid"]) == ("predecessor_ended_early", predecessor.pid)
    predecessor.end_worker("vela0", lambda: gone.append("vela0"))
    assert gone == ["vela1", "vela0"]


def test_velad_that_goes_on_after_all_is_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took this one for dead, and has what this one was about to have."""
    monkeypatch.setattr(module, "END_S", 0.0)
    predecessor = scene.take_over("vela0")

    scene.running.channel.close()
    with capture_logs() as lines, pytest.raises(Ended) as ended:
        scene.turn_until(lambda: False)

    assert ended.value.args == (1,)
    assert (lines[-1]["event"], lines[-1]["pid"]) == ("predecessor_goes_on", predecessor.pid)
    assert scene.done == []
    predecessor.close()
