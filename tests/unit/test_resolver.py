"""The resolver helper, against real name servers in a namespace and helpers that fail."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from vela.address import Family
from vela.errors import ResolutionError
from vela.supervisor.runtime.resolver import (
    Answer,
    Question,
    Resolver,
    ResolverLostError,
    resolve,
    serve,
)

ROOT = Path(__file__).parents[2]
HELPER = (
    "import socket, sys; from vela.supervisor.runtime.resolver import serve; "
    "serve(socket.socket(fileno=int({})))"
)
RECORDS = [
    "--host-record=four.vela.example,192.0.2.4",
    "--host-record=six.vela.example,2001:db8::6",
    "--host-record=both.vela.example,192.0.2.46,2001:db8::46",
    "--host-record=nowhere.vela.example,0.0.0.0",
    "--host-record=mapped.vela.example,::ffff:192.0.2.9",
    "--host-record=link.vela.example,fe80::7",
    "--host-record=mixed.vela.example,192.0.2.7,fe80::7",
    "--local=/vela.example/",
]


def answers(resolver: Resolver, count: int) -> list[Answer]:
    """Wait for count answers."""
    received: list[Answer] = []
    while len(received) < count:
        assert select.select([resolver], [], [], 20)[0], f"only {received}"
        received += resolver.receive()
    return received


def ask(resolver: Resolver, host: str, family: Family | None = None) -> Answer:
    resolver.request(host, family)
    (answer,) = answers(resolver, 1)
    return answer


def addresses(resolver: Resolver, host: str, family: Family | None = None) -> list[str]:
    answer = ask(resolver, host, family)
    assert answer.error is None
    return [str(address) for address in answer.addresses]


def error(resolver: Resolver, host: str, family: Family | None = None) -> str | None:
    answer = ask(resolver, host, family)
    assert answer.addresses == ()
    return answer.error


class Pair:
    """A Resolver, and the helper's end of its channel in the hands of the test."""

    def __init__(self) -> None:
        ours, self.helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.resolver = Resolver(ours)

    def renew(self) -> None:
        """Take the place of the helper that ended."""
        ours, self.helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.resolver.restart(ours)

    def questions(self) -> list[bytes]:
        """Read what has been asked so far."""
        messages = []
        while select.select([self.helper], [], [], 0)[0]:
            messages.append(self.helper.recv(65536))
        return messages


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.resolver.close()
    pair.helper.close()


ANOTHER = "a global or unique local one is needed"
QUESTION = b'{"host": "a.example", "family": null}'
ANSWER = b'{"host": "a.example", "family": null, "addresses": ["192.0.2.1"], "error": null}'


# resolve(): what needs no name server


@pytest.mark.parametrize(
    ("host", "family", "expected"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", Family.IPV4, "192.0.2.1"),
        ("2001:db8::1", Family.IPV6, "2001:db8::1"),
        ("::ffff:192.0.2.1", None, "192.0.2.1"),
        ("169.254.0.9", None, "169.254.0.9"),
    ],
)
def test_resolve_of_an_address_returns_it(host: str, family: Family | None, expected: str) -> None:
    assert resolve(host, family) == (ip_address(expected),)


@pytest.mark.parametrize(
    ("host", "family", "sentence"),
    [
        ("0.0.0.0", None, "0.0.0.0: no usable address"),
        ("::", None, "::: no usable address"),
        ("ff02::1", None, "ff02::1: no usable address"),
        ("224.0.0.5", Family.IPV4, "224.0.0.5: no usable IPv4 address"),
        *(
            (host, None, f"{host}: only link-local addresses; {ANOTHER}")
            for host in ("fe80::1%lo", "fe80::1")
        ),
        ("192.0.2.1", Family.IPV6, "192.0.2.1: no IPv6 address"),
        ("::ffff:192.0.2.1", Family.IPV6, "::ffff:192.0.2.1: no usable IPv6 address"),
        ("a..b", None, "'a..b' is not a host name"),
        ("localhost\0.example", None, "'localhost\\x00.example' is not a host name"),
        ("x" * 64, None, f"'{'x' * 64}' is not a host name"),
        ("", None, ": no such name"),
    ],
)
def test_resolve_of_no_usable_address_says_why(
    host: str, family: Family | None, sentence: str
) -> None:
    with pytest.raises(ResolutionError) as caught:
        resolve(host, family)

    assert str(caught.value) == sentence


