"""What both ends show while a circuit's workers die again and again, and how it recovers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from lab import autoconfigured
from lab.autoconfigured import asking, policy
from lab.circuit import ADDRESSES_B, NAME, static_circuit
from lab.daemon import Velad
from lab.frames import await_operational
from lab.link import Interface
from lab.load import ping
from lab.program import COMPILER
from lab.stream import Stream
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

NOT_SUPPORTED = "Operation not supported"
KILLED = "worker: killed by SIGKILL"
# The longest delay, the proof, and what a busy machine takes for a worker and a handshake.
RECOVERY_S = 10 + 10
LONGEST_DELAY_S = 10.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "failing_calls.so"
    source = Path(__file__).with_name("failing_calls.c")
    subprocess.run(
        [*COMPILER, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"], check=True
    )
    return path


@dataclass(frozen=True)
class End:
    """One router's velad, and the circuit's interface there."""

    router: Router
    velad: Velad

    @property
    def interface(self) -> Interface:
        return Interface(self.router.namespace, NAME)

    def shows(self, *states: str, carrier: bool, reason: str = "") -> bool:
        entry = self.velad.circuit(NAME)
        return (
            entry["state"] in states
            and entry["reason"] == reason
            and self.interface.carrier is carrier
        )

    def delays(self) -> list[str]:
        """Return how long each next worker was waited for, in s."""
        return self.velad.logged("worker_exited", "restart_in_s")


# As failing_calls.c numbers them.
BITS = {"preadv2": 1, "recvmsg": 2, "setresuid": 4}


class Calls:
    """Makes calls of the workers of each velad that starts inside fail, or not."""

    def __init__(self, library: Path, path: Path) -> None:
        self._library, self._path = library, path
        self._failing = 0
        path.write_bytes(b"\0")

    @contextmanager
    def preloaded(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(self._library))
            patch.setenv("FAILING_CALLS", str(self._path))
            yield

    def fail(self, call: str) -> None:
        self._set(self._failing | BITS[call])

    def succeed(self, call: str) -> None:
        self._set(self._failing & ~BITS[call])

    def _set(self, failing: int) -> None:
        self._failing = failing
        # In place: velad has it mapped.
        with self._path.open("r+b") as file:
            file.write(bytes((failing,)))


@pytest.fixture
def calls(library: Path, tmp_path: Path) -> Calls:
    return Calls(library, tmp_path / "failing-calls")


@contextmanager
def negotiated(
    routers: TwoRouters, calls: Calls, engine: str = "auto"
) -> Iterator[tuple[End, End]]:
    """A circuit that A asks B for, as soon as it is up; calls fail on A alone."""
    daemon = f'[daemon]\nengine = "{engine}"\n'
    with ExitStack() as stack:
        b = stack.enter_context(Velad(routers.b.namespace, policy(), name="b"))
        with calls.preloaded():
            config = daemon + asking(routers.b.ipv4)
            a = stack.enter_context(Velad(routers.a.namespace, config, name="a"))
        ends = End(routers.a, a), End(routers.b, b)
        await_up(*ends)
        yield ends


def await_up(*ends: End) -> None:
    for end in ends:
        eventually(
            lambda end=end: end.shows("up", "unmonitored", carrier=True),  # type: ignore[misc]
            RECOVERY_S,
            f"the circuit to be up on {end.velad.name}",
        )


def is_told(other: End, reason: str) -> bool:
    """Return whether the end whose workers live is down, with carrier off and the reason."""
    return other.shows("rejected", carrier=False, reason=f"on the other end, {reason}")


def kill_worker(end: End) -> int:
    pid = end.velad.worker_pid(NAME)
    # One whose calls fail may have ended by itself.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def kill_twice(end: End) -> None:
    """Kill two workers, and see that they are replaced at once."""
    for _ in range(2):
        killed = kill_worker(end)
        eventually(
            lambda killed=killed: end.velad.circuit(NAME)["worker"]["pid"] not in (None, killed),  # type: ignore[misc]
            5,
            "a successor",
        )


def others(end: End) -> set[int]:
    """Return the supervisor, and what it has for children besides the circuit's worker."""
    return {*end.velad.processes()} - {end.velad.worker_pid(NAME)}


def while_killing(end: End, spared: set[int], predicate: Callable[[], bool], what: str) -> None:
    """Wait for predicate; meanwhile kill each worker, also those that the status does not show."""

    def killed() -> bool:
        for pid in {*end.velad.processes()} - spared:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return predicate()

    eventually(killed, RECOVERY_S, what)


def passes(a: End) -> bool:
    return ping(a.router.namespace, ADDRESSES_B[0].partition("/")[0]).lost == 0


