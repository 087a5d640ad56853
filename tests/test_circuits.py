"""vela.supervisor.circuits: all circuits of a supervisor, and how they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from services import services_in

from lab.topology import TwoRouters
from vela.circuit import CircuitConfig, Config, DaemonConfig, Remote
from vela.supervisor.circuits import Circuits
from vela.supervisor.negotiator import Negotiator
from vela.supervisor.process import Child, ExitStatus

pytestmark = pytest.mark.needs_net_admin

CIRCUITS = 3


def test_workers_that_are_ended_together_are_all_told_before_the_first_is_waited_for(
    routers: TwoRouters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[int] = set()
    told_before_waiting: list[int] = []
    signalled, reaped = Child.signal, Child.reap

    def signal(child: Child, number: object) -> None:
        told.add(child.pid)
        signalled(child, number)  # type: ignore[arg-type]

    def reap(child: Child) -> ExitStatus:
        told_before_waiting.append(len(told))
        return reaped(child)

    config = Config(
        daemon=DaemonConfig(state_directory=tmp_path),
        circuits=tuple(
            CircuitConfig(f"vela{each}", each, Remote("10.201.0.2"), autoconfigure=False)
            for each in range(1, CIRCUITS + 1)
        ),
    )
    with services_in(routers.a.namespace) as services:
        loop = services.loop
        negotiator = Negotiator(
            loop,
            services.reception,
            services.names,
            lambda requested: None,
            lambda: 0,
            lambda circuit_id, address: "",
        )
        circuits = Circuits(config, services, negotiator)
        circuits.set_up()
        circuits.start()
        loop.call_later(0.5, loop.stop)
        loop.run()
        assert None not in [each.worker and each.worker.pid for each in circuits.status()]
        monkeypatch.setattr(Child, "signal", signal)
        monkeypatch.setattr(Child, "reap", reap)

        circuits.close()
        monkeypatch.undo()

    assert told_before_waiting == [CIRCUITS] * CIRCUITS
