"""A control socket that answers what a test says, and velactl, run as a program against it."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.daemon import entry_point
from vela.supervisor.control_socket import Caller, ControlSocket, Reply, Subscribe
from vela.supervisor.runtime.loop import EventLoop

CIRCUIT: dict[str, Any] = {
    "name": "vela0",
    "id": 1,
    "origin": "config",
    "description": "",
    "state": "unmonitored",
    "reason": "",
    "reason_code": "",
    "reasons": [],
    "since_seconds": 93784.5,
    "transitions": 1,
    "remote": "router2.example.net",
    "remote_address": "192.0.2.9",
    "remote_port": 48621,
    "family": "ipv4",
    "mtu": 1471,
    "path_mtu": 1500,
    "encapsulation": "auto",
    "elision": True,
    "encryption": "none",
    "cipher": None,
    "rtt_ms": None,
    "last_heard_seconds": None,
    "loss": {"tx_percent": None, "rx_percent": None, "round_trip_percent": None},
    "delay_ms": {"p50": None, "p99": None, "jitter": None},
    "rates": {"tx_bps": 12345678, "rx_bps": 950, "tx_pps": 1029, "rx_pps": 0},
    "worker": {
        "pid": 4711,
        "cpu": 1,
        "engine": "python",
        "restarts": 2,
        "cpu_percent": 12.5,
        "memory_bytes": 21000000,
    },
    "counters": {
        "tx_frames": 12,
        "tx_bytes": 1234,
        "rx_frames": 7,
        "rx_bytes": 999,
        "tx_elided": 10,
        "rx_elided": 6,
        "tx_fragmented": 3,
        "tx_errors": 1,
        "tx_dropped": {"not_ip": 4},
        "rx_dropped": {"short": 0, "malformed": 5},
    },
}
RESOLVING: dict[str, Any] = CIRCUIT | {
    "name": "vela-long-name",
    "id": 255,
    "state": "resolving",
    "reason": "no name server answered",
    "reason_code": "name_unresolved",
    "reasons": [{"code": "name_unresolved", "text": "no name server answered"}],
    "since_seconds": 61.0,
    "transitions": 0,
    "path_mtu": None,
    "rates": dict.fromkeys(CIRCUIT["rates"]),
    "remote_address": None,
    "family": None,
    "elision": False,
    "worker": None,
    "counters": {
        **dict.fromkeys(CIRCUIT["counters"], 0),
        "tx_dropped": {"not_ip": 0},
        "rx_dropped": {"short": 0},
    },
}
STATUS: dict[str, Any] = {
    "version": "1.2.3",
    "pid": 4700,
    "uptime_seconds": 93784.5,
    "listen": ["[::]:48621"],
    "engine_features": ["netns_cookie", "tso", "udp_gro", "udp_segment"],
    "unused_features": ["rwf_nowait", "uso"],
    "receive_buffer": {"wanted_bytes": 8388608, "granted_bytes": 8388608},
    "rx_dropped": {"empty": 0, "unknown_circuit": 3},
    "circuits": [CIRCUIT, RESOLVING],
}


class Velad:
    """What velactl talks to: a control socket with a fixed answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._loop = EventLoop()
        self._control = ControlSocket(self._loop, path, self._answer)
        self.answer: Mapping[str, Any] = STATUS
        self.answers: dict[str, Mapping[str, Any]] = {}
        """By command, where they are not the answer."""
        self.requests: list[Mapping[str, Any]] = []
        self.events: list[Mapping[str, Any]] = []
        """What a client that subscribes gets, once its next request is answered."""
        self.events_then_close = False
        self.series: dict[str, list[Mapping[str, Any]]] = {}
        """By command, its next answers: each is given once, ahead of the others."""
        self.interrupt_at: int | None = None
        """With which request velactl is interrupted, before it gets an answer; the first is 1."""
        self._process: subprocess.Popen[str] | None = None

    def _tell(self) -> None:
        if self.requests[-1]["command"] == "monitor" and not self.events_then_close:
            self._loop.call_later(0.05, self._tell)
            return
        for event in self.events:
            self._control.publish(event)
        if self.events_then_close:
            self._control.close()
            self._closed = True

    def _answer(self, request: Mapping[str, Any], _: Caller) -> Reply | Subscribe:
        self.requests.append(request)
        if len(self.requests) == self.interrupt_at and self._process is not None:
            self._process.send_signal(signal.SIGINT)
        if request["command"] == "monitor":
            # Behind the reply, and behind that to the next request.
            self._loop.call_later(0.05, self._tell)
            return Subscribe({"monitoring": True})
        command = str(request["command"])
        if self.series.get(command):
            return self.series[command].pop(0)
        answer: Mapping[str, Any] = self.answers.get(command, self.answer)
        return answer

    def close(self) -> None:
        if not self._closed:
            self._control.close()
        self._loop.close()

    def control(
        self,
        *argv: str,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        closed: bool = False,
        named: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Return velactl's exit status and what it wrote.

        closed: it has no standard output. named: it is told where the socket is.
        """
        command, environment = entry_point("velactl", "vela.supervisor.velactl")
        environment = {key: environment[key] for key in environment if key != "COLUMNS"}
        environment |= env or {}
        if closed:
            command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        ours, theirs = socket.socketpair()
        with subprocess.Popen(
            # The shell's end of the pair closes when velactl has ended.
            [*command, *(("--socket", str(self._path)) if named else ()), *argv],
            stdin=theirs.fileno(),
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=environment,
        ) as process:
            self._process = process
            theirs.close()
            self._loop.watch(ours.fileno(), self._loop.stop)
            self._loop.run()
            self._loop.unwatch(ours.fileno())
            ours.close()
            out, err = process.communicate(timeout=20)
        return process.returncode, out or "", err or ""
