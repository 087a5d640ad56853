"""Small frames that wait share a datagram of an encrypted circuit: docs/protocol.md, 3.10."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from sealed_circuit import psk_configs, psk_file
from sealed_wire import circuit_datagrams

from lab.autoconfigured import Ends, ends, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.daemon import Velad
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

FRAMES, SIZE = 60, 40
INNER = {"a": "172.16.16.1", "b": "172.16.16.2"}


@pytest.fixture(params=["native", "python"])
def both(
    request: pytest.FixtureRequest, routers: TwoRouters, tmp_path: Path, stack: ExitStack
) -> Ends:
    """A has the one engine, B the other."""
    config_a, config_b = psk_configs(routers, psk_file(tmp_path))
    other = {"native": "python", "python": "native"}[request.param]
    found = stack.enter_context(
        ends(
            routers,
            f'[daemon]\nengine = "{request.param}"\n{config_a}',
            f'[daemon]\nengine = "{other}"\n{config_b}',
        )
    )
    wait_until_up(found)
    return found


def udp(velad: Velad, address: str, stack: ExitStack) -> socket.socket:
    made = stack.enter_context(velad.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind((address, 0))
    made.settimeout(5.0)
    return made


def test_frames_that_wait_for_the_worker_share_datagrams_and_come_in_order(
    both: Ends, routers: TwoRouters, stack: ExitStack
) -> None:
    sender, receiver = udp(both.a, INNER["a"], stack), udp(both.b, INNER["b"], stack)
    sender.connect(receiver.getsockname())
    # So that neighbours are known.
    sender.send(b"first")
    assert receiver.recv(100) == b"first"
    payloads = [number.to_bytes(4, "big").ljust(SIZE, b".") for number in range(FRAMES)]
    before = both.a.circuit(NAME)["counters"]["tx_frames"]
    worker = both.a.worker_pid(NAME)
    with Capture(routers.a.underlay) as capture:
        os.kill(worker, signal.SIGSTOP)
        try:
            for payload in payloads:
                sender.send(payload)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert [receiver.recv(100) for _ in payloads] == payloads
        sent = [
            each
            for each in circuit_datagrams(capture.packets())
            if each.outgoing and len(each.data) > 200
        ]

    # What UDP_SEGMENT joins is one here. Each frame has 2 bytes more; a datagram of its own, 22.
    octets = sum(len(each.data) for each in sent)
    assert FRAMES * (28 + SIZE + 2) < octets < FRAMES * (28 + SIZE + 2 + 5)
    eventually(
        lambda: both.a.circuit(NAME)["counters"]["tx_frames"] - before >= FRAMES,
        5.0,
        "each frame to be counted",
    )
    dropped = both.b.circuit(NAME)["counters"]["rx_dropped"]
    assert (dropped["malformed"], dropped["reserved"], dropped["replayed"]) == (0, 0, 0)
