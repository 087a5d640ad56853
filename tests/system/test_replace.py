"""velad --replace: an upgrade without an outage, on real velads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from late_session import HEARS_LATE
from sealed_circuit import holder_of

from lab.autoconfigured import Ends, asking, asking_for_each, ends, policy
from lab.daemon import Velad, is_asked, running_velactl
from lab.link import carrier_changes
from lab.namespace import Namespace
from lab.pings import Pings
from lab.topology import TwoRouters
from lab.waiting import PATIENCE, eventually
from vela.errors import VelaError
from vela.public_key import format_public_key
from vela.supervisor.config.identity import generate
from vela.supervisor.velactl.client import Connection

pytestmark = pytest.mark.needs_net_admin

NAMES = ("vela0", "vela1", "vela2")
KEY = "k" * 40


def target(number: int) -> str:
    return f"172.16.{1 + number}.2"


def tables(remote: str, **settings: Any) -> str:
    """Three circuits to one remote."""
    return asking_for_each(remote, NAMES, **settings)


@dataclass(frozen=True)
class Kind:
    """What the circuits are like."""

    settings: dict[str, Any]
    keyed: bool = False
    encrypted: bool = False
    identified: bool = False


KINDS = {
    "plain": Kind({}),
    "keyed": Kind({}, keyed=True),
    "listening port": Kind({"source_port": "listen"}),
    "encrypted": Kind({"encryption": "required"}, keyed=True, encrypted=True),
    "public keys": Kind({"encryption": "required"}, encrypted=True, identified=True),
}


@contextmanager
def three(routers: TwoRouters, kind: Kind, tmp: str) -> Iterator[Ends]:
    settings = dict(kind.settings)
    more: dict[str, Any] = {}
    if kind.keyed:
        path = os.path.join(tmp, "key")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(KEY)
        settings["key_file"] = more["key_file"] = path
    if kind.encrypted:
        more["encryption"] = "required"
    daemon = ["", ""]
    if kind.identified:
        paths = [Path(tmp, name) for name in ("a", "b")]
        public = [format_public_key(generate(path)) for path in paths]
        settings["peer_key"], more["peers"] = public[1], [public[0]]
        daemon = [f'[daemon]\nidentity = "{path}"\n' for path in paths]
    config_a = daemon[0] + tables(routers.b.ipv4, **settings)
    with ends(routers, config_a, daemon[1] + policy(interfaces="vela*", **more)) as both:
        for velad in both:
            for name in NAMES:
                velad.wait_for_state(name, "up")
        yield both


def link(namespace: Namespace, name: str) -> tuple[int, str, list[str]]:
    """Return index, qdisc and addresses of an interface."""
    (shown,) = json.loads(namespace.run("ip", "-j", "addr", "show", "dev", name).stdout)
    qdisc = namespace.run("tc", "qdisc", "show", "dev", name).stdout
    return shown["ifindex"], qdisc, sorted(each["local"] for each in shown["addr_info"])


@contextmanager
def pinging(both: Ends, interval_s: float) -> Iterator[Pings]:
    """Ping the other ends of all circuits from A; begin when each has answered."""
    with Pings([target(each) for each in range(len(NAMES))], interval_s, both.a.namespace) as pings:
        pings.await_answers(1)
        yield pings


def end(pings: Pings, both: Ends) -> tuple[list[int], float]:
    """Return how many answers are missing, for each, and the longest gap in milliseconds."""
    # Those to the last requests are still under way.
    pings.await_answers(20)
    pings.stop()
    missing = pings.unanswered()
    for name, lost in zip(NAMES, missing, strict=True):
        if lost:
            # For whoever reads of the failure.
            since = time.time() - time.monotonic()
            print(name, [datetime.fromtimestamp(since + at, UTC).isoformat() for at in lost[:20]])
            for velad in both:
                print(json.dumps(velad.circuit(name)))
                print(velad.namespace.run("ip", "-s", "-s", "link", "show", "dev", name).stdout)
    return [len(lost) for lost in missing], 1000 * max(pings.gaps())


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
            with pinging(both, 0.01 if turn else 0.001) as pings:
                both.a.replace()

                for each in NAMES:
                    both.a.wait_for_state(each, "up")
                assert workers.isdisjoint(both.a.worker_pid(each) for each in NAMES)
                missing, longest = end(pings, both)
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


WAITS = """
import pathlib, time
from vela.supervisor.predecessor import Predecessor
receive = Predecessor.receive
def waits(self, *arguments):
    waits_at, goes_on = map(pathlib.Path, {paths!r})
    waits_at.touch()
    while not goes_on.exists():
        time.sleep(0.005)
    return receive(self, *arguments)
