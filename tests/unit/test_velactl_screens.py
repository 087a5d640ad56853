"""velactl, run as a program on a terminal, again and again, and until it is interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_velad import CIRCUIT, STATUS, Velad

from lab.daemon import ROOT
from vela import __version__
from vela.supervisor.velactl.text import duration, octets, rate, short_duration


@pytest.fixture
def velad(tmp_path: Path) -> Iterator[Velad]:
    made = Velad(tmp_path / "velad.sock")
    yield made
    made.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let programs end by SIGINT, also where this process was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def on_terminal(run: Callable[[int], object], rows: int = 24, columns: int = 80) -> str:
    """Run with a terminal's descriptor. Return what was written to it, with its escapes."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (rows, columns))
    try:
        run(terminal)
    finally:
        os.close(terminal)
    written = b""
    try:
        while data := os.read(screen, 65536):
            written += data
    except OSError:  # EIO: nobody has it open any more
        pass
    os.close(screen)
    return written.decode().replace("\r\n", "\n")


def dropping(count: int) -> dict[str, Any]:
    counters = CIRCUIT["counters"] | {"tx_dropped": {"not_ip": count}, "rx_dropped": {}}
    return STATUS | {"circuits": [CIRCUIT | {"counters": counters}]}


def test_top_shows_the_drops_since_the_screen_before(velad: Velad) -> None:
    # The last one is a velad that has begun again.
    velad.series["status"] = [dropping(40), dropping(47), dropping(5)]

    status, out, err = velad.control("top", "--count", "3", "--interval", "0.1")

    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    column = next(row for row in rows if row[:1] == ["CIRCUIT"]).index("DROPS")
    assert [row[column] for row in rows if row[:1] == ["vela0"]] == ["0", "7", "0"]


def test_top_in_json_has_a_status_of_the_circuits_that_fit_on_each_line(velad: Velad) -> None:
    velad.answer = STATUS | {"circuits": [CIRCUIT, CIRCUIT | {"name": "eth7"}]}

    status, out, _ = velad.control("top", "--json", "vela*", "--count", "2", "--interval", "0.1")

    assert status == 0
    assert [json.loads(line) for line in out.splitlines()] == [STATUS | {"circuits": [CIRCUIT]}] * 2


def test_top_on_a_terminal_clears_it_and_shows_what_fits(velad: Velad) -> None:
    circuits = [CIRCUIT | {"name": f"vela{number}"} for number in range(20)]
    velad.answer = STATUS | {"circuits": circuits}

    out = on_terminal(
        lambda terminal: velad.control("top", "--count", "2", "--interval", "0.1", stdout=terminal),
        rows=8,
        columns=60,
    )

    # console_codes(4): to the upper left corner, and erase to the end.
    screens = out.split("\033[H\033[J")[1:]
    assert len(screens) == 2
    for screen in screens:
        lines = screen.splitlines()
        # The last line stays empty: the cursor is there.
        assert len(lines) == 7
        assert lines[0].startswith("velad 1.2.3, up 1 d 2 h: 20 circuits")
        assert max(map(len, lines)) <= 60
        assert [line.split()[0] for line in lines[3:]] == ["vela0", "vela1", "vela2", "vela3"]


def test_status_on_a_terminal_is_as_wide_as_that(velad: Velad) -> None:
    out = on_terminal(lambda terminal: velad.control("status", stdout=terminal), columns=160)

    assert " MTU CPU DROPS RESTARTS " in out


def test_wait_on_a_terminal_shows_the_state_until_it_is_over(velad: Velad) -> None:
    circuit = CIRCUIT | {"name": "vela7", "state": "connecting", "reason": ""}
    event = {"event": "state", "circuit": "vela7", "id": 1, "reason": "", "reason_code": ""}
    velad.answers = {"restart": {}, "status": STATUS | {"circuits": [circuit]}}
    velad.events = [event | {"state": "down"}, event | {"state": "up"}]

    out = on_terminal(lambda terminal: velad.control("restart", "vela7", stderr=terminal))

    # console_codes(4): each erases the line, and at the end nothing is on it.
    assert out == "\r\033[Kvela7: connecting ...\r\033[Kvela7: down ...\r\033[K"


def test_terminal_without_utf_8_shows_question_marks(velad: Velad) -> None:
    velad.answer = STATUS | {"circuits": [CIRCUIT | {"description": "zum Büro"}]}

    status, out, err = velad.control(
        "status", "vela0", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )

    assert (status, err) == (0, "")
    assert [line.split(maxsplit=1)[1] for line in out.splitlines() if "zum" in line] == ["zum B?ro"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("argv", "at", "status"),
    [
        (("monitor",), 1, 0),
        (("top", "--interval", "0.1"), 2, 0),
        # These are to end by themselves.
        (("status",), 1, 1),
        (("reload",), 1, 1),
    ],
)
def test_command_that_is_interrupted_ends_without_a_word(
    velad: Velad, argv: tuple[str, ...], at: int, status: int
) -> None:
    velad.interrupt_at = at

    ended, _, err = velad.control(*argv)

    assert (ended, err) == (status, "")


def test_monitor_shows_events_of_all_kinds(velad: Velad) -> None:
    at = {"time": 1700000000.0}
    again = at | {"event": "state", "circuit": "vela0", "state": "up", "was": "up", "reason": ""}
    velad.events = [
        at | {"event": "lost", "events": 12},
        # Still up, by another remote.
        again | {"reason": "192.0.2.8 stands in"},
        at | {"event": "created", "circuit": "vela1"},
        # Of a velad that is newer.
        at | {"event": "reloaded"},
    ]
    velad.events_then_close = True

    _, out, _ = velad.control("monitor", env={"TZ": "UTC"})

    when = "2023-11-14 22:13:20"
    assert out.splitlines() == [
        f"{when} 12 events lost: this reader was too slow",
        f"{when} vela0 up: 192.0.2.8 stands in",
        f"{when} vela1 created",
        f"{when} reloaded",
    ]


