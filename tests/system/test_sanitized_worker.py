"""velad under traffic, its native data path built with address and undefined sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lab import autoconfigured
from lab.circuit import NAME, static_ends
from lab.datagrams import VELA_PORT, send_joined, udp_socket
from lab.flood import Flood
from lab.load import iperf3, ping
from lab.namespace import Namespace
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

ROOT = Path(__file__).parents[2]
SEED = 20240229
ADDRESSES = "172.16.16.2", "fd00:16::2"


def clang_library() -> str:
    printed = ["clang", f"-print-file-name=libclang_rt.asan-{os.uname().machine}.so"]
    return subprocess.run(printed, check=True, capture_output=True, text=True).stdout.strip()


def build(folder: Path, *, broken: bool = False) -> None:
    """Put the vela package into folder, its data path built with sanitizers.

    broken: it receives into a buffer of one byte.
    """
    shutil.copytree(ROOT / "vela", folder / "vela", ignore=shutil.ignore_patterns("*.so"))
    if broken:
        ingress = folder / "vela" / "dataplane" / "native" / "ingress.c"
        right = "malloc(receive_slots(self) * RECEIVE_SLOT)"
        assert ingress.read_text().count(right) == 1
        ingress.write_text(ingress.read_text().replace(right, "malloc(1)"))
    sources = sorted(str(each) for each in (folder / "vela" / "dataplane" / "native").glob("*.c"))
    subprocess.run(
        [
            *("clang", "-std=gnu11", "-g", "-O1", "-fPIC", "-shared", "-shared-libasan"),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DVELA_LIBCRYPTO"),
            *("-I", sysconfig.get_path("include")),
            *("-o", f"vela/dataplane/_native{sysconfig.get_config_var('EXT_SUFFIX')}"),
            *sources,
            "-lcrypto",
        ],
        cwd=folder,
        check=True,
    )


@contextmanager
def sanitized(folder: Path) -> Iterator[None]:
    """What starts inside takes the package in folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("LD_PRELOAD", clang_library())
        # The interpreter frees less at its end than it took.
        patch.setenv("ASAN_OPTIONS", "detect_leaks=0")
        yield


def hostile(random: Random) -> list[bytes]:
    """Datagrams of one size: noise that begins like something, and packets cut or damaged."""
    size = random.choice((1, 2, 15, 20, 40, 60, 200, 1400))
    first = random.choice(
        (b"\x45", b"\x46", b"\x60", b"\x40", b"\x41\x01", b"\x42", b"\x43", b"\x02")
    )
    circuit = random.choice((b"\x01", b"\x01", b"\x01", b"\x02"))
    packet = bytes.fromhex(
        "450000280000400040060000c0000201c00002029c401451000000010000000250100100"
    )
    made = []
    for number in range(random.randrange(1, 40)):
        body = first + random.randbytes(size) if number % 3 else packet + random.randbytes(size)
        made.append((circuit + body)[:size].ljust(size, b"\0"))
    return made


def frame_port(source: Namespace, remote: str) -> str:
    """Return the UDP port that a circuit's frames leave from toward remote."""
    (line,) = source.run("ss", "-Hun", "dst", remote).stdout.splitlines()
    # Two queues, the local address with its port, the remote's.
    return line.split()[2].rpartition(":")[2]


@contextmanager
def hostility(source: Namespace, address: str, remote: str) -> Iterator[None]:
    """Hostile datagrams in the name of the circuit's own remote, as long as the context lasts."""
    random = Random(SEED)

    def send() -> int:
        datagrams = hostile(random)
        send_joined(sender, datagrams, remote, VELA_PORT)
        time.sleep(0.002)  # the traffic is to get through
        return len(datagrams)

    with udp_socket(source, address) as sender:
        # velad drops what does not come from the port that its remote has, and has for itself.
        own, theirs = sender.getsockname()[1], frame_port(source, remote)
        source.run(
            *("nft", "-f", "-"),
            stdin="table ip hostile { chain out { type filter hook output priority mangle; "
            f"udp sport {own} udp sport set {theirs}\n}}\n}}\n",
        )
        with Flood(send):
            yield


def traffic(client: Namespace, server: Namespace) -> None:
    """Streams both ways and datagrams of all sizes, over IPv4 and IPv6: each kind at once."""
    ports = count(5201)
    streams = [
        partial(iperf3, server, client, address, seconds=1, reverse=reverse, port=next(ports))
        for address in ADDRESSES
        for reverse in (False, True)
    ]
    datagrams = [
        partial(
            iperf3,
            *(server, client, address),
            seconds=1,
            udp=True,
            length=length,
            bitrate=bitrate,
            port=next(ports),
        )
        for address in ADDRESSES
        for length, bitrate in ((16, "1M"), (1400, "30M"), (9000, "30M"))
    ]
    with ThreadPoolExecutor(max_workers=len(datagrams)) as pool:
        for kind in (streams, datagrams):
            measured = [each.result() for each in [pool.submit(run) for run in kind]]
            assert all(each.received_bits_per_s > 1e4 for each in measured)


@pytest.mark.parametrize("encryption", ["none", "required"])
def test_worker_with_sanitizers_under_all_kinds_of_traffic_reports_nothing(
    routers: TwoRouters, tmp_path: Path, encryption: str
) -> None:
    build(tmp_path)
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    # By handshake, so that checksums are left to the outer ones; patient under load.
    settings: dict[str, Any] = {"key_file": str(key), "encryption": encryption}
    config_a = autoconfigured.asking(routers.b.ipv4, keepalive=5.0, **settings)
    a, b = routers.a, routers.b
    with ExitStack() as stack:
        with sanitized(tmp_path):
            ends = stack.enter_context(
                autoconfigured.ends(routers, config_a, autoconfigured.policy(**settings))
            )
        autoconfigured.wait_until_up(ends)
        for velad in ends:
            maps = Path(f"/proc/{velad.worker_pid(NAME)}/maps").read_text()
            assert "libclang_rt.asan" in maps
            assert f"{tmp_path}/vela/dataplane/_native" in maps

        with hostility(b.namespace, b.ipv4, a.ipv4), hostility(a.namespace, a.ipv4, b.ipv4):
            traffic(a.namespace, b.namespace)

        assert ping(a.namespace, ADDRESSES[0]).received == 3
        for velad in ends:
            status = velad.circuit(NAME)
            assert (status["worker"]["engine"], status["worker"]["restarts"]) == ("native", 0)
            dropped = status["counters"]["rx_dropped"]
            # Of an encrypted circuit nothing that is not sealed is looked at.
            met = ("clear", "bad_tag") if encryption == "required" else ("malformed",)
            assert all(dropped[each] > 0 for each in met)
            assert "Sanitizer" not in velad.log()
            assert "runtime error:" not in velad.log()


def test_worker_with_sanitizers_and_a_buffer_too_small_ends_with_a_report(
    routers: TwoRouters, tmp_path: Path
) -> None:
    """What finds nothing in the test above does find what is there."""
    build(tmp_path, broken=True)

    with ExitStack() as stack:
        with sanitized(tmp_path):
            # Neighbour discovery may end it before it is seen to carry frames.
            _, velad = stack.enter_context(static_ends(routers, engine="native"))
        ping(routers.a.namespace, ADDRESSES[0], count=1, timeout_s=0.2)
        velad.wait_for(
            lambda status: status["circuits"][0]["worker"]["restarts"] > 0, 10.0, "its end"
        )

    assert "AddressSanitizer: heap-buffer-overflow" in velad.log()
