"""vela.supervisor.circuit.send_sockets: which ports a circuit has, and for how long."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from simulation import StrictLoop

from vela.supervisor.circuit.send_sockets import HELD_S, SendSockets
from vela.supervisor.frame_ports import FORMER_PORT_S

PATH: Any = None  # the opener here does not look at it


class Sockets(SendSockets):
    def __init__(self) -> None:
        self.loop = StrictLoop()
        self.opened = 0
        super().__init__(self.loop, self._bind)

    def _bind(self, path: object, wanted: int | None) -> socket.socket:
        if wanted is not None:
            self.free(wanted)
        self.opened += 1
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("127.0.0.1", wanted or 0))
        return opened


def port_of(each: socket.socket) -> int:
    port: int = each.getsockname()[1]
    return port


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()


def test_socket_that_was_prepared_is_the_one_that_is_taken(sockets: Sockets) -> None:
    port = sockets.prepare(PATH, None)

    assert sockets.prepare(PATH, None) == port
    assert port_of(sockets.take(PATH, None)) == port
    assert sockets.take(PATH, None) is sockets.present
    assert sockets.opened == 1


def test_former_port_is_nobody_elses_for_as_long_as_the_remote_takes_it(sockets: Sockets) -> None:
    former = port_of(sockets.take(PATH, None))
    sockets.prepare(PATH, None)
    sockets.retire()
    assert port_of(sockets.take(PATH, None)) != former

    sockets.loop.run_for(FORMER_PORT_S + 1)
    assert not is_free(former)
    sockets.loop.run_for(HELD_S)
    assert is_free(former)


def test_port_that_is_wanted_again_is_to_be_had(sockets: Sockets) -> None:
    former = port_of(sockets.take(PATH, None))
    for port in (None, former, None, former):
        sockets.retire()
        taken = port_of(sockets.take(PATH, port))
        assert port in (None, taken)

    sockets.loop.run_for(HELD_S + 1)
    assert not is_free(former)


def test_another_port_than_the_prepared_one_takes_its_place(sockets: Sockets) -> None:
    prepared = sockets.prepare(PATH, None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        wanted = port_of(probe)
    sockets.prepare(PATH, wanted)

    assert is_free(prepared)
    assert port_of(sockets.take(PATH, wanted)) == wanted


def test_all_ports_are_free_after_close(sockets: Sockets) -> None:
    ports = [port_of(sockets.take(PATH, None))]
    sockets.retire()
    ports += [port_of(sockets.take(PATH, None)), sockets.prepare(PATH, None)]

    sockets.close()

    assert all(map(is_free, ports))
    sockets.retire()
    assert sockets.present is None
