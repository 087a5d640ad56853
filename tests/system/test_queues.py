"""A circuit with a queue on each of two CPUs: each flow stays in order, whatever happens."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sealed_circuit import psk_file
from two_queues import MARKS, TWO, queues

from lab.autoconfigured import Ends, asking, asking_back, ends, wait_until_up
from lab.capture import Capture
from lab.circuit import ADDRESSES_A, ADDRESSES_B, MAC_A, MAC_B, NAME, circuit_table
from lab.daemon import Velad
from lab.fd_store import StoredVelad, fd_store
from lab.flows import Flows, ports_by_flow
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = MARKS


@contextmanager
def two_queues(routers: TwoRouters, **settings: Any) -> Iterator[Ends]:
    config_a = asking(routers.b.ipv4, cpu=TWO, **settings)
    config_b = asking_back(routers.a.ipv4, cpu=TWO, **settings)
    with ends(routers, config_a, config_b) as both:
        wait_until_up(both)
        yield both


@pytest.fixture
def both(routers: TwoRouters) -> Iterator[Ends]:
    with two_queues(routers) as found:
        yield found


def reconfigure(velad: Velad, config: str) -> None:
    velad.configure(config)
    velad.control("reload")


def index(namespace: Namespace) -> int:
    (shown,) = json.loads(namespace.run("ip", "-j", "link", "show", "dev", NAME).stdout)
    found: int = shown["ifindex"]
    return found


def test_each_flow_has_a_port_and_both_ports_have_flows(
    both: Ends, routers: TwoRouters, stack: ExitStack
) -> None:
    with Capture(routers.b.underlay) as capture:
        flows = Flows(both, stack, 16)
        flows.carry(0.3)
        flows.finish()
        ports = ports_by_flow(capture)

    first = both.a.circuit(NAME)["source_port"]
    assert first % 2 == 0
    assert len(ports) == 16
    assert {len(each) for each in ports.values()} == {1}
    assert set().union(*ports.values()) == {first, first + 1}
    assert [queues(each) for each in both] == [2, 2]
    assert both.a.status()["rx_dropped"]["wrong_port"] == 0


# velad on a machine of eight CPUs, of which each is one of those that there are.
_EIGHT_CPUS = """
import os
there, pin = sorted(os.sched_getaffinity(0)), os.sched_setaffinity
os.sched_getaffinity = lambda pid: set(range(8))
os.sched_setaffinity = lambda pid, cpus: pin(pid, {there[cpu % len(there)] for cpu in cpus})
"""


@pytest.mark.parametrize("encryption", ["none", "required"])
def test_as_many_queues_as_there_may_be(
    routers: TwoRouters, tmp_path: Path, stack: ExitStack, encryption: str
) -> None:
    keys: dict[str, object] = {"cpu": list(range(8))}
    if encryption == "required":
        keys |= {"encryption": encryption, "key_file": str(psk_file(tmp_path))}
    config_a = asking(routers.b.ipv4, name=NAME, peer=None, **keys)
    config_b = asking_back(routers.a.ipv4, **keys)
    with (
        Velad(routers.b.namespace, config_b, before=_EIGHT_CPUS) as b,
        Velad(routers.a.namespace, config_a, before=_EIGHT_CPUS) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)
        assert [queues(each) for each in both] == [8, 8]
        flows = Flows(both, stack, 32)
        flows.carry(0.5)
        os.kill(both.a.worker_pid(NAME), signal.SIGKILL)
        flows.carry(1.0)
        flows.finish()

        assert flows.overtaken() == 0
        assert [queues(each) for each in both] == [8, 8]
        dropped = [each.circuit(NAME)["counters"]["rx_dropped"] for each in both]
    assert [(each["bad_tag"], each["replayed"]) for each in dropped] == [(0, 0), (0, 0)]


def test_flows_stay_in_order_while_workers_are_killed(
    both: Ends, stack: ExitStack, figure: Callable[[str], None]
) -> None:
    flows = Flows(both, stack)
    flows.carry(0.5)
    # A third death within ten seconds would break the circuit.
    for victim in (both.a, both.b, both.a, both.b):
        os.kill(victim.worker_pid(NAME), signal.SIGKILL)
        flows.carry(1.1)
    lost = flows.finish()

    carried = sum(map(len, flows.heard))
    figure(f"two queues, 4 kills: {carried} datagrams, {lost} lost, {flows.overtaken()} overtaken")
    assert flows.overtaken() == 0
    assert all(len(heard) > 1000 for heard in flows.heard)
    assert [each.circuit(NAME)["worker"]["restarts"] for each in both] == [2, 2]
    assert [queues(each) for each in both] == [2, 2]


def test_flows_stay_in_order_on_a_static_circuit(routers: TwoRouters, stack: ExitStack) -> None:
    """Nobody says which ports there are."""
    with ends(
        routers,
        circuit_table(
            routers.b.ipv4, mac=MAC_A, peer_mac=MAC_B, addresses=list(ADDRESSES_A), cpu=TWO
        ),
        circuit_table(
            routers.a.ipv4, mac=MAC_B, peer_mac=MAC_A, addresses=list(ADDRESSES_B), cpu=TWO
        ),
    ) as both:
        for each in both:
            each.wait_for_state(NAME, "unmonitored")
            each.worker_pid(NAME)
        flows = Flows(both, stack)
        flows.carry(1.0)
        flows.finish()

        assert [queues(each) for each in both] == [2, 2]
    assert flows.overtaken() == 0


def test_one_queue_instead_of_two_loses_nothing_and_two_again_take_another_interface(
    both: Ends, routers: TwoRouters, stack: ExitStack
) -> None:
    flows = Flows(both, stack, 2)
    flows.carry(0.3)
    before, lost = index(both.a.namespace), flows.finish()
    reconfigure(both.a, asking(routers.b.ipv4, cpu=TWO[0]))
    flows.carry(0.5)

    assert flows.finish() == lost
    assert (queues(both.a), queues(both.b)) == (1, 2)
    assert index(both.a.namespace) == before

    reconfigure(both.a, asking(routers.b.ipv4, cpu=TWO))
    wait_until_up(both)
    assert index(both.a.namespace) != before
    assert queues(both.a) == 2
    again = Flows(both, stack)
    again.carry(0.5)
    again.finish()
    assert again.overtaken() == 0


def test_other_cpus_are_taken_without_loss(
    both: Ends, routers: TwoRouters, stack: ExitStack
) -> None:
    flows = Flows(both, stack)
    flows.carry(0.3)
    lost, before = flows.finish(), both.a.worker_pid(NAME)
    reconfigure(both.a, asking(routers.b.ipv4, cpu=TWO[::-1]))
    flows.carry(0.5)

    assert flows.finish() == lost
    assert flows.overtaken() == 0
    assert both.a.worker_pid(NAME) != before
    assert queues(both.a) == 2


def test_velad_that_takes_over_goes_on_with_both_queues(both: Ends, stack: ExitStack) -> None:
    flows = Flows(both, stack)
    flows.carry(0.3)
    lost, port = flows.finish(), both.a.circuit(NAME)["source_port"]
    both.a.replace()
    flows.carry(0.5)

    assert flows.finish() == lost
    assert flows.overtaken() == 0
    assert queues(both.a) == 2
    assert both.a.circuit(NAME)["source_port"] == port
    assert both.a.circuit(NAME)["transitions"] <= 1


def test_restart_goes_on_with_both_queues_that_the_manager_kept(
    routers: TwoRouters, stack: ExitStack
) -> None:
    store = stack.enter_context(fd_store())
    b = stack.enter_context(Velad(routers.b.namespace, asking_back(routers.a.ipv4, cpu=TWO)))
    a = stack.enter_context(
        StoredVelad(routers.a.namespace, asking(routers.b.ipv4, cpu=TWO), store)
    )
    both = Ends(a, b)
    wait_until_up(both)
    eventually(lambda: f"tap1-{NAME}" in store.names, 10.0, "both queues to be stored")
    before = index(a.namespace)
    a.kill()
    a.start()
    wait_until_up(both)

    assert index(a.namespace) == before
    assert queues(a) == 2
    flows = Flows(both, stack)
    flows.carry(0.3)
    flows.finish()
    assert flows.overtaken() == 0


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"source_port": "listen"}, "frames leave from one port"),
        ({"source_port": 50000}, "frames leave from one port"),
    ],
)
def test_one_queue_where_there_is_one_port(
    routers: TwoRouters, stack: ExitStack, more: dict[str, Any], why: str
) -> None:
    with two_queues(routers, **more) as both:
        assert [queues(each) for each in both] == [1, 1]
        reason = both.a.circuit(NAME)["reason"]
        assert reason.startswith(f"it uses CPU {TWO[0]} alone: ")
        assert why in reason
        Flows(both, stack)


def test_python_engine_has_one_queue_and_says_so(routers: TwoRouters, stack: ExitStack) -> None:
    python = '[daemon]\nengine = "python"\n'
    with ends(
        routers,
        python + asking(routers.b.ipv4, cpu=TWO),
        python + asking_back(routers.a.ipv4, cpu=TWO),
    ) as both:
        wait_until_up(both)
        assert queues(both.a) == 1
        assert 'the engine "python" has one queue' in both.a.circuit(NAME)["reason"]
        Flows(both, stack)
