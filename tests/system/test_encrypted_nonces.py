"""No nonce is used twice, whenever workers die: a capture of all that they have sent."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from marked_load import load
from sealed_circuit import psk_configs, psk_file
from sealed_wire import NonceLedger, circuit_datagrams
from thorough import first_of

from lab.autoconfigured import Ends, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.daemon import Velad
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

# Otherwise the third death within ten seconds fails the circuit.
_MORTAL = """
from vela.supervisor.circuit import restart
restart.DEATHS = 10**6
"""

# What is to be found out: each worker counts from 1, as if the counter were in its own memory.
_FORGETFUL = """
from vela.dataplane import engine
from vela.dataplane.key_page import PHASES, SlotWord, slot_start
mapped = engine.map_key_page
def forget(fd):
    memory = mapped(fd)
    words = memoryview(memory).cast("Q")
    for phase in range(PHASES):
        words[slot_start(phase) + SlotWord.NEXT] = 0
    return memory
engine.map_key_page = forget
"""


def kill_workers(
    routers: TwoRouters, both: Ends, capture: Capture, kills: int, dice: random.Random
) -> NonceLedger:
    """Kill workers at both ends at any time, and return what was sent meanwhile."""
    ledger = NonceLedger()

    def take() -> None:
        ledger.add(circuit_datagrams(capture.packets()))
        capture.seen.clear()

    with load(routers, burst=20, interval_s=0.005):
        for _ in range(kills):
            velad = dice.choice((both.a, both.b))
            pid = velad.worker_pid(NAME)
            time.sleep(dice.uniform(0.0, 0.4))
            os.kill(pid, signal.SIGKILL)
            velad.wait_for(
                lambda status, pid=pid: (  # type: ignore[misc]
                    (status["circuits"][0]["worker"] or {}).get("pid") not in (None, pid)
                ),
                10,
                "another worker",
            )
            take()
    take()
    return ledger


@pytest.mark.parametrize("kills", first_of([20, 200], 1))
def test_no_nonce_is_used_twice_whenever_workers_are_killed(
    framed: TwoRouters, tmp_path: Path, kills: int, figure: Callable[[str], None]
) -> None:
    routers, dice = framed, random.Random(kills)
    config_a, config_b = psk_configs(routers, psk_file(tmp_path))
    with (
        Capture(routers.a.underlay) as capture,
        Velad(routers.b.namespace, config_b, before=_MORTAL) as b,
        Velad(routers.a.namespace, config_a, before=_MORTAL) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)
        ledger = kill_workers(routers, both, capture, kills, dice)
        dropped = [velad.circuit(NAME)["counters"]["rx_dropped"] for velad in both]

    sent, keys = (
        [count(outgoing) for outgoing in (True, False)] for count in (ledger.datagrams, ledger.keys)
    )
    figure(f"{kills} kills: {sent} datagrams with {keys} keys, {len(ledger.reused)} nonces twice")
    assert (ledger.reused, ledger.clear) == ([], [])
    assert min(sent) >= 50 * kills
    # Each death asks for other keys, which come once a second at most.
    assert min(keys) >= kills / 5
    assert [each["bad_tag"] for each in dropped] == [0, 0]


def test_worker_that_forgets_its_counter_is_found_out(framed: TwoRouters, tmp_path: Path) -> None:
    """The positive control of the test above."""
    routers = framed
    config_a, config_b = psk_configs(routers, psk_file(tmp_path))
    with (
        Capture(routers.a.underlay) as capture,
        Velad(routers.b.namespace, config_b) as b,
        Velad(routers.a.namespace, config_a, before=_FORGETFUL + _MORTAL) as a,
    ):
        wait_until_up(Ends(a, b))
        ledger = kill_workers(routers, Ends(a, a), capture, 3, random.Random(1))

    assert ledger.reused
    assert all(each.startswith("this end") for each in ledger.reused)
    assert ledger.clear == []
