"""What comes back by itself: after either velad was killed or stopped, after the way was cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from lab.daemon import Velad
from lab.link import Interface
from lab.load import ping
from lab.stream import Stream
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

KILLS = 10
BACK_WITHIN_S = 2.0
KEEPALIVE_S = 1.0
CUT_S = 30.0

CONFIG_A = """
[circuits.vela0]
id = 1
remote = "10.201.0.2"
addresses = ["172.16.16.1/30"]
[circuits.vela0.peer]
addresses = ["172.16.16.2/30"]
"""
CONFIG_B = """
[autoconfigure]
from = ["10.201.0.0/24"]
networks = ["172.16.16.0/30"]
"""


@dataclass(frozen=True)
class End:
    router: Router
    velad: Velad

    @property
    def interface(self) -> Interface:
        return Interface(self.router.namespace, "vela0")

    def is_up(self) -> bool:
        circuits = self.velad.status()["circuits"]
        return [each["state"] for each in circuits] == ["up"] and self.interface.carrier


@contextmanager
def circuit(routers: TwoRouters, settings: str = "") -> Iterator[tuple[End, End]]:
    """A circuit that A is configured for, and B is not, as soon as it is up."""
    config_a = CONFIG_A.replace("id = 1\n", f"id = 1\n{settings}")
    with (
        Velad(routers.b.namespace, CONFIG_B, name="b") as b,
        Velad(routers.a.namespace, config_a, name="a") as a,
    ):
        ends = End(routers.a, a), End(routers.b, b)
        await_up(*ends)
        yield ends


def await_up(*ends: End) -> None:
    for end in ends:
        eventually(end.is_up, 15, f"the circuit to be up on {end.velad.name}")


def seconds_until_up(since: float, *ends: End) -> float:
    await_up(*ends)
    return time.monotonic() - since


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", ["configured", "autoconfigured"])
def test_velad_killed_under_traffic_time_and_again_has_its_circuit_back_within_2_s(
    routers: TwoRouters, killed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with circuit(routers) as (a, b):
        victim, other = (a, b) if killed == "configured" else (b, a)
        took_s = []
        with Stream(other.interface, "traffic", 0.002) as stream:
            for _ in range(KILLS):
                victim.velad.kill()
                started_at = time.monotonic()
                victim.velad.start()
                took_s.append(seconds_until_up(started_at, victim, other))
                assert ping(routers.a.namespace, "172.16.16.2").lost == 0
        assert len(other.velad.status()["circuits"]) == 1
        assert stream.sent > 1000
    with capsys.disabled():
        shown = ", ".join(f"{each:.2f}" for each in took_s)
        print(f"\n{killed} side killed: up again {shown} s after the new start")
    assert max(took_s) < BACK_WITHIN_S


@pytest.mark.parametrize("stopped", ["configured", "autoconfigured"])
def test_velad_told_to_stop_takes_the_other_end_down_at_once_and_both_come_back(
    routers: TwoRouters, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with circuit(routers) as (a, b):
        victim, other = (a, b) if stopped == "configured" else (b, a)
        stopped_at = time.monotonic()
        assert victim.velad.stop() == 0
        entry = other.velad.wait_for_state("vela0", "down", timeout_s=5)
        down_s = time.monotonic() - stopped_at
        carrier = other.interface.carrier

        started_at = time.monotonic()
        victim.velad.start()
        up_s = seconds_until_up(started_at, victim, other)
        pings = ping(routers.a.namespace, "172.16.16.2")
    with capsys.disabled():
        print(f"\n{stopped} side stopped: down there {down_s:.2f} s later, back in {up_s:.2f} s")
    assert down_s < 1.0
    assert entry["reason"] == "the other end is stopping"
    assert not carrier
    assert up_s < BACK_WITHIN_S
    assert pings.lost == 0


def cut(router: Router, *hooks: str) -> None:
    """Drop what comes in (input) or goes out (output) of the control and data port."""
    run = router.namespace.run
    run("nft", "add", "table", "inet", "cut")
    for hook in hooks:
        chain = ("inet", "cut", hook)
        run("nft", "add", "chain", *chain, "{", "type", "filter", "hook", hook, *PRIORITY)
        run("nft", "add", "rule", *chain, "udp", "dport", "48621", "drop")


PRIORITY = ("priority", "0", ";", "}")


def mend(router: Router) -> None:
    router.namespace.run("nft", "delete", "table", "inet", "cut")


@pytest.mark.parametrize(
    ("hooks", "lasts_s"),
    [(("input", "output"), CUT_S), (("output",), 0.0), (("input",), 0.0)],
    ids=["both ways for 30 s", "from A to B", "from B to A"],
)
def test_circuit_whose_underlay_is_cut_is_down_within_four_keepalives_and_comes_back(
    routers: TwoRouters,
    hooks: tuple[str, ...],
    lasts_s: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with circuit(routers, f"keepalive = {KEEPALIVE_S}\n") as ends:
        cut_at = time.monotonic()
        cut(routers.a, *hooks)
        down_s: dict[str, float] = {}
        while len(down_s) < len(ends) and time.monotonic() < cut_at + 10 * KEEPALIVE_S:
            for end in ends:
                if end.velad.name not in down_s and not end.interface.carrier:
                    down_s[end.velad.name] = time.monotonic() - cut_at
            time.sleep(0.01)
        reasons = [end.velad.wait_for_state("vela0", "down")["reason"] for end in ends]
        time.sleep(max(0.0, cut_at + lasts_s - time.monotonic()))
        carriers = [end.interface.carrier for end in ends]

        mend(routers.a)
        up_s = seconds_until_up(time.monotonic(), *ends)
        pings = ping(routers.a.namespace, "172.16.16.2")
    with capsys.disabled():
        shown = ", ".join(f"{name} {each:.2f} s" for name, each in sorted(down_s.items()))
        print(f"\ncut ({' and '.join(hooks)} at A): down on {shown}; back in {up_s:.2f} s")
    assert sorted(down_s) == ["a", "b"]
    assert max(down_s.values()) < 4 * KEEPALIVE_S
    assert all(reasons)
    assert carriers == [False, False]
    assert up_s < BACK_WITHIN_S
    assert pings.lost == 0
