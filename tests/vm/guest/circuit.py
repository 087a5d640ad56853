"""The main job: a circuit configured on one of two routers carries packets and files unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.autoconfigured import Settings, asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.copying import copy
from lab.daemon import ROOT, Velad, started_together
from lab.load import iperf3, ping
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES, TAP_MTU
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = {"native": 20_000_000, "python": 4_000_000}
SEALED_FILE_BYTES = 2_000_000
SEALED_MTU = 1450


def test_quickstart_shows_a_circuit_and_leaves_nothing() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}

    done = subprocess.run(
        [sys.executable, "-m", "lab.quickstart", "up"],
        env=env,
        capture_output=True,
        text=True,
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
        copied = copy(a, b, PEER_ADDRESSES[0], FILE_BYTES[engine], timeout_s=60)

        assert copied.received == FILE_BYTES[engine]
        assert copied.received_digest == copied.sent_digest
        assert measured.received_bits_per_s > 0
        assert left.circuit("vela0")["worker"]["restarts"] == 0


@pytest.mark.parametrize("engine", ["native", "python"])
def test_encrypted_circuit_carries_full_size_packets_and_a_file(
    routers: TwoRouters, engine: str, tmp_path: Path
) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    key = tmp_path / "key"
    key.write_bytes(b"thirty-two bytes, and some more.\n")
    key.chmod(0o600)
    chosen = f'[daemon]\nengine = "{engine}"\n'
    keys: Settings = {"encryption": "required", "key_file": str(key)}
    configs = asking(routers.b.ipv4, **keys), policy(**keys)
    with ends(routers, *(chosen + config for config in configs)) as both:
        wait_until_up(both)
        for velad in both:
            circuit = velad.circuit(NAME)
            assert (circuit["encryption"], circuit["mtu"]) == ("required", SEALED_MTU)
            assert circuit["worker"]["engine"] == engine

        for address in PEER_ADDRESSES:
            assert ping(a, address, count=3, size=SEALED_MTU, dont_fragment=True).lost == 0
        copied = copy(a, b, PEER_ADDRESSES[0], SEALED_FILE_BYTES, timeout_s=60)

        assert copied.received_digest == copied.sent_digest
        assert [velad.circuit(NAME)["worker"]["restarts"] for velad in both] == [0, 0]
