"""velactl, run as a program against a real control socket that answers what the test says."""

from __future__ import annotations

import grp
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_velad import CIRCUIT, RESOLVING, STATUS, Velad

from vela.errors import VelaError
from vela.supervisor.velactl.client import ask


@pytest.fixture
def velad(tmp_path: Path) -> Iterator[Velad]:
    made = Velad(tmp_path / "velad.sock")
    yield made
    made.close()


def test_status_shows_a_line_for_each_circuit_in_80_columns_trouble_first(velad: Velad) -> None:
    status, out, err = velad.control("status")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "velad 1.2.3, pid 4700, up 1 d 2 h, listening on [::]:48621",
        "kernel features not in use: rwf_nowait, uso",
        "dropped: 3 unknown_circuit",
        "2 circuits: 1 unmonitored, 1 resolving",
        "",
        "CIRCUIT         ID STATE       FOR FLAPS  TX  RX RTT REMOTE, OR WHY NOT",
        "vela-long-name 255 resolving    1m     0 no name server answered",
        "vela0            1 unmonitored  1d     1 12M 950   - 192.0.2.9",
        "",
        "vela-long-name: no name server answered",
    ]


def test_status_in_a_wide_terminal_shows_more(velad: Velad) -> None:
    _, out, _ = velad.control("status", env={"COLUMNS": "160"})

    assert out.splitlines()[5:-2] == [
        "CIRCUIT         ID STATE       FOR FLAPS  TX  RX RTT  MTU CPU DROPS RESTARTS "
        "REMOTE, OR WHY NOT",
        "vela-long-name 255 resolving    1m     0 no name server answered",
        "vela0            1 unmonitored  1d     1 12M 950   - 1471   1    10        2 192.0.2.9",
    ]


LONG = "2001:db8:1234:5678:9abc:def0:1234:5678"


@pytest.mark.parametrize("count", [3, 255])
def test_status_never_exceeds_80_columns(velad: Velad, count: int) -> None:
    circuits = [
        (CIRCUIT if number % 2 else RESOLVING)
        | {"name": f"longest-name{number:03}", "id": 255, "remote_address": LONG}
        | ({"reason": f"no way to {LONG}: Network is unreachable"} if number % 3 else {})
        for number in range(count)
    ]
    velad.answer = STATUS | {"circuits": circuits}

    for argv in (("status",), ("status", "--down"), (), ("top", "--count", "1")):
        _, out, _ = velad.control(*argv)
        lines = out.splitlines()
        # Reasons stand below the table in full, for twenty circuits at most.
        whole = [
            line for line in lines if argv[:1] == ("status",) and f": no way to {LONG}" in line
        ]
        assert len(whole) <= 20
        assert max(len(line) for line in lines if line not in whole) <= 80
        assert len(lines) <= count + 6 + 21


def test_status_with_measured_loss_shows_that_of_the_worse_direction(velad: Velad) -> None:
    lossy = {
        "loss": {"tx_percent": 1.04, "rx_percent": 0.2, "round_trip_percent": 1.24},
        "rtt_ms": 12.345,
    }
    velad.answer = STATUS | {"circuits": [CIRCUIT | lossy, CIRCUIT | {"name": "vela1"}]}

    _, out, _ = velad.control("status")

    assert out.splitlines()[-3:] == [
        "CIRCUIT ID STATE       FOR FLAPS  TX  RX  RTT LOSS REMOTE, OR WHY NOT",
        "vela0    1 unmonitored  1d     1 12M 950 12.3 1.0% 192.0.2.9",
        "vela1    1 unmonitored  1d     1 12M 950    -    - 192.0.2.9",
    ]


@pytest.mark.parametrize(
    ("loss", "in_table", "in_full"),
    [
        ((1.04, 0.2, 1.24), "1.0%", "sent 1.04 %, received 0.20 %; round trips 1.24 %"),
        ((0.0, 0.0, 0.0), "0.0%", "sent 0.00 %, received 0.00 %; round trips 0.00 %"),
        (
            (None, None, 12.5),
            "12.5%",
            "round trips 12.50 %; the other end does not say which way",
        ),
        # All that left got lost, and of the way back nothing is known.
        ((100.0, None, 100.0), "100.0%", "sent 100.00 %, received unknown; round trips 100.00 %"),
        ((None, None, None), None, None),
    ],
)
def test_loss_is_shown_as_far_as_it_is_known(
    velad: Velad,
    loss: tuple[float | None, ...],
    in_table: str | None,
    in_full: str | None,
) -> None:
    keys = ("tx_percent", "rx_percent", "round_trip_percent")
    circuit = CIRCUIT | {"loss": dict(zip(keys, loss, strict=True))}
    velad.answer = STATUS | {"circuits": [circuit]}

    _, table, _ = velad.control("status")
    _, full, _ = velad.control("status", CIRCUIT["name"])

    assert (" LOSS " in table, f" {in_table} " in table) == (in_table is not None,) * 2
    shown = [line.split(maxsplit=1)[1] for line in full.splitlines() if line.startswith("loss ")]
    assert shown == ([] if in_full is None else [in_full])


