"""What velactl doctor finds in facts that no test can bring about on a running machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vela.reasons import Cause, Reason
from vela.supervisor.velactl.diagnosis import Finding, diagnose
from vela.supervisor.velactl.doctor import lines
from vela.supervisor.velactl.host import Host

HOST = Host(
    clock=1_800_000_000.0,
    installed_at=1_700_000_000.0,
    is_elsewhere=False,
    strict_interfaces=frozenset(),
    reverse_path_drops=0,
    rmem_max=212992,
)
# Of the status, what a diagnosis looks at.
CIRCUIT: dict[str, Any] = {
    "name": "vela0",
    "state": "up",
    "reason": "",
    "reasons": [],
    "origin": "config",
    "remote": "router2.example.net",
    "remote_address": "192.0.2.9",
    "remote_port": 48621,
    "family": "ipv4",
    "path_mtu": 1500,
    "worker": {"engine": "native"},
    "counters": {"tx_fragmented": 0, "tx_dropped": {"too_large": 0}},
}
STATUS: dict[str, Any] = {
    "pid": 4711,
    "listen": ["[::]:7000"],
    "unused_features": ["rwf_nowait", "uso"],
    "receive_buffer": {"wanted_bytes": 8388608, "granted_bytes": 8388608},
}
DAEMON = {"engine": "auto", "disable_features": ["rwf_nowait", "uso"]}


def found(
    *,
    host: Host = HOST,
    local: str = "192.0.2.1",
    table: dict[str, Any] | None = None,
    **circuit: Any,
) -> list[Finding]:
    status = STATUS | {"circuits": [CIRCUIT | circuit]}
    config = {"daemon": DAEMON, "circuits": {"vela0": table or {}}}
    return list(diagnose(status, config, host, lambda *_: local))


def said(*reasons: Reason) -> dict[str, Any]:
    """Return the keys of a circuit that has these reasons, in words that no velad uses."""
    shown = [{"code": each.code, "text": f"words {n}"} for n, each in enumerate(reasons)]
    return {"reason": "; ".join(each["text"] for each in shown), "reasons": shown}


@pytest.mark.parametrize(
    ("cause", "check"),
    [
        ("NO_ANSWER", "firewall"),
        ("FRAMES_BLOCKED", "firewall"),
        ("WRONG_KEY", "wrong_key"),
        ("WRONG_HANDSHAKE", "wrong_key"),
        ("ROUTE_LOOP", "route"),
        ("ROUTE_CIRCLE", "route"),
        ("DUPLICATE_MAC", "duplicate_mac"),
        ("REFUSED_MAC", "duplicate_mac"),
        ("BRIDGE_MISSING", "missing_bridge"),
        ("NAME_UNRESOLVED", "name"),
        ("INTERFACE_MTU", "interface"),
        ("HOOK_FAILED", "hook"),
        ("RATE_NOT_LIMITED", "rate"),
        ("KEEPALIVES_MISSED", "down"),
    ],
)
def test_reason_is_found_by_its_code_and_not_by_its_words(cause: str, check: str) -> None:
    (one,) = found(state="down", **said(Reason("", Cause[cause].code)))

    assert (one.check, one.seen) == (check, "down: words 0")


def test_each_reason_of_a_circuit_that_is_up_is_found_unless_all_is_well() -> None:
    codes = (Cause.FROM_LISTENING_PORT, Cause.BRIDGE_MISSING, Cause.HOOK_FAILED)

    findings = found(**said(*(Reason("", each.code) for each in codes)))

    assert [(each.check, each.seen) for each in findings] == [
        ("missing_bridge", "up: words 1"),
        ("hook", "up: words 2"),
    ]


@pytest.mark.parametrize(
    ("remote_port", "ports"),
    [(7000, "drop UDP 7000 ("), (48621, "drop UDP 7000 (here) or 48621 (there) (")],
)
def test_advice_about_firewalls_names_the_ports_in_use(remote_port: int, ports: str) -> None:
    reason = Reason("", Cause.NO_ANSWER.code)

    (one,) = found(state="connecting", remote_port=remote_port, **said(reason))

    assert ports in one.advice


def test_circuit_that_nobody_calls_is_found_with_where_to_look() -> None:
    (finding,) = found(
        state="connecting",
        remote="any",
        remote_address=None,
        remote_port=None,
        family=None,
        **said(Cause.AWAITING_CALL.say()),
    )

    assert (finding.circuit, finding.check) == ("vela0", "awaiting_call")
    assert "let UDP 7000 in here" in finding.advice
    assert finding.seen.startswith("connecting: ")


def test_diagnosis_of_a_well_circuit_is_empty() -> None:
    assert found() == []


def test_clock_before_the_installation_is_found() -> None:
    (one,) = found(host=replace(HOST, clock=0.0))

    assert (one.circuit, one.check) == (None, "clock")


def test_python_engine_is_found_unless_it_was_asked_for() -> None:
    worker = {"engine": "python"}

    (one,) = found(worker=worker)

    assert one.check == "engine"
    config = {"daemon": DAEMON | {"engine": "python"}, "circuits": {}}
    status = STATUS | {"circuits": [CIRCUIT | {"worker": worker}]}
    assert list(diagnose(status, config, HOST, lambda *_: None)) == []


@pytest.mark.parametrize(
    ("local", "remote", "circuit", "table", "checks"),
    [
        ("10.0.0.2", "1.1.1.1", {"state": "connecting", "origin": "peer"}, {}, ["firewall", "nat"]),
        ("10.0.0.2", "1.1.1.1", {"state": "up", "origin": "peer"}, {}, []),
        ("10.0.0.2", "1.1.1.1", {"state": "up"}, {"keepalive": 30.0}, ["nat"]),
        ("10.0.0.2", "1.1.1.1", {"state": "up"}, {"keepalive": 29.0}, []),
        ("10.0.0.2", "10.0.0.3", {"state": "up"}, {"keepalive": 60.0}, []),
        ("1.0.0.1", "1.1.1.1", {"state": "up"}, {"keepalive": 60.0}, []),
    ],
)
def test_nat_is_found_where_it_can_harm(
    local: str,
    remote: str,
    circuit: dict[str, Any],
    table: dict[str, Any],
    checks: list[str],
) -> None:
    seen = found(local=local, remote_address=remote, table=table, **circuit)

    assert [each.check for each in seen] == checks


@pytest.mark.parametrize(
    ("state", "strict", "drops", "checks"),
    [
        ("up", {"vela0"}, 1, ["rp_filter"]),
        ("up", {"vela0"}, 0, []),
        ("up", {"eth0"}, 1, []),
        ("down", {"eth0"}, 1, ["down", "rp_filter"]),
        ("down", set(), 1, ["down"]),
    ],
)
def test_rp_filter_is_found_where_it_drops_what_a_circuit_needs(
    state: str, strict: set[str], drops: int, checks: list[str]
) -> None:
    host = replace(HOST, strict_interfaces=frozenset(strict), reverse_path_drops=drops)

    assert [each.check for each in found(host=host, state=state)] == checks


@pytest.mark.parametrize(
    ("state", "check"),
    [
        ("resolving", "name"),
        ("connecting", "firewall"),
        ("down", "down"),
        ("rejected", "rejected"),
        ("failed", "failed"),
    ],
)
def test_circuit_in_trouble_is_always_found(state: str, check: str) -> None:
    assert [each.check for each in found(state=state, reason="for another reason")] == [check]
    assert found(state="disabled", reason="taken down") == []


ASKING: dict[str, Any] = {
    "remotes": ["192.0.2.9:48621"],
    "requests": 12,
    "since_seconds": 35.2,
    "last_seconds": 0.84,
    "undelivered": None,
}
SILENT = {"state": "connecting", "remote_address": None, "asking": ASKING} | said(
    Reason("", Cause.NO_ANSWER.code)
)
OTHER = CIRCUIT | {"name": "vela1"}
VELAD, FIREWALL, LISTED, KEY = "does velad run", "Does a firewall", "Does [autoconf", "Is the key"


def silence(
    undelivered: dict[str, Any] | None = None,
    others: tuple[dict[str, Any], ...] = (),
    keys: dict[str, str] | None = None,
) -> Finding:
    """Return what is found of a remote that does not answer; keys: key files by circuit."""
    silent = CIRCUIT | SILENT | {"asking": ASKING | {"undelivered": undelivered}}
    status = STATUS | {"circuits": [silent, *others]}
    tables = {name: {"key_file": key} for name, key in (keys or {}).items()}
    config = {"daemon": DAEMON, "circuits": tables}
    (one,) = diagnose(status, config, HOST, lambda *_: None, {"vela0"})
    return one


def asked_for(finding: Finding) -> list[str]:
    return [each for each in (VELAD, FIREWALL, LISTED, KEY) if each in finding.advice]


def test_silence_says_what_was_sent_and_that_nothing_came_back() -> None:
    one = silence()

    assert one.check == "firewall"
    assert "12 requests to 192.0.2.9:48621 in 35 s, the last 0.8 s ago; nothing came" in one.seen
    assert "it is not" not in one.seen
    assert asked_for(one) == [VELAD, FIREWALL, LISTED, KEY]


@pytest.mark.parametrize(
    ("what", "source", "left"),
    [
        ("ICMP port unreachable", "192.0.2.9", [VELAD, FIREWALL]),
        ("ICMP host unreachable", "192.0.2.1", [VELAD]),
        ("ICMP address unreachable", "2001:db8::1", [VELAD]),
        ("ICMP administratively prohibited", "192.0.2.1", [FIREWALL]),
        ("Operation not permitted", None, [FIREWALL]),
    ],
)
def test_what_came_back_excludes_causes(what: str, source: str | None, left: list[str]) -> None:
    one = silence({"what": what, "source": source, "last_seconds": 1.0})

    assert asked_for(one) == left
    assert what in one.seen
    assert "it is not: " in one.seen
    assert one.check == "firewall"


@pytest.mark.parametrize(
    ("other", "keys", "left", "check"),
    [
        ({}, {"vela0": "/a", "vela1": "/b"}, [LISTED, KEY], "wrong_key"),
        ({}, {"vela0": "/a", "vela1": "/a"}, [LISTED], "firewall"),
        ({"state": "down"}, {}, [VELAD, FIREWALL, LISTED, KEY], "firewall"),
        ({"remote_address": "192.0.2.8"}, {}, [VELAD, FIREWALL, LISTED, KEY], "firewall"),
        ({"remote_port": 7000}, {}, [VELAD, FIREWALL, LISTED, KEY], "firewall"),
    ],
)
def test_another_circuit_to_the_same_machine_excludes_causes(
    other: dict[str, Any], keys: dict[str, str], left: list[str], check: str
) -> None:
    one = silence(others=(OTHER | other,), keys=keys)

    assert asked_for(one) == left
    assert ("vela1 to the same machine is up" in one.seen) == (len(left) < 4)
    assert one.check == check


def test_machine_that_asks_with_a_wrong_key_is_found() -> None:
    machine = {
        "address": "192.0.2.7",
        "messages": 3,
        "last_seconds": 4.2,
        "error": "the tag is wrong: not the same key",
    }
    status = STATUS | {"circuits": [], "wrong_keys": [machine]}

    (one,) = diagnose(status, {"daemon": DAEMON, "circuits": {}}, HOST, lambda *_: None)

    assert (one.circuit, one.check) == (None, "wrong_key")
    assert one.seen.startswith("wrong key from 192.0.2.7: 3 messages, the last 4 s ago; the tag")


@pytest.mark.parametrize(
    ("state", "origin", "reasons", "named"),
    [
        ("down", "peer", (), True),
        ("connecting", "peer", (Cause.NO_ANSWER,), True),
        ("down", "config", (), False),
        ("up", "peer", (Cause.BRIDGE_MISSING,), False),
    ],
)
def test_command_that_removes_a_circuit_of_a_machine_that_is_gone_is_named(
    state: str, origin: str, reasons: tuple[Cause, ...], named: bool
) -> None:
    shown = said(*(Reason("", each.code) for each in reasons))

    (one,) = found(state=state, origin=origin, **shown)

    assert one.advice.endswith("velactl delete vela0") == named


@pytest.mark.parametrize("width", [80, 160])
def test_screen_fits_and_has_all_that_was_found(width: int) -> None:
    findings = found(state="connecting", **said(Reason("", Cause.NO_ANSWER.code)))

    screen = list(lines(findings, 1, width))

    assert max(len(line) for line in screen) <= width
    assert screen[0] == "vela0: firewall"
    assert " ".join(" ".join(screen).split()).count(findings[0].advice) == 1
    assert screen[-1] == "looked at this machine and 1 circuit: 1 finding"
