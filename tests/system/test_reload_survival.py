"""What a reload that changes one key of a circuit leaves alone, for each key, on a real velad."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Ends, asking, ends, policy, wait_until_up
from lab.circuit import ADDRESSES_A, ADDRESSES_B, NAME
from lab.daemon import Velad
from lab.namespace import Namespace
from lab.pings import Pings
from lab.topology import TwoRouters, two_routers
from lab.waiting import eventually
from vela.public_key import format_public_key
from vela.supervisor.config.effects import CIRCUIT_EFFECTS, PEER_EFFECTS, Effect
from vela.supervisor.config.identity import generate

pytestmark = pytest.mark.needs_net_admin

PINGS = 1000
CPUS = os.sched_getaffinity(0)
Settings = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One key, and the settings of the circuit before and after."""

    key: str
    after: Settings
    before: Settings = field(default_factory=dict)
    up: bool = True
    """The circuit is up before and after, on both ends."""
    pings: bool = True
    """Frames go on meanwhile. Not where the circuit goes down, or a MAC address changes, which
    others have learnt."""


PEER_MAC = "02:00:5e:10:00:77"


def peer(**settings: Any) -> Settings:
    return {"peer": settings}


def static(**settings: Any) -> Settings:
    return {"autoconfigure": False, "peer": {"interface": None, "addresses": None, **settings}}


def changes(keys: tuple[str, str], files: tuple[str, str], remote: str) -> list[Change]:
    """keys: public ones of others. files: of keys; the other end has the first."""
    encrypted = {"encryption": "required", "key_file": files[0]}
    return [
        Change("id", {"id": 9}, pings=False),
        Change("remote", {"remote": [f"{remote}:48621", "10.201.0.9"]}),
        Change("description", {"description": "to Zürich"}),
        Change("enabled", {"enabled": False}, up=False, pings=False),
        Change("family", {"family": "ipv4"}),
        Change("addresses", {"addresses": [*ADDRESSES_A, "172.16.99.1/24"]}),
        # A port of a bridge answers to the bridge's addresses.
        Change("bridge", {"bridge": "br0"}, pings=False),
        Change("mtu", {"mtu": 1400}),
        Change("fragmentation", {"fragmentation": "off"}),
        Change("clamp_mss", {"clamp_mss": 1300}),
        Change("packet_too_big", {"packet_too_big": True}),
        Change("mac", {"mac": "02:00:5e:10:00:78"}, pings=False),
        Change("encapsulation", {"encapsulation": "ethernet"}),
        Change("encryption", encrypted, up=False, pings=False),
        Change(
            "peer_key",
            {"encryption": "required", "peer_key": keys[1]},
            {"encryption": "required", "peer_key": keys[0]},
            up=False,
            pings=False,
        ),
        Change("source_port", {"source_port": "listen"}),
        # The way that it has anyhow, but another session begins.
        Change("bind", {"bind": "10.201.0.1"}, pings=False),
        Change("device", {"device": "eth0"}, pings=False),
        Change("mark", {"mark": 7}, pings=False),
        Change("dscp", {"dscp": 10}),
        Change("cpu", {"cpu": max(CPUS)}, {"cpu": min(CPUS)}),
        Change("latency", {"cpu": min(CPUS), "latency": "low"}, {"cpu": min(CPUS)}),
        Change("keepalive", {"keepalive": 2.0}),
        Change("autoconfigure", static(), up=False, pings=False),
        Change("key_file", {"key_file": files[1]}, {"key_file": files[0]}),
        Change("accept_ra", {"accept_ra": True}),
        # The other end's qdisc takes the place of one that may hold a frame.
        Change("rate", {"rate": "1G"}, pings=False),
        Change("up", {"up": "/usr/bin/true"}),
        Change("down", {"down": "/usr/bin/true"}),
        # These change the other end.
        Change("peer.interface", peer(interface="vela5"), pings=False),
        Change("peer.addresses", peer(addresses=["172.16.16.2/30"]), pings=False),
        Change("peer.bridge", peer(bridge="br-lan"), pings=False),
        Change("peer.mac", peer(mac=PEER_MAC), pings=False),
        Change(
            "peer.checksum_offload",
            static(mac=PEER_MAC, checksum_offload=True),
            static(mac=PEER_MAC),
            up=False,
            pings=False,
        ),
    ]


def _without(settings: Settings, key: str) -> Settings:
    return {name: value for name, value in settings.items() if name != key}


