"""Numbered frames: put on an interface as a host's, and told apart where they come out."""

from __future__ import annotations

from struct import Struct

from lab.capture import Capture, Packet
from lab.link import Interface
from lab.resource import Resource
from lab.waiting import eventually

# IEEE 802, table 2: local experimental EtherType 1, which no stack answers.
ETHERTYPE = b"\x88\xb5"
DESTINATION = bytes.fromhex("02005e00ff01")
SOURCE = bytes.fromhex("02005e00ff02")
HEADER = DESTINATION + SOURCE + ETHERTYPE

_MARK_LENGTH = 16
_NUMBER = Struct("!Q")
_FIXED = len(HEADER) + _MARK_LENGTH + _NUMBER.size


def numbered(mark: str, number: int, size: int = 100) -> bytes:
    """Return a frame of size bytes; mark has up to 16 characters."""
    body = mark.encode().ljust(_MARK_LENGTH, b"\0") + _NUMBER.pack(number)
    return (HEADER + body).ljust(size, b".")


def read(frame: bytes) -> tuple[str, int] | None:
    """Return mark and number, or None if the frame is none of these."""
    if len(frame) < _FIXED or not frame.startswith(HEADER):
        return None
    mark = frame[len(HEADER) : len(HEADER) + _MARK_LENGTH].rstrip(b"\0").decode(errors="replace")
    return mark, _NUMBER.unpack_from(frame, len(HEADER) + _MARK_LENGTH)[0]


def arrived(packet: Packet) -> tuple[str, int] | None:
    """Return mark and number of one that came out of the interface that was watched."""
    return None if packet.outgoing else read(packet.data)


class Outlet(Resource):
    """What came out of one interface since the making of this, in order. A context."""

    def __init__(self, interface: Interface) -> None:
        self._capture = Capture(interface)
        self._open = True
        self._looked_at = 0
        self._frames: list[tuple[str, int]] = []

    def close(self) -> None:
        self.frames()
        self._open = False
        self._capture.close()

    def frames(self) -> list[tuple[str, int]]:
        """Return mark and number of each so far, without waiting; also after it was closed."""
        if not self._open:
            return self._frames
        new = self._capture.packets()[self._looked_at :]
        self._looked_at += len(new)
        self._frames += [found for packet in new if (found := arrived(packet))]
        return self._frames


def await_operational(interface: Interface, timeout_s: float = 10.0) -> None:
    """Wait until it sends frames: its queue is put in place a little after its carrier."""
    shown = ("ip", "-o", "link", "show", "dev", interface.name)

    def operational() -> bool:
        done = interface.namespace.run(*shown, check=False)
        return " state UP " in done.stdout or (
            " state UNKNOWN " in done.stdout and "LOWER_UP" in done.stdout
        )

    eventually(operational, timeout_s, f"{interface.name} to be operational")
