from __future__ import annotations

import socket
from collections.abc import Iterator
from http import HTTPStatus
from ipaddress import IPv4Address

import pytest

from vela.address import Endpoint
from vela.errors import DeviceError
from vela.supervisor.export import http
from vela.supervisor.export.http import HttpServer, Respond, not_found
from vela.supervisor.export.request import Request, Response
from vela.supervisor.runtime.loop import EventLoop

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = b"x" * (8 << 20)  # bytes; more than the buffers of both sockets
PATIENCE_S = 20.0


def handle(request: Request, respond: Respond) -> None:
    bodies = {"/": b"page", "/large": LARGE}
    body = bodies.get(request.path)
    respond(not_found() if body is None else Response(HTTPStatus.OK, "text/plain", body))


def free_endpoint() -> Endpoint:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(IPv4Address("127.0.0.1"), probe.getsockname()[1])


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


class Site:
    """A server, and clients that are driven by the same loop."""

    def __init__(self, loop: EventLoop) -> None:
        self.endpoint = free_endpoint()
        self.loop = loop
        self.server = HttpServer(loop, self.endpoint, handle)
        self.clients: list[socket.socket] = []

    def connect(self, request: bytes = b"") -> socket.socket:
        client = socket.create_connection((str(self.endpoint.address), self.endpoint.port))
        client.setblocking(False)
        self.clients.append(client)
        client.sendall(request)
        return client

    def read(self, client: socket.socket) -> bytes:
        """Run the loop until the connection ends."""
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
                self.loop.unwatch(client.fileno())
                self.loop.stop()

        self.loop.watch(client.fileno(), on_readable)
        late = self.loop.call_later(PATIENCE_S, self.loop.stop)
        self.loop.run()
        late.cancel()
        assert ended, "the server has not ended the connection"
        return bytes(received)


def is_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def site(loop: EventLoop) -> Iterator[Site]:
    made = Site(loop)
    yield made
    made.server.close()
    for client in made.clients:
        client.close()


@pytest.mark.parametrize(
    ("request_head", "status", "body"),
    [
        (GET, b"200", b"page"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"200", b""),
        (b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n", b"404", b"404 Not Found\n"),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", b"405", b"405 Method Not Allowed\n"),
        (b"nonsense\r\n\r\n", b"400", b"400 Bad Request\n"),
        (b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", b"200", LARGE),
    ],
)
def test_request_is_answered(site: Site, request_head: bytes, status: bytes, body: bytes) -> None:
    head, _, received = site.read(site.connect(request_head)).partition(b"\r\n\r\n")

    assert head.split()[1] == status
    assert received == body
    assert site.server.answers == {int(status): 1}


def test_client_that_sends_no_whole_request_is_dropped_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.05)

    assert site.read(site.connect(GET[:-1])) == b""
    assert site.server.answers == {}


def test_client_that_does_not_read_its_answer_is_dropped_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 0.05)
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    site.loop.call_later(0.5, site.loop.stop)
    site.loop.run()

    assert len(site.read(client)) < len(LARGE)


def test_clients_without_a_request_make_room_for_one_that_asks(site: Site) -> None:
    idle = [site.connect() for _ in range(http.MAX_CLIENTS)]

    assert site.read(site.connect(GET)).endswith(b"page")

    assert [is_ended(client) for client in idle] == [True] + [False] * (len(idle) - 1)


def test_address_that_is_taken_is_a_device_error(site: Site) -> None:
    with pytest.raises(DeviceError, match="cannot listen on"):
        HttpServer(site.loop, site.endpoint, handle)