KEYS = [key for key in CIRCUIT_EFFECTS if key != "name"] + [f"peer.{key}" for key in PEER_EFFECTS]


@dataclass
class Bench:
    """Two machines that stay, whatever is reloaded."""

    both: Ends
    remote: str
    identity: str
    changes: dict[str, Change]

    def configure(self, settings: Settings) -> None:
        table = asking(settings.get("remote", self.remote), **_without(settings, "remote"))
        self.both.a.configure(f'[daemon]\nidentity = "{self.identity}"\n{table}')

    def reload(self, settings: Settings) -> None:
        self.configure(settings)
        self.both.a.control("reload")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("keys")
    files = []
    for name, letter in (("one", "a"), ("other", "b")):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(letter * 40)
        files.append(str(path))
    identity = folder / "identity"
    keys = [format_public_key(generate(path)) for path in (folder / "x", folder / "y", identity)]
    with two_routers() as routers:
        for router, bridge in ((routers.a, "br0"), (routers.b, "br-lan")):
            router.namespace.run("ip", "link", "add", bridge, "type", "bridge")
            router.namespace.run("ip", "link", "set", bridge, "up")
        config = f'[daemon]\nidentity = "{identity}"\n' + asking(routers.b.ipv4)
        with ends(routers, config, policy(interfaces="vela*")) as both:
            made = changes((keys[0], keys[1]), (files[0], files[1]), routers.b.ipv4)
            yield Bench(both, routers.b.ipv4, str(identity), {each.key: each for each in made})


def test_every_key_of_a_circuit_is_tried(bench: Bench) -> None:
    assert set(bench.changes) == set(KEYS)


@dataclass(frozen=True)
class Seen:
    """What is on the interface, and who serves it."""

    index: int
    worker: int | None
    qdisc: bool
    foreign_address: bool
    foreign_route: bool
    vlan: bool


def look(velad: Velad) -> Seen:
    run = velad.namespace.run
    shown = json.loads(run("ip", "-j", "addr", "show", "dev", NAME).stdout)[0]
    links = {each["ifname"] for each in json.loads(run("ip", "-j", "link").stdout)}
    worker = velad.circuit(NAME)["worker"]
    return Seen(
        index=shown["ifindex"],
        worker=None if worker is None else worker["pid"],
        qdisc="limit 77" in run("tc", "qdisc", "show", "dev", NAME).stdout,
        foreign_address=any(each["local"] == "10.99.0.1" for each in shown["addr_info"]),
        foreign_route="10.98.0.0/16" in run("ip", "route", "show", "dev", NAME).stdout,
        vlan=f"{NAME}.5" in links,
    )


def await_one_worker(velad: Velad) -> None:
    """Wait until a circuit that has come up has done with the changes of port that follow."""
    seen: list[dict[str, Any] | None] = []

    def stays() -> bool:
        seen.append(velad.circuit(NAME)["worker"])
        pids = [None if each is None else each["pid"] for each in seen[-5:]]
        return len(seen) >= 5 and len(set(pids)) == 1

    eventually(stays, 10.0, "a worker that stays", 0.05)


def furnish(velad: Velad) -> None:
    """Put on the interface what others than velad put there."""
    run = velad.namespace.run
    run("tc", "qdisc", "replace", "dev", NAME, "root", "pfifo", "limit", "77")
    run("ip", "addr", "replace", "10.99.0.1/24", "dev", NAME)
    run("ip", "route", "replace", "10.98.0.0/16", "via", "10.99.0.9", "dev", NAME)
    # Kernels without 802.1Q refuse that.
    vlan = ("link", NAME, "name", f"{NAME}.5", "type", "vlan", "id", "5")
    run("ip", "link", "add", *vlan, check=False)


@contextmanager
def pinging(velad: Velad) -> Iterator[Pings]:
    """Ping the other end, a thousand times a second; begin when it has answered."""
    with Pings([ADDRESSES_B[0].partition("/")[0]], 0.001, velad.namespace) as pings:
        pings.await_answers(1)
        yield pings


def lost(pings: Pings) -> int:
    """Return how many requests were never answered, PINGS more included."""
    pings.await_answers(PINGS)
    pings.stop()
    return len(pings.unanswered()[0])


# A worker that is there already may do: the remote decides, or the host has one CPU.
ONLY_WITH_OTHERS = {"peer.mac"} | ({"cpu"} if len(CPUS) == 1 else set())


