"""What a circuit, its neighbours and the machine keep when processes of velad die or hang."""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from lab.capture import Capture
from lab.cpu import longest_wait_s, stolen_s, waited_s
from lab.daemon import Velad, started_together, waits_from_now
from lab.errors import LabError
from lab.frames import Outlet, arrived, await_operational, numbered
from lab.injector import Injector
from lab.link import Interface, tx_dropped
from lab.outage import Passage, passage
from lab.process import children, go_before_others, running
from lab.stream import Stream
from lab.topology import UNDERLAY, Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

KILLS = 5
ATTEMPTS = 4
# After a kill, before the next one.
SETTLED_S = 1.1
# supervisor/circuit/restart.py: a third death within ten seconds fails the circuit.
TWO_DEATHS_S = 10.1
RESTART_LIMIT_MS = 50
# The time after a kill that is looked at, and in which velad is left to its work.
QUIET_MS = 200
# Where a neighbour's frame is held up this long, it is not the kill that does it.
DISTURBED_MS = 10
MOST_KILLS = KILLS + 3
# How often is looked at what waits for a CPU.
LOOK_S = 0.01
# How old the frames in a worker's hands may be, on a machine that stands still now and then.
IN_HAND_MS = 500
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
def both(
    routers: TwoRouters, text: Callable[[str, int], str] = config, outer: str = "ipv4"
) -> Iterator[tuple[Velad, Velad]]:
    """velad on both; text(remote, number) is the configuration of the router with this number."""
    remotes = [each.ipv4 if outer == "ipv4" else each.ipv6 for each in (routers.b, routers.a)]
    a = Velad(routers.a.namespace, text(remotes[0], 1))
    b = Velad(routers.b.namespace, text(remotes[1], 2))
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


@dataclass(frozen=True, slots=True)
class Look:
    """How long, since a kill, whoever was to act was ready to run, and others ran.

    That is the supervisor until there is a new worker, and then the worker.
    """

    time_ns: int
    waited_ms: float


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker's death: when the signal was sent, and when it was over. Unix time, nanoseconds."""

    sent_ns: int
    dead_ns: int
    stolen_ms: int
    """What the hypervisor took from this machine, of all its CPUs, until it was looked at again."""
    looks: tuple[Look, ...]

    @property
    def until_ns(self) -> int:
        return self.sent_ns + QUIET_MS * 1_000_000

    def waited_ms(self, after_ms: float) -> float:
        """Return what is known of the wait for a CPU until so long after the kill."""
        at_ns = self.sent_ns + after_ms * 1e6
        later = (look for look in self.looks if look.time_ns >= at_ns)
        return next(later, self.looks[-1]).waited_ms


@dataclass(frozen=True, slots=True)
class Outage:
    """What a kill did to the circuit's frames, and in the same time to those of its neighbours."""

    victim_ms: float
    waited_ms: float
    """Of it, what whoever else ran took from supervisor and worker."""
    neighbours_ms: float
    unseen_ms: float
    """Of the victim's, what the sender may have hidden by not sending."""
    stolen_ms: int

    @property
    def own_ms(self) -> float:
        return max(0.0, self.victim_ms - self.waited_ms)

    @property
    def disturbance_ms(self) -> float:
        """How long the machine stood still, whoever was killed."""
        return max(self.neighbours_ms, self.unseen_ms, self.stolen_ms)

    def __str__(self) -> str:
        return (
            f"{self.victim_ms:.1f} (waited {self.waited_ms:.1f}, "
            f"neighbours {self.neighbours_ms:.1f}, unseen {self.unseen_ms:.1f}, "
            f"stolen {self.stolen_ms})"
        )


def kill_and_await_death(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)


def kill_and_look_away(velad: Velad, pid: int) -> Kill:
    """Kill a worker; meanwhile nobody asks velad for its status, which would keep it busy."""
    others = set(children(velad.pid))
    waited_before, stolen = waited_s(velad.pid), stolen_s()
    sent_ns = time.time_ns()
    kill_and_await_death(pid)
    dead_ns = time.time_ns()
    looks: list[Look] = []
    successors: set[int] = set()
    until_fork_s = 0.0
    while not looks or looks[-1].time_ns < sent_ns + QUIET_MS * 1_000_000:
        time.sleep(LOOK_S)
        if not successors:
            until_fork_s = waited_s(velad.pid) - waited_before
            successors = set(children(velad.pid)) - others
        since_fork_s = sum(longest_wait_s(each) for each in successors)
        looks.append(Look(time.time_ns(), (until_fork_s + since_fork_s) * 1000))
    return Kill(sent_ns, dead_ns, round((stolen_s() - stolen) * 1000), tuple(looks))


