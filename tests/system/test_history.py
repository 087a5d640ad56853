"""velactl history, on a velad whose minutes are short."""

from __future__ import annotations

import json

import pytest

from lab.autoconfigured import asking, policy
from lab.circuit import NAME
from lab.daemon import Velad
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

SHORT = "from vela.supervisor.circuit import history\nhistory.MINUTE_S = 2.0\n"


def test_history_shows_when_the_circuit_was_up_and_what_it_carried(routers: TwoRouters) -> None:
    with (
        Velad(routers.b.namespace, policy()) as b,
        Velad(routers.a.namespace, asking(routers.b.ipv4, keepalive=1), before=SHORT) as a,
    ):
        a.wait_for_state(NAME, "up")
        b.wait_for_state(NAME, "up")
        assert b.control("history", NAME).stdout == f"{NAME}: no minute is over yet\n"
        assert ping(routers.a.namespace, "172.16.16.2", count=5).received == 5

        def minutes() -> list[dict[str, float]]:
            found: list[dict[str, float]] = json.loads(a.control("history", NAME, "--json").stdout)[
                "minutes"
            ]
            return found

        carried = eventually(
            lambda: [each for each in minutes() if each["tx_bps"] and each["answered"]], 20, "pings"
        )
        assert all(0 < each["p50_ms"] <= each["p99_ms"] for each in carried)
        assert all(each["jitter_ms"] > 0 for each in carried)
        eventually(
            lambda: [each for each in minutes() if each["tx_loss_percent"] == 0], 20, "loss, none"
        )
        b.stop()
        a.wait_for_state(NAME, "down", "connecting")
        eventually(lambda: minutes()[-1]["up_percent"] == 0, 20, "a minute without the remote")

        lines = a.control("history", NAME, "--minutes", "2").stdout.splitlines()
        missing = a.control("history", "vela7", check=False)

    assert lines[0].split() == (
        ["MINUTE", "UP", "TX", "RX", "LOST", "OUT", "BACK", "P50", "P99", "JITTER"]
    )
    assert len(lines) == 3
    assert " 0%" in lines[-1]
    assert missing.returncode == 1
    assert "there is no circuit vela7" in missing.stderr
