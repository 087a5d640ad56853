"""Who has a port: which file a velad was started with, by its command line."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address

import pytest

from vela.linux import port_holder
from vela.linux.usage import Program, program_with_port

ANYWHERE = IPv4Address("0.0.0.0")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("python3", "/opt/vela/bin/velad"), "velad, pid 7, with /etc/vela.toml"),
        (("python3", "velad", "--config", "/a.toml"), "velad, pid 7, with /a.toml"),
        (("velad", "--config=b.toml"), "velad, pid 7, with /root/b.toml"),
        (("velad", "-c", "b.toml"), "velad, pid 7, with /root/b.toml"),
        (("velad", "-cb.toml"), "velad, pid 7, with /root/b.toml"),
        (("velad", "--config"), "velad, pid 7, with /root"),
        (("dnsmasq", "--conf-dir", "velad"), "python3, pid 7"),
        ((), "python3, pid 7"),
    ],
)
def test_holder_of_a_port_is_named_as_the_operator_knows_it(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], said: str
) -> None:
    found = Program(7, "python3", command, "/root")
    monkeypatch.setattr(port_holder, "program_with_port", lambda *_: found)

    assert port_holder.port_holder(48621, ANYWHERE) == said


def test_port_that_nobody_has_has_no_holder() -> None:
    assert program_with_port(1, ANYWHERE) is None
    assert port_holder.port_holder(1, ANYWHERE) == ""


BIND = """
import socket, sys
opened = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
opened.bind((sys.argv[1], int(sys.argv[2])))
print(opened.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(address: str, port: int = 0) -> Iterator[tuple[int, int]]:
    """Have another process bind an address; yield its pid and the port."""
    with subprocess.Popen(
        [sys.executable, "-c", BIND, address, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.stdin.close()


@pytest.mark.parametrize(
    ("bound", "wanted", "named"),
    [
        ("127.0.0.2", "127.0.0.2", True),
        ("127.0.0.2", "127.0.0.3", False),
        ("127.0.0.2", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.3", True),
        ("::1", "::", True),
        ("::", "127.0.0.3", True),
        ("127.0.0.2", "::", True),
        ("0.0.0.0", "::1", False),
        ("::1", "0.0.0.0", False),
    ],
)
def test_holder_is_who_has_the_port_of_that_address(bound: str, wanted: str, named: bool) -> None:
    with other_process(bound) as (pid, port):
        found = program_with_port(port, ip_address(wanted))

    assert (None if found is None else found.pid) == (pid if named else None)


def test_velad_does_not_name_itself_as_the_holder() -> None:
    # Of another address, it has the port already.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.4", 0))
        port = own.getsockname()[1]

        alone = program_with_port(port, ANYWHERE)
        with other_process("127.0.0.5", port) as (pid, _):
            beside = program_with_port(port, ANYWHERE)

    assert alone is None
    assert beside
    assert beside.pid == pid