def neighbourly(remote: str, number: int) -> str:
    """Two circuits that share a CPU, vela0 and vela2, and one that need not, vela1."""
    cpu = min(os.sched_getaffinity(0))
    third = f'[circuits.vela2]\nid = 3\nremote = "{remote}"\nautoconfigure = false\ncpu = {cpu}\n'
    text = config(remote, number)
    return text.replace("[circuits.vela0]\n", f"[circuits.vela0]\ncpu = {cpu}\n") + third


CIRCUITS = ("vela0", "vela1", "vela2")


def await_turn(kills: list[Kill]) -> None:
    """Wait until one more kill is one that the worker is replaced after at once."""
    time.sleep(SETTLED_S)
    if len(kills) >= 2:
        time.sleep(max(0.0, TWO_DEATHS_S - (time.time_ns() - kills[-2].dead_ns) / 1e9))


@pytest.mark.alone
@pytest.mark.parametrize(("direction", "outer"), [("egress", "ipv4"), ("ingress", "ipv6")])
def test_worker_killed_under_traffic_is_replaced_within_50_ms(
    routers: TwoRouters, direction: str, outer: str, figure: Callable[[str], None]
) -> None:
    """Once more where the cable lost something, which then is not the workers' loss.

    A veth's ring has 256 places, and the kernel's own threads empty it: on a busy machine they
    wait for a CPU, too.
    """
    for attempt in range(ATTEMPTS):
        before = cable_losses(routers)
        try:
            kill_workers_under_traffic(routers, direction, outer, figure)
        except (AssertionError, LabError):
            if cable_losses(routers) == before or attempt == ATTEMPTS - 1:
                raise
        else:
            return


def cable_losses(routers: TwoRouters) -> int:
    """Return how many packets the cable between the routers has lost so far."""
    return sum(tx_dropped(each.namespace)[UNDERLAY] for each in (routers.a, routers.b))


def kill_workers_under_traffic(
    routers: TwoRouters, direction: str, outer: str, figure: Callable[[str], None]
) -> None:
    """A frame's outage is its arrival less the kill, or less its departure if that was later.

    Both as the kernel saw them on the TAPs. What supervisor and worker waited for a CPU in that
    time does not count. Where the machine itself stood still, which the neighbours' frames show,
    or the steal time, the kill is repeated.
    """
    kills: list[Kill] = []
    outages: list[Outage] = []

    def undisturbed() -> int:
        return sum(each.disturbance_ms <= DISTURBED_MS for each in outages)

    with both(routers, neighbourly, outer) as (a, b), ExitStack() as stack:
        go_before_others([*a.processes(), *b.processes()])
        victim, router = (a, routers.a) if direction == "egress" else (b, routers.b)
        before = shown(router, "vela0")
        went = {
            each: stack.enter_context(Capture(Interface(routers.a.namespace, each)))
            for each in CIRCUITS
        }
        came = {
            each: stack.enter_context(Capture(Interface(routers.b.namespace, each)))
            for each in CIRCUITS
        }

        def passages() -> dict[str, Passage]:
            # What has come is read first: it went before.
            arrivals = {each: came[each].packets() for each in CIRCUITS}
            return {each: passage(each, went[each].packets(), arrivals[each]) for each in CIRCUITS}

        with ExitStack() as sending:
            streams = {
                each: sending.enter_context(
                    Stream(Interface(routers.a.namespace, each), each, 0.001)
                )
                for each in CIRCUITS
            }
            pid = victim.worker_pid("vela0")
            while undisturbed() < KILLS and len(kills) < MOST_KILLS:
                await_turn(kills)
                kills.append(kill_and_look_away(victim, pid))
                pid = await_successor(victim, "vela0", pid)
                outages.append(outage(kills[-1], passages()))
        for each in CIRCUITS:
            last = (each, streams[each].sent - 1)
            came[each].wait_for(lambda packet, last=last: arrived(packet) == last, 10, str(last))  # type: ignore[misc]
        frames = passages()
        workers = [victim.circuit(each)["worker"]["restarts"] for each in CIRCUITS]
        after = shown(router, "vela0")

    # By what others did, not by what came of it.
    outages.sort(key=lambda each: each.disturbance_ms)
    judged, left_out = outages[:KILLS], outages[KILLS:]
    median = statistics.median(each.own_ms for each in judged)
    lost = lost_by(kills, frames["vela0"])
    figure(
        f"{direction}, {outer}: forwards again {median:.1f} ms after the kill, less what it "
        "waited for a CPU, the median of "
        f"{', '.join(map(str, judged))}; left out: {', '.join(map(str, left_out)) or 'none'}; "
        f"lost per kill: {', '.join(str(each or 'none') for each in lost)}, "
        f"of {streams['vela0'].sent} frames"
    )
    assert median < RESTART_LIMIT_MS
    for numbers in lost:
        # Of what the worker had in hand: one batch, in one piece.
        assert len(numbers) <= BATCH
        assert numbers == [] or numbers[-1] - numbers[0] == len(numbers) - 1
    for each in CIRCUITS:
        assert list(frames[each].departures) == list(range(streams[each].sent))
        assert list(frames[each].arrivals) == sorted(frames[each].arrivals)
    assert frames["vela1"].missing == frames["vela2"].missing == []
    assert workers == [len(kills), 0, 0]
    assert after == before


