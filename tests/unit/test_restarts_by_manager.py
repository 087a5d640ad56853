"""vela.supervisor.intermission: a simulated machine whose service manager restarts it, or not.

The manager is the laboratory's, which says what systemd says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from handing_over import Ended, HandingOver
from simulation import ROUTER_A, network
from structlog.testing import capture_logs

from lab.job_list import JobList
from vela.supervisor import jobs, notify
from vela.supervisor.circuit.standing import Standing
from vela.supervisor.fd_store import FdStore
from vela.supervisor.inheritance import RECORD, Inheritance
from vela.supervisor.intermission import STORE_S, Intermission, recall
from vela.supervisor.notify import ServiceManager


class Scene(HandingOver):
    """With a store of descriptors, and a manager that says what it does with the unit."""

    def prepare(self, jobs: JobList) -> None:
        self.jobs = jobs
        self.store = FdStore(self.manager, Inheritance(), self.daemon)
        self.stack.callback(self.store.close)
        self.takes = True
        """The manager takes what it is given."""
        self.miscounts = 0
        """By how much the manager has fewer descriptors than it was given."""
        self.otherwise = 0
        self.intermission = self.make(self.manager)

    def make(self, manager: ServiceManager) -> Intermission:
        return Intermission(
            self.loop, self.registry, self.succession, manager, self.store, self.keep
        )

    def keep(self, more: Mapping[str, int]) -> bool:
        configs = {name: config for name, (config, _) in self.registry.configurations().items()}
        return self.takes and self.store.update(
            self.registry.taps(), self.demux.all_groups, configs, more
        )

    def service(self) -> tuple[int, int]:
        return os.getpid(), max(0, len(self.store) - self.miscounts)

    def end(self, seconds: float = 0.0) -> list[str]:
        """Let velad be ended; return the reasons for which circuits are not left."""

        def otherwise() -> None:
            self.otherwise += 1

        with capture_logs() as lines:
            self.intermission.begin(otherwise)
            self.loop.run_for(seconds)
        return [str(line["reason"]) for line in lines if line["event"] == "circuits_not_left"]

    def left(self) -> dict[str, Standing]:
        """Return how circuits stood, as the next velad learns it, once."""
        assert self.store._record is not None
        inheritance = Inheritance({RECORD: os.dup(self.store._record)})
        manager = ServiceManager({})
        store = FdStore(manager, inheritance, self.daemon)
        try:
            return recall(store, inheritance)
        finally:
            store.close()

    def goodbyes(self) -> int:
        """Return how many messages this machine has sent."""
        return len([1 for _, source, _ in self.link.overheard if source.address == ROUTER_A])


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(notify, "BARRIER_S", 0.0)  # nobody answers
    monkeypatch.setattr(jobs, "PRIVATE_SOCKET", tmp_path / "private")
    with network(1) as link, ExitStack() as stack:
        made = Scene(link, tmp_path, stack)
        listed = JobList(tmp_path / "private", lambda: made.service())
        made.prepare(stack.enter_context(listed))
        yield made
        # The process would have ended.
        if made.succession.frozen:
            for part in (*made.parts, made.demux):
                part.thaw()
        assert link.loop.failures == []


def test_circuits_that_are_up_are_left_to_the_velad_that_is_started_next(scene: Scene) -> None:
    said = scene.goodbyes()

    with scene.jobs.restart(), pytest.raises(Ended) as ended:
        scene.end()

    assert ended.value.args == (0,)
    assert scene.otherwise == 0
    # What takes connections does not any more: they wait for the next velad.
    assert scene.metrics.frozen
    left = scene.left()
    assert set(left) == {"vela0", "vela1"}
    for name, path in scene.a.data_paths.items():
        assert path.retired
        assert not path.closed
        assert path.carrier
        assert (left[name].member, left[name].index) == path.member
    assert scene.goodbyes() == said
    # Whatever it would need is with the manager.
    assert len(scene.store) == 1 + 4 + len(scene.group.sockets)


def test_circuit_that_is_not_up_is_ended_in_order(scene: Scene) -> None:
    scene.registry.disable("vela1")
    scene.link.run(2)

    with scene.jobs.restart(), pytest.raises(Ended):
        scene.end()

    assert set(scene.left()) == {"vela0"}
    assert scene.a.data_paths["vela1"].closed
    assert not scene.a.data_paths["vela0"].closed


def test_velad_without_circuits_that_are_up_ends_all_the_same(scene: Scene) -> None:
    for name in ("vela0", "vela1"):
        scene.registry.disable(name)

    with scene.jobs.restart(), pytest.raises(Ended):
        scene.end()

    assert scene.left() == {}


def test_nothing_is_left_where_velad_is_stopped_for_good(scene: Scene) -> None:
    with scene.jobs.stop():
        assert scene.end() == []

    assert scene.otherwise == 1
    assert not any(path.retired for path in scene.a.data_paths.values())


def test_nothing_is_left_where_nobody_knows_of_a_restart(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "PRIVATE_SOCKET", tmp_path / "absent")

    with capture_logs() as lines:
        scene.intermission.begin(lambda: None)

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("restart_not_known", "info")


def test_velad_without_a_service_manager_asks_nobody(scene: Scene) -> None:
    scene.intermission = scene.make(ServiceManager({}))

    with scene.jobs.restart():
        scene.end()

    assert scene.otherwise == 1
    assert scene.jobs.asked == 0


def test_nothing_is_left_while_another_velad_takes_over(scene: Scene) -> None:
    channel = scene.begin()

    with scene.jobs.restart():
        assert scene.end() == ["another velad is about to take over"]

    assert scene.otherwise == 1
    channel.close()
    scene.turn()


def test_manager_that_takes_nothing_is_waited_for_a_moment(scene: Scene) -> None:
    scene.takes = False

    with scene.jobs.restart():
        assert scene.end(STORE_S - 0.1) == []
        assert scene.otherwise == 0
        assert not any(path.retired for path in scene.a.data_paths.values())
        scene.loop.run_for(0.2)

    assert scene.otherwise == 1


def test_manager_that_takes_everything_at_last_is_left_it(scene: Scene) -> None:
    scene.takes = False

    with scene.jobs.restart():
        scene.end(STORE_S / 2)
        scene.takes = True
        with pytest.raises(Ended):
            scene.loop.run_for(STORE_S / 2)

    assert set(scene.left()) == {"vela0", "vela1"}


def test_nothing_is_left_where_the_store_has_not_all(scene: Scene) -> None:
    scene.miscounts = 1

    with scene.jobs.restart():
        assert scene.end() == ["the store is not as it should be"]

    assert scene.otherwise == 1
    assert not scene.succession.frozen


def test_standing_that_is_not_understood_is_none_and_that_is_said(scene: Scene) -> None:
    with scene.jobs.restart(), pytest.raises(Ended):
        scene.end()
    record = scene.store._record
    assert record is not None
    document = json.loads(os.pread(record, 1 << 20, 0))
    del document["standings"]["vela0"]["remote"]
    document["standings"]["vela1"] |= {
        "member": f"udp-{ip_address('127.0.0.1').packed.hex()}-4711-3",
        "index": 3,
        "further": [4],
    }
    os.ftruncate(record, 0)
    os.pwrite(record, json.dumps(document).encode(), 0)
    inheritance = Inheritance({RECORD: os.dup(record)})
    store = FdStore(ServiceManager({}), inheritance, scene.daemon)
    scene.stack.callback(store.close)

    with capture_logs() as lines:
        standings = recall(store, inheritance)

    assert set(standings) == {"vela1"}
    (line,) = lines
    assert (line["event"], line["circuit"]) == ("record_not_read", "vela0")
    assert inheritance.in_use(ip_address("127.0.0.1"), 4711) == {3, 4}
