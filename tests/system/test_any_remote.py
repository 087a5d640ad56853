"""A circuit whose remote is any, called from behind a translator: real velads, nftables, ping."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from translated import (
    HUB,
    HUB6,
    OUTSIDE,
    OUTSIDE_TOO,
    STRANGER,
    STRANGER6,
    Translated,
    translated,
)

from lab.autoconfigured import policy
from lab.capture import Capture, Packet
from lab.circuit import ADDRESSES_A, ADDRESSES_B, NAME
from lab.daemon import Velad, waits_from_now
from lab.datagrams import VELA_PORT, udp_socket
from lab.headers import datagram
from lab.link import Interface
from lab.load import ping
from lab.namespace import Namespace
from lab.running_ping import pinging
from lab.waiting import eventually
from vela.public_key import format_public_key
from vela.signaling.codec import read_header
from vela.signaling.messages import MessageType
from vela.supervisor.config.identity import generate

pytestmark = pytest.mark.needs_net_admin

KEEPALIVE_S = 1.0
THERE, HERE = ADDRESSES_A[0].partition("/")[0], ADDRESSES_B[0].partition("/")[0]
"""Inner addresses: the branch's, and the hub's."""
# An echo request each second that is not answered, and the next one, which has a keepalive sent;
# then a new worker.
FOLLOWED_WITHIN_S = 3.0
# Without that: three and a half keepalives, a request, a session.
LOST_WITHIN_S = 3.5 * KEEPALIVE_S + 3.0


@dataclass(frozen=True)
class Kind:
    """How the circuit is protected."""

    encrypted: bool = False
    identified: bool = False

    @property
    def mtu(self) -> int:
        return 1450 if self.encrypted else 1471


CLEAR = Kind()
KINDS = {
    "clear with a key": CLEAR,
    "encrypted with a key": Kind(encrypted=True),
    "encrypted with public keys": Kind(encrypted=True, identified=True),
}


def key_file(folder: Path, name: str = "key", text: str = "k" * 40) -> str:
    path = folder / name
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def table(name: str = NAME, **settings: Any) -> str:
    values = {"id": 1, "keepalive": KEEPALIVE_S, **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([f"[circuits.{name}]", *lines]) + "\n"


@dataclass
class Configs:
    """Of the hub, and of whoever calls it."""

    folder: Path
    kind: Kind
    daemon: list[str] = field(default_factory=lambda: ["", ""])
    keys: list[dict[str, Any]] = field(default_factory=lambda: [{}, {}])

    def __post_init__(self) -> None:
        settings: dict[str, Any] = {"encryption": "required"} if self.kind.encrypted else {}
        self.keys = [dict(settings), dict(settings)]
        if not self.kind.identified:
            for each in self.keys:
                each["key_file"] = key_file(self.folder)
            return
        paths = [self.folder / name for name in ("hub.key", "branch.key")]
        public = [format_public_key(generate(path)) for path in paths]
        for each, other in zip(self.keys, reversed(public), strict=True):
            each["peer_key"] = other
        self.daemon = [f'[daemon]\nidentity = "{path}"\n' for path in paths]

    def hub(self, **settings: Any) -> str:
        plain = {"remote": "any", "addresses": list(ADDRESSES_B)}
        return self.daemon[0] + table(**(plain | self.keys[0] | settings))

    def branch(self, **settings: Any) -> str:
        plain = {"remote": HUB, "addresses": list(ADDRESSES_A)}
        return self.daemon[1] + table(**(plain | self.keys[1] | settings))


@dataclass(frozen=True)
class Bench:
    net: Translated
    configs: Configs
    hub: Velad
    branch: Velad

    @property
    def namespace(self) -> Namespace:
        """The branch's."""
        return self.net.branches[0]

    def seen_at(self) -> tuple[str | None, int | None]:
        """Return where the hub's circuit has its remote."""
        circuit = self.hub.circuit(NAME)
        return circuit["remote_address"], circuit["remote_port"]

    def index(self) -> int:
        return int(self.net.hub.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout)

    def worked(self) -> None:
        """See that frames of every size cross both ways."""
        self.hub.wait_for_state(NAME, "up")
        self.branch.wait_for_state(NAME, "up")
        mtu = self.configs.kind.mtu
        for source, address in (
            (self.namespace, HERE),
            (self.net.hub, THERE),
            (self.namespace, ADDRESSES_B[1].partition("/")[0]),
            (self.net.hub, ADDRESSES_A[1].partition("/")[0]),
        ):
            pings = ping(source, address, size=mtu, dont_fragment=True)
            assert pings.lost == 0, pings.output


