"""Four circuits between two hosts, loaded at the same time: what they carry, lose, and leave."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from lab.daemon import Velad
from lab.datagrams import udp_socket
from lab.load import iperf3_at_once
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

ENGINES = ("python", "native")
IDS = (1, 2, 3, 4)
IN_B = [f"172.16.{each}.2" for each in IDS]

# A circuit's worker has one CPU, and shares it with all that runs there. Circuits of one CPU
# share it evenly; those of another CPU may have more of it, or less, by what else runs on
# each. The more of that, the more rounds it takes until the circuits' own shares show.
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
SECONDS = 2


@dataclass(frozen=True, slots=True)
class Ends:
    """velad on both routers, with a circuit for each id."""

    a: Velad
    b: Velad


def config(remote: Router, engine: str, own: int) -> str:
    """own is 1 at A, 2 at B: how its addresses and MACs end."""
    tables = [f'[daemon]\nengine = "{engine}"\n']
    tables += [
        f'[circuits.vela{each}]\nid = {each}\nremote = "{remote.ipv4}"\nautoconfigure = false\n'
        f'addresses = ["172.16.{each}.{own}/30"]\nmac = "02:00:5e:10:0{each}:0{own}"\n'
        f'peer = {{ mac = "02:00:5e:10:0{each}:0{3 - own}" }}\n'
        for each in IDS
    ]
    return "".join(tables)


@contextmanager
def four_circuits(routers: TwoRouters, engine: str) -> Iterator[Ends]:
    for router in (routers.a, routers.b):
        # Nothing but the frames of the test: no multicast listener reports.
        router.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    with (
        Velad(routers.a.namespace, config(routers.b, engine, 1)) as a,
        Velad(routers.b.namespace, config(routers.a, engine, 2)) as b,
    ):
        for velad in (a, b):
            for each in IDS:
                velad.wait_for_state(f"vela{each}", "unmonitored")
        yield Ends(a, b)


def counters(velad: Velad) -> list[dict[str, Any]]:
    """Return each circuit's, in the order of the ids."""
    circuits = sorted(velad.status()["circuits"], key=lambda one: int(one["id"]))
    return [one["counters"] for one in circuits]


def cpus(velad: Velad) -> list[int]:
    """Return the CPU of each circuit's worker, in the order of the ids."""
    circuits = sorted(velad.status()["circuits"], key=lambda one: int(one["id"]))
    return [one["worker"]["cpu"] for one in circuits]


def shares_of_cpu(measured: list[float], on: list[int]) -> list[float]:
    """Return what each circuit got of what those of its CPU carried: 1 is even."""
    carried: dict[int, list[float]] = {}
    for one, cpu in zip(measured, on, strict=True):
        carried.setdefault(cpu, []).append(one)
    return [one / statistics.mean(carried[cpu]) for one, cpu in zip(measured, on, strict=True)]


def lost(ends: Ends) -> list[tuple[int, int]]:
    """Return for each circuit what A sent and B did not get, and what B sent and A did not get."""
    a, b = counters(ends.a), counters(ends.b)
    return [
        (this["tx_frames"] - that["rx_frames"], that["tx_frames"] - this["rx_frames"])
        for this, that in zip(a, b, strict=True)
    ]


def assert_nothing_lost(ends: Ends) -> None:
    eventually(lambda: not any(map(any, lost(ends))), 5.0, f"{lost(ends)} to be nothing")
    for velad in (ends.a, ends.b):
        for each in counters(velad):
            assert each["tx_errors"] == 0
            assert set(each["rx_dropped"].values()) == {0}


@pytest.mark.alone
@pytest.mark.parametrize("engine", ENGINES)
def test_four_circuits_loaded_at_once_carry_no_less_than_one_and_share_each_cpu_evenly(
    routers: TwoRouters, engine: str, figure: Callable[[str], None]
) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    alone: list[float] = []
    together: list[list[float]] = []

    def megabits(addresses: list[str]) -> list[float]:
        runs = iperf3_at_once(b, a, addresses, seconds=SECONDS)
        return [run.received_bits_per_s / 1e6 for run in runs]

    def verdict() -> tuple[float, list[float]]:
        """Return what four carry relative to one, and each one's share of its CPU. Medians."""
        rounds = [shares_of_cpu(measured, on) for measured in together]
        # Round by round: what else the machine did then, it did to both.
        relative = statistics.median(
            sum(measured) / one for measured, one in zip(together, alone, strict=True)
        )
        return relative, [statistics.median(each) for each in zip(*rounds, strict=True)]

    def least() -> float:
        """Return the least share of all that the four carry, whatever the CPU: 1 is even."""
        rounds = [[one / statistics.mean(measured) for one in measured] for measured in together]
        medians: list[float] = [statistics.median(each) for each in zip(*rounds, strict=True)]
        return min(medians)

    def as_it_should_be() -> bool:
        relative, shares = verdict()
        return relative >= 1 and min(shares) >= 0.8 and max(shares) <= 1.2 and least() >= 0.5

    with four_circuits(routers, engine) as ends:
        on = cpus(ends.a)
        assert cpus(ends.b) == on
        while len(together) < LEAST_ROUNDS or (
            len(together) < MOST_ROUNDS and not as_it_should_be()
        ):
            alone += megabits([IN_B[len(together) % len(IDS)]])
            together.append(megabits(IN_B))

        assert_nothing_lost(ends)
    relative, shares = verdict()
    figure(
        f"{engine}: four carry {relative:.2f} times what one does, "
        f"shared each CPU {', '.join(f'{each:.2f}' for each in shares)}, and the least has "
        f"{least():.2f} of an even share; {len(together)} rounds"
    )
    assert as_it_should_be(), (verdict(), least(), alone, together)


@pytest.mark.parametrize("engine", ENGINES)
def test_datagrams_in_four_circuits_at_once_arrive_whole_both_ways(
    routers: TwoRouters, engine: str
) -> None:
    """No more are under way at a time than fit the queues."""
    batch, rounds = 50, 10
    with four_circuits(routers, engine) as ends, ExitStack() as stack:
        ways: list[tuple[socket.socket, socket.socket, tuple[str, int]]] = []
        for each in IDS:
            in_a = (routers.a.namespace, f"172.16.{each}.1")
            in_b = (routers.b.namespace, f"172.16.{each}.2")
            for (source, own), (target, other) in ((in_a, in_b), (in_b, in_a)):
                sender = stack.enter_context(udp_socket(source, own))
                receiver = stack.enter_context(udp_socket(target, other))
                ways.append((sender, receiver, receiver.getsockname()))
                # While a neighbour is being found, the host's own queue lets datagrams overtake.
                sender.sendto(b"found", receiver.getsockname())
                assert receiver.recv(2000) == b"found"

        for first in range(0, batch * rounds, batch):
            numbers = range(first, first + batch)
            for number in numbers:
                for sender, _, address in ways:
                    sender.sendto(number.to_bytes(1000, "big"), address)
            for _, receiver, _ in ways:
                arrived = [int.from_bytes(receiver.recv(2000), "big") for _ in numbers]
                assert arrived == list(numbers)

        assert_nothing_lost(ends)
        for velad in (ends.a, ends.b):
            for each_counters in counters(velad):
                assert each_counters["rx_frames"] >= batch * rounds
