"""vela.supervisor.reloads: real files and a real registry, on a simulated machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network
from structlog.testing import capture_logs

from vela import log
from vela.dataplane.engine import Engine
from vela.errors import ConfigError, VelaError
from vela.supervisor.config.reader import parse_texts
from vela.supervisor.config.records import Config
from vela.supervisor.config.sources import read_texts
from vela.supervisor.control_socket import Later
from vela.supervisor.notify import ServiceManager
from vela.supervisor.registry.registry import Registry
from vela.supervisor.reloads import Reloads
from vela.supervisor.trial import FILE

TRIAL_S = 60.0


def circuits(*names: str, keepalive: int = 5) -> str:
    return "".join(
        f'[circuits.{name}]\nid = {number}\nremote = "{ROUTER_B}"\nkeepalive = {keepalive}\n'
        for number, name in enumerate(names, start=1)
    )


class Daemon:
    """As much of a velad as a reload concerns."""

    def __init__(self, link: Network, folder: Path, stack: ExitStack) -> None:
        self.link, self.loop = link, link.loop
        self.folder = folder
        self.path = folder / "vela.toml"
        self.daemon = f'[daemon]\nstate_directory = "{folder / "state"}"\n'
        self.mistakes: list[str] = []
        self.engine_error = ""
        self.engines: list[Engine] = []
        self.policies: list[Config] = []
        self.write(circuits("vela0", "vela1"))
        texts = read_texts(self.path)
        config = parse_texts(texts, self.check)
        self.machine = Machine(link, ROUTER_A, folder / "state", config.circuits)
        self.machine.config = config
        self.machine.boot()
        self._manager = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        )
        self._manager.bind(str(folder / "notify"))
        manager = ServiceManager({"NOTIFY_SOCKET": str(folder / "notify")})
        stack.callback(manager.close)
        self.reloads = Reloads(
            self.path,
            texts,
            config,
            self.loop,
            self.registry,
            self.check,
            self.policies.append,
            self.set_engine,
            manager,
        )
        stack.callback(self.reloads.close)
        link.run(1)

    @property
    def registry(self) -> Registry:
        assert self.machine.registry is not None
        return self.machine.registry

    @property
    def trial_file(self) -> Path:
        return self.folder / "state" / FILE

    def check(self, config: Config) -> list[str]:
        """What finds mistakes beside those of the reader."""
        return self.mistakes

    def set_engine(self, engine: Engine) -> None:
        if self.engine_error:
            raise ConfigError(self.engine_error)
        self.engines.append(engine)

    def write(self, text: str, daemon: str = "") -> None:
        self.path.write_text(self.daemon + daemon + text)

    def reload(self, **how: Any) -> list[dict[str, Any]]:
        """Begin a reload; return where its reply will be."""
        replies: list[dict[str, Any]] = []
        later: Later = self.reloads.begin(**how)
        later.then(lambda reply: replies.append(dict(reply)))
        return replies

    def reloaded(self, **how: Any) -> dict[str, Any]:
        """Reload, and return the reply."""
        replies = self.reload(**how)
        self.link.run(1)
        (reply,) = replies
        return reply

    def names(self) -> list[str]:
        return sorted(self.machine.states())

    def keepalives(self) -> set[float]:
        return {config.keepalive for config, _ in self.registry.configurations().values()}

    def said(self) -> list[str]:
        """Return what the service manager was told since the last time."""
        said = []
        while True:
            try:
                said.append(self._manager.recv(1000).decode().split("=")[0])
            except BlockingIOError:
                return said


def effects(reply: dict[str, Any]) -> dict[str, str]:
    return {each["circuit"]: each["effect"] for each in reply["circuits"]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with ExitStack() as stack, network(1) as link:
        yield Daemon(link, tmp_path, stack)
        assert link.loop.failures == []


def test_reload_applies_the_files_and_says_what_became_of_each_circuit(daemon: Daemon) -> None:
    daemon.write(circuits("vela0", "vela2").replace("keepalive = 5", "keepalive = 3", 1))

    reply = daemon.reloaded()

    assert effects(reply) == {"vela0": "live", "vela2": "added", "vela1": "deleted"}
    (changed,) = [each for each in reply["circuits"] if each["circuit"] == "vela0"]
    assert changed["keys"] == ["keepalive"]
    assert {each["error"] for each in reply["circuits"]} == {None}
    assert (reply["needs_restart"], reply["autoconfigure_changed"]) == ([], False)
    assert daemon.names() == ["vela0", "vela2"]
    assert daemon.reloads.config.circuits[0].keepalive == 3
    assert daemon.policies == []


def test_service_manager_hears_when_a_reload_begins_and_ends(daemon: Daemon) -> None:
    daemon.said()

    daemon.reload()
    assert daemon.said() == ["RELOADING"]
    daemon.link.run(1)
    assert daemon.said() == ["READY"]


def test_preview_says_the_same_and_changes_nothing(daemon: Daemon) -> None:
    daemon.said()
    daemon.write(circuits("vela0"))

    preview = daemon.reloads.preview()
    assert daemon.said() == []
    assert daemon.names() == ["vela0", "vela1"]

    assert preview == daemon.reloaded()


def test_circuit_that_cannot_be_made_is_named_with_the_reason(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.write(circuits("vela0", "vela1", "vela2"))
    make = daemon.machine.make_data_path

    def fail(config: Any, *arguments: Any, **more: Any) -> Any:
        if config.name == "vela2":
            raise VelaError("no more interfaces")
        return make(config, *arguments, **more)

    monkeypatch.setattr(daemon.registry._maker, "make_data_path", fail)

    errors = {each["circuit"]: each["error"] for each in daemon.reloaded()["circuits"]}

    assert errors == {"vela0": None, "vela1": None, "vela2": "no more interfaces"}


@pytest.mark.parametrize("mistake", ["[circuits.vela0]\nid = 300\n", "]"])
def test_mistake_in_a_file_is_said_at_once_and_changes_nothing(
    daemon: Daemon, mistake: str
) -> None:
    daemon.said()
    daemon.write(mistake)

    with pytest.raises(ConfigError, match=str(daemon.path)):
        daemon.reload()

    assert daemon.said() == ["RELOADING", "READY"]
    daemon.link.run(1)
    assert daemon.names() == ["vela0", "vela1"]
    assert not daemon.reloads.obstacle


def test_mistake_beside_those_of_the_reader_is_said_likewise(daemon: Daemon) -> None:
    daemon.mistakes.append("daemon.engine: there is none")

    with pytest.raises(ConfigError, match=r"daemon\.engine: there is none"):
        daemon.reload()


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_file_without_a_circuit_is_taken_for_a_mistake_unless_it_is_meant(
    daemon: Daemon, text: str
) -> None:
    daemon.write(text)

    with pytest.raises(
        ConfigError, match=r"names no circuit, and 2 would be deleted.*--allow-empty does that"
    ):
        daemon.reloads.preview()
    assert daemon.names() == ["vela0", "vela1"]

    daemon.reloaded(allow_empty=True)
    assert daemon.names() == []
    # Then there is nothing to lose.
    daemon.reloaded()


def test_empty_file_would_end_the_circuits_of_others_too(daemon: Daemon) -> None:
    daemon.registry.add("vela7", {"id": 7, "remote": str(ROUTER_B)})
    daemon.path.write_text("")

    with pytest.raises(ConfigError, match="and 3 would be deleted"):
        daemon.reloads.preview()


def test_file_whose_circuits_are_all_down_may_be_emptied(daemon: Daemon) -> None:
    for name in ("vela0", "vela1"):
        daemon.registry.disable(name)
    daemon.write("")

    daemon.reloaded()

    assert daemon.names() == []


def test_keys_of_the_daemon_are_applied_or_named(daemon: Daemon) -> None:
    daemon.write(
        circuits("vela0", "vela1"), daemon='log_level = "warning"\nengine = "python"\nport = 4711\n'
    )
    before = log.level()

    try:
        with capture_logs() as lines:
            reply = daemon.reloaded()
        assert log.level() == "warning"
    finally:
        log.set_level(before)

    assert reply["needs_restart"] == ["daemon.port"]
    assert effects(reply) == {"vela0": "new worker", "vela1": "new worker"}
    assert [each["keys"] for each in reply["circuits"]] == [["daemon.engine"]] * 2
    assert daemon.engines == [Engine.PYTHON]
    running = daemon.reloads.config.daemon
    assert (running.log_level, running.engine) == ("warning", Engine.PYTHON)
    assert running.port != 4711
    (warning,) = [line for line in lines if line["event"] == "daemon_section_needs_restart"]
    assert warning["keys"] == ["daemon.port"]


def test_other_policy_is_given_to_the_control_channel(daemon: Daemon) -> None:
    daemon.write(circuits("vela0", "vela1") + '[autoconfigure]\nfrom = ["192.0.2.0/24"]\n')

    assert daemon.reloaded()["autoconfigure_changed"]

    (config,) = daemon.policies
    assert config.autoconfigure is not None
    # Once.
    assert not daemon.reloaded()["autoconfigure_changed"]
    assert len(daemon.policies) == 1


def test_reloads_that_are_asked_for_meanwhile_are_done_one_after_the_other(
    daemon: Daemon,
) -> None:
    daemon.said()
    daemon.write(circuits("vela0", "vela1", keepalive=2))
    first = daemon.reload()
    assert daemon.reloads.obstacle == "a reload runs"
    assert not daemon.reloads.waiting
    second = daemon.reload()
    assert daemon.reloads.waiting
    # The second reads what is there when it is its turn.
    daemon.write(circuits("vela0", "vela1", "vela2", keepalive=3))
    daemon.link.run(1)

    assert [effects(reply) for reply in (*first, *second)] == [
        {"vela0": "live", "vela1": "live"},
        {"vela0": "live", "vela1": "live", "vela2": "added"},
    ]
    assert daemon.keepalives() == {3}
    assert not daemon.reloads.waiting
    assert daemon.reloads.obstacle == ""
    assert daemon.said() == ["RELOADING", "RELOADING", "READY"]


def test_mistake_that_comes_while_a_reload_waits_is_its_reply_and_the_next_goes_on(
    daemon: Daemon,
) -> None:
    daemon.write(circuits("vela0", "vela1", keepalive=2))
    first, second = daemon.reload(), daemon.reload()
    third = daemon.reload()
    daemon.mistakes.append("what was right a moment ago")

    with capture_logs() as lines:
        daemon.link.run(1)

    assert effects(first[0]) == {"vela0": "live", "vela1": "live"}
    for (reply,) in (second, third):
        assert "what was right a moment ago" in reply["error"]
    assert [line["event"] for line in lines].count("configuration_rejected") == 2
    assert not daemon.reloads.waiting
    daemon.mistakes.clear()
    assert "circuits" in daemon.reloaded()


def test_trial_that_nobody_confirms_is_taken_back(daemon: Daemon) -> None:
    daemon.write(circuits("vela0", keepalive=2))
    daemon.reloaded(trial_s=TRIAL_S)
    assert daemon.names() == ["vela0"]
    assert daemon.reloads.obstacle == "a configuration is on trial"
    daemon.said()

    with capture_logs() as lines:
        daemon.link.run(TRIAL_S + 1)

    assert daemon.names() == ["vela0", "vela1"]
    assert daemon.keepalives() == {5}
    assert "configuration_taken_back" in {line["event"] for line in lines}
    assert daemon.said() == ["RELOADING", "READY"]
    assert daemon.reloads.obstacle == ""
    # For a velad that starts by these files, which have not been corrected.
    assert daemon.trial_file.exists()
    # The next reload is what is meant.
    daemon.reloaded()
    assert daemon.names() == ["vela0"]
    assert not daemon.trial_file.exists()


def test_trial_that_is_confirmed_stays(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    daemon.reloaded(trial_s=TRIAL_S)
    former = json.loads(daemon.trial_file.read_text())["former"]
    assert "vela1" in former[0]["toml"]

    daemon.reloads.confirm()

    assert not daemon.trial_file.exists()
    daemon.link.run(2 * TRIAL_S)
    assert daemon.names() == ["vela0"]
    with pytest.raises(VelaError, match="no configuration is on trial"):
        daemon.reloads.confirm()


def test_reload_without_a_trial_decides_the_one_before(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    daemon.reloaded(trial_s=TRIAL_S)

    daemon.reloaded()

    assert not daemon.trial_file.exists()
    daemon.link.run(2 * TRIAL_S)
    assert daemon.names() == ["vela0"]


def test_further_trial_goes_back_to_what_was_before_the_first_from_then_on(
    daemon: Daemon,
) -> None:
    daemon.write(circuits("vela0"))
    daemon.reloaded(trial_s=TRIAL_S)
    daemon.link.run(TRIAL_S - 10)
    daemon.write(circuits("vela0", keepalive=2))
    daemon.reloaded(trial_s=TRIAL_S)

    daemon.link.run(TRIAL_S - 10)
    assert daemon.keepalives() == {2}
    daemon.link.run(11)

    assert daemon.names() == ["vela0", "vela1"]
    assert daemon.keepalives() == {5}


def test_trial_that_is_decided_while_its_end_waits_is_not_taken_back(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    daemon.reload(trial_s=0.0)
    daemon.reload()  # which comes before the end

    with capture_logs() as lines:
        daemon.link.run(TRIAL_S)

    assert daemon.names() == ["vela0"]
    assert "configuration_taken_back" not in {line["event"] for line in lines}
    assert daemon.reloads.obstacle == ""
    assert daemon.said()[-1] == "READY"


def test_former_configuration_that_is_no_longer_right_is_not_taken_back(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    daemon.reloaded(trial_s=TRIAL_S)
    daemon.mistakes.append("what was right a minute ago")

    with capture_logs() as lines:
        daemon.link.run(TRIAL_S + 1)

    (line,) = [line for line in lines if line["event"] == "configuration_rejected"]
    assert "what was right a minute ago" in line["error"]
    assert daemon.names() == ["vela0"]
    assert daemon.said()[-1] == "READY"
    assert daemon.reloads.obstacle == ""


def test_trial_that_cannot_be_kept_is_not_begun(daemon: Daemon) -> None:
    daemon.trial_file.mkdir(parents=True)
    daemon.write(circuits("vela0"))

    reply = daemon.reloaded(trial_s=TRIAL_S)

    assert str(daemon.trial_file) in reply["error"]
    assert daemon.names() == ["vela0", "vela1"]
    assert daemon.reloads.obstacle == ""


def test_trial_that_follows_reloads_goes_back_to_the_last_of_them(daemon: Daemon) -> None:
    daemon.write(circuits("vela0", "vela1", keepalive=2))
    daemon.reloaded()
    daemon.write(circuits("vela0", "vela1", keepalive=3))
    daemon.reloaded(trial_s=TRIAL_S)

    daemon.link.run(TRIAL_S + 1)

    assert daemon.keepalives() == {2}


def test_trial_of_what_cannot_be_applied_is_none(daemon: Daemon) -> None:
    daemon.engine_error = "there is no such engine"
    daemon.write(circuits("vela0"), daemon='engine = "python"\n')

    reply = daemon.reloaded(trial_s=TRIAL_S)

    assert reply["error"] == "there is no such engine"
    assert not daemon.trial_file.exists()
    assert daemon.reloads.obstacle == ""


def test_trial_goes_on_where_a_further_one_cannot_be_applied(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    daemon.reloaded(trial_s=TRIAL_S)
    daemon.engine_error = "there is no such engine"
    daemon.write(circuits("vela0"), daemon='engine = "python"\n')

    assert "error" in daemon.reloaded(trial_s=TRIAL_S)
    assert daemon.reloads.obstacle == "a configuration is on trial"
    daemon.link.run(TRIAL_S + 1)

    assert daemon.names() == ["vela0", "vela1"]


def test_closed_reloads_take_no_trial_back(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    daemon.reloaded(trial_s=TRIAL_S)

    daemon.reloads.close()
    daemon.link.run(2 * TRIAL_S)

    assert daemon.names() == ["vela0"]
    assert daemon.trial_file.exists()


def test_closed_reloads_take_no_further_step(daemon: Daemon) -> None:
    daemon.write(circuits("vela0"))
    replies = daemon.reload()
    daemon.loop.call_soon(daemon.loop.stop)
    daemon.loop.run()

    daemon.reloads.close()
    daemon.link.run(1)

    assert replies == []
    assert daemon.names() == ["vela0", "vela1"]