@pytest.fixture
def net() -> Iterator[Translated]:
    with translated() as made:
        yield made


@contextmanager
def called(net: Translated, folder: Path, kind: Kind = CLEAR, **settings: Any) -> Iterator[Bench]:
    """The hub, and the first branch, up; settings: of both ends."""
    configs = Configs(folder, kind)
    with (
        Velad(net.hub, configs.hub(**settings), name="hub") as hub,
        Velad(net.branches[0], configs.branch(**settings), name="branch") as branch,
    ):
        for velad in (hub, branch):
            velad.wait_for_state(NAME, "up")
        yield Bench(net, configs, hub, branch)


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, net: Translated, tmp_path: Path) -> Iterator[Bench]:
    with called(net, tmp_path, KINDS[request.param]) as made:
        yield made


@pytest.fixture
def clear(net: Translated, tmp_path: Path) -> Iterator[Bench]:
    with called(net, tmp_path) as made:
        yield made


def test_hub_waits_and_is_called_and_frames_of_all_sizes_cross_both_ways(
    net: Translated, tmp_path: Path
) -> None:
    configs = Configs(tmp_path, CLEAR)
    with Velad(net.hub, configs.hub(), name="hub") as hub:
        waiting = hub.wait_for_state(NAME, "connecting")
        assert (waiting["reason"], waiting["reason_code"]) == (
            "waiting for the other end to call",
            "awaiting_call",
        )
        assert (waiting["remote"], waiting["remote_address"], waiting["remote_port"]) == (
            "any",
            None,
            None,
        )
        shown = hub.control("status")
        assert "waiting for the other end to call" in shown.stdout
        with Velad(net.branches[0], configs.branch(), name="branch") as branch:
            made = Bench(net, configs, hub, branch)
            made.worked()
            address, port = made.seen_at()
            assert address == OUTSIDE
            assert port in range(40000, 40100)
            assert hub.circuit(NAME)["remote"] == "any"
            (line,) = [
                each for each in hub.control("status").stdout.splitlines() if each.startswith(NAME)
            ]
            assert line.endswith(OUTSIDE)
            details = hub.control("status", NAME).stdout
            assert f"remote        any, {OUTSIDE} port {port}\n" in details
            assert 'remote = "any"' in hub.control("show-config").stdout


def test_frames_of_all_sizes_cross_both_ways(bench: Bench) -> None:
    bench.worked()


@pytest.mark.parametrize(
    ("kind", "move", "keepalive"),
    [
        ("clear with a key", "port", 1.0),
        ("clear with a key", "address", 5.0),
        ("encrypted with a key", "port", 5.0),
        ("encrypted with public keys", "address", 1.0),
    ],
)
def test_hub_follows_a_translator_that_maps_anew(
    net: Translated,
    tmp_path: Path,
    figure: Callable[[str], None],
    kind: str,
    move: str,
    keepalive: float,
) -> None:
    with called(net, tmp_path, KINDS[kind], keepalive=keepalive) as bench:
        index, flaps = bench.index(), bench.hub.circuit(NAME)["transitions"]
        with pinging(bench.namespace, HERE, tmp_path) as pings:
            at, waited_s = time.time(), waits_from_now(bench.hub, bench.branch)
            if move == "port":
                net.nat.set(ports="41000-41099")
            else:
                net.nat.set(address=OUTSIDE_TOO, ports="41000-41099")
            pings.await_reply(at + 0.5)
            seconds, lost = pings.outage(at)
        figure(
            f"{kind}, another {move}, keepalive {keepalive:g} s: "
            f"{seconds:.2f} s without replies, {lost} of pings each 10 ms lost"
        )
        assert seconds - waited_s() < FOLLOWED_WITHIN_S
        address, port = bench.seen_at()
        assert address == (OUTSIDE if move == "port" else OUTSIDE_TOO)
        assert port in range(41000, 41100)
        # Neither end has noticed, and what is set on the interface stays.
        assert bench.index() == index
        assert bench.hub.circuit(NAME)["transitions"] == flaps
        assert Interface(net.hub, NAME).carrier
        bench.worked()
        assert bench.hub.log().count(" remote_moved ") == 1


