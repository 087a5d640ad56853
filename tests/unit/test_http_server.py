"""vela.supervisor.export.http: a real server and real clients, in one event loop."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address

import pytest
from exhaustion import no_descriptors, open_descriptors
from http_clients import PATIENCE_S, connect, free_endpoint, read_to_end
from simulation import StrictLoop

from vela.address import Endpoint
from vela.errors import DeviceError
from vela.supervisor.export import http
from vela.supervisor.export.http import HttpServer, Respond, not_found
from vela.supervisor.export.request import Request, Response
from vela.supervisor.runtime import listener
from vela.supervisor.runtime.loop import EventLoop, MonotonicClock

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LATER = b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = b"x" * (8 << 20)  # bytes; more than the buffers of both sockets


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = StrictLoop(MonotonicClock())
    yield made
    made.close()
    assert made.failures == []


class Site:
    """A server, and clients that are driven by the same loop."""

    def __init__(self, loop: EventLoop) -> None:
        self.endpoint = free_endpoint()
        self.loop = loop
        self.server = HttpServer(loop, self.endpoint, self._handle)
        self.clients: list[socket.socket] = []
        self.awaited: list[Respond] = []
        """Answers that are still to be given: of requests of /later."""

    def _handle(self, request: Request, respond: Respond) -> None:
        if request.path == "/later":
            self.awaited.append(respond)
            return
        bodies = {"/": b"page", "/large": LARGE}
        body = bodies.get(request.path)
        respond(not_found() if body is None else Response(HTTPStatus.OK, "text/plain", body))

    def connect(self, request: bytes = b"") -> socket.socket:
        self.clients.append(connect(self.endpoint, request))
        return self.clients[-1]

    def read(self, client: socket.socket) -> bytes:
        return read_to_end(self.loop, client)

    def catch_up(self) -> None:
        """Let the server read all that was sent to it: one that asks after all others is served."""
        assert self.read(self.connect(GET)).endswith(b"page")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        late = self.loop.call_later(PATIENCE_S, self.loop.stop)

        def look() -> None:
            if condition():
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.run()
        late.cancel()
        assert condition()


def body_of(received: bytes) -> bytes:
    return received.partition(b"\r\n\r\n")[2]


def reset(client: socket.socket) -> None:
    """End a connection without a word: RFC 9293, 3.10.4, by socket(7), SO_LINGER."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


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
        HttpServer(site.loop, site.endpoint, lambda *_: None)


def test_request_that_comes_in_pieces_is_answered_when_it_is_whole(site: Site) -> None:
    client = site.connect(GET[:20])
    site.catch_up()
    assert not is_ended(client)

    client.sendall(GET[20:])

    assert body_of(site.read(client)) == b"page"


def test_connection_has_one_request_and_all_else_on_it_is_left_out(site: Site) -> None:
    client = site.connect(LATER + GET)
    site.catch_up()
    client.sendall(GET)
    site.catch_up()

    site.awaited.pop()(Response(HTTPStatus.OK, "text/plain", b"late"))

    assert body_of(site.read(client)) == b"late"
    assert site.server.answers == {200: 3}