def test_history_shows_loss_by_direction_and_jitter(velad: Velad) -> None:
    minute = {
        "time": 1_000_000,
        "up_percent": 100.0,
        "tx_bps": 12_000_000,
        "rx_bps": 950,
        "asked": 60,
        "answered": 51,
        "tx_loss_percent": 10.0,
        "rx_loss_percent": 5.56,
        "p50_ms": 20.1,
        "p99_ms": 24.9,
        "jitter_ms": 3.3,
    }
    unknown = {"tx_loss_percent": None, "rx_loss_percent": None, "answered": 60}
    idle = unknown | {"asked": 0, "answered": 0} | dict.fromkeys(("p50_ms", "p99_ms", "jitter_ms"))
    # A velad from before an update says less.
    older = {
        key: each for key, each in minute.items() if key in {*minute} - {*unknown} | {"answered"}
    }
    velad.answer = {"minutes": [minute, minute | unknown, minute | idle, older]}

    _, out, _ = velad.control("history", "vela0")

    shown = [line.split()[2:] for line in out.splitlines()[1:]]
    assert out.split()[4:10] == ["LOST", "OUT", "BACK", "P50", "P99", "JITTER"]
    assert [each[3:] for each in shown] == [
        ["15%", "10%", "5.56%", "20.1", "24.9", "3.30"],
        ["0%", "-", "-", "20.1", "24.9", "3.30"],
        ["-", "-", "-", "-", "-", "-"],
        ["15%", "-", "-", "20.1", "24.9", "3.30"],
    ]
    assert max(map(len, out.splitlines())) <= 80


def named(*states: str) -> dict[str, Any]:
    """Return a status with circuits vela0, vela1 ... in these states."""
    circuits = [CIRCUIT | {"name": f"vela{n}", "state": each} for n, each in enumerate(states)]
    return STATUS | {"circuits": circuits}


def test_status_of_patterns_and_names_shows_those_alone_in_natural_order(velad: Velad) -> None:
    velad.answer = named(*["up"] * 12)

    _, out, _ = velad.control("status", "vela1*", "vela3")

    shown = [line.split()[0] for line in out.splitlines()[6:]]
    assert shown == ["vela1", "vela3", "vela10", "vela11"]


def test_status_of_those_down_leaves_out_what_is_up_or_was_taken_down(velad: Velad) -> None:
    velad.answer = named("up", "disabled", "unmonitored", "down", "connecting", "failed")

    _, out, _ = velad.control("status", "--down", "--json")

    found = [each["state"] for each in json.loads(out)["circuits"]]
    assert found == ["down", "connecting", "failed"]


def test_velactl_alone_says_that_all_is_well(velad: Velad) -> None:
    velad.answer = named("up", "unmonitored", "disabled")

    assert velad.control() == (
        0,
        "velad 1.2.3, pid 4700, up 1 d 2 h: 3 circuits: 1 disabled, 1 unmonitored, 1 up\n",
        "",
    )


def test_velactl_alone_says_what_is_not_up_and_exits_with_3(velad: Velad) -> None:
    status, out, err = velad.control()

    assert (status, err) == (3, "")
    assert out.splitlines()[1:] == ["vela-long-name: resolving for 1m: no name server answered"]

    velad.answer = named(*["down"] * 12)
    status, out, _ = velad.control()

    assert status == 3
    assert len(out.splitlines()) == 12
    assert out.splitlines()[-1] == "and 2 more: velactl status --down"


def test_velactl_alone_has_json_too(velad: Velad) -> None:
    status, out, _ = velad.control("--json")

    assert status == 3
    assert json.loads(out) == {
        "healthy": False,
        "circuits": 2,
        "states": {"unmonitored": 1, "resolving": 1},
        "trouble": [
            {
                "name": "vela-long-name",
                "state": "resolving",
                "reason": "no name server answered",
                "reason_code": "name_unresolved",
                "since_seconds": 61.0,
            }
        ],
    }


