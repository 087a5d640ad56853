"""What comes past a circuit's worker, and what the worker passes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from attached_plane import CIRCUIT, LOCAL, REMOTE, Circuit, queued
from simulation import StrictLoop

from vela.address import Endpoint, IPAddress
from vela.dataplane.counters import Counters, Slot
from vela.dataplane.echo import echo_request
from vela.dataplane.frame import REBUILD_ROOM
from vela.linux.underlay import Route, UnderlayPath
from vela.supervisor.circuit.diversion import Diversion
from vela.supervisor.demux import UNKNOWN_PORT

HERE, THERE = ip_address("192.0.2.1"), ip_address("192.0.2.2")
PORT = 48621
ETHERNET = REMOTE + LOCAL + b"\x88\xb5" + b"payload"
PIECE = bytes((CIRCUIT, 0x44)) + bytes(20)
ECHO = echo_request(CIRCUIT, b"identity", 1.0)
SOMEBODY_ELSES = bytes((CIRCUIT + 1,)) + ETHERNET
CLAIM: Any = object()  # the dispatcher here does not look at it


class Bench:
    """A diversion, the worker's end of it, and all that is around it."""

    def __init__(self, stack: ExitStack) -> None:
        self.loop = StrictLoop()
        stack.callback(self.loop.close)
        self.counters = Counters()
        self.written: list[bytes] = []
        self.broken = False
        self.dispatched: list[tuple[Endpoint, IPAddress, bytes]] = []
        self.port: int | None = PORT
        self.echoes: list[bytes] = []
        self.diversion = Diversion(
            "vela0", CIRCUIT, self.loop, self, self.counters, bytearray(70000), self._write
        )
        stack.callback(self.diversion.close)
        self.plane = Circuit(stack, "python")
        group: Any = object()  # nor does anything here look at this
        self.path = UnderlayPath(Endpoint(THERE, PORT), (THERE,), Route(HERE, 1500), group)
        self.diversion.set_echo_handler(self._on_echo)

    def follow(self, *, key_page: int | None = None) -> None:
        attachment = replace(self.plane.attachment, key_page=key_page)
        self.diversion.follow(attachment, (), self.path, CLAIM)

    def deliver(self, datagram: bytes) -> None:
        data = bytearray(REBUILD_ROOM) + datagram
        self.diversion.deliver(data, REBUILD_ROOM, len(data))

    def pass_on(self, datagram: bytes) -> None:
        self.diversion.worker_ends[0].send(datagram)
        self.loop.run_for(0.1)
        assert self.loop.failures == []

    def counted(self) -> dict[Slot, int]:
        return {slot: self.counters.supervisor[slot] for slot in Slot if self.counters.total(slot)}

    def handed_over(self) -> list[bytes]:
        """Return what the worker has got."""
        found = []
        while True:
            try:
                found.append(self.diversion.worker_ends[0].recv(70000))
            except BlockingIOError:
                return found

    def _write(self, frame: memoryview) -> None:
        if self.broken:
            raise OSError
        self.written.append(bytes(frame))

    def _on_echo(self, message: memoryview, age_s: float) -> bool:
        assert 0 <= age_s < 10
        self.echoes.append(bytes(message))
        return bytes(message[3:11]) == b"identity"

    # As demux.Demux.

    def port_of(self, claim: object) -> int | None:
        assert claim is CLAIM
        return self.port

    def dispatch(
        self, source: Endpoint, here: IPAddress, data: bytearray, start: int, end: int
    ) -> None:
        self.dispatched.append((source, here, bytes(data[start:end])))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


def test_frame_that_comes_past_the_worker_is_given_to_the_interface(bench: Bench) -> None:
    bench.follow()

    bench.deliver(bytes((CIRCUIT,)) + ETHERNET)

    assert bench.written == [ETHERNET]
    assert bench.counted() == {Slot.RX_FRAMES: 1, Slot.RX_BYTES: len(ETHERNET)}


def test_interface_that_is_down_costs_the_frame_and_is_counted(bench: Bench) -> None:
    bench.follow()
    bench.broken = True

    bench.deliver(bytes((CIRCUIT,)) + ETHERNET)

    assert bench.counted() == {Slot.RX_INTERFACE_DOWN: 1}


