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
        self.most = 8
        super().__init__(self.loop, self._bind)

    def _bind(self, path: object, wanted: int | None, count: int) -> tuple[socket.socket, ...]:
        if wanted is not None:
            self.free(wanted)
        self.opened += 1
        opened: list[socket.socket] = []
        while len(opened) < min(count, self.most):
            each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            each.bind(("127.0.0.1", port_of(opened[-1]) + 1 if opened else wanted or 0))
            opened.append(each)
        return tuple(opened)


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
    made.loop.close()


def test_socket_that_was_prepared_is_the_one_that_is_taken(sockets: Sockets) -> None:
    port = sockets.prepare(PATH, None)

    assert sockets.prepare(PATH, None) == port
    assert port_of(sockets.take(PATH, None)[0]) == port
    assert sockets.take(PATH, None) is sockets.all_present
    assert sockets.opened == 1


def test_former_port_is_nobody_elses_for_as_long_as_the_remote_takes_it(sockets: Sockets) -> None:
    former = port_of(sockets.take(PATH, None)[0])
    sockets.prepare(PATH, None)
    sockets.retire()
    assert port_of(sockets.take(PATH, None)[0]) != former

    sockets.loop.run_for(FORMER_PORT_S + 1)
    assert not is_free(former)
    sockets.loop.run_for(HELD_S)
    assert is_free(former)


def test_port_that_is_wanted_again_is_to_be_had(sockets: Sockets) -> None:
    former = port_of(sockets.take(PATH, None)[0])
    for port in (None, former, None, former):
        sockets.retire()
        taken = port_of(sockets.take(PATH, port)[0])
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
    assert port_of(sockets.take(PATH, wanted)[0]) == wanted


def test_all_ports_are_free_after_close(sockets: Sockets) -> None:
    ports = [port_of(sockets.take(PATH, None)[0])]
    sockets.retire()
    ports += [port_of(sockets.take(PATH, None)[0]), sockets.prepare(PATH, None)]

    sockets.close()

    assert all(map(is_free, ports))
    sockets.retire()
    assert sockets.present is None


def ports_of(row: tuple[socket.socket, ...]) -> list[int]:
    return [port_of(each) for each in row]


def test_sockets_in_a_row_are_taken_retired_and_freed_together(sockets: Sockets) -> None:
    first = sockets.prepare(PATH, None, 3)
    assert sockets.count_from(first) == 3
    row = sockets.take(PATH, None, 3)
    ports = ports_of(row)

    assert ports == [first, first + 1, first + 2]
    assert sockets.present is row[0]
    assert sockets.count_from(first) == 3
    assert sockets.count_from(first + 1) == 1
    sockets.retire()
    assert not any(map(is_free, ports))
    sockets.loop.run_for(HELD_S + 0.1)
    assert all(map(is_free, ports))


def test_sockets_that_are_there_are_taken_though_fewer_were_opened(sockets: Sockets) -> None:
    sockets.most = 2
    row = sockets.take(PATH, None, 4)

    assert len(row) == 2
    assert sockets.count_from(port_of(row[0])) == 2
    assert sockets.take(PATH, None, 4) is row


def test_another_number_of_sockets_is_prepared_anew(sockets: Sockets) -> None:
    sockets.prepare(PATH, None)
    port = sockets.prepare(PATH, None, 2)

    assert sockets.opened == 2
    assert ports_of(sockets.take(PATH, None, 2)) == [port, port + 1]
