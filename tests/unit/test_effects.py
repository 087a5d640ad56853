"""Every key of a circuit says what its change does."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vela.address import Remote
from vela.supervisor.config.effects import (
    CIRCUIT_EFFECTS,
    PEER_EFFECTS,
    Difference,
    Effect,
    difference,
)
from vela.supervisor.config.reader import CIRCUIT_KEYS, PEER_KEYS
from vela.supervisor.config.records import (
    CircuitConfig,
    Encapsulation,
    Encryption,
    PeerConfig,
)

CIRCUIT = CircuitConfig("vela0", 1, Remote("192.0.2.2"))


def test_each_key_of_the_reader_has_a_row_and_no_row_is_left_over() -> None:
    assert {key.name for key in CIRCUIT_KEYS} - {"peer"} | {"name"} == set(CIRCUIT_EFFECTS)
    assert {key.name for key in PEER_KEYS} == set(PEER_EFFECTS)


def test_each_field_of_the_records_has_a_row() -> None:
    assert {each.name for each in fields(CircuitConfig)} == {*CIRCUIT_EFFECTS, "peer"}
    assert {each.name for each in fields(PeerConfig)} == set(PEER_EFFECTS)


def test_only_name_and_id_make_a_new_interface() -> None:
    rows = {**CIRCUIT_EFFECTS, **{f"peer.{key}": row for key, row in PEER_EFFECTS.items()}}
    made_anew = {key for key, row in rows.items() if row.effect is Effect.NEW_INTERFACE}

    assert made_anew == {"name", "id"}


def test_equal_configurations_differ_in_nothing() -> None:
    assert difference(CIRCUIT, replace(CIRCUIT)) == Difference((), Effect.NOTHING)


def test_several_changed_keys_have_the_effect_of_the_gravest() -> None:
    after = replace(CIRCUIT, keepalive=1.0, mtu=1400, peer=PeerConfig(interface="vela9"))

    assert difference(CIRCUIT, after) == Difference(
        ("mtu", "keepalive", "peer.interface"), Effect.NEW_WORKER
    )
    assert difference(CIRCUIT, replace(after, id=2)).effect is Effect.NEW_INTERFACE


@pytest.mark.parametrize(
    ("changes", "new_session"),
    [
        ({"encryption": Encryption.REQUIRED}, True),
        ({"autoconfigure": False}, True),
        ({"encapsulation": Encapsulation.IP}, True),
        ({"encapsulation": Encapsulation.ETHERNET}, False),
        ({"keepalive": 1.0, "cpu": 0}, False),
    ],
)
def test_session_cannot_go_on_where_there_is_none_after_it_or_one_with_other_keys(
    changes: dict[str, object], new_session: bool
) -> None:
    after = replace(CIRCUIT, **changes)  # type: ignore[arg-type]

    assert difference(CIRCUIT, after).new_session is new_session
    assert difference(after, CIRCUIT).new_session is new_session


def test_manual_lists_each_key_under_its_effect() -> None:
    manual = Path(__file__).resolve().parents[2] / "docs" / "operating.md"
    section = manual.read_text().partition("## Reload")[2].partition("\n## ")[0]
    listed = {
        key: cells[1].strip()
        for line in section.splitlines()
        if line.startswith("|") and len(cells := line.split("|")) == 5
        for key in re.findall(r"`([a-z_.]+)`", cells[3])
    }

    rows = {**CIRCUIT_EFFECTS, **{f"peer.{key}": row for key, row in PEER_EFFECTS.items()}}
    assert listed == {key: row.effect.value for key, row in rows.items()}


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [
        (None, 1, Effect.NEW_WORKER),
        (0, 1, Effect.NEW_WORKER),
        ((0, 1), 0, Effect.NEW_WORKER),
        ((0, 1), None, Effect.NEW_WORKER),
        ((0, 1), (1, 0), Effect.NEW_WORKER),
        (0, (0, 1), Effect.NEW_INTERFACE),
        (None, (0, 1), Effect.NEW_INTERFACE),
    ],
)
def test_several_cpus_instead_of_one_take_another_interface(
    before: int | tuple[int, ...] | None, after: int | tuple[int, ...] | None, effect: Effect
) -> None:
    assert difference(replace(CIRCUIT, cpu=before), replace(CIRCUIT, cpu=after)).effect is effect