@pytest.mark.parametrize(
    ("datagram", "slot"),
    [(PIECE, Slot.RX_INCOMPLETE), (bytes((CIRCUIT, 0x42, 0)), Slot.RX_RESERVED)],
)
def test_what_is_no_frame_is_counted(bench: Bench, datagram: bytes, slot: Slot) -> None:
    bench.follow()

    bench.deliver(datagram)

    assert (bench.written, bench.counted()) == ([], {slot: 1})


def test_echo_that_nobody_awaits_is_counted_and_one_that_is_awaited_is_not(bench: Bench) -> None:
    bench.follow()

    bench.deliver(ECHO)
    assert (bench.echoes, bench.counted()) == ([ECHO], {})
    bench.deliver(ECHO.replace(b"identity", b"stranger"))
    bench.pass_on(ECHO.replace(b"identity", b"stranger"))
    assert bench.counted() == {Slot.RX_RESERVED: 2}


@pytest.mark.parametrize("datagram", [bytes((CIRCUIT,)) + ETHERNET, ECHO, PIECE])
def test_datagram_of_an_encrypted_circuit_goes_to_the_worker_and_to_nobody_else(
    bench: Bench, datagram: bytes
) -> None:
    bench.follow(key_page=99)

    bench.deliver(datagram)

    assert bench.handed_over() == [datagram]
    assert (bench.written, bench.echoes, bench.counted()) == ([], [], {})


def test_worker_that_takes_nothing_costs_datagrams_and_they_are_counted(bench: Bench) -> None:
    bench.follow(key_page=99)

    for _ in range(10_000):
        bench.deliver(bytes(1400))

    got = len(bench.handed_over())
    assert 0 < got < 10_000
    assert bench.counted() == {Slot.RX_CONGESTED: 10_000 - got}


def test_datagram_of_another_circuit_is_dispatched_as_from_the_remote(bench: Bench) -> None:
    bench.follow()
    bench.pass_on(SOMEBODY_ELSES)
    bench.port = None
    bench.pass_on(SOMEBODY_ELSES)

    assert bench.dispatched == [
        (Endpoint(THERE, PORT), HERE, SOMEBODY_ELSES),
        (Endpoint(THERE, UNKNOWN_PORT), HERE, SOMEBODY_ELSES),
    ]


def test_nothing_is_passed_on_nor_asked_while_no_frames_are_carried(bench: Bench) -> None:
    bench.follow()
    bench.diversion.rest()

    bench.pass_on(SOMEBODY_ELSES)
    bench.deliver(bytes((CIRCUIT,)) + ETHERNET)
    bench.diversion.send_echo(ECHO)

    assert (bench.dispatched, bench.written, bench.counted()) == ([], [], {})
    assert queued(bench.plane.remote) == bench.handed_over() == []


def test_echo_request_leaves_from_where_frames_do_or_is_handed_over_to_be_sealed(
    bench: Bench,
) -> None:
    bench.follow()
    bench.diversion.send_echo(ECHO)
    assert queued(bench.plane.remote) == [ECHO]

    bench.follow(key_page=99)
    bench.diversion.send_echo(ECHO)
    (handed_over,) = bench.handed_over()
    assert handed_over[0] == 0
    assert handed_over.endswith(ECHO)
    assert queued(bench.plane.remote) == []


def test_each_queue_has_a_way_of_its_own_and_is_asked_in_turn(bench: Bench) -> None:
    """The path of one of its ports may be broken."""
    bench.diversion.make_room(3)
    attachment = replace(bench.plane.attachment, key_page=99)
    bench.diversion.follow(attachment, (attachment, attachment), bench.path, CLAIM)

    for _ in range(6):
        bench.diversion.send_echo(ECHO)
    for end in bench.diversion.worker_ends:
        assert [end.recv(1000)[-len(ECHO) :] for _ in range(2)] == [ECHO, ECHO]
        with pytest.raises(BlockingIOError):
            end.recv(1000)

    for end in bench.diversion.worker_ends:
        end.send(ECHO)
    bench.loop.run_for(0.1)
    assert bench.echoes == [ECHO] * 3


def test_ends_are_closed(bench: Bench) -> None:
    diversion = Diversion(
        "vela0", CIRCUIT, bench.loop, bench, bench.counters, bytearray(100), lambda _: None
    )
    diversion.make_room(2)
    ends: list[socket.socket] = diversion.worker_ends

    diversion.close()

    assert [end.fileno() for end in ends] == [-1, -1]
