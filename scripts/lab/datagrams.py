"""UDP datagrams by hand, from a namespace: alone, or many in one buffer."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from struct import Struct

from lab.namespace import Namespace
from lab.waiting import PATIENCE

VELA_PORT = 48621

_UDP_SEGMENT = 103  # include/uapi/linux/udp.h
_SEGMENT_SIZE = Struct("=H")
MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS, Linux 4.18


def udp_socket(namespace: Namespace, address: str, port: int = 0) -> socket.socket:
    """Return a socket of the namespace bound to an address there; the caller closes it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = namespace.socket(family, socket.SOCK_DGRAM)
    try:
        made.bind((address, port))
        made.settimeout(5.0 * PATIENCE)
    except BaseException:
        made.close()
        raise
    return made


def send_joined(
    sender: socket.socket, datagrams: Sequence[bytes], remote: str, port: int = VELA_PORT
) -> None:
    """Send up to 64 datagrams of one size in one buffer, as which a veth hands them over.

    The receiving kernel treats them like datagrams that its GRO joined.
    """
    (size,) = {len(datagram) for datagram in datagrams}
    segments = [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(size))]
    sender.sendmsg(datagrams, segments, 0, (remote, port))
