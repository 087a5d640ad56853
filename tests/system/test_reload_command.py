"""velactl reload on a running velad: what it says, before and after, and what it refuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lab.autoconfigured import asking, ends, policy, wait_until_up
from lab.circuit import ADDRESSES_A, NAME
from lab.daemon import Velad, running_velactl
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin


def table(routers: TwoRouters, number: int, **settings: Any) -> str:
    values: dict[str, Any] = {
        "id": number + 1,
        "addresses": [f"172.16.{number}.1/30"],
        "peer": {"addresses": [f"172.16.{number}.2/30"]},
        **settings,
    }
    return asking(routers.b.ipv4, name=f"vela{number}", **values)


def test_dry_run_says_what_the_reload_then_does_and_changes_nothing(routers: TwoRouters) -> None:
    before = "".join(table(routers, number) for number in range(5))
    after = (
        table(routers, 0)
        + table(routers, 1, keepalive=2.0, description="x")
        + table(routers, 2, mtu=1400)
        + table(routers, 3, id=99)
        + table(routers, 7)
    )
    right = """\
vela0  nothing
vela1  live           description, keepalive
vela2  new worker     mtu
vela3  new interface  id
vela7  added
vela4  deleted
6 circuits: 1 nothing, 1 live, 1 new worker, 1 new interface, 1 added, 1 deleted
"""
    with ends(routers, before, policy()) as both:
        wait_until_up(both, a="vela4", b="vela4")
        running = both.a.status()["circuits"]
        both.a.configure(after)

        assert both.a.control("reload", "--dry-run").stdout == right

        assert [each["id"] for each in both.a.status()["circuits"]] == [1, 2, 3, 4, 5]
        assert "configuration_reloaded" not in both.a.log()
        assert both.a.control("reload").stdout == right
        assert {each["name"]: each["id"] for each in both.a.status()["circuits"]} == {
            "vela0": 1,
            "vela1": 2,
            "vela2": 3,
            "vela3": 99,
            "vela7": 8,
        }
        pids = {each["name"]: each["worker"]["pid"] for each in running}
        for name in ("vela0", "vela1"):
            assert both.a.worker_pid(name) == pids[name]
        report = json.loads(both.a.control("--json", "reload", "--dry-run").stdout)
        assert report["needs_restart"] == []
        assert report["circuits"][1] == {
            "circuit": "vela1",
            "effect": "nothing",
            "keys": [],
            "error": None,
        }


def test_keys_of_the_daemon_that_need_a_restart_are_named_until_it_is_restarted(
    routers: TwoRouters,
) -> None:
    circuit = asking(routers.b.ipv4)
    with ends(routers, circuit, policy()) as both:
        wait_until_up(both)
        both.a.configure('[daemon]\nport = 48622\nlog_level = "debug"\n' + circuit)

        for _ in range(2):
            said = both.a.control("reload").stdout.splitlines()
            assert said[1:] == [
                "1 circuits: 1 nothing",
                "daemon.port changed: restart velad for that to take effect",
            ]

        assert both.a.control("log-level").stdout == "debug\n"
        assert "daemon_section_needs_restart   keys=['daemon.port']" in both.a.log()
        assert both.a.circuit(NAME)["state"] == "up"


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_file_without_circuits_is_refused_unless_it_is_allowed(
    routers: TwoRouters, text: str
) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        both.a.configure(text)
        refused = f"{both.a.config_path}: names no circuit, and 1 would be deleted; "

        for argv in (("reload",), ("reload", "--dry-run")):
            done = both.a.control(*argv, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert refused in done.stderr
        both.a.reload()
        both.a.wait_for(lambda _: "configuration_rejected" in both.a.log(), 10.0, "the refusal")
        assert both.a.circuit(NAME)["state"] == "up"

        assert "vela0  deleted" in both.a.control("reload", "--allow-empty").stdout
        assert both.a.status()["circuits"] == []
        assert both.a.control("reload").returncode == 0
        both.b.wait_for(lambda status: status["circuits"] == [], 10.0, "the other end to go")


def test_empty_file_does_not_end_what_other_machines_have_set_up_here(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        settings = both.b.config_path.read_text()
        both.b.config_path.write_text("")

        done = both.b.control("reload", check=False)

        assert done.returncode == 1
        assert "names no circuit, and 1 would be deleted" in done.stderr
        both.b.config_path.write_text(settings)
        both.b.control("reload")
        assert both.b.circuit(NAME)["state"] == "up"


def test_change_that_the_kernel_refuses_is_named_and_tried_again(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        routers.a.namespace.sysctl(f"net/ipv6/conf/{NAME}/disable_ipv6", 1)
        more = [*ADDRESSES_A, "fd00:18::1/64"]
        routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        both.a.configure(asking(routers.b.ipv4, addresses=more))

        done = both.a.control("reload", check=False)

        assert done.returncode == 1
        assert done.stdout.splitlines()[0] == "vela0  live           addresses"
        assert "all else was reloaded, but vela0" in done.stderr
        routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 0)
        both.a.control("reload")
        wait_until_up(both)


def test_files_beside_are_part_of_a_reload_and_of_what_is_shown(routers: TwoRouters) -> None:
    with ends(routers, table(routers, 0), policy()) as both:
        wait_until_up(both)
        folder = both.a.config_path.with_suffix(".d")
        folder.mkdir(mode=0o755)
        file = folder / "more.toml"
        file.write_text(table(routers, 1))

        said = both.a.control("reload").stdout.splitlines()

        assert said[:2] == ["vela0  nothing", "vela1  added"]
        wait_until_up(both, a="vela1", b="vela1")
        shown = both.a.control("show-config").stdout.splitlines()
        assert shown[shown.index("[circuits.vela1]") - 1] == f"# In {file}."
        assert shown[shown.index("[circuits.vela0]") - 1] == f"# In {both.a.config_path}."
        file.write_text(table(routers, 1, keepalive="soon"))
        refused = both.a.control("reload", check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"velactl: {file}: circuits.vela1.keepalive: ")

        file.unlink()
        assert "vela1  deleted" in both.a.control("reload").stdout


def test_reload_that_is_asked_for_during_another_one_is_not_lost(routers: TwoRouters) -> None:
    def config(mtu: int, first: int) -> str:
        return "".join(
            f'[circuits.vela{number}]\nid = {first + number}\nremote = "10.201.0.9"\n'
            f"mtu = {mtu}\nautoconfigure = false\n"
            for number in range(30)
        )

    with Velad(routers.a.namespace, config(1400, 1)) as velad:
        velad.configure(config(1300, 101))
        with running_velactl(velad, "reload") as first:
            velad.wait_for(
                lambda status: any(each["id"] > 100 for each in status["circuits"]),
                10.0,
                "the reload to begin",
            )
            # It is at work, and has read the file.
            velad.configure(config(1200, 101))
            velad.reload()
            velad.reload()
            assert first.wait(60) == 0

        velad.wait_for(
            lambda status: [each["mtu"] for each in status["circuits"]] == [1200] * 30,
            10.0,
            "the second reload",
        )
        assert velad.status()["circuits"][0]["id"] == 101


def test_status_is_answered_while_many_circuits_are_made_anew(
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    def config(first: int) -> str:
        return "".join(
            f'[circuits.vela{number}]\nid = {first + number}\nremote = "10.201.0.9"\n'
            "autoconfigure = false\n"
            for number in range(60)
        )

    with Velad(routers.a.namespace, config(1)) as velad:
        velad.configure(config(101))
        answers = 0
        with running_velactl(velad, "reload") as reload:
            while reload.poll() is None:
                velad.status()
                answers += 1

        # In one piece it would be answered once, or twice.
        figure(f"60 circuits made anew: status was answered {answers} times meanwhile")
        assert answers > 5


MOST_STARTS = 10


@pytest.mark.parametrize("asked", [signal.SIGHUP, signal.SIGTERM])
def test_signal_while_it_starts_is_obeyed_when_it_has_started(
    routers: TwoRouters, asked: signal.Signals
) -> None:
    """Hundreds of circuits take seconds to create; a signal without a handler would end velad."""
    count = 100
    namespace = routers.a.namespace

    def interfaces() -> str:
        return namespace.run("ip", "-o", "link").stdout

    with Velad(namespace, "".join(table(routers, number) for number in range(count))) as velad:
        for _ in range(MOST_STARTS):
            velad.stop()
            velad.launch()
            assert velad.process is not None
            # One that is created before the last one, some time after the first one.
            eventually(lambda: "vela5:" in interfaces(), 20, "vela5", 0.005)
            velad.process.send_signal(signal.SIGSTOP)
            if f"vela{count - 1}:" not in interfaces():
                break
            # This test had no CPU while velad had one.
            velad.process.send_signal(signal.SIGCONT)
        else:
            pytest.fail(f"{MOST_STARTS} starts were over before this test could see it")

        velad.process.send_signal(asked)
        velad.process.send_signal(signal.SIGCONT)

        if asked == signal.SIGTERM:
            assert velad.process.wait(20) == 0
            assert "daemon_stopped" in velad.log()
        else:
            velad.await_ready()
            eventually(lambda: "configuration_reloaded" in velad.log(), 20, "the reload")
            assert len(velad.status()["circuits"]) == count
