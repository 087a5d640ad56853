"""What comes back by itself: after either velad was killed or stopped, after the way was cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from lab.daemon import Velad, waits_from_now
from lab.link import Interface
from lab.load import ping
from lab.stream import Stream
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

KILLS = 10
BACK_WITHIN_S = 2.0
# Three in vain take 3.5 of the four intervals; the rest is what a machine may stand still.
KEEPALIVE_S = 2.0
CUT_S = 30.0

CONFIG_A = """
[circuits.vela0]
id = 1
remote = "{remote}"
addresses = ["172.16.16.1/30"]
[circuits.vela0.peer]
addresses = ["172.16.16.2/30"]
"""
CONFIG_B = """
[autoconfigure]
from = ["10.201.0.0/24", "fd00:201::/64"]
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
def circuit(
    routers: TwoRouters, settings: str = "", outer: str = "ipv4"
) -> Iterator[tuple[End, End]]:
    """A circuit that A is configured for, and B is not, as soon as it is up."""
    remote = routers.b.ipv4 if outer == "ipv4" else routers.b.ipv6
    config_a = CONFIG_A.replace("{remote}", remote).replace("id = 1\n", f"id = 1\n{settings}")
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


def up_at(since: float, *ends: End) -> float:
    """Return when the circuit came up on the last of the ends, as their logs say; Unix times.

    It is up there, with carrier, when this returns.
    """
    at = max(
        end.velad.logged_at("circuit_state_changed", since, circuit="vela0", state="up")
        for end in ends
    )
    await_up(*ends)
    return at


def down_at(since: float, end: End) -> float:
    """Return when the circuit went down, as the end's log says; its carrier was off with it.

    Not by netlink: of a carrier that goes, the kernel tells up to a second
    later (net/core/link_watch.c).
    """
    at = end.velad.logged_at("circuit_state_changed", since, circuit="vela0", state="down")
    if end.interface.carrier:
        eventually(lambda: not end.interface.carrier, 10, "its carrier to go")
        return time.time()
    return at


@dataclass(frozen=True, slots=True)
class Return:
    """How long it took until both ends were up again, less what they waited for a CPU."""

    since_launch_s: float
    """With what the interpreter takes to start, which is the machine's."""
    since_start_s: float
    """From when the new velad began to work."""

    def __str__(self) -> str:
        return f"{self.since_launch_s:.2f} ({self.since_start_s:.3f})"


def start_again(victim: End, other: End) -> Return:
    both = victim.velad, other.velad
    launched_at, since_launch_s = time.time(), waits_from_now(*both)
    victim.velad.start()
    since_start_s = waits_from_now(*both)
    started_at = victim.velad.logged_at("daemon_started", launched_at)
    back_at = up_at(launched_at, victim, other)
    return Return(
        max(0.0, back_at - launched_at - since_launch_s()),
        max(0.0, back_at - started_at - since_start_s()),
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("killed", "outer", "kills"),
    [
        ("configured", "ipv4", KILLS),
        ("autoconfigured", "ipv4", KILLS),
        ("autoconfigured", "ipv6", 3),
    ],
)
def test_velad_killed_under_traffic_time_and_again_has_its_circuit_back_within_2_s(
    routers: TwoRouters, killed: str, outer: str, kills: int, figure: Callable[[str], None]
) -> None:
    with circuit(routers, outer=outer) as (a, b):
        victim, other = (a, b) if killed == "configured" else (b, a)
        returns = []
        with Stream(other.interface, "traffic", 0.002) as stream:
            for _ in range(kills):
                victim.velad.kill()
                returns.append(start_again(victim, other))
                assert ping(routers.a.namespace, "172.16.16.2").lost == 0
        assert len(other.velad.status()["circuits"]) == 1
        assert stream.sent > 100 * kills
    figure(
        f"{killed} side killed, {outer}: up again {', '.join(map(str, returns))} s "
        "after its launch (its start)"
    )
    assert max(each.since_start_s for each in returns) < BACK_WITHIN_S
    assert min(each.since_launch_s for each in returns) < BACK_WITHIN_S


@pytest.mark.parametrize("stopped", ["configured", "autoconfigured"])
def test_velad_told_to_stop_takes_the_other_end_down_at_once_and_both_come_back(
    routers: TwoRouters, stopped: str, figure: Callable[[str], None]
) -> None:
    with circuit(routers) as (a, b):
        victim, other = (a, b) if stopped == "configured" else (b, a)
        stopped_at, waited_s = time.time(), waits_from_now(other.velad)
        assert victim.velad.stop() == 0
        gone_at = victim.velad.logged_at("daemon_stopped", stopped_at)
        down_s = down_at(stopped_at, other) - gone_at - waited_s()
        entry = other.velad.wait_for_state("vela0", "down")

        back = start_again(victim, other)
        pings = ping(routers.a.namespace, "172.16.16.2")
    figure(f"{stopped} side stopped: down there {down_s:.2f} s after its end, back in {back} s")
    assert down_s < 1.0
    assert entry["reason"] == "the other end is stopping"
    assert back.since_start_s < BACK_WITHIN_S
    assert pings.lost == 0


def cut(router: Router, *hooks: str) -> None:
    """Drop what comes in (input) or goes out (output) of the control and data port, at once."""
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; udp dport 48621 drop; }}\n"
        for hook in hooks
    )
    router.namespace.run("nft", "-f", "-", stdin=f"table inet cut {{\n{chains}}}\n")


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
    figure: Callable[[str], None],
) -> None:
    with circuit(routers, f"keepalive = {KEEPALIVE_S}\n") as ends:
        cut_at, waited_s = time.time(), waits_from_now(*(end.velad for end in ends))
        cut(routers.a, *hooks)
        down_s = {end.velad.name: down_at(cut_at, end) - cut_at - waited_s() for end in ends}
        reasons = [end.velad.wait_for_state("vela0", "down")["reason"] for end in ends]
        time.sleep(max(0.0, cut_at + lasts_s - time.time()))
        carriers = [end.interface.carrier for end in ends]

        mended_at, waited_s = time.time(), waits_from_now(*(end.velad for end in ends))
        mend(routers.a)
        up_s = up_at(mended_at, *ends) - mended_at - waited_s()
        pings = ping(routers.a.namespace, "172.16.16.2")
    shown = ", ".join(f"{name} {each:.2f} s" for name, each in sorted(down_s.items()))
    figure(f"cut ({' and '.join(hooks)} at A): down on {shown}; back in {up_s:.2f} s")
    assert sorted(down_s) == ["a", "b"]
    assert max(down_s.values()) < 4 * KEEPALIVE_S
    assert all(reasons)
    assert carriers == [False, False]
    assert up_s < BACK_WITHIN_S
    assert pings.lost == 0
