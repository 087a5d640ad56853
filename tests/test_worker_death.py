"""What a circuit, its neighbours and the machine keep when processes of velad die or hang."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest

from lab.capture import Capture
from lab.daemon import Velad, started_together
from lab.errors import LabError
from lab.frames import Outlet, Stream, arrived, await_operational, numbered
from lab.injector import Injector
from lab.link import Interface
from lab.process import running_members
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

KILLS = 5
# supervisor/restart.py restarts at once what lived a second; what dies sooner, twice in a row.
RAN_WELL_S = 1.1
RESTART_LIMIT_MS = 50
# Frames that a worker may have in hand when it dies: one batch.
BATCH = 64


def config(remote: str, number: int) -> str:
    return f"""
[circuits.vela0]
id = 1
remote = "{remote}"
autoconfigure = false
addresses = ["172.16.0.{number}/30", "fd00:16::{number}/64"]
[circuits.vela1]
id = 2
remote = "{remote}"
autoconfigure = false
"""


def await_circuits(velad: Velad) -> None:
    for each in velad.status()["circuits"]:
        velad.wait_for_state(each["name"], "unmonitored")
        await_operational(Interface(velad.namespace, each["name"]))
        velad.worker_pid(each["name"])


@contextmanager
def started(router: Router, text: str) -> Iterator[Velad]:
    with Velad(router.namespace, text) as velad:
        await_circuits(velad)
        yield velad


@contextmanager
def both(routers: TwoRouters) -> Iterator[tuple[Velad, Velad]]:
    a = Velad(routers.a.namespace, config("10.201.0.2", 1))
    b = Velad(routers.b.namespace, config("10.201.0.1", 2))
    with started_together(a, b):
        for velad in (a, b):
            await_circuits(velad)
        yield a, b


def kill_worker(velad: Velad, circuit: str) -> int:
    """Kill it and return its pid; it may be gone already."""
    pid = velad.worker_pid(circuit)
    os.kill(pid, signal.SIGKILL)
    return pid


def await_successor(velad: Velad, circuit: str, pid: int, timeout_s: float = 10.0) -> int:
    def successor() -> int:
        worker = velad.circuit(circuit)["worker"]
        return int(worker["pid"]) if worker and worker["pid"] not in (None, pid) else 0

    return eventually(successor, timeout_s, f"a successor of worker {pid}")


def shown(router: Router, name: str) -> Any:
    run = router.namespace.run
    link = json.loads(run("ip", "-j", "link", "show", "dev", name).stdout)[0]
    addresses = json.loads(run("ip", "-j", "address", "show", "dev", name).stdout)[0]["addr_info"]
    routes = [
        json.loads(run("ip", "-j", version, "route", "show", "dev", name).stdout)
        for version in ("-4", "-6")
    ]
    return link["ifindex"], link["flags"], link["address"], addresses, routes


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_worker_killed_under_traffic_is_replaced_within_50_ms(
    routers: TwoRouters, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outages_ms = []
    with both(routers) as (a, b):
        victim, router = (a, routers.a) if direction == "egress" else (b, routers.b)
        before = shown(router, "vela0")
        with (
            Capture(Interface(routers.b.namespace, "vela0")) as capture,
            Outlet(Interface(routers.b.namespace, "vela1")) as neighbour,
        ):
            with (
                Stream(Interface(routers.a.namespace, "vela0"), "vela0", 0.001) as stream,
                Stream(Interface(routers.a.namespace, "vela1"), "vela1", 0.001) as other,
            ):
                kills = []
                for _ in range(KILLS):
                    time.sleep(RAN_WELL_S)
                    pid = victim.worker_pid("vela0")
                    kills.append(time.time_ns())
                    os.kill(pid, signal.SIGKILL)
                    await_successor(victim, "vela0", pid)
                time.sleep(RAN_WELL_S)
            eventually(lambda: len(neighbour.frames()) >= other.sent, 10, "the neighbour's frames")
            capture.wait_for(
                lambda packet: arrived(packet) == ("vela0", stream.sent - 1), 10, "the last frame"
            )
            arrivals = [
                (packet.time_ns, found[1])
                for packet in capture.packets()
                if (found := arrived(packet))
            ]
            restarts = victim.circuit("vela0")["worker"]["restarts"]
            neighbour_restarts = victim.circuit("vela1")["worker"]["restarts"]
            after = shown(router, "vela0")

    times = [time_ns for time_ns, _ in arrivals]
    for killed in kills:
        # The longest silence that begins with the kill, or soon after it, as what was on
        # its way then still arrives; later ones are the machine's own.
        pauses = [
            (later - max(earlier, killed), later)
            for earlier, later in pairwise(times)
            if killed < later and earlier < killed + 100_000_000
        ]
        outages_ms.append((max(pauses)[1] - killed) / 1e6)
    numbers = [number for _, number in arrivals]
    missing = set(range(stream.sent)) - set(numbers)
    median, worst = statistics.median(outages_ms), max(outages_ms)
    with capsys.disabled():
        print(
            f"\n{direction}: forwards again {median:.1f} ms after the kill (median of {KILLS}; "
            f"worst {worst:.1f}), lost {len(missing)} of {stream.sent} frames"
        )
    assert median < RESTART_LIMIT_MS
    assert len(missing) <= KILLS * BATCH
    assert numbers == sorted(set(numbers))  # in order, and none twice
    assert neighbour.frames() == [("vela1", number) for number in range(other.sent)]
    assert (restarts, neighbour_restarts) == (KILLS, 0)
    assert after == before


def test_frames_sent_while_there_is_no_worker_arrive_up_to_the_queues_capacity(
    routers: TwoRouters,
) -> None:
    with both(routers) as (a, _), Outlet(Interface(routers.b.namespace, "vela0")) as outlet:
        # Killed too early time and again, it comes back ever later.
        for _ in range(4):
            await_successor(a, "vela0", kill_worker(a, "vela0"))
        last = kill_worker(a, "vela0")
        eventually(lambda: a.circuit("vela0")["worker"]["pid"] is None, 5, "no worker")

        with Injector(Interface(routers.a.namespace, "vela0")) as injector:
            for number in range(900):
                injector.send(numbered("waiting", number))
        waited = a.circuit("vela0")["worker"]["pid"] is None

        await_successor(a, "vela0", last)
        eventually(lambda: len(outlet.frames()) >= 900, 10, "900 frames")
    assert waited
    assert outlet.frames() == [("waiting", number) for number in range(900)]


def test_worker_that_is_stopped_is_replaced_only_where_frames_wait(
    routers: TwoRouters, capsys: pytest.CaptureFixture[str]
) -> None:
    for router in (routers.a, routers.b):
        router.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    text = config("10.201.0.2", 1).replace(', "fd00:16::1/64"', "")
    with (
        started(routers.a, text) as a,
        started(routers.b, text.replace("10.201.0.2", "10.201.0.1").replace(".1/30", ".2/30")),
        Outlet(Interface(routers.b.namespace, "vela0")) as outlet,
    ):
        idle, hung = a.worker_pid("vela1"), a.worker_pid("vela0")
        os.kill(idle, signal.SIGSTOP)
        os.kill(hung, signal.SIGSTOP)
        stopped_at = time.monotonic()
        with Stream(Interface(routers.a.namespace, "vela0"), "hung", 0.01) as stream:
            await_successor(a, "vela0", hung)
            took_s = time.monotonic() - stopped_at
        eventually(lambda: len(outlet.frames()) >= stream.sent - BATCH, 10, "the frames")
        eventually(lambda: ("hung", stream.sent - 1) in outlet.frames(), 10, "the last frame")
        neighbour = a.circuit("vela1")["worker"]
        os.kill(idle, signal.SIGCONT)
        with Injector(Interface(routers.a.namespace, "vela1")) as injector:
            injector.send(numbered("idle", 0))
        a.counted("vela1", tx_frames=1)

    with capsys.disabled():
        print(f"\nhung worker replaced after {took_s:.1f} s, {stream.sent} frames waited")
    assert len(outlet.frames()) >= stream.sent - BATCH
    assert 2 <= took_s < 6
    assert (neighbour["pid"], neighbour["restarts"]) == (idle, 0)
    assert "worker_hung" in a.log()


def test_worker_whose_underlay_is_blocked_is_left_alone(routers: TwoRouters) -> None:
    with both(routers) as (a, _):
        worker = a.worker_pid("vela0")
        # Hardly anything leaves, and all that waits stays charged to the sending socket.
        routers.a.namespace.run(
            *("tc", "qdisc", "replace", "dev", "eth0", "root"),
            *("tbf", "rate", "8kbit", "burst", "2kb", "limit", "100mb"),
        )
        with Injector(Interface(routers.a.namespace, "vela0")) as injector:
            for number in range(4000):
                injector.send(numbered("blocked", number, 1400))
            stalled_since = time.monotonic()
            progress = -1
            while time.monotonic() - stalled_since < 5.5:
                sent = a.circuit("vela0")["counters"]["tx_frames"]
                if sent != progress:
                    progress, stalled_since = sent, time.monotonic()
                time.sleep(0.1)
        after = a.circuit("vela0")["worker"]
        routers.a.underlay.clear_rate()

    assert 0 < progress < 4000
    assert (after["pid"], after["restarts"]) == (worker, 0)
    assert "worker_hung" not in a.log()


def test_supervisor_killed_leaves_nothing_and_another_starts_at_once(
    routers: TwoRouters, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        velad = stack.enter_context(started(routers.a, config("10.201.0.2", 1)))
        session = velad.pid
        # The supervisor, its helper for names, and two workers.
        assert len(running_members(session)) == 4

        velad.kill()
        killed_at = time.monotonic()

        eventually(lambda: not running_members(session), 1, "its processes to end", 0.002)
        eventually(lambda: interfaces(routers.a) == ["eth0", "lo"], 1, "its interfaces to go")
        took_ms = (time.monotonic() - killed_at) * 1000
        assert udp_sockets(routers.a) == ""
        assert velad.control_socket.exists()

        velad.start()
        velad.wait_for_state("vela0", "unmonitored")
        assert set(interfaces(routers.a)) == {"eth0", "lo", "vela0", "vela1"}

        # And with no time between.
        velad.kill()
        velad.start()
        velad.wait_for_state("vela1", "unmonitored")
    with capsys.disabled():
        print(f"\nnothing left {took_ms:.0f} ms after the supervisor was killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_velad_told_to_stop_ends_with_status_0_and_leaves_nothing(
    routers: TwoRouters, number: signal.Signals
) -> None:
    with started(routers.a, config("10.201.0.2", 1)) as velad:
        session = velad.pid
        process = velad.process
        assert process is not None
        with Stream(Interface(routers.a.namespace, "vela0"), "until", 0.001):
            process.send_signal(number)
            try:
                status = process.wait(10)
            except OSError as err:
                raise LabError("no end") from err
        velad.process = None

        assert status == 0
        assert running_members(session) == []
        assert interfaces(routers.a) == ["eth0", "lo"]
        assert udp_sockets(routers.a) == ""
        assert not velad.control_socket.exists()
        assert "Traceback" not in velad.log()


def test_worker_in_a_crash_loop_comes_back_ever_later_and_disturbs_no_other(
    routers: TwoRouters, capsys: pytest.CaptureFixture[str]
) -> None:
    with both(routers) as (a, _), Outlet(Interface(routers.b.namespace, "vela1")) as outlet:
        neighbour = a.worker_pid("vela1")
        pid = a.worker_pid("vela0")
        delays_s = []
        with Stream(Interface(routers.a.namespace, "vela1"), "vela1", 0.002) as stream:
            time.sleep(RAN_WELL_S)
            for _ in range(6):
                os.kill(pid, signal.SIGKILL)
                killed_at = time.monotonic()
                pid = await_successor(a, "vela0", pid)
                delays_s.append(time.monotonic() - killed_at)
        eventually(lambda: len(outlet.frames()) >= stream.sent, 10, "the neighbour's frames")
        worker = a.circuit("vela0")["worker"]
        still = a.circuit("vela1")["worker"]

    with capsys.disabled():
        print("\ncrash loop: back after " + ", ".join(f"{each:.2f}" for each in delays_s) + " s")
    *at_once, first, second, third = delays_s
    # Half a second doubled each time, give or take 20 %, and what it takes to look.
    assert max(at_once) < 0.4 <= first
    assert second >= 0.8
    assert 1.6 <= third < 4
    assert worker["restarts"] == 6
    assert (still["pid"], still["restarts"]) == (neighbour, 0)
    assert outlet.frames() == [("vela1", number) for number in range(stream.sent)]


def interfaces(router: Router) -> list[str]:
    lines = router.namespace.run("ip", "-o", "link", "show").stdout.splitlines()
    return sorted(line.split(":")[1].strip().partition("@")[0] for line in lines)


def udp_sockets(router: Router) -> str:
    return router.namespace.run("ss", "-uapnH").stdout