Predecessor.receive = waits
"""


def test_replaced_while_another_session_follows_waits_for_it(
    routers: TwoRouters, tmp_path: Path
) -> None:
    """Encrypted circuits seek one when the process that holds their keys was lost."""
    waits_at, goes_on = paths = tmp_path / "waits", tmp_path / "goes on"
    with three(routers, KINDS["encrypted"], str(tmp_path)) as both:
        with patched(both.a, HEARS_LATE):
            both.a.replace()
        # The sessions whose keys the velad before had, too, are followed by others.
        eventually(
            lambda: both.a.log().count("it has followed") == len(NAMES), 20.0, "these to be up"
        )
        flaps = [both.b.circuit(each)["transitions"] for each in NAMES]
        holder = holder_of(both.a)
        assert holder
        with pinging(both, 0.01) as pings:
            with patched(both.a, WAITS.format(paths=[*map(str, paths)])):
                both.a.launch("--replace")
            eventually(waits_at.exists, 20.0, "the new velad to be ready to take over")
            length = len(both.a.log())
            os.kill(holder, signal.SIGKILL)
            eventually(
                lambda: "another session follows" in both.a.log()[length:], 20.0, "that session"
            )
            goes_on.touch()
            both.a.await_ready()
            missing, _ = end(pings, both)

        assert missing == [0, 0, 0]
        assert [both.b.circuit(each)["transitions"] for each in NAMES] == flaps


@pytest.fixture
def plain(routers: TwoRouters, tmp_path: Any) -> Iterator[Ends]:
    with three(routers, KINDS["plain"], str(tmp_path)) as both:
        yield both


@dataclass(frozen=True)
class Refused:
    status: int
    said: str
    took_s: float


def try_to_replace(velad: Velad, *, before: str = "") -> Refused:
    """Start a velad that is to replace one and cannot; the one that ran is still velad's."""
    former, length = velad.process, len(velad.log())
    began = time.monotonic()
    with patched(velad, before):
        velad.launch("--replace")
    assert velad.process is not None
    try:
        status = velad.process.wait(60 * PATIENCE)
    finally:
        velad.process = former
    return Refused(status, velad.log()[length:], time.monotonic() - began)


@contextmanager
def patched(velad: Velad, before: str) -> Iterator[None]:
    velad._before = before
    yield
    velad._before = ""


@contextmanager
def untouched(both: Ends) -> Iterator[None]:
    """See that the velad at A serves its circuits all the while, as before."""
    pid, links = both.a.status()["pid"], [link(both.a.namespace, each) for each in NAMES]
    workers = [both.a.worker_pid(each) for each in NAMES]
    flaps = [both.b.circuit(each)["transitions"] for each in NAMES]
    carriers = carrier_changes(both.a.namespace, *NAMES)
    with pinging(both, 0.01) as pings:
        yield

        # Longer than a remote waits for keepalives, 3.5 s.
        pings.await_answers(500)
        missing, _ = end(pings, both)
        assert missing == [0, 0, 0]
        assert both.a.status()["pid"] == pid
        assert [both.a.worker_pid(each) for each in NAMES] == workers
        assert [link(both.a.namespace, each) for each in NAMES] == links
        assert carrier_changes(both.a.namespace, *NAMES) == carriers
        assert [both.b.circuit(each)["transitions"] for each in NAMES] == flaps
        for velad in both:
            for each in NAMES:
                assert velad.circuit(each)["state"] == "up"


def test_bad_file_is_refused_and_nothing_happens(plain: Ends, routers: TwoRouters) -> None:
    with untouched(plain):
        plain.a.configure(tables(routers.b.ipv4).replace("id = 2", "id = 1"))

        refused = try_to_replace(plain.a)

        # As without --replace, and as the unit expects of mistakes.
        assert refused.status == 2
        assert "circuits.vela1" in refused.said
        assert "velad_about_to_be_replaced" not in refused.said


