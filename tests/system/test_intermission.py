"""A restart by a service manager that keeps descriptors: nothing is lost beyond the queues.

The manager is the laboratory's, which says what systemd says; vm/guest/fleet.py has a real one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from late_session import HEARS_LATE
from sealed_circuit import psk_file

from lab.autoconfigured import Ends, asking, asking_for_each, interfaces, policy
from lab.circuit import ADDRESSES_A, ADDRESSES_B, MAC_A, MAC_B, NAME, circuit_table
from lab.daemon import Velad
from lab.fd_store import FdStore, StoredVelad, fd_store
from lab.link import carrier_changes
from lab.namespace import Namespace
from lab.pings import Pings
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

NAMES = (NAME, "vela1", "vela2")
TARGETS = [f"172.16.{number}.2" for number, _ in enumerate(NAMES, 1)]
PATIENT_S = 10.0
"""Between keepalives: no remote is to go down while a busy machine starts a velad."""


WITHOUT_SECRET_MEMORY = """
from vela.linux import secret_memory
secret_memory._memfd_secret = lambda: None
"""


@dataclass(frozen=True)
class Stored(Ends):
    """Ends of which A has a manager that keeps descriptors."""

    a: StoredVelad
    store: FdStore

    def states(self) -> dict[str, list[str]]:
        return {name: [velad.circuit(name)["state"] for velad in self] for name in NAMES}


def tables(remote: str, **settings: Any) -> str:
    """Three circuits to one remote."""
    return asking_for_each(remote, NAMES, **{"keepalive": PATIENT_S, **settings})


@contextmanager
def three(
    routers: TwoRouters, store: FdStore, folder: Path, kind: str = "plain", before: str = ""
) -> Iterator[Stored]:
    """Three circuits that are up, with their descriptors in the store."""
    settings: dict[str, Any] = {}
    more: dict[str, Any] = {"interfaces": "vela*"}
    if kind != "plain":
        path = folder / "key"
        path.touch(0o600)
        path.write_text("k" * 40)
        settings["key_file"] = more["key_file"] = str(path)
    if kind == "encrypted":
        settings["encryption"] = more["encryption"] = "required"
    if kind == "listening port":
        settings["source_port"] = "listen"
    with (
        Velad(routers.b.namespace, policy(**more)) as b,
        StoredVelad(routers.a.namespace, tables(routers.b.ipv4, **settings), store, before) as a,
    ):
        both = Stored(a, b, store)
        wait_until_up(both)
        wait_until_stored(store)
        yield both


def wait_until_up(both: Stored) -> None:
    for velad in both:
        for name in NAMES:
            velad.wait_for_state(name, "up")


def wait_until_stored(store: FdStore, circuits: int = len(NAMES), within_s: float = 10.0) -> None:
    """The circuits' own sockets, behind the three that listen, are the last to come."""
    wanted = circuits + 3

    def stored() -> bool:
        return sum(name.startswith("udp-") for name in store.names) == wanted

    eventually(stored, within_s, "all sockets to be stored")


@pytest.fixture
def store() -> Iterator[FdStore]:
    with fd_store() as kept:
        yield kept


@pytest.fixture
def plain(routers: TwoRouters, store: FdStore, tmp_path: Path) -> Iterator[Stored]:
    with three(routers, store, tmp_path) as both:
        yield both


def link(namespace: Namespace, name: str = NAME) -> dict[str, Any]:
    (shown,) = json.loads(namespace.run("ip", "-j", "link", "show", "dev", name).stdout)
    found: dict[str, Any] = shown
    return found


def carriers(namespace: Namespace) -> list[bool]:
    return ["NO-CARRIER" not in link(namespace, name)["flags"] for name in NAMES]


def wait_for_pages(store: FdStore, names: list[str]) -> None:
    """Wait until key pages of these circuits, and of no others, are in the store."""
    wanted = sorted(f"keys-{name}" for name in names)

    def stored() -> bool:
        return [name for name in store.names if name.startswith("keys-")] == wanted

    eventually(stored, 5.0, f"{wanted} to be stored")


def changes(velad: Velad) -> list[int]:
    """Return how often each circuit, in the order of names, has changed its state."""
    circuits = sorted(velad.status()["circuits"], key=lambda each: str(each["name"]))
    return [each["transitions"] for each in circuits]