def test_status_of_one_circuit_shows_all_of_it(velad: Velad) -> None:
    status, out, err = velad.control("status", "vela0")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "circuit       vela0, id 1, from config",
        "state         unmonitored",
        "since         1 d 2 h; up or down 1 time in the last hour",
        "remote        router2.example.net, 192.0.2.9 port 48621",
        "heard         no control messages",
        "mtu           1471 bytes; the path's is 1500",
        "encapsulation auto, headers elided",
        "encryption    none",
        "worker        pid 4711, CPU 1, python, 2 restarts, 12.5 % of a CPU, 21.0 MB",
        "rates         sent 12Mbit/s, 1.0k frames/s; received 950bit/s, 0 frames/s",
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
    velad.answer = STATUS | {
        "circuits": [],
        "rx_dropped": {},
        "uptime_seconds": 61.9,
        "unused_features": [],
    }

    _, out, _ = velad.control("status")

    assert out == ("velad 1.2.3, pid 4700, up 1 min 1 s, listening on [::]:48621\nno circuits\n")


def test_status_json_is_what_velad_answered(velad: Velad) -> None:
    _, out, _ = velad.control("status", "--json")
    assert json.loads(out) == STATUS

    _, out, _ = velad.control("status", "--json", "vela0")
    assert json.loads(out) == STATUS | {"circuits": [CIRCUIT]}


@pytest.mark.parametrize("argv", [("--json", "status"), ("status", "vela0", "--json")])
def test_json_may_stand_anywhere(velad: Velad, argv: tuple[str, ...]) -> None:
    status, out, _ = velad.control(*argv)

    assert status == 0
    assert json.loads(out)["circuits"][0] == CIRCUIT


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("vela00", "; did you mean vela0?"),
        ("VELA0", "; did you mean vela0?"),
        ("vela", "; did you mean vela0?"),
        ("wholly-other", ""),
    ],
)
def test_status_of_an_unknown_circuit_suggests_a_near_one(
    velad: Velad, name: str, right: str
) -> None:
    velad.answer = named("up", "up")

    expected = f"velactl: there is no circuit {name}{right}\n"
    assert velad.control("status", name) == (1, "", expected)


def test_status_of_a_pattern_that_fits_nothing_fails(velad: Velad) -> None:
    assert velad.control("status", "eth*") == (1, "", "velactl: no circuit fits eth*\n")


def test_status_of_a_circuit_whose_name_is_a_pattern_shows_it(velad: Velad) -> None:
    velad.answer = STATUS | {"circuits": [CIRCUIT, CIRCUIT | {"name": "ve*"}]}

    _, out, _ = velad.control("status", "ve*", "--json")

    assert [each["name"] for each in json.loads(out)["circuits"]] == ["ve*"]


def test_error_that_velad_answers_is_shown(velad: Velad) -> None:
    velad.answer = {"error": "velad knows no command 'status'"}

    assert velad.control("status") == (1, "", "velactl: velad knows no command 'status'\n")


