"""vela.supervisor.demux: real groups and datagrams, steered and past the steering."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from lab.datagrams import VELA_PORT
from lab.topology import TwoRouters
from vela.address import Endpoint, IPAddress
from vela.dataplane.frame import REBUILD_ROOM
from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.steering import CONTROL_SOCKETS, ControlSteering
from vela.linux.underlay import ReceiveGroup
from vela.supervisor import frame_ports
from vela.supervisor.demux import STEER_INTERVAL_S, CircuitIdTaken, Claim, Demux, DropReason
from vela.supervisor.inheritance import Inheritance, member_name
from vela.supervisor.runtime.loop import EventLoop

UDP_SEGMENT = 103  # include/uapi/linux/udp.h
TIMEOUT_S = 5.0
FOUR, SIX = ip_address("127.0.0.1"), ip_address("::1")


class Circuit:
    """A receiver that keeps what it is given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delivered: list[bytes] = []
        self.looks = 0

    def deliver(self, data: bytearray, start: int, end: int) -> None:
        assert start >= REBUILD_ROOM
        self.delivered.append(bytes(data[start:end]))

    def look_at_route(self) -> None:
        self.looks += 1


class Network:
    """A demux with one group of both families, and senders."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
            self.port: int = probe.getsockname()[1]
        self.loop = EventLoop()
        stack.callback(self.loop.close)
        self.group = ReceiveGroup(ip_address("::"), self.port, only_ipv6=False)
        self.demux = Demux(self.loop, [self.group])
        stack.callback(self.demux.close)
        stack.callback(self.group.close)
        self._senders: dict[IPAddress, socket.socket] = {}

    def claim(
        self, circuit: Circuit, circuit_id: int, *sources: IPAddress, settle: bool = True
    ) -> Claim:
        made = self.demux.claim(circuit, circuit_id, sources, self.group)
        if settle:
            self.turn()
        return made

    def send(self, source: IPAddress, datagram: bytes, segment: int | None = None) -> None:
        sender = self._senders.get(source)
        if sender is None:
            family = socket.AF_INET if source.version == 4 else socket.AF_INET6
            sender = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sender.bind((str(source), 0))
            self._senders[source] = sender
        ancillary = []
        if segment is not None:
            ancillary = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
        sender.sendmsg([datagram], ancillary, 0, (str(source), self.port))

    def port_of(self, source: IPAddress) -> int:
        port: int = self._senders[source].getsockname()[1]
        return port

    def turn(self) -> None:
        """Let the loop do what is to be done; on loopback what was sent is there already."""
        self.loop.call_later(STEER_INTERVAL_S + 0.02, self.loop.stop)
        self.loop.run()

    def dropped(self) -> dict[DropReason, int]:
        counts = self.demux.dropped()
        return {reason: counts[reason.value] for reason in DropReason if counts[reason.value]}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def network(stack: ExitStack) -> Network:
    return Network(stack)


def queued(claim: Claim) -> list[bytes]:
    received = []
    while select.select([claim.socket], [], [], 0)[0]:
        received.append(claim.socket.recv(2048))
    return received


def test_datagrams_come_to_the_claim_of_their_source_and_id(network: Network) -> None:
    circuits = [Circuit("vela0"), Circuit("vela1"), Circuit("vela2")]
    first = network.claim(circuits[0], 1, FOUR)
    second = network.claim(circuits[1], 2, FOUR)
    third = network.claim(circuits[2], 1, SIX)
    for source in (FOUR, SIX):
        for circuit_id in (1, 2):
            network.send(source, bytes([circuit_id]) + str(source).encode())
    network.turn()

    assert queued(first) == [b"\x01127.0.0.1"]
    assert queued(second) == [b"\x02127.0.0.1"]
    assert queued(third) == [b"\x01::1"]
    assert network.dropped() == {DropReason.UNKNOWN_CIRCUIT: 1}
    assert [circuit.delivered for circuit in circuits] == [[], [], []]


def test_what_no_circuit_claims_is_counted_by_reason(network: Network) -> None:
    network.claim(Circuit("vela0"), 1, FOUR)
    for datagram in (b"", b"\x00", b"\x00 control", b"\x02 unknown", b"\xff"):
        network.send(FOUR, datagram)
    network.turn()

    assert network.dropped() == {
        DropReason.EMPTY: 1,
        DropReason.CONTROL: 2,
        DropReason.UNKNOWN_CIRCUIT: 2,
    }


def test_datagram_ahead_of_the_steering_is_delivered_all_the_same(network: Network) -> None:
    circuit = Circuit("vela0")
    network.send(FOUR, b"\x01 before the claim")
    claim = network.claim(circuit, 1, FOUR, settle=False)
    network.send(FOUR, b"\x01 before the steering")
    network.turn()

    assert circuit.delivered == [b"\x01 before the claim", b"\x01 before the steering"]
    assert queued(claim) == []
    network.send(FOUR, b"\x01 behind it")
    assert queued(claim) == [b"\x01 behind it"]


def test_merged_datagrams_of_several_circuits_come_to_each(network: Network) -> None:
    """All of one burst arrive as one (UDP GRO), at the socket of the first: the supervisor's."""
    one, two = Circuit("vela0"), Circuit("vela1")
    network.claim(one, 1, FOUR, settle=False)
    network.claim(two, 2, FOUR, settle=False)
    network.send(FOUR, b"\x01aa\x02bb\x09cc\x00dd\x01e", segment=3)
    network.turn()

    assert one.delivered == [b"\x01aa", b"\x01e"]
    assert two.delivered == [b"\x02bb"]
    assert network.dropped() == {DropReason.UNKNOWN_CIRCUIT: 1, DropReason.CONTROL: 1}


