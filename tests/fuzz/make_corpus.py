#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/corpus: shapes of real traffic, as the fuzzers read it."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

RIGHT, LEFT, WRONG, NONE, ONES, ZERO = range(6)
ACK, PSH_ACK, ECE_ACK, CWR_ACK, FIN_ACK = 0x10, 0x18, 0x50, 0x90, 0x11

BATCH, FRAMES = 0, 32
LEAVE, PLAIN_TAP, ADDRESSED = 4, 8, 16
NEVER, ALWAYS = 2, 3
# Egress on a kernel without RWF_NOWAIT, UDP_SEGMENT; ingress without UDP_GRO, TSO, USO.
NO_NOWAIT, NO_SEGMENT = 64, 128
NO_GRO, NO_TSO, NO_USO = 1, 2, 128
VIRTIO_HEADER = 10


def word(value: int) -> bytes:
    return value.to_bytes(2, "big")


def shape(
    payload: int,
    *,
    ipv6: bool = False,
    udp: bool = False,
    address: int = 0,
    tags: int = 0,
    options: tuple[int, int] = (0, 0),
    flags: int = ACK,
    identification: int = 0x1234,
    checksum: int = RIGHT,
    padded: bool = False,
    fill: int = 7,
) -> bytes:
    """As shape_take() in shapes.c reads it. options: eights of bytes of IP's, fours of TCP's."""
    kind = ipv6 | udp << 1 | address << 2 | 0xC0
    more = checksum << 4 | (8 | tags if tags else 0) | padded << 7
    following = b""
    if options[0]:
        kind |= 0x10
        following += bytes([options[0]])
    if options[1]:
        kind |= 0x20
        following += bytes([options[1]])
    # Don't fragment, and 64 hops.
    following += bytes([flags]) + word(identification) + b"\x02\x40"
    return bytes([kind, more]) + following + bytes([fill]) + word(payload)


