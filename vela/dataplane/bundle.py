"""Small frames of an encrypted circuit that travel in one datagram. docs/protocol.md, 3.10. Pure.

A seal and a datagram cost the same whatever is in them. Frames that wait behind each other share
them; none waits for another one. Twin: native/egress.c, native/ingress.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vela.dataplane.counters import Slot
from vela.dataplane.frame import Dropped
from vela.wire import CIRCUIT_ID, DATA_HEADER, SEAL

BUNDLE_BYTE = 0x42
"""Under a seal, where no datagram can be sealed again."""
BUNDLE = 1
"""Bytes that go before all frames of a bundle."""
BUNDLED_LENGTH = 2
"""Bytes that go before each, and are the length of the text behind it, big-endian."""

BUNDLED_MAX = 512
"""Bytes of a datagram without its circuit id. Larger ones travel alone: little would be saved."""
BUNDLE_MAX = 1232
"""Bytes of a bundle's datagram, sealed: each path takes it over IPv6, so no small frame is lost for
its company. Larger ones would save little more."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A datagram that is to leave."""

    datagram: memoryview | bytes
    """With its circuit id."""
    tos: int
    """Of its outer header."""
    small: bool = False
    """It is a frame that may travel with others."""
    frames: int = 1
    """That are lost with it."""


def bundle_limit(mtu: int) -> int:
    """Return Attachment.bundle_limit for a TAP of this MTU: what one packet's datagram may have."""
    return min(mtu + DATA_HEADER + SEAL, BUNDLE_MAX)


def bundle(waiting: Iterable[Waiting], limit: int) -> Iterator[Waiting]:
    """Return datagrams in the same order, small ones that have one TOS byte together.

    limit: bytes of a sealed datagram, that a bundle does not exceed.
    """
    together: list[Waiting] = []
    size = 0
    for each in waiting:
        text = len(each.datagram) - CIRCUIT_ID
        joins = each.small and text <= BUNDLED_MAX
        room = size + BUNDLED_LENGTH + text + SEAL <= limit
        if together and not (joins and room and each.tos == together[0].tos):
            yield _close(together)
            together, size = [], 0
        if not joins:
            yield each
            continue
        together.append(each)
        size = (size or CIRCUIT_ID + BUNDLE) + BUNDLED_LENGTH + text
    if together:
        yield _close(together)


def _close(together: list[Waiting]) -> Waiting:
    if len(together) == 1:
        return together[0]
    whole = bytearray(together[0].datagram[:CIRCUIT_ID])
    whole.append(BUNDLE_BYTE)
    for each in together:
        text = each.datagram[CIRCUIT_ID:]
        whole += len(text).to_bytes(BUNDLED_LENGTH, "big")
        whole += text
    return Waiting(bytes(whole), together[0].tos, frames=len(together))


def is_bundle(data: bytearray, start: int, end: int) -> bool:
    """Tell whether an opened datagram at data[start:end] is a bundle."""
    return end - start > CIRCUIT_ID and data[start + CIRCUIT_ID] == BUNDLE_BYTE


def bundled(data: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Return where the datagrams of a bundle at data[start:end] begin and end.

    The circuit id of each is to be taken as there: its place has something else. Raises Dropped
    where the next one cannot be found.
    """
    at = start + CIRCUIT_ID + BUNDLE
    while True:
        text = at + BUNDLED_LENGTH
        length = int.from_bytes(data[at:text], "big") if text <= end else 0
        if not 0 < length <= end - text:
            raise Dropped(Slot.RX_MALFORMED)
        at = text + length
        yield text - CIRCUIT_ID, at
        if at == end:
            return
