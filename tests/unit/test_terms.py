"""What an end says of itself depends on what its engine declares, ability by ability."""

from __future__ import annotations

import pytest

from vela.address import parse_remote
from vela.dataplane.contract import Abilities
from vela.signaling.messages import Capability
from vela.supervisor.circuit.terms import describe
from vela.supervisor.config.records import CircuitConfig, Encapsulation

MAC = bytes.fromhex("02005e100001")


def capabilities(abilities: Abilities, encapsulation: Encapsulation) -> Capability:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), encapsulation=encapsulation)
    return describe(config, None, MAC, 48621, abilities).capabilities


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        (Abilities(), Capability(0)),
        (Abilities(virtio_header=True), Capability(0)),
        (Abilities(native=True), Capability.NATIVE_ENGINE),
        (
            Abilities(partial_checksums=True),
            Capability.CHECKSUM_OFFLOAD,
        ),
    ],
    ids=["none", "virtio header", "native", "partial checksums"],
)
def test_each_ability_is_announced_by_its_own_capability(
    abilities: Abilities, expected: Capability
) -> None:
    always = Capability.ELISION | Capability.PIECES
    assert capabilities(abilities, Encapsulation.AUTO) == expected | always


def test_partial_checksums_without_elision_are_not_announced() -> None:
    abilities = Abilities(partial_checksums=True)

    assert capabilities(abilities, Encapsulation.ETHERNET) == Capability.PIECES
