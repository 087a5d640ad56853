"""The main job: a circuit configured on one of two routers carries packets and files unchanged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lab.copying import copy
from lab.daemon import ROOT, Velad, started_together
from lab.load import iperf3, ping
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES, TAP_MTU
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 20_000_000


def test_quickstart_shows_a_circuit_and_leaves_nothing() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}

    done = subprocess.run(
        [sys.executable, "-m", "lab.quickstart", "up"],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )

    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "nothing left behind" in done.stdout


@pytest.mark.parametrize("engine", ["native", "python"])
def test_circuit_carries_full_size_packets_and_a_file(routers: TwoRouters, engine: str) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    chosen = f'[daemon]\nengine = "{engine}"\n'
    left, right = Velad(a, chosen + CONFIG_A), Velad(b, chosen + CONFIG_B)
    with started_together(left, right):
        for velad in (left, right):
            circuit = velad.wait_for_state("vela0", "up", timeout_s=20)
            assert circuit["mtu"] == TAP_MTU
            assert circuit["worker"]["engine"] == engine

        for address in PEER_ADDRESSES:
            assert ping(a, address, count=3, size=TAP_MTU, dont_fragment=True).lost == 0
        measured = iperf3(b, a, PEER_ADDRESSES[0], seconds=2)
        print(f"{engine}: one TCP stream: {measured.received_bits_per_s / 1e6:.0f} Mbit/s")
        copied = copy(a, b, PEER_ADDRESSES[0], FILE_BYTES, timeout_s=60)

        assert copied.received == FILE_BYTES
        assert copied.received_digest == copied.sent_digest
        assert measured.received_bits_per_s > 0
        assert left.circuit("vela0")["worker"]["restarts"] == 0