# Resolver: what it does with any helper


def test_request_repeated_is_asked_once(pair: Pair) -> None:
    for _ in range(3):
        pair.resolver.request("a.example", None)
    pair.resolver.request("a.example", Family.IPV4)

    assert pair.questions() == [QUESTION, b'{"host": "a.example", "family": "ipv4"}']


def test_request_after_its_answer_is_asked_again(pair: Pair) -> None:
    pair.resolver.request("a.example", None)
    pair.helper.send(ANSWER)

    received = pair.resolver.receive()
    pair.resolver.request("a.example", None)

    assert received == [Answer("a.example", None, (ip_address("192.0.2.1"),), None)]
    assert pair.questions() == [QUESTION, QUESTION]


def test_request_too_long_for_a_name_is_refused(pair: Pair) -> None:
    with pytest.raises(ResolutionError, match=r"^x{32}\.\.\. is longer"):
        pair.resolver.request("x" * 321, None)

    assert pair.resolver.outstanding == ()


def test_receive_without_answers_returns_none(pair: Pair) -> None:
    pair.resolver.request("a.example", None)

    assert pair.resolver.receive() == []


def test_full_channel_keeps_questions_until_there_is_room(pair: Pair) -> None:
    hosts = [f"host{number}.example" for number in range(5000)]
    for host in hosts:
        pair.resolver.request(host, None)
    was_full = pair.resolver.wants_write

    arrived = []
    while messages := pair.questions():
        arrived += messages
        assert pair.resolver.receive() == []

    assert was_full
    assert not pair.resolver.wants_write
    assert arrived == [b'{"host": "%s", "family": null}' % host.encode() for host in hosts]


def test_helper_that_dies_is_reported_after_its_answers_and_the_rest_is_asked_again(
    pair: Pair,
) -> None:
    pair.resolver.request("a.example", None)
    pair.resolver.request("b.example", Family.IPV6)
    pair.helper.send(ANSWER)
    pair.helper.close()

    received = pair.resolver.receive()
    with pytest.raises(ResolverLostError, match="ended"):
        pair.resolver.receive()
    pair.resolver.request("c.example", None)
    outstanding = pair.resolver.outstanding
    pair.renew()

    assert [answer.host for answer in received] == ["a.example"]
    assert outstanding == (Question("b.example", Family.IPV6), Question("c.example", None))
    assert pair.questions() == [
        b'{"host": "b.example", "family": "ipv6"}',
        b'{"host": "c.example", "family": null}',
    ]


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 10000,
        ANSWER.replace(b"a.example", b"b.example"),
        ANSWER.replace(b"192.0.2.1", b"192.0.2.256"),
        ANSWER.replace(b'"192.0.2.1"', b"1"),
        ANSWER.replace(b'"192.0.2.1"', b""),
        ANSWER.replace(b'"192.0.2.1"', b", ".join([b'"192.0.2.1"'] * 33)),
        ANSWER.replace(b"192.0.2.1", b"fe80::1%2"),
        ANSWER.replace(b'"family": null', b'"family": "ipx"'),
        ANSWER.replace(b'"error": null', b'"error": "no"'),
        ANSWER.replace(b'"error"', b'"more": 1, "error"'),
        ANSWER + b" " * 16384,
        *(ANSWER[:length] for length in range(1, len(ANSWER))),
    ],
)
def test_malformed_answer_is_reported_and_nothing_is_lost(pair: Pair, message: bytes) -> None:
    pair.resolver.request("a.example", None)
    pair.helper.send(message)

    with pytest.raises(ResolverLostError):
        pair.resolver.receive()

    assert pair.resolver.outstanding == (Question("a.example", None),)


def test_answers_before_a_malformed_one_are_asked_again(pair: Pair) -> None:
    pair.resolver.request("a.example", None)
    pair.helper.send(ANSWER)
    pair.helper.send(ANSWER)

    with pytest.raises(ResolverLostError, match="without a question"):
        pair.resolver.receive()

    assert pair.resolver.outstanding == (Question("a.example", None),)


# serve()


def test_serve_returns_at_the_end_of_the_channel(pair: Pair) -> None:
    helper = threading.Thread(target=serve, args=(pair.helper,), daemon=True)
    helper.start()
    found = addresses(pair.resolver, "192.0.2.1")

    pair.resolver.close()
    helper.join(5)

    assert found == ["192.0.2.1"]
    assert not helper.is_alive()