def outage(kill: Kill, frames: dict[str, Passage]) -> Outage:
    window = (kill.sent_ns, kill.until_ns)
    victim_ms = frames["vela0"].outage_ms(*window)
    return Outage(
        victim_ms=victim_ms,
        waited_ms=kill.waited_ms(victim_ms),
        neighbours_ms=max(frames[each].outage_ms(*window) for each in ("vela1", "vela2")),
        unseen_ms=frames["vela0"].unseen_ms(kill.sent_ns),
        stolen_ms=kill.stolen_ms,
    )


def lost_by(kills: list[Kill], frames: Passage) -> list[list[int]]:
    """Return for each kill the numbers of the frames that went with the worker.

    Those had departed before it was dead; that one which departed later, while
    there was no worker, is missing fails here.
    """
    deaths = [kill.dead_ns for kill in kills]
    lost: list[list[int]] = [[] for _ in kills]
    for number in frames.missing:
        departed_ns = frames.departures[number]
        index = bisect_left(deaths, departed_ns)
        assert index < len(kills), f"{number} is lost, and nobody was killed"
        late_ms = (kills[index].sent_ns - departed_ns) / 1e6
        assert late_ms < IN_HAND_MS, f"{number} is lost, {late_ms:.1f} ms before a kill"
        lost[index].append(number)
    return lost


def test_frames_sent_while_there_is_no_worker_arrive_up_to_the_queues_capacity(
    routers: TwoRouters,
) -> None:
    with both(routers) as (a, _), Outlet(Interface(routers.b.namespace, "vela0")) as outlet:
        worker = a.worker_pid("vela0")
        os.kill(a.pid, signal.SIGSTOP)
        try:
            kill_and_await_death(worker)
            with Injector(Interface(routers.a.namespace, "vela0")) as injector:
                for number in range(900):
                    injector.send(numbered("waiting", number))
            early = list(outlet.frames())
        finally:
            os.kill(a.pid, signal.SIGCONT)

        await_successor(a, "vela0", worker)
        eventually(lambda: len(outlet.frames()) >= 900, 10, "900 frames")
    assert early == []
    assert outlet.frames() == [("waiting", number) for number in range(900)]