@pytest.mark.parametrize("kind", ["plain", "keyed", "listening port", "encrypted"])
def test_restart_under_traffic_loses_nothing_and_the_remote_does_not_notice(
    routers: TwoRouters,
    store: FdStore,
    tmp_path: Path,
    kind: str,
    figure: Callable[[str], None],
) -> None:
    with three(routers, store, tmp_path, kind) as both:
        a, namespace = both.a, both.a.namespace
        indices, flaps = [link(namespace, name)["ifindex"] for name in NAMES], changes(both.b)
        carrier = carrier_changes(namespace, *NAMES)

        with Pings(TARGETS, 0.01, namespace) as pings:
            pings.await_answers(20)
            for _ in range(2):
                a.stop_to_restart()
                assert carriers(namespace) == [True] * 3
                before, told = store.names, len(store.said)
                a.start()
                pings.await_answers(20)
                wait_until_stored(store)
                # A velad that ended now would leave as much as the one before.
                again = [each for each in store.said[told:] if "FDSTORE" in each]
                assert all("FDNAME=keys-" in each for each in again), again
                assert [each for each in before if not each.startswith("keys-")] == store.names
            pings.stop()

        figure(f"restart, {kind}: longest gap {max(pings.gaps()):.2f} s")
        assert pings.unanswered() == [[]] * 3
        assert carrier_changes(namespace, *NAMES) == carrier
        assert [link(namespace, name)["ifindex"] for name in NAMES] == indices
        assert changes(both.b) == flaps
        assert both.states() == {name: ["up", "up"] for name in NAMES}


def test_frames_of_both_directions_wait_while_nobody_runs(plain: Stored) -> None:
    a, b = plain.a.namespace, plain.b.namespace
    back = [target.removesuffix("2") + "1" for target in TARGETS]
    with Pings(TARGETS, 0.02, a) as there, Pings(back, 0.02, b) as here:
        for pings in (there, here):
            pings.await_answers(5)
        plain.a.stop_to_restart()
        before = there.asked() + here.asked()
        # None of these can be answered before the next velad runs.
        eventually(
            lambda: all(
                now >= was + 25
                for was, now in zip(before, there.asked() + here.asked(), strict=True)
            ),
            10.0,
            "25 requests of each",
        )
        plain.a.start()
        for pings in (there, here):
            pings.await_answers(5)
            pings.stop()

    assert there.unanswered() + here.unanswered() == [[]] * 6
    assert min(there.gaps() + here.gaps()) > 0.4


def test_stop_by_the_manager_is_told_to_remotes(plain: Stored, store: FdStore) -> None:
    with store.jobs.stop():
        plain.a.stop()

    assert carriers(plain.a.namespace) == [False] * 3
    for name in NAMES:
        # Long before keepalives are missing.
        reason = plain.b.wait_for_state(name, "down", timeout_s=3.0)["reason"]
        assert "stopp" in reason


@pytest.mark.parametrize("trouble", ["silent", "away", "takes nothing"])
def test_without_a_manager_that_vouches_for_the_restart_it_is_a_stop(
    plain: Stored, store: FdStore, trouble: str
) -> None:
    if trouble == "silent":
        store.jobs.silent = True
    elif trouble == "away":
        store.jobs.path.unlink()
    else:
        store.discard()

    plain.a.stop_to_restart()

    for name in NAMES:
        plain.b.wait_for_state(name, "down", timeout_s=5.0)
    if trouble == "takes nothing":
        assert not interfaces(plain.a.namespace) & set(NAMES)
    else:
        assert carriers(plain.a.namespace) == [False] * 3
    plain.a.start()
    wait_until_up(plain)


def test_circuit_that_the_file_says_otherwise_begins_anew_and_the_others_go_on(
    plain: Stored, routers: TwoRouters
) -> None:
    before, flaps = [link(plain.a.namespace, name)["ifindex"] for name in NAMES], changes(plain.b)

    plain.a.stop_to_restart()
    changed = tables(routers.b.ipv4).replace("id = 2", 'id = 2\ndescription = "other"')
    plain.a.configure(changed)
    plain.a.start()
    wait_until_up(plain)

    assert "circuits=2 of=3" in plain.a.log()
    assert [link(plain.a.namespace, name)["ifindex"] for name in NAMES] == before
    assert link(plain.a.namespace, "vela1")["ifalias"] == "other"
    now = changes(plain.b)
    assert [now[0], now[2]] == [flaps[0], flaps[2]]


@pytest.mark.parametrize("at", ["first", "last"])
def test_start_that_fails_leaves_interfaces_without_carrier_and_the_next_begins_anew(
    plain: Stored, routers: TwoRouters, at: str
) -> None:
    namespace, good = plain.a.namespace, tables(routers.b.ipv4)
    before = [link(namespace, name)["ifindex"] for name in NAMES]
    plain.a.stop_to_restart()
    # Another program's: known before the circuits are made, or when they have been.
    namespace.run("ip", "link", "add", "vela8", "type", "bridge")
    other = asking(routers.b.ipv4, name="vela8", id=8, peer={"addresses": ["172.16.17.2/30"]})
    plain.a.configure(other + good if at == "first" else good + other)

    plain.a.launch()
    assert plain.a.process is not None
    assert plain.a.process.wait(30) == 1

    assert carriers(namespace) == [False] * 3
    plain.a.configure(good)
    plain.a.start()
    wait_until_up(plain)
    assert carriers(namespace) == [True] * 3
    assert [link(namespace, name)["ifindex"] for name in NAMES] == before
    assert "circuits_resumed" not in plain.a.log()