def test_monitor_of_some_circuits_shows_what_concerns_no_circuit_too(velad: Velad) -> None:
    velad.events = [
        {"event": "removed", "circuit": "eth7", "time": 0.0},
        {"event": "lost", "events": 1, "time": 0.0},
    ]
    velad.events_then_close = True

    _, out, _ = velad.control("monitor", "vela*", "--json")

    assert [json.loads(line)["event"] for line in out.splitlines()] == ["lost"]


def test_history_without_a_minute_says_so_and_in_json_has_those_wanted(velad: Velad) -> None:
    velad.answer = {"circuit": "vela0", "minutes": []}
    assert velad.control("history", "vela0") == (0, "vela0: no minute is over yet\n", "")

    velad.answer = {"circuit": "vela0", "minutes": [{"time": number} for number in range(5)]}
    _, out, _ = velad.control("history", "vela0", "--minutes", "2", "--json")

    assert json.loads(out) == {"circuit": "vela0", "minutes": [{"time": 3}, {"time": 4}]}


def test_configuration_is_shown_as_toml_and_in_json_as_it_was_answered(velad: Velad) -> None:
    answer = {
        "config": {
            "daemon": {"port": 48621, "metrics": None},
            "circuits": {
                "vela0": {"remote": "192.0.2.9"},
                "vela 1": {"remote": ["büro.example", "192.0.2.9"]},
            },
        },
        "origins": {"vela0": "config", "vela 1": "peer"},
        "files": {"vela0": "/etc/vela.d/a.toml"},
    }
    velad.answer = answer

    assert velad.control("show-config")[1].splitlines() == [
        "[daemon]",
        "port = 48621",
        "# metrics: not set",
        "",
        "# In /etc/vela.d/a.toml.",
        "[circuits.vela0]",
        'remote = "192.0.2.9"',
        "",
        "# Not in the file: another machine set it up.",
        '[circuits."vela 1"]',
        'remote = ["büro.example", "192.0.2.9"]',
    ]
    assert json.loads(velad.control("show-config", "--json")[1]) == answer


def test_add_of_one_that_is_called_ends_when_it_waits_for_the_call(velad: Velad) -> None:
    added = {"circuit": "vela7", "id": 3}
    waiting = CIRCUIT | {
        "name": "vela7",
        "id": 3,
        "state": "connecting",
        "reason": "nobody has called",
        "reason_code": "awaiting_call",
    }
    velad.answers = {"add": added, "status": STATUS | {"circuits": [waiting]}}
    argv = ("add", "vela7", "--remote", "Any")
    began = time.monotonic()

    # It calls each second, if at all.
    assert velad.control(*argv, "--wait", "60") == (
        0,
        "vela7: id 3, toward Any\n"
        "vela7 waits for the other end to call: there, `remote` is this machine, with id 3 and "
        "the same key\n",
        "",
    )
    assert time.monotonic() - began < 60
    status, out, _ = velad.control(*argv, "--wait", "0.2", "--json")
    assert status == 0
    assert json.loads(out) == added | {
        "state": "connecting",
        "reason": "nobody has called",
        "reason_code": "awaiting_call",
    }


@pytest.mark.parametrize("command", ["restart", "switch", "log-level", "up"])
def test_command_that_does_not_wait_shows_the_answer_in_json_alone(
    velad: Velad, command: str
) -> None:
    velad.answer = {"circuit": "vela0", "level": "info"}
    argv = {
        "restart": ("restart", "vela0", "--no-wait"),
        "switch": ("switch", "vela0", "--no-wait"),
        "log-level": ("log-level", "info"),
        "up": ("up", "vela0"),
    }[command]

    assert velad.control(*argv) == (0, "", "")
    status, out, _ = velad.control(*argv, "--json")
    assert (status, json.loads(out)) == (0, velad.answer)


def test_circuit_that_was_removed_meanwhile_is_told_in_json(velad: Velad) -> None:
    velad.answers = {"restart": {"circuit": "vela7"}, "status": STATUS | {"circuits": []}}

    status, out, _ = velad.control("restart", "vela7", "--json")

    assert status == 3
    assert json.loads(out) == {
        "circuit": "vela7",
        "state": None,
        "reason": "it was removed",
        "reason_code": "",
    }


def test_package_can_be_run_in_place_of_the_program() -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vela.supervisor.velactl", *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert run("--version").stdout == f"velactl {__version__}\n"
    assert run("--socket", "/nonexistent/velad.sock", "status").returncode == 1


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (octets(999), "999 B"),
        (octets(1_000), "1.0 kB"),
        (octets(2_500_000_000), "2.5 GB"),
        (octets(3e15), "3000.0 TB"),
        (rate(999), "999"),
        (rate(1_000), "1.0k"),
        (rate(9_940), "9.9k"),
        (rate(9_950), "10k"),
        (rate(999_600), "1.0M"),
        (rate(5e15), "5000T"),
        (duration(59.9), "59 s"),
        (duration(3_599), "59 min 59 s"),
        (duration(7_260), "2 h 1 min"),
        (short_duration(None), "-"),
        (short_duration(59.9), "59s"),
        (short_duration(3_599), "59m"),
        (short_duration(86_399), "23h"),
        (short_duration(8_640_000), "100d"),
    ],
)
def test_figures_have_units_and_few_digits(shown: str, expected: str) -> None:
    assert shown == expected
