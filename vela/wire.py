"""Header sizes, ports, circuit ids, and the sums of an MTU. Pure. docs/protocol.md, 1 to 3."""

from __future__ import annotations

from enum import IntEnum

from vela.address import Family
from vela.errors import ConfigError

DEFAULT_PORT = 48621
MIN_CIRCUIT_ID, MAX_CIRCUIT_ID = 1, 255
MAX_QUEUES = 8  # of a circuit: docs/protocol.md, 3.4
CONTROL_CIRCUIT_ID = 0  # docs/protocol.md, section 2
# docs/protocol.md, 3.4: where circuits send from (RFC 6335, section 6: dynamic ports).
MIN_SOURCE_PORT, MAX_SOURCE_PORT = 49152, 65535

IPV4_HEADER = 20  # RFC 791, section 3.1, without options
IPV6_HEADER = 40  # RFC 8200, section 3
UDP_HEADER = 8  # RFC 768
TCP_HEADER = 20  # RFC 9293, section 3.1, without options
CIRCUIT_ID = 1  # docs/protocol.md, section 2
DATA_HEADER = CIRCUIT_ID  # goes before each frame: put_data_header()
ETHERNET_HEADER = 14  # IEEE 802.3, 3.1.1: two addresses and the EtherType, no FCS
VLAN_TAG = 4  # IEEE 802.1Q, 9.6
ESCAPE = 1  # docs/protocol.md, section 3

# docs/protocol.md, 3.6: what encryption puts around what follows the circuit id.
PHASE = 1  # 0x42 or 0x43
FRAME_COUNTER = 4
TAG = 16  # NIST SP 800-38D, 5.2.1.2; RFC 8439, 2.5: whole tags only
SEAL = PHASE + FRAME_COUNTER + TAG

MAX_IP_PACKET = 65535  # RFC 791, total length; the same cap serves IPv6 without jumbograms
MAX_UDP_PAYLOAD = MAX_IP_PACKET - IPV4_HEADER - UDP_HEADER

_SEGMENTS_PER_SEND = 64
_KERNEL_GSO_MAX_SIZE = 65536  # include/linux/netdevice.h, GSO_LEGACY_MAX_SIZE
_TCP_TIMESTAMPS = 12  # RFC 7323, appendix A: option and padding
# What TCP sets aside for headers (MAX_TCP_HEADER + 1, include/net/tcp.h): 257 or 321.
_TCP_RESERVE = 321

MIN_TAP_MTU = 68  # RFC 791, section 3.2: every module must forward 68 bytes
MIN_IPV6_MTU = 1280  # RFC 8200, section 5
# The largest frame, complete, tagged and escaped, must still fit one datagram.
MAX_TAP_MTU = MAX_UDP_PAYLOAD - DATA_HEADER - ESCAPE - ETHERNET_HEADER - VLAN_TAG

IP_HEADER = {Family.IPV4: IPV4_HEADER, Family.IPV6: IPV6_HEADER}


class Suite(IntEnum):
    """The cipher that seals frames, by its number on the wire."""

    AES_256_GCM = 1  # NIST SP 800-38D
    CHACHA20_POLY1305 = 2  # RFC 8439


def put_data_header(data: bytearray, frame: int, circuit_id: int) -> int:
    """Write the data header before data[frame:], and return where it begins.

    Its twin is in dataplane/native/frame.h.
    """
    start = frame - DATA_HEADER
    data[start] = circuit_id
    return start


def overhead(family: Family, *, encrypted: bool) -> int:
    """Return how many bytes an elided packet grows by on the underlay."""
    return IP_HEADER[family] + UDP_HEADER + data_header(encrypted=encrypted)


def data_header(*, encrypted: bool) -> int:
    """Return how many bytes of a datagram are not the frame's, with the tag behind it."""
    return DATA_HEADER + (SEAL if encrypted else 0)


def max_tap_mtu(*, encrypted: bool) -> int:
    """Return the largest MTU, in bytes, whose complete, tagged, escaped frame fits a datagram."""
    return MAX_TAP_MTU - (SEAL if encrypted else 0)


def tap_mtu(underlay_mtu: int, family: Family, *, encrypted: bool) -> int:
    """Return the largest TAP MTU whose elided packets never fragment on the underlay.

    Both in bytes; underlay_mtu includes the outer IP header. The inner
    Ethernet header is elided (docs/protocol.md, 3.1), so it does not count.

    Raises ConfigError if the result is below 68 (RFC 791, section 3.2).
    """
    mtu = underlay_mtu - overhead(family, encrypted=encrypted)
    mtu = min(mtu, max_tap_mtu(encrypted=encrypted))
    if mtu < MIN_TAP_MTU:
        raise ConfigError(
            f"an underlay MTU of {underlay_mtu} leaves {mtu} bytes; {MIN_TAP_MTU} are needed"
        )
    return mtu


def datagram_limit(underlay_mtu: int, family: Family) -> int:
    """Return the largest UDP payload, in bytes, that the underlay carries in one piece."""
    return min(underlay_mtu, MAX_IP_PACKET) - IP_HEADER[family] - UDP_HEADER


def gso_max_size(mtu: int, *, forwarded: bool, encrypted: bool) -> int:
    """Return how large a frame, in bytes, may be handed to a TAP of this MTU, to be cut there.

    TCP of this machine makes them as large as that, so its segments, full ones,
    are to be just as many as one send takes: 65507 bytes, 64 datagrams
    (UDP_MAX_SEGMENTS). The receiving kernel then joins just these again (UDP GRO
    ends below 64 KiB), and one GSO frame stays one. One that other machines
    made, and this one forwards, is as large as it is; above the limit the kernel
    would cut it before the TAP (net/core/dev.c, gso_features_check), which takes
    a third of the throughput.
    """
    if forwarded:
        return _KERNEL_GSO_MAX_SIZE
    segments = min(MAX_UDP_PAYLOAD // (mtu + data_header(encrypted=encrypted)), _SEGMENTS_PER_SEND)
    payload = max(mtu - IPV4_HEADER - TCP_HEADER - _TCP_TIMESTAMPS, 1)
    return min(segments * payload + _TCP_RESERVE, MAX_IP_PACKET)


def frame_limit(mtu: int) -> int:
    """Return the largest frame, in bytes, that a TAP of this MTU takes.

    One VLAN tag comes on top of the MTU, as Linux bridges and veth allow
    (net/core/dev.c, is_skb_forwardable).
    """
    return mtu + ETHERNET_HEADER + VLAN_TAG


VIRTIO_HEADER = bytes(10)
"""Before a complete frame of a TAP that has one. include/uapi/linux/virtio_net.h."""
