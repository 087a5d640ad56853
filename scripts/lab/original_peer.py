"""A peer that speaks the original VELA protocol: a TUN and one UDP socket, a packet at a time.

Run inside a namespace: python -m lab.original_peer INTERFACE MTU LOCAL REMOTE. The
circuit id is 1 and the port 48621 at both ends. It prints "ready", and ends
with a status of its own where the original would fail.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
from struct import Struct

PORT = 48621
CIRCUIT_ID = 1

EXIT_EMPTY_DATAGRAM = 42  # the original indexes byte 0 of it, and panics
EXIT_NOT_IP = 43

_TUNSETIFF = 0x400454CA  # include/uapi/linux/if_tun.h
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFREQ = Struct("16sH22x")


def open_tun(name: str) -> int:
    """Make a TUN that gives and takes bare IP packets; return its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def serve(tun: int, peer: socket.socket) -> int:
    """Carry packets until something comes that the original cannot take; return why."""
    poll = select.poll()
    poll.register(tun, select.POLLIN)
    poll.register(peer, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            try:
                if fd == tun:
                    peer.send(bytes([CIRCUIT_ID]) + os.read(tun, 65536))
                    continue
                datagram = peer.recv(65536)
            except ConnectionRefusedError:
                continue  # nobody there yet
            if not datagram:
                return EXIT_EMPTY_DATAGRAM
            if datagram[0] == CIRCUIT_ID:
                try:
                    os.write(tun, datagram[1:])
                except OSError:  # EINVAL: neither version 4 nor 6
                    return EXIT_NOT_IP


def main(argv: list[str]) -> int:
    name, mtu, local, remote = argv
    tun = open_tun(name)
    subprocess.run(["ip", "link", "set", "dev", name, "mtu", mtu, "up"], check=True)
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.bind((local, PORT))
        peer.connect((remote, PORT))
        print("ready", flush=True)
        return serve(tun, peer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
