"""What the network may send to a velad that is up, and all that it brings about: a count.

Every datagram is written out by hand from docs/protocol.md, sections 2 to 5.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.capture import Capture, Packet
from lab.daemon import Velad
from lab.datagrams import MAX_SEGMENTS, VELA_PORT, send_joined, udp_socket
from lab.flood import Flood
from lab.frames import await_operational
from lab.link import Interface
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

A, B, STRANGER = "10.201.0.1", "10.201.0.2", "10.201.0.9"
# Whose part each plays, where the underlay is another.
OUTER = {
    "ipv4": {each: each for each in (A, B, STRANGER, "::1")},
    "ipv6": {A: "fd00:201::1", B: "fd00:201::2", STRANGER: "fd00:201::9", "::1": "::1"},
}
LOCAL_MAC, REMOTE_MAC = bytes.fromhex("02005e100001"), bytes.fromhex("02005e100002")

CONFIG = f"""
[circuits.vela0]
id = 1
remote = "{B}"
mtu = 1471
mac = "02:00:5e:10:00:01"
autoconfigure = false
[circuits.vela0.peer]
mac = "02:00:5e:10:00:02"
[circuits.vela2]
id = 2
remote = "{B}"
autoconfigure = false
"""

# RFC 791 and RFC 8200: what makes an elided packet well-formed.
IPV4 = bytes.fromhex("4500001c 00010000 40fe0000 c0000201 c0000202") + b"8 octets"
IPV6 = bytes.fromhex("60000000 0008fe40") + b"\x20\x01\x0d\xb8" + bytes(28) + b"8 octets"
# EtherType 0x88b5: IEEE 802, local experimental.
ETHERNET = LOCAL_MAC + REMOTE_MAC + b"\x88\xb5"


def ipv4(first: int, total: int, size: int) -> bytes:
    return (bytes([first, 0]) + total.to_bytes(2) + IPV4[4:]).ljust(size, b"\0")[:size]


def ipv6(payload: int, size: int) -> bytes:
    return (b"\x60\0\0\0" + payload.to_bytes(2) + IPV6[6:]).ljust(size, b"\0")[:size]


def echo(kind: int, size: int = 19) -> bytes:
    header = b"\x41" + bytes([kind]) + b"identify" + b"timestmp"
    return b"\x01" + header.ljust(size - 1, b"p")[: size - 1]


@dataclass(frozen=True)
class Drop:
    """A datagram and the one place where it is counted; circuit "" stands for the daemon."""

    what: str
    data: bytes
    circuit: str
    reason: str
    source: str = B


DROPS = [
    Drop("empty", b"", "", "empty"),
    Drop("empty from a stranger", b"", "", "empty", STRANGER),
    Drop("control id alone", b"\0", "", "control_malformed"),
    Drop("stranger's request", b"\0\1\1\1" + bytes(40), "", "control_disabled", STRANGER),
    Drop("control message of noise", b"\0" + b"\xff" * 1400, "", "control_version"),
    Drop("circuit id alone", b"\1", "vela0", "short"),
    Drop("frame of one byte", b"\1\2", "vela0", "short"),
    Drop("frame of 13 bytes", b"\1" + ETHERNET[:13], "vela0", "short"),
    Drop("escape alone", b"\1\x40", "vela0", "short"),
    Drop("escaped frame of 13 bytes", b"\1\x40" + ETHERNET[:13], "vela0", "short"),
    *(
        Drop(f"reserved {first:#x}", bytes([1, first]) + bytes(40), "vela0", "reserved")
        for first in (0x42, 0x43)
    ),
    Drop("reserved byte alone", b"\1\x42", "vela0", "reserved"),
    Drop("piece cut off", b"\1\x44" + bytes(7), "vela0", "short"),
    Drop("piece of nothing", b"\1\x44" + bytes(40), "vela0", "malformed"),
    Drop("piece of a frame of 65535", b"\1\x44\0\xff\xff" + bytes(1400), "vela0", "oversized"),
    # 1471 of MTU, 14 of Ethernet, 4 of one VLAN tag are 1489.
    Drop("frame of 1490 bytes", b"\1" + ETHERNET + bytes(1476), "vela0", "oversized"),
    Drop("escaped of 1490 bytes", b"\1\x40" + ETHERNET + bytes(1476), "vela0", "oversized"),
    Drop("elided packet of 1476", b"\1" + ipv4(0x45, 1476, 1476), "vela0", "oversized"),
    Drop("largest datagram", b"\1" + ETHERNET + bytes(65507 - 15), "vela0", "oversized"),
    Drop("IPv4 of one byte", b"\1\x45", "vela0", "malformed"),
    Drop("IPv4 of 19 bytes", b"\1" + ipv4(0x45, 19, 19), "vela0", "malformed"),
    Drop("IPv4 longer than it is", b"\1" + ipv4(0x45, 29, 28), "vela0", "malformed"),
    Drop("IPv4 shorter than its header", b"\1" + ipv4(0x45, 19, 28), "vela0", "malformed"),
    Drop("IPv4 with 60 of header", b"\1" + ipv4(0x4F, 28, 28), "vela0", "malformed"),
    Drop("IPv4 of total length 0", b"\1" + ipv4(0x45, 0, 28), "vela0", "malformed"),
    Drop("IPv6 of one byte", b"\1\x60", "vela0", "malformed"),
    Drop("IPv6 of 39 bytes", b"\1" + ipv6(0, 39), "vela0", "malformed"),
    Drop("IPv6 longer than it is", b"\1" + ipv6(9, 48), "vela0", "malformed"),
    Drop("IPv6 of 65535", b"\1" + ipv6(65535, 48), "vela0", "malformed"),
    *(
        Drop(f"verification of {size} bytes", echo(1, size), "vela0", "short")
        for size in (2, 3, 10, 18)
    ),
    Drop("verification of type 0", echo(0), "vela0", "reserved"),
    Drop("verification of type 3", echo(3), "vela0", "reserved"),
    Drop("unknown circuit", b"\3" + ETHERNET + bytes(46), "", "unknown_circuit"),
    Drop("unknown circuit, one byte", b"\xff", "", "unknown_circuit"),
    Drop("stranger's frame", b"\1" + ETHERNET + bytes(46), "", "unknown_circuit", STRANGER),
    Drop("stranger's packet", b"\1" + IPV4, "", "unknown_circuit", STRANGER),
    Drop("stranger's echo request", echo(1), "", "unknown_circuit", STRANGER),
    Drop("loop with itself", b"\1" + ETHERNET, "", "unknown_circuit", "::1"),
]


@contextmanager
def started(routers: TwoRouters, config: str = CONFIG) -> Iterator[Velad]:
    # Nothing but what the test sends: no multicast listener reports.
    routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    routers.b.underlay.add_address(f"{STRANGER}/24")
    routers.b.underlay.add_address(f"{OUTER['ipv6'][STRANGER]}/64")
    with Velad(routers.a.namespace, config) as velad:
        for each in velad.status()["circuits"]:
            velad.wait_for_state(each["name"], "unmonitored")
            await_operational(Interface(routers.a.namespace, each["name"]))
            velad.worker_pid(each["name"])
        yield velad


def counts(status: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Return all that is counted and not zero, by circuit ("": the daemon) and name."""
    found = {("", reason): count for reason, count in status["rx_dropped"].items()}
    for circuit in status["circuits"]:
        for name, value in circuit["counters"].items():
            if isinstance(value, dict):
                found |= {(circuit["name"], f"{name}.{key}"): n for key, n in value.items()}
            else:
                found[circuit["name"], name] = value
    return {key: count for key, count in found.items() if count}