@pytest.mark.parametrize("source", [FOUR, SIX])
def test_circuit_that_is_restricted_to_a_port_gets_nothing_from_others(
    network: Network, source: IPAddress
) -> None:
    circuit = Circuit("vela0")
    claim = network.claim(circuit, 1, source)
    network.send(source, b"\1 from any port")
    network.demux.restrict(claim, 9)
    # Ahead of the steering, and by it.
    early = bytearray(REBUILD_ROOM) + b"\1x"
    network.demux.dispatch(Endpoint(source, 10), source, early, REBUILD_ROOM, len(early))
    network.turn()
    network.send(source, b"\1 from another port")
    network.turn()

    assert queued(claim) == [b"\1 from any port"]
    assert network.dropped() == {DropReason.WRONG_PORT: 2}
    network.demux.restrict(claim, network.port_of(source))
    network.turn()
    network.send(source, b"\1 from the port")
    assert queued(claim) == [b"\1 from the port"]
    network.demux.restrict(claim, None)
    network.turn()
    assert network.demux.port_of(claim) is None
    assert circuit.delivered == []


def test_circuit_whose_remote_names_another_port_gets_what_comes_from_both_for_a_while(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_ports, "FORMER_PORT_S", 2 * STEER_INTERVAL_S + 0.1)
    circuit = Circuit("vela0")
    claim = network.claim(circuit, 1, FOUR)
    network.send(FOUR, b"\1 from any port")
    network.demux.restrict(claim, network.port_of(FOUR))
    network.turn()

    network.demux.restrict(claim, 9)
    # Ahead of the steering, and by it.
    for port in (9, network.port_of(FOUR), 10):
        early = bytearray(REBUILD_ROOM) + f"\1 from {port}".encode()
        network.demux.dispatch(Endpoint(FOUR, port), FOUR, early, REBUILD_ROOM, len(early))
    network.turn()
    network.send(FOUR, b"\1 from the former one")
    network.turn()
    network.turn()
    network.send(FOUR, b"\1 from it, too late")
    network.turn()

    assert queued(claim) == [b"\1 from any port", b"\1 from the former one"]
    assert circuit.delivered == [b"\1 from 9", f"\1 from {network.port_of(FOUR)}".encode()]
    assert network.dropped() == {DropReason.WRONG_PORT: 2}
    assert network.demux.port_of(claim) == 9


def test_id_that_another_circuit_has_of_one_of_the_addresses_is_refused(network: Network) -> None:
    other = ip_address("127.0.0.2")
    network.claim(Circuit("vela0"), 1, FOUR)

    with pytest.raises(CircuitIdTaken) as caught:
        network.claim(Circuit("vela1"), 1, other, FOUR)

    assert str(caught.value) == "vela0 already uses circuit id 1 toward 127.0.0.1"
    # Nothing of it is left: the other address is free.
    network.claim(Circuit("vela2"), 1, other)


