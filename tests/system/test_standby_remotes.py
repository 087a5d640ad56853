"""Standby remotes on three routers: when the primary dies, when it is back, and on command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import asking, policy
from lab.circuit import ADDRESSES_B, NAME
from lab.daemon import Velad, waits_from_now
from lab.link import Interface
from lab.load import ping
from lab.namespace import Namespace
from lab.running_ping import pinging
from lab.topology import ThreeRouters, three_routers
from lab.waiting import eventually
from vela.supervisor.circuit.standby import DOUBT_S, GOOD_S

pytestmark = [pytest.mark.needs_net_admin, pytest.mark.timeout(300)]

B, C = "10.201.0.2", "10.201.0.3"
INNER = ADDRESSES_B[0].partition("/")[0]
KEEPALIVE_S = 1.0
# A session and a worker take 0.1 s. The kernel's first ARP request often goes while one of the
# ends has no carrier, and it repeats it each second.
SWITCHED_WITHIN_S = 3.0
# After three keepalives that are missed.
TAKEN_WITHIN_S = 3.5 * KEEPALIVE_S + SWITCHED_WITHIN_S


@dataclass(frozen=True)
class Bench:
    routers: ThreeRouters
    a: Velad
    b: Velad
    c: Velad

    def await_remote(self, remote: str, timeout_s: float) -> dict[str, Any]:
        """Return the circuit's entry as soon as it is up there."""

        def there(status: dict[str, Any]) -> bool:
            (entry,) = status["circuits"]
            return (entry["state"], entry["remote"]) == ("up", remote)

        (entry,) = self.a.wait_for(there, timeout_s, f"the circuit to be up on {remote}")[
            "circuits"
        ]
        found: dict[str, Any] = entry
        return found


def _index(namespace: Namespace) -> int:
    return int(namespace.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout)


@contextmanager
def started(allowed: str, **settings: Any) -> Iterator[Bench]:
    """A circuit from A with B for a primary and C for a standby, up on B."""
    with three_routers() as routers:
        config_a = policy() + asking([B, C], keepalive=KEEPALIVE_S, **settings)
        with (
            Velad(routers.b.namespace, allowed, name="b") as b,
            Velad(routers.c.namespace, allowed, name="c") as c,
            Velad(routers.a.namespace, config_a, name="a") as a,
        ):
            made = Bench(routers, a, b, c)
            made.await_remote(B, 10)
            yield made


@pytest.fixture
def bench() -> Iterator[Bench]:
    with started(policy()) as made:
        yield made


