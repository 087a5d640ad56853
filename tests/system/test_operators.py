"""velactl against a running velad: what only a real daemon, socket and interface can show."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import time

import jsonschema
import pytest
from status_schema import schema, strict

from lab.autoconfigured import asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad, entry_point, is_asked, running_velactl
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

TEXT = "to Zürich, ticket 4711"
ADD = ("add", "vela7", "--remote", "10.201.0.2", "--description", TEXT)


def alias(velad: Velad, name: str) -> object:
    done = velad.namespace.run("ip", "-j", "link", "show", "dev", name)
    return json.loads(done.stdout)[0].get("ifalias")


def test_added_circuit_is_up_when_velactl_returns_and_says_what_it_is_for(
    routers: TwoRouters,
) -> None:
    with ends(routers, "", policy()) as both:
        done = both.a.control(*ADD)

        entry = both.a.circuit("vela7")
        assert (done.returncode, entry["state"]) == (0, "up")
        assert entry["description"] == alias(both.a, "vela7") == TEXT
        state_lines = [line for line in both.a.log().splitlines() if "state=up" in line]
        assert all(TEXT in line for line in state_lines)
        both.a.stop()
        both.a.start()
        wait_until_up(both, a="vela7")
        assert both.a.circuit("vela7")["description"] == alias(both.a, "vela7") == TEXT


def test_added_circuit_without_an_answer_is_exit_status_3_and_stays(routers: TwoRouters) -> None:
    with ends(routers, "", "") as both:
        done = both.a.control("add", "vela7", "--remote", "10.201.0.9", check=False)

        assert (done.returncode, done.stdout) == (3, "vela7: id 1, toward 10.201.0.9\n")
        said = "velactl: vela7 was added, but is not up: connecting: no answer from 10.201.0.9"
        assert done.stderr.startswith(said)
        assert both.a.circuit("vela7")["state"] == "connecting"
        assert both.a.control(check=False).returncode == 3

        own = both.a.control("add", "vela8", "--remote", "10.201.0.1", check=False)
        assert (own.returncode, own.stdout) == (1, "")
        assert "10.201.0.1 is this machine" in own.stderr


def test_each_command_that_changes_something_is_logged_with_who_gave_it(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        for argv in (("status",), ("log-level",), ("show-config",), ()):
            both.a.control(*argv, check=False)
        assert " command_" not in both.a.log()

        for command in ("restart", "down", "up"):
            both.a.control(command, NAME)
        both.a.control("reload")
        both.a.control("delete", NAME, check=False)

        said = [line for line in both.a.log().splitlines() if "] command_" in line]
        assert len(said) == 5
        for line, words in zip(
            said,
            (
                ("command_done", "command=restart", f"circuit={NAME}"),
                ("command_done", "command=down", f"circuit={NAME}"),
                ("command_done", "command=up", f"circuit={NAME}"),
                ("command_done", "command=reload"),
                ("command_refused", "command=delete", "is in the configuration file"),
            ),
            strict=True,
        ):
            assert f"uid={os.getuid()}" in line
            assert " pid=" in line
            assert all(word in line for word in words)


def test_restart_begins_anew_on_the_same_interface(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        before = both.a.circuit(NAME)
        index = both.a.namespace.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout

        both.a.control("restart", NAME)

        after = both.a.circuit(NAME)
        assert after["state"] == "up"
        assert after["worker"]["pid"] != before["worker"]["pid"]
        assert both.a.namespace.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout == index


def test_status_of_a_running_velad_fits_the_schema_and_knows_the_worker(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        both.a.control("add", "vela8", "--remote", "nowhere.invalid", "--no-wait")

        def measured() -> bool:
            entry = both.a.circuit(NAME)
            return entry["rates"]["tx_bps"] is not None and entry["worker"]["memory_bytes"]

        eventually(measured, 10.0, "rates and memory")
        status = json.loads(both.a.control("status", "--json").stdout)
        jsonschema.validate(status, strict(schema()))
        entry = next(each for each in status["circuits"] if each["name"] == NAME)
        assert 0 <= entry["worker"]["cpu_percent"] < 50
        assert 2**20 < entry["worker"]["memory_bytes"] < 2**27
        assert entry["path_mtu"] == 1500


def test_monitor_shows_a_change_while_it_happens(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        with running_velactl(both.a, "monitor", "--json", NAME) as process:
            assert process.stdout is not None
            eventually(lambda: is_asked(both.a), 10.0, "velactl to subscribe")
            began = time.time()
            both.a.control("down", NAME)
            event = json.loads(process.stdout.readline())

        assert (event["event"], event["circuit"]) == ("state", NAME)
        assert (event["was"], event["state"]) == ("up", "disabled")
        assert began - 1 < event["time"] < time.time()


def test_log_level_changes_at_run_time(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        assert both.a.control("log-level").stdout == "info\n"
        assert "[debug" not in both.a.log()

        both.a.control("log-level", "debug")
        both.a.control("restart", NAME)

        assert both.a.control("log-level").stdout == "debug\n"
        assert "[debug" in both.a.log()


def test_configuration_in_effect_is_a_file_without_mistakes(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        shown = both.b.control("show-config").stdout

        assert "# Not in the file: another machine set it up.\n[circuits." in shown
        path = both.b.directory / "shown.toml"
        path.write_text(shown)
        command, env = entry_point("velad", "vela.supervisor.cli")
        done = subprocess.run(
            [*command, "--config", str(path), "--check"], capture_output=True, text=True, env=env
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_control_group_may_use_the_socket_and_others_may_not(routers: TwoRouters) -> None:
    group = grp.getgrnam("adm")
    with ends(routers, '[daemon]\ncontrol_group = "adm"\n', "") as both:
        found = both.a.control_socket.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
        found = both.b.control_socket.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o600, 0)
