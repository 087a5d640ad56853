"""vela.supervisor.circuit.queues: how many there are, and why it is one where more are wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vela.address import parse_remote
from vela.dataplane.contract import Abilities
from vela.dataplane.frame import Elision
from vela.supervisor.circuit import queues
from vela.supervisor.circuit.queues import place_of, queues_in_use, tap_queues
from vela.supervisor.circuit.terms import Profile
from vela.supervisor.config.records import CircuitConfig, Encryption

CONFIG = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), cpu=(3, 1, 2))
PROFILE = Profile(1471, Elision.KNOWN, None, True, None, several_ports=True)
ABLE = Abilities(several_queues=True)


@pytest.fixture(autouse=True)
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "why_no_queues", lambda: "")


@pytest.mark.parametrize(("cpu", "wanted"), [(None, 1), (5, 1), ((0, 1), 2), ((3, 1, 2), 3)])
def test_interface_is_made_with_a_queue_for_each_cpu(cpu: Any, wanted: int) -> None:
    config = replace(CONFIG, cpu=cpu)

    assert tap_queues(config) == wanted
    assert queues_in_use(config, PROFILE, ABLE, wanted) == (wanted, "")


def test_encrypted_circuit_has_as_many() -> None:
    config = replace(CONFIG, encryption=Encryption.REQUIRED)
    profile = replace(PROFILE, encrypted=True, sequences=8)

    assert queues_in_use(config, profile, ABLE, 3) == (3, "")


def test_no_more_queues_are_in_use_than_the_interface_has() -> None:
    assert queues_in_use(CONFIG, PROFILE, ABLE, 2) == (2, "")


@pytest.mark.parametrize(
    ("config", "profile", "abilities", "there", "why"),
    [
        ({}, {}, Abilities(), 3, 'the engine "python"'),
        ({}, {}, ABLE, 1, "its interface was made with one queue"),
        ({}, {"several_ports": False}, ABLE, 3, "frames leave from one port"),
        ({}, {"encrypted": True, "several_ports": False}, ABLE, 3, "it is encrypted, and"),
    ],
)
def test_one_queue_says_why(
    config: dict[str, Any], profile: dict[str, Any], abilities: Abilities, there: int, why: str
) -> None:
    found, reason = queues_in_use(
        replace(CONFIG, **config), replace(PROFILE, **profile), abilities, there
    )

    assert found == 1
    assert reason.startswith(f"it uses CPU 3 alone: {why}")
    assert reason.code == "one_queue"


def test_one_queue_where_no_program_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "why_no_queues", lambda: "it has no CAP_BPF")

    assert tap_queues(CONFIG) == 1
    found, reason = queues_in_use(CONFIG, PROFILE, ABLE, 1)
    assert found == 1
    assert "it has no CAP_BPF" in reason


@pytest.mark.parametrize("count", range(1, 9))
def test_queues_share_no_number(count: int) -> None:
    numbers = [place_of(queue, count) for queue in range(count)]

    assert len({step for _, step in numbers}) == 1
    assert len({rest for rest, _ in numbers}) == count
    assert all(rest < step <= 8 for rest, step in numbers)
