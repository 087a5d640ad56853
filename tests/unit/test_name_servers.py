"""vela.supervisor.runtime.name_servers: asked of real sockets on the loopback interface."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vela.address import Family
from vela.supervisor.runtime import name_servers
from vela.supervisor.runtime.name_servers import examine

HOST = "router.example.net"
# RFC 1035, section 4.1: QR and RD are set in a response; four counts follow.
SERVFAIL, NXDOMAIN, REFUSED, NO_ERROR, UNKNOWN = 0x8102, 0x8103, 0x8105, 0x8180, 0x810B

Respond = Callable[[bytes], bytes | None]


def with_flags(flags: int) -> Callable[[bytes], bytes]:
    """Return what makes a response with these flags of a query."""
    return lambda query: query[:2] + flags.to_bytes(2, "big") + query[4:]


class Servers:
    """Name servers at loopback addresses, all at one port, and the resolv.conf that lists them."""

    def __init__(self, resolv_conf: Path) -> None:
        self.resolv_conf = resolv_conf
        self.port = 0
        self.queries: list[bytes] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def serve(self, address: str, respond: Respond) -> None:
        """Answer one query at this address; respond returns None: do not answer."""
        serving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(serving)
        serving.bind((address, self.port))
        self.port = serving.getsockname()[1]

        def answer() -> None:
            query, asker = serving.recvfrom(1000)
            self.queries.append(query)
            response = respond(query)
            if response is not None:
                serving.sendto(response, asker)

        self._threads.append(threading.Thread(target=answer))
        self._threads[-1].start()

    def close(self) -> None:
        for serving in self._sockets:
            # To a thread that was asked nothing.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waking:
                waking.sendto(b"", serving.getsockname())
        for thread in self._threads:
            thread.join()
        for serving in self._sockets:
            serving.close()


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    made = Servers(tmp_path / "resolv.conf")
    made.serve("127.0.0.1", with_flags(SERVFAIL))
    monkeypatch.setattr(name_servers, "RESOLV_CONF", made.resolv_conf)
    monkeypatch.setattr(name_servers, "PORT", made.port)
    monkeypatch.setattr(name_servers, "TIMEOUT_S", 20.0)
    yield made
    made.close()


def test_query_asks_for_the_name_with_recursion_by_family(servers: Servers) -> None:
    servers.serve("127.0.0.2", with_flags(SERVFAIL))
    servers.serve("127.0.0.3", with_flags(SERVFAIL))

    for address, family in (("127.0.0.1", None), ("127.0.0.2", Family.IPV4)):
        servers.resolv_conf.write_text(f"nameserver {address}\n")
        examine(HOST, family)
    servers.resolv_conf.write_text("nameserver 127.0.0.3\n")
    examine("bücher.example.", Family.IPV6)

    # RFC 1035, sections 4.1.1 and 4.1.2: RD, one question; the name, type A or AAAA, class IN.
    header = bytes.fromhex("0100 0001 0000 0000 0000")
    name = b"\x06router\x07example\x03net\x00"
    assert [query[2:] for query in servers.queries] == [
        header + name + bytes.fromhex("0001 0001"),
        header + name + bytes.fromhex("0001 0001"),
        header + b"\x0dxn--bcher-kva\x07example\x00" + bytes.fromhex("001c 0001"),
    ]


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        (with_flags(SERVFAIL), "answers SERVFAIL"),
        (with_flags(NXDOMAIN), "answers NXDOMAIN"),
        (with_flags(REFUSED), "answers REFUSED"),
        (with_flags(UNKNOWN), "answers code 11"),
        # getaddrinfo has had no answer just before.
        (with_flags(NO_ERROR), "answers slowly or not always"),
        (lambda query: with_flags(SERVFAIL)(query)[:11], "answers nonsense"),
        (
            lambda query: bytes([query[0] ^ 1]) + with_flags(SERVFAIL)(query)[1:],
            "answers nonsense",
        ),
    ],
)
def test_answer_of_a_server_is_told(servers: Servers, respond: Respond, said: str) -> None:
    servers.serve("127.0.0.2", respond)
    servers.resolv_conf.write_text("nameserver 127.0.0.2\n")

    assert examine(HOST, None) == f"name server 127.0.0.2 {said}"


def test_server_that_is_silent_is_told_after_the_timeout(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_servers, "TIMEOUT_S", 0.05)
    servers.serve("127.0.0.2", lambda _: None)
    servers.resolv_conf.write_text("nameserver 127.0.0.2\n")

    assert examine(HOST, None) == "no name server answered: 127.0.0.2 does not answer"


def test_server_that_cannot_be_asked_is_told_with_the_reason(servers: Servers) -> None:
    servers.resolv_conf.write_text(
        # Nobody is at the first port; the second needs SO_BROADCAST; the third is no address.
        "nameserver 127.0.0.9\nnameserver 255.255.255.255\nnameserver ns.example.net\n"
    )

    assert examine(HOST, None) == (
        "no name server answered: 127.0.0.9 is not running, "
        "255.255.255.255 cannot be reached: Permission denied, "
        "ns.example.net cannot be reached: Name or service not known"
    )


def test_name_that_fits_no_query_is_told(servers: Servers) -> None:
    servers.resolv_conf.write_text("nameserver 127.0.0.1\n")

    said = "no name server answered: 127.0.0.1 cannot be asked for such a name"
    assert examine("x" * 64 + ".example.net", None) == said
    assert servers.queries == []


def test_one_server_that_answers_is_enough_not_to_say_that_none_did(servers: Servers) -> None:
    servers.resolv_conf.write_text("nameserver 127.0.0.9\nnameserver 127.0.0.1\n")

    said = "name server 127.0.0.9 is not running, 127.0.0.1 answers SERVFAIL"
    assert examine(HOST, None) == said


@pytest.mark.parametrize("text", [None, "", "nameserver\n# nameserver 127.0.0.9\nsearch a.b\n"])
def test_without_a_server_in_the_file_this_machine_is_asked(
    servers: Servers, text: str | None
) -> None:
    """resolv.conf(5)."""
    if text is not None:
        servers.resolv_conf.write_text(text)

    assert examine(HOST, None) == "name server 127.0.0.1 answers SERVFAIL"


def test_no_more_servers_are_asked_than_the_resolver_reads(servers: Servers) -> None:
    lines = [f"nameserver 127.0.0.{number}\n" for number in (7, 8, 9, 1)]
    # Bytes of no encoding do not hide the rest.
    servers.resolv_conf.write_bytes(b"# \xff\n" + "".join(lines).encode())

    assert examine(HOST, None) == (
        "no name server answered: 127.0.0.7 is not running, 127.0.0.8 is not running, "
        "127.0.0.9 is not running"
    )
    assert servers.queries == []