def is_drop(key: tuple[str, str]) -> bool:
    circuit, name = key
    return not circuit or name.startswith("rx_dropped.")


def workers(status: dict[str, Any]) -> list[dict[str, Any]]:
    measured = {"cpu_percent", "memory_bytes"}
    return [
        {key: value for key, value in circuit["worker"].items() if key not in measured}
        for circuit in status["circuits"]
    ]


def is_from_a(packet: Packet) -> bool:
    """Tell whether A sent it over IP: a datagram, or an error message about one."""
    data, a6 = packet.data, socket.inet_pton(socket.AF_INET6, OUTER["ipv6"][A])
    if data[12:14] == b"\x86\xdd":
        # Of ICMPv6, errors only: neighbours are being found (RFC 4443, section 2.1).
        return data[22:38] == a6 and (data[20] != socket.IPPROTO_ICMPV6 or data[54] < 128)
    return data[12:14] == b"\x08\x00" and data[26:30] == socket.inet_aton(A)


@contextmanager
def senders(routers: TwoRouters, outer: str = "ipv4") -> Iterator[dict[str, socket.socket]]:
    played = OUTER[outer]
    with (
        udp_socket(routers.b.namespace, played[B], VELA_PORT) as remote,
        udp_socket(routers.b.namespace, played[STRANGER], VELA_PORT) as stranger,
        udp_socket(routers.a.namespace, "::1") as itself,
    ):
        yield {B: remote, STRANGER: stranger, "::1": itself}


