"""Interface names for circuits that others set up without naming them."""

from __future__ import annotations

import socket

import pytest

from vela.errors import ConfigError
from vela.supervisor.config.records import DaemonConfig
from vela.supervisor.registry.allocation import Allocation


@pytest.fixture
def allocation() -> Allocation:
    return Allocation(DaemonConfig(), {}, reserved=())


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of interfaces, in place of those that this machine happens to have."""
    names: set[str] = set()

    def index(name: str) -> int:
        if name not in names:
            raise OSError("no interface with this name")
        return 1

    monkeypatch.setattr(socket, "if_nametoindex", index)
    return names


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("vela*", "vela2"),
        ("*-pw", "0-pw"),
        ("verylonginterf*", "verylonginterf0"),
        ("fifteen-letter-*", "fifteen-letter-"),
    ],
)
def test_free_name_fits_the_pattern_and_the_kernel(
    allocation: Allocation, taken: set[str], pattern: str, chosen: str
) -> None:
    taken |= {"vela0", "vela1"}

    assert allocation.free_name(pattern) == chosen


@pytest.mark.parametrize("pattern", ["verylonginterf*", "customer-circuit*", "vela[0-9]"])
def test_pattern_without_a_free_name_is_refused_in_words(
    allocation: Allocation, taken: set[str], pattern: str
) -> None:
    taken |= {f"verylonginterf{digit}" for digit in range(10)} | {"verylonginterf"}

    with pytest.raises(ConfigError, match=r"no interface name that matches .* is free"):
        allocation.free_name(pattern)
