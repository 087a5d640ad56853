"""Encrypted circuits from configuration to ping, on two running machines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Settings, asking, ends, policy, wait_until_up
from lab.capture import Capture, Packet
from lab.circuit import NAME
from lab.headers import datagram
from lab.load import ping
from lab.topology import TwoRouters
from vela.public_key import fingerprint, format_public_key
from vela.supervisor.config.identity import generate

pytestmark = pytest.mark.needs_net_admin

NETWORKS = ["172.16.0.0/12", "fd00::/8"]


@pytest.fixture
def psk(tmp_path: Path) -> Path:
    path = tmp_path / "psk"
    path.write_bytes(b"thirty-two bytes, and some more.\n")
    path.chmod(0o600)
    return path


class Machine:
    """The identity of one machine."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.key"
        self.public = generate(self.path)
        self.key = format_public_key(self.public)
        self.fingerprint = fingerprint(self.public)


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Machine, Machine]:
    return Machine(tmp_path, "a"), Machine(tmp_path, "b")


def frames_of(packets: Iterable[Packet]) -> list[bytes]:
    """Return the UDP payloads of a circuit's frames; what TSO or UDP_SEGMENT joined is one."""
    found = (datagram(packet.data) for packet in packets)
    payloads = [each.udp.payload for each in found if each is not None]
    return [payload for payload in payloads if payload[:1] == b"\x01"]


def psk_configs(routers: TwoRouters, psk: Path) -> tuple[str, str]:
    keys: Settings = {"encryption": "required", "key_file": str(psk)}
    return asking(routers.b.ipv4, **keys), policy(**keys)


def identity_configs(
    routers: TwoRouters, machines: tuple[Machine, Machine], **more: Any
) -> tuple[str, str]:
    a, b = machines
    return (
        f'[daemon]\nidentity = "{a.path}"\n'
        + asking(routers.b.ipv4, encryption="required", peer_key=b.key, **more),
        f'[daemon]\nidentity = "{b.path}"\n'
        + policy(sources=None, encryption="required", peers=[a.key], **more),
    )


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
        frames = frames_of(capture.packets())
        assert len(frames) >= 30
        assert {frame[1] & 0xFE for frame in frames} == {0x42}


def test_circuit_is_encrypted_by_the_keys_of_both_machines(
    routers: TwoRouters, machines: tuple[Machine, Machine]
) -> None:
    with ends(routers, *identity_configs(routers, machines)) as both:
        wait_until_up(both)

        for velad, other in zip(both, reversed(machines), strict=True):
            found = velad.circuit(NAME)["cipher"]
            assert found["pattern"] == "IKpsk2"
            assert found["peer_fingerprint"] == other.fingerprint
        await_pings(routers)


@pytest.mark.parametrize("who", [0, 1], ids=["a", "b"])
@pytest.mark.parametrize("pattern", ["psk", "identity"])
def test_circuit_comes_back_when_velad_is_killed(
    routers: TwoRouters,
    psk: Path,
    machines: tuple[Machine, Machine],
    pattern: str,
    who: int,
) -> None:
    by_psk = pattern == "psk"
    configs = psk_configs(routers, psk) if by_psk else identity_configs(routers, machines)
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


def test_key_holder_that_is_killed_is_replaced_and_the_circuit_goes_on(
    routers: TwoRouters, psk: Path
) -> None:
    with ends(routers, *psk_configs(routers, psk)) as both:
        wait_until_up(both)
        for velad in both:
            holder = next(pid for pid in velad.processes() if name_of(pid) == "velad-keys")
            os.kill(holder, signal.SIGKILL)
            velad.wait_for(
                lambda status: status["circuits"][0]["state"] != "down", 10, "it to be up"
            )
        wait_until_up(both)
        await_pings(routers)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
