"""velactl, run as a program against a real control socket that answers what the test says."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.daemon import entry_point
from vela.supervisor.control_socket import ControlSocket
from vela.supervisor.runtime.loop import EventLoop

CIRCUIT: dict[str, Any] = {
    "name": "vela0",
    "id": 1,
    "origin": "config",
    "state": "unmonitored",
    "reason": "",
    "remote": "router2.example.net",
    "remote_address": "192.0.2.9",
    "remote_port": 48621,
    "family": "ipv4",
    "mtu": 1471,
    "encapsulation": "auto",
    "elision": True,
    "encryption": "none",
    "cipher": None,
    "rtt_ms": None,
    "last_heard_seconds": None,
    "worker": {"pid": 4711, "cpu": 1, "engine": "python", "restarts": 2},
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
    "engine_features": ["netns_cookie", "rwf_nowait", "tso", "udp_gro", "udp_segment", "uso"],
    "rx_dropped": {"empty": 0, "unknown_circuit": 3},
    "circuits": [CIRCUIT, RESOLVING],
}


class Velad:
    """What velactl talks to: a control socket with a fixed answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = EventLoop()
        self._control = ControlSocket(self._loop, path, lambda _request: self.answer)
        self.answer: Mapping[str, Any] = STATUS

    def close(self) -> None:
        self._control.close()
        signal.set_wakeup_fd(-1)

    def control(self, *argv: str, stdout: int = subprocess.PIPE) -> tuple[int, str, str]:
        """Return velactl's exit status and what it wrote."""
        command, env = entry_point("velactl", "vela.supervisor.velactl")
        ours, theirs = socket.socketpair()
        with subprocess.Popen(
            # The shell's end of the pair closes when velactl has ended.
            [*command, "--socket", str(self._path), *argv],
            stdin=theirs.fileno(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        ) as process:
            theirs.close()
            self._loop.watch(ours.fileno(), self._loop.stop)
            self._loop.run()
            self._loop.unwatch(ours.fileno())
            ours.close()
            out, err = process.communicate(timeout=20)
        return process.returncode, out or "", err


@pytest.fixture
def velad(tmp_path: Path) -> Iterator[Velad]:
    made = Velad(tmp_path / "velad.sock")
    yield made
    made.close()


def test_status_shows_a_line_for_each_circuit(velad: Velad) -> None:
    status, out, err = velad.control("status")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "velad 1.2.3, pid 4700, up 1 d 2 h, listening on [::]:48621",
        "dropped: 3 unknown_circuit",
        "",
        "CIRCUIT         ID   STATE        REMOTE               MTU   CPU  TX      RX     DROPPED"
        "  RESTARTS",
        "vela0           1    unmonitored  192.0.2.9            1471  1    1.2 kB  999 B  10     "
        "  2",
        "vela-long-name  255  resolving    router2.example.net  1471  -    0 B     0 B    0      "
        "  -",
        "vela-long-name: no name server answered",
    ]


def test_status_names_the_features_of_the_kernel_that_are_not_in_use(velad: Velad) -> None:
    velad.answer = STATUS | {"engine_features": ["netns_cookie", "tso", "udp_gro", "udp_segment"]}

    _, out, _ = velad.control("status")

    assert out.splitlines()[1] == "kernel features not in use: rwf_nowait, uso"


def test_status_of_a_velad_that_tells_no_features_is_shown(velad: Velad) -> None:
    velad.answer = {key: STATUS[key] for key in STATUS if key != "engine_features"}

    status, out, err = velad.control("status")

    assert (status, err) == (0, "")
    assert "features" not in out