RAISES = {
    "while it is made": """
from vela.supervisor.registry.registry import Registry
def fails(self):
    raise RuntimeError("what nobody expects")
Registry.create_all = fails
""",
    "when circuits exist": """
from vela.errors import DeviceError
from vela.supervisor import daemon
def fails():
    raise DeviceError("what nobody expects")
daemon.check_capabilities = fails
""",
    "when it hears of circuits": """
from vela.errors import ConfigError
from vela.supervisor.predecessor import Predecessor
def fails(self, name, settings):
    raise ConfigError("what nobody expects")
Predecessor._parse = fails
""",
    "when it goes on": """
from vela.supervisor.registry.registry import Registry
def fails(self, former):
    raise RuntimeError("what nobody expects")
Registry.resume = fails
""",
}


@pytest.mark.parametrize("when", RAISES)
@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_velad_that_fails_to_take_over_leaves_the_one_before_untouched(
    routers: TwoRouters, tmp_path: Any, kind: str, when: str
) -> None:
    with three(routers, KINDS[kind], str(tmp_path)) as both:
        with untouched(both):
            refused = try_to_replace(both.a, before=RAISES[when])

            assert refused.status == 1
            assert "what nobody expects" in refused.said
            eventually(lambda: "velad_not_replaced" in both.a.log(), 10.0, "the former to say so")

        both.a.replace()
        for each in NAMES:
            both.a.wait_for_state(each, "up")


STOPS_IT = """
import os, signal
from vela.supervisor.predecessor import Predecessor
take_over = Predecessor.take_over
def stops_it(self, *arguments):
    os.kill(self.pid, signal.SIGSTOP)
    take_over(self, *arguments)
Predecessor.take_over = stops_it
"""


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_no_worker_starts_before_the_former_one_has_ended(
    routers: TwoRouters, tmp_path: Any, kind: str
) -> None:
    """Two would take turns on one queue, and use counters of one key twice."""
    with three(routers, KINDS[kind], str(tmp_path)) as both:
        former, workers = both.a.process, [both.a.worker_pid(each) for each in NAMES]
        assert former is not None
        with pinging(both, 0.01) as pings:
            with patched(both.a, STOPS_IT):
                both.a.launch("--replace")
            try:
                # The new one answers, and has no worker: the former one's carry frames.
                both.a.wait_for(lambda status: status["pid"] != former.pid, 20.0, "the new velad")
                # For longer than echo requests may stay unanswered.
                pings.await_answers(400)
                assert [both.a.circuit(each)["worker"]["pid"] for each in NAMES] == [None] * 3
                assert [both.a.circuit(each)["state"] for each in NAMES] == ["up"] * 3
                for worker in workers:
                    os.kill(worker, 0)
            finally:
                os.kill(former.pid, signal.SIGCONT)
            both.a.await_ready()

            assert former.wait(30 * PATIENCE) == 0
            assert not set(workers) & {both.a.worker_pid(each) for each in NAMES}
            missing, _ = end(pings, both)
            assert missing == [0, 0, 0]


DIES = """
import os
from vela.supervisor.predecessor import Predecessor
def dies(self, name):
    os._exit(9)
Predecessor._end = dies
"""


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_velad_that_dies_while_it_takes_over_leaves_all_circuits_to_the_one_before(
    routers: TwoRouters, tmp_path: Any, kind: str
) -> None:
    with three(routers, KINDS[kind], str(tmp_path)) as both:
        pid, before = both.a.pid, [link(both.a.namespace, each) for each in NAMES]

        refused = try_to_replace(both.a, before=DIES)

        assert refused.status == 9
        eventually(lambda: "velad_not_replaced" in both.a.log(), 10.0, "the former to say so")
        assert both.a.status()["pid"] == pid
        with pinging(both, 0.01) as pings:
            pings.await_answers(100)
            end(pings, both)
            for velad in both:
                for each in NAMES:
                    velad.wait_for_state(each, "up", timeout_s=30.0)
            assert [link(both.a.namespace, each) for each in NAMES] == before
            both.a.replace()
            for each in NAMES:
                both.a.wait_for_state(each, "up")


