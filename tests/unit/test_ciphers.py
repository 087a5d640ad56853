"""vela.supervisor.registry.ciphers: how many handshakes of strangers are answered."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from simulated_link import LOCAL1, OFFER

from vela.address import Endpoint
from vela.errors import ConfigError
from vela.linux.sandbox import User
from vela.signaling.events import CircuitRequested
from vela.signaling.link import Link
from vela.supervisor.config.records import AutoconfigureConfig, DaemonConfig
from vela.supervisor.keys import Keys
from vela.supervisor.registry.ciphers import Ciphers
from vela.supervisor.runtime.loop import EventLoop


@pytest.fixture
def ciphers(tmp_path: Path) -> Iterator[Ciphers]:
    """Of an engine that cannot encrypt, so that a handshake that is taken up fails in words."""
    loop = EventLoop()
    keys = Keys(loop, User(0, 0), tmp_path)
    yield Ciphers(keys, DaemonConfig(), ())
    keys.close()
    loop.close()


def test_handshakes_of_strangers_are_a_hundred_a_second_whoever_they_are(ciphers: Ciphers) -> None:
    def taken(count: int, now: float) -> int:
        found = 0
        for number in range(count):
            source = Endpoint(ip_address(f"192.0.2.{number % 200 + 1}"), 48621)
            confirm = Link(1, 0x11, 0x22, source, None).confirm(LOCAL1, OFFER, False)
            try:
                ciphers.answer(CircuitRequested(source, confirm), AutoconfigureConfig(), None, now)
            except ConfigError:
                found += 1
        return found

    assert taken(1000, 50.0) == 100
    assert taken(1000, 50.0) == 0
    assert taken(1000, 50.5) == 50