def super_frame(segment: int, own: bytes, patches: bytes = b"") -> bytes:
    return bytes([1 | len(patches) // 3 << 4]) + own + word(segment) + patches


def unfinished(own: bytes, patches: bytes = b"") -> bytes:
    return bytes([2 | len(patches) // 3 << 4]) + own + patches


def finished(own: bytes) -> bytes:
    return b"\x04" + own


def flow(
    own: bytes,
    count: int,
    *,
    joined: bool = True,
    complete: bool = False,
    last: tuple[int, int] | None = None,
) -> bytes:
    """last: payload of the last one, and by which flags it differs."""
    what = 2 | joined << 4 | complete << 5
    if last is None:
        return bytes([what]) + own + bytes([count - 1])
    return bytes([what | 0x40]) + own + bytes([count - 1]) + word(last[0]) + bytes([last[1]])


def damaged(own: bytes, count: int, which: int, at: int, change: int, *, mended: bool) -> bytes:
    what = 2 | 0x18 | mended << 7
    return bytes([what]) + own + bytes([count - 1, which]) + word(at) + bytes([change])


def egress() -> dict[str, bytes]:
    seeds = {}
    links = ((0, 0), (0, 1), (0, 2), (0, 3), (2, 0))
    for ipv6, udp, (tags, address) in product((False, True), (False, True), links):
        own = shape(9000, ipv6=ipv6, udp=udp, tags=tags, address=address, flags=PSH_ACK)
        name = f"{'udp' if udp else 'tcp'}{6 if ipv6 else 4}-tags{tags}-address{address}"
        leave = LEAVE if tags == 0 else 0
        seeds[f"super-{name}"] = bytes([leave, 1]) + super_frame(1388, own)
        single = shape(1000, ipv6=ipv6, udp=udp, tags=tags, address=address)
        seeds[f"single-{name}"] = bytes([FRAMES | leave, 0]) + unfinished(single)
    seeds["flags"] = b"\0\1" + super_frame(1000, shape(5000, flags=0xFF))
    for failure in range(7):
        own = shape(20000, options=(0, 3))
        seeds[f"failure-{failure}"] = bytes([FRAMES, failure << 3 | 1]) + super_frame(1388, own) * 2
        small = finished(shape(950)) * 3 + finished(shape(10)) * 3
        if failure:
            seeds[f"failure-small-{failure}"] = bytes([BATCH, failure << 3 | 1 | 0xC0]) + small
        singly = bytes([NO_NOWAIT | NO_SEGMENT, failure << 3 | 1])
        seeds[f"failure-singly-{failure}"] = singly + super_frame(1388, own) + small
    for mode in (NEVER, ALWAYS):
        mixed = finished(shape(100)) + super_frame(500, shape(2000)) + unfinished(shape(40, tags=1))
        seeds[f"elision-{mode}"] = bytes([mode, 0]) + mixed
    seeds["plain-tap"] = bytes([PLAIN_TAP | ADDRESSED, 0]) + finished(shape(1000)) * 20
    seeds["looks-left"] = bytes([LEAVE, 0]) + finished(shape(100, checksum=LEFT))
    seeds["many-segments"] = b"\0\1" + super_frame(100, shape(30000, fill=0))
    seeds["largest"] = b"\0\2" + super_frame(1400, shape(65535)) * 2 + finished(shape(65535))
    seeds["ip-options"] = b"\0\1" + super_frame(1000, shape(3000, options=(5, 10)))
    seeds["extension-headers"] = b"\0\1" + super_frame(
        1000, shape(3000, options=(3, 10), ipv6=True)
    )
    seeds["no-payload"] = b"\0\0" + super_frame(1000, shape(0))
    seeds["padded"] = bytes([LEAVE, 0]) + unfinished(shape(4, padded=True))
    seeds["fragment"] = b"\0\0" + finished(shape(40, identification=0x2000))
    # The checksum's place (bytes 6 to 9 of the virtio header) as a hostile guest may name it.
    for at, change in ((6, 0x22), (6, 0xFF), (7, 0xFF), (8, 0xFF), (9, 0xFF), (1, 3), (4, 0xFF)):
        patch = word(at) + bytes([change])
        seeds[f"hostile-single-{at}-{change}"] = b"\0\0" + unfinished(shape(300), patch)
        seeds[f"hostile-super-{at}-{change}"] = b"\0\0" + super_frame(1000, shape(3000), patch)
    # As large as frames may be, and one byte more.
    for size in (1431, 1432):
        seeds[f"limit-super-{size}"] = b"\0\0" + super_frame(size, shape(4000))
        seeds[f"limit-single-{size}"] = b"\0\0" + unfinished(shape(size - 1))
    # All of one stay in use while the other, the largest, is read.
    largest = super_frame(1637, shape(65480)) + super_frame(1637, shape(65535))
    seeds["two-largest"] = b"\0\2" + largest
    # Finished, and still said not to be: what comes of it looks left. 6: as RIGHT, and stays so.
    seeds["finished-twice"] = bytes([LEAVE, 0]) + unfinished(shape(100, checksum=6))
    # Room for a segment's head: 512 bytes of a datagram, and 8 more.
    for eights in (55, 56):
        own = shape(3000, ipv6=True, options=(eights, 1))
        seeds[f"head-{eights}"] = b"\0\2" + super_frame(1000, own)
    seeds["tcp-header-cut-off"] = b"\0\0" + super_frame(1000, shape(0), word(56) + b"\xa0")
    # TCP, says the virtio header, of what is UDP.
    seeds["hostile-kind"] = bytes([LEAVE, 0]) + super_frame(
        1000, shape(3000, udp=True), word(1) + b"\4"
    )
    seeds["raw"] = b"\0\0" + b"\0" + word(60) + bytes(10) + b"\xff" * 12 + b"\x08\x06" + bytes(46)
    seeds["cut-off"] = b"\0\0" + b"\x80" + word(65535) + bytes(10) + b"\xff" * 12
    seeds["cut-shorter"] = b"\0\0" + b"\x40\0\x20" + bytes(42) + finished(shape(9))
    # More than one batch; in few bytes, as the fuzzer takes 600.
    seeds["batches"] = b"\0\0" + (b"\x04\0\0\x07" + word(32)) * 75
    # Refused in the first, and again in the second, if the kernel does not tell of the route.
    for name, connected in (("refused", 0), ("refused-addressed", ADDRESSED)):
        larger = (b"\x04\0\0\x07" + word(1200)) * 75
        seeds[name] = bytes([BATCH | connected, 1 << 3 | 3]) + larger
    # Three bytes of settings.
    seeds = {name: seed[:2] + b"\0" + seed[2:] for name, seed in seeds.items()}
    for name in (
        "failure-1",
        "failure-3",
        "failure-6",
        "largest",
        "elision-2",
        "batches",
        "refused",
    ):
        seed = seeds[name]
        seeds[f"pieces-{name}"] = seed[:2] + b"\1" + seed[3:]
    for size in (1418, 1419, 1500, 2900, 8900):
        own = (
            finished(shape(size)) + unfinished(shape(size, tags=2)) + super_frame(1460, shape(9000))
        )
        seeds[f"pieces-{size}"] = b"\0\1\1" + own * 3
    seeds["pieces-too-many"] = b"\0\xc1\1" + finished(shape(5900)) + super_frame(7000, shape(8000))
    seeds["pieces-singly"] = bytes([NO_SEGMENT, 1, 1]) + finished(shape(3000)) * 5
    # Senders hear of what is too large: of all kinds, among them ICMP (the protocol is byte 9 of
    # IPv4's header, 6 of IPv6's), and what IP may cut.
    for ipv6, tags, address in product((False, True), (0, 2), (0, 2, 3)):
        own = shape(1500, ipv6=ipv6, udp=True, tags=tags, address=address)
        at, change = (20, 17 ^ 58) if ipv6 else (23, 17 ^ 1)
        icmp = word(VIRTIO_HEADER + 4 * tags + at) + bytes([change])
        told = finished(own) + unfinished(own, icmp) + super_frame(1460, own)
        seeds[f"told-{'ipv6' if ipv6 else 'ipv4'}-tags{tags}-address{address}"] = (
            b"\0\1\x11" + told + finished(shape(1500, identification=0x2000))
        )
    for settings in (LEAVE, FRAMES | LEAVE, PLAIN_TAP, ALWAYS, NEVER):
        seeds[f"told-{settings}"] = bytes([settings, 1, 16]) + told
    seeds["told-narrow"] = b"\0\xc1\x11" + told
    # What marks the outer header: the third byte of settings, and the traffic class of the packet,
    # which is the byte behind the Ethernet header and the first of IP's.
    marked = word(VIRTIO_HEADER + 14 + 1) + b"\xbb"
    for settings, ipv6 in product((0, 1, 2, 4, 8), (False, True)):
        name = f"marks-{settings}-{'ipv6' if ipv6 else 'ipv4'}"
        whole = super_frame(1388, shape(4000, ipv6=ipv6), marked)
        single = unfinished(shape(900, ipv6=ipv6), marked)
        seeds[name] = bytes([LEAVE, 1, settings]) + whole + single + finished(shape(800)) * 2
    # A queue that stands: of what follows the first frame, something is lost, or marked (ECT(0)).
    for settings, ipv6, ecn in product((LEAVE, FRAMES | LEAVE), (False, True), (False, True)):
        patches = word(VIRTIO_HEADER + 14 + 1) + (b"\x20" if ipv6 else b"\x02") if ecn else b""
        name = f"stands-{settings}-{'ipv6' if ipv6 else 'ipv4'}-{'ecn' if ecn else 'lost'}"
        seeds[name] = (
            bytes([settings, 1, 32])
            + finished(shape(800, ipv6=ipv6)) * 2
            + super_frame(1388, shape(4000, ipv6=ipv6), patches)
            + super_frame(1388, shape(1000, ipv6=ipv6), patches)
            + unfinished(shape(900, ipv6=ipv6), patches)
        )
    return seeds


def ingress() -> dict[str, bytes]:
    seeds = {}
    for ipv6, udp, tags, joined in product((False, True), (False, True), (0, 1, 2), (False, True)):
        name = (
            f"{'udp' if udp else 'tcp'}{6 if ipv6 else 4}-tags{tags}-{'gro' if joined else 'each'}"
        )
        own = shape(1300, ipv6=ipv6, udp=udp, tags=tags)
        seeds[f"flow-{name}"] = b"\0\0" + flow(own, 12, joined=joined, last=(100, 0))
        if not joined:
            continue
        own = shape(400, ipv6=ipv6, udp=udp, tags=tags, address=2, options=(0, 3))
        seeds[f"complete-{name}"] = bytes([FRAMES, 0]) + flow(own, 5, last=(400, 8))
    for kind in (RIGHT, LEFT, WRONG, NONE, ONES, ZERO):
        for udp in (False, True):
            own = shape(500, udp=udp, checksum=kind)
            for leave in (0, LEAVE) if kind == LEFT else (0,):
                name = f"checksum-{kind}-{'udp' if udp else 'tcp'}-{'left' if leave else 'own'}"
                seeds[name] = bytes([leave, 0]) + flow(own, 6) + flow(shape(500), 3)
    for failure in range(1, 8):
        both = flow(shape(700), 5) + flow(shape(700, udp=True), 5)
        asked = b"\x01\x14" + b"\x21\x14"
        seeds[f"failure-{failure}"] = bytes([ADDRESSED, failure << 3]) + (both + asked) * 2
    for name, lacking in (("gro", NO_GRO), ("tso", NO_TSO), ("uso", NO_USO)):
        both = flow(shape(1300), 12) + flow(shape(1300, udp=True), 12)
        seeds[f"without-{name}"] = bytes([lacking, 0]) + both * 2
    # Of the third of six: class, identification, hops, sequence, flags, window, checksum, ...
    for at in (15, 22, 45, 49, 60):
        for mended in (False, True) if at == 60 else (True,):
            own = shape(300)
            seeds[f"damage-{at}-{'mended' if mended else 'wrong'}"] = b"\0\0" + damaged(
                own, 6, 2, at, 1, mended=mended
            )
    for at, change in ((14, 1), (21, 1), (24, 1), (34, 1), (38, 1), (46, 0x10)):
        for udp in (False, True) if at < 46 else (False,):
            name = f"damage-{at}-{change}-{'udp' if udp else 'tcp'}"
            own = shape(300, udp=udp)
            seeds[name] = b"\0\0" + damaged(own, 4, 1, at, change, mended=at != 24)
    # PSH, ECE, CWR and URG in the midst, and at the beginning.
    for which, change in ((0, 0x08), (0, 0x40), (1, 0x08), (1, 0x40), (1, 0x20)):
        seeds[f"flags-{which}-{change:02x}"] = b"\0\0" + damaged(
            shape(300), 4, which, 47, change, mended=True
        )
    # Another source, another VLAN.
    for name, own, at in (
        ("source", shape(300, address=2), 11),
        ("vlan", shape(300, tags=1), 15),
        ("second-tag", shape(300, tags=2), 19),
    ):
        seeds[f"other-{name}"] = b"\0\0" + damaged(own, 4, 1, at, 1, mended=True)
    short = flow(shape(300, udp=True), 3, last=(100, 0))
    after = flow(shape(100, udp=True, identification=0x1237), 2)
    seeds["after-a-short-one"] = b"\0\0" + short + after
    larger = flow(shape(200, udp=True, identification=0x1237), 2)
    left = shape(300, udp=True, checksum=LEFT)
    for complete in (False, True):
        following = shape(300, udp=True, checksum=LEFT, identification=0x1236)
        both = flow(left, 2, complete=complete) + flow(following, 2, complete=not complete)
        seeds[f"left-and-{'elided' if complete else 'complete'}"] = bytes([LEAVE, 0]) + both
    for flags in (CWR_ACK, FIN_ACK, ECE_ACK, 0x30, 0x12, 0x14, 0x00):
        seeds[f"all-flags-{flags:02x}"] = b"\0\0" + flow(shape(300, flags=flags), 3)
    seeds["larger-one"] = b"\0\0" + flow(shape(100, udp=True), 3) + larger
    seeds["limit"] = b"\0\0" + flow(shape(1431), 2) + flow(shape(1432), 2)
    seeds["long"] = b"\0\0" + flow(shape(100), 70)
    seeds["largest"] = b"\0\2" + flow(shape(32000), 3) + flow(shape(65400), 1)
    seeds["wrapped"] = b"\0\0" + flow(shape(1000, identification=0xFFFE), 6)
    seeds["plain-tap"] = bytes([PLAIN_TAP, 0]) + flow(shape(200), 6)
    seeds["short"] = b"\0\0" + b"\x08" + word(1) + b"\x07" + b"\0" + word(0)
    seeds["reserved"] = b"\0\0" + b"\x08" + word(30) + b"\x07\x43"
    seeds["malformed"] = (
        b"\0\0" + b"\x08" + word(30) + b"\x07\x45\0\0\xff" + b"\x08" + word(30) + b"\x07\x60"
    )
    seeds["escaped"] = b"\0\0" + flow(shape(100, address=1, tags=1), 3)
    seeds["others"] = b"\0\0" + b"\x10" + word(30) + b"\x09\x45" + flow(shape(10), 2)
    seeds["verification"] = b"\0\0" + b"\x01\x10\x21\x10\x81\x10\x03\x01\x02"
    seeds["empty-payload"] = b"\0\0" + flow(shape(0), 3) + flow(shape(5, padded=True), 3)
    return seeds


def generation(phase: int, *, limit: int | None = None, only: int = 0) -> bytes:
    """As take_new_generation() reads it; only: 8 the sender's, 16 the receiver's."""
    what = phase | only | (4 if limit is not None else 0)
    return bytes([0, what]) + (b"" if limit is None else bytes([limit]))


def send_with(phase: int) -> bytes:
    return bytes([1, phase])


def seal(count: int, size: int = 60, fill: int = 7) -> bytes:
    """fill: also chooses the queue."""
    return bytes([2, count - 1]) + word(size) + bytes([fill])


def deliver(*which: int) -> bytes:
    return b"".join(b"\6" + word(each) for each in which)


def changed(which: int, at: int, change: int) -> bytes:
    return b"\x17" + word(which) + word(at) + bytes([change])


def cut_to(which: int, length: int) -> bytes:
    return b"\x47" + word(which) + word(length)


def in_pieces(own: bytes, size: int, number: int, what: int = 0x10, more: bytes = b"") -> bytes:
    """A frame in pieces. what, and more: as take_pieces() in ingress.c reads it."""
    return bytes([3 | what]) + own + word(size - 1) + bytes([number]) + more


def pieces() -> dict[str, bytes]:
    """Of ingress."""
    large = shape(1460, tags=1, address=2)
    seeds = {
        "pieces": b"\0\1" + b"".join(in_pieces(large, 760, number) for number in range(70)),
        "pieces-elided": b"\0\1" + in_pieces(shape(3000), 1400, 1) * 2,
        "pieces-missing": b"\0\1"
        + in_pieces(large, 400, 1, 8, b"\1\2")
        + in_pieces(large, 400, 65),
        "pieces-too-many": b"\0\1" + in_pieces(large, 20, 1),
        "pieces-64": b"\0\1" + in_pieces(shape(1000), 17, 1),
        "pieces-oversized": b"\0\0" + in_pieces(shape(3000), 800, 1),
        "pieces-one": b"\0\1" + in_pieces(shape(100), 1400, 1),
    }
    for at in (0, 1, 2, 3, 6, 7, 20):
        damage = b"\0" + word(at) + b"\x80"
        seeds[f"pieces-damage-{at}"] = b"\0\1" + in_pieces(large, 760, 1, 0x40, damage) * 2
    return seeds


def in_bundle(*shapes: bytes, flags: int = 0, at: int = 0, change: int = 0) -> bytes:
    return bytes([4 | flags, len(shapes)]) + word(at) + bytes([change]) + b"".join(shapes)


def bundles() -> dict[str, bytes]:
    """Of ingress: sealed, each receive in memory of its own."""
    begin = bytes([32, 64])
    small = [shape(20, udp=udp, ipv6=ipv6) for udp, ipv6 in product((False, True), repeat=2)]
    seeds = {
        "bundle": begin + in_bundle(*small * 4),
        "bundle-complete": begin + in_bundle(*small, flags=0x20),
        "bundle-of-none": begin + in_bundle() + in_bundle(small[0]),
        "bundle-joined": begin + (in_bundle(*small, flags=0x10)) * 3,
        "bundle-and-flow": begin + in_bundle(*small) + flow(shape(500), 4) + in_bundle(*small),
        "bundle-clear": bytes([32, 0]) + in_bundle(*small),
        "sealed-flow": begin + flow(shape(1000), 8) + b"\1\x14" + b"\0\x10",
        "sealed-pieces": bytes([32, 65]) + in_pieces(shape(3000), 1400, 1) * 2,
    }
    for at in (0, 1, 2, 3, 4, 60, 62, 63):
        seeds[f"bundle-changed-{at}"] = begin + in_bundle(*small, flags=8, at=at, change=0x41)
        seeds[f"bundle-cut-{at}"] = begin + in_bundle(*small, flags=0x40, at=at)
    return seeds


def cipher() -> dict[str, bytes]:
    begin = generation(0) + send_with(0)
    seeds = {"once": begin + seal(3) + deliver(0, 1, 2)}
    seeds["other-suite"] = generation(1) + begin + seal(3) + deliver(0, 1, 2)
    seeds["order"] = begin + seal(64, 0) + deliver(*range(63, -1, -1), *range(64))
    seeds["largest"] = begin + seal(64, 1599) + deliver(0, 63)
    for at in (1, 2, 5, 6, 20, 60, 81):
        seeds[f"changed-{at}"] = begin + seal(2) + changed(0, at, 1) + deliver(0)
    for length in (0, 1, 2, 6, 22, 23, 80):
        seeds[f"cut-{length}"] = begin + seal(1) + cut_to(0, length)
    seeds["longer"] = begin + seal(1) + b"\x0f" + word(0) + b"\5" + deliver(0)
    seeds["header"] = begin + seal(1) + b"\x27" + word(0) + b"\1\1" + deliver(0)
    seeds["bytes"] = begin + b"\5\x20\7\x42" + bytes(30) + b"\5\x10\7\x45" + bytes(14)
    for by in (100, 8191, 8192, 8193, 0x8001, 0xBFFF):
        jump = b"\x0b" + word(by)
        seeds[f"jump-{by}"] = begin + seal(70) + deliver(0, 5) + jump + seal(2) + deliver(65, 1, 6)
    seeds["rekey"] = (begin + seal(5) + deliver(0) + generation(1) + deliver(1) + send_with(1)) + (
        seal(5) + deliver(5, 2) + generation(0) + deliver(3, 6) + send_with(0) + seal(1)
    )
    seeds["used-up"] = generation(0, limit=8) + send_with(0) + seal(20) + deliver(*range(10))
    seeds["receiver-first"] = generation(0, only=16) + begin + seal(1) + deliver(0)
    seeds["receiver-limit"] = begin + generation(0, limit=0, only=16) + seal(4) + deliver(0, 3)
    seeds["wiped"] = begin + seal(2) + deliver(0) + b"\4\0" + deliver(1)
    seeds["too-old"] = (
        begin + seal(2) + deliver(0) + b"\x0c" + word(999) + b"\x0c\0\1" + (deliver(1) + seal(1))
    )
    for receiver in (0, 1):
        seeds[f"successor-{receiver}"] = (
            begin
            + seal(9)
            + deliver(0, 1)
            + bytes([3, receiver])
            + (deliver(0, 2) + seal(2) + deliver(10, 10, 3))
        )
    seeds["without-key"] = seal(3) + b"\5\x20\7\x42" + bytes(30)
    # Queue by queue; one of them far ahead; what they have used up together.
    turns = seal(3, fill=0) + seal(3, fill=1) + seal(3, fill=2)
    queues = {
        "queues": begin + turns + deliver(*range(9), *range(9)),
        "queues-ahead": begin
        + turns
        + b"\x0b"
        + word(8193)
        + seal(2, fill=0)
        + deliver(*range(11)),
        "queues-used-up": generation(0, limit=8) + send_with(0) + turns * 2 + deliver(*range(9)),
        "queues-rekey": begin + turns + generation(1) + send_with(1) + turns + deliver(*range(18)),
        "queues-successor": begin + turns + b"\3\0" + turns + deliver(*range(18)),
    }
    one = {name: b"\0" + seed for name, seed in seeds.items()}
    return one | {name: b"\1" + seed for name, seed in queues.items()}


def syn(options: bytes, *, ipv6: bool = False, flags: int = 2) -> bytes:
    """A frame as fuzz/mss.c reads it: it writes the EtherType and what is before TCP itself."""
    tcp = (
        bytes(12) + bytes([(20 + len(options)) // 4 << 4, flags]) + b"\1\xf4\x12\x34\0\0" + options
    )
    return bytes(54 if ipv6 else 34) + tcp


def mss() -> dict[str, bytes]:
    limit, ipv4, ipv6, partial = word(1472), b"\x15", b"\x1d", b"\x35"
    large = b"\2\4\xff\xff"
    mixed = b"\1" + large + b"\4\2\1" + large + b"\1\3\3\7" + b"\0"
    return {
        "once": ipv4 + limit + syn(large),
        "ipv6": ipv6 + limit + syn(large, ipv6=True, flags=0x12),
        "partial": partial + limit + syn(large),
        "mixed": ipv4 + limit + syn(mixed + bytes(-len(mixed) % 4)),
        "small": ipv4 + limit + syn(b"\2\4\0\1"),
        "cut-off": ipv4 + limit + syn(large + b"\1\1\2\4"),
        "odd": ipv4 + limit + syn(b"\2\3\xff\1"),
        "signed": ipv4 + limit + syn(large + b"\x1d\4\1\1"),
        "no-syn": ipv4 + limit + syn(large, flags=0x10),
        "configured": b"\x16" + limit + syn(large),
    }


def main() -> None:
    parts = (
        ("egress", egress()),
        ("ingress", ingress() | pieces() | bundles()),
        ("cipher", cipher()),
        ("mss", mss()),
    )
    for direction, seeds in parts:
        folder = CORPUS / direction
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, seed in seeds.items():
            (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
