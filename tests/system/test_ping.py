"""velactl ping: the other end's worker answers on the path that frames take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import circuit, policy
from lab.circuit import NAME, static_circuit
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin


def encrypted(folder: Path) -> dict[str, Any]:
    key = folder / "key"
    key.write_text("a key of more than thirty-two bytes, as it should be")
    key.chmod(0o600)
    return {"key_file": str(key), "encryption": "required"}


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["clear", "encrypted"])
def test_ping_counts_answers_and_says_how_soon_they_came(
    routers: TwoRouters, tmp_path: Path, is_encrypted: bool
) -> None:
    settings = encrypted(tmp_path) if is_encrypted else {}
    with circuit(routers, policy_b=policy(**settings), **settings) as ends:
        mtu = ends.a.circuit(NAME)["mtu"]
        arguments = ("--count", "10", "--interval", "0.05", "--size", str(mtu), "--json")
        shown = json.loads(ends.a.control("ping", NAME, *arguments).stdout)

        assert (shown["sent"], shown["answered"], shown["lost"]) == (10, 10, 0)
        assert shown["loss_percent"] == 0
        times = shown["rtt_ms"]
        assert 0 < times["min"] <= times["p50"] <= times["p99"] <= times["max"] < 2000
        assert sorted(shown["answers_ms"])[0] == times["min"]

        refused = ends.a.control("ping", NAME, "--size", str(mtu + 1), check=False)
        assert refused.returncode == 1
        assert f"{mtu + 1} bytes do not fit a datagram; {mtu} do" in refused.stderr


def test_ping_without_answers_says_so_and_exits_3(routers: TwoRouters) -> None:
    with circuit(routers, keepalive=60.0) as ends:
        # Frames, and not control messages, which begin with 0.
        routers.b.namespace.run(
            *("nft", "-f", "-"),
            stdin="table ip f {\n chain c {\n  type filter hook input priority 0;\n"
            "  udp dport 48621 udp length > 8 @ih,0,8 != 0 drop\n }\n}\n",
        )
        pinged = ends.a.control("ping", NAME, "--count", "2", "--interval", "0.1", check=False)

        assert pinged.returncode == 3
        assert pinged.stdout.splitlines() == [
            f"{NAME}: 1: no answer",
            f"{NAME}: 2: no answer",
            "2 sent, 0 answered, 100 % lost",
        ]


def test_ping_on_a_static_circuit_is_answered(routers: TwoRouters) -> None:
    with static_circuit(routers) as ends:
        pinged = ends.a.velad.control("ping", NAME, "--count", "3", "--interval", "0.1")

        assert "3 sent, 3 answered, 0 % lost" in pinged.stdout


def test_ping_toward_a_remote_that_takes_only_ip_packets_is_refused(routers: TwoRouters) -> None:
    with static_circuit(routers, encapsulation="ip") as ends:
        assert ends.a.velad.circuit(NAME)["delay_ms"]["p50"] is None
        assert ends.b.counters["rx_dropped"]["reserved"] == 0

        pinged = ends.a.velad.control("ping", NAME, check=False)

        assert pinged.returncode == 1
        assert "a remote that takes only IP packets does not answer" in pinged.stderr
