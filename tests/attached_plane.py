"""One circuit's data path by itself: real UDP sockets, and a pair for the TAP.

A SOCK_SEQPACKET pair keeps frame boundaries under read and write as a TAP
does, and needs no privilege.
"""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from dataclasses import replace

from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Counters, Slot
from vela.dataplane.engine import Engine, load_engine
from vela.dataplane.frame import Elision
from vela.linux.features import ALL_FEATURES, Feature, Features, words

ENGINES = tuple(load_engine(engine) for engine in (Engine.PYTHON, Engine.NATIVE))

DATA_PATH = ALL_FEATURES - {Feature.NETNS_COOKIE}
WITHOUT: dict[str, Features] = {
    "": frozenset(),
    **{f" without {word}": frozenset({Feature(word)}) for word in words(ALL_FEATURES)},
    " without any": ALL_FEATURES,
}
PLANES = {
    engine.name + without: (engine.make, engine.abilities.features - missing)
    for engine in ENGINES
    for without, missing in WITHOUT.items()
    # What it would not use makes no difference.
    if not missing or missing & engine.abilities.features & DATA_PATH
}
"""Each engine with all features of the kernel, without each in turn, and without any: by what tests
call them, "native" or "native without rwf_nowait"."""

UDP_SEGMENT, UDP_GRO = 103, 104  # include/uapi/linux/udp.h

CIRCUIT = 7
LOCAL = bytes.fromhex("02005e100001")
REMOTE = bytes.fromhex("02005e100002")
LOCALHOST = "127.0.0.1"
TIMEOUT_S = 5.0


class Circuit:
    """One circuit's data path, and in the test's hands all that is around it."""

    def __init__(self, stack: ExitStack, engine: str, **changes: object) -> None:
        self._stack = stack
        self.host, tap = self._pair()
        self.supervisor, divert = self._pair()
        divert.setblocking(False)
        self.remote = self.udp()
        receiving, sending = self.udp(), self.udp()
        make, features = PLANES[engine]
        if Feature.UDP_GRO in features:
            receiving.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sending.connect(self.remote.getsockname())
        self.address = receiving.getsockname()
        self.counters = Counters()
        self.attachment = replace(
            Attachment(
                circuit_id=CIRCUIT,
                tap_fd=tap.fileno(),
                receive_socket=receiving,
                send_socket=sending,
                destination=None,
                divert_socket=divert,
                local_mac=LOCAL,
                remote_mac=REMOTE,
                elision=Elision.KNOWN,
                frame_limit=1489,
                datagram_limit=1472,
                counters=self.counters.worker,
                features=features,
            ),
            **changes,  # type: ignore[arg-type]
        )
        self.tap = tap
        self.plane = make(self.attachment)

    def udp(self, port: int = 0) -> socket.socket:
        made = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.settimeout(TIMEOUT_S)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind((LOCALHOST, port))
        return made

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in pair:
            self._stack.enter_context(end)
            end.settimeout(TIMEOUT_S)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return pair

    def egress(self, *frames: bytes) -> list[bytes]:
        """Return the datagrams that these frames, given by the TAP together, become."""
        for frame in frames:
            self.host.send(frame)
        while readable(self.tap):
            self.plane.egress()
        return queued(self.remote)

    def ingress(self) -> list[bytes]:
        """Return the frames that what came by UDP becomes."""
        while readable(self.attachment.receive_socket):
            self.plane.ingress()
        return queued(self.host)

    def send(self, datagram: bytes) -> None:
        self.remote.sendto(datagram, self.address)

    def counted(self) -> dict[Slot, int]:
        """Return the counters that are not zero, without those of progress."""
        return {
            slot: count
            for slot in Slot
            if (count := self.counters.worker[slot]) and not slot.name.endswith("PROGRESS")
        }


def readable(each: socket.socket, timeout_s: float = 0.0) -> bool:
    return bool(select.select([each], [], [], timeout_s)[0])


def queued(receiver: socket.socket) -> list[bytes]:
    received = []
    while readable(receiver):
        received.append(receiver.recv(65536))
    return received


def broadcast(size: int, mark: int = 0) -> bytes:
    """A frame of size bytes that always travels complete, and is told by its mark."""
    return (b"\xff" * 6 + LOCAL + b"\x88\xb5" + mark.to_bytes(4, "big")).ljust(size, b"\xee")


def on_wire(frame: bytes) -> bytes:
    return bytes([CIRCUIT]) + frame