def test_standby_takes_over_from_a_primary_that_dies_and_gives_back_when_it_is_there_again(
    bench: Bench, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    namespace = bench.routers.a.namespace
    index = _index(namespace)
    with pinging(namespace, INNER, tmp_path) as pings:
        killed_at, waited_s = time.time(), waits_from_now(bench.a, bench.c)
        bench.b.kill()
        entry = bench.await_remote(C, 15)
        pings.await_reply(time.time())
        taken_s, lost = pings.outage(killed_at)
        taken_s -= waited_s()
        assert entry["reason"].startswith(f"{C} stands in for {B}: ")
        assert [each["state"] for each in entry["remotes"]] == ["lost", "up"]

        back_at = time.time()
        bench.b.start()
        bench.await_remote(B, GOOD_S + 15)
        returned_at = time.time()
        pings.await_reply(returned_at)
        back_s, back_lost = pings.outage(back_at)
    figure(
        f"primary killed, keepalive {KEEPALIVE_S:g} s: {taken_s:.2f} s without replies, {lost} of "
        f"pings each 10 ms lost; given back {returned_at - back_at:.0f} s after its start: "
        f"{back_s:.2f} s, {back_lost} lost"
    )
    assert taken_s < TAKEN_WITHIN_S
    assert returned_at - back_at >= GOOD_S
    assert back_s - waited_s() < SWITCHED_WITHIN_S
    assert _index(namespace) == index
    assert Interface(namespace, NAME).carrier
    # The standby keeps its end, and knows why it is not up.
    there = bench.c.wait_for_state(NAME, "down")
    assert eventually(
        lambda: "this end stands by" in bench.c.circuit(NAME)["reason"], 15, "the reason on C"
    ), there


def test_switch_moves_the_circuit_at_once_and_back(
    bench: Bench, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    namespace = bench.routers.a.namespace
    index, figures = _index(namespace), []
    with pinging(namespace, INNER, tmp_path) as pings:
        for target, command in ((C, ("switch", NAME)), (B, ("switch", NAME, B))):
            at, waited_s = time.time(), waits_from_now(bench.a, bench.b, bench.c)
            bench.a.control(*command)
            entry = bench.a.circuit(NAME)
            assert (entry["state"], entry["remote"]) == ("up", target)
            pings.await_reply(time.time())
            seconds, lost = pings.outage(at)
            figures.append(f"to {target} {seconds:.2f} s, {lost} lost")
            assert seconds - waited_s() < SWITCHED_WITHIN_S
    figure(f"velactl switch under pings each 10 ms: {'; '.join(figures)}")
    assert _index(namespace) == index


def test_encrypted_circuit_moves_and_is_given_back(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("k" * 40)
    encrypted = {"encryption": "required", "key_file": str(key)}
    with started(policy(**encrypted), **encrypted) as bench:
        bench.b.kill()
        assert bench.await_remote(C, 15)["cipher"] is not None
        bench.b.start()
        assert bench.await_remote(B, GOOD_S + 15)["cipher"] is not None
        assert ping(bench.routers.a.namespace, INNER).lost == 0


def test_switch_to_a_dead_remote_says_so_and_the_circuit_comes_back(bench: Bench) -> None:
    bench.c.kill()

    done = bench.a.control("switch", NAME, C, check=False)

    assert done.returncode == 3
    assert f"{NAME} is up, but not there: " in done.stderr or "but is not up" in done.stderr
    bench.await_remote(B, DOUBT_S + 5)


def test_both_remotes_dead_are_both_named(bench: Bench) -> None:
    bench.c.kill()
    bench.b.kill()

    def named() -> bool:
        entry = bench.a.circuit(NAME)
        reason = entry["reason"]
        return entry["state"] != "up" and f"{B}: " in reason and f"{C}: no answer from" in reason

    eventually(named, 20, "a reason that names both")
    assert not Interface(bench.routers.a.namespace, NAME).carrier
    bench.c.start()
    bench.await_remote(C, 2 * DOUBT_S + 5)


def test_list_of_velactl_add_outlives_a_restart() -> None:
    with (
        three_routers() as routers,
        Velad(routers.c.namespace, policy(), name="c") as _,
        Velad(routers.a.namespace, "", name="a") as a,
    ):
        done = a.control(
            *("add", NAME, "--remote", B, "--remote", C),
            *("--address", "172.16.16.1/30", "--peer-address", ADDRESSES_B[0]),
        )
        assert done.stdout.splitlines()[0] == f"{NAME}: id 1, toward {B}, {C}"
        before = a.circuit(NAME)
        assert (before["state"], before["remote"]) == ("up", C)

        assert a.stop() == 0
        a.start()

        entry = a.wait_for_state(NAME, "up", timeout_s=DOUBT_S + 10)
        assert entry["remote"] == C
        assert [each["name"] for each in entry["remotes"]] == [B, C]


def test_velad_that_is_replaced_hands_over_which_remote_is_in_use(
    bench: Bench, tmp_path: Path
) -> None:
    namespace = bench.routers.a.namespace
    bench.a.control("switch", NAME, C)
    bench.c.wait_for_state(NAME, "up")
    flaps = bench.c.circuit(NAME)["transitions"]
    with pinging(namespace, INNER, tmp_path) as pings:
        at = time.time()
        bench.a.replace()
        entry = bench.await_remote(C, 10)
        pings.await_reply(time.time())
        _, lost = pings.outage(at)
    assert lost == 0
    assert "as a command says" in entry["reason"]
    assert bench.c.circuit(NAME)["transitions"] == flaps


def test_velad_that_has_replaced_another_one_gives_the_circuit_back_to_the_primary(
    bench: Bench,
) -> None:
    bench.b.kill()
    bench.await_remote(C, 15)
    bench.c.wait_for_state(NAME, "up")
    flaps = bench.c.circuit(NAME)["transitions"]
    bench.a.replace()
    assert bench.await_remote(C, 10)["reason"].startswith(f"{C} stands in for {B}")
    assert bench.c.circuit(NAME)["transitions"] == flaps
    bench.b.start()
    bench.await_remote(B, GOOD_S + 15)
