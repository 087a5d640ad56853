"""The 25 frictions that an operator met, by number: what velad and velactl say and do instead.

Each is short, and most ask one pair of velads that all share. What takes long, or is tried in all
its cases, has tests of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.autoconfigured import Ends, asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad, entry_point, velactl
from lab.topology import TwoRouters, two_routers
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

DEAD = "10.201.0.9"


@pytest.fixture(scope="module")
def shared() -> Iterator[TwoRouters]:
    with two_routers() as both:
        yield both


@pytest.fixture(scope="module")
def pair(shared: TwoRouters) -> Iterator[Ends]:
    """On A: vela0, which is up; dead, which gets no answer; refused, which B refuses."""
    others = asking(DEAD, name="dead", addresses=[], peer={"addresses": []})
    others += asking(
        *(shared.b.ipv4,),
        name="refused",
        id=3,
        addresses=[],
        peer={"addresses": ["192.0.2.1/24"]},
    )
    with ends(shared, asking(shared.b.ipv4) + others, policy()) as both:
        wait_until_up(both)
        both.a.wait_for_state("refused", "rejected")
        both.a.wait_for(lambda _: bool(both.a.circuit("dead")["reason"]), 15, "no answer")
        yield both


def say(velad: Velad, *argv: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of a velactl."""
    done = velad.control(*argv, check=False)
    return done.returncode, done.stdout, done.stderr