def test_serve_answers_names_of_the_greatest_length(pair: Pair) -> None:
    helper = threading.Thread(target=serve, args=(pair.helper,), daemon=True)
    helper.start()
    host = "\U0010ffff" * 320

    assert error(pair.resolver, host) == f"{host!r} is not a host name"
    # One that were left would keep every later test from forking.
    pair.resolver.close()
    helper.join(5)
    assert not helper.is_alive()


# The whole, with name servers in a namespace


class Lab:
    """A namespace with name servers, and a helper that lives in it."""

    def __init__(self) -> None:
        self.name = f"vstr{os.getpid()}"
        self.etc = Path("/etc/netns", self.name)
        self._processes: list[subprocess.Popen[str]] = []
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link", "set", "lo", "up")
        self.etc.mkdir(parents=True)
        self.use_server("127.0.0.1")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.run(
                sys.executable,
                "-c",
                HELPER.format(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
            )
        self.resolver = Resolver(ours)

    def close(self) -> None:
        self.resolver.close()
        for process in self._processes:
            self.end(process)
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
        shutil.rmtree(self.etc, ignore_errors=True)
        if not any(self.etc.parent.iterdir()):
            self.etc.parent.rmdir()

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def use_server(self, *servers: str) -> None:
        """Write resolv.conf in place: it is bind-mounted."""
        lines = [f"nameserver {server}\n" for server in servers]
        (self.etc / "resolv.conf").write_text("".join(lines) + "options timeout:1 attempts:1\n")

    def run(self, *command: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.kill()
            process.communicate()

    def serve(self, *records: str, address: str = "127.0.0.1") -> subprocess.Popen[str]:
        """Start a name server; return once it answers."""
        process = self.run(
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--log-facility=-",
            "--user=root",
            "--pid-file=",
            "--no-hosts",
            "--no-resolv",
            "--bind-interfaces",
            f"--listen-address={address}",
            *records,
        )
        assert process.stderr
        assert any("started" in line for line in process.stderr), "dnsmasq did not start"
        return process

    @contextmanager
    def silent_server(self) -> Iterator[int]:
        """Yield the port of a name server at 127.0.0.9 that never answers."""
        code = (
            "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM);"
            "s.bind(('127.0.0.9', 0)); print(s.getsockname()[1], file=sys.stderr, flush=True);"
            "sys.stdin.read()"
        )
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        try:
            yield int(process.stderr.readline())
        finally:
            self.end(process)

    @contextmanager
    def failing_server(self, address: str, rcode: int) -> Iterator[None]:
        """Run a name server that answers everything with this code (RFC 1035, section 4.1.1)."""
        code = (
            "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM);"
            f"s.bind(({address!r}, 53)); print(file=sys.stderr, flush=True)\n"
            "while True:\n"
            " query, source = s.recvfrom(512)\n"
            f" s.sendto(query[:2] + bytes((0x81, 0x80 | {rcode})) + query[4:], source)"
        )
        process = self.run(sys.executable, "-c", code)
        assert process.stderr
        try:
            process.stderr.readline()
            yield
        finally:
            self.end(process)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.mark.needs_net_admin
def test_names_are_resolved_by_family(lab: Lab) -> None:
    lab.serve(*RECORDS)

    assert addresses(lab.resolver, "four.vela.example") == ["192.0.2.4"]
    assert addresses(lab.resolver, "six.vela.example") == ["2001:db8::6"]
    assert addresses(lab.resolver, "both.vela.example", Family.IPV4) == ["192.0.2.46"]
    assert addresses(lab.resolver, "both.vela.example", Family.IPV6) == ["2001:db8::46"]
    assert addresses(lab.resolver, "mapped.vela.example") == ["192.0.2.9"]


@pytest.mark.needs_net_admin
def test_link_local_addresses_of_a_name_are_left_out(lab: Lab) -> None:
    lab.serve(*RECORDS)

    assert addresses(lab.resolver, "mixed.vela.example") == ["192.0.2.7"]
    for family in (None, Family.IPV6):
        assert error(lab.resolver, "link.vela.example", family) == (
            f"link.vela.example: only link-local addresses; {ANOTHER}"
        )


@pytest.mark.needs_net_admin
def test_names_without_an_address_are_told_from_names_that_do_not_exist(lab: Lab) -> None:
    lab.serve(*RECORDS)

    assert error(lab.resolver, "absent.vela.example") == ("absent.vela.example: no such name")
    assert error(lab.resolver, "four.vela.example", Family.IPV6) == (
        "four.vela.example: no IPv6 address"
    )
    assert error(lab.resolver, "nowhere.vela.example") == (
        "nowhere.vela.example: no usable address"
    )


@pytest.mark.needs_net_admin
def test_addresses_with_a_route_come_first_and_none_is_hidden(lab: Lab) -> None:
    lab.serve(*RECORDS)
    lab.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for interface in ("near", "far"):
        lab.ip("link", "set", interface, "up", "addrgenmode", "none")

    unrouted = addresses(lab.resolver, "both.vela.example")
    lab.ip("address", "add", "192.0.2.1/24", "dev", "near")
    over_ipv4 = addresses(lab.resolver, "both.vela.example")
    lab.ip("address", "add", "2001:db8::1/64", "dev", "near", "nodad")
    over_both = addresses(lab.resolver, "both.vela.example")

    assert sorted(unrouted) == ["192.0.2.46", "2001:db8::46"]
    assert over_ipv4 == ["192.0.2.46", "2001:db8::46"]
    assert over_both == ["2001:db8::46", "192.0.2.46"]


@pytest.mark.needs_net_admin
def test_dead_name_servers_do_not_delay_other_names(lab: Lab) -> None:
    with lab.silent_server() as port:
        lab.serve(*RECORDS, f"--server=/dead.example/127.0.0.9#{port}")

        for number in range(20):
            lab.resolver.request(f"host{number}.dead.example", None)
        lab.resolver.request("four.vela.example", None)
        first, *others = answers(lab.resolver, 21)

    assert first == Answer("four.vela.example", None, (ip_address("192.0.2.4"),), None)
    assert {answer.error for answer in others} == {
        f"host{number}.dead.example: no name server answered: 127.0.0.1 does not answer"
        for number in range(20)
    }


@pytest.mark.needs_net_admin
def test_absent_name_server_is_told_from_an_absent_name(lab: Lab) -> None:
    assert error(lab.resolver, "four.vela.example") == (
        "four.vela.example: no name server answered: 127.0.0.1 is not running"
    )


@pytest.mark.needs_net_admin
def test_name_servers_that_fail_are_named_with_what_they_answer(lab: Lab) -> None:
    lab.use_server("192.0.2.53", "127.0.0.1", "127.0.0.2")
    lab.serve("--local=/vela.example/")  # nobody to forward the rest to
    with lab.failing_server("127.0.0.2", rcode=2):
        said = error(lab.resolver, "router.example.net")

    assert said == (
        "router.example.net: name server 192.0.2.53 cannot be reached: Network is unreachable, "
        "127.0.0.1 answers REFUSED, 127.0.0.2 answers SERVFAIL"
    )


@pytest.mark.needs_net_admin
def test_name_with_thirty_addresses_is_resolved_to_all_of_them(lab: Lab) -> None:
    expected = {f"192.0.2.{number}" for number in range(1, 31)}
    lab.serve(*(f"--host-record=many.vela.example,{address}" for address in expected))

    assert set(addresses(lab.resolver, "many.vela.example")) == expected


@pytest.mark.needs_net_admin
def test_changed_record_is_seen_by_the_next_request(lab: Lab) -> None:
    server = lab.serve("--host-record=moving.vela.example,192.0.2.1")
    before = addresses(lab.resolver, "moving.vela.example")
    lab.end(server)
    lab.serve("--host-record=moving.vela.example,192.0.2.2")

    assert (before, addresses(lab.resolver, "moving.vela.example")) == (
        ["192.0.2.1"],
        ["192.0.2.2"],
    )


@pytest.mark.needs_net_admin
def test_changed_resolv_conf_is_followed_without_a_restart(lab: Lab) -> None:
    lab.serve("--host-record=moving.vela.example,192.0.2.1", address="127.0.0.1")
    lab.serve("--host-record=moving.vela.example,192.0.2.2", address="127.0.0.2")
    before = addresses(lab.resolver, "moving.vela.example")
    lab.use_server("127.0.0.2")

    assert (before, addresses(lab.resolver, "moving.vela.example")) == (
        ["192.0.2.1"],
        ["192.0.2.2"],
    )
