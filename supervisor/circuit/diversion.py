"""The way past a circuit's worker: datagrams that do not reach it, and those that it passes on.

docs/architecture.md, "The walk of a frame" and "Whether frames cross".
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from vela.address import Endpoint, IPAddress
from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Counters, Slot
from vela.dataplane.echo import send_echo
from vela.dataplane.frame import REBUILD_ROOM, Decapsulator, Dropped, Piece, Verification
from vela.errors import DeviceError
from vela.linux.arrival import ARRIVAL_SPACE, age_s, show_arrival
from vela.linux.underlay import UnderlayPath, set_send_buffer

from ..demux import DATAGRAMS_AT_ONCE, UNKNOWN_PORT, Claim
from ..runtime.loop import EventLoop
from .data_path import EchoHandler


class Dispatcher(Protocol):
    """Knows whose a datagram is: demux.Demux."""

    def port_of(self, claim: Claim) -> int | None: ...

    def dispatch(
        self, source: Endpoint, here: IPAddress, data: bytearray, start: int, end: int
    ) -> None: ...


class Diversion:
    """Socket pairs between supervisor and worker, one for each queue, and what comes and goes."""

    def __init__(
        self,
        name: str,
        circuit_id: int,
        loop: EventLoop,
        demux: Dispatcher,
        counters: Counters,
        buffer: bytearray,
        write: Callable[[memoryview], object],
    ) -> None:
        """name: the circuit's. write: gives a frame to its interface. Raises DeviceError.

        buffer: what the worker passes on is read into this, with REBUILD_ROOM before it.
        """
        self._own: list[socket.socket] = []
        self.worker_ends: list[socket.socket] = []
        self._name = name
        self._circuit_id = circuit_id
        self._loop = loop
        self._demux = demux
        self._counters = counters
        self._buffer = buffer
        self._write = write
        self._on_echo: EchoHandler = lambda _, _age_s: False
        self._attachment: Attachment | None = None
        self._asking: tuple[Attachment, ...] = ()
        self._asked = 0
        self._origin: tuple[UnderlayPath, Claim] | None = None
        self._decapsulator: Decapsulator | None = None
        self.make_room(1)

    def make_room(self, queues: int) -> None:
        """Have a pair for so many queues from now on. Raises DeviceError."""
        for _ in range(len(self._own), queues):
            try:
                own, worker_end = socket.socketpair(
                    socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
                )
                show_arrival(own)
            except OSError as err:
                raise DeviceError(
                    f"{self._name}: cannot make a socket pair: {err.strerror}"
                ) from err
            set_send_buffer(worker_end)
            self._own.append(own)
            self.worker_ends.append(worker_end)
            self._loop.watch(own.fileno(), partial(self._on_readable, own))

    def set_echo_handler(self, handler: EchoHandler) -> None:
        """Let handler take messages of in-circuit verification that the worker passes on."""
        self._on_echo = handler

    def follow(
        self,
        attachment: Attachment,
        further: Sequence[Attachment],
        path: UnderlayPath,
        claim: Claim,
    ) -> None:
        """Go by what the worker is told from now on. further: of its queues behind the first."""
        self._asking = attachment, *further
        self._attachment, self._origin = attachment, (path, claim)
        self._decapsulator = Decapsulator(
            attachment.local_mac,
            attachment.remote_mac,
            attachment.frame_limit,
            partial_checksums=attachment.partial_checksums,
        )

    def rest(self) -> None:
        """Pass nothing on until follow()."""
        self._attachment = self._origin = None

    def close(self) -> None:
        for own in self._own:
            self._loop.unwatch(own.fileno())
        for each in (*self._own, *self.worker_ends):
            each.close()

    def send_echo(self, request: bytes) -> None:
        """Send an echo request from where frames leave, if any do."""
        if self._attachment is None:
            return
        # By each queue in turn: they leave from several ports, and the path of one may be broken.
        self._asked = (self._asked + 1) % len(self._asking)
        send_echo(self._asking[self._asked], self._own[self._asked], request)

    def deliver(self, data: bytearray, start: int, end: int) -> None:
        """Take a datagram that came past the worker. See demux.Receiver.

        Those of an encrypted circuit are the worker's, whatever they are: it
        has the keys, and none may reach the TAP without them.
        """
        counters, attachment = self._counters.supervisor, self._attachment
        if attachment is None or self._decapsulator is None:
            return
        if attachment.key_page is not None:
            try:
                self._own[0].send(memoryview(data)[start:end])
            except OSError:  # its queue is full, or the datagram larger than that
                counters[Slot.RX_CONGESTED] += 1
            return
        try:
            frame, elided = self._decapsulator.decapsulate(data, start, end)
        except Dropped as dropped:
            counters[dropped.slot] += 1
            return
        except Verification:
            # A request asks for the worker; an answer from here would show nothing.
            if not self._on_echo(memoryview(data)[start:end], 0.0):
                counters[Slot.RX_RESERVED] += 1
            return
        except Piece:
            # The worker has the others.
            counters[Slot.RX_INCOMPLETE] += 1
            return
        try:
            self._write(memoryview(data)[frame:end])
        except OSError:
            counters[Slot.RX_INTERFACE_DOWN] += 1
            return
        counters[Slot.RX_FRAMES] += 1
        counters[Slot.RX_BYTES] += end - frame
        counters[Slot.RX_ELIDED] += elided

    def _on_readable(self, own: socket.socket) -> None:
        """Pass on what UDP GRO joined to this circuit's datagrams: same remote, other circuit."""
        data = self._buffer
        view = memoryview(data)[REBUILD_ROOM:]
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                length, ancillary, _, _ = own.recvmsg_into([view], ARRIVAL_SPACE)
            except BlockingIOError:
                return
            if length and data[REBUILD_ROOM] == self._circuit_id:
                # An answer to an echo request; the worker passes nothing else of its circuit on.
                if not self._on_echo(view[:length], age_s(ancillary)):
                    self._counters.supervisor[Slot.RX_RESERVED] += 1
                return  # mostly there is one; if not, the loop calls again
            if self._origin is not None:
                path, claim = self._origin
                # UDP GRO joins what comes from one port.
                port = self._demux.port_of(claim)
                source = Endpoint(path.endpoint.address, UNKNOWN_PORT if port is None else port)
                end = REBUILD_ROOM + length
                self._demux.dispatch(source, path.route.source, data, REBUILD_ROOM, end)
