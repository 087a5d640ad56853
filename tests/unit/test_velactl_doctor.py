"""velactl doctor, run as a program, and what it sees of this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_velad import CIRCUIT, RESOLVING, STATUS, Velad

from vela.supervisor.velactl import host
from vela.supervisor.velactl.host import local_address, look

WELL: dict[str, Any] = CIRCUIT | {
    "state": "up",
    "worker": CIRCUIT["worker"] | {"engine": "native"},
    "counters": CIRCUIT["counters"] | {"tx_fragmented": 0},
}
CONFIG = {
    "daemon": {"engine": "auto", "disable_features": ["rwf_nowait", "uso"]},
    "circuits": {},
}


@pytest.fixture
def velad(tmp_path: Path) -> Iterator[Velad]:
    made = Velad(tmp_path / "velad.sock")
    made.answers["show-config"] = {"config": CONFIG, "origins": {}}
    yield made
    made.close()


def status(*circuits: dict[str, Any]) -> dict[str, Any]:
    return STATUS | {"pid": os.getpid(), "circuits": list(circuits)}


def test_doctor_that_finds_nothing_says_how_much_it_has_looked_at(velad: Velad) -> None:
    velad.answer = status(WELL, WELL | {"name": "vela1"})

    assert velad.control("doctor") == (
        0,
        "looked at this machine and 2 circuits: nothing is wrong\n",
        "",
    )
    assert [each["command"] for each in velad.requests] == ["status", "show-config"]


def test_doctor_shows_what_was_seen_and_what_to_do_and_exits_with_3(velad: Velad) -> None:
    velad.answer = status(WELL, RESOLVING)

    ended, out, err = velad.control("doctor")

    assert (ended, err) == (3, "")
    assert out.splitlines() == [
        "vela-long-name: name",
        "  seen  resolving: no name server answered",
        "  do    check the name server, or the name",
        "",
        "looked at this machine and 2 circuits: 1 finding",
    ]


def test_doctor_looks_at_the_circuits_that_fit_alone(velad: Velad) -> None:
    velad.answer = status(WELL, RESOLVING)

    assert velad.control("doctor", "vela0")[:2] == (
        0,
        "looked at this machine and 1 circuit: nothing is wrong\n",
    )
    assert velad.control("doctor", "vela-*")[0] == 3
    assert velad.control("doctor", "eth*") == (1, "", "velactl: no circuit fits eth*\n")


def test_doctor_in_json_has_the_findings(velad: Velad) -> None:
    velad.answer = status(RESOLVING)

    ended, out, _ = velad.control("doctor", "--json")

    assert ended == 3
    assert json.loads(out) == {
        "healthy": False,
        "findings": [
            {
                "circuit": "vela-long-name",
                "check": "name",
                "seen": "resolving: no name server answered",
                "advice": "check the name server, or the name",
            }
        ],
    }
    velad.answer = status(WELL)
    ended, out, _ = velad.control("doctor", "--json")
    assert (ended, json.loads(out)) == (0, {"healthy": True, "findings": []})


def test_doctor_reads_the_configuration_in_effect(velad: Velad) -> None:
    """The Python engine is only wrong where it was not asked for."""
    slow = WELL | {"worker": CIRCUIT["worker"]}
    velad.answer = status(slow)
    assert velad.control("doctor")[0] == 3

    asked_for = CONFIG | {"daemon": CONFIG["daemon"] | {"engine": "python"}}
    velad.answers["show-config"] = {"config": asked_for, "origins": {}}

    assert velad.control("doctor")[0] == 0


def test_host_of_this_machine_is_what_the_kernel_says() -> None:
    before = time.time()

    seen = look(os.getpid())

    assert before <= seen.clock <= time.time()
    assert seen.installed_at == Path(host.__file__).stat().st_mtime
    assert not seen.is_elsewhere
    assert str(seen.rmem_max) == Path("/proc/sys/net/core/rmem_max").read_text().strip()
    assert seen.strict_interfaces <= {name for _, name in socket.if_nameindex()}
    for name in seen.strict_interfaces:
        # Linux, Documentation/networking/ip-sysctl.rst: the larger of both counts.
        values = {
            Path(f"/proc/sys/net/ipv4/conf/{each}/rp_filter").read_text().strip()
            for each in ("all", name)
        }
        assert "1" in values
        assert "2" not in values


@pytest.mark.skipif(shutil.which("nstat") is None, reason="nstat is not installed")
def test_drops_of_rp_filter_are_those_that_nstat_shows() -> None:
    def shown() -> int:
        command = ["nstat", "-asz", "TcpExtIPReversePathFilter"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.splitlines()[-1].split()[1])

    before = shown()
    seen = look(os.getpid()).reverse_path_drops

    assert before <= seen <= shown()


def test_process_that_is_gone_is_taken_for_being_here() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    assert not look(gone.pid).is_elsewhere


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ("127.0.0.9", "127.0.0.1"),
        # Nobody sends to all hosts of a network without SO_BROADCAST: socket(7).
        ("255.255.255.255", None),
    ],
)
def test_local_address_is_the_one_that_this_host_sends_from(remote: str, local: str | None) -> None:
    assert local_address(remote, 48621) == local


def test_local_address_of_ipv6_is_of_that_family() -> None:
    assert local_address("::1", 48621) in ("::1", None)  # None: IPv6 is off
