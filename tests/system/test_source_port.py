"""A source port that a reload changes: no frame is lost, also while the other end is busy."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sealed_circuit import psk_file

from lab.autoconfigured import Settings, asking, ends, policy, wait_until_up
from lab.circuit import ADDRESSES_B, NAME
from lab.datagrams import VELA_PORT
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

FAR = ADDRESSES_B[0].partition("/")[0]
CHOSEN = 50123


def begin_pings(namespace: Namespace, count: int) -> subprocess.Popen[str]:
    """Return when the first one is answered."""
    process = namespace.popen(
        *("ping", "-n", "-i", "0.005", "-c", str(count), "-W", "10", FAR), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while "bytes from" not in process.stdout.readline():
        assert process.poll() is None
    return process


def answered(process: subprocess.Popen[str]) -> int:
    said, _ = process.communicate(timeout=120)
    found = re.search(r"(\d+) received", said)
    assert found is not None, said
    return int(found[1])


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize(
    ("before", "after"), [("auto", "listen"), ("listen", "auto"), ("auto", CHOSEN)]
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "encrypted"])
def test_change_of_the_source_port_loses_no_frame_while_the_other_end_is_busy(
    routers: TwoRouters, tmp_path: Path, engine: str, before: Any, after: Any, encrypted: bool
) -> None:
    """Its supervisor stands still for a while, and its worker does not."""
    keys: Settings = {}
    if encrypted:
        keys = {"encryption": "required", "key_file": str(psk_file(tmp_path))}
    head = f'[daemon]\nengine = "{engine}"\n'

    def config(port: Any) -> str:
        return head + asking(routers.b.ipv4, source_port=port, **keys)

    with ends(routers, config(before), head + policy(**keys)) as both:
        wait_until_up(both)
        port = both.a.circuit(NAME)["source_port"]
        assert (port == VELA_PORT) == (before == "listen")
        worker = both.a.worker_pid(NAME)
        pings = begin_pings(routers.a.namespace, 400)
        os.kill(both.b.pid, signal.SIGSTOP)
        try:
            both.a.configure(config(after))
            both.a.control("reload")
            # From the port that the other end knows.
            assert ping(routers.a.namespace, FAR, count=20, interval_s=0.02).received == 20
            assert both.a.circuit(NAME)["source_port"] == port
        finally:
            os.kill(both.b.pid, signal.SIGCONT)
        both.a.wait_for(lambda status: status["circuits"][0]["source_port"] != port, 10, "another")
        changed = both.a.circuit(NAME)["source_port"]
        assert after in ("auto", changed) or changed == VELA_PORT
        both.a.wait_for(lambda status: status["circuits"][0]["worker"]["pid"] != worker, 10, "it")

        assert answered(pings) == 400
        assert ping(routers.a.namespace, FAR, count=20, interval_s=0.02).received == 20
        assert both.b.status()["rx_dropped"]["wrong_port"] == 0
        for velad in both:
            entry = velad.circuit(NAME)
            assert (entry["state"], entry["transitions"]) == ("up", 1)
