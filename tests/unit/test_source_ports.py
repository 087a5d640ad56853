"""vela.supervisor.circuit.source_ports: which ports a circuit has, one or several in a row."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import cast

import pytest

from vela.address import Endpoint
from vela.errors import DeviceError
from vela.linux.choice import ANY_UNDERLAY
from vela.linux.underlay import ReceiveGroup, Route, UnderlayPath
from vela.supervisor.circuit.source_ports import SourcePorts, derived_ports
from vela.wire import MAX_SOURCE_PORT, MIN_SOURCE_PORT

HERE = ip_address("127.0.0.1")
REMOTE = Endpoint(ip_address("127.0.0.9"), 48621)
PATH = UnderlayPath(REMOTE, (REMOTE.address,), Route(HERE, 65535), cast(ReceiveGroup, None))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as undo:
        yield undo


def opened(
    stack: ExitStack, ports: list[int], count: int, made: SourcePorts | None = None
) -> list[int]:
    row = (made or SourcePorts(None)).open(
        PATH, ports, count, ANY_UNDERLAY, lambda _: None, narrowed=False, tos=0
    )
    for each in row:
        stack.enter_context(each)
        assert each.getpeername() == (str(REMOTE.address), REMOTE.port)
    return [each.getsockname()[1] for each in row]


def take(stack: ExitStack, port: int) -> None:
    """Let another program have a port."""
    other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    other.bind((str(HERE), port))


def free_ports(count: int) -> list[int]:
    """Return a row of ports that nobody has, from a multiple of 8 on."""
    for first in range(50000, 60000, 8):
        with ExitStack() as undo:
            try:
                for port in range(first, first + count):
                    take(undo, port)
            except OSError:
                continue
            return list(range(first, first + count))
    raise AssertionError("all ports are taken")


def test_ports_of_a_row_begin_at_a_multiple_of_their_number(stack: ExitStack) -> None:
    ports = free_ports(32)
    for count in (2, 4, 8):
        with ExitStack() as undo:
            row = opened(undo, ports[5:], count)
            assert row == list(range(row[0], row[0] + count))
            assert row[0] % count == 0
            assert row[0] <= ports[5] <= row[-1]
    assert opened(stack, ports[5:], 1) == [ports[5]]


def test_row_with_a_port_that_is_taken_is_passed_over(stack: ExitStack) -> None:
    ports = free_ports(32)
    take(stack, ports[2])

    assert opened(stack, ports[1:], 4) == ports[4:8]
    # What was opened of the other row is closed again.
    take(stack, ports[0])


def test_one_port_where_there_is_no_row(stack: ExitStack) -> None:
    ports = free_ports(32)
    for port in ports[1::2]:
        take(stack, port)

    assert opened(stack, ports, 2) == [ports[0]]


def test_no_port_at_all_is_said(stack: ExitStack) -> None:
    ports = free_ports(8)
    for port in ports:
        take(stack, port)

    with pytest.raises(DeviceError, match=f"{ports[0]} and 3 more"):
        opened(stack, ports[:4], 2)


def test_row_does_not_leave_the_range_of_ports(stack: ExitStack) -> None:
    row = opened(stack, [MAX_SOURCE_PORT, MIN_SOURCE_PORT + 1], 8)

    assert MIN_SOURCE_PORT <= row[0] < row[-1] <= MAX_SOURCE_PORT


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sockets_of_another_velad_are_taken_over_together(stack: ExitStack, count: int) -> None:
    ports = free_ports(32)[5:]
    with ExitStack() as undo:
        row = SourcePorts(None).open(
            PATH, ports, count, ANY_UNDERLAY, lambda _: None, narrowed=False, tos=0
        )
        wanted = [each.getsockname()[1] for each in map(undo.enter_context, row)]
        first, *further = (os.dup(each.fileno()) for each in row)
        inherited = SourcePorts(first, further)
        assert opened(stack, ports, count, inherited) == wanted
    inherited.close()


def test_socket_of_another_velad_to_elsewhere_is_not_taken_over(stack: ExitStack) -> None:
    ports = free_ports(32)
    other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    other.bind((str(HERE), ports[0]))
    other.connect(("127.0.0.8", 48621))

    assert opened(stack, ports, 1, SourcePorts(os.dup(other.fileno()))) == [ports[1]]


def test_ports_of_a_circuit_are_its_own() -> None:
    assert derived_ports("vela0 1") == derived_ports("vela0 1") != derived_ports("vela1 1")
    assert all(MIN_SOURCE_PORT <= port <= MAX_SOURCE_PORT for port in derived_ports("vela0 1"))