def test_hub_follows_a_branch_that_is_renumbered(
    net: Translated, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Not behind a translator: its own address is gone, so it begins another session."""
    configs = Configs(tmp_path, CLEAR)
    outer = Interface(net.stranger, "eth0")
    with (
        Velad(net.hub, configs.hub(), name="hub") as hub,
        Velad(net.stranger, configs.branch(), name="branch") as branch,
    ):
        hub.wait_for_state(NAME, "up")
        branch.wait_for_state(NAME, "up")
        index = net.hub.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout
        with pinging(net.stranger, HERE, tmp_path) as pings:
            at, waited_s = time.time(), waits_from_now(hub, branch)
            # Without the first address of its subnet the kernel has no other one of it.
            outer.delete_address(f"{STRANGER}/24")
            outer.add_address("10.201.0.6/24")
            eventually(
                lambda: hub.circuit(NAME)["remote_address"] == "10.201.0.6", 15, "the new address"
            )
            pings.await_reply(time.time())
            seconds, lost = pings.outage(at)
        figure(f"renumbered: {seconds:.2f} s without replies, {lost} of pings each 10 ms lost")
        assert seconds - waited_s() < LOST_WITHIN_S + 2
        assert net.hub.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout == index


def test_hub_is_called_over_ipv6_and_by_another_family_later(
    net: Translated, tmp_path: Path
) -> None:
    configs = Configs(tmp_path, CLEAR)
    with (
        Velad(net.hub, configs.hub(), name="hub") as hub,
        Velad(net.stranger, configs.branch(remote=HUB6), name="branch") as branch,
    ):
        for velad in (hub, branch):
            velad.wait_for_state(NAME, "up")
        circuit = hub.circuit(NAME)
        assert (circuit["remote_address"], circuit["mtu"]) == (STRANGER6, 1451)
        # No translator is between: frames come from a port of their own, and leave from one.
        assert circuit["source_port"] != VELA_PORT
        assert ping(net.hub, THERE, size=1451, dont_fragment=True).lost == 0
        index = net.hub.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout

        branch.configure(configs.branch(remote=HUB))
        branch.control("reload")

        hub.wait_for(lambda status: status["circuits"][0]["remote_address"] == STRANGER, 10)
        for velad in (hub, branch):
            velad.wait_for_state(NAME, "up")
        assert hub.circuit(NAME)["mtu"] == 1471
        assert ping(net.stranger, HERE, size=1471, dont_fragment=True).lost == 0
        assert net.hub.run("cat", f"/sys/class/net/{NAME}/ifindex").stdout == index


@pytest.mark.parametrize("end", ["branch", "hub"])
def test_end_that_is_killed_and_started_again_is_up_again(
    bench: Bench, tmp_path: Path, figure: Callable[[str], None], end: str
) -> None:
    velad = bench.hub if end == "hub" else bench.branch
    source, address = (bench.net.hub, THERE) if end == "branch" else (bench.namespace, HERE)
    with pinging(source, address, tmp_path) as pings:
        at, waited_s = time.time(), waits_from_now(bench.hub, bench.branch)
        velad.kill()
        velad.start()
        pings.await_reply(time.time() + 0.2)
        seconds, lost = pings.outage(at)
    figure(f"{end} killed and started: {seconds:.2f} s without replies, {lost} lost")
    assert seconds - waited_s() < LOST_WITHIN_S
    bench.worked()


def test_branch_that_restarts_behind_another_mapping_has_the_circuit_again(bench: Bench) -> None:
    bench.branch.kill()
    bench.net.nat.set(ports="41000-41099")
    bench.branch.start()

    bench.branch.wait_for_state(NAME, "up")
    bench.worked()
    assert bench.seen_at()[1] in range(41000, 41100)


def test_replaced_hub_keeps_the_remote_and_follows_it(
    bench: Bench, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    before, index = bench.seen_at(), bench.index()
    flaps = bench.branch.circuit(NAME)["transitions"]
    with pinging(bench.namespace, HERE, tmp_path) as pings:
        at, waited_s = time.time(), waits_from_now(bench.branch)
        bench.hub.replace()
        pings.await_reply(time.time() + 0.5)
        seconds, lost = pings.outage(at)
        figure(f"hub replaced: {seconds:.2f} s without replies, {lost} of pings each 10 ms lost")
        assert seconds - waited_s() < 1.0
        assert lost == 0
        assert (bench.seen_at(), bench.index()) == (before, index)
        assert bench.branch.circuit(NAME)["transitions"] == flaps
        assert bench.hub.circuit(NAME)["state"] == "up"
        bench.net.nat.set(ports="41000-41099")
        eventually(lambda: (bench.seen_at()[1] or 0) >= 41000, 10, "the new port")
    bench.worked()


def test_reload_to_an_address_and_back_keeps_the_session(
    bench: Bench, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    index, flaps = bench.index(), bench.hub.circuit(NAME)["transitions"]
    worker = bench.hub.worker_pid(NAME)
    with pinging(bench.namespace, HERE, tmp_path) as pings:
        at, waited_s = time.time(), waits_from_now(bench.hub, bench.branch)
        for remote in (OUTSIDE, "any"):
            bench.hub.configure(bench.configs.hub(remote=remote))
            done = bench.hub.control("reload")
            assert f"{NAME}: remote, " in done.stdout or NAME in done.stdout
            assert bench.hub.circuit(NAME)["remote"] == remote
            pings.await_reply(time.time() + 1.5)
        seconds, lost = pings.outage(at)
    figure(f"reload to an address and back: {seconds:.2f} s without replies, {lost} lost")
    assert seconds - waited_s() < 1.0
    assert bench.index() == index
    assert bench.hub.circuit(NAME)["transitions"] == flaps
    assert bench.hub.worker_pid(NAME) == worker
    bench.net.nat.set(ports="41000-41099")
    eventually(lambda: (bench.seen_at()[1] or 0) >= 41000, 10, "the new port")
    bench.worked()


def test_second_branch_behind_the_translator_is_told_and_the_first_stays(clear: Bench) -> None:
    config = clear.configs.branch(addresses=["172.16.17.1/30"])
    before = clear.seen_at()
    with Velad(clear.net.branches[1], config, name="second") as second:
        refused = second.wait_for_state(NAME, "rejected")

        assert "another machine has this circuit on the other end" in refused["reason"]
        assert refused["reason_code"] == "refused_id_taken"
        assert "circuit_refused" in clear.hub.log()
        assert clear.seen_at() == before
        assert clear.hub.circuit(NAME)["transitions"] == 1
        clear.worked()

        # The first one goes, and says so.
        clear.branch.stop()
        second.wait_for_state(NAME, "up", timeout_s=20)
        assert clear.seen_at() != before


def test_replaced_hub_still_knows_whose_the_circuit_is(clear: Bench) -> None:
    before = clear.seen_at()
    clear.hub.replace()

    config = clear.configs.branch(addresses=["172.16.17.1/30"])
    with Velad(clear.net.branches[1], config, name="second") as second:
        refused = second.wait_for_state(NAME, "rejected")

    assert "another machine has this circuit on the other end" in refused["reason"]
    assert clear.seen_at() == before
    clear.worked()


def test_second_branch_that_takes_any_id_gets_another_where_the_hub_lets_it(
    net: Translated, tmp_path: Path
) -> None:
    configs = Configs(tmp_path, CLEAR)
    key = key_file(tmp_path)
    allowed = policy(key_file=key)
    with (
        Velad(net.hub, configs.hub() + allowed, name="hub") as hub,
        Velad(net.branches[0], configs.branch(), name="branch") as branch,
        Velad(net.branches[1], "", name="second") as second,
    ):
        branch.wait_for_state(NAME, "up")
        hub.wait_for_state(NAME, "up")

        added = second.control("add", "vela7", "--remote", HUB, "--key-file", key)

        assert "vela7: id 2, as 1 is taken on the other end\n" in added.stdout
        assert sorted(each["id"] for each in hub.status()["circuits"]) == [1, 2]
        assert branch.circuit(NAME)["transitions"] == 1
        Bench(net, configs, hub, branch).worked()


def test_two_circuits_with_ids_and_keys_of_their_own_behind_one_translator(
    net: Translated, tmp_path: Path
) -> None:
    keys = [key_file(tmp_path, name, name * 20) for name in ("one", "two")]
    inner = [f"172.16.{number}.{{}}/30" for number in (20, 21)]
    numbered = list(zip((1, 2), keys, inner, strict=True))
    hub_config = "".join(
        table(f"vela{number}", id=number, remote="any", key_file=key, addresses=[own.format(2)])
        for number, key, own in numbered
    )
    branches = [
        table(id=number, remote=HUB, key_file=key, addresses=[own.format(1)])
        for number, key, own in numbered
    ]
    with (
        Velad(net.hub, hub_config, name="hub") as hub,
        Velad(net.branches[0], branches[0], name="one") as one,
        Velad(net.branches[1], branches[1], name="two") as two,
    ):
        for velad in (one, two):
            velad.wait_for_state(NAME, "up")
        ports = set()
        for number in (1, 2):
            ports.add(hub.wait_for_state(f"vela{number}", "up")["remote_port"])
            assert ping(net.hub, f"172.16.{19 + number}.1").lost == 0
            assert ping(net.branches[number - 1], f"172.16.{19 + number}.2").lost == 0
        assert len(ports) == 2


def control(packet: Packet, sender: str) -> bytes | None:
    """Return a control message of the sender's, if the packet is one."""
    found = datagram(packet.data)
    if found is None or str(found.ip.source) != sender:
        return None
    data = found.udp.payload
    return data if data[:1] == b"\0" else None


def to_stranger(packets: list[Packet]) -> list[bytes]:
    found = (datagram(each.data) for each in packets)
    return [each.udp.payload for each in found if each and str(each.ip.destination) == STRANGER]


def test_stranger_with_another_key_hears_nothing_and_changes_nothing(clear: Bench) -> None:
    other = key_file(clear.configs.folder, "other", "o" * 40)
    before = clear.seen_at()
    with (
        Capture(clear.net.outside) as capture,
        Velad(
            clear.net.stranger, clear.configs.branch(key_file=other), name="stranger"
        ) as stranger,
    ):
        unanswered = stranger.wait_for(
            lambda status: "no answer from" in status["circuits"][0]["reason"], 15
        )
        assert unanswered["circuits"][0]["state"] == "connecting"
        # And without any key.
        stranger.configure(table(remote=HUB, addresses=list(ADDRESSES_A), keepalive=KEEPALIVE_S))
        stranger.control("reload")
        dropped = clear.hub.status()["rx_dropped"]["control_tag"]
        clear.hub.wait_for(
            lambda status: status["rx_dropped"]["control_tag"] >= dropped + 3, 15, "more of them"
        )
        assert to_stranger(capture.packets()) == []
    assert clear.seen_at() == before
    assert clear.hub.circuit(NAME)["transitions"] == 1
    assert "wrong key from 10.201.0.5" in clear.hub.control("status").stdout
    clear.worked()


def test_stranger_with_another_identity_is_told_no_more_than_that_somebody_is_there(
    net: Translated, tmp_path: Path
) -> None:
    """Where there is no pre-shared key a REQUEST has no tag; the handshake says who it is."""
    with called(net, tmp_path, Kind(encrypted=True, identified=True)) as bench:
        before, identity = bench.seen_at(), tmp_path / "stranger.key"
        generate(identity)
        config = f'[daemon]\nidentity = "{identity}"\n' + table(
            remote=HUB, encryption="required", peer_key=bench.configs.keys[1]["peer_key"]
        )
        with Capture(net.outside) as capture, Velad(net.stranger, config, name="s") as stranger:
            stranger.wait_for(
                lambda status: "not the handshake" in status["circuits"][0]["reason"], 20
            )
            answers = to_stranger(capture.packets())
        headers = [read_header(data) for data in answers]
        assert {header.type for header in headers} == {MessageType.ACKNOWLEDGE}
        # TLV 27 is for who has the session.
        assert all(b"\x1b\0\x08" not in data for data in answers)
        assert bench.seen_at() == before
        assert bench.hub.circuit(NAME)["transitions"] == 1
        assert bench.hub.status()["rx_dropped"]["control_handshake"] >= 1
        bench.worked()


def test_what_a_stranger_has_overheard_changes_nothing(bench: Bench) -> None:
    """All of it, a new session's beginning too, from an address of his own."""
    with Capture(bench.net.outside) as capture:
        bench.branch.control("restart", NAME)
        bench.worked()
        packets = capture.packets()
    heard = [data for data in (control(each, OUTSIDE) for each in packets) if data is not None]
    kinds = {read_header(data).type for data in heard}
    assert {MessageType.REQUEST, MessageType.CONFIRM, MessageType.KEEPALIVE} <= kinds
    before, flaps = bench.seen_at(), bench.hub.circuit(NAME)["transitions"]
    worker = bench.hub.worker_pid(NAME)
    with (
        Capture(bench.net.outside) as capture,
        udp_socket(bench.net.stranger, STRANGER, VELA_PORT) as sender,
    ):
        for _ in range(3):
            for data in heard:
                sender.sendto(data, (HUB, VELA_PORT))
        time.sleep(2 * KEEPALIVE_S)
        answers = to_stranger(capture.packets())

    # A cookie, for what anybody might ask; nothing else.
    assert {read_header(data).type for data in answers} <= {MessageType.ACKNOWLEDGE}
    assert bench.seen_at() == before
    assert bench.hub.circuit(NAME)["transitions"] == flaps
    assert bench.hub.worker_pid(NAME) == worker
    bench.worked()


def test_added_circuit_waits_and_outlives_a_restart_and_doctor_says_what_to_look_at(
    net: Translated, tmp_path: Path
) -> None:
    configs, key = Configs(tmp_path, CLEAR), key_file(tmp_path)
    with Velad(net.hub, "", name="hub") as hub:
        refused = hub.control("add", NAME, "--remote", "any", check=False)
        assert refused.returncode == 1
        assert "'any' needs a key, or anybody could call" in refused.stderr
        added = hub.control(
            *("add", NAME, "--remote", "any", "--key-file", key, "--keepalive", "1"),
            *("--address", ADDRESSES_B[0], "--address", ADDRESSES_B[1]),
        )
        assert added.stdout.splitlines() == [
            f"{NAME}: id 1, toward any",
            f"{NAME} waits for the other end to call: there, `remote` is this machine, "
            "with id 1 and the same key",
        ]
        found = hub.control("doctor", check=False)
        assert "waiting for the other end to call" in found.stdout
        assert f"let UDP {VELA_PORT} in here" in found.stdout
        unanswered = hub.control("ping", NAME, "--count", "1", check=False)
        assert unanswered.returncode == 1
        assert "carries no frames at present" in unanswered.stderr

        hub.stop()
        hub.start()
        assert hub.wait_for_state(NAME, "connecting")["remote"] == "any"
        with Velad(net.branches[0], configs.branch(), name="branch") as branch:
            made = Bench(net, configs, hub, branch)
            made.worked()
            assert hub.control("ping", NAME, "--count", "2").returncode == 0
            findings = json.loads(hub.control("--json", "doctor", check=False).stdout)["findings"]
            assert [each for each in findings if each["circuit"] is not None] == []
            hub.control("delete", NAME)
            assert branch.wait_for_state(NAME, "down", "connecting")["state"]


def test_added_circuit_that_is_called_at_once_is_up(net: Translated, tmp_path: Path) -> None:
    configs, key = Configs(tmp_path, CLEAR), key_file(tmp_path)
    with (
        Velad(net.hub, "", name="hub") as hub,
        Velad(net.branches[0], configs.branch(), name="branch") as branch,
    ):
        branch.wait_for_state(NAME, "connecting")
        added = hub.control(
            "add", NAME, "--remote", "any", "--key-file", key, "--address", ADDRESSES_B[0]
        )

        assert added.stdout == f"{NAME}: id 1, toward any\n"
        assert hub.circuit(NAME)["state"] == "up"
        hub.control("down", NAME)
        assert hub.circuit(NAME)["remote_address"] is None
        hub.control("up", NAME)
        hub.wait_for_state(NAME, "up")
        hub.control("restart", NAME)
        assert hub.circuit(NAME)["state"] == "up"