def test_datagrams_that_come_while_there_is_no_worker_are_delivered_up_to_the_sockets_capacity(
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    """The socket holds at least what a link of 1 Gbit/s brings while a worker is replaced."""
    size, chunk = 1400, 250
    capacity = RESTART_LIMIT_MS * 1_000_000 // 8 // size
    for router in (routers.a, routers.b):
        router.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    text = config("10.201.0.2", 1).replace(', "fd00:16::1/64"', "")
    other = text.replace("10.201.0.2", "10.201.0.1").replace(".1/30", ".2/30")
    with (
        started(routers.a, text) as a,
        started(routers.b, other) as b,
        Outlet(Interface(routers.b.namespace, "vela0")) as outlet,
        Injector(Interface(routers.a.namespace, "vela0")) as injector,
    ):
        worker = b.worker_pid("vela0")
        already = a.circuit("vela0")["counters"]["tx_frames"]
        os.kill(b.pid, signal.SIGSTOP)
        try:
            kill_and_await_death(worker)
            for sent in range(0, 4 * capacity, chunk):
                for number in range(sent, sent + chunk):
                    injector.send(numbered("waiting", number, size))
                a.counted("vela0", tx_frames=already + sent + chunk)
            early = list(outlet.frames())
        finally:
            os.kill(b.pid, signal.SIGCONT)
        await_successor(b, "vela0", worker)

        def last() -> bool:
            # Behind all that waits; the first may find no room yet.
            injector.send(numbered("last", 0))
            return ("last", 0) in outlet.frames()

        eventually(last, 10, "the last frame")
        arrived = [number for mark, number in outlet.frames() if mark == "waiting"]

    kept = next((i for i, number in enumerate(arrived) if i != number), len(arrived))
    figure(f"while there was no worker, {kept} frames of {size} bytes waited in its socket")
    assert early == []
    assert capacity <= kept < sent + chunk  # the end of it was reached
    assert arrived == sorted(set(arrived))


def test_worker_that_is_stopped_is_replaced_only_where_frames_wait(
    routers: TwoRouters, figure: Callable[[str], None]
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
        stopped_at, waited_s = time.monotonic(), waits_from_now(a)
        with Stream(Interface(routers.a.namespace, "vela0"), "hung", 0.01) as stream:
            await_successor(a, "vela0", hung)
            took_s = time.monotonic() - stopped_at
            of_others_s = waited_s()
        eventually(lambda: len(outlet.frames()) >= stream.sent - BATCH, 10, "the frames")
        eventually(lambda: ("hung", stream.sent - 1) in outlet.frames(), 10, "the last frame")
        neighbour = a.circuit("vela1")["worker"]
        os.kill(idle, signal.SIGCONT)
        with Injector(Interface(routers.a.namespace, "vela1")) as injector:
            injector.send(numbered("idle", 0))
        a.counted("vela1", tx_frames=1)

    figure(f"hung worker replaced after {took_s:.1f} s, {stream.sent} frames waited")
    assert len(outlet.frames()) >= stream.sent - BATCH
    assert took_s >= 2
    assert took_s - of_others_s < 10
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
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    with ExitStack() as stack:
        velad = stack.enter_context(started(routers.a, config("10.201.0.2", 1)))
        # The supervisor, its helper for names, and two workers.
        processes = velad.processes()
        assert len(processes) == 4

        velad.kill()
        killed_at = time.monotonic()

        eventually(lambda: not running(processes), 10, "its processes to end", 0.002)
        eventually(lambda: interfaces(routers.a) == ["eth0", "lo"], 10, "its interfaces to go")
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
    figure(f"nothing left {took_ms:.0f} ms after the supervisor was killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_velad_told_to_stop_ends_with_status_0_and_leaves_nothing(
    routers: TwoRouters, number: signal.Signals
) -> None:
    with started(routers.a, config("10.201.0.2", 1)) as velad:
        processes = velad.processes()
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
        assert running(processes) == []
        assert interfaces(routers.a) == ["eth0", "lo"]
        assert udp_sockets(routers.a) == ""
        assert not velad.control_socket.exists()
        assert "Traceback" not in velad.log()


def test_worker_in_a_crash_loop_comes_back_ever_later_and_costs_no_other_circuit_anything(
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    with both(routers) as (a, _), Outlet(Interface(routers.b.namespace, "vela1")) as outlet:
        neighbour = a.worker_pid("vela1")
        pid = a.worker_pid("vela0")
        delays_s = []
        with Stream(Interface(routers.a.namespace, "vela1"), "vela1", 0.002) as stream:
            for _ in range(5):
                os.kill(pid, signal.SIGKILL)
                killed_at = time.monotonic()
                pid = await_successor(a, "vela0", pid)
                delays_s.append(time.monotonic() - killed_at)
        eventually(lambda: len(outlet.frames()) >= stream.sent, 10, "the neighbour's frames")
        worker = a.circuit("vela0")["worker"]
        still = a.circuit("vela1")["worker"]

    figure("crash loop: back after " + ", ".join(f"{each:.2f}" for each in delays_s) + " s")
    *at_once, first, second, third = delays_s
    # Half a second doubled each time, up to a fifth less, and the second that proves it.
    assert max(at_once) < 1.4 <= first
    assert second >= 1.8
    assert third >= 2.6
    assert worker["restarts"] == 5
    assert (still["pid"], still["restarts"]) == (neighbour, 0)
    assert outlet.frames() == [("vela1", number) for number in range(stream.sent)]


def interfaces(router: Router) -> list[str]:
    lines = router.namespace.run("ip", "-o", "link", "show").stdout.splitlines()
    return sorted(line.split(":")[1].strip().partition("@")[0] for line in lines)


def udp_sockets(router: Router) -> str:
    return router.namespace.run("ss", "-uapnH").stdout
