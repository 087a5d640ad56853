"""Clients of an HTTP server, in the event loop that the server is in."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

from vela.address import Endpoint
from vela.supervisor.runtime.loop import EventLoop

PATIENCE_S = 20.0


def free_endpoint() -> Endpoint:
    """Return a loopback address and a port of it that nobody has at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(IPv4Address("127.0.0.1"), probe.getsockname()[1])


def connect(endpoint: Endpoint, request: bytes = b"") -> socket.socket:
    """Return a connection that does not block, on which a request is sent."""
    client = socket.create_connection((str(endpoint.address), endpoint.port))
    client.setblocking(False)
    client.sendall(request)
    return client


def read_to_end(loop: EventLoop, client: socket.socket) -> bytes:
    """Run the loop until the connection ends. Return what was received."""
    received = bytearray()
    ended = False

    def on_readable() -> None:
        nonlocal ended
        try:
            data = client.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        received.extend(data)
        if not data:
            ended = True
            loop.unwatch(client.fileno())
            loop.stop()

    loop.watch(client.fileno(), on_readable)
    late = loop.call_later(PATIENCE_S, loop.stop)
    loop.run()
    late.cancel()
    assert ended, "the server has not ended the connection"
    return bytes(received)
