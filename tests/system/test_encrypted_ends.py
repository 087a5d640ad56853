"""Encrypted circuits from configuration to ping, on two running machines."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sealed_circuit import holder_of, identity_configs, psk_configs, psk_file
from sealed_wire import circuit_datagrams

from lab.autoconfigured import Ends, ends, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.daemon import Velad
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.public_key import fingerprint
from vela.supervisor.config.identity import public_of

pytestmark = pytest.mark.needs_net_admin


# A velad on a machine whose processor has no instructions for AES-GCM.
_WITHOUT_AES = """
import vela.dataplane.engine
vela.dataplane.engine.has_aes_instructions = lambda: False
"""


@pytest.fixture
def psk(tmp_path: Path) -> Path:
    return psk_file(tmp_path)


def await_pings(routers: TwoRouters) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    for namespace, other in ((a, "172.16.16.2"), (b, "172.16.16.1"), (a, "fd00:16::2")):
        assert ping(namespace, other, count=5, interval_s=0.05).received == 5


def test_circuit_is_encrypted_by_a_pre_shared_key(framed: TwoRouters, psk: Path) -> None:
    routers = framed
    with Capture(routers.a.underlay) as capture, ends(routers, *psk_configs(routers, psk)) as both:
        wait_until_up(both)

        for velad in both:
            entry = velad.circuit(NAME)
            assert (entry["encryption"], entry["mtu"]) == ("required", 1450)
            assert entry["cipher"]["pattern"] == "NNpsk0"
            assert entry["cipher"]["suite"] in ("AES-256-GCM", "ChaCha20-Poly1305")
            assert entry["cipher"]["generation"] == 1
            assert entry["cipher"]["peer_fingerprint"] is None
        await_pings(routers)
        frames = [each.data for each in circuit_datagrams(capture.packets())]
        assert len(frames) >= 30
        assert {frame[1] & 0xFE for frame in frames} == {0x42}


def test_circuit_is_encrypted_by_the_keys_of_both_machines(
    routers: TwoRouters, tmp_path: Path
) -> None:
    with ends(routers, *identity_configs(routers, tmp_path)) as both:
        wait_until_up(both)

        for velad, other in zip(both, ("b", "a"), strict=True):
            found = velad.circuit(NAME)["cipher"]
            assert found["pattern"] == "IKpsk2"
            assert found["peer_fingerprint"] == fingerprint(public_of(tmp_path / f"{other}.key"))
        await_pings(routers)


@pytest.mark.parametrize("engines", [("native", "python"), ("python", "native")])
@pytest.mark.parametrize("without", [0, 1], ids=["a", "b"])
def test_machine_without_instructions_for_aes_uses_chacha20(
    routers: TwoRouters, psk: Path, engines: tuple[str, str], without: int
) -> None:
    configs = [
        f'[daemon]\nengine = "{engine}"\n{config}'
        for engine, config in zip(engines, psk_configs(routers, psk), strict=True)
    ]
    before = ["", ""]
    before[without] = _WITHOUT_AES
    with (
        Velad(routers.b.namespace, configs[1], before=before[1]) as b,
        Velad(routers.a.namespace, configs[0], before=before[0]) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)

        for velad in both:
            assert velad.circuit(NAME)["cipher"]["suite"] == "ChaCha20-Poly1305"
        await_pings(routers)
        for velad in both:
            assert velad.circuit(NAME)["counters"]["rx_dropped"]["bad_tag"] == 0


@pytest.mark.parametrize("who", [0, 1], ids=["a", "b"])
@pytest.mark.parametrize("pattern", ["psk", "identity"])
def test_circuit_comes_back_when_velad_is_killed(
    routers: TwoRouters,
    psk: Path,
    tmp_path: Path,
    pattern: str,
    who: int,
) -> None:
    by_psk = pattern == "psk"
    configs = psk_configs(routers, psk) if by_psk else identity_configs(routers, tmp_path)
    with ends(routers, *configs) as both:
        wait_until_up(both)
        killed = (both.a, both.b)[who]
        killed.kill()
        killed.start()
        wait_until_up(both, timeout_s=20)
        await_pings(routers)


def test_worker_that_is_killed_is_replaced_and_its_keys_with_it(
    routers: TwoRouters, psk: Path
) -> None:
    with ends(routers, *psk_configs(routers, psk)) as both:
        wait_until_up(both)
        os.kill(both.a.worker_pid(NAME), signal.SIGKILL)
        both.a.wait_for(
            lambda status: status["circuits"][0]["cipher"]["generation"] > 1, 10, "other keys"
        )
        await_pings(routers)
        assert [velad.circuit(NAME)["counters"]["rx_dropped"]["bad_tag"] for velad in both] == [
            0,
            0,
        ]


def test_key_holder_that_is_killed_is_replaced_and_nobody_notices(
    routers: TwoRouters, psk: Path
) -> None:
    with (
        ends(routers, *psk_configs(routers, psk)) as both,
        ThreadPoolExecutor() as pool,
    ):
        wait_until_up(both)
        before = [velad.log().count("state=down") for velad in both]
        pings = pool.submit(ping, routers.a.namespace, "172.16.16.2", count=400, interval_s=0.01)
        for velad in both:
            holder = holder_of(velad)
            assert holder
            killed_at = time.monotonic()
            os.kill(holder, signal.SIGKILL)
            eventually(partial(replaced, velad, holder), 10, "another one")
            # Both ends, as a page holds two keys: the second session after this one would take the
            # place of a key that a slow end still sends with.
            for each in both:
                each.wait_for(partial(has_keys_since, killed_at), 10, "keys of another session")
        assert pings.result().received == 400
        wait_until_up(both)
        assert [velad.log().count("state=down") for velad in both] == before
        await_pings(routers)


def has_keys_since(moment: float, status: dict[str, Any]) -> bool:
    cipher = status["circuits"][0]["cipher"]
    return cipher is not None and cipher["age_seconds"] < time.monotonic() - moment


def replaced(velad: Velad, holder: int) -> bool:
    return holder_of(velad) not in (0, holder)
