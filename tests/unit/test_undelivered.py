"""What is known of requests that did not arrive: ICMP errors as bytes, and which are kept."""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address

import pytest

from vela.address import Endpoint
from vela.linux.icmp import IcmpError, parse
from vela.supervisor.undelivered import MAX_REMOTES, UndeliveredDatagrams

REMOTE = Endpoint(ip_address("192.0.2.9"), 48700)
ROUTER = ip_address("198.51.100.1")


def quoted(remote: str, options: bytes = b"") -> bytes:
    """Return the headers of a datagram from port 48621 to port 48700 of a remote."""
    ports = struct.pack("!HHHH", 48621, 48700, 108, 0)
    address = ip_address(remote).packed
    if len(address) == 16:
        return struct.pack("!IHBB", 0x60000000, 108, 17, 64) + bytes(16) + address + ports
    header = bytes([0x45 + len(options) // 4, 0]) + bytes(7) + bytes([17, 0, 0]) + bytes(4)
    return header + address + options + ports


def error(kind: int, code: int, quote: bytes, options: bytes = b"") -> bytes:
    """Return an ICMP error as a raw socket of IPv4 reads it."""
    header = bytes([0x45 + len(options) // 4]) + bytes(19) + options
    return header + bytes([kind, code]) + bytes(6) + quote


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        (3, 1, "host unreachable"),
        (3, 3, "port unreachable"),
        (3, 13, "administratively prohibited"),
        (11, 0, "time to live exceeded"),
    ],
)
def test_icmp_error_says_what_came_back_from_whom(kind: int, code: int, word: str) -> None:
    expected = IcmpError(word, ROUTER, REMOTE)

    assert parse(error(kind, code, quoted("192.0.2.9")), "198.51.100.1", 4) == expected
    data = error(kind, code, quoted("192.0.2.9", bytes(8)), bytes(4))
    assert parse(data, "198.51.100.1", 4) == expected


def test_icmpv6_error_says_what_came_back_from_whom() -> None:
    data = bytes([1, 4]) + bytes(6) + quoted("2001:db8::9")

    found = parse(data, "fe80::1%eth0", 6)

    remote = Endpoint(ip_address("2001:db8::9"), 48700)
    assert found == IcmpError("port unreachable", ip_address("fe80::1"), remote)


@pytest.mark.parametrize("version", [4, 6])
def test_icmp_error_truncated_anywhere_is_none(version: int) -> None:
    if version == 4:
        data, sender = error(3, 3, quoted("192.0.2.9")), "198.51.100.1"
    else:
        data, sender = bytes([1, 4]) + bytes(6) + quoted("2001:db8::9"), "2001:db8::1"
    assert parse(data, sender, version) is not None

    for length in range(len(data) - 4):
        assert parse(data[:length], sender, version) is None


def test_other_icmp_messages_are_none() -> None:
    assert parse(error(3, 4, quoted("192.0.2.9")), "198.51.100.1", 4) is None
    assert parse(error(8, 0, quoted("192.0.2.9")), "198.51.100.1", 4) is None


def test_latest_of_a_remote_since_it_is_asked_is_known() -> None:
    log = UndeliveredDatagrams()
    log.returned([IcmpError("port unreachable", ROUTER, REMOTE)], {REMOTE.address}, 5.0)

    found = log.last([REMOTE], since=1.0)

    assert found is not None
    assert (found.reason, found.reason.code) == (
        "ICMP port unreachable came back from 198.51.100.1",
        "icmp_error",
    )
    assert log.last([REMOTE], since=6.0) is None
    log.refused(REMOTE, OSError(errno.EPERM, ""), 7.0)
    found = log.last([REMOTE], since=6.0)
    assert found is not None
    assert (found.reason, found.reason.code) == (
        "the kernel does not send: Operation not permitted",
        "send_refused",
    )


def test_errors_about_no_remote_of_a_circuit_are_not_kept_and_others_are_bounded() -> None:
    log = UndeliveredDatagrams()
    log.returned([IcmpError("port unreachable", ROUTER, REMOTE)], set(), 5.0)
    assert log.last([REMOTE], since=0.0) is None

    ports = range(1, MAX_REMOTES + 2)
    endpoints = [Endpoint(REMOTE.address, port) for port in ports]
    log.returned([IcmpError("x", ROUTER, each) for each in endpoints], {REMOTE.address}, 5.0)

    assert log.last(endpoints[:1], since=0.0) is None
    assert all(log.last([each], since=0.0) is not None for each in endpoints[1:])
