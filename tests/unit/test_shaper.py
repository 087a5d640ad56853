"""vela.supervisor.circuit.shaper, over a stand-in for the qdiscs that the kernel has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from vela.errors import DeviceError
from vela.linux.netlink import Netlink
from vela.linux.rtnetlink import Qdisc
from vela.linux.shaping import TokenBucketFilter
from vela.supervisor.circuit.shaper import Shaper

NAME = "vela0"
RATE, OTHER_RATE, MTU = 100_000_000, 50_000_000, 1400
OWN = Qdisc("tbf", 0x7E1A)
FOREIGN, FOREIGN_TBF = Qdisc("htb", 0x8001), Qdisc("tbf", 0x8002)
DEFAULT_KIND = "fq_codel"
"""Of an interface that nobody has given a qdisc."""


class Kernel:
    """The qdisc at the root of one interface. It remembers what was asked of it."""

    def __init__(self) -> None:
        self.root: Qdisc | None = None
        self.limit: TokenBucketFilter | None = None
        self.calls: list[str] = []
        self.error = ""
        """What each call fails with."""

    def _note(self, call: str, name: str) -> None:
        assert name == NAME
        self.calls.append(call)
        if self.error:
            raise DeviceError(self.error)

    def qdisc_kind(self, name: str) -> str:
        self._note("kind", name)
        return DEFAULT_KIND if self.root is None else self.root.kind

    def root_qdisc(self, name: str) -> Qdisc | None:
        self._note("root", name)
        return self.root

    def set_qdisc(self, name: str, limit: TokenBucketFilter) -> None:
        self._note("set", name)
        self.root, self.limit = OWN, limit

    def remove_qdisc(self, name: str) -> None:
        self._note("remove", name)
        assert self.root == OWN
        self.root = self.limit = None

    # What an operator does.

    def put(self, foreign: Qdisc) -> None:
        self.root, self.limit = foreign, None

    def take_off(self) -> None:
        self.root = self.limit = None

    def asked(self) -> list[str]:
        """Return what was asked since the last time."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def make(kernel: Kernel) -> Callable[..., Shaper]:
    def made(**changes: Any) -> Shaper:
        return Shaper(NAME, cast(Netlink, kernel), **changes)

    return made


@pytest.fixture
def shaper(make: Callable[..., Shaper]) -> Shaper:
    return make()


def test_interface_is_limited_to_the_rate_and_no_longer(kernel: Kernel, shaper: Shaper) -> None:
    shaper.limit(RATE, MTU)
    assert kernel.limit == TokenBucketFilter.of(RATE, MTU)
    assert not shaper.obstacle

    shaper.limit(None, MTU)
    assert kernel.root is None
    assert kernel.asked()[-1] == "remove"


def test_limit_that_somebody_has_removed_is_not_removed_again(
    kernel: Kernel, shaper: Shaper
) -> None:
    shaper.limit(RATE, MTU)
    kernel.take_off()

    shaper.limit(None, MTU)

    assert not shaper.obstacle
    assert "remove" not in kernel.asked()


@pytest.mark.parametrize(("rate", "mtu"), [(OTHER_RATE, MTU), (RATE, 1300)])
def test_other_rate_and_other_mtu_are_another_limit(
    kernel: Kernel, shaper: Shaper, rate: int, mtu: int
) -> None:
    shaper.limit(RATE, MTU)

    shaper.limit(rate, mtu)

    assert kernel.limit == TokenBucketFilter.of(rate, mtu)


def test_interface_that_is_not_to_be_limited_is_not_looked_at(
    kernel: Kernel, shaper: Shaper
) -> None:
    shaper.limit(None, MTU)
    shaper.check()

    assert kernel.calls == []


def test_limit_that_is_there_is_neither_set_again_nor_told_to_listeners(
    kernel: Kernel, shaper: Shaper
) -> None:
    """Asking for the qdisc itself tells all that listen, before Linux 6.8."""
    shaper.limit(RATE, MTU)
    kernel.asked()

    for _ in range(3):
        shaper.limit(RATE, MTU)
        shaper.check()

    assert kernel.asked() == ["kind"] * 3


