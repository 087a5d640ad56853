"""Attackers without the key, with it, and on the remote's own machine, against real velads.

tests/unit/test_attacks.py does more of it, without sockets.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import topology
from lab.autoconfigured import Ends, asking, policy, wait_until_up
from lab.capture import Capture, Packet
from lab.circuit import NAME
from lab.daemon import Velad
from lab.datagrams import VELA_PORT, udp_socket
from lab.headers import datagram
from lab.link import Interface
from lab.load import ping
from lab.topology import Router, ThreeRouters
from vela.signaling.codec import decode, encode, read_header
from vela.signaling.messages import (
    Acknowledge,
    Capability,
    Confirm,
    Description,
    MessageType,
    Offer,
    Request,
)

pytestmark = pytest.mark.needs_net_admin

KEEPALIVE, REJECT, REQUEST = MessageType.KEEPALIVE, MessageType.REJECT, MessageType.REQUEST
FRAME_TYPE = b"\x88\xb5"  # IEEE Std 802, for experiments


@pytest.fixture
def three_routers() -> Iterator[ThreeRouters]:
    with topology.three_routers() as all_three:
        yield all_three


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text("a key of more than sixteen bytes")
    path.chmod(0o600)
    return str(path)


class Forger:
    """Sends datagrams from a router with any source address and port."""

    def __init__(self, router: Router) -> None:
        self._socket = router.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(self, data: bytes, source: str, to: str) -> None:
        udp = struct.pack("!HHHH", VELA_PORT, VELA_PORT, 8 + len(data), 0) + data
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
        header = ip + socket.inet_aton(source) + socket.inet_aton(to)
        self._socket.sendto(header + udp, (to, 0))

    def close(self) -> None:
        self._socket.close()


def control(packet: Packet, kind: MessageType, sender: str) -> bytes | None:
    """Return the control message of this kind in a packet from sender, if it is one."""
    found = datagram(packet.data)
    if found is None or str(found.ip.source) != sender:
        return None
    data = found.udp.payload
    return data if data[:3] == bytes((0, 1, kind)) else None


@contextlib.contextmanager
def keyed(routers: ThreeRouters, key: str) -> Iterator[Ends]:
    """A circuit under a key from A to B, up; both let whoever has the key set circuits up."""
    with (
        Velad(routers.b.namespace, policy(sources=None, key_file=key), name="b") as b,
        Velad(
            routers.a.namespace,
            policy(sources=None, key_file=key) + asking(routers.b.ipv4, key_file=key),
            name="a",
        ) as a,
    ):
        ends = Ends(a, b)
        wait_until_up(ends)
        yield ends


def test_reflected_messages_bring_up_no_circuit(three_routers: ThreeRouters, key: str) -> None:
    """C has the address that A's circuit names and one more, and gives A's messages back."""
    a, c = three_routers.a, three_routers.c
    c.underlay.add_address("10.201.0.66/24")
    config = policy(sources=None, key_file=key) + asking("10.201.0.66", key_file=key)
    with (
        udp_socket(c.namespace, "10.201.0.66", VELA_PORT) as named,
        udp_socket(c.namespace, c.ipv4, VELA_PORT) as other,
        Velad(a.namespace, config) as velad,
    ):
        for receiving in (named, other):
            receiving.settimeout(0.1)
        passed, until = 0, time.monotonic() + 6
        while time.monotonic() < until:
            for receiving, sending in ((named, other), (other, named)):
                with contextlib.suppress(TimeoutError):
                    sending.sendto(receiving.recv(2048), (a.ipv4, VELA_PORT))
                    passed += 1
        circuits = velad.status()["circuits"]
        dropped = velad.status()["rx_dropped"]

    assert passed >= 4
    assert [(each["name"], each["state"]) for each in circuits] == [(NAME, "connecting")]
    assert dropped["control_reflected"] == passed


def test_answer_that_a_third_machine_had_takes_no_circuit_down(
    three_routers: ThreeRouters, key: str
) -> None:
    a, b, c = three_routers.a, three_routers.b, three_routers.c
    with keyed(three_routers, key) as ends, Capture(a.underlay) as wire:
        seen = wire.wait_for(lambda packet: bool(control(packet, KEEPALIVE, a.ipv4)))
        keepalive = control(seen, KEEPALIVE, a.ipv4)
        assert keepalive is not None
        with udp_socket(c.namespace, c.ipv4, VELA_PORT) as third:
            third.sendto(keepalive, (b.ipv4, VELA_PORT))
            answer = third.recv(2048)
        assert read_header(answer).type is REJECT  # with the right tag: B has the key
        forger = Forger(c)
        for _ in range(5):
            forger.send(answer, b.ipv4, a.ipv4)
        forger.close()
        # Longer than a session of which nothing is heard.
        pings = ping(a.namespace, "172.16.16.2", count=50, interval_s=0.1)
        requests = [each for each in wire.packets() if control(each, REQUEST, a.ipv4)]
        logs = [velad.log() for velad in ends]

    assert pings.lost == 0
    assert requests == []
    assert all("state=down" not in log for log in logs)


def test_replayed_messages_of_a_session_change_nothing(
    three_routers: ThreeRouters, key: str
) -> None:
    a, b, c = three_routers.a, three_routers.b, three_routers.c
    with Capture(a.underlay) as wire, keyed(three_routers, key) as ends:
        wire.wait_for_count(lambda packet: bool(control(packet, KEEPALIVE, b.ipv4)), 3)
        forger = Forger(c)
        for packet in wire.packets():
            found = datagram(packet.data)
            if found is None or found.udp.payload[:1] != b"\0":
                continue
            source, to = str(found.ip.source), str(found.ip.destination)
            forger.send(found.udp.payload, source, to)
            forger.send(found.udp.payload, to, source)
        forger.close()
        pings = ping(a.namespace, "172.16.16.2", count=50, interval_s=0.1)
        circuits = [len(velad.status()["circuits"]) for velad in ends]
        logs = [velad.log() for velad in ends]

    assert pings.lost == 0
    assert circuits == [1, 1]
    assert all("state=down" not in log for log in logs)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_other_holder_of_the_key_gets_no_circuit_of_a_machine_that_is_away(
    three_routers: ThreeRouters, key: str, how: str
) -> None:
    b, c = three_routers.b, three_routers.c
    with keyed(three_routers, key) as ends:
        getattr(ends.a, how)()
        ends.b.wait_for_state(NAME, "down", timeout_s=15)
        with Velad(c.namespace, asking(b.ipv4, key_file=key), name="c") as thief:
            refused = thief.wait_for_state(NAME, "rejected")
            ends.a.start()
            wait_until_up(ends)
            again = thief.circuit(NAME)
        [kept] = ends.b.status()["circuits"]

    assert f"there is a circuit {NAME} already" in refused["reason"]
    assert again["state"] == "rejected"
    assert kept["remote_address"] == three_routers.a.ipv4


@pytest.mark.parametrize("with_key", [True, False])
def test_machine_with_a_new_address_has_its_circuit_and_no_second_one(
    three_routers: ThreeRouters, key: str, with_key: bool
) -> None:
    a, b = three_routers.a, three_routers.b
    key_file = key if with_key else None
    with (
        Velad(b.namespace, policy(key_file=key_file), name="b") as velad_b,
        Velad(a.namespace, asking(b.ipv4, key_file=key_file), name="a") as velad_a,
    ):
        wait_until_up(Ends(velad_a, velad_b))
        velad_a.kill()
        a.namespace.run("ip", "addr", "del", f"{a.ipv4}/24", "dev", a.underlay.name)
        a.underlay.add_address("10.201.0.77/24")
        velad_a.start()
        velad_a.wait_for_state(NAME, "up", timeout_s=30)
        velad_b.wait_for_state(NAME, "up")
        [moved] = velad_b.status()["circuits"]
        pings = ping(a.namespace, "172.16.16.2")

    assert moved["remote_address"] == "10.201.0.77"
    assert pings.lost == 0


def as_nobody(sender: socket.socket, frames: list[bytes], to: str) -> None:
    """Send in a process of nobody's: an ordinary user of that machine."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for frame in frames:
                sender.sendto(frame, (to, VELA_PORT))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def test_user_of_the_remote_without_a_key_injects_no_frame_and_takes_no_circuit(
    three_routers: ThreeRouters,
) -> None:
    a, b = three_routers.a, three_routers.b
    with (
        Velad(b.namespace, policy(), name="b") as velad_b,
        Velad(a.namespace, asking(b.ipv4), name="a") as velad_a,
        udp_socket(a.namespace, a.ipv4) as user,
    ):
        ends = Ends(velad_a, velad_b)
        wait_until_up(ends)
        # B knows the port of A's frames from the first KEEPALIVE after it, and steers by it.
        assert ping(a.namespace, "172.16.16.2", count=2, interval_s=0.3).lost == 0
        before = velad_b.circuit(NAME)["counters"]
        with Capture(Interface(b.namespace, NAME)) as inside:
            frame = b"\1" + b"\xff" * 6 + bytes.fromhex("02000000aaaa") + FRAME_TYPE + bytes(46)
            as_nobody(user, [frame] * 10, b.ipv4)
            velad_b.wait_for(lambda status: status["rx_dropped"]["wrong_port"] == 10, 5)
            answer = ask_for_the_circuit(user, b.ipv4)
            pings = ping(a.namespace, "172.16.16.2", count=30, interval_s=0.1)
            injected = [each for each in inside.packets() if each.data[12:14] == FRAME_TYPE]
        circuit = velad_b.circuit(NAME)
        logs = [velad.log() for velad in ends]

    assert answer is REJECT
    assert injected == []
    assert pings.lost == 0
    assert circuit["remote_port"] == VELA_PORT
    assert circuit["counters"]["rx_frames"] >= before["rx_frames"] + 30
    assert all("state=down" not in log for log in logs)


def ask_for_the_circuit(user: socket.socket, remote: str) -> MessageType:
    """Do the handshake from this socket; return what the CONFIRM is answered by."""
    port = user.getsockname()[1]
    description = Description(bytes.fromhex("02000000aaaa"), 1471, Capability(0), port, 1000)
    offer, to = Offer(interface=NAME), (remote, VELA_PORT)
    user.sendto(encode(Request(1, 0x77, 0, 1, description, offer, size=320), None), to)
    acknowledge = decode(user.recv(2048), None)
    assert isinstance(acknowledge, Acknowledge)
    confirm = Confirm(1, 0x77, acknowledge.sender_nonce, 2, description, offer, size=320)
    user.sendto(encode(confirm, None), to)
    return read_header(user.recv(2048)).type
