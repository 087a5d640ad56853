"""What strangers get out of a velad that may be configured by others: no more than they put in.

Every message is written out by hand from docs/protocol.md, section 4.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from struct import pack

import pytest

from lab.capture import Capture, Packet
from lab.daemon import Velad
from lab.datagrams import VELA_PORT, udp_socket
from lab.flood import Flood
from lab.load import kernel_counts, ping
from lab.process import resident_kb
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.signaling.limiter import TOTAL_BURST, TOTAL_RATE

pytestmark = pytest.mark.needs_net_admin

A, B, LISTED, UNLISTED = "10.201.0.1", "10.201.0.2", "10.201.0.9", "10.201.1.9"
KEY = "0123456789abcdef0123456789abcdef"
FLOOD_S = 4.0
MEMORY_LIMIT_KB = 4096


def tlv(number: int, value: bytes) -> bytes:
    return pack("!BH", number, len(value)) + value


# MAC, MTU, capabilities, port, keepalive in ms.
DESCRIPTION = (
    tlv(1, bytes.fromhex("02005e100009"))
    + tlv(2, pack("!I", 1471))
    + tlv(3, pack("!I", 1))
    + tlv(4, pack("!H", 48621))
    + tlv(7, pack("!I", 5000))
)
HEARD, TIMESTAMP, DOWN = tlv(13, bytes(8)), tlv(14, bytes(8)), tlv(16, b"\0")
BODIES = {
    1: DESCRIPTION,
    2: b"",
    3: DESCRIPTION,
    4: tlv(17, pack("!H", 2)),
    5: DESCRIPTION + HEARD + TIMESTAMP + DOWN,
    6: tlv(17, pack("!H", 1)),
    7: tlv(19, pack("!H", 49)),
    8: tlv(19, pack("!H", 49)),
}


def message(
    kind: int, circuit: int, nonce: int, receiver: int = 0, tag: bytes = bytes(16)
) -> bytes:
    """A control message as small as its type allows."""
    header = pack("!BBBBQQQ", 0, 1, kind, circuit, nonce, receiver, 1)
    return header + BODIES[kind] + tag


def all_messages(tag: bytes) -> list[bytes]:
    """Every type, about the circuit that there is and one that there is not, at several nonces."""
    return [
        message(kind, circuit, nonce, receiver, tag)
        for kind in BODIES
        for circuit in (1, 200)
        for nonce in (0, 0x1122334455667788)
        for receiver in (0, 0x99AABBCCDDEEFF00)
    ]


def config_b(directory: Path, *, key: bool) -> str:
    text = '[autoconfigure]\nfrom = ["10.201.0.0/24"]\nnetworks = ["172.16.0.0/16"]\n'
    return text + key_line(directory) if key else text


def config_a(directory: Path, *, key: bool) -> str:
    return (
        '[circuits.vela0]\nid = 1\nremote = "10.201.0.2"\naddresses = ["172.16.0.1/30"]\n'
        + (key_line(directory) if key else "")
        + '[circuits.vela0.peer]\naddresses = ["172.16.0.2/30"]\n'
    )


def key_line(directory: Path) -> str:
    path = directory / "key"
    path.write_text(KEY)
    path.chmod(0o600)
    return f'key_file = "{path}"\n'


def udp_payload(packet: Packet, source: str, destination: str) -> int | None:
    """Return the bytes of UDP payload if it is a datagram from one to the other."""
    data = packet.data
    if data[12:14] != b"\x08\x00" or data[23] != socket.IPPROTO_UDP:
        return None
    if data[26:34] != socket.inet_aton(source) + socket.inet_aton(destination):
        return None
    return int.from_bytes(data[38:40]) - 8


@pytest.mark.parametrize(
    ("source", "key", "answered"),
    [(LISTED, False, True), (UNLISTED, False, False), (LISTED, True, False)],
    ids=["listed, no key", "unlisted", "wrong tag"],
)
def test_unauthenticated_source_gets_no_more_bytes_than_it_sent_for_each_message(
    routers: TwoRouters,
    tmp_path: Path,
    source: str,
    key: bool,
    answered: bool,
    figure: Callable[[str], None],
) -> None:
    routers.a.underlay.add_address(f"{source}/32")
    routers.b.namespace.run("ip", "route", "add", f"{UNLISTED}/32", "dev", "eth0")
    tag = b"wrong tag......." if key else bytes(16)
    with (
        Velad(routers.b.namespace, config_b(tmp_path, key=key), name="b") as b,
        Velad(routers.a.namespace, config_a(tmp_path, key=key), name="a") as a,
        udp_socket(routers.a.namespace, source) as sender,
        Capture(routers.a.underlay) as wire,
    ):
        for velad in (a, b):
            velad.wait_for_state("vela0", "up")
        messages = all_messages(tag)
        total = answers = 0
        for data in messages:
            sender.sendto(data, (B, VELA_PORT))
            # What lay there when it was asked first is dealt with before the second answer.
            for _ in range(2):
                b.status()
            sizes = [
                size
                for packet in wire.packets()
                if (size := udp_payload(packet, B, source)) is not None
            ]
            got = sum(sizes) - total
            assert got <= len(data), f"{got} bytes for {len(data)}: {data.hex()}"
            total += got
            answers = len(sizes)
        sent = sum(len(data) for data in messages)
        circuit = b.circuit("vela0")
        circuits = len(b.status()["circuits"])
        log = b.log()
    figure(f"{source}, key {key}: {sent} bytes in, {total} bytes out in {answers} answers")
    assert (answers > 0) is answered
    assert circuits == 1
    assert circuit["state"] == "up"
    assert "state=down" not in log


def test_flood_of_requests_from_forged_sources_leaves_memory_flat_and_circuits_undisturbed(
    routers: TwoRouters, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    seed = int.from_bytes(os.urandom(4))
    randomness = random.Random(seed)
    # Of a whole /8, so that no table of neighbours is in the way of the answers' choice.
    text = config_b(tmp_path, key=False).replace("10.201.0.0/24", "10.0.0.0/8")
    routers.b.namespace.run("ip", "route", "add", "10.0.0.0/8", "via", A)
    head, tail = _parts(routers)
    frames = [
        _forged(head, tail, randomness.getrandbits(24), randomness.getrandbits(64))
        for _ in range(20000)
    ]
    with (
        Velad(routers.b.namespace, text, name="b") as b,
        Velad(routers.a.namespace, config_a(tmp_path, key=False), name="a") as a,
        routers.a.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
    ):
        a.wait_for_state("vela0", "up")
        raw.bind((routers.a.underlay.name, 0))
        endless = cycle(frames)

        def b_answers() -> int:
            return kernel_counts(routers.b.namespace, "UdpOutDatagrams")

        def send() -> int:
            raw.send(next(endless))
            return 1

        memory = []
        answers_before, flooded_at = b_answers(), time.monotonic()
        # Once round, so that what is bounded is full: the limiter's sources, caches of addresses.
        with Flood(send) as flood:
            eventually(lambda: flood.sent >= len(frames), 60, "each forged request to be sent")
            memory.append(resident_kb(b.pid))
            count = round(FLOOD_S / 0.02)
            pings = ping(routers.a.namespace, "172.16.0.2", count=count, interval_s=0.02)
            asked_at = time.monotonic()
            status = b.status()
            answered_s = time.monotonic() - asked_at
            memory.append(resident_kb(b.pid))
            eventually(lambda: flood.sent >= 2 * len(frames), 60, "as many again")
            answers, took_s = b_answers() - answers_before, time.monotonic() - flooded_at
        eventually(lambda: b.circuit("vela0")["state"] == "up", 5, "the circuit")
        log = a.log() + b.log()
    dropped = {reason: count for reason, count in status["rx_dropped"].items() if count}
    figure(
        f"forged (seed {seed}): {flood.sent} requests in {took_s:.1f} s, {answers} datagrams out, "
        f"dropped {dropped}; "
        f"{pings.received} of {pings.transmitted} pings, status in {answered_s:.2f} s, "
        f"memory {memory[0]} -> {memory[1]} kB"
    )
    assert flood.sent >= 2 * len(frames)
    # No more than vela/limiter.py lets pass are answered; what a slow machine does not get to is
    # neither answered nor refused. Beside them there are echo replies and keepalives.
    assert dropped.keys() <= {"control_too_fast", "overflow"}
    assert 0 < answers <= TOTAL_BURST + TOTAL_RATE * took_s + count + 100
    assert pings.lost == 0
    assert [each["state"] for each in status["circuits"]] == ["up"]
    assert "state=down" not in log
    assert memory[1] - memory[0] < MEMORY_LIMIT_KB


def _parts(routers: TwoRouters) -> tuple[bytes, bytes]:
    return routers.b.underlay.mac + routers.a.underlay.mac + b"\x08\x00", socket.inet_aton(B)


def _forged(head: bytes, destination: bytes, host: int, nonce: int) -> bytes:
    """A REQUEST from 10.x.x.x, in UDP (checksum 0: none), IPv4, Ethernet."""
    data = message(1, 1 + nonce % 255, nonce or 1)
    udp = pack("!HHHH", 48621, VELA_PORT, 8 + len(data), 0) + data
    source = pack("!I", 10 << 24 | host)
    header = pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + source + destination
    total = sum(int.from_bytes(header[i : i + 2]) for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head + header[:10] + pack("!H", checksum) + header[12:] + udp
