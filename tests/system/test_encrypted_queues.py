"""An encrypted circuit with a queue on each of two CPUs: each has counters of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sealed_circuit import EACH_SECOND, generation, psk_configs, psk_file
from sealed_wire import NonceLedger, circuit_datagrams
from two_queues import MARKS, TWO, queues

from lab.autoconfigured import Ends, Settings, asking, asking_back, ends, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.daemon import Velad
from lab.flows import Flows
from lab.topology import TwoRouters

pytestmark = MARKS


def configs(routers: TwoRouters, psk: Path) -> tuple[str, str]:
    keys: Settings = {"encryption": "required", "key_file": str(psk), "cpu": TWO}
    return asking(routers.b.ipv4, **keys), asking_back(routers.a.ipv4, **keys)


def dropped(velad: Velad) -> tuple[int, int, int]:
    found = velad.circuit(NAME)["counters"]["rx_dropped"]
    return found["bad_tag"], found["no_key"], found["replayed"]


def sequences(capture: Capture, *, outgoing: bool) -> dict[int, set[int]]:
    """Return from which ports datagrams of each sequence of counters were sent."""
    found: dict[int, set[int]] = {}
    for packet in capture.packets():
        if packet.outgoing is outgoing:
            for datagram in circuit_datagrams([packet]):
                port = int.from_bytes(packet.data[34:36])
                found.setdefault(datagram.data[2] >> 4, set()).add(port)
    return found


def test_each_queue_has_a_port_and_a_sequence_of_counters(
    routers: TwoRouters, tmp_path: Path, stack: ExitStack
) -> None:
    with ends(routers, *configs(routers, psk_file(tmp_path))) as both:
        wait_until_up(both)
        with Capture(routers.b.underlay) as capture:
            flows = Flows(both, stack, 16)
            flows.carry(0.3)
            flows.finish()
            found = {velad: sequences(capture, outgoing=velad is both.b) for velad in both}

        for velad, ports in found.items():
            first = velad.circuit(NAME)["source_port"]
            assert ports == {0: {first}, 1: {first + 1}}
        assert [queues(each) for each in both] == [2, 2]
        assert flows.overtaken() == 0
        assert [dropped(each) for each in both] == [(0, 0, 0)] * 2


def test_flows_stay_in_order_and_no_nonce_comes_twice_while_workers_are_killed(
    framed: TwoRouters, tmp_path: Path, stack: ExitStack, figure: Callable[[str], None]
) -> None:
    ledger = NonceLedger()
    with ends(framed, *configs(framed, psk_file(tmp_path))) as both:
        wait_until_up(both)
        with Capture(framed.a.underlay) as capture:
            flows = Flows(both, stack)
            flows.carry(0.5)
            # A third death within ten seconds would break the circuit.
            for victim in (both.a, both.b, both.a, both.b):
                os.kill(victim.worker_pid(NAME), signal.SIGKILL)
                flows.carry(1.1)
            lost = flows.finish()
            ledger.add(circuit_datagrams(capture.packets()))
        bad_tags = [dropped(each)[0] for each in both]
        in_use = [queues(each) for each in both]

    sent = [ledger.datagrams(outgoing) for outgoing in (True, False)]
    figure(f"two encrypted queues, 4 kills: {sent} datagrams, {lost} lost")
    assert (ledger.reused, ledger.clear) == ([], [])
    assert flows.overtaken() == 0
    assert all(len(heard) > 1000 for heard in flows.heard)
    assert (in_use, bad_tags) == ([2, 2], [0, 0])


def test_nothing_is_lost_where_keys_change_each_second(
    routers: TwoRouters, tmp_path: Path, stack: ExitStack
) -> None:
    config_a, config_b = configs(routers, psk_file(tmp_path))
    with (
        Velad(routers.b.namespace, config_b, before=EACH_SECOND) as b,
        Velad(routers.a.namespace, config_a, before=EACH_SECOND) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)
        flows = Flows(both, stack)
        before, early = generation(a), [dropped(each) for each in both]
        flows.carry(6.0)

        assert flows.finish() == 0
        assert flows.overtaken() == 0
        assert generation(a) - before >= 3
        assert [dropped(each) for each in both] == early


def test_end_with_one_queue_takes_the_frames_of_two(
    routers: TwoRouters, tmp_path: Path, stack: ExitStack
) -> None:
    """B makes its circuit by itself, on any CPU."""
    psk = psk_file(tmp_path)
    _, config_b = psk_configs(routers, psk)
    with ends(routers, configs(routers, psk)[0], config_b) as both:
        wait_until_up(both)
        with Capture(routers.b.underlay) as capture:
            flows = Flows(both, stack, 16)
            flows.carry(0.3)
            flows.finish()
            assert set(sequences(capture, outgoing=False)) == {0, 1}
            assert set(sequences(capture, outgoing=True)) == {0}

        assert [queues(each) for each in both] == [2, 1]
        assert flows.overtaken() == 0
        assert [dropped(each) for each in both] == [(0, 0, 0)] * 2


def test_velad_that_takes_over_goes_on_with_both_queues(
    routers: TwoRouters, tmp_path: Path, stack: ExitStack
) -> None:
    with ends(routers, *configs(routers, psk_file(tmp_path))) as both:
        wait_until_up(both)
        flows = Flows(both, stack)
        flows.carry(0.3)
        lost = flows.finish()
        both.a.replace()
        flows.carry(0.5)

        assert flows.finish() == lost
        assert flows.overtaken() == 0
        assert queues(both.a) == 2
        assert both.a.circuit(NAME)["transitions"] <= 1
        assert [dropped(each)[0] for each in both] == [0, 0]
