"""A real worker under load, whose ingress thread gets another CPU while that one is idle.

How idle the CPUs are comes from the test: what else the machine does changes nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import pytest
from services import Nobody, Services, services_in, turn_until

from lab.flood import Flood
from lab.topology import TwoRouters
from vela.address import Remote
from vela.dataplane.engine import Engine, load_engine
from vela.linux.features import probe
from vela.linux.idle_cpus import IdleCpus
from vela.linux.usage import thread_times
from vela.supervisor.circuit import placement
from vela.supervisor.circuit.circuit import Circuit, Owner
from vela.supervisor.circuit.keeper import CHECK_INTERVAL_S
from vela.supervisor.circuit.pseudowire import PseudowireFactory
from vela.supervisor.circuit.setup import Origin, Setup
from vela.supervisor.config.records import CircuitConfig, Latency

CPUS = sorted(os.sched_getaffinity(0))
TIMEOUT_S = 60.0
CONFIG = CircuitConfig(name="vela0", id=1, remote=Remote("10.201.0.2"), autoconfigure=False)

pytestmark = [
    pytest.mark.forks,
    pytest.mark.needs_net_admin,
    pytest.mark.skipif(len(CPUS) < 2, reason="there is no other CPU"),
]


class Bench:
    """A static circuit on A, and all CPUs but its own idle."""

    def __init__(self, undo: ExitStack, services: Services) -> None:
        self._undo = undo
        engine = load_engine(Engine.NATIVE)
        features = engine.abilities.features & probe()
        self.services, self.loop = services, services.loop
        self.idle_cpus = IdleCpus(self._read)
        self.factory = replace(
            services.make_pseudowire, engine=engine, features=features, idle_cpus=self.idle_cpus
        )

    def _read(self) -> Mapping[int, tuple[int, int]]:
        ticks = round(100000 * self.loop.now())
        return {cpu: (0 if cpu == CPUS[0] else ticks, ticks) for cpu in CPUS}

    def make(self, config: CircuitConfig, factory: PseudowireFactory) -> Circuit:
        circuit = Circuit(
            Setup(config, control_channel=None),
            Origin.CONFIG,
            factory(config, CPUS[0]),
            loop=self.loop,
            names=self.services.names,
            routes=self.services.demux,
            owner=cast(Owner, Nobody()),
            port=self.services.port,
        )
        self._undo.callback(circuit.close)
        circuit.start()
        return circuit

    def turn_until(self, circuit: Circuit, reached: Callable[[], bool]) -> None:
        """Look after the circuit, as often as the registry does, until something is reached."""
        due = self.loop.now()

        def look() -> bool:
            nonlocal due
            # More often, a worker that waits for a CPU would count as one that hangs.
            if self.loop.now() >= due:
                due = self.loop.now() + CHECK_INTERVAL_S
                circuit.check()
            return reached()

        assert turn_until(self.loop, look, TIMEOUT_S)


@pytest.fixture
def bench(routers: TwoRouters) -> Iterator[Bench]:
    with services_in(routers.a.namespace) as services, ExitStack() as undo:
        yield Bench(undo, services)


def test_ingress_thread_has_an_idle_cpu_under_load_and_comes_back_behind_it(
    bench: Bench, routers: TwoRouters, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that is busy otherwise leaves a worker little.
    monkeypatch.setattr(placement, "BUSY_USED", 0.01)
    monkeypatch.setattr(placement, "QUIET_USED", 0.005)
    monkeypatch.setattr("vela.supervisor.circuit.spread.LEAST_FRAMES", 500)
    circuit = bench.make(CONFIG, bench.factory)

    def ingress_cpu() -> int | None:
        worker = circuit.status().worker
        return None if worker is None else worker.ingress_cpu

    def cpus() -> list[set[int]]:
        worker = circuit.status().worker
        if worker is None or worker.pid is None:
            return []
        others = thread_times(worker.pid).keys() - {worker.pid}
        return [os.sched_getaffinity(thread) for thread in (worker.pid, *others)]

    home = {CPUS[0]}
    with routers.b.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((routers.b.ipv4, 0))
        to = routers.a.ipv4, bench.services.port
        bench.turn_until(circuit, lambda: cpus() == [home, home])

        def send() -> int:
            return sum(sender.sendto(b"\x01" + bytes(100), to) > 0 for _ in range(50))

        with Flood(send):
            bench.turn_until(circuit, lambda: ingress_cpu() is not None)
            other = ingress_cpu()
            assert other in CPUS[1:]
            assert cpus() == [home, {other}]
    bench.turn_until(circuit, lambda: ingress_cpu() is None)
    assert cpus() == [home, home]


def test_cpu_of_a_circuit_that_polls_is_idle_for_nobody(bench: Bench) -> None:
    config = replace(CONFIG, latency=Latency.LOW, cpu=(CPUS[1],))
    circuit = bench.make(config, bench.factory)
    now = bench.loop.now()
    bench.idle_cpus.shares(now)
    circuit.check()
    assert bench.idle_cpus.shares(now + 0.5)[CPUS[1]] == 0.0