def test_limit_that_somebody_removes_is_set_again(kernel: Kernel, shaper: Shaper) -> None:
    shaper.limit(RATE, MTU)
    kernel.take_off()

    shaper.check()

    assert kernel.limit == TokenBucketFilter.of(RATE, MTU)


def test_limit_of_the_velad_before_is_removed_where_there_is_to_be_none(
    kernel: Kernel, make: Callable[..., Shaper]
) -> None:
    kernel.root = OWN
    shaper = make(adopted=True)

    shaper.limit(None, MTU)

    assert kernel.root is None
    kernel.asked()
    shaper.check()
    assert kernel.calls == []


def test_limit_of_the_velad_before_is_set_to_what_is_wanted_now(
    kernel: Kernel, make: Callable[..., Shaper]
) -> None:
    """What it was is not known."""
    kernel.root = OWN
    shaper = make(adopted=True)

    shaper.limit(RATE, MTU)

    assert kernel.limit == TokenBucketFilter.of(RATE, MTU)


def test_qdisc_of_somebody_else_on_an_adopted_interface_is_left_alone_for_good(
    kernel: Kernel, make: Callable[..., Shaper]
) -> None:
    kernel.put(FOREIGN)
    shaper = make(adopted=True)

    shaper.limit(None, MTU)
    shaper.check()

    assert kernel.root == FOREIGN
    assert kernel.asked() == ["root"]
    assert not shaper.obstacle


def test_qdisc_of_somebody_else_is_left_alone_and_said_once(kernel: Kernel, shaper: Shaper) -> None:
    kernel.put(FOREIGN)

    with capture_logs() as lines:
        shaper.limit(RATE, MTU)
        shaper.check()
        shaper.check()

    assert kernel.root == FOREIGN
    assert "vela0 has a qdisc that velad did not make, htb 8001:;" in str(shaper.obstacle)
    assert "tc qdisc delete dev vela0 root removes it" in str(shaper.obstacle)
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("rate_not_limited", "warning")
    assert line["reason"] == str(shaper.obstacle)


def test_limit_is_set_when_the_qdisc_of_somebody_else_is_gone(
    kernel: Kernel, shaper: Shaper
) -> None:
    shaper.limit(RATE, MTU)
    kernel.put(FOREIGN)
    shaper.check()
    assert shaper.obstacle
    kernel.take_off()

    shaper.check()

    assert not shaper.obstacle
    assert kernel.limit == TokenBucketFilter.of(RATE, MTU)


def test_tbf_of_somebody_else_in_place_of_a_foreign_qdisc_is_not_taken_for_velads(
    kernel: Kernel, shaper: Shaper
) -> None:
    shaper.limit(RATE, MTU)
    kernel.put(FOREIGN)
    shaper.check()
    kernel.put(FOREIGN_TBF)

    shaper.check()

    assert "tbf" in str(shaper.obstacle)
    assert kernel.root == FOREIGN_TBF


def test_obstacle_is_gone_where_there_is_to_be_no_limit_any_more(
    kernel: Kernel, shaper: Shaper
) -> None:
    kernel.put(FOREIGN)
    shaper.limit(RATE, MTU)
    assert shaper.obstacle

    shaper.limit(None, MTU)
    shaper.check()

    assert not shaper.obstacle
    assert kernel.root == FOREIGN


def test_error_of_the_kernel_is_the_obstacle_until_there_is_none(
    kernel: Kernel, shaper: Shaper
) -> None:
    kernel.error = "vela0: cannot limit its rate: No buffer space available"

    with capture_logs() as lines:
        shaper.limit(RATE, MTU)
        shaper.check()
    assert kernel.error in str(shaper.obstacle)
    assert len(lines) == 1
    kernel.error = ""
    shaper.check()

    assert not shaper.obstacle
    assert kernel.limit == TokenBucketFilter.of(RATE, MTU)
    # The next time it is said again.
    kernel.error = "vela0: cannot look at its qdisc: Cannot allocate memory"
    with capture_logs() as lines:
        shaper.check()
    assert len(lines) == 1