def test_stopped_velad_is_not_replaced_and_goes_on_when_it_is_continued(plain: Ends) -> None:
    os.kill(plain.a.pid, signal.SIGSTOP)
    try:
        refused = try_to_replace(plain.a)
    finally:
        os.kill(plain.a.pid, signal.SIGCONT)

    assert refused.status == 1
    assert "does not answer within 5 s; it is not replaced" in refused.said
    assert refused.took_s < 10.0 * PATIENCE
    with untouched(plain):
        pass
    plain.a.replace()
    for each in NAMES:
        plain.a.wait_for_state(each, "up")


def test_without_a_velad_there_is_nothing_to_replace(routers: TwoRouters) -> None:
    velad = Velad(routers.a.namespace, tables(routers.b.ipv4))
    try:
        refused = try_to_replace(velad)
    finally:
        velad.close()

    assert refused.status == 1
    assert f"there is no velad to replace at {velad.control_socket}" in refused.said


def test_velad_that_is_too_old_is_not_replaced(routers: TwoRouters) -> None:
    velad = Velad(routers.a.namespace, tables(routers.b.ipv4))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(str(velad.control_socket))
            listening.listen()
            velad.launch("--replace")
            connection, _ = listening.accept()
            with connection:
                asked = connection.makefile().readline()
                connection.sendall(b'{"error": "velad does not understand ' + b'it"}\n')
            assert velad.process is not None
            assert velad.process.wait(30 * PATIENCE) == 1
    finally:
        velad.process = None
        velad.close()

    assert json.loads(asked)["command"] == "replace"
    assert "too old for that; restart velad instead" in velad.log()


def test_other_version_of_the_protocol_is_refused(plain: Ends) -> None:
    with untouched(plain):
        refused = try_to_replace(
            plain.a, before="from vela.supervisor import predecessor; predecessor.VERSION = 99"
        )

    assert refused.status == 1
    assert "not by version 99; restart velad" in refused.said


@pytest.mark.parametrize("key", ["port = 48700", 'listen = ["0.0.0.0"]'])
def test_what_cannot_be_taken_over_is_refused(plain: Ends, routers: TwoRouters, key: str) -> None:
    with untouched(plain):
        plain.a.configure(f"[daemon]\n{key}\n{tables(routers.b.ipv4)}")

        refused = try_to_replace(plain.a)

    assert refused.status == 1
    assert f"daemon.{key.partition(' ')[0]} changed; restart velad" in refused.said


def test_file_that_has_changed_is_what_the_new_velad_follows(
    plain: Ends, routers: TwoRouters
) -> None:
    """As a reload would: with the least that does it."""
    before = link(plain.a.namespace, "vela1")[0]
    text = tables(routers.b.ipv4, description="changed")
    _, _, rest = text.partition("[circuits.vela1]")
    plain.a.configure(f"[circuits.vela1]{rest}".replace("172.16.2.1/30", "172.16.2.1/29"))

    plain.a.replace()

    plain.a.wait_for(
        lambda status: [each["name"] for each in status["circuits"]] == list(NAMES[1:]),
        10.0,
        "vela0 to be gone",
    )
    shown = json.loads(plain.a.namespace.run("ip", "-j", "addr", "show", "dev", "vela1").stdout)
    address = shown[0]["addr_info"][0]
    assert (address["local"], address["prefixlen"]) == ("172.16.2.1", 29)
    assert shown[0]["ifindex"] == before
    assert plain.a.wait_for_state("vela1", "up")["description"] == "changed"
    # It was deleted, not stopped: its end at the remote is gone, too.
    plain.b.wait_for(lambda status: len(status["circuits"]) == 2, 10.0, "vela0 to be gone at B")