@pytest.mark.parametrize("key", KEYS)
def test_change_of_a_key_leaves_alone_what_its_row_says(
    bench: Bench, key: str, figure: Callable[[str], None]
) -> None:
    change, both = bench.changes[key], bench.both
    row = (
        PEER_EFFECTS[key.removeprefix("peer.")] if key.startswith("peer.") else CIRCUIT_EFFECTS[key]
    )
    other = policy(interfaces="vela*", key_file=change.before.get("key_file"))
    both.b.configure(other)
    both.b.control("reload")
    bench.reload(change.before)
    if change.up or not change.before:
        for velad in both:
            velad.wait_for(
                lambda status: [each["state"] for each in status["circuits"]] == ["up"],
                30.0,
                f"{NAME} to be up",
            )
    await_one_worker(both.a)
    furnish(both.a)
    before = look(both.a)
    with pinging(both.a) if change.pings else nullcontext() as pings:
        bench.reload(change.before | change.after)

        missed = None
        if pings is not None and row.effect is not Effect.NEW_INTERFACE:
            missed = lost(pings)
    if row.effect is Effect.NEW_INTERFACE:
        assert look(both.a).index != before.index
        figure(f"{key:22} {row.effect.value}")
        return
    if change.up:
        both.a.wait_for_state(NAME, "up", timeout_s=30.0)
    if change.up and row.effect is Effect.NEW_WORKER and key not in ONLY_WITH_OTHERS:
        eventually(lambda: look(both.a).worker not in (None, before.worker), 10.0, "another worker")
    after = look(both.a)
    worker = "kept" if after.worker == before.worker else "new"
    worker = "none" if None in (before.worker, after.worker) else worker
    said = "" if missed is None else f"{missed} pings lost"
    figure(f"{key:22} {row.effect.value:14} interface kept, worker {worker}, {said}")
    assert not missed
    assert after.index == before.index
    assert after.qdisc
    assert after.foreign_address
    assert after.foreign_route
    assert after.vlan == before.vlan
    # The other end's MAC address derives from its interface's name; a new worker may follow it.
    if row.effect is Effect.LIVE and key != "peer.interface":
        assert after.worker == before.worker


@pytest.mark.parametrize(("before", "after"), [("native", "python"), ("python", "native")])
def test_change_of_the_engine_keeps_interfaces_and_loses_no_frame(
    routers: TwoRouters, before: str, after: str, figure: Callable[[str], None]
) -> None:
    def config(engine: str) -> str:
        return f'[daemon]\nengine = "{engine}"\n' + asking(routers.b.ipv4)

    with ends(routers, config(before), policy()) as both:
        wait_until_up(both)
        furnish(both.a)
        seen = look(both.a)
        with pinging(both.a) as pings:
            both.a.configure(config(after))

            said = both.a.control("reload").stdout.splitlines()

            missed = lost(pings)
        assert said[0] == f"{NAME}  new worker     daemon.engine"
        assert "restart" not in said[-1]
        eventually(lambda: look(both.a).worker != seen.worker, 10.0, "another worker")
        later = look(both.a)
        figure(f"engine {before} to {after}: interface kept, {missed} pings lost")
        assert both.a.circuit(NAME)["worker"]["engine"] == after
        assert (missed, later.index, later.qdisc, later.foreign_route) == (
            0,
            seen.index,
            True,
            True,
        )
        # What is larger than a segment, and what has no checksum yet, crosses whole as well.
        target, source = (velad.namespace for velad in (both.b, both.a))
        for server, client, address in (
            (target, source, ADDRESSES_B[0]),
            (source, target, ADDRESSES_A[0]),
        ):
            copied_bytes(server, client, address.partition("/")[0], both.a.directory)


def copied_bytes(server: Namespace, client: Namespace, address: str, folder: Path) -> None:
    """Copy a megabyte by TCP, and see that it is the same."""
    sent, received = folder / "sent", folder / "received"
    sent.write_bytes(os.urandom(1_000_000))
    with received.open("wb") as into, sent.open("rb") as out:
        listening = server.popen("socat", "-u", "TCP4-LISTEN:5001,reuseaddr", "-", stdout=into)
        eventually(lambda: ":5001 " in server.run("ss", "-ltn").stdout, 10.0, "socat to listen")
        sending = client.popen("socat", "-u", "-", f"TCP4:{address}:5001", stdin=out)
        assert sending.wait(60) == 0
        assert listening.wait(60) == 0
    assert received.read_bytes() == sent.read_bytes()