def test_session_is_resumed_once_and_not_after_a_crash_that_follows(plain: Stored) -> None:
    plain.a.restart()
    wait_until_up(plain)
    assert "circuits=3 of=3" in plain.a.log()

    plain.a.kill()
    plain.a.start()
    wait_until_up(plain)

    assert plain.a.log().count("circuits_resumed") == 1


def test_start_that_comes_too_late_begins_anew(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    """The remote has gone down by itself, and this end must not believe to be up."""
    with three(routers, store, tmp_path) as both:
        both.a.configure(tables(routers.b.ipv4, keepalive=1.0))
        both.a.control("reload")
        wait_until_up(both)
        wait_until_stored(store)

        both.a.stop_to_restart()
        for name in NAMES:
            both.b.wait_for_state(name, "down", timeout_s=20.0)
        os.kill(both.b.pid, signal.SIGSTOP)
        try:
            both.a.start()
            assert carriers(both.a.namespace) == [False] * 3
        finally:
            os.kill(both.b.pid, signal.SIGCONT)
        wait_until_up(both)

        assert both.a.log().count("circuit_not_resumed") == 3
        with Pings(TARGETS, 0.05, both.a.namespace) as pings:
            pings.await_answers(3)


def test_keys_are_in_the_store_from_the_stop_to_the_next_start_only(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    with three(routers, store, tmp_path, "encrypted") as both:
        wait_for_pages(store, [])

        both.a.stop_to_restart()
        wait_for_pages(store, list(NAMES))

        both.a.start()
        wait_for_pages(store, [])


def test_keys_that_could_be_swapped_out_are_not_stored_and_the_remote_is_told(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    """Linux 6.1 as Debian has it: the memory of keys is locked by who maps it, and by nobody then.

    The circuit begins anew.
    """
    with three(routers, store, tmp_path, "encrypted", before=WITHOUT_SECRET_MEMORY) as both:
        flaps = changes(both.b)

        both.a.stop_to_restart()

        wait_for_pages(store, [])
        assert carriers(both.a.namespace) == [False] * 3
        for name in NAMES:
            assert "stopp" in both.b.wait_for_state(name, "down", timeout_s=3.0)["reason"]
        both.a.start()
        wait_until_up(both)
        assert all(now > was for was, now in zip(flaps, changes(both.b), strict=True))
        with Pings(TARGETS, 0.05, both.a.namespace) as pings:
            pings.await_answers(3)


def test_start_that_fails_takes_the_keys_out_of_the_store(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    with three(routers, store, tmp_path, "encrypted") as both:
        both.a.stop_to_restart()
        wait_for_pages(store, list(NAMES))
        both.a.namespace.run("ip", "link", "add", "vela8", "type", "bridge")
        text = both.a.config_path.read_text()
        both.a.config_path.write_text(
            text + asking(routers.b.ipv4, name="vela8", id=8).replace("vela0", "vela8")
        )

        both.a.launch()
        assert both.a.process is not None
        assert both.a.process.wait(30) == 1

        wait_for_pages(store, [])


def test_hooks_do_not_run_where_circuits_go_on(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    said, hook = tmp_path / "said", tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$VELA_CIRCUIT $VELA_EVENT" >> {said}\n')
    hook.chmod(0o700)
    hooks = {"up": str(hook), "down": str(hook)}
    with (
        Velad(routers.b.namespace, policy(interfaces="vela*")) as b,
        StoredVelad(routers.a.namespace, tables(routers.b.ipv4, **hooks), store) as a,
    ):
        both = Stored(a, b, store)
        wait_until_up(both)
        wait_until_stored(store)

        def lines() -> list[str]:
            return sorted(said.read_text().split("\n")[:-1])

        eventually(lambda: said.exists() and len(lines()) == 3, 10.0, "up hooks")

        a.restart()
        wait_until_up(both)
        a.control("down", NAME)
        eventually(lambda: len(lines()) > 3, 10.0, "a down hook")

        assert lines() == sorted([f"{NAME} down", *(f"{name} up" for name in NAMES)])

        # One that begins anew goes down first, for hooks as well.
        said.write_text("")
        a.stop_to_restart()
        changed = tables(routers.b.ipv4, **hooks).replace("id = 2", 'id = 2\ndescription = "x"')
        a.configure(changed)
        a.start()
        eventually(lambda: len(lines()) == 2, 10.0, "hooks of the changed circuit")
        assert lines() == ["vela1 down", "vela1 up"]


def test_static_circuit_goes_on_too(routers: TwoRouters, store: FdStore) -> None:
    config_a = circuit_table(routers.b.ipv4, mac=MAC_A, peer_mac=MAC_B, addresses=list(ADDRESSES_A))
    config_b = circuit_table(routers.a.ipv4, mac=MAC_B, peer_mac=MAC_A, addresses=list(ADDRESSES_B))
    with (
        Velad(routers.b.namespace, config_b),
        StoredVelad(routers.a.namespace, config_a, store) as a,
        Pings([ADDRESSES_B[0].partition("/")[0]], 0.01, routers.a.namespace) as pings,
    ):
        pings.await_answers(5)
        eventually(lambda: f"tap-{NAME}" in store.names, 10.0, "the interface to be stored")
        eventually(lambda: len(store.names) == 6, 10.0, "all to be stored")

        a.restart()
        pings.await_answers(20)
        pings.stop()

        assert "circuits=1 of=1" in a.log()
        assert pings.unanswered() == [[]]


def test_restart_while_another_session_follows_waits_for_it(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    """Encrypted circuits seek one as soon as velad has started."""
    with three(routers, store, tmp_path, "encrypted", HEARS_LATE) as both:
        flaps = changes(both.b)
        with Pings(TARGETS, 0.01, both.a.namespace) as pings:
            pings.await_answers(20)
            for _ in range(3):
                wait_until_stored(store)
                both.a.restart()
            pings.await_answers(20)
            pings.stop()

        assert pings.unanswered() == [[]] * 3
        assert "circuits_not_left" not in both.a.log()
        assert both.a.log().count("circuits=3 of=3") == 3
        assert changes(both.b) == flaps


MANY = [f"vela{number}" for number in range(200)]


@pytest.mark.alone
def test_restart_with_many_encrypted_circuits_loses_nothing(
    routers: TwoRouters, store: FdStore, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Each has to have keys of the new velad's before its remote gives it up."""
    keys = {"key_file": str(psk_file(tmp_path)), "encryption": "required"}
    most = {"max_circuits": len(MANY), "max_circuits_per_remote": len(MANY)}
    tables = asking_for_each(routers.b.ipv4, MANY, keepalive=PATIENT_S, **keys)
    targets = [f"172.16.{number}.2" for number, _ in enumerate(MANY, 1)]
    with (
        Velad(routers.b.namespace, policy(interfaces="vela*", **keys, **most)) as b,
        StoredVelad(routers.a.namespace, tables, store) as a,
    ):
        for velad in (b, a):
            velad.wait_for(all_are_up, 60.0, "all to be up")
        wait_until_stored(store, len(MANY), 30.0)
        flaps = changes(b)

        with Pings(targets, 1.0, a.namespace) as pings:
            pings.await_answers(1)
            a.restart()
            a.wait_for(all_are_up, 60.0, "all to be up")
            # Longer than an end waits for the other one's keys.
            pings.await_answers(5)
            pings.stop()

        figure(f"restart, {len(MANY)} encrypted: longest gap {max(pings.gaps()):.1f} s")
        assert f"circuits={len(MANY)} of={len(MANY)}" in a.log()
        assert sum(map(len, pings.unanswered())) == 0
        assert changes(b) == flaps


def all_are_up(status: dict[str, Any]) -> bool:
    states = [circuit["state"] for circuit in status["circuits"]]
    return states == ["up"] * len(MANY)


def test_end_that_another_machine_has_set_up_goes_on_likewise(
    routers: TwoRouters, store: FdStore
) -> None:
    with (
        StoredVelad(routers.b.namespace, policy(interfaces="vela*"), store) as b,
        Velad(routers.a.namespace, tables(routers.b.ipv4)) as a,
    ):
        for velad in (a, b):
            for name in NAMES:
                velad.wait_for_state(name, "up")
        wait_until_stored(store)
        flaps = changes(a)

        with Pings(TARGETS, 0.01, a.namespace) as pings:
            pings.await_answers(20)
            b.restart()
            pings.await_answers(20)
            pings.stop()

        assert pings.unanswered() == [[]] * 3
        assert changes(a) == flaps


def test_counters_of_a_key_are_not_used_twice_over_a_restart(
    routers: TwoRouters, store: FdStore, tmp_path: Path
) -> None:
    """A replayed counter is what the remote's window refuses."""
    with three(routers, store, tmp_path, "encrypted") as both:
        with Pings(TARGETS, 0.005, both.a.namespace) as pings:
            for _ in range(3):
                pings.await_answers(20)
                wait_until_stored(store)
                both.a.restart()
            pings.await_answers(20)
            pings.stop()

        assert pings.unanswered() == [[]] * 3
        for velad in both:
            for name in NAMES:
                dropped = velad.circuit(name)["counters"]["rx_dropped"]
                assert (dropped["replayed"], dropped["bad_tag"]) == (0, 0)