def test_status_of_one_circuit_shows_all_of_it(velad: Velad) -> None:
    status, out, err = velad.control("status", "vela0")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "circuit       vela0, id 1, from config",
        "state         unmonitored",
        "remote        router2.example.net, 192.0.2.9 port 48621",
        "heard         no control messages",
        "mtu           1471 bytes",
        "encapsulation auto, headers elided",
        "encryption    none",
        "worker        pid 4711, CPU 1, python, 2 restarts",
        "sent          12 frames, 1.2 kB, 10 elided",
        "received      7 frames, 999 B, 6 elided",
        "fragmented    3 datagrams",
        "errors        1 frames not sent",
        "dropped       4 not_ip, 5 malformed",
    ]


CIPHER: dict[str, Any] = {
    "suite": "AES-256-GCM",
    "pattern": "IKpsk2",
    "peer_fingerprint": "SHA256:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ",
    "generation": 3,
    "age_seconds": 41.5,
    "frames_left": 268000000,
}


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        (
            {"encryption": "required", "cipher": CIPHER},
            f"required; AES-256-GCM, IKpsk2, peer {CIPHER['peer_fingerprint']}, "
            "generation 3, 41 s old, 268000000 frames left",
        ),
        (
            {"encryption": "required", "cipher": CIPHER | {"peer_fingerprint": None}},
            "required; AES-256-GCM, IKpsk2, pre-shared key alone, generation 3, 41 s old, "
            "268000000 frames left",
        ),
        (
            {"encryption": "required", "cipher": None},
            "required, and not encrypted at present: no frame passes",
        ),
    ],
)
def test_status_shows_how_frames_are_encrypted(
    velad: Velad, entry: dict[str, Any], shown: str
) -> None:
    velad.answer = STATUS | {"circuits": [CIRCUIT | entry]}

    status, out, err = velad.control("status", "vela0")

    assert (status, err) == (0, "")
    assert f"encryption    {shown}" in out.splitlines()


def test_status_of_a_velad_that_tells_nothing_of_encryption_is_shown(velad: Velad) -> None:
    of_before = {key: each for key, each in CIRCUIT.items() if key not in ("encryption", "cipher")}
    velad.answer = STATUS | {"circuits": [of_before]}

    status, out, err = velad.control("status", "vela0")

    assert (status, err) == (0, "")
    assert "encryption    none" in out.splitlines()


def test_status_without_circuits_says_so(velad: Velad) -> None:
    velad.answer = STATUS | {"circuits": [], "rx_dropped": {}, "uptime_seconds": 61.9}

    _, out, _ = velad.control("status")

    assert out == ("velad 1.2.3, pid 4700, up 1 min 1 s, listening on [::]:48621\nno circuits\n")


def test_status_json_is_what_velad_answered(velad: Velad) -> None:
    _, out, _ = velad.control("status", "--json")
    assert json.loads(out) == STATUS

    _, out, _ = velad.control("status", "--json", "vela0")
    assert json.loads(out) == STATUS | {"circuits": [CIRCUIT]}


def test_status_of_an_unknown_circuit_fails(velad: Velad) -> None:
    assert velad.control("status", "vela9") == (1, "", "velactl: there is no circuit vela9\n")


def test_error_that_velad_answers_is_shown(velad: Velad) -> None:
    velad.answer = {"error": "velad knows no command 'status'"}

    assert velad.control("status") == (1, "", "velactl: velad knows no command 'status'\n")


def test_reader_that_has_seen_enough_is_no_error(velad: Velad) -> None:
    """As in `velactl status | head -1`."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert velad.control("status", stdout=theirs.fileno()) == (0, "", "")


@pytest.mark.parametrize("argv", [(), ("stat",), ("status", "a", "b"), ("status", "--jason")])
def test_command_line_with_a_mistake_is_refused(velad: Velad, argv: tuple[str, ...]) -> None:
    status, out, err = velad.control(*argv)

    assert (status, out) == (2, "")
    assert err.startswith("usage: velactl ")


def test_velad_that_does_not_run_is_told_in_one_line(velad: Velad, tmp_path: Path) -> None:
    missing = tmp_path / "missing.sock"

    assert velad.control("--socket", str(missing), "status") == (
        1,
        "",
        f"velactl: no velad is running at {missing}\n",
    )
