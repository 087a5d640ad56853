"""An underlay whose datagrams from A to B take a while, and get lost, by chance.

For kernels without netem. The cable between the routers passes through a namespace in which this
process takes every frame from port to port; it says what it really did, however busy it was.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from struct import Struct

from lab.link import Interface, Regime, veth
from lab.namespace import Namespace
from lab.resource import Resource
from lab.topology import UNDERLAY, TwoRouters, router

_LARGEST = 65535
_BUFFER_BYTES = 4 << 20
_UDP_IN_IPV4 = b"\x08\x00\x45"
_PROTOCOL_AT, _UDP = 23, 17
_TIMESPEC = Struct("@qq")
_SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h; not in Python's socket
# include/linux/socket.h; include/uapi/linux/if_packet.h
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_ETH_P_ALL = 0x0003
_OFFLOADS = ("tx", "off", "tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off")


class SlowWay(Resource):
    """Takes frames between two ports. From the first to the second one, UDP in IPv4 is hit."""

    def __init__(self, first: Interface, second: Interface) -> None:
        self.delay_s = (0.0, 0.0)
        """The least and the most, evenly spread."""
        self.loss = 0.0
        """From 0 to 1."""
        self.delays_s: list[float] = []
        """What the datagrams really waited, from their arrival."""
        self.lost = 0
        self._ends = [_open(each) for each in (first, second)]
        self._random = random.Random(12)
        self._waiting: list[tuple[float, int, float, bytes]] = []
        self._order = count()
        self._end, self._asks = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        os.close(self._asks)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._end)
        for each in self._ends:
            each.close()

    def forget(self) -> None:
        """Forget what it did so far."""
        self.delays_s, self.lost = [], 0

    def _run(self) -> None:
        there, back = self._ends
        poll = select.poll()
        for fd in (there.fileno(), back.fileno()):
            poll.register(fd, select.POLLIN)
        poll.register(self._end, select.POLLHUP)
        while True:
            left_s = self._waiting[0][0] - time.time() if self._waiting else 1.0
            ready = {fd for fd, _ in poll.poll(max(0.0, left_s) * 1000)}
            if self._end in ready:
                return
            if back.fileno() in ready:
                _send(there, back.recv(_LARGEST))
            if there.fileno() in ready:
                self._take(there)
            while self._waiting and self._waiting[0][0] <= time.time():
                _, _, came, frame = heapq.heappop(self._waiting)
                _send(back, frame)
                self.delays_s.append(time.time() - came)

    def _take(self, end: socket.socket) -> None:
        frame, ancillary, _, _ = end.recvmsg(_LARGEST, socket.CMSG_SPACE(_TIMESPEC.size))
        if frame[12:15] != _UDP_IN_IPV4 or frame[_PROTOCOL_AT] != _UDP:
            _send(self._ends[1], frame)
            return
        if self._random.random() < self.loss:
            self.lost += 1
            return
        ((_, _, stamp),) = ancillary
        seconds, nanoseconds = _TIMESPEC.unpack(stamp)
        came = seconds + nanoseconds / 1e9
        due = came + self._random.uniform(*self.delay_s)
        heapq.heappush(self._waiting, (due, next(self._order), came, frame))


@contextmanager
def slow_underlay() -> Iterator[tuple[TwoRouters, SlowWay]]:
    """A (10.201.0.1/24) and B (.2), and what is between them: nothing is hit at first."""
    with Namespace("a") as a, Namespace("b") as b, Namespace("between") as between:
        between.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        a_end, a_port = veth(a, UNDERLAY, between, "port-a")
        b_end, b_port = veth(b, UNDERLAY, between, "port-b")
        for each in (a_end, b_end, a_port, b_port):
            # Whole datagrams with whole checksums are what packet sockets can send on.
            each.namespace.run("ethtool", "-K", each.name, *_OFFLOADS)
        for port in (a_port, b_port):
            port.set_up()
        routers = TwoRouters(router(a, a_end, 1), router(b, b_end, 2))
        routers.set_regime(Regime.WIRE)
        for each in (a_end, b_end):
            each.namespace.run("ethtool", "-K", each.name, "tx", "off")
        with SlowWay(a_port, b_port) as way:
            yield routers, way


def _open(port: Interface) -> socket.socket:
    # Protocol 0: nothing comes before it is bound.
    end = port.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    end.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    # What this process sends itself is not to come back.
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.bind((port.name, _ETH_P_ALL))
    return end


def _send(end: socket.socket, frame: bytes) -> None:
    with suppress(OSError):  # the cable may not be there any more
        end.send(frame)
