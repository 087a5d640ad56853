"""Traffic between namespaces, and what came of it: iperf3, ping, the kernel's counters."""

from __future__ import annotations

import json
import re
import select
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count as counting
from typing import Any

from lab.echo_replies import EchoReplies
from lab.errors import LabError
from lab.namespace import Namespace
from lab.resource import Resource
from lab.waiting import PATIENCE

IPERF3_PORT = 5201
CONGESTION_CONTROL = "cubic"
"""For measurements: Linux's own choice, on any machine. BBR paces 1 % below what a wire carries."""
# Beyond the measuring time: connecting, and the exchange of results.
IPERF3_GRACE_S = 10.0 * PATIENCE
_LISTEN_TIMEOUT_S = 5.0 * PATIENCE

FEW_PINGS = 3

_IP_AND_ICMP = {4: 20 + 8, 6: 40 + 8}
_SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) received")
_identifiers = counting(1)
_RTT = re.compile(r"icmp_seq=\d+ .*time=([\d.]+) ms")


@dataclass(frozen=True, slots=True)
class Throughput:
    """One iperf3 run: retransmits of TCP, packets and lost packets of UDP, else zero."""

    sent_bits_per_s: float
    received_bits_per_s: float
    seconds: float
    retransmits: int = 0
    packets: int = 0
    lost_packets: int = 0


@dataclass(frozen=True, slots=True)
class Pings:
    """One ping run."""

    transmitted: int
    received: int
    rtt_ms: tuple[float, ...]
    """Of each reply, in order of arrival."""
    output: str

    @property
    def lost(self) -> int:
        return self.transmitted - self.received


def iperf3(
    server: Namespace,
    client: Namespace,
    address: str,
    *,
    seconds: int = 2,
    udp: bool = False,
    bitrate: str | None = None,
    length: int | None = None,
    streams: int = 1,
    reverse: bool = False,
    port: int = IPERF3_PORT,
    congestion_control: str | None = None,
) -> Throughput:
    """Measure from client to a server of this one run at address (reverse: the other way).

    bitrate in iperf3's notation ("100M", "0": unlimited); length in bytes per
    write, for UDP per datagram.

    Raises LabError if iperf3 fails or is not done in time.
    """
    argv = ["iperf3", "--json", "--client", address, "--port", str(port), "--time", str(seconds)]
    argv += ["--udp"] if udp else []
    argv += ["--bitrate", bitrate] if bitrate is not None else []
    argv += ["--length", str(length)] if length is not None else []
    argv += ["--parallel", str(streams)] if streams != 1 else []
    argv += ["--reverse"] if reverse else []
    argv += ["--congestion", congestion_control] if congestion_control is not None else []
    serving = _serve(server, port)
    try:
        done = client.run(*argv, check=False, timeout_s=seconds + IPERF3_GRACE_S)
    finally:
        _end(serving)
    return _throughput(done.stdout, udp)


def iperf3_at_once(
    server: Namespace, client: Namespace, addresses: Sequence[str], *, seconds: int = 2
) -> list[Throughput]:
    """Measure one TCP stream to each of the server's addresses, all of them in the same time.

    With CONGESTION_CONTROL; streams of BBR share unevenly by themselves.

    Raises LabError if one of them fails or is not done in time.
    """
    ports = range(IPERF3_PORT, IPERF3_PORT + len(addresses))
    with ExitStack() as stack:
        for port in ports:
            stack.callback(_end, _serve(server, port))
        started = [
            client.popen(
                *("iperf3", "--json", "--client", address, "--port", str(port)),
                *("--time", str(seconds), "--congestion", CONGESTION_CONTROL),
                stdout=subprocess.PIPE,
            )
            for address, port in zip(addresses, ports, strict=True)
        ]
        deadline = time.monotonic() + seconds + IPERF3_GRACE_S
        try:
            outputs = [
                each.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
                for each in started
            ]
        except subprocess.TimeoutExpired as err:
            raise LabError(f"iperf3 to {', '.join(addresses)}: not done in time") from err
    return [_throughput(output, udp=False) for output in outputs]


