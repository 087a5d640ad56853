"""The echo replies that come back to a namespace, also those that ping does not wait for."""

from __future__ import annotations

import select
import socket
import time
from struct import Struct

from lab.buffers import force_receive_buffer
from lab.namespace import Namespace
from lab.resource import Resource

# RFC 792 and RFC 4443, section 4.2: type, code, checksum, identifier, sequence number.
_ECHO = Struct("!BBHHH")
_REPLY = {4: 0, 6: 129}
_LARGEST = 65535
_BUFFER_BYTES = 4 << 20


class EchoReplies(Resource):
    """Those with one identifier since the making of this, whoever asked. A context."""

    def __init__(self, namespace: Namespace, version: int, identifier: int) -> None:
        """version is that of IP."""
        family, protocol = {
            4: (socket.AF_INET, socket.IPPROTO_ICMP),
            6: (socket.AF_INET6, socket.IPPROTO_ICMPV6),
        }[version]
        self._version = version
        self._identifier = identifier
        self._numbers: set[int] = set()
        self._socket = namespace.socket(family, socket.SOCK_RAW, protocol)
        force_receive_buffer(self._socket, _BUFFER_BYTES)
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def wait_for(self, count: int, timeout_s: float) -> int:
        """Return how many different ones there are, once there are count, or after timeout_s."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while len(self._numbers) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                break
            self._note(self._socket.recv(_LARGEST))
        return len(self._numbers)

    def _note(self, data: bytes) -> None:
        # An IPv4 socket gives the packet with its header, an IPv6 one without (raw(7), ipv6(7)).
        start = (data[0] & 0x0F) * 4 if self._version == 4 else 0
        if len(data) < start + _ECHO.size:
            return
        kind, _, _, identifier, number = _ECHO.unpack_from(data, start)
        if (kind, identifier) == (_REPLY[self._version], self._identifier):
            self._numbers.add(number)
