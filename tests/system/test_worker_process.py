"""What a worker is as a process: whom it runs as, where, with what in its hands, how large."""

from __future__ import annotations

import mmap
import os
import pwd
import re
import socket
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import old_kernel
import pytest

from lab.daemon import Velad
from lab.datagrams import VELA_PORT
from lab.process import running
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.linux.usage import thread_times

pytestmark = pytest.mark.needs_net_admin

CIRCUITS = 20


def circuit(number: int, extra: str = "") -> str:
    return (
        f"[circuits.vela{number}]\nid = {number}\nremote = '10.201.0.2'\nautoconfigure = false\n"
        f"{extra}\n"
    )


def proc_status(pid: int) -> dict[str, str]:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def limits(pid: int) -> set[tuple[str, str, str]]:
    """Return names, soft and hard limits."""
    lines = Path("/proc", str(pid), "limits").read_text().splitlines()[1:]
    fields = (re.split(r"  +", line) for line in lines)
    return {(name, soft, hard) for name, soft, hard, *_ in fields}


def pss_kb(pid: int) -> int:
    lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def confined_workers(velad: Velad) -> dict[int, int]:
    """Return CPU by pid, as the status names them, once all workers have confined themselves."""

    def ready() -> dict[int, int]:
        workers = [each["worker"] for each in velad.status()["circuits"]]
        if any(worker is None or worker["pid"] is None for worker in workers):
            return {}
        pids = {worker["pid"]: worker["cpu"] for worker in workers}
        # The second thread is started last of all.
        threads = [proc_status(pid)["Threads"] for pid in pids]
        return pids if set(threads) == {"2"} else {}

    return eventually(ready, 15, "all workers to be ready")


def test_workers_are_confined_and_hold_only_what_they_use(routers: TwoRouters) -> None:
    nobody = pwd.getpwnam("nobody")
    with Velad(routers.a.namespace, circuit(1) + circuit(2, "source_port = 'listen'")) as velad:
        for pid in confined_workers(velad):
            status = proc_status(pid)
            assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
            assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
            assert status["Groups"] == ""
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(status[name], 16) == 0, name
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"
            assert os.getsid(pid) == pid
            # Not dumpable: its files in /proc are root's.
            assert Path("/proc", str(pid), "maps").stat().st_uid == 0
            assert limits(pid) >= {
                ("Max core file size", "0", "0"),
                ("Max processes", "0", "0"),
                ("Max open files", "2", "2"),
            }
            # Its counters, and nobody else's.
            maps = Path("/proc", str(pid), "maps").read_text().splitlines()
            shared = [line.split()[0].split("-") for line in maps if line.split()[1] == "rw-s"]
            assert [int(end, 16) - int(start, 16) for start, end in shared] == [mmap.PAGESIZE]

            directory = Path("/proc", str(pid), "fd")
            kinds = Counter(
                os.readlink(directory / fd).partition(":")[0]
                for fd in os.listdir(directory)
                if int(fd) > 2
            )
            assert {os.readlink(directory / fd) for fd in "01"} == {"/dev/null"}
            # Receiving, sending, to the supervisor; one less where it sends as it receives.
            listens = velad.status()["circuits"][1]["worker"]["pid"] == pid
            assert kinds == {"/dev/net/tun": 1, "socket": 2 if listens else 3}


def test_helpers_for_names_and_keys_are_confined_too(routers: TwoRouters) -> None:
    asking = "[circuits.vela0]\nid = 1\nremote = '10.201.0.2'\n"
    with Velad(routers.a.namespace, asking) as velad:
        assert velad.circuit("vela0")["worker"] is None
        helpers = set(velad.processes()) - {velad.pid}

        assert len(helpers) == 2
        for helper in helpers:
            eventually(lambda pid=helper: proc_status(pid)["Seccomp"] == "2", 10, "its filter")  # type: ignore[misc]
            assert os.getsid(helper) == helper
            assert proc_status(helper)["CapEff"].strip("0") == ""
            assert Path("/proc", str(helper), "maps").stat().st_uid == 0
            assert limits(helper) >= {("Max core file size", "0", "0")}


