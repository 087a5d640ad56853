"""vela.supervisor.frame_ports: which ports of a remote are right, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulation import StrictLoop

from vela.supervisor.frame_ports import FORMER_PORT_S, FramePorts

CLAIM, OTHER = "vela0", "vela1"


class Ports(FramePorts):
    def __init__(self) -> None:
        self.loop = StrictLoop()
        self.changes = 0
        super().__init__(self.loop, self._count)

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    made.loop.close()


def test_first_port_is_the_only_one(ports: Ports) -> None:
    assert ports.of(CLAIM) == ()
    ports.expect(CLAIM, 50000)

    assert ports.of(CLAIM) == (50000,)
    assert ports.of(OTHER) == ()


def test_former_port_is_right_for_a_while(ports: Ports) -> None:
    ports.expect(CLAIM, 50000)
    ports.expect(CLAIM, 50001)

    ports.loop.run_for(FORMER_PORT_S - 0.1)
    assert ports.of(CLAIM) == (50001, 50000)
    ports.loop.run_for(0.2)
    assert ports.of(CLAIM) == (50001,)
    assert ports.changes == 3


def test_the_same_port_again_changes_nothing(ports: Ports) -> None:
    ports.expect(CLAIM, 50000)
    ports.expect(CLAIM, 50001)
    ports.loop.run_for(FORMER_PORT_S / 2)
    ports.expect(CLAIM, 50001)
    ports.loop.run_for(FORMER_PORT_S / 2 + 0.1)

    assert ports.of(CLAIM) == (50001,)
    assert ports.changes == 3


def test_two_changes_leave_the_last_two_ports(ports: Ports) -> None:
    """And the second one begins the time anew."""
    for port in (50000, 50001, 50002):
        ports.expect(CLAIM, port)
        ports.loop.run_for(FORMER_PORT_S - 0.1)

    assert ports.of(CLAIM) == (50002, 50001)
    ports.expect(CLAIM, 50001)
    assert ports.of(CLAIM) == (50001, 50002)


def test_any_port_is_right_at_once_and_one_behind_it_alone(ports: Ports) -> None:
    ports.expect(CLAIM, 50000)
    ports.expect(CLAIM, None)
    assert ports.of(CLAIM) == ()
    ports.expect(CLAIM, 50001)

    assert ports.of(CLAIM) == (50001,)


def test_claim_that_is_gone_is_forgotten_for_good(ports: Ports) -> None:
    ports.expect(CLAIM, 50000)
    ports.expect(CLAIM, 50001)
    ports.forget(CLAIM)
    ports.loop.run_for(FORMER_PORT_S + 1)

    assert ports.of(CLAIM) == ()


def test_ports_in_a_row_are_right_together_and_for_a_while_after_they_are_fewer(
    ports: Ports,
) -> None:
    ports.expect(CLAIM, 50000, 3)
    assert ports.of(CLAIM) == (50000, 50001, 50002)
    ports.expect(CLAIM, 50000, 3)
    assert ports.changes == 1
    ports.expect(CLAIM, 50000)
    assert ports.of(CLAIM) == (50000, 50001, 50002)

    ports.loop.run_for(FORMER_PORT_S + 0.1)
    assert ports.of(CLAIM) == (50000,)