def run_velad(*argv: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command, env = entry_point("velad", "vela.supervisor.cli")
    return subprocess.run(
        [*prefix, *command, *argv], capture_output=True, text=True, env=env, timeout=60
    )


def test_01_bare_velactl_is_a_health_summary_with_an_exit_status(pair: Ends) -> None:
    status, out, _ = say(pair.a)
    assert status == 3
    assert "3 circuits: 1 up, 1 connecting, 1 rejected" in out.splitlines()[0]
    status, out, _ = say(pair.b)
    assert (status, len(out.splitlines())) == (0, 1)


def test_02_add_waits_and_says_why_it_is_not_up(pair: Ends) -> None:
    status, _, err = say(pair.a, "add", "added", "--remote", DEAD)
    try:
        assert status == 3
        assert "added was added, but is not up: connecting: no answer from 10.201.0.9" in err
    finally:
        pair.a.control("delete", "added")
    began = time.monotonic()
    assert say(pair.a, "add", "added", "--remote", DEAD, "--no-wait")[0] == 0
    assert time.monotonic() - began < 10  # and did not wait for the three tries of 15 s
    pair.a.control("delete", "added")


def test_03_add_toward_this_machine_is_refused(pair: Ends, shared: TwoRouters) -> None:
    status, _, err = say(pair.a, "add", "own", "--remote", shared.a.ipv4)

    assert status == 1
    assert "10.201.0.1 is this machine; the remote is another machine, or another port" in err


def test_04_id_out_of_range_is_a_mistake_of_the_command_line(pair: Ends) -> None:
    status, _, err = say(pair.a, "add", "vela9", "--remote", DEAD, "--id", "300")

    assert status == 2
    assert "argument --id: 300 is outside 1..255" in err


def test_05_full_disk_and_closed_pipe_leave_no_traceback(pair: Ends) -> None:
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    argv = [*command, "--socket", str(pair.a.control_socket), "status"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert (done.returncode, done.stderr) == (
        1,
        "velactl: standard output: No space left on device\n",
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, env=env)
    os.close(writer)
    assert done.stderr == ""


def test_06_mistyped_name_gets_the_nearest_one(pair: Ends) -> None:
    assert say(pair.a, "status", "vela00")[2] == (
        "velactl: there is no circuit vela00; did you mean vela0?\n"
    )


def test_07_json_may_stand_anywhere_on_the_line(pair: Ends) -> None:
    for argv in (("--json", "status"), ("status", "--json"), ("status", NAME, "--json")):
        assert json.loads(say(pair.a, *argv)[1])["circuits"]


def test_08_reload_says_what_changed_and_how(pair: Ends) -> None:
    before = pair.a.config_path.read_text()
    pair.a.config_path.write_text(
        before.replace("keepalive = ", 'description = "x"\nkeepalive = ', 1)
    )
    try:
        assert (
            say(pair.a, "reload", "--dry-run")[1].splitlines()[-1].startswith("3 circuits: 1 live")
        )
        status, out, _ = say(pair.a, "reload")
        assert status == 0
        assert re.search(r"^vela0 +live +description$", out, re.MULTILINE)
    finally:
        pair.a.config_path.write_text(before)
        pair.a.control("reload")


def test_09_reload_names_daemon_keys_that_need_a_restart(pair: Ends) -> None:
    before = pair.a.config_path.read_text()
    pair.a.config_path.write_text(before.replace("[daemon]", "[daemon]\nport = 7777", 1))
    try:
        out = say(pair.a, "reload", "--dry-run")[1]
        assert "daemon.port changed: restart velad for that to take effect" in out
    finally:
        pair.a.config_path.write_text(before)


def test_10_log_says_who_gave_a_command(pair: Ends) -> None:
    say(pair.a, "restart", "dead")

    (line, *_) = [each for each in pair.a.log().splitlines() if "command=restart" in each]
    assert "] command_done " in line
    assert f"uid={os.getuid()}" in line
    assert " pid=" in line


def test_11_user_who_may_not_ask_is_told_who_may(pair: Ends) -> None:
    # Imported as root: the source tree need not be readable by everybody.
    code = (
        "import locale, os, shutil, sys; from vela.supervisor.velactl import main, client, status; "
        "os.setgroups([]); os.setresgid(*3 * (65534,)); os.setresuid(*3 * (65534,)); "
        "sys.exit(main(sys.argv[1:]))"
    )
    _, env = entry_point("velactl", "vela.supervisor.velactl")
    pair.a.directory.chmod(0o755)
    done = subprocess.run(
        [_python(), "-c", code, "--socket", str(pair.a.control_socket), "status"],
        *(),
        capture_output=True,
        text=True,
        env=env,
    )

    assert done.returncode == 1
    assert "permission denied; only root may use it: try sudo" in done.stderr
    assert "control_group" in done.stderr


def test_12_wrong_socket_gets_the_one_that_is_there(pair: Ends) -> None:
    """test_refusals.py has the rest: how to start a velad where none runs."""
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    line = (*command, "--socket", "/nonexistent/velad.sock", "status")
    done = pair.a.namespace.run(*line, env=env, check=False)

    assert done.returncode == 1
    assert done.stderr == (
        "velactl: no velad is running at /nonexistent/velad.sock; "
        f"one is at {pair.a.control_socket}: use --socket {pair.a.control_socket}\n"
    )


def test_13_rejection_has_the_same_words_and_id_at_both_ends(
    pair: Ends, shared: TwoRouters
) -> None:
    rejected = pair.a.circuit("refused")

    assert rejected["reason_code"] == "refused_address"
    (line, *_) = [each for each in pair.b.log().splitlines() if "] circuit_refused " in each]
    assert f"by={shared.a.ipv4}:48621" in line
    assert f"circuit_id={rejected['id']} " in line
    assert rejected["reason"] in line


def test_14_circuits_that_are_not_up_can_be_asked_for(pair: Ends) -> None:
    def names(*argv: str) -> list[str]:
        shown = json.loads(say(pair.a, "status", "--json", *argv)[1])
        return sorted(each["name"] for each in shown["circuits"])

    # The third may miss keepalives, as this machine is busy, and is up again.
    eventually(lambda: names("--down") == ["dead", "refused"], 10, "the third to be up")
    assert names("--down", "r*") == ["refused"]
    assert names("vela*") == [NAME]


def test_15_status_says_since_when_and_how_often_it_changed(pair: Ends) -> None:
    entry = pair.a.circuit(NAME)
    assert entry["since_seconds"] >= 0
    assert entry["transitions"] >= 1
    assert re.search(r"^since +.*; up or down \d+ times? in the last hour$", _details(pair), re.M)


def test_16_status_has_rates(pair: Ends) -> None:
    eventually(lambda: pair.a.circuit(NAME)["rates"]["tx_bps"] is not None, 10, "rates")
    assert re.search(r"^rates +sent \S+bit/s, .*; received \S+bit/s", _details(pair), re.M)


def test_17_trouble_comes_first_below_a_summary_line(pair: Ends) -> None:
    lines = say(pair.a, "status")[1].splitlines()
    summary = lines.index("3 circuits: 1 up, 1 connecting, 1 rejected")
    header = next(number for number, line in enumerate(lines) if line.startswith("CIRCUIT"))

    assert header > summary
    assert [line.split()[0] for line in lines[header + 1 : header + 4]] == ["refused", "dead", NAME]


def test_18_json_has_the_same_keys_in_every_state(pair: Ends) -> None:
    circuits = pair.a.status()["circuits"]

    assert {each["state"] for each in circuits} == {"up", "connecting", "rejected"}
    assert len({tuple(each) for each in circuits}) == 1
    assert {each["name"]: each["reason_code"] for each in circuits} == {
        "vela0": "",
        "dead": "no_answer",
        "refused": "refused_address",
    }


def test_19_check_warns_of_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"
    missing = (
        f'bridge = "br-none"\nup = "{tmp_path}/up"\nkey_file = "{tmp_path}/key"\ndevice = "eth9"\n'
    )
    path.write_text(f'[circuits.vela0]\nid = 1\nremote = "192.0.2.9"\n{missing}')

    done = run_velad("--config", str(path), "--check")

    assert done.returncode == 0
    keys = re.findall(r": warning: circuits\.vela0\.(\w+): ", done.stderr)
    assert sorted(keys) == ["bridge", "device", "key_file", "up"]


def test_20_velad_takes_the_configuration_by_c(pair: Ends) -> None:
    done = run_velad("-c", str(pair.a.config_path), "--check")

    assert done.returncode == 0
    assert "no mistakes, 3 circuits" in done.stdout


def test_21_second_velad_names_pid_and_file_of_the_first(pair: Ends, tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"
    path.write_text(
        f'[daemon]\ncontrol_socket = "{tmp_path}/s"\nstate_directory = "{tmp_path}/state"\n'
    )

    done = run_velad("-c", str(path), prefix=tuple(pair.a.namespace.command()))

    assert done.returncode == 1
    assert done.stderr == (
        "velad: cannot listen on [::]:48621: Address already in use: "
        f"velad, pid {pair.a.pid}, with {pair.a.config_path}\n"
    )


@pytest.mark.parametrize(
    "command", ["", "status", "add", "delete", "reload", "doctor", "ping", "top", "monitor"]
)
def test_22_help_is_grouped_and_has_three_examples(command: str) -> None:
    done = velactl(Path("/nonexistent"), *filter(None, [command]), "--help")

    examples = done.stdout.partition("examples:\n")[2].partition("\n\n")[0]
    assert len(re.findall(r"^  velactl", examples, re.MULTILINE)) >= 3
    if not command:
        assert "commands that show:" in done.stdout
        assert "commands that change:" in done.stdout
    else:
        assert len(re.findall("^  velad ", run_velad("--help").stdout, re.MULTILINE)) >= 3


def test_23_end_that_knows_of_a_wrong_key_says_so(pair: Ends, tmp_path: Path) -> None:
    """test_no_answer.py has the rest: the log, and what doctor says on both ends."""
    key = tmp_path / "key"
    key.write_text("k" * 64)
    key.chmod(0o600)
    argv = ("--remote", "10.201.0.2", "--key-file", str(key), "--no-wait")
    pair.a.control("add", "keyed", *argv)
    try:
        said = "wrong key from 10.201.0.1: "
        eventually(lambda: said in say(pair.b, "status")[1], 10, said)
        eventually(lambda: pair.a.circuit("keyed")["reason"], 10, "a reason")
        seen = [each["seen"] for each in _doctor(pair.a, "keyed")]
        assert any("it is not: no velad there, a firewall (vela0 to" in each for each in seen)
    finally:
        pair.a.control("delete", "keyed")


def test_24_connecting_names_what_was_sent_and_what_came_back(pair: Ends) -> None:
    """Nobody has the address: the kernel itself says so, when ARP is not answered."""
    eventually(
        lambda: "ICMP host unreachable came back" in pair.a.circuit("dead")["reason"], 20, "ICMP"
    )

    line = next(
        each for each in say(pair.a, "status", "dead")[1].splitlines() if each.startswith("asked")
    )

    assert re.search(
        r"\d+ requests? to 10\.201\.0\.9:48621 in .*, the last \d+\.\d s ago; "
        r"ICMP host unreachable came back from 10\.201\.0\.1, \d+\.\d s ago$",
        line,
    )


def test_25_circuit_of_a_machine_that_is_gone_is_deleted_as_the_answer_says(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking(routers.b.ipv4, keepalive=60.0), policy()) as both:
        wait_until_up(both)
        both.a.kill()

        status, _, err = say(both.b, "delete", NAME)
        assert status == 1
        said = err.partition("gone for good? ")[2].strip()
        assert said == "velactl down vela0, then velactl delete vela0"
        for command in said.split(", then "):
            both.b.control(*command.split()[1:])

        assert both.b.status()["circuits"] == []


def _python() -> str:
    import sys

    return sys.executable


def _details(pair: Ends) -> str:
    return say(pair.a, "status", NAME)[1]


def _doctor(velad: Velad, *argv: str) -> list[dict[str, str]]:
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    line = (*command, "--socket", str(velad.control_socket), "doctor", "--json", *argv)
    done = velad.namespace.run(*line, env=env, check=False)
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found
