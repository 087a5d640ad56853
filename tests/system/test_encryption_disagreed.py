"""Ends that do not agree on encryption.

The circuit never comes up, no frame crosses in clear, and the status says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Settings, asking, policy
from lab.capture import Capture, Packet
from lab.daemon import Velad
from lab.errors import LabError
from lab.headers import datagram
from lab.topology import TwoRouters
from vela.public_key import format_public_key
from vela.supervisor.config.identity import generate

pytestmark = pytest.mark.needs_net_admin

KEYS = {
    "one": b"thirty-two bytes, and some more.\n",
    "other": b"thirty-two other bytes, and more\n",
}


@pytest.fixture
def psk(tmp_path: Path) -> Callable[[str], str]:
    def path_of(name: str) -> str:
        path = tmp_path / name
        path.write_bytes(KEYS[name])
        path.chmod(0o600)
        return str(path)

    return path_of


class Machine:
    """An identity: its file's path, and its public key as a configuration has it."""

    def __init__(self, path: Path) -> None:
        self.public = format_public_key(generate(path))
        self.daemon = f'[daemon]\nidentity = "{path}"\n'


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Machine, Machine, Machine]:
    a, b, c = (Machine(tmp_path / f"{name}.key") for name in "abc")
    return a, b, c


def frames(packets: Iterable[Packet]) -> list[bytes]:
    """Return what crossed in datagrams of circuit 1."""
    found = (datagram(packet.data) for packet in packets)
    return [each.udp.payload for each in found if each and each.udp.payload[:1] == b"\1"]


def reason(velad: Velad, *states: str) -> str:
    """Return why the circuit is in one of these states, as soon as velad says so."""
    status = velad.wait_for(
        lambda status: any(
            each["state"] in states and each["reason"] for each in status["circuits"]
        ),
        20,
        "a reason",
    )
    return str(status["circuits"][0]["reason"])


@contextmanager
def refused(routers: TwoRouters, config_a: str, config_b: str) -> Iterator[tuple[Velad, Velad]]:
    """Both ends; and at the end: none was ever up, and no frame crossed in clear."""
    with (
        Capture(routers.a.underlay) as capture,
        Velad(routers.b.namespace, config_b) as b,
        Velad(routers.a.namespace, config_a) as a,
    ):
        yield a, b
        for velad in (a, b):
            assert "state=up" not in velad.log()
        assert [
            each[:16].hex() for each in frames(capture.packets()) if each[1] & 0xFE != 0x42
        ] == []


@pytest.mark.parametrize("required_at", ["a", "b"])
def test_one_end_requires_and_the_other_does_not(
    framed: TwoRouters, psk: Callable[[str], str], required_at: str
) -> None:
    levels = ("required", "none") if required_at == "a" else ("none", "required")
    at: list[Settings] = [{"encryption": each, "key_file": psk("one")} for each in levels]
    for_a, for_b = at
    with refused(framed, asking(framed.b.ipv4, **for_a), policy(**for_b)) as (a, _):
        assert "encrypt" in reason(a, "rejected")


def test_pre_shared_keys_differ(framed: TwoRouters, psk: Callable[[str], str]) -> None:
    for_a, for_b = (settings(psk(each)) for each in ("one", "other"))
    with refused(framed, asking(framed.b.ipv4, **for_a), policy(**for_b)) as (a, b):
        b.wait_for(dropped("control_tag"), 10, "a wrong tag")
        assert reason(a, "connecting", "down", "rejected")


def test_peer_key_is_another_machines(
    framed: TwoRouters, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, c = machines
    config_a = a.daemon + asking(framed.b.ipv4, encryption="required", peer_key=c.public)
    config_b = b.daemon + policy(sources=None, encryption="required", peers=[a.public])
    with refused(framed, config_a, config_b) as (velad_a, velad_b):
        velad_b.wait_for(dropped("control_handshake"), 10, "a failed handshake")
        assert reason(velad_a, "connecting", "down", "rejected")


def test_one_end_has_a_key_and_the_other_an_identity(
    framed: TwoRouters, psk: Callable[[str], str], machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, _ = machines
    key = settings(psk("one"))
    config_a = a.daemon + asking(framed.b.ipv4, peer_key=b.public, **key)
    with refused(framed, config_a, policy(**key)) as (velad_a, _):
        assert "encrypts by" in reason(velad_a, "rejected")


def test_static_circuit_cannot_require_encryption(
    routers: TwoRouters, psk: Callable[[str], str]
) -> None:
    config = asking(routers.b.ipv4, autoconfigure=False, **settings(psk("one")))
    velad = Velad(routers.a.namespace, config.partition("[circuits.vela0.peer]")[0])
    with pytest.raises(LabError), velad:
        pass
    assert "encryption" in velad.log()


def settings(key_file: str) -> Settings:
    return {"encryption": "required", "key_file": key_file}


def dropped(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: int(status["rx_dropped"].get(name, 0)) > 0
