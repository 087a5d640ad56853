"""The registry: all circuits of a supervisor, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import pytest
from services import Services, services_in

from lab.link import Interface
from lab.topology import TwoRouters
from vela.address import Remote
from vela.linux.sandbox import find_user
from vela.supervisor.circuit.circuit import Circuit
from vela.supervisor.config.records import CircuitConfig, Config, DaemonConfig
from vela.supervisor.control_channel import ControlChannel
from vela.supervisor.keys import Keys
from vela.supervisor.registry.host import HostNetwork
from vela.supervisor.registry.registry import Registry
from vela.supervisor.runtime.lines import LineLimiter
from vela.supervisor.runtime.process import Child, ExitStatus

pytestmark = [pytest.mark.forks, pytest.mark.needs_net_admin]

CIRCUITS = 3


@pytest.fixture
def services(routers: TwoRouters) -> Iterator[Services]:
    """On router A."""
    with services_in(routers.a.namespace) as made:
        yield made


@pytest.fixture
def circuits(services: Services, tmp_path: Path) -> Iterator[Registry]:
    """Static ones, set up and not yet started."""
    config = Config(
        daemon=DaemonConfig(state_directory=tmp_path),
        circuits=tuple(
            CircuitConfig(f"vela{each}", each, Remote("10.201.0.2"), autoconfigure=False)
            for each in range(1, CIRCUITS + 1)
        ),
    )
    made = Registry(
        config,
        loop=services.loop,
        names=services.names,
        routes=services.demux,
        control_channel=ControlChannel(services.loop, services.demux, services.names, 48621),
        keys=Keys(services.loop, find_user("nobody"), tmp_path),
        make_data_path=services.make_pseudowire,
        host=HostNetwork(services.loop.now),
        lines=LineLimiter(services.loop.now),
    )
    made.create_all()
    yield made
    made.close()


def start(circuits: Registry, services: Services) -> None:
    """Start all, and give them the time that it takes."""
    circuits.start()
    services.loop.call_later(0.5, services.loop.stop)
    services.loop.run()


def with_worker(circuits: Registry) -> list[str]:
    """Return the names of those that have a worker."""
    return [each.name for each in circuits.status() if each.worker and each.worker.pid]


def fail_of_vela1(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Let the circuit vela1 have a bug in one of its methods."""
    proper = getattr(Circuit, method)

    def failing(circuit: Circuit) -> None:
        if circuit.name == "vela1":
            raise ZeroDivisionError
        proper(circuit)

    monkeypatch.setattr(Circuit, method, failing)


def test_circuit_that_fails_to_start_keeps_no_other_from_it(
    circuits: Registry, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_of_vela1(monkeypatch, "start")

    start(circuits, services)

    assert with_worker(circuits) == ["vela2", "vela3"]


def test_circuit_that_cannot_be_looked_after_keeps_no_other_from_it(
    circuits: Registry, services: Services, routers: TwoRouters, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(circuits, services)
    fail_of_vela1(monkeypatch, "check")
    routers.a.namespace.run("ip", "link", "delete", "vela3")
    circuits.check()

    assert Interface(routers.a.namespace, "vela3").carrier


def test_workers_that_are_ended_together_are_all_told_before_the_first_is_waited_for(
    circuits: Registry, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[int] = set()
    told_before_waiting: list[int] = []
    signalled, reaped = Child.signal, Child.reap

    def signal(child: Child, number: Signals) -> None:
        told.add(child.pid)
        signalled(child, number)

    def reap(child: Child) -> ExitStatus:
        told_before_waiting.append(len(told))
        return reaped(child)

    start(circuits, services)
    assert len(with_worker(circuits)) == CIRCUITS
    with monkeypatch.context() as spying:
        spying.setattr(Child, "signal", signal)
        spying.setattr(Child, "reap", reap)
        circuits.close()

    assert told_before_waiting == [CIRCUITS] * CIRCUITS
