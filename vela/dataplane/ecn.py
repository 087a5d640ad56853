"""Congestion marks and classes of service, between inner and outer IP headers. Pure.

RFC 6040, RFC 2983. Its C twin is native/ecn.c.
"""

from __future__ import annotations

from vela.dataplane.counters import Slot
from vela.dataplane.frame import Dropped
from vela.dataplane.mss import network_offset
from vela.wire import IPV4_HEADER, IPV6_HEADER

# The two lowest bits of the TOS byte. RFC 3168, section 5.
NOT_ECT, ECT1, ECT0, CE = range(4)
ECN_MASK = 3
DSCP_SHIFT = 2
MAX_DSCP = 63
# CS6, the class of routing protocols (RFC 4594, section 3.2).
_NETWORK_CONTROL = 48 << DSCP_SHIFT

_TOS, _IPV4_CHECKSUM = 1, 10


class Marker:
    """Tells the TOS byte of the outer headers of one circuit's frames."""

    def __init__(self, dscp: int | None, *, carry_ecn: bool) -> None:
        """dscp: None for that of the inner packet; carry_ecn: the remote folds the outer ECN."""
        self.default = 0 if dscp is None else dscp << DSCP_SHIFT
        """What the sending socket has by itself."""
        self._kept = (0 if dscp is not None else 0xFF & ~ECN_MASK) | (ECN_MASK if carry_ecn else 0)

    def outer_tos(self, data: bytearray, start: int, end: int) -> int:
        """Return the byte for the frame at data[start:end]."""
        if not self._kept:
            return self.default
        packet = network_offset(data, start, end)
        inner = 0 if packet is None else _tos_of(data, packet, end)
        return self.default | inner & self._kept


def is_network_control(data: bytearray, packet: int, end: int) -> bool:
    """Tell whether the packet is of the class of routing protocols, or a higher one."""
    return _tos_of(data, packet, end) >= _NETWORK_CONTROL


def fold_ecn(data: bytearray, start: int, end: int, outer: int) -> None:
    """Bring the outer ECN into the IP header of the frame at data[start:end], if it has one.

    Raises Dropped as RFC 6040, section 4.2 says.
    """
    # The other two values change nothing.
    if outer not in (CE, ECT1):
        return
    packet = network_offset(data, start, end)
    if packet is None or not _version(data, packet, end):
        return
    tos = _tos_of(data, packet, end)
    inner = tos & ECN_MASK
    # A sender that is not ECN-capable would not see the mark: only a loss.
    if outer == CE and inner == NOT_ECT:
        raise Dropped(Slot.RX_ECN)
    if outer == CE or inner == ECT0:
        _set_tos(data, packet, tos & ~ECN_MASK | outer)


def _version(data: bytearray, packet: int, end: int) -> int:
    """Return the version of what may be malformed otherwise; 0: it has no TOS byte."""
    if end - packet >= IPV4_HEADER and data[packet] >> 4 == 4:
        return 4
    return 6 if end - packet >= IPV6_HEADER and data[packet] >> 4 == 6 else 0


def _tos_of(data: bytearray, packet: int, end: int) -> int:
    match _version(data, packet, end):
        case 4:
            return data[packet + _TOS]
        case 6:
            return _word(data, packet) >> 4 & 0xFF
    return 0


def _set_tos(data: bytearray, packet: int, tos: int) -> None:
    before = _word(data, packet)
    if before >> 12 == 6:
        _put(data, packet, before & 0xF00F | tos << 4)
        return
    # RFC 1624, equation 3, for the word with the TOS byte. A wrong checksum stays wrong.
    after = before & 0xFF00 | tos
    total = (~_word(data, packet + _IPV4_CHECKSUM) & 0xFFFF) + (~before & 0xFFFF) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    _put(data, packet, after)
    _put(data, packet + _IPV4_CHECKSUM, ~total & 0xFFFF)


def _word(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _put(data: bytearray, at: int, value: int) -> None:
    data[at : at + 2] = value.to_bytes(2, "big")