class BackgroundStream(Resource):
    """A TCP stream from client to an address of server, as fast as it goes, for limit_s at most.

    A context: it has carried something when it begins.
    """

    def __init__(
        self, server: Namespace, client: Namespace, address: str, limit_s: int = 120
    ) -> None:
        self._server, self._client, self._address = server, client, address
        self._limit_s = limit_s
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self._processes.append(_serve(self._server, IPERF3_PORT))
        self._processes.append(
            self._client.popen(
                *("iperf3", "--client", self._address, "--port", str(IPERF3_PORT)),
                *("--time", str(self._limit_s), "--congestion", CONGESTION_CONTROL),
                *("--interval", "0.1", "--forceflush"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
        _await_line(self._processes[-1], b"bits/sec", "carries nothing")

    def check(self) -> None:
        """Raise LabError if it has ended: what was measured then was without load."""
        for process in self._processes:
            if process.poll() is not None:
                raise LabError(f"not done before the load ended, with status {process.returncode}")

    def close(self) -> None:
        for process in reversed(self._processes):
            _end(process)
        self._processes.clear()


def ping(
    namespace: Namespace,
    address: str,
    *,
    count: int = 3,
    size: int | None = None,
    dont_fragment: bool = False,
    interval_s: float | None = None,
    timeout_s: float = 5.0,
    cpu: int | None = None,
    pattern: bytes | None = None,
    tos: int | None = None,
) -> Pings:
    """Send count echo requests of size bytes, the IP header included.

    timeout_s is how long the last reply may take; cpu is where ping runs; pattern, up to 16 bytes,
    is what the payload is filled with, again and again; tos the TOS byte. Losing all of them is a
    result, not an error; LabError is for a ping that cannot be tried.
    """
    if interval_s is None:
        interval_s = 0.1 if count <= FEW_PINGS else 0.02
    identifier = next(_identifiers)
    argv = ["ping", "-n", "-c", str(count), "-i", f"{interval_s:g}", "-W", f"{timeout_s:g}"]
    argv += ["-e", str(identifier)]
    version = ip_address(address.partition("%")[0]).version
    if tos is not None:
        argv += ["-Q", str(tos)]
    if size is not None:
        argv += ["-s", str(size - _IP_AND_ICMP[version])]
    if dont_fragment:
        argv += ["-M", "do"]
    if pattern is not None:
        argv += ["-p", pattern.hex()]
    pinned = ["taskset", "--cpu-list", str(cpu)] if cpu is not None else []
    limit_s = count * (interval_s + 0.1) + timeout_s + 10.0 * PATIENCE
    with EchoReplies(namespace, version, identifier) as replies:
        done = namespace.run(*pinned, *argv, address, check=False, timeout_s=limit_s)
        output = done.stdout + done.stderr
        summary = _SUMMARY.search(done.stdout)
        if summary is None:
            raise LabError(f"ping {address}: exit status {done.returncode}: {output.strip()}")
        transmitted, received = int(summary[1]), int(summary[2])
        if 0 < received < transmitted:
            # For a last reply ping waits an interval, or twice the longest round trip; on a busy
            # machine it may just be late. Only where there was none it has waited for timeout_s.
            received = max(received, replies.wait_for(transmitted, timeout_s))
    rtt_ms = tuple(float(value) for value in _RTT.findall(done.stdout))
    return Pings(transmitted, received, rtt_ms, output)


def kernel_counts(namespace: Namespace, *names: str) -> int:
    """Return the sum of some of a namespace's protocol counters, named as by nstat(8)."""
    shown = namespace.run("nstat", "--ignore", "--zeros", "--noupdate", "--json", *names).stdout
    counts: dict[str, int] = json.loads(shown)["kernel"]
    return sum(counts[name] for name in names)


def _serve(namespace: Namespace, port: int) -> subprocess.Popen[str]:
    process = namespace.popen(
        *("iperf3", "--server", "--one-off", "--forceflush", "--port", str(port)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        _await_line(process, b"listening", "does not listen")
    except LabError:
        _end(process)
        raise
    return process


def _await_line(process: subprocess.Popen[str], word: bytes, failure: str) -> None:
    """Wait until iperf3 has said a word. Raises LabError, with what it said instead."""
    said = b""
    deadline = time.monotonic() + _LISTEN_TIMEOUT_S
    assert process.stdout is not None
    pipe = process.stdout.buffer  # type: ignore[attr-defined]  # not in typeshed's IO[str]
    while word not in said:
        left_s = max(0.0, deadline - time.monotonic())
        chunk = pipe.read1(4096) if select.select([pipe], [], [], left_s)[0] else b""
        if not chunk:
            raise LabError(f"iperf3 {failure}: {said.decode(errors='replace')}")
        said += chunk


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _throughput(text: str, udp: bool) -> Throughput:
    try:
        report: dict[str, Any] = json.loads(text)
    except ValueError as err:
        raise LabError(f"iperf3: no JSON: {text[:500]!r}") from err
    if "error" in report:
        raise LabError(f"iperf3: {report['error']}")
    end = report["end"]
    if udp:
        total = end["sum"]
        received = total["bits_per_second"] * (1 - total["lost_percent"] / 100)
        return Throughput(
            sent_bits_per_s=total["bits_per_second"],
            received_bits_per_s=received,
            seconds=total["seconds"],
            packets=total["packets"],
            lost_packets=total["lost_packets"],
        )
    sent = end["sum_sent"]
    return Throughput(
        sent_bits_per_s=sent["bits_per_second"],
        received_bits_per_s=end["sum_received"]["bits_per_second"],
        seconds=sent["seconds"],
        retransmits=sent.get("retransmits", 0),
    )