def test_velad_that_cannot_filter_system_calls_says_so_once_and_carries_frames(
    routers: TwoRouters,
) -> None:
    config = circuit(1) + circuit(2)
    prefix = (sys.executable, old_kernel.__file__, "seccomp")
    with Velad(routers.a.namespace, config, prefix=prefix) as velad:
        for pid in confined_workers(velad):
            assert proc_status(pid)["Seccomp_filters"] == "1"  # the test's
            assert ("Max processes", "0", "0") in limits(pid)

        said = [line for line in velad.log().splitlines() if "system_calls_not_filtered" in line]
        assert len(said) == 1
        assert "the kernel refuses it: Function not implemented" in said[0]


def test_worker_of_a_configured_user_runs_as_that_user(routers: TwoRouters) -> None:
    user = pwd.getpwnam("daemon")
    with Velad(routers.a.namespace, f"[daemon]\nuser = 'daemon'\n{circuit(1)}") as velad:
        (pid,) = confined_workers(velad)

        assert proc_status(pid)["Uid"].split() == [str(user.pw_uid)] * 4


def test_workers_are_pinned_and_spread_evenly(
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    config = "".join(circuit(number) for number in range(1, CIRCUITS + 1))
    with Velad(routers.a.namespace, config) as velad:
        workers = confined_workers(velad)
        pinned = {pid: os.sched_getaffinity(pid) for pid in workers}
        sizes = [pss_kb(pid) for pid in workers]
        supervisor = pss_kb(velad.pid)
        load = Counter(workers.values())

    figure(
        f"{CIRCUITS} circuits: proportional set size of a worker "
        f"{statistics.median(sizes):.0f} kB (largest {max(sizes)}), "
        f"supervisor {supervisor} kB, workers by CPU {dict(load)}"
    )
    assert pinned == {pid: {cpu} for pid, cpu in workers.items()}
    assert sorted(load) == allowed[:CIRCUITS]
    assert max(load.values()) - min(load.values()) <= 1


def test_worker_runs_on_the_cpu_that_is_configured(routers: TwoRouters) -> None:
    last = max(os.sched_getaffinity(0))
    config = "".join(circuit(number, f"cpu = {last}") for number in (1, 2, 3))
    with Velad(routers.a.namespace, config) as velad:
        workers = confined_workers(velad)

        assert list(workers.values()) == [last] * 3
        assert [os.sched_getaffinity(pid) for pid in workers] == [{last}] * 3


def test_workers_stay_within_the_cpus_that_velad_may_use(routers: TwoRouters) -> None:
    allowed = os.sched_getaffinity(0)
    last = max(allowed)
    os.sched_setaffinity(0, {last})
    try:
        with Velad(routers.a.namespace, circuit(1) + circuit(2)) as velad:
            workers = confined_workers(velad)

            assert list(workers.values()) == [last] * 2
    finally:
        os.sched_setaffinity(0, allowed)


def test_second_thread_of_a_worker_is_the_ingress_thread(routers: TwoRouters) -> None:
    """vela.supervisor.circuit.spread moves it."""
    a, b = routers.a, routers.b
    with Velad(a.namespace, circuit(1)) as velad:
        (pid,) = confined_workers(velad)
        before = thread_times(pid)
        (ingress,) = before.keys() - {pid}
        with b.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((b.ipv4, 0))

            def send() -> bool:
                for _ in range(1000):
                    sender.sendto(b"\x01" + b"\xff" * 14 + bytes(46), (a.ipv4, VELA_PORT))
                return thread_times(pid)[ingress] - before[ingress] >= 0.1

            eventually(send, 60, "the ingress thread to take CPU time")
        took = {thread: took - before[thread] for thread, took in thread_times(pid).items()}
    assert took[pid] < took[ingress] / 2


def test_workers_end_with_their_supervisor(routers: TwoRouters) -> None:
    with Velad(routers.a.namespace, circuit(1) + circuit(2)) as velad:
        workers = confined_workers(velad)
        processes = velad.processes()
        assert set(workers) < set(processes)

        velad.kill()

        eventually(lambda: not running(processes), 10, "all to end", 0.002)
