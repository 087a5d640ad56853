"""latency = "low": one thread for each queue, which polls behind frames and sleeps without."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sealed_circuit import psk_file

from lab.autoconfigured import Ends, Settings, asking, ends, wait_until_up
from lab.circuit import NAME
from lab.cpu import cpu_used
from lab.daemon import Velad
from lab.load import ping
from lab.process import sleeps, threads
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = [pytest.mark.alone, pytest.mark.needs_net_admin]

CPUS = sorted(os.sched_getaffinity(0))
IDLE_S = 3.0
# Echo requests of both ends, and looks at keys: up to 0.04 s on a busy machine. Polling behind each
# request would take 0.15 s.
IDLE_CPU_S = 0.08


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "encrypted"])
def test_one_thread_carries_frames_and_costs_nothing_without(
    routers: TwoRouters,
    engine: str,
    encrypted: bool,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    daemon = f"[daemon]\nengine = '{engine}'\n"
    keys: Settings = (
        {"encryption": "required", "key_file": str(psk_file(tmp_path))} if encrypted else {}
    )
    a, b = ("172.16.16.1/30",), ("172.16.16.2/30",)
    config_a, config_b = (
        daemon
        + asking(
            remote.ipv4, addresses=own, peer={"addresses": other}, latency="low", cpu=cpu, **keys
        )
        for remote, own, other, cpu in ((routers.b, a, b, CPUS[0]), (routers.a, b, a, CPUS[-1]))
    )
    with ends(routers, config_a, config_b) as both:
        wait_until_up(both)
        pids = [each.worker_pid(NAME) for each in both]
        run = ping(routers.a.namespace, "172.16.16.2", count=50, interval_s=0.01)
        assert run.lost == 0
        assert [len(threads(pid)) for pid in pids] == [1, 1]
        assert [each.circuit(NAME)["worker"]["latency"] for each in both] == ["low", "low"]

        # The kernel's own frames, such as router solicitations, would keep both awake for a while.
        for router in (routers.a, routers.b):
            router.namespace.run("sysctl", "-qw", f"net.ipv6.conf.{NAME}.disable_ipv6=1")
        eventually(lambda: all(map(sleeps, pids)), 5.0, "both workers to sleep")
        # That long is what is measured.
        with cpu_used(pids) as used:
            time.sleep(IDLE_S)
        figure(f"latency low, {engine}: {used.processes_s:.2f} s of CPU in {IDLE_S:g} idle s")
        assert used.processes_s <= IDLE_CPU_S
        assert restarts(both) == [0, 0]


def restarts(both: Ends) -> list[int]:
    return [each.circuit(NAME)["worker"]["restarts"] for each in both]


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU is set aside")
def test_other_circuits_keep_away_from_the_cpu(routers: TwoRouters) -> None:
    static = "remote = '10.201.0.2'\nautoconfigure = false\n"
    config = f"[circuits.vela0]\nid = 9\n{static}latency = 'low'\ncpu = {CPUS[0]}\n" + "".join(
        f"[circuits.vela{number}]\nid = {number}\n{static}" for number in range(1, 4)
    )
    with Velad(routers.a.namespace, config) as velad:
        cpus = eventually(lambda: cpus_of(velad), 10.0, "all circuits to have workers")

    assert cpus.pop("vela0") == CPUS[0]
    assert CPUS[0] not in cpus.values()


def cpus_of(velad: Velad) -> dict[str, int]:
    """Return the CPU of each circuit's worker; none as long as one has none."""
    workers = {each["name"]: each["worker"] for each in velad.status()["circuits"]}
    return {} if None in workers.values() else {name: each["cpu"] for name, each in workers.items()}
