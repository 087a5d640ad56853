"""velad --replace: an upgrade without an outage, on real velads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from lab.autoconfigured import Ends, asking, ends, policy
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import PATIENCE

pytestmark = [pytest.mark.alone, pytest.mark.needs_net_admin]

NAMES = ("vela0", "vela1", "vela2")
KEY = "k" * 40


def target(number: int) -> str:
    return f"172.16.{20 + number}.2"


def tables(remote: str, **settings: Any) -> str:
    """Three circuits to one remote."""
    return "".join(
        asking(
            remote,
            name=name,
            id=number + 1,
            addresses=[f"172.16.{20 + number}.1/30"],
            peer={"interface": name, "addresses": [f"{target(number)}/30"]},
            **settings,
        )
        for number, name in enumerate(NAMES)
    )


@dataclass(frozen=True)
class Kind:
    """What the circuits are like."""

    settings: dict[str, Any]
    keyed: bool = False
    encrypted: bool = False


KINDS = {
    "plain": Kind({}),
    "keyed": Kind({}, keyed=True),
    "listening port": Kind({"source_port": "listen"}),
    "encrypted": Kind({"encryption": "required"}, keyed=True, encrypted=True),
}


@contextmanager
def three(routers: TwoRouters, kind: Kind, tmp: str) -> Iterator[Ends]:
    settings, more = dict(kind.settings), {}
    if kind.keyed:
        path = os.path.join(tmp, "key")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(KEY)
        settings["key_file"] = more["key_file"] = path
    if kind.encrypted:
        more["encryption"] = "required"
    config = tables(routers.b.ipv4, **settings)
    with ends(routers, config, policy(interfaces="vela*", **more)) as both:
        for velad in both:
            for name in NAMES:
                velad.wait_for_state(name, "up")
        yield both


def link(namespace: Namespace, name: str) -> tuple[int, str, list[str]]:
    """Return index, qdisc and addresses of an interface."""
    (shown,) = json.loads(namespace.run("ip", "-j", "addr", "show", "dev", name).stdout)
    qdisc = namespace.run("tc", "qdisc", "show", "dev", name).stdout
    return shown["ifindex"], qdisc, sorted(each["local"] for each in shown["addr_info"])


class Pings:
    """Pings to the other ends of all circuits, until end()."""

    def __init__(self, namespace: Namespace, interval_s: float) -> None:
        self._interval_s = interval_s
        self._processes: list[subprocess.Popen[str]] = []
        for number in range(len(NAMES)):
            process = namespace.popen(
                *("ping", "-n", "-D", "-i", str(interval_s), "-W", "2", target(number)),
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            while "bytes from" not in process.stdout.readline():
                assert process.poll() is None
            self._processes.append(process)

    def end(self) -> tuple[list[int], float]:
        """Return how many answers are missing, for each, and the longest gap in milliseconds."""
        missing, longest = [], 0.0
        for process in self._processes:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60 * PATIENCE)
            seen = [int(each) for each in re.findall(r"icmp_seq=(\d+)", said)]
            missing.append(len(set(range(min(seen), max(seen) + 1)).difference(seen)))
            times = [float(each) for each in re.findall(r"^\[([\d.]+)\]", said, re.MULTILINE)]
            gaps = [after - before for before, after in pairwise(times)]
            longest = max(longest, 1000 * max(gaps))
        return missing, longest


@pytest.mark.parametrize("name", KINDS)
def test_replaced_twice_under_traffic_loses_nothing_and_keeps_everything(
    routers: TwoRouters, tmp_path: Any, figure: Callable[[str], None], name: str
) -> None:
    with three(routers, KINDS[name], str(tmp_path)) as both:
        run = both.a.namespace.run
        run("tc", "qdisc", "replace", "dev", "vela0", "root", "pfifo", "limit", "77")
        run("ip", "addr", "add", "10.99.0.1/24", "dev", "vela1")
        run("ip", "route", "add", "10.98.0.0/16", "via", "10.99.0.9", "dev", "vela1")
        before = [link(both.a.namespace, each) for each in NAMES]
        ports = [both.a.circuit(each)["source_port"] for each in NAMES]
        flaps = [both.b.circuit(each)["transitions"] for each in NAMES]
        for turn in range(2):
            workers = {both.a.worker_pid(each) for each in NAMES}
            pings = Pings(both.a.namespace, 0.01 if turn else 0.001)

            both.a.replace()

            for each in NAMES:
                both.a.wait_for_state(each, "up")
            assert workers.isdisjoint(both.a.worker_pid(each) for each in NAMES)
            missing, longest = pings.end()
            figure(
                f"{name}, every {10 if turn else 1} ms: {missing} answers missing, "
                f"longest gap {longest:.0f} ms"
            )
            assert missing == [0, 0, 0]

        assert [link(both.a.namespace, each) for each in NAMES] == before
        assert "10.98.0.0/16" in run("ip", "route", "show", "dev", "vela1").stdout
        assert [both.a.circuit(each)["source_port"] for each in NAMES] == ports
        # The remote has not noticed.
        assert [both.b.circuit(each)["transitions"] for each in NAMES] == flaps
        assert [both.b.circuit(each)["state"] for each in NAMES] == ["up"] * 3