def test_claims_that_the_steering_cannot_tell_apart_are_one_or_refused(network: Network) -> None:
    zones = [ip_address(f"fe80::1%{number}") for number in (1, 2)]
    mapped = ip_address("::ffff:127.0.0.1")

    zoned = network.claim(Circuit("vela0"), 1, *zones)
    claim = network.claim(Circuit("vela1"), 1, FOUR, mapped)

    for address in (*zones, ip_address("fe80::1"), mapped):
        with pytest.raises(CircuitIdTaken):
            network.claim(Circuit("vela2"), 1, address)
    network.send(FOUR, b"\x01 steered")
    assert queued(claim) == [b"\x01 steered"]
    for each in (zoned, claim):
        network.demux.withdraw(each)
    network.claim(Circuit("vela3"), 1, FOUR, *zones)


def test_withdrawn_claim_gets_nothing_and_its_socket_serves_the_next(network: Network) -> None:
    old, new = Circuit("old"), Circuit("new")
    claim = network.claim(old, 1, FOUR)
    network.send(FOUR, b"\x01 unread")
    index = claim.index

    network.demux.withdraw(claim)
    # Before the steering has changed the socket is not for anybody else.
    assert network.claim(Circuit("meanwhile"), 5, FOUR, settle=False).index != index
    network.turn()
    network.send(FOUR, b"\x01 too late")
    network.turn()
    assert network.dropped() == {DropReason.UNKNOWN_CIRCUIT: 1}

    again = network.claim(new, 1, FOUR)
    assert again.index == index
    assert queued(again) == []
    network.send(FOUR, b"\x01 for the new one")
    assert queued(again) == [b"\x01 for the new one"]


def test_all_255_ids_of_an_address_can_be_claimed_and_given_back(network: Network) -> None:
    claims = [
        network.claim(Circuit(f"vela{number}"), number, FOUR, settle=False)
        for number in range(1, 256)
    ]
    network.turn()
    for number in range(1, 256):
        network.send(FOUR, bytes([number]))
    assert [queued(claim) for claim in claims] == [[bytes([number])] for number in range(1, 256)]

    for claim in claims:
        network.demux.withdraw(claim)
    network.turn()
    network.send(FOUR, b"\x07")
    network.turn()
    assert network.dropped() == {DropReason.UNKNOWN_CIRCUIT: 1}


def test_control_message_comes_with_the_address_that_was_asked(network: Network) -> None:
    took = []
    network.demux.set_control_handler(lambda *message: took.append(message))
    for to in ("127.0.0.1", "127.0.0.9", "::1"):
        network.send(ip_address(to), b"\x00")
    network.send(FOUR, b"\x00a\x00b\x00", segment=2)
    network.turn()

    assert [str(here) for _, _, here in took] == [
        *("127.0.0.1", "127.0.0.9", "::1"),
        *("127.0.0.1", "127.0.0.1", "127.0.0.1"),
    ]


def control_message(nonce: int) -> bytes:
    """docs/protocol.md, section 4: header and tag."""
    return struct.pack("!BBBBQQQ", 0, 1, 5, 9, 1, nonce, 7) + bytes(16)


def test_control_messages_of_sessions_and_remotes_find_room_where_a_flood_has_left_none(
    network: Network,
) -> None:
    took = []
    network.demux.set_control_handler(lambda data, *_: took.append(data))
    network.demux.expect_control(ControlSteering(frozenset({SIX}), frozenset({7})))
    network.turn()
    for control_socket in network.group.control_sockets:
        control_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for source in (FOUR, SIX):  # a stranger, and one in a remote's name
        for _ in range(100):
            network.send(source, control_message(0))
        network.send(source, b"\0 last")
    network.send(SIX, control_message(7))
    network.turn()

    assert control_message(7) in took
    assert b"\0 last" not in took
    took.clear()
    for _ in range(100):
        network.send(FOUR, control_message(0))
    network.send(SIX, control_message(0) + b" of the remote")
    network.turn()
    assert control_message(0) + b" of the remote" in took


