"""A remote that does not answer: what was sent, what came back, and who knows of a wrong key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import asking, ends, policy
from lab.circuit import NAME
from lab.daemon import Velad, entry_point
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin


def doctor(velad: Velad) -> list[dict[str, Any]]:
    """Return what it finds, run where velad runs."""
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    line = (*command, "--socket", str(velad.control_socket), "doctor", "--json")
    done = velad.namespace.run(*line, env=env, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return found


def codes(velad: Velad) -> list[str]:
    return [each["code"] for each in velad.circuit(NAME)["reasons"]]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_icmp_error_and_who_sent_it_is_shown(routers: TwoRouters, family: str) -> None:
    remote = getattr(routers.b, family)
    with Velad(routers.a.namespace, asking(remote)) as velad:
        eventually(lambda: codes(velad) == ["no_answer", "icmp_error"], 20, "an ICMP error")

        entry = velad.circuit(NAME)
        assert entry["reason"].endswith(f"; ICMP port unreachable came back from {remote}")
        assert entry["reason_code"] == "no_answer"
        sent = entry["asking"]
        assert sent["requests"] >= 3
        assert sent["last_seconds"] <= sent["since_seconds"] < 20
        assert sent["undelivered"]["source"] == remote
        (details,) = (
            line
            for line in velad.control("status", NAME).stdout.splitlines()
            if line.startswith("asked")
        )
        assert "requests to" in details
        assert f"ICMP port unreachable came back from {remote}" in details
        (one,) = doctor(velad)
        assert "it is not: its `from`, its key (ICMP port unreachable came back)" in one["seen"]


def test_request_that_the_kernel_does_not_send_is_shown(routers: TwoRouters) -> None:
    chain = "type filter hook output priority 0\n udp dport 48621 drop"
    rules = f"table inet f {{\n chain c {{\n {chain}\n }}\n}}\n"
    routers.a.namespace.run("nft", "-f", "-", stdin=rules)
    with Velad(routers.a.namespace, asking(routers.b.ipv4)) as velad:
        eventually(lambda: codes(velad) == ["no_answer", "send_refused"], 20, "a refusal")

        (one,) = doctor(velad)
        assert "this machine did not send: Operation not permitted" in one["seen"]
        assert "does velad run" not in one["advice"]
        routers.a.namespace.run("nft", "flush", "ruleset")


def test_wrong_key_is_named_by_the_end_that_knows_and_the_other_excludes_the_rest(
    routers: TwoRouters, tmp_path: Path
) -> None:
    keys = []
    for number in range(2):
        path = tmp_path / f"key{number}"
        path.write_text(f"{number}" * 64 + "\n")
        path.chmod(0o600)
        keys.append(str(path))
    right = asking(routers.b.ipv4, key_file=keys[0])
    wrong = asking(
        *(routers.b.ipv4,),
        name="vela1",
        id=2,
        addresses=["172.16.17.1/30"],
        peer={"addresses": ["172.16.17.2/30"]},
        key_file=keys[1],
    )
    with ends(routers, right + wrong, policy(key_file=keys[0])) as both:
        both.a.wait_for_state(NAME, "up")
        found = eventually(
            lambda: [each for each in doctor(both.a) if "is up" in each["seen"]], 20, "a finding"
        )

        (machine,) = both.b.status()["wrong_keys"]
        assert machine["address"] == routers.a.ipv4
        assert machine["messages"] >= 3
        assert f"wrong key from {routers.a.ipv4}: " in both.b.control("status").stdout
        lines = [line for line in both.b.log().splitlines() if "] wrong_key " in line]
        assert len(lines) == 1
        assert f"by={routers.a.ipv4}:48621" in lines[0]
        (on_b,) = doctor(both.b)
        assert (on_b["circuit"], on_b["check"]) == (None, "wrong_key")
        # The other end knows less: it says which causes are left.
        (on_a,) = found
        assert (on_a["circuit"], on_a["check"]) == ("vela1", "wrong_key")
        assert "no velad there, a firewall (vela0 to the same machine is up)" in on_a["seen"]
        assert "Is the key the same" in on_a["advice"]
        assert "Does a firewall" not in on_a["advice"]