def test_reader_that_has_seen_enough_is_no_error(velad: Velad) -> None:
    """As in `velactl status | head -1`."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert velad.control("status", stdout=theirs.fileno()) == (0, "", "")


def test_output_on_a_full_disk_is_one_line_of_error(velad: Velad) -> None:
    with open("/dev/full", "w") as full:
        for argv in (("status",), ("status", "--json"), (), ("top",), ("show-config",)):
            velad.answers["show-config"] = {"config": {"daemon": {"port": 1}}, "origins": {}}
            assert velad.control(*argv, stdout=full.fileno()) == (
                1,
                "",
                "velactl: standard output: No space left on device\n",
            )


def test_output_that_is_closed_is_one_line_of_error(velad: Velad) -> None:
    for argv in (("status",), ("--json",)):
        assert velad.control(*argv, closed=True) == (1, "", "velactl: standard output is closed\n")
    velad.answer = {}
    assert velad.control("down", "vela0", closed=True) == (0, "", "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("stat",), "invalid choice: 'stat'"),
        (("status", "--jason"), "unrecognized arguments: --jason"),
        (("add", "vela7"), "the following arguments are required: --remote"),
        (("add", "vela7", "--rem", "192.0.2.9"), "required: --remote"),
        (("add", "vela7", "--remote", "192.0.2.9", "--id", "300"), "--id: 300 is outside 1..255"),
        (("add", "vela7", "--remote", "192.0.2.9", "--id", "x"), "--id: 'x' is not a whole number"),
        (("add", "vela7", "--remote", "192.0.2.9", "--mtu", "67"), "--mtu: 67 is outside 68.."),
        (("add", "vela7", "--remote", "192.0.2.9", "--keepalive", "nan"), "--keepalive: nan is"),
        (("add", "vela7", "--remote", "192.0.2.9", "--address", "10.9.0.1"), "no prefix length"),
        (("add", "vela7", "--remote", "192.0.2.9", "--peer-mac", "01"), "argument --peer-mac: "),
        (("add", "vela7", "--remote", "192.0.2.9", "--peer-key", "x"), "argument --peer-key: "),
        (("add", "vela7", "--remote", "224.0.0.1"), "argument --remote: 224.0.0.1 is a multicast"),
        (("add", "a/b", "--remote", "192.0.2.9"), "argument CIRCUIT: 'a/b' is not"),
        (("add", "vela7", "--remote", "192.0.2.9", "--description", "x" * 256), "255 fit"),
        (("log-level", "loud"), "argument LEVEL: invalid choice: 'loud'"),
        (("top", "--count", "0"), "--count: 0 is outside 1.."),
        (("ping",), "the following arguments are required: CIRCUIT"),
        (("ping", "vela0", "--interval", "0.001"), "--interval: 0.001 is outside 0.01.."),
        (("ping", "vela0", "--size", "17"), "--size: 17 is outside 18.."),
        (("restart",), "the following arguments are required: CIRCUIT"),
        (("switch",), "the following arguments are required: CIRCUIT"),
    ],
)
def test_mistake_of_the_command_line_is_named_before_velad_is_asked(
    velad: Velad, argv: tuple[str, ...], said: str
) -> None:
    status, out, err = velad.control(*argv)

    assert (status, out) == (2, "")
    assert err.startswith("usage: velactl ")
    assert said in err
    assert velad.requests == []


def test_help_of_each_command_has_three_examples(velad: Velad) -> None:
    _, out, _ = velad.control("--help")
    commands = re.findall(r"(?m)^  ([a-z-]+),? ", out.partition("commands that show")[2])
    assert "up" in commands

    for command in [*commands, "down"]:
        if command == "velactl":
            continue
        status, out, _ = velad.control(command, "--help")
        assert status == 0
        examples = out.partition("examples:\n")[2]
        assert len(re.findall(r"(?m)^  (velactl|velad) ", examples)) >= 3


def test_velad_that_does_not_run_is_told_in_one_line_with_what_to_do(
    velad: Velad, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.sock"

    status, out, err = velad.control("--socket", str(missing), "status")

    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"velactl: no velad is running at {missing}; ")
    # It finds the other one, which listens at tmp_path, or one that runs on this machine.
    assert re.search(r"one is at (/\S+velad\.sock): use --socket \1$", err)


@contextmanager
def nobody() -> Iterator[None]:
    """Be an unprivileged user meanwhile."""
    own = os.geteuid()
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_socket_that_may_not_be_used_says_who_may(velad: Velad, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("another user needs root")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    path = tmp_path / "velad.sock"

    with nobody(), pytest.raises(VelaError) as refused:
        ask(path, {"command": "status"})
    assert str(refused.value) == (
        f"{path}: permission denied; only root may use it: try sudo, or let a group use it by "
        "control_group in the configuration"
    )

    os.chown(path, 0, grp.getgrnam("adm").gr_gid)
    path.chmod(0o660)
    with nobody(), pytest.raises(VelaError) as refused:
        ask(path, {"command": "status"})
    assert str(refused.value) == (
        f"{path}: permission denied; only root and the group adm may use it: try sudo, or join "
        "the group"
    )


ADDED = {"circuit": "vela7", "id": 3}
ADD = ("add", "vela7", "--remote", "192.0.2.9")


def test_add_with_several_remotes_sends_a_list(velad: Velad) -> None:
    velad.answer = ADDED

    _, out, _ = velad.control(*ADD, "--remote", "192.0.2.8", "--no-wait")

    assert velad.requests[0]["settings"] == {"remote": ["192.0.2.9", "192.0.2.8"]}
    assert out == "vela7: id 3, toward 192.0.2.9, 192.0.2.8\n"


def test_add_sends_what_the_options_say(velad: Velad) -> None:
    velad.answer = ADDED

    status, out, _ = velad.control(
        *ADD,
        "--no-wait",
        *("--id", "3", "--description", "to the data centre", "--address", "10.9.0.1/30"),
        *("--peer-address", "10.9.0.2/30", "--keepalive", "2", "--static"),
    )

    assert (status, out) == (0, "vela7: id 3, toward 192.0.2.9\n")
    assert velad.requests == [
        {
            "command": "add",
            "circuit": "vela7",
            "settings": {
                "remote": "192.0.2.9",
                "id": 3,
                "description": "to the data centre",
                "addresses": ["10.9.0.1/30"],
                "keepalive": 2.0,
                "autoconfigure": False,
                "peer": {"addresses": ["10.9.0.2/30"]},
            },
        }
    ]


def change(state: str, reason: str = "") -> dict[str, Any]:
    return {
        "event": "state",
        "time": 1700000000.0,
        "circuit": "vela7",
        "id": 3,
        "state": state,
        "was": "connecting",
        "reason": reason,
        "reason_code": "no_answer" if reason else "",
    }


def seven(state: str) -> dict[str, Any]:
    return STATUS | {"circuits": [CIRCUIT | {"name": "vela7", "id": 3, "state": state}]}


@pytest.mark.parametrize(("argv", "done"), [(ADD, "added"), (("restart", "vela7"), "restarted")])
@pytest.mark.parametrize(
    ("event", "exit_status", "said"),
    [
        (change("up"), 0, ""),
        (
            change("connecting", "no answer from 192.0.2.9:48621"),
            3,
            "but is not up: connecting: no answer from 192.0.2.9:48621",
        ),
        (change("rejected", "wrong key"), 3, "but is not up: rejected: wrong key"),
        (change("") | {"event": "removed"}, 3, "but is no longer there"),
        (None, 3, "but is not up: connecting: not up after 0.3 s"),
    ],
)
def test_add_and_restart_wait_until_it_is_up_or_say_why_not(
    velad: Velad,
    argv: tuple[str, ...],
    done: str,
    event: dict[str, Any] | None,
    exit_status: int,
    said: str,
) -> None:
    velad.answers = {"add": ADDED, "restart": {}, "status": seven("connecting")}
    # Of another circuit, and a state that decides nothing, ahead of it.
    velad.events = [change("down", "x") | {"circuit": "vela1"}, change("connecting")]
    velad.events += [] if event is None else [event]

    status, _, err = velad.control(*argv, "--wait", "0.3" if event is None else "20")

    assert status == exit_status
    assert err.splitlines()[:1] == ([f"velactl: vela7 was {done}, {said}"] if said else [])


def remotes(*failed: str) -> dict[str, Any]:
    """Return a part of an event: these of its remotes do not work."""
    names = ("192.0.2.8", "192.0.2.9")
    return {
        "remotes": [
            {"name": each, "reason": "no answer" if each in failed else ""} for each in names
        ]
    }


@pytest.mark.parametrize(
    ("last", "exit_status", "said"),
    [
        (change("up") | {"remote": "192.0.2.9"}, 0, ""),
        (
            change("up", "192.0.2.8 stands in") | {"remote": "192.0.2.8"},
            3,
            "vela7 is up, but not there: 192.0.2.8 stands in",
        ),
        (
            change("down", "both silent") | remotes("192.0.2.8", "192.0.2.9"),
            3,
            "vela7 was switched to 192.0.2.9, but is not up: down: both silent",
        ),
    ],
)
def test_switch_waits_until_it_is_up_there_or_no_remote_is_left_to_try(
    velad: Velad, last: dict[str, Any], exit_status: int, said: str
) -> None:
    reply = {"circuit": "vela7", "remote": "192.0.2.9"}
    velad.answers = {"switch": reply, "status": seven("connecting")}
    # One does not work; the other one may still carry the circuit.
    velad.events = [change("down", "no answer") | remotes("192.0.2.9"), last]

    status, _, err = velad.control("switch", "vela7", "192.0.2.9", "--wait", "20")

    assert status == exit_status
    assert err.splitlines()[:1] == ([f"velactl: {said}"] if said else [])
    request = {"command": "switch", "circuit": "vela7", "remote": "192.0.2.9"}
    assert request in velad.requests


def test_switch_without_a_remote_names_none(velad: Velad) -> None:
    velad.answers = {"switch": {"circuit": "vela7", "remote": "192.0.2.9"}}

    status, _, _ = velad.control("switch", "vela7", "--no-wait")

    assert status == 0
    assert velad.requests == [{"command": "switch", "circuit": "vela7"}]


def test_add_of_what_is_up_at_once_does_not_wait(velad: Velad) -> None:
    velad.answers = {"add": ADDED, "status": seven("unmonitored")}

    assert velad.control(*ADD) == (0, "vela7: id 3, toward 192.0.2.9\n", "")


def test_add_in_json_says_what_became_of_it(velad: Velad) -> None:
    velad.answers = {"add": ADDED, "status": seven("connecting")}
    velad.events = [change("rejected", "wrong key")]

    status, out, _ = velad.control(*ADD, "--json")

    assert status == 3
    assert json.loads(out) == ADDED | {
        "state": "rejected",
        "reason": "wrong key",
        "reason_code": "no_answer",
    }


def test_add_says_that_the_circuit_has_another_id_than_it_got_at_first(velad: Velad) -> None:
    velad.answers = {"add": ADDED, "status": seven("connecting")}
    velad.events = [change("connecting") | {"id": 4}, change("up") | {"id": 4}]

    assert velad.control(*ADD) == (
        0,
        "vela7: id 3, toward 192.0.2.9\nvela7: id 4, as 3 is taken on the other end\n",
        "",
    )


def test_monitor_shows_changes_until_velad_ends(velad: Velad) -> None:
    velad.events = [change("up"), change("down", "no route"), change("") | {"event": "removed"}]
    velad.events_then_close = True

    status, out, err = velad.control("monitor", env={"TZ": "UTC"})

    assert (status, err.count("ended")) == (1, 1)
    assert out.splitlines() == [
        "2023-11-14 22:13:20 vela7 up (was connecting)",
        "2023-11-14 22:13:20 vela7 down (was connecting): no route",
        "2023-11-14 22:13:20 vela7 removed",
    ]


def test_monitor_in_json_has_an_object_on_each_line_of_those_that_fit(velad: Velad) -> None:
    velad.events = [change("up"), change("down") | {"circuit": "eth7"}]
    velad.events_then_close = True

    _, out, _ = velad.control("--json", "monitor", "vela*")

    assert [json.loads(line) for line in out.splitlines()] == [change("up")]


def test_top_shows_trouble_then_the_busiest_first(velad: Velad) -> None:
    busy = {"tx_bps": 2 * 10**9, "rx_bps": 5 * 10**6, "tx_pps": 166000, "rx_pps": 1000}
    velad.answer = STATUS | {
        "circuits": [CIRCUIT, CIRCUIT | {"name": "vela1", "rates": busy}, RESOLVING]
    }

    status, out, err = velad.control("top", "--count", "1")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "velad 1.2.3, up 1 d 2 h: 3 circuits: 2 unmonitored, 1 resolving",
        "",
        "CIRCUIT        STATE         TX   RX TX/s RX/s RTT DROPS CPU%     MEM",
        "vela-long-name resolving      -    -    -    -   -     0    -       -",
        "vela1          unmonitored 2.0G 5.0M 166k 1.0k   -     0 12.5 21.0 MB",
        "vela0          unmonitored  12M  950 1.0k    0   -     0 12.5 21.0 MB",
    ]


def test_log_level_is_shown_and_set(velad: Velad) -> None:
    velad.answer = {"level": "info"}

    assert velad.control("log-level") == (0, "info\n", "")
    assert velad.control("log-level", "debug") == (0, "", "")
    assert velad.requests == [
        {"command": "log-level"},
        {"command": "log-level", "level": "debug"},
    ]


def test_velactl_imports_nothing_that_makes_it_slow() -> None:
    """It was 100 to 120 ms with the logging library; an import is what costs."""
    argv = ["status", "--socket", "/nonexistent/velad.sock"]
    code = f"""
import sys
from vela.supervisor.velactl import main
main({argv!r})
print("\\n".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())

    slow = {"structlog", "logging", "asyncio", "pyroute2", "psutil", "cryptography", "toml"}
    slow |= {"dataclasses", "inspect", "difflib", "subprocess", "ctypes"}
    assert "vela.supervisor.velactl.status" in loaded
    assert loaded & slow == set()
    ours = {each for each in loaded if each.startswith("vela.")}
    assert {each for each in ours if not each.startswith("vela.supervisor.velactl")} == {
        "vela.errors",
        "vela.supervisor",
        "vela.supervisor.constants",
        "vela.supervisor.nearest",
        "vela.supervisor.states",
    }