@pytest.mark.parametrize("here", ["127.0.0.1", "127.0.0.9", "::1"])
@pytest.mark.parametrize("listen", ["any", "here"])
def test_control_message_leaves_from_the_address_that_is_named(
    stack: ExitStack, network: Network, here: str, listen: str
) -> None:
    group = network.group
    if listen == "here":
        group = ReceiveGroup(ip_address(here), network.port + 1, only_ipv6=True)
        stack.callback(group.close)
    family = socket.AF_INET6 if ":" in here else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as far:
        far.settimeout(TIMEOUT_S)
        far.bind(("", 0))
        to = Endpoint(SIX if ":" in here else FOUR, far.getsockname()[1])

        group.send(b"\x00 from there", ip_address(here), to)

        data, source = far.recvfrom(100)
    assert (data, source[:2]) == (b"\x00 from there", (here, group.port))


def test_message_from_an_address_that_is_not_here_is_refused(network: Network) -> None:
    with pytest.raises(OSError, match=r"Invalid argument|unreachable"):
        network.group.send(b"\x00", ip_address("192.0.2.1"), Endpoint(FOUR, 9))


@pytest.mark.needs_net_admin
def test_group_of_a_device_gets_what_comes_in_there_and_strangers_get_nothing(
    stack: ExitStack, routers: TwoRouters
) -> None:
    """As of a VRF, which a cable stands for here, with nobody else listening there."""
    a, b = routers.a, routers.b
    choice = UnderlayChoice(device=a.underlay.name)
    remote, stranger = ip_address(b.ipv4), ip_address("10.201.0.99")
    b.underlay.add_address("10.201.0.99/24")
    took: list[tuple[bytes, IPAddress]] = []
    with a.namespace.entered():
        group = ReceiveGroup(FOUR, VELA_PORT, only_ipv6=False)
        stack.callback(group.close)
        loop = EventLoop()
        stack.callback(loop.close)
        demux = Demux(loop, [group], is_apart=lambda index: True)
        stack.callback(demux.close)
        apart, route = demux.way_to(Endpoint(remote, VELA_PORT), choice)
        local = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    demux.set_control_handler(lambda data, source, here: took.append((data, source.address)))
    demux.expect_control(ControlSteering(frozenset({remote})))
    with a.namespace.entered():
        claim = demux.claim(Circuit("vela0"), 1, (remote,), apart)

    def turn() -> None:
        loop.call_later(STEER_INTERVAL_S + 0.02, loop.stop)
        loop.run()

    turn()
    for source in (remote, stranger):
        with b.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind((str(source), 0))
            far.sendto(b"\x01frame", (a.ipv4, VELA_PORT))
            far.sendto(b"\x00 control", (a.ipv4, VELA_PORT))
    local.sendto(b"\x00 from elsewhere", ("127.0.0.1", VELA_PORT))
    turn()

    assert apart is not group
    assert apart.choice == choice
    assert route.device == route.interface
    with a.namespace.entered():
        assert demux.way_to(Endpoint(remote, VELA_PORT), choice)[0] is apart
    assert queued(claim) == [b"\x01frame"]
    assert sorted(took) == [(b"\x00 control", remote), (b"\x00 from elsewhere", FOUR)]
    assert demux.dropped()["control"] == 1


class Ways:
    """A demux of several addresses of A, and how it reaches others."""

    def __init__(self, stack: ExitStack, routers: TwoRouters, *addresses: str) -> None:
        self.underlay = routers.a.underlay
        self._namespace = routers.a.namespace
        groups = []
        with self._namespace.entered():
            for address in addresses:
                group = ReceiveGroup(ip_address(address), VELA_PORT, only_ipv6=True)
                stack.callback(group.close)
                groups.append(group)
            loop = EventLoop()
            stack.callback(loop.close)
            self._demux = Demux(loop, groups)
        stack.callback(self._demux.close)

    def to(self, remote: str, here: str | None = None) -> tuple[str, str, int]:
        """Return the listening address, the source and the MTU of the way to a remote."""
        endpoint = Endpoint(ip_address(remote), VELA_PORT)
        with self._namespace.entered():
            if here is None:
                group, route = self._demux.way_to(endpoint)
            else:
                group, route = self._demux.way_from(ip_address(here), endpoint)
        assert self._demux.group_at(route.source) is group
        return str(group.address), str(route.source), route.mtu

    def obstacle(self, remote: str, here: str | None = None) -> str:
        with pytest.raises(DeviceError) as caught:
            self.to(remote, here)
        return str(caught.value)


