"""vela.supervisor.registry.registry: circuits that were resumed seek sessions with new keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from simulation import ROUTER_A, Machine, Network, network

from vela.supervisor.registry.registry import (
    RENEWAL_INTERVAL_S,
    RENEWALS_AT_ONCE,
    SETTLE_S,
    Registry,
)

COUNT = 3 * RENEWALS_AT_ONCE


@dataclass
class Resumed:
    """As much of a circuit as this is about."""

    name: str
    changes_over: bool = False
    asked: bool = False
    renews: bool = False

    def renew_keys(self) -> None:
        assert not self.asked
        self.asked = self.renews = True

    def freeze(self) -> None:
        pass

    def thaw(self) -> None:
        pass


class Resumption:
    """A registry whose circuits were all resumed."""

    def __init__(self, simulated: Network, directory: Path) -> None:
        self.network = simulated
        machine = Machine(simulated, ROUTER_A, directory)
        machine.boot()
        assert machine.registry is not None
        self.registry: Registry = machine.registry
        self.circuits = [Resumed(f"vela{number}") for number in range(COUNT)]
        everything = cast(Any, self.registry)
        everything._circuits.update({each.name: each for each in self.circuits})
        everything._without_keys.extend(self.circuits)
        self.registry.resume({})

    @property
    def asked(self) -> int:
        return sum(each.asked for each in self.circuits)

    def run(self, seconds: float) -> None:
        self.network.loop.run_for(seconds)

    def answer_all(self) -> None:
        """Let all that seek a session have it."""
        for each in self.circuits:
            each.renews = False


@pytest.fixture
def resumption(tmp_path: Path) -> Iterator[Resumption]:
    with network(1) as simulated:
        made = Resumption(simulated, tmp_path)
        yield made
        assert not simulated.loop.failures


def test_so_many_seek_at_once_and_others_as_soon_as_one_is_through(resumption: Resumption) -> None:
    resumption.run(RENEWAL_INTERVAL_S / 2)
    assert resumption.asked == RENEWALS_AT_ONCE

    resumption.circuits[0].renews = False
    resumption.run(RENEWAL_INTERVAL_S)
    assert resumption.asked == RENEWALS_AT_ONCE + 1


def test_remote_that_does_not_answer_holds_nobody_up(resumption: Resumption) -> None:
    resumption.run(RENEWAL_INTERVAL_S * (COUNT - RENEWALS_AT_ONCE + 2))

    assert resumption.asked == COUNT


def test_none_begins_once_another_velad_is_to_take_over(resumption: Resumption) -> None:
    handed_over: list[float] = []
    resumption.circuits[0].changes_over = True
    resumption.run(RENEWAL_INTERVAL_S / 2)
    resumption.registry.once_settled(lambda: handed_over.append(resumption.network.loop.now()))
    resumption.answer_all()
    resumption.run(SETTLE_S / 2)
    assert not handed_over

    resumption.circuits[0].changes_over = False
    resumption.run(SETTLE_S / 2)

    assert len(handed_over) == 1
    assert resumption.asked == RENEWALS_AT_ONCE


def test_all_go_on_where_it_does_not_take_over(resumption: Resumption) -> None:
    resumption.run(RENEWAL_INTERVAL_S / 2)
    resumption.registry.once_settled(lambda: None)
    resumption.answer_all()

    resumption.run(SETTLE_S + RENEWAL_INTERVAL_S * COUNT)

    assert resumption.asked == COUNT


def test_all_go_on_at_once_where_it_has_begun_and_given_up(resumption: Resumption) -> None:
    resumption.run(RENEWAL_INTERVAL_S / 2)
    resumption.registry.once_settled(resumption.registry.freeze)
    resumption.answer_all()
    resumption.run(1.0)
    assert resumption.asked == RENEWALS_AT_ONCE

    resumption.registry.thaw(())
    resumption.run(RENEWAL_INTERVAL_S)

    assert resumption.asked > RENEWALS_AT_ONCE


def test_none_begins_at_the_second_handover_because_the_first_came_to_nothing(
    resumption: Resumption,
) -> None:
    resumption.run(RENEWAL_INTERVAL_S / 2)
    resumption.registry.once_settled(lambda: None)
    resumption.answer_all()
    resumption.run(SETTLE_S / 2)

    resumption.registry.once_settled(lambda: None)
    resumption.run(0.9 * SETTLE_S)

    assert resumption.asked == RENEWALS_AT_ONCE
