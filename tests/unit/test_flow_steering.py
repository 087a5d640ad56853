"""vela.linux.flow_steering: against a table of frames, in interpreters of BPF and in the kernel."""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from bpf_machines import run, run_extended

from vela.address import IPAddress
from vela.linux import ebpf
from vela.linux.flow_steering import load_queue_program, queue_program, why_no_queues
from vela.wire import MAX_QUEUES

ONE, OTHER = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.77")
ONE6, OTHER6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8:1::77")
TCP, UDP, ICMP, FRAGMENT_HEADER = 6, 17, 1, 44
MACS = bytes.fromhex("02005e10000102005e100002")


def tagged(*types: int) -> bytes:
    return b"".join(each.to_bytes(2) + b"\x60\x07" for each in types)


def frame(
    source: IPAddress,
    destination: IPAddress,
    ports: tuple[int, int] = (40000, 443),
    *,
    protocol: int = TCP,
    tags: bytes = b"",
    options: int = 0,
    fragment: int = 0,
    noise: int = 0,
) -> bytes:
    """Return a frame; noise: what differs between frames of one flow."""
    payload = b"".join(port.to_bytes(2) for port in ports) + noise.to_bytes(4) + bytes(12)
    if source.version == 4:
        start = bytes((0x45 + options, 0, 0, 40)) + (noise & 0xFFFF).to_bytes(2)
        start += fragment.to_bytes(2) + bytes((64, protocol)) + (noise & 0xFFFF).to_bytes(2)
        packet = start + source.packed + destination.packed + bytes(4 * options) + payload
        return MACS + tags + b"\x08\x00" + packet
    start = b"\x60" + (noise & 0xFFFFF).to_bytes(3) + b"\0\x14" + bytes((protocol, 64))
    return MACS + tags + b"\x86\xdd" + start + source.packed + destination.packed + payload


def queue(data: bytes, queues: int = 8) -> int:
    classic = queue_program(queues)
    found = run(classic, b"", data)
    assert run_extended(ebpf.translate(classic), b"", data) == found
    assert 0 <= found < queues
    return found


Make = Callable[..., bytes]
BOTH = pytest.mark.parametrize("pair", [(ONE, OTHER), (ONE6, OTHER6)], ids=["IPv4", "IPv6"])
TAGS = pytest.mark.parametrize(
    "tags", [b"", tagged(0x8100), tagged(0x88A8, 0x8100)], ids=["no tag", "one tag", "two tags"]
)


@BOTH
@TAGS
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("queues", [2, 3, MAX_QUEUES])
def test_flow_has_one_queue_in_both_directions_and_flows_are_spread(
    pair: tuple[IPAddress, IPAddress], tags: bytes, protocol: int, queues: int
) -> None:
    generator = random.Random(queues)
    found: Counter[int] = Counter()
    for port in generator.sample(range(1024, 65536), 100):
        there = {
            queue(frame(*pair, (port, 443), protocol=protocol, tags=tags, noise=noise), queues)
            for noise in (0, 0xFFFFFFFF)
        }
        back = queue(frame(*pair[::-1], (443, port), protocol=protocol, tags=tags), queues)
        assert there == {back}
        found[back] += 1

    assert len(found) == queues
    assert max(found.values()) < 3 * 100 / queues


@BOTH
def test_ports_in_a_row_are_spread_evenly(pair: tuple[IPAddress, IPAddress]) -> None:
    """As the kernel gives them to connections, every other one."""
    for step in (1, 2):
        found = [queue(frame(*pair, (40000 + step * n, 5201)), 2) for n in range(64)]
        assert 20 <= sum(found) <= 44


def test_addresses_alone_count_where_there_are_no_ports() -> None:
    for protocol in (ICMP, 50):
        found = {queue(frame(ONE, OTHER, (n, 9), protocol=protocol)) for n in range(40)}
        assert len(found) == 1
    # Extension headers of IPv6 are before them.
    found = {queue(frame(ONE6, OTHER6, (n, 9), protocol=FRAGMENT_HEADER)) for n in range(40)}
    assert len(found) == 1
    several = {queue(frame(ip_address(f"192.0.2.{n}"), OTHER, protocol=ICMP)) for n in range(40)}
    assert len(several) > 4


@pytest.mark.parametrize("fragment", [0x2000, 0x2001, 185, 0x1FFF])
def test_all_fragments_of_a_datagram_have_one_queue(fragment: int) -> None:
    """Only the first of them has ports."""
    found = {
        queue(frame(ONE, OTHER, (n, 9), protocol=UDP, fragment=each))
        for n in range(40)
        for each in (0x2000, fragment)
    }
    assert len(found) == 1
    # The don't-fragment bit is none.
    assert len({queue(frame(ONE, OTHER, (n, 9), fragment=0x4000)) for n in range(40)}) > 4


def test_options_of_ipv4_are_before_the_ports() -> None:
    for options in (1, 10):
        found = {queue(frame(ONE, OTHER, (n, 9), options=options)) for n in range(40)}
        assert len(found) > 4


def test_all_else_and_what_is_too_short_goes_through_the_first() -> None:
    arp = MACS + b"\x08\x06" + bytes(range(1, 29))
    pppoe = MACS + b"\x88\x64" + bytes(range(1, 60))
    deep = frame(ONE, OTHER, tags=tagged(0x8100, 0x8100, 0x8100))
    assert [queue(each) for each in (arp, pppoe, deep, b"", MACS)] == [0] * 5
    whole = frame(ONE, OTHER)
    for end in range(len(whole)):
        assert queue(whole[:end]) in (0, queue(whole))


def test_one_queue_takes_everything() -> None:
    assert {queue(frame(ONE, OTHER, (n, 9)), 1) for n in range(20)} == {0}


@pytest.mark.skipif(bool(why_no_queues()), reason="may not load extended BPF")
@pytest.mark.parametrize("queues", range(1, MAX_QUEUES + 1))
def test_kernel_accepts_the_program_and_is_given_it_once(queues: int) -> None:
    fd = load_queue_program(queues)
    assert load_queue_program(queues) == fd
    assert "bpf-prog" in os.readlink(f"/proc/self/fd/{fd}")
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        # SO_ATTACH_BPF: what it returns is how many bytes are kept.
        right.setsockopt(socket.SOL_SOCKET, 50, fd)
        right.setblocking(False)
        for n in range(8):
            data = frame(ONE, OTHER, (n, 9))
            left.send(data)
            kept = queue(data, queues)
            if kept:
                assert right.recv(100) == data[:kept]
            else:
                with pytest.raises(BlockingIOError):
                    right.recv(100)
