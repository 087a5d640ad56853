"""vela.supervisor.succession: a simulated machine hands over; the test is the velad after it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from exhaustion import open_descriptors
from handing_over import GO, ROOT, Ended, HandingOver
from running_velad import RunningVelad, close_all, hear_all
from simulation import ROUTER_A, ROUTER_B, network
from structlog.testing import capture_logs

from vela.errors import VelaError
from vela.supervisor.circuit.standing import Standing
from vela.supervisor.control_socket import Caller
from vela.supervisor.inheritance import member_name
from vela.supervisor.predecessor import Predecessor
from vela.supervisor.succession import AT_ONCE, LIMIT_S, VERSION


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HandingOver]:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    with network(1) as link, ExitStack() as stack:
        made = HandingOver(link, tmp_path, stack)
        yield made
        made.leave()
        assert link.loop.failures == []


@pytest.fixture
def channel(scene: HandingOver) -> socket.socket:
    return scene.begin()


def test_everything_is_handed_over_with_its_descriptors(
    scene: HandingOver, channel: socket.socket, stack: ExitStack
) -> None:
    client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(str(scene.daemon.control_socket))
    scene.turn()
    channel.send(json.dumps(GO).encode())
    scene.turn()

    (daemon, no_fds), (descriptors, fds), *circuits, (end, _) = hear_all(channel)

    assert daemon == {
        "daemon": {
            "listen": ["127.0.0.1"],
            "port": scene.daemon.port,
            "state_directory": str(scene.daemon.state_directory),
            "metrics": None,
        },
        "environment": scene.manager.environment,
    }
    assert no_fds == []
    inodes = {
        name: os.fstat(fd).st_ino for name, fd in zip(descriptors["descriptors"], fds, strict=True)
    }
    close_all(fds)
    expected = {"control": scene.control.fileno(), "metrics": scene.metrics.fileno()}
    for index, member in enumerate(scene.group.sockets):
        expected[member_name(scene.group, index)] = member.fileno()
    for name, path in scene.a.data_paths.items():
        expected[f"tap-{name}"], expected[f"tap1-{name}"] = path.tap_fds
        (expected[f"send-{name}"],) = path.sending
    (connected,) = scene.control.connected
    expected["client-0"] = connected.descriptor
    assert inodes == {name: os.fstat(fd).st_ino for name, fd in expected.items()}
    assert [message["circuit"] for message, _ in circuits] == ["vela0", "vela1"]
    for message, _ in circuits:
        assert message["origin"] == "config"
        assert message["settings"]["remote"] == str(ROUTER_B)
        standing = Standing.parse(message["standing"])
        assert standing.member == scene.a.data_paths[message["circuit"]].member[0]  # type: ignore[index]
        assert standing.continuation() is not None
    assert end == {"end": True}


def test_many_descriptors_go_in_several_messages(
    scene: HandingOver, channel: socket.socket
) -> None:
    for _ in range(2 * AT_ONCE):
        scene.group.acquire()

    heard = [each["descriptors"] for each in scene.go(channel) if "descriptors" in each]

    assert [len(names) for names in heard[:-1]] == [AT_ONCE] * (len(heard) - 1)
    members = {member_name(scene.group, index) for index in range(len(scene.group.sockets))}
    assert members < {name for names in heard for name in names}


def test_circuit_that_is_not_up_is_handed_over_without_a_standing(
    scene: HandingOver, channel: socket.socket
) -> None:
    assert scene.a.registry is not None
    scene.a.registry.disable("vela1")

    found = {each["circuit"]: each["standing"] for each in scene.go(channel) if "circuit" in each}

    assert found["vela0"] is not None
    assert found["vela1"] is None


def test_nothing_but_frames_goes_on_once_everything_was_handed_over(
    scene: HandingOver, channel: socket.socket
) -> None:
    assert scene.succession.obstacle == "another velad is about to take over"
    assert not scene.part.frozen
    scene.go(channel)

    assert scene.succession.frozen
    assert scene.part.frozen
    assert scene.metrics.frozen
    sent = len([1 for _, source, _ in scene.link.overheard if source.address == ROUTER_A])
    scene.link.run(LIMIT_S - 2)
    assert len([1 for _, source, _ in scene.link.overheard if source.address == ROUTER_A]) == sent
    assert not any(path.retired for path in scene.a.data_paths.values())


def test_worker_is_ended_when_the_successor_asks_for_that(
    scene: HandingOver, channel: socket.socket
) -> None:
    scene.go(channel)

    scene.say(channel, {"release": "vela1"})
    assert [message for message, _ in hear_all(channel)] == [{"released": "vela1"}]
    assert [path.retired for path in scene.a.data_paths.values()] == [False, True]
    # One that was removed meanwhile has no worker.
    scene.say(channel, {"release": "vela7"})
    assert [message for message, _ in hear_all(channel)] == [{"released": "vela7"}]


@pytest.mark.parametrize("managed", [True, False])
def test_velad_ends_without_a_word_to_remotes_when_all_is_done(
    scene: HandingOver, channel: socket.socket, managed: bool
) -> None:
    scene.go(channel)
    sent = len(scene.link.overheard)

    with pytest.raises(Ended) as ended:
        scene.say(channel, {"done": managed})

    assert ended.value.args == (0,)
    assert scene.told_manager() == ([f"MAINPID={ROOT.pid}"] if managed else [])
    assert len(scene.link.overheard) == sent
    assert not any(path.closed for path in scene.a.data_paths.values())


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"failed": "the file is wrong"}, "the file is wrong"),
        ({"hello": 1}, "it said {'hello': 1}"),
        ([], "it said []"),
        (GO, "it said {'go': True}"),
        ({"done": 1}, "it said {'done': 1}"),
        (None, "it said None"),
    ],
)
def test_velad_goes_on_where_the_successor_gives_up_or_makes_no_sense(
    scene: HandingOver, channel: socket.socket, stack: ExitStack, message: object, why: str
) -> None:
    scene.go(channel)
    scene.say(channel, {"release": "vela1"})
    with capture_logs() as lines:
        scene.say(channel, message)

    (line,) = [line for line in lines if line["event"] == "velad_not_replaced"]
    assert (line["error"], line["successor"]) == (why, ROOT.pid)
    assert not scene.succession.frozen
    assert not scene.part.frozen
    assert not scene.metrics.frozen
    assert scene.succession.obstacle == ""
    # The one that has no worker any more begins anew; the other one goes on.
    assert scene.words() == ["up", "down"]
    scene.link.run(40)
    assert scene.words() == ["up", "up"]
    # Requests are answered, and another one may try.
    client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(str(scene.daemon.control_socket))
    client.send(b'{"command": "status"}\n')
    scene.loop.run_for(0.1)
    assert client.recv(100) == b"{}\n"
    again = scene.begin()
    assert scene.go(again)[-1] == {"end": True}
    scene.say(again, {"failed": "once more"})
    assert scene.words() == ["up", "up"]


def test_velad_goes_on_where_the_successor_ends(scene: HandingOver, channel: socket.socket) -> None:
    scene.go(channel)

    with capture_logs() as lines:
        channel.close()
        scene.turn()

    assert "it ended" in [line.get("error") for line in lines]
    assert not scene.succession.frozen


def test_velad_goes_on_where_the_successor_says_no_json(
    scene: HandingOver, channel: socket.socket
) -> None:
    scene.go(channel)

    channel.send(b"{")
    scene.turn()

    assert not scene.succession.frozen


def test_successor_that_ends_before_it_begins_changes_nothing(
    scene: HandingOver, channel: socket.socket
) -> None:
    with capture_logs() as lines:
        channel.close()
        scene.turn()

    assert scene.succession.obstacle == ""
    assert lines == []


@pytest.mark.parametrize("message", [{"release": "vela0"}, {"done": True}])
def test_successor_that_does_not_begin_with_go_is_given_up(
    scene: HandingOver, channel: socket.socket, message: dict[str, object]
) -> None:
    scene.say(channel, message)

    assert scene.succession.obstacle == ""
    assert not any(path.retired for path in scene.a.data_paths.values())
    assert channel.recv(100) == b""


def test_successor_that_says_nothing_is_waited_for_so_long_after_each_message(
    scene: HandingOver, channel: socket.socket
) -> None:
    scene.loop.run_for(LIMIT_S - 1)
    scene.go(channel)
    scene.loop.run_for(LIMIT_S - 1)
    scene.say(channel, {"release": "vela0"})
    scene.loop.run_for(LIMIT_S - 1)
    assert scene.succession.frozen

    with capture_logs() as lines:
        scene.loop.run_for(1)

    assert f"it said nothing for {LIMIT_S:g} s" in [line.get("error") for line in lines]
    assert not scene.succession.frozen


def test_successor_that_never_says_anything_is_given_up(
    scene: HandingOver, channel: socket.socket
) -> None:
    scene.loop.run_for(LIMIT_S)

    assert scene.succession.obstacle == ""
    assert channel.recv(100) == b""


def test_successor_that_cannot_be_told_is_given_up(
    scene: HandingOver, channel: socket.socket
) -> None:
    channel.send(json.dumps(GO).encode())
    channel.shutdown(socket.SHUT_RD)

    with capture_logs() as lines:
        scene.turn()

    (line,) = [line for line in lines if line["event"] == "velad_not_replaced"]
    assert line["error"] == "it cannot be told: [Errno 32] Broken pipe"
    assert not scene.succession.frozen
    assert scene.words() == ["up", "up"]


@pytest.mark.parametrize(
    ("version", "caller", "why"),
    [
        (VERSION, Caller(1000, 4711), "only root can replace velad"),
        (VERSION + 1, ROOT, f"and not by version {VERSION + 1}; restart velad"),
        (None, ROOT, "and not by version None; restart velad"),
    ],
)
def test_caller_that_may_not_take_over_is_refused(
    scene: HandingOver, version: object, caller: Caller, why: str
) -> None:
    before = open_descriptors()

    with pytest.raises(VelaError, match=why):
        scene.succession.begin(version, caller)

    assert open_descriptors() == before
    assert scene.succession.obstacle == ""


def test_second_caller_is_refused_meanwhile(scene: HandingOver, channel: socket.socket) -> None:
    with pytest.raises(VelaError, match="another velad is about to take over already"):
        scene.succession.begin(VERSION, ROOT)

    assert scene.go(channel)[-1] == {"end": True}


def test_obstacle_is_the_reason(scene: HandingOver) -> None:
    scene.obstacle = "a reload runs"

    with pytest.raises(VelaError, match="velad cannot be replaced now: a reload runs; try again"):
        scene.succession.begin(VERSION, ROOT)


def test_velad_that_ends_meanwhile_closes_the_channel(
    scene: HandingOver, channel: socket.socket
) -> None:
    scene.succession.close()

    assert channel.recv(100) == b""
    scene.loop.run_for(2 * LIMIT_S)
    scene.succession.close()  # once more is no mistake


def test_successor_understands_what_is_said(
    scene: HandingOver, channel: socket.socket, tmp_path: Path, stack: ExitStack
) -> None:
    """All of it is handed on to the other side of this, as it was said."""
    channel.send(json.dumps(GO).encode())
    scene.turn()
    heard = hear_all(channel)
    running = RunningVelad(tmp_path / "other", stack)
    running.answer()
    predecessor = Predecessor(replace(scene.daemon, control_socket=running.path))
    stack.callback(predecessor.close)
    running.join()
    for message, fds in heard:
        running.say(message, fds)
        close_all(fds)
    environment: dict[str, str] = {}

    config = predecessor.receive(replace(scene.a.config, daemon=scene.daemon), environment)

    assert config.circuits == scene.a.config.circuits
    assert set(predecessor.standings) == {"vela0", "vela1"}
    assert environment == scene.manager.environment
    assert {"control", "metrics", "tap-vela0", "send-vela1"} < predecessor.inheritance.names()