@pytest.fixture
def multihomed(routers: TwoRouters) -> TwoRouters:
    """A has three addresses, of which the kernel takes 10.201.0.1 toward B and what is behind."""
    for address in ("10.201.0.11/32", "10.202.0.1/24"):
        routers.a.underlay.add_address(address)
    routers.a.namespace.run(
        *("ip", "route", "add", "192.0.2.0/24", "via", routers.b.ipv4, "mtu", "1400")
    )
    return routers


@pytest.mark.needs_net_admin
@pytest.mark.parametrize(
    ("listen", "hears", "source"),
    [
        (["10.202.0.1", "10.201.0.11", "10.201.0.1"], "10.201.0.1", "10.201.0.1"),
        (["10.202.0.1", "10.201.0.11"], "10.202.0.1", "10.202.0.1"),
        (["fd00:201::1", "0.0.0.0"], "0.0.0.0", "10.201.0.1"),
    ],
    ids=["the kernel's is one", "the kernel's is none", "all"],
)
def test_way_to_a_remote_is_from_the_kernels_address_where_that_is_listened_on(
    stack: ExitStack, multihomed: TwoRouters, listen: list[str], hears: str, source: str
) -> None:
    ways = Ways(stack, multihomed, *listen)

    assert ways.to("10.201.0.2") == (hears, source, 1500)
    assert ways.to("192.0.2.9") == (hears, source, 1400)


@pytest.mark.needs_net_admin
def test_way_from_an_address_is_from_that(stack: ExitStack, multihomed: TwoRouters) -> None:
    ways = Ways(stack, multihomed, "10.201.0.1", "10.201.0.11", "::")

    assert ways.to("192.0.2.9", "10.201.0.11") == ("10.201.0.11", "10.201.0.11", 1400)
    assert ways.to("fd00:201::2", "fd00:201::1") == ("::", "fd00:201::1", 1500)


@pytest.mark.needs_net_admin
def test_way_that_is_none_says_why(stack: ExitStack, multihomed: TwoRouters) -> None:
    ways = Ways(stack, multihomed, "10.201.0.1", "10.202.0.1")

    assert ways.obstacle("fd00:201::2") == "velad listens on no ipv6 address"
    assert ways.obstacle("198.51.100.9") == "no way to 198.51.100.9: Network is unreachable"
    assert ways.obstacle("10.201.0.2", "10.201.0.99") == "velad does not listen on 10.201.0.99"
    ways.underlay.delete_address("10.202.0.1/24")
    assert ways.obstacle("192.0.2.9", "10.202.0.1") == (
        "no way to 192.0.2.9: Cannot assign requested address"
    )


def test_datagrams_that_found_the_queue_full_are_counted(network: Network) -> None:
    network.group.control_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = 200
    for _ in range(sent):
        network.send(FOUR, b"\x09" * 500)
    network.turn()
    # The next one that finds room tells of those before it.
    network.send(FOUR, b"\x09")
    network.turn()

    dropped = network.dropped()
    assert dropped[DropReason.OVERFLOW] > 100
    assert dropped[DropReason.OVERFLOW] + dropped[DropReason.UNKNOWN_CIRCUIT] == sent + 1