@pytest.mark.parametrize("outer", ["ipv4", "ipv6"])
def test_datagram_that_says_nothing_valid_is_counted_by_reason_and_that_is_all(
    routers: TwoRouters, outer: str
) -> None:
    with ExitStack() as stack:
        velad = stack.enter_context(started(routers, CONFIG.replace(B, OUTER[outer][B])))
        sending = stack.enter_context(senders(routers, outer))
        before = velad.status()
        taps = [
            stack.enter_context(Capture(Interface(routers.a.namespace, name)))
            for name in ("vela0", "vela2")
        ]
        underlay = stack.enter_context(Capture(routers.b.underlay))
        expected = counts(before)
        assert expected == {}

        for drop in DROPS:
            to = "::1" if drop.source == "::1" else OUTER[outer][A]
            sending[drop.source].sendto(drop.data, (to, VELA_PORT))
            key = (drop.circuit, f"rx_dropped.{drop.reason}" if drop.circuit else drop.reason)
            expected[key] = expected.get(key, 0) + 1
            status = velad.wait_for(
                lambda status: sum(counts(status).values()) >= sum(expected.values()), 5, drop.what
            )
            assert counts(status) == expected, drop.what

        assert workers(velad.status()) == workers(before)
        assert [packet for tap in taps for packet in tap.packets()] == []
        assert [packet for packet in underlay.packets() if is_from_a(packet)] == []
    assert "Traceback" not in velad.log()


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        (b"\1" + ETHERNET, ETHERNET),
        (b"\1" + ETHERNET + bytes(1475), ETHERNET + bytes(1475)),
        (b"\1\x40" + ETHERNET, ETHERNET),
        (
            b"\1\x40\x42" + ETHERNET[1:] + b"body",
            b"\x42" + ETHERNET[1:] + b"body",
        ),
        (b"\1" + IPV4, LOCAL_MAC + REMOTE_MAC + b"\x08\x00" + IPV4),
        (b"\1" + IPV4 + b"padding", LOCAL_MAC + REMOTE_MAC + b"\x08\x00" + IPV4 + b"padding"),
        (b"\1" + IPV6, LOCAL_MAC + REMOTE_MAC + b"\x86\xdd" + IPV6),
    ],
    ids=["14 bytes", "1489 bytes", "escaped", "escaped 0x42", "ipv4", "padded", "ipv6"],
)
def test_datagram_that_is_just_valid_is_a_frame(
    routers: TwoRouters, data: bytes, frame: bytes
) -> None:
    with (
        started(routers) as velad,
        senders(routers) as sending,
        Capture(Interface(routers.a.namespace, "vela0")) as tap,
    ):
        sending[B].sendto(data, (A, VELA_PORT))

        assert tap.wait_for(lambda packet: True).data == frame
        velad.counted("vela0", rx_frames=1, rx_dropped={})


@pytest.mark.parametrize("size", [19, 20, 64, 1472, 4000])
def test_echo_request_is_answered_with_its_own_bytes(routers: TwoRouters, size: int) -> None:
    with started(routers) as velad, senders(routers) as sending:
        sending[B].sendto(echo(1, size), (A, VELA_PORT))

        answer, (address, _) = sending[B].recvfrom(65536)

        assert address == A
        assert answer == b"\x01\x41\x02identifytimestmp" + b"p" * (size - 19)
        # What is counted after it shows that it was no frame.
        sending[B].sendto(b"\1", (A, VELA_PORT))
        velad.counted("vela0", rx_frames=0, rx_dropped={"short": 1})


