"""vela.linux.steering: against a dict in an interpreter of classic BPF, and in the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from bpf_machines import run, run_extended
from exhaustion import no_descriptors
from hypothesis import given
from hypothesis import strategies as st
from thorough import first_of

from vela.address import IPAddress
from vela.linux import bpf, ebpf
from vela.linux.steering import (
    REMOTES,
    SESSIONS,
    STRANGERS,
    AmbiguousRouteError,
    ControlSteering,
    Route,
    steering_program,
)

SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF = 51, 52  # asm-generic/socket.h
# How the kernel gets a program.
FORMS = (
    "classic",
    pytest.param(
        "extended",
        marks=pytest.mark.skipif(bool(ebpf.why_unavailable()), reason="may not load extended BPF"),
    ),
)


def test_lack_of_descriptors_is_not_taken_for_a_lack_of_privilege() -> None:
    ebpf.why_unavailable.cache_clear()
    before = ebpf.why_unavailable()
    ebpf.why_unavailable.cache_clear()
    if not before:
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            ebpf.why_unavailable()
    assert ebpf.why_unavailable() == before


UDP_GRO = 104  # linux/udp.h
CLONE_NEWNET = 0x40000000  # linux/sched.h

ADDRESSES_IN_COMMON: list[IPAddress] = [
    IPv4Address("192.0.2.1"),
    IPv4Address("192.0.2.2"),
    IPv4Address("198.51.100.1"),
    IPv4Address("0.0.0.0"),
    IPv4Address("255.255.255.255"),
    IPv6Address("2001:db8::1"),
    IPv6Address("2001:db8::2"),
    IPv6Address("2001:db8:0:1::1"),
    IPv6Address("2001:db8::1:0:0:1"),
    IPv6Address("::c000:201"),
    IPv6Address("::"),
]
addresses: st.SearchStrategy[IPAddress] = (
    st.sampled_from(ADDRESSES_IN_COMMON)
    | st.builds(IPv4Address, st.integers(0, 2**32 - 1))
    | st.builds(IPv6Address, st.integers(0, 2**128 - 1))
)
circuit_ids = st.integers(1, 255)
PORT = 49152
PORTS = st.sampled_from((PORT, 48621, 65535))
PORTS_OF_A_CHANGE = (PORT, PORT + 1)


@st.composite
def route_sets(draw: st.DrawFn) -> list[Route]:
    pairs = draw(st.lists(st.tuples(addresses, circuit_ids), unique_by=identity, max_size=80))
    indices = draw(st.lists(st.integers(0, 65535), min_size=len(pairs), max_size=len(pairs)))
    some = st.lists(PORTS, unique=True, max_size=2).map(tuple)
    ports = draw(st.lists(some, min_size=len(pairs), max_size=len(pairs)))
    return [
        Route(*pair, index, each) for pair, index, each in zip(pairs, indices, ports, strict=True)
    ]


def identity(pair: tuple[IPAddress, int]) -> tuple[IPAddress, int]:
    source, circuit_id = pair
    return (source.version == 6 and source.ipv4_mapped) or source, circuit_id


def ip_header(source: IPAddress, port: int = PORT, options: int = 0) -> bytes:
    """RFC 791, section 3.1; RFC 8200, section 3; and UDP's. What is not looked at is 0xff.

    options: so many words, or with IPv6 so many extension headers of 8 bytes.
    """
    udp = port.to_bytes(2) + b"\xff" * 6
    if source.version == 4:
        first = bytes([0x45 + options]) + b"\xff" * 11 + source.packed + b"\xff" * 4
        return first + b"\xff" * (4 * options) + udp
    # RFC 8200, section 4.6: destination options, which look like a port.
    extension = bytes([17, 0, 1, 4, 0, 0, 0, 0])
    following = b"\x3c" if options else b"\x11"
    first = b"\x60" + b"\xff" * 5 + following + b"\xff" + source.packed + b"\xff" * 16
    return first + extension * options + udp


def deliver(
    program: bytes, source: str | IPAddress, payload: bytes, port: int = PORT, options: int = 0
) -> int:
    return run(program, ip_header(ip_address(source), port, options), payload)


def program_of(*routes: Route) -> bytes:
    steering = steering_program(routes)
    assert steering.left_out == ()
    return steering.program


def test_program_without_routes_returns_zero() -> None:
    assert steering_program([]).program == struct.pack("HBBI", 0x06, 0, 0, 0)


def test_program_of_one_ipv4_route_equals_hand_assembly() -> None:
    program = program_of(Route(IPv4Address("192.0.2.1"), 7, 3))

    assert program == b"".join(
        struct.pack("HBBI", *step)
        for step in [
            (0x30, 0, 0, 0xFFF00000),  # ldb [net + 0]
            (0x74, 0, 0, 4),  # rsh #4
            (0x15, 1, 0, 4),  # jeq #4, next but one, next
            (0x06, 0, 0, 0),  # ret #0
            (0x30, 0, 0, 0),  # ldb [0]
            (0x02, 0, 0, 1),  # st M[1]
            (0x20, 0, 0, 0xFFF0000C),  # ld [net + 12]
            (0x02, 0, 0, 0),  # st M[0]
            (0x60, 0, 0, 0),  # ld M[0]
            (0x15, 0, 2, 0xC0000201),  # jeq #192.0.2.1, next, miss
            (0x60, 0, 0, 1),  # ld M[1]
            (0x15, 1, 0, 7),  # jeq #7, hit, miss
            (0x06, 0, 0, 0),  # miss: ret #0
            (0x06, 0, 0, 3),  # hit: ret #3
        ]
    )


@pytest.mark.parametrize("source", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize(
    ("payload", "index"),
    [(b"\x07", 3), (b"\x07\x45", 3), (b"\x00", 0), (b"\x08", 0), (b"", 0)],
)
def test_datagram_of_known_source_is_steered_by_its_circuit_id(
    source: str, payload: bytes, index: int
) -> None:
    program = program_of(Route(ip_address(source), 7, 3))

    assert deliver(program, source, payload) == index


@pytest.mark.parametrize(
    "source",
    ["192.0.2.0", "193.0.2.1", "2001:db8::", "2001:db8::1:0:1", "2001:db8:1::1", "::c000:201"],
)
def test_datagram_of_unknown_source_returns_zero(source: str) -> None:
    program = program_of(
        Route(IPv4Address("192.0.2.1"), 7, 3), Route(IPv6Address("2001:db8::1"), 7, 4)
    )

    assert deliver(program, source, b"\x07") == 0


def test_packet_of_neither_family_returns_zero() -> None:
    program = program_of(
        Route(IPv4Address("192.0.2.1"), 7, 3), Route(IPv6Address("2001:db8::1"), 7, 4)
    )

    header = ip_header(IPv4Address("192.0.2.1"))

    assert run(program, b"\x55" + header[1:], b"\x07") == 0


def test_route_of_ipv4_mapped_source_catches_ipv4() -> None:
    program = program_of(Route(IPv6Address("::ffff:192.0.2.1"), 7, 3))

    assert deliver(program, "192.0.2.1", b"\x07") == 3


def test_route_of_scoped_source_catches_its_address() -> None:
    program = program_of(Route(IPv6Address("fe80::1%eth0"), 7, 3))

    assert deliver(program, "fe80::1", b"\x07") == 3


@pytest.mark.parametrize("second", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_two_routes_of_one_source_and_circuit_id_are_refused_by_name(second: str) -> None:
    routes = [Route(IPv4Address("192.0.2.1"), 7, 3), Route(ip_address(second), 7, 4)]

    with pytest.raises(AmbiguousRouteError) as caught:
        steering_program(routes)

    assert str(caught.value) == "circuit id 7 of 192.0.2.1 is claimed by the sockets 3 and 4"
    assert [caught.value.first, caught.value.second] == routes


@pytest.mark.parametrize(("circuit_id", "index"), [(0, 1), (256, 1), (1, -1), (1, 65536)])
def test_route_out_of_range_is_refused(circuit_id: int, index: int) -> None:
    with pytest.raises(ValueError, match="is no"):
        Route(IPv4Address("192.0.2.1"), circuit_id, index)


@given(
    route_sets(),
    st.frozensets(addresses, max_size=10),
    st.frozensets(st.integers(0, 2**32 - 1), max_size=10),
    st.data(),
)
def test_extended_program_returns_what_the_classic_one_does(
    routes: list[Route],
    remotes: frozenset[IPAddress],
    nonces: frozenset[int],
    data: st.DataObject,
) -> None:
    classic = steering_program(routes, control=ControlSteering(remotes, nonces)).program
    extended = ebpf.translate(classic)

    sources = [*{route.source for route in routes}, *remotes, IPv4Address("192.0.2.77")]
    for source in data.draw(st.lists(st.sampled_from(sources), min_size=1, max_size=20)):
        plain = source.ipv4_mapped if source.version == 6 and source.ipv4_mapped else source
        number = data.draw(st.sampled_from([0, *(route.circuit_id for route in routes)]))
        nonce = data.draw(st.sampled_from([1, *nonces]))
        payload = bytes([number]) + bytes(15) + nonce.to_bytes(4)
        payload = payload[: data.draw(st.sampled_from((0, 1, 19, 20)))]
        header = ip_header(plain, data.draw(PORTS), data.draw(st.sampled_from((0, 1))))
        assert run_extended(extended, header, payload) == run(classic, header, payload)


def test_instruction_without_a_translation_is_refused() -> None:
    with pytest.raises(ValueError, match="no translation of instruction 0x87"):
        ebpf.translate(struct.pack("HBBI", 0x87, 0, 0, 0))  # txa


@pytest.mark.parametrize("code", [0x15, 0x35, 0x45])
@pytest.mark.parametrize("jumps", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)])
def test_comparisons_are_translated_whichever_side_jumps(code: int, jumps: tuple[int, int]) -> None:
    # The highest bit is set: comparisons of 64 bits would extend it.
    for k, value in ((0x80000001, 0x80000001), (0x80000001, 1), (1, 0xFFFFFFFF), (7, 0)):
        classic = b"".join(
            bpf.instruction(*step)
            for step in [
                (bpf.LOAD_WORD, 0, 0, 0),
                (code, k, *jumps),
                *((bpf.RETURN, number, 0, 0) for number in range(5, 8)),
            ]
        )
        packet = value.to_bytes(4)

        assert run_extended(ebpf.translate(classic), b"", packet) == 5 + (
            jumps[0] if _holds(code, value, k) else jumps[1]
        )


def _holds(code: int, value: int, k: int) -> bool:
    return {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]


@given(route_sets(), st.lists(st.tuples(addresses, st.binary(max_size=3)), max_size=20))
def test_program_agrees_with_a_dict(
    routes: list[Route], strangers: list[tuple[IPAddress, bytes]]
) -> None:
    program = program_of(*routes)

    expected = {identity((route.source, route.circuit_id)): route for route in routes}
    packets = [(route.source, bytes([route.circuit_id, 0x45])) for route in routes]
    packets += [(route.source, bytes([route.circuit_id ^ 1])) for route in routes]
    for source, payload in packets + strangers:
        source, circuit_id = identity((source, payload[0] if payload else 0))
        route = expected.get((source, circuit_id))
        for port in (PORT, 48621, 65535, 60, 17):
            index = route.index if route and (not route.ports or port in route.ports) else 0
            assert deliver(program, source, payload, port) == index
            if source.version == 4:
                assert deliver(program, source, payload, port, options=3) == index
            elif route is not None and route.ports:
                # The supervisor looks at the port where the program cannot.
                assert deliver(program, source, payload, port, options=1) == 0


def full_circuits() -> list[Route]:
    return [
        Route(IPv6Address("2001:db8::1"), number, number, PORTS_OF_A_CHANGE)
        for number in range(1, 256)
    ]


def full_networks() -> list[Route]:
    """255 /64s that differ in every word; all circuit ids."""
    chance = random.Random(1)
    return [
        Route(IPv6Address(chance.getrandbits(128)), n, n, PORTS_OF_A_CHANGE) for n in range(1, 256)
    ]


@pytest.mark.parametrize(
    ("routes", "instructions"), [(full_circuits(), 1400), (full_networks(), 3600)]
)
def test_program_of_255_routes_stays_small_and_exact(
    routes: list[Route], instructions: int
) -> None:
    program = program_of(*routes)

    assert len(program) <= 8 * instructions
    for route in routes:
        for circuit_id in {0, 1, route.circuit_id, route.circuit_id ^ 1}:
            index = next(
                (r.index for r in routes if (r.source, r.circuit_id) == (route.source, circuit_id)),
                0,
            )
            assert deliver(program, route.source, bytes([circuit_id])) == index


@pytest.mark.parametrize("part", first_of(range(8), 1))
def test_routes_beyond_the_limit_are_left_out_last_first_and_return_zero(part: int) -> None:
    routes = [
        Route(IPv4Address(0xC0000200 + host), number, number)
        for host in range(20)
        for number in range(1, 256)
    ]

    steering = steering_program(routes)

    fitting = len(routes) - len(steering.left_out)
    assert 1500 < fitting < 4096
    assert len(steering.program) <= 8 * 4096
    assert steering.left_out == tuple(routes[fitting:])
    for position in {*range(part, len(routes), 8), fitting - 1, fitting}:
        route = routes[position]
        expected = route.index if position < fitting else 0
        assert deliver(steering.program, route.source, bytes([route.circuit_id])) == expected


def control_message(nonce: int) -> bytes:
    """docs/protocol.md, section 4: header and tag."""
    return struct.pack("!BBBBQQQ", 0, 1, 5, 9, 0x0102030405060708, nonce, 7) + bytes(16)


nonce_sets = st.frozensets(st.integers(0, 2**64 - 1), max_size=80)


@given(route_sets(), st.frozensets(addresses, max_size=40), nonce_sets, st.data())
def test_control_messages_wait_by_nonce_then_by_source_and_frames_as_without(
    routes: list[Route],
    remotes: frozenset[IPAddress],
    nonces: frozenset[int],
    data: st.DataObject,
) -> None:
    plain = program_of(*routes)
    steering = steering_program(routes, control=ControlSteering(remotes, nonces))

    for source in data.draw(st.lists(addresses, max_size=4)) + sorted(remotes, key=str)[:4]:
        known = identity((source, 0))[0] in {identity((each, 0))[0] for each in remotes}
        for nonce in [*sorted(nonces)[:4], 0, data.draw(st.integers(0, 2**64 - 1))]:
            lower = {each & 0xFFFFFFFF for each in nonces}
            expected = SESSIONS if nonce & 0xFFFFFFFF in lower else REMOTES if known else STRANGERS
            message = control_message(nonce)
            assert deliver(steering.program, source, message) == expected
            # Too short to have one.
            assert nonces or deliver(steering.program, source, message[:19]) != SESSIONS
        for circuit_id in {1, 255, *(route.circuit_id for route in routes)}:
            frame = bytes([circuit_id]) + control_message(min(nonces, default=0))[1:]
            assert deliver(steering.program, source, frame) == deliver(plain, source, frame)


def test_control_messages_get_the_room_that_circuits_leave() -> None:
    routes = [Route(IPv4Address(number << 8), 1 + number % 255, number) for number in range(400)]
    control = ControlSteering(
        frozenset(IPv4Address((1 << 24) + number) for number in range(200)),
        frozenset(range(1000, 1200)),
    )
    size = len(program_of(*routes)) // 8

    sizes = []
    for room in range(size, size + 1500, 50):
        steering = steering_program(routes, room, control)
        assert steering.left_out == ()
        assert len(steering.program) <= 8 * room
        by_nonce = deliver(steering.program, "192.0.2.1", control_message(1100))
        by_source = deliver(steering.program, "1.0.0.7", control_message(7))
        sizes.append((by_nonce, by_source))
        for route in routes[::40]:
            frame = bytes([route.circuit_id]) + bytes(20)
            assert deliver(steering.program, route.source, frame) == route.index
    assert list(dict.fromkeys(sizes)) == [
        (STRANGERS, STRANGERS),
        (SESSIONS, STRANGERS),
        (SESSIONS, REMOTES),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_kernel_delivers_control_messages_to_the_right_socket(form: str) -> None:
    routes = [Route(IPv4Address("127.0.0.2"), 1, 3)]
    control = ControlSteering(frozenset({IPv4Address("127.0.0.2")}), frozenset({7, 8 << 32 | 9}))

    with group_of(4, form) as group:
        group.attach(steering_program(routes, control=control).program)
        delivered = [
            group.deliver(source, payload)
            for source in ("127.0.0.2", "127.0.0.3", "::1")
            for payload in (b"", b"\0", b"\1" * 44, *map(control_message, (0, 7, 8 << 32 | 9)))
        ]

    assert delivered == [0, 0, 3, 1, 2, 2, *(0, 0, 0, 0, 2, 2) * 2]


def test_all_circuits_there_may_be_leave_room_for_all_control_messages() -> None:
    """IPv6 remotes that have no word of their addresses in common take the most."""
    chance = random.Random(0)
    sources = [IPv6Address(chance.getrandbits(128)) for _ in range(255)]
    routes = [Route(source, 1 + number % 255, number) for number, source in enumerate(sources)]
    nonces = frozenset(chance.getrandbits(64) for _ in range(2 * 255))

    steering = steering_program(routes, control=ControlSteering(frozenset(sources), nonces))

    assert steering.left_out == ()
    for source in sources:
        assert deliver(steering.program, source, control_message(1)) == REMOTES
    for nonce in nonces:
        assert deliver(steering.program, "192.0.2.1", control_message(nonce)) == SESSIONS


class Group:
    """Dual-stack sockets of one reuseport group on one port; empty between deliveries."""

    def __init__(self, size: int, form: str) -> None:
        self._stack = ExitStack()
        self._form = form
        self.sockets: list[socket.socket] = []
        self.port = 0
        for _ in range(size):
            sock = self._stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
            sock.bind(("::", self.port))
            self.port = sock.getsockname()[1]
            self.sockets.append(sock)

    def close(self) -> None:
        self._stack.close()

    def attach(self, program: bytes) -> None:
        if self._form == "extended":
            descriptor = ebpf.load(ebpf.translate(program))
            try:
                self.sockets[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, descriptor)
            finally:
                os.close(descriptor)
            return
        instructions = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
        self.sockets[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, fprog)

    def deliver(self, source: str, payload: bytes, port: int = 0, options: bytes = b"") -> int:
        """Send from source to this host; return the index of the one socket that it reached."""
        to = "::1" if ":" in source else "127.0.0.1"
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            if options:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
            sender.bind((source, port))
            sender.sendto(payload, (to, self.port))
        ready, _, _ = select.select(self.sockets, [], [], 5)
        assert len(ready) == 1
        assert ready[0].recv(2048) == payload
        return self.sockets.index(ready[0])


@contextmanager
def group_of(size: int, form: str) -> Iterator[Group]:
    group = Group(size, form)
    try:
        yield group
    finally:
        group.close()


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(route_sets(), max_size=5))
def test_kernel_accepts_every_program(form: str, sets: list[list[Route]]) -> None:
    with group_of(1, form) as group:
        for routes in sets:
            group.attach(program_of(*routes))


@pytest.mark.parametrize("form", FORMS)
def test_kernel_delivers_to_exactly_the_right_socket(form: str) -> None:
    routes = [
        Route(IPv4Address("127.0.0.2"), 1, 1),
        Route(IPv4Address("127.0.0.2"), 255, 2),
        Route(IPv4Address("127.0.0.3"), 1, 3),
        Route(IPv6Address("::1"), 1, 4),
        Route(IPv6Address("::1"), 2, 5),
    ]

    with group_of(6, form) as group:
        group.attach(program_of(*routes))
        delivered = [
            group.deliver(source, payload)
            for source in ("127.0.0.2", "127.0.0.3", "127.0.0.4", "::1")
            for payload in (b"", b"\x00", b"\x01", b"\x02\x45", b"\xff" * 1400)
        ]

    assert delivered == [0, 0, 1, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 0]


@pytest.mark.parametrize("form", FORMS)
def test_kernel_delivers_only_what_comes_from_the_right_port(form: str) -> None:
    routes = [
        Route(IPv4Address("127.0.0.2"), 1, 1, (PORT,)),
        Route(IPv4Address("127.0.0.2"), 2, 2),
        Route(IPv6Address("::1"), 1, 3, (PORT, PORT + 1)),
        Route(IPv6Address("::1"), 2, 4),
    ]

    with group_of(5, form) as group:
        group.attach(program_of(*routes))
        delivered = [
            group.deliver(source, payload, port)
            for source in ("127.0.0.2", "::1")
            for payload in (b"\1", b"\2")
            for port in (PORT, PORT + 1)
        ]
        # Behind options, the port is further back: RFC 791, section 3.1.
        with_options = [
            group.deliver("127.0.0.2", b"\1", port, options=bytes([7, 7, 4, 0, 0, 0, 0, 0]))
            for port in (PORT, PORT + 1)
        ]

    assert delivered == [1, 0, 2, 2, 3, 3, 4, 4]
    assert with_options == [1, 0]


@pytest.mark.parametrize("form", FORMS)
def test_kernel_follows_a_program_attached_again(form: str) -> None:
    with group_of(3, form) as group:
        group.attach(program_of(Route(IPv4Address("127.0.0.2"), 1, 1)))
        before = [group.deliver("127.0.0.2", bytes([number])) for number in (1, 2)]
        group.attach(
            program_of(Route(IPv4Address("127.0.0.2"), 1, 2), Route(IPv4Address("127.0.0.2"), 2, 1))
        )
        after = [group.deliver("127.0.0.2", bytes([number])) for number in (1, 2)]

    assert (before, after) == ([1, 0], [2, 1])


@pytest.mark.parametrize("form", FORMS)
def test_kernel_takes_the_longest_program(form: str) -> None:
    routes = [
        Route(IPv4Address(0x7F000002 + host), number, 1 + host)
        for host in range(20)
        for number in range(1, 256)
    ]
    steering = steering_program(routes)
    *_, last = routes[: -len(steering.left_out)]

    with group_of(21, form) as group:
        group.attach(steering.program)
        first = group.deliver("127.0.0.2", b"\x01")
        end = group.deliver(str(last.source), bytes([last.circuit_id]))
        beyond = group.deliver("127.0.0.21", b"\xff")

    assert (first, end, beyond) == (1, last.index, 0)


@contextmanager
def namespace_with(addresses: list[IPv6Address]) -> Iterator[None]:
    """Enter a new network namespace whose lo has the addresses; sockets made inside stay there."""
    name = f"vstr{os.getpid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        batch = [f"address add {address}/128 dev lo nodad" for address in addresses]
        subprocess.run(
            ["ip", "-n", name, "-batch", "-"],
            input="\n".join(["link set lo up", *batch]),
            text=True,
            check=True,
        )
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{name}") as inside:
            assert libc.setns(inside.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), CLONE_NEWNET) == 0
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.needs_net_admin
def test_kernel_tells_ipv6_sources_apart_by_every_word(form: str) -> None:
    # Each differs from the first in one word of 32 bits.
    sources = [
        IPv6Address(text)
        for text in (
            "2001:db8::1",
            "2001:db9::1",
            "2001:db8:0:1::1",
            "2001:db8::1:0:1",
            "2001:db8::2",
        )
    ]
    stranger = IPv6Address("2001:db8::3")
    routes = [Route(source, 9, index) for index, source in enumerate(sources, 1)]

    with namespace_with([*sources, stranger]), group_of(6, form) as group:
        group.attach(program_of(*routes))
        delivered = [group.deliver(str(source), b"\x09\x45") for source in [*sources, stranger]]
        other_id = [group.deliver(str(source), b"\x08") for source in sources]

    assert delivered == [1, 2, 3, 4, 5, 0]
    assert other_id == [0] * 5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.needs_net_admin
def test_kernel_short_of_option_memory_takes_a_program_of_less_room(form: str) -> None:
    routes = full_networks()
    sources = [IPv6Address((0x2 << 124) | int(route.source) >> 4) for route in routes]
    routes = [Route(source, n, n) for n, source in enumerate(sources, 1)]

    with namespace_with(sources), group_of(256, form) as group:
        limit = Path("/proc/sys/net/core/optmem_max")
        if not limit.exists():
            pytest.skip("this kernel has one optmem_max for all namespaces")
        limit.write_text("20480")  # the default before Linux 6.8
        with pytest.raises(OSError, match="memory") as caught:
            group.attach(program_of(*routes))
        steering = steering_program(routes, room=1024)
        group.attach(steering.program)
        delivered = [
            group.deliver(str(route.source), bytes([route.circuit_id])) for route in routes
        ]

    fitting = len(routes) - len(steering.left_out)
    assert caught.value.errno == errno.ENOMEM
    assert fitting > 90
    assert delivered == list(range(1, fitting + 1)) + [0] * len(steering.left_out)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.needs_net_admin
def test_kernel_steers_255_ipv6_networks(form: str) -> None:
    chance = random.Random(2)
    sources = [IPv6Address((0x2 << 124) | chance.getrandbits(124)) for _ in range(255)]
    routes = [Route(source, index, index) for index, source in enumerate(sources, 1)]

    with namespace_with(sources), group_of(256, form) as group:
        group.attach(program_of(*routes))
        delivered = [
            group.deliver(str(route.source), bytes([route.circuit_id])) for route in routes
        ]

    assert delivered == list(range(1, 256))


@pytest.mark.parametrize("source", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_ports_are_spread_over_several_sockets(source: str, count: int) -> None:
    indices = tuple(range(40, 40 + count))
    route = Route(ip_address(source), 7, indices[0], further=indices[1:])
    any_port = program_of(route)
    named = program_of(replace(route, ports=tuple(range(50000, 50008))))
    for port in (1, 48621, *range(49999, 50010), 65535):
        wanted = indices[port % count]
        assert deliver(any_port, source, b"\x07", port) == wanted
        assert deliver(any_port, source, b"\x08", port) == 0
        assert deliver(named, source, b"\x07", port) == (wanted if 50000 <= port < 50008 else 0)
        header = ip_header(ip_address(source), port, 0)
        for program in (any_port, named):
            extended = ebpf.translate(program)
            assert run_extended(extended, header, b"\x07") == run(program, header, b"\x07")


def test_many_circuits_with_several_sockets_each_fit() -> None:
    routes = [
        Route(
            IPv4Address("192.0.2.1"),
            circuit_id,
            3 + 2 * circuit_id,
            ports=(50000 + 2 * circuit_id, 50001 + 2 * circuit_id),
            further=(4 + 2 * circuit_id,),
        )
        for circuit_id in range(1, 256)
    ]
    program = program_of(*routes)
    for route in routes[::17]:
        for port, index in zip(route.ports, route.indices, strict=True):
            found = deliver(program, "192.0.2.1", bytes([route.circuit_id]), port)
            assert found == index