def test_end_that_another_machine_has_set_up_goes_on_likewise(
    plain: Ends, figure: Callable[[str], None]
) -> None:
    before = [link(plain.b.namespace, each) for each in NAMES]
    flaps = [plain.a.circuit(each)["transitions"] for each in NAMES]
    with pinging(plain, 0.01) as pings:
        plain.b.replace()

        for each in NAMES:
            plain.b.wait_for_state(each, "up")
        missing, longest = end(pings, plain)
        figure(f"other end: {missing} answers missing, longest gap {longest:.0f} ms")
        assert missing == [0, 0, 0]
        assert [link(plain.b.namespace, each) for each in NAMES] == before
        assert [plain.a.circuit(each)["transitions"] for each in NAMES] == flaps
        assert {plain.b.circuit(each)["origin"] for each in NAMES} == {"peer"}


def test_static_circuits_and_those_that_are_down_go_on(
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    config_a = (
        f'[circuits.vela0]\nid = 1\nremote = "{routers.b.ipv4}"\nautoconfigure = false\n'
        'addresses = ["172.16.1.1/30"]\n' + asking("10.201.0.99", name="vela5", id=5)
    )
    config_b = (
        f'[circuits.vela0]\nid = 1\nremote = "{routers.a.ipv4}"\nautoconfigure = false\n'
        'addresses = ["172.16.1.2/30"]\n'
    )
    with ends(routers, config_a, config_b) as both:
        for velad in both:
            velad.wait_for_state("vela0", "unmonitored")
        both.a.wait_for_state("vela5", "connecting", "down")
        index = link(both.a.namespace, "vela5")[0]
        with Pings([target(0)], 0.001, both.a.namespace) as pings:
            pings.await_answers(1)

            both.a.replace()

            pings.await_answers(3000)
            pings.stop()
        figure(f"static: longest gap {1000 * pings.gaps()[0]:.0f} ms")
        assert pings.unanswered() == [[]]
        assert both.a.circuit("vela0")["state"] == "unmonitored"
        assert both.a.wait_for_state("vela5", "connecting", "down")
        assert link(both.a.namespace, "vela5")[0] == index


def test_circuit_whose_key_has_changed_begins_a_session_anew(
    routers: TwoRouters, tmp_path: Any
) -> None:
    with three(routers, KINDS["keyed"], str(tmp_path)) as both:
        before = [link(both.a.namespace, each) for each in NAMES]
        Path(tmp_path, "key").write_text("n" * 40)
        both.b.stop()
        both.b.start()
        for each in NAMES:
            both.a.wait_for_state(each, "down")

        both.a.replace()

        for each in NAMES:
            both.a.wait_for_state(each, "up")
        assert [link(both.a.namespace, each) for each in NAMES] == before


def test_circuit_that_a_standby_remote_carries_stays_there(routers: TwoRouters) -> None:
    # The last of its remotes is B; nobody answers at the first.
    config = asking("10.201.0.99").replace(
        'remote = "10.201.0.99"', f'remote = ["10.201.0.99", "{routers.b.ipv4}"]'
    )
    with ends(routers, config, policy(interfaces="vela*")) as both:
        both.a.wait_for_state("vela0", "up", timeout_s=30.0)
        before = both.a.circuit("vela0")
        flaps = both.b.wait_for_state("vela0", "up")["transitions"]

        both.a.replace()

        after = both.a.wait_for_state("vela0", "up")
        assert after["remote"] == before["remote"] == routers.b.ipv4
        assert after["remotes"] == before["remotes"]
        assert after["reason"] == before["reason"] != ""
        assert both.b.circuit("vela0")["transitions"] == flaps


def test_velactl_and_metrics_are_answered_before_and_after(
    routers: TwoRouters, tmp_path: Any
) -> None:
    config = '[daemon]\nmetrics = "127.0.0.1:9486"\n' + tables(routers.b.ipv4)
    with ends(routers, config, policy(interfaces="vela*")) as both:
        former = both.a.status()["pid"]
        both.a.replace()

        assert both.a.status()["pid"] != former
        assert both.a.control("status").returncode == 0
        with both.a.namespace.entered(), socket.create_connection(("127.0.0.1", 9486)) as asking_:
            asking_.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200 OK" in asking_.recv(100)
        both.a.stop()
        assert not both.a.control_socket.exists()


def test_clients_of_the_control_socket_are_served_all_the_while(plain: Ends) -> None:
    """Those that come at any moment, those that were there, and those that monitor."""
    former = plain.a.pid
    with monitoring(plain.a) as monitor, Connection(str(plain.a.control_socket)) as idle:
        assert idle.ask({"command": "status"})["pid"] == former
        for _ in range(3):
            with asking_all_the_while(plain.a) as pids:
                plain.a.replace()
            assert len(set(pids)) == 2

        assert idle.ask({"command": "status"})["pid"] == plain.a.pid
        plain.a.control("down", "vela0")
        wait_for_change(monitor, "vela0", "disabled")


def test_clients_of_a_velad_that_is_not_replaced_are_served_all_the_while(plain: Ends) -> None:
    pid = plain.a.pid
    with monitoring(plain.a) as monitor, Connection(str(plain.a.control_socket)) as idle:
        assert idle.ask({"command": "status"})["pid"] == pid

        # It ends once the former one has frozen.
        assert try_to_replace(plain.a, before=DIES).status == 9

        eventually(lambda: "velad_not_replaced" in plain.a.log(), 10.0, "the former to say so")
        assert idle.ask({"command": "status"})["pid"] == pid
        for each in NAMES:
            plain.a.wait_for_state(each, "up", timeout_s=30.0)
        plain.a.control("down", "vela0")
        wait_for_change(monitor, "vela0", "disabled")


@contextmanager
def monitoring(velad: Velad) -> Iterator[subprocess.Popen[str]]:
    """Run velactl monitor, which has subscribed when this begins."""
    with running_velactl(velad, "monitor", "--json") as process:
        eventually(lambda: is_asked(velad), 10.0, "velactl to subscribe")
        velad.status()  # and one that asked later was answered
        yield process


def wait_for_change(monitor: subprocess.Popen[str], circuit: str, state: str) -> None:
    """Read what velactl monitor shows until the circuit has come to a state."""
    assert monitor.stdout is not None
    for line in monitor.stdout:
        event = json.loads(line)
        if (event.get("circuit"), event.get("state")) == (circuit, state):
            return
    raise AssertionError(f"velactl monitor has ended: {monitor.wait()}")


@contextmanager
def asking_all_the_while(velad: Velad) -> Iterator[list[int]]:
    """Ask for the status without a pause, each time anew; yield who answered."""
    pids: list[int] = []
    failures: list[str] = []
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            try:
                with Connection(str(velad.control_socket), 60.0 * PATIENCE) as connection:
                    pids.append(connection.ask({"command": "status"})["pid"])
            except VelaError as err:
                failures.append(str(err))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield pids
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []


TAKES_ITS_TIME = """
import time
from vela.supervisor.predecessor import Predecessor
receive = Predecessor.receive
def takes_its_time(self, *arguments):
    received = receive(self, *arguments)
    time.sleep(2.0)
    return received
Predecessor.receive = takes_its_time
"""


def test_nobody_but_workers_does_anything_while_another_velad_gets_ready(plain: Ends) -> None:
    run = plain.a.namespace.run

    def mac() -> str:
        shown = json.loads(run("ip", "-j", "link", "show", "dev", "vela0").stdout)
        return str(shown[0]["address"])

    before = mac()
    former = plain.a.pid
    with pinging(plain, 0.01) as pings:
        with patched(plain.a, TAKES_ITS_TIME):
            plain.a.launch("--replace")
        eventually(lambda: "about_to_be_replaced" in plain.a.log(), 20.0, "the former to be frozen")

        # A velad that hears of this puts it right at once.
        run("ip", "link", "set", "vela0", "address", "02:00:00:00:00:77")
        pings.await_answers(10)
        shown = mac()
        # It waits for the velad that follows.
        status = plain.a.status()

        assert shown == "02:00:00:00:00:77"
        assert status["pid"] != former
        plain.a.await_ready()
        # What was changed meanwhile is put right by that.
        eventually(lambda: mac() == before, 10.0, "the MAC address to be restored")
        end(pings, plain)


def test_member_of_the_control_group_cannot_replace_velad(plain: Ends) -> None:
    with untouched(plain):
        plain.a.control_socket.chmod(0o666)
        plain.a.directory.chmod(0o755)
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking_:
                    asking_.connect(str(plain.a.control_socket))
                    asking_.sendall(b'{"command": "replace", "version": 1}\n')
                    os._exit(0 if b"only root can" in asking_.recv(1000) else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