def test_echo_reply_that_nobody_asked_for_is_not_answered(routers: TwoRouters) -> None:
    with (
        started(routers) as velad,
        senders(routers) as sending,
        Capture(routers.b.underlay) as underlay,
    ):
        before = workers(velad.status())

        sending[B].sendto(echo(2), (A, VELA_PORT))
        # Once the worker has done with both, it is the supervisor's turn.
        sending[B].sendto(b"\1", (A, VELA_PORT))
        velad.wait_for(
            lambda status: status["circuits"][0]["counters"]["rx_dropped"]["short"] == 1, 5
        )
        sending[B].sendto(b"\3" + ETHERNET, (A, VELA_PORT))

        velad.wait_for(lambda status: status["rx_dropped"]["unknown_circuit"] == 1, 5)
        assert [packet for packet in underlay.packets() if is_from_a(packet)] == []
        assert workers(velad.status()) == before


NOISE = [
    b"\1" + ETHERNET,  # a stranger's valid frame
    b"\0" + b"\1\1" + bytes(12),
    b"\7\x42" + bytes(13),
    b"\2\x45" + bytes(13),
]


@pytest.mark.parametrize("source", ["a stranger", "the remote", "the remote, another circuit"])
def test_flood_leaves_circuits_forwarding_and_velad_answering(
    routers: TwoRouters, source: str, figure: Callable[[str], None]
) -> None:
    """At full speed, 64 datagrams in each buffer, for 50 pings and until enough was dropped."""
    side = "\n[circuits.vela0]\nid = 1\nremote = '{}'\nautoconfigure = false\nmtu = 1400\n"
    third = CONFIG[CONFIG.index("[circuits.vela2]") :]
    config_a = side.format(B) + "addresses = ['172.16.0.1/30']\n" + third
    config_b = side.format(A) + "addresses = ['172.16.0.2/30']\n"
    datagrams = {
        "a stranger": [NOISE[i % 4] for i in range(MAX_SEGMENTS)],
        "the remote": [NOISE[1 + i % 2] for i in range(MAX_SEGMENTS)],
        "the remote, another circuit": [NOISE[3]] * MAX_SEGMENTS,
    }[source]
    reasons = (
        {("vela2", "rx_dropped.malformed")}
        if source == "the remote, another circuit"
        else {("", "unknown_circuit"), ("", "control_malformed")}
    )
    address = STRANGER if source == "a stranger" else B
    with ExitStack() as stack:
        velad = stack.enter_context(started(routers, config_a))
        other = stack.enter_context(Velad(routers.b.namespace, config_b))
        other.wait_for_state("vela0", "unmonitored")
        await_operational(Interface(routers.b.namespace, "vela0"))
        assert ping(routers.b.namespace, "172.16.0.1").lost == 0
        before, memory_before = velad.status(), memory_kb(velad.pid)
        sender = stack.enter_context(udp_socket(routers.b.namespace, address))

        def send() -> int:
            send_joined(sender, datagrams, A)
            return len(datagrams)

        with Flood(send) as flood:
            pings = ping(routers.b.namespace, "172.16.0.1", count=50, interval_s=0.02)
            asked = time.monotonic()
            during = velad.status()
            answered_s = time.monotonic() - asked
            eventually(lambda: flood.sent >= 10_000, 60, "the flood")
            velad.wait_for(
                lambda status: all(
                    counts(status).get(key, 0) - counts(before).get(key, 0) >= 500
                    for key in reasons
                ),
                60,
                f"500 of {reasons}",
            )
        seen: list[dict[tuple[str, str], int]] = []

        def looked_at_all(status: dict[str, Any]) -> bool:
            seen.append(counts(status))
            return len(seen) > 1 and seen[-1] == seen[-2]

        after = velad.wait_for(looked_at_all, 30, "the flood to be looked at")
        recovered = ping(routers.b.namespace, "172.16.0.1", count=5)
        memory_after = memory_kb(velad.pid)

    grown = {key: count - counts(before).get(key, 0) for key, count in counts(after).items()}
    looked_at = sum(grown.values())
    dropped = {key: count for key, count in grown.items() if count and is_drop(key)}
    full = dropped.pop(("", "overflow"), 0)
    figure(
        f"flood from {source}: {flood.sent} datagrams, {looked_at} counted, "
        f"{pings.received} of {pings.transmitted} pings, status in {answered_s:.2f} s, "
        f"memory {memory_before} -> {memory_after} kB, dropped {dropped}, too many {full}"
    )
    assert dropped.keys() == reasons
    assert recovered.lost == 0
    assert pings.received >= 48
    assert workers(after) == workers(before) == workers(during)
    assert memory_after - memory_before < 2048


def memory_kb(pid: int) -> int:
    for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")
