#!/usr/bin/env python3
"""Records lan.pcap: programs that talk across a cable, as tcpdump sees it at the one end.

Needs root, and scripts/ on PYTHONPATH. The ends have the MAC addresses of the circuit in
tests/attached_plane.py; nothing is left to hardware, so every frame is as on a wire.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from lab.bird import Bird
from lab.dnsmasq import Dnsmasq
from lab.link import Interface, veth
from lab.load import iperf3, ping
from lab.namespace import Namespace
from lab.waiting import eventually

RECORDING = Path(__file__).parent / "lan.pcap"
MACS = "02:00:5e:10:00:01", "02:00:5e:10:00:02"
SNAP_LENGTH = "1600"

BIRD = """
router id 192.0.2.{number};
protocol device {{ }}
protocol ospf v2 {{
  ipv4 {{ import all; export none; }};
  area 0 {{ interface "eth0" {{ type broadcast; hello 1; dead count 4; wait 2; }}; }};
}}
"""
LEASE_SCRIPT = (
    '#!/bin/sh\n[ "$1" = bound ] && ip address add "$ip/$mask" dev "$interface"\nexit 0\n'
)
ASK = """
import socket
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(5)
for name in ("one", "two", "missing"):
    labels = b"".join(bytes([len(each)]) + each for each in (name.encode(), b"example", b"net"))
    header = bytes.fromhex("123401000001000000000000")
    asking.sendto(header + labels + bytes.fromhex("0000010001"), ("192.0.2.2", 53))
    asking.recv(512)
"""


def dhcp(a: Namespace, folder: Path) -> None:
    script = folder / "bound"
    script.write_text(LEASE_SCRIPT)
    script.chmod(0o755)
    a.run("udhcpc", "-i", "eth0", "-f", "-n", "-q", "-s", str(script), "-p", str(folder / "pid"))


def http(a: Namespace, b: Namespace, folder: Path, stack: ExitStack) -> None:
    (folder / "page").write_bytes(bytes(range(256)) * 64)
    server = ("python3", "-m", "http.server", "--bind", "::", "--directory", str(folder), "80")
    process = b.popen(*server)
    stack.callback(process.wait)
    stack.callback(process.kill)
    for host in ("192.0.2.2", "[2001:db8::2]"):
        eventually(
            lambda host=host: fetched(a, f"http://{host}/page"),  # type: ignore[misc]
            10,
            "the page",
        )


def fetched(a: Namespace, url: str) -> bool:
    return a.run("curl", "-sf", "-o", "/dev/null", url, check=False).returncode == 0


def ospf(a: Namespace, b: Namespace) -> None:
    with Bird(a, BIRD.format(number=1)) as bird, Bird(b, BIRD.format(number=2)):
        eventually(lambda: "Full/" in bird.ask("show", "ospf", "neighbors"), 20, "adjacency")
        time.sleep(2)  # a few more hellos


def talk(a: Namespace, b: Namespace, folder: Path, stack: ExitStack) -> None:
    stack.enter_context(
        Dnsmasq(
            b,
            *("--interface=eth0", "--bind-interfaces", "--local=/example.net/", "--no-ping"),
            *("--host-record=one.example.net,192.0.2.2", "--host-record=two.example.net,192.0.2.9"),
            *("--dhcp-range=192.0.2.100,192.0.2.109,255.255.255.0,1h", "--dhcp-authoritative"),
            f"--dhcp-leasefile={folder / 'leases'}",
        )
    )
    dhcp(a, folder)
    a.run("python3", "-c", ASK)
    for address in ("192.0.2.2", "2001:db8::2"):
        ping(a, address, count=1)
        ping(a, address, count=1, size=4000)  # in fragments
        iperf3(b, a, address, seconds=1, bitrate="100K", length=1000)
        iperf3(b, a, address, seconds=1, udp=True, bitrate="20K", length=500)
    # With IPv4 options: RFC 791, record route, and internet timestamp.
    a.run("ping", "-n", "-c", "1", "-R", "192.0.2.2")
    a.run("ping", "-n", "-c", "1", "-T", "tsandaddr", "192.0.2.2")
    http(a, b, folder, stack)
    ospf(a, b)


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        a, b = stack.enter_context(Namespace("a")), stack.enter_context(Namespace("b"))
        ends = veth(a, "eth0", b, "eth0")
        for number, (end, mac) in enumerate(zip(ends, MACS, strict=True), start=1):
            prepare(end, mac, number)
        immediately = ("--immediate-mode", "-U")
        command = ("tcpdump", "-i", "eth0", "-s", SNAP_LENGTH, *immediately, "-w", str(RECORDING))
        tcpdump = a.popen(*command)
        eventually(lambda: RECORDING.exists() and RECORDING.stat().st_size, 10, "tcpdump")
        talk(a, b, folder, stack)
        time.sleep(0.5)
        tcpdump.terminate()
        tcpdump.wait()


def prepare(end: Interface, mac: str, number: int) -> None:
    end.namespace.run("ip", "link", "set", "dev", end.name, "address", mac)
    off = [word for each in ("tx", "rx", "tso", "gso", "gro") for word in (each, "off")]
    end.namespace.run("ethtool", "-K", end.name, *off)
    end.add_address(f"192.0.2.{number}/24")
    end.add_address(f"2001:db8::{number}/64")


if __name__ == "__main__":
    main()
