"""The limit of open files is refused before it is reached."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from vela.supervisor.runtime.descriptors import RESERVE, DescriptorBudget, NoRoomError


@pytest.fixture
def limit() -> Iterator[int]:
    """Room for 14 more, beside the reserve."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = len(os.listdir("/proc/self/fd")) - 1 + RESERVE + 14
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_holders_that_fit_are_let_in_and_one_more_is_refused_with_the_limit(limit: int) -> None:
    budget = DescriptorBudget(7)
    budget.take()
    # What the first one has opened of its own is not counted twice.
    opened = os.open("/dev/null", os.O_RDONLY)
    budget.take()
    os.close(opened)

    for _ in range(2):
        with pytest.raises(NoRoomError, match=f"the limit of open files, {limit}, leaves no room"):
            budget.take()
    budget.give_back()
    budget.take()


def test_what_is_open_before_counts(limit: int) -> None:
    opened = os.open("/dev/null", os.O_RDONLY)
    try:
        budget = DescriptorBudget(7)
    finally:
        os.close(opened)

    budget.take()
    with pytest.raises(NoRoomError):
        budget.take()