def groups_at(stack: ExitStack, *addresses: str) -> tuple[Demux, tuple[ReceiveGroup, ...]]:
    """Return a demux that listens on these addresses of this machine."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
    loop = EventLoop()
    stack.callback(loop.close)
    only_ipv6 = any("." in address for address in addresses)
    groups = tuple(ReceiveGroup(ip_address(each), port, only_ipv6=only_ipv6) for each in addresses)
    for group in groups:
        stack.callback(group.close)
    demux = Demux(loop, groups)
    stack.callback(demux.close)
    return demux, groups


def test_way_is_by_the_listening_address_that_the_kernel_takes_itself(stack: ExitStack) -> None:
    demux, (other, own, six) = groups_at(stack, "127.0.0.2", "127.0.0.1", "::1")

    assert demux.way_to(Endpoint(FOUR, 9))[0] is own
    group, way = demux.way_to(Endpoint(SIX, 9))
    assert (group, way.source) == (six, SIX)
    group, way = demux.way_from(ip_address("127.0.0.2"), Endpoint(FOUR, 9))
    assert (group, way.source) == (other, ip_address("127.0.0.2"))


def test_way_is_by_another_listening_address_where_the_kernels_is_none(stack: ExitStack) -> None:
    demux, (first, _) = groups_at(stack, "127.0.0.2", "127.0.0.3")

    group, way = demux.way_to(Endpoint(FOUR, 9))

    assert (group, way.source) == (first, ip_address("127.0.0.2"))


def test_way_of_a_family_or_an_address_that_nobody_listens_on_is_none(stack: ExitStack) -> None:
    demux, _ = groups_at(stack, "127.0.0.1")

    with pytest.raises(DeviceError, match="velad listens on no ipv6 address"):
        demux.way_to(Endpoint(SIX, 9))
    with pytest.raises(DeviceError, match=r"velad does not listen on 127\.0\.0\.2"):
        demux.way_from(ip_address("127.0.0.2"), Endpoint(FOUR, 9))
    with pytest.raises(OSError, match=r"velad does not listen on 127\.0\.0\.2"):
        demux.send_control(b"\x00", ip_address("127.0.0.2"), Endpoint(FOUR, 9))


def test_chosen_source_address_decides_the_way(stack: ExitStack) -> None:
    demux, (_, chosen) = groups_at(stack, "127.0.0.1", "127.0.0.2")
    choice = UnderlayChoice(bind=ip_address("127.0.0.2"))

    group, way = demux.way_to(Endpoint(FOUR, 9), choice)

    assert (group, way.source) == (chosen, ip_address("127.0.0.2"))


def test_datagrams_wait_while_another_velad_takes_over(network: Network) -> None:
    circuit = Circuit("vela0")
    network.claim(circuit, 1, FOUR)
    network.demux.freeze()

    network.send(FOUR, b"\x02 unknown")
    late = network.claim(Circuit("vela1"), 3, FOUR)
    network.turn()
    assert network.dropped() == {}
    network.send(FOUR, b"\x03 to the supervisor still")
    network.turn()
    assert queued(late) == []

    network.demux.thaw()
    network.turn()
    assert network.dropped() == {DropReason.UNKNOWN_CIRCUIT: 1}
    network.send(FOUR, b"\x03 steered")
    network.turn()
    assert queued(late) == [b"\x03 steered"]


def test_datagrams_of_a_circuit_are_spread_over_its_sockets_by_their_ports(
    network: Network, stack: ExitStack
) -> None:
    claim = network.demux.claim(Circuit("vela0"), 1, (FOUR,), network.group, sockets=2)
    members = [network.group.member(index) for index in claim.indices]
    senders = [
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(8)
    ]
    for sender in senders:
        sender.bind((str(FOUR), 0))
    ports = [sender.getsockname()[1] for sender in senders]

    def received() -> list[list[int]]:
        network.turn()
        for sender, port in zip(senders, ports, strict=True):
            sender.sendto(b"\x01" + port.to_bytes(2, "big"), (str(FOUR), network.port))
        found: list[list[int]] = []
        for member in members:
            found.append([])
            while select.select([member], [], [], 0)[0]:
                found[-1].append(int.from_bytes(member.recv(100)[1:], "big"))
        return found

    assert received() == [ports, []]
    network.demux.spread(claim, 2)
    assert received() == [[port for port in ports if port % 2 == n] for n in range(2)]
    network.demux.spread(claim, 1)
    # At once: it is so when that returns.
    assert received() == [ports, []]


def test_sockets_of_circuits_that_do_not_go_on_are_taken_back(stack: ExitStack) -> None:
    _, (group,) = groups_at(stack, "127.0.0.1")
    names = [member_name(group, group.acquire()) for _ in range(2)]
    first = CONTROL_SOCKETS
    inheritance = Inheritance()
    for number, name in enumerate(names):
        inheritance.receives_on(f"vela{number}", name, first + number)
    loop = EventLoop()
    stack.callback(loop.close)
    adopted = [each.dup() for each in group.sockets]
    left = ReceiveGroup(
        group.address,
        group.port,
        only_ipv6=False,
        adopted=adopted,
        in_use=inheritance.in_use(group.address, group.port),
    )
    stack.callback(left.close)
    demux = Demux(loop, [left], inheritance=inheritance)
    stack.callback(demux.close)

    going_on = demux.claim(Circuit("vela0"), 1, (FOUR,), left)
    demux.release_inherited(["vela0", "vela1"])
    other = demux.claim(Circuit("vela7"), 7, (FOUR,), left)

    assert (going_on.index, other.index) == (first, first + 1)