@pytest.mark.parametrize("engine", ["native", "python"])
def test_worker_that_cannot_receive_fails_the_circuit_on_both_ends_until_it_can(
    routers: TwoRouters, calls: Calls, engine: str
) -> None:
    """This one dies before any frame comes, so the circuit does not recover between the tries."""
    reason = f"worker: ingress: {NOT_SUPPORTED}"
    with negotiated(routers, calls, engine) as (a, b):
        calls.fail("recvmsg")
        kill_worker(a)
        eventually(lambda: a.shows("failed", carrier=False, reason=reason), 10, "A to be failed")
        came_up = [end.velad.logged("circuit_state_changed", "state").count("up") for end in (a, b)]
        eventually(lambda: is_told(b, reason), 10, "B to be told")
        listed = a.velad.control("status").stdout
        entry = a.velad.circuit(NAME)
        tries = len(a.delays())
        eventually(lambda: len(a.delays()) >= tries + 2, 20, "tries")
        assert a.shows("failed", carrier=False, reason=reason)
        assert came_up == [
            end.velad.logged("circuit_state_changed", "state").count("up") for end in (a, b)
        ]

        calls.succeed("recvmsg")
        await_up(a, b)
        assert passes(a)
        delays_s = [float(each) for each in a.delays()]

    assert re.search(rf"^{NAME} .* failed ", listed, re.MULTILINE)
    assert f"{NAME}: {reason}" in listed.splitlines()
    assert entry["worker"]["pid"] is None
    assert entry["worker"]["restarts"] >= 3
    assert delays_s[:2] == [0.0, 0.0]
    assert 0 < delays_s[2] < 1
    assert max(delays_s) <= LONGEST_DELAY_S


@pytest.mark.parametrize("engine", ["native", "python"])
def test_worker_that_cannot_send_fails_the_circuit_with_the_first_frame_until_it_can(
    routers: TwoRouters, calls: Calls, engine: str
) -> None:
    """Without frames this one lives: the circuit recovers at each try, and fails with a frame."""
    reason = f"worker: egress: {NOT_SUPPORTED}"
    with negotiated(routers, calls, engine) as (a, b):
        calls.fail("preadv2")
        with Stream(a.interface, "vela0", 0.01):
            eventually(lambda: a.shows("failed", carrier=False, reason=reason), 10, "A to fail")
            eventually(lambda: is_told(b, reason), 10, "B to be told")
            # One death is enough where a circuit has just recovered, and the delays go on.
            eventually(
                lambda: len(a.delays()) >= 6,
                30,
                "further tries",
            )
        delays_s = [float(each) for each in a.delays()]

        calls.succeed("preadv2")
        await_up(a, b)
        assert passes(a)

    assert delays_s[:2] == [0.0, 0.0]
    assert all(one < other for one, other in pairwise(delays_s[2:6]))


def test_worker_that_cannot_start_fails_the_circuit_until_it_can(
    routers: TwoRouters, calls: Calls
) -> None:
    reason = "worker: start: Resource temporarily unavailable"
    with negotiated(routers, calls) as (a, b):
        calls.fail("setresuid")
        kill_worker(a)
        eventually(lambda: a.shows("failed", carrier=False, reason=reason), 10, "A to be failed")
        eventually(lambda: is_told(b, reason), 10, "B to be told")

        calls.succeed("setresuid")
        await_up(a, b)
        assert passes(a)


@pytest.mark.parametrize("victim", ["configured", "autoconfigured"])
def test_worker_killed_three_times_fails_the_circuit_on_both_ends_until_one_lives(
    routers: TwoRouters, victim: str
) -> None:
    with autoconfigured.circuit(routers) as both:
        a, b = End(routers.a, both.a), End(routers.b, both.b)
        failing, other = (a, b) if victim == "configured" else (b, a)
        spared = others(failing)
        kill_twice(failing)
        assert failing.shows("up", carrier=True)
        assert "circuit_broken" not in failing.velad.log()
        kill_worker(failing)

        while_killing(
            failing,
            spared,
            lambda: (
                failing.shows("failed", carrier=False, reason=KILLED) and is_told(other, KILLED)
            ),
            "both ends to show the failure",
        )

        await_up(a, b)
        assert passes(a)


@pytest.fixture
def static_ends(routers: TwoRouters) -> Iterator[tuple[End, End]]:
    with static_circuit(routers) as circuit:
        ends = End(routers.a, circuit.a.velad), End(routers.b, circuit.b.velad)
        await_up(*ends)
        yield ends


def test_worker_of_a_static_circuit_killed_three_times_fails_it_until_one_lives(
    static_ends: tuple[End, End],
) -> None:
    a, b = static_ends
    spared = others(a)
    kill_twice(a)
    assert a.shows("unmonitored", carrier=True)
    kill_worker(a)

    while_killing(a, spared, lambda: a.shows("failed", carrier=False, reason=KILLED), "the failure")
    assert b.shows("unmonitored", carrier=True)

    await_up(a)
    await_operational(a.interface)
    assert passes(a)


def test_failed_circuit_taken_down_is_disabled_and_begins_anew_when_it_is_taken_up(
    static_ends: tuple[End, End],
) -> None:
    a, _ = static_ends
    spared = others(a)
    kill_twice(a)
    kill_worker(a)
    while_killing(a, spared, lambda: a.shows("failed", carrier=False, reason=KILLED), "the failure")

    a.velad.control("down", NAME)
    assert a.shows("disabled", carrier=False)
    a.velad.control("up", NAME)
    eventually(lambda: a.shows("unmonitored", carrier=True), 10, "the circuit")
    kill_twice(a)
    assert a.shows("unmonitored", carrier=True)