def test_client_that_sends_nothing_more_still_gets_its_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `nc -N` does. The answer is larger than what the socket takes at once."""
    monkeypatch.setattr(http, "LINGER_S", 2 * PATIENCE_S)
    before = open_descriptors()
    client = site.connect(LATER)
    client.shutdown(socket.SHUT_WR)
    site.catch_up()

    site.awaited.pop()(Response(HTTPStatus.OK, "text/plain", LARGE))

    assert body_of(site.read(client)) == LARGE
    # Nothing more can come, and so the server does not wait for it.
    client.close()
    site.clients[-1].close()
    site.wait_until(lambda: open_descriptors() == before)


def test_client_that_ends_without_a_request_is_dropped(site: Site) -> None:
    client = site.connect(GET[:20])
    client.shutdown(socket.SHUT_WR)

    assert site.read(client) == b""
    assert site.server.answers == {}


def test_answer_to_a_client_that_is_gone_is_for_nobody(site: Site) -> None:
    before = open_descriptors()
    client = site.connect(LATER)
    site.catch_up()
    reset(client)
    site.catch_up()
    for each in site.clients:
        each.close()
    site.wait_until(lambda: open_descriptors() == before)

    site.awaited.pop()(Response(HTTPStatus.OK, "text/plain", b"late"))

    assert site.server.answers == {200: 2}
    assert open_descriptors() == before


@pytest.mark.parametrize("half_closed", [False, True])
def test_client_that_is_gone_amid_its_answer_is_forgotten_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, half_closed: bool
) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 2 * PATIENCE_S)
    before = open_descriptors()
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    if half_closed:
        client.shutdown(socket.SHUT_WR)
    site.catch_up()
    assert client.recv(9) == b"HTTP/1.1 "

    reset(client)

    site.clients[-1].close()
    site.wait_until(lambda: open_descriptors() == before)


def test_client_that_keeps_its_answered_connection_is_dropped_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LINGER_S", 0.05)
    before = open_descriptors()
    client = site.connect(GET)
    assert body_of(site.read(client)) == b"page"

    # The server's end, and not the client's.
    site.wait_until(lambda: open_descriptors() == before + 1)


def test_client_without_a_request_makes_room_before_those_that_wait_for_an_answer(
    site: Site,
) -> None:
    waiting = [site.connect(LATER) for _ in range(http.MAX_CLIENTS - 1)]
    site.wait_until(lambda: len(site.awaited) == len(waiting))
    idle = site.connect()

    site.catch_up()

    assert is_ended(idle)
    assert not any(is_ended(client) for client in waiting)


def test_where_all_clients_wait_for_an_answer_the_oldest_makes_room(site: Site) -> None:
    waiting = [site.connect(LATER) for _ in range(http.MAX_CLIENTS)]
    site.wait_until(lambda: len(site.awaited) == len(waiting))

    site.catch_up()

    assert [is_ended(client) for client in waiting] == [True] + [False] * (len(waiting) - 1)


def test_frozen_server_accepts_nobody_until_it_is_thawed(site: Site) -> None:
    known = site.connect()
    site.catch_up()
    site.server.freeze()

    waiting = site.connect(GET)
    known.sendall(GET)
    assert body_of(site.read(known)) == b"page"
    assert not is_ended(waiting)
    assert site.server.answers == {200: 2}

    site.server.thaw()
    assert body_of(site.read(waiting)) == b"page"


def test_server_goes_on_with_a_socket_that_listens_already(loop: EventLoop, site: Site) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        site.endpoint = Endpoint(IPv4Address("127.0.0.1"), listening.getsockname()[1])
        waiting = site.connect(GET)
        fd = listening.detach()

    # Its address counts, and not the one that is configured.
    server = HttpServer(loop, free_endpoint(), lambda _, respond: respond(not_found()), adopted=fd)

    assert server.fileno() == fd
    assert body_of(site.read(waiting)) == b"404 Not Found\n"
    server.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="there is no ::1")
def test_server_at_all_ipv6_addresses_leaves_the_port_of_ipv4_to_others(
    loop: EventLoop, site: Site
) -> None:
    """One at 0.0.0.0 may have it."""
    port = site.endpoint.port

    server = HttpServer(
        loop, Endpoint(IPv6Address("::"), port), lambda _, respond: respond(not_found())
    )

    assert body_of(site.read(site.connect(GET))) == b"page"
    site.endpoint = Endpoint(IPv6Address("::1"), port)
    assert body_of(site.read(site.connect(GET))) == b"404 Not Found\n"
    server.close()


def test_connection_for_which_there_is_no_descriptor_is_accepted_later(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "EXHAUSTED_PAUSE_S", 0.05)
    endpoint, reasons = free_endpoint(), []

    def on_exhausted(reason: str) -> None:
        reasons.append(reason)
        loop.stop()

    server = HttpServer(loop, endpoint, lambda _, respond: respond(not_found()), on_exhausted)
    with connect(endpoint, GET) as client:
        with no_descriptors():
            loop.run()

        assert body_of(read_to_end(loop, client)) == b"404 Not Found\n"
    assert reasons == [os.strerror(errno.EMFILE)]
    server.close()


def test_closed_server_ends_its_connections_and_listens_no_more(site: Site) -> None:
    clients = [site.connect(), site.connect(LATER), site.connect(LATER)]
    clients[-1].shutdown(socket.SHUT_WR)
    site.catch_up()

    site.server.close()

    assert all(is_ended(client) for client in clients)
    with pytest.raises(ConnectionRefusedError):
        connect(site.endpoint)
