"""Which queue of a TAP a flow goes through: a program that the kernel runs for each frame.

Without it the kernel lets a flow follow the queue that frames of the other direction are written
to (drivers/net/tun.c, tun_flow_update). Two ends that both do so move a flow from queue to queue
for ever, and frames overtake each other. This program goes by the frame alone: both directions of a
flow have one number, at both ends, for as long as the number of queues stays the same.

TUNSETSTEERINGEBPF: Linux 4.16; the kernel takes the result modulo the number of queues.
"""

from __future__ import annotations

import socket
from functools import lru_cache

from vela.linux import bpf, ebpf
from vela.wire import ETHERNET_HEADER, VLAN_TAG

_TAGS = 2
_ETHERTYPE = ETHERNET_HEADER - 2
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN, _SERVICE_VLAN = 0x8100, 0x88A8  # IEEE 802.1Q, 9.6
# Offsets in headers: RFC 791, section 3.1; RFC 8200, section 3.
_FRAGMENT, _PROTOCOL, _IPV4_ADDRESSES = 6, 9, (12, 16)
_NEXT_HEADER, _IPV6_ADDRESSES, _IPV6_HEADER = 6, tuple(range(8, 40, 4)), 40
_IS_FRAGMENT = 0x3FFF  # more fragments, and the offset
_WITH_PORTS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_SPREAD = 0x9E3779B1  # 2**32 divided by the golden ratio (Knuth, volume 3, section 6.4), a prime
_SPREAD_BITS = 16
_NUMBER, _PORTS = 0, 1  # slots of the scratch memory

_Step = tuple[int, int, int, int]


def queue_program(queues: int) -> bytes:
    """Return a classic program that returns the queue of a frame, 0..queues - 1. Pure.

    By its addresses, and by its ports where it is TCP or UDP, not a fragment, and in IPv6 without
    extension headers; behind two VLAN tags at most. All other frames go through queue 0, and so
    does one that is too short. Source and destination may be exchanged.
    """
    if queues == 1:
        return bpf.instruction(bpf.RETURN, 0)
    # From the end to the beginning, as in steering.py; a jump counts what is skipped.
    tail = [
        (bpf.RECALL, _NUMBER, 0, 0),
        (bpf.MULTIPLY, _SPREAD, 0, 0),
        (bpf.SHIFT_RIGHT, _SPREAD_BITS, 0, 0),
        (bpf.MODULO, queues, 0, 0),
        (bpf.RETURN_LOADED, 0, 0, 0),
    ]
    blocks = []
    for tags in range(_TAGS + 1):
        ip = ETHERNET_HEADER + tags * VLAN_TAG
        ipv6 = [*_with_ports_of_ipv6(ip), *tail]
        ipv4 = [*_with_ports_of_ipv4(ip), *tail]
        blocks.append(
            [
                (bpf.LOAD_HALF, _ETHERTYPE + tags * VLAN_TAG, 0, 0),
                (bpf.IF_EQUAL, _IPV4, 0, len(ipv4)),
                *ipv4,
                (bpf.IF_EQUAL, _IPV6, 0, len(ipv6)),
                *ipv6,
                # What is tagged goes on to the next block.
                (bpf.IF_EQUAL, _VLAN, 2, 0),
                (bpf.IF_EQUAL, _SERVICE_VLAN, 1, 0),
                (bpf.RETURN, 0, 0, 0),
            ]
        )
    steps = [step for block in blocks for step in block]
    steps.append((bpf.RETURN, 0, 0, 0))
    return b"".join(
        bpf.instruction(code, k, if_true, if_false) for code, k, if_true, if_false in steps
    )


def _sum_of(offsets: tuple[int, ...]) -> list[_Step]:
    """Return steps that store the exclusive or of these words of the frame."""
    first, *others = offsets
    steps: list[_Step] = [(bpf.LOAD_WORD, first, 0, 0)]
    for each in others:
        steps += [(bpf.KEEP, 0, 0, 0), (bpf.LOAD_WORD, each, 0, 0), (bpf.XOR_KEPT, 0, 0, 0)]
    return [*steps, (bpf.STORE, _NUMBER, 0, 0)]


def _add_ports(load_source: list[_Step], load_destination: list[_Step]) -> list[_Step]:
    return [
        *load_source,
        (bpf.STORE, _PORTS, 0, 0),
        *load_destination,
        (bpf.RECALL_KEPT, _PORTS, 0, 0),
        (bpf.XOR_KEPT, 0, 0, 0),
        (bpf.RECALL_KEPT, _NUMBER, 0, 0),
        (bpf.XOR_KEPT, 0, 0, 0),
        (bpf.STORE, _NUMBER, 0, 0),
    ]


def _if_it_has_ports(protocol: int, steps: list[_Step]) -> list[_Step]:
    """Return the steps with a look at the protocol, at this offset, before them."""
    tcp, udp = _WITH_PORTS
    return [
        (bpf.LOAD_BYTE, protocol, 0, 0),
        (bpf.IF_EQUAL, tcp, 1, 0),
        (bpf.IF_EQUAL, udp, 0, len(steps)),
        *steps,
    ]


def _with_ports_of_ipv4(ip: int) -> list[_Step]:
    ports = _if_it_has_ports(
        ip + _PROTOCOL,
        _add_ports(
            [(bpf.LOAD_HEADER_LENGTH, ip, 0, 0), (bpf.LOAD_HALF_BEHIND, ip, 0, 0)],
            [(bpf.LOAD_HALF_BEHIND, ip + 2, 0, 0)],
        ),
    )
    return [
        *_sum_of(tuple(ip + each for each in _IPV4_ADDRESSES)),
        (bpf.LOAD_HALF, ip + _FRAGMENT, 0, 0),
        (bpf.IF_ANY_BIT, _IS_FRAGMENT, len(ports), 0),
        *ports,
    ]


def _with_ports_of_ipv6(ip: int) -> list[_Step]:
    at = ip + _IPV6_HEADER
    return [
        *_sum_of(tuple(ip + each for each in _IPV6_ADDRESSES)),
        *_if_it_has_ports(
            ip + _NEXT_HEADER,
            _add_ports([(bpf.LOAD_HALF, at, 0, 0)], [(bpf.LOAD_HALF, at + 2, 0, 0)]),
        ),
    ]


def why_no_queues() -> str:
    """Return why this process can have no such program; empty: it can."""
    return ebpf.why_unavailable()


@lru_cache
def load_queue_program(queues: int) -> int:
    """Return the descriptor of the program, the same one each time. Raises OSError."""
    return ebpf.load(ebpf.translate(queue_program(queues)))
