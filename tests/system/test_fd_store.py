"""velad under a service manager that keeps descriptors: what a restart leaves alone.

The protocol is the real one (sd_notify(3), sd_listen_fds(3)); vm/guest/unit.py has a real manager.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Ends, addresses, asking, interfaces, master, policy, wait_until_up
from lab.circuit import ADDRESSES_A, ADDRESSES_B, NAME
from lab.daemon import Velad
from lab.fd_store import FdStore, StoredVelad, fd_store
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

TARGET = ADDRESSES_B[0].partition("/")[0]


@pytest.fixture
def store() -> Iterator[FdStore]:
    with fd_store() as kept:
        yield kept


@dataclass(frozen=True)
class Kept(Ends):
    """Ends of which A has such a manager."""

    a: StoredVelad


@pytest.fixture
def kept(routers: TwoRouters, store: FdStore) -> Iterator[Kept]:
    """A circuit whose end at A has such a manager, up, with its descriptors in the store."""
    with (
        Velad(routers.b.namespace, policy()) as b,
        StoredVelad(routers.a.namespace, asking(routers.b.ipv4), store) as a,
    ):
        both = Kept(a, b)
        wait_until_up(both)
        wait_until_stored(store)
        yield both


def wait_until_stored(store: FdStore, name: str = NAME) -> None:
    eventually(lambda: f"tap-{name}" in store.names, 10.0, f"{name} to be stored")


def link(namespace: Namespace, name: str = NAME) -> dict[str, Any]:
    (shown,) = json.loads(namespace.run("ip", "-j", "link", "show", "dev", name).stdout)
    found: dict[str, Any] = shown
    return found


def furnish(namespace: Namespace) -> None:
    """Put on the interface what others than velad put there."""
    namespace.run("tc", "qdisc", "replace", "dev", NAME, "root", "pfifo", "limit", "77")
    namespace.run("ip", "addr", "replace", "10.99.0.1/24", "dev", NAME)
    namespace.run("ip", "route", "replace", "10.98.0.0/16", "via", "10.99.0.9", "dev", NAME)


def is_furnished(namespace: Namespace) -> bool:
    return (
        "limit 77" in namespace.run("tc", "qdisc", "show", "dev", NAME).stdout
        and "10.99.0.1/24" in addresses(namespace, NAME)
        and "10.98.0.0/16" in namespace.run("ip", "route", "show", "dev", NAME).stdout
    )


def wait_until_it_answers(namespace: Namespace) -> None:
    """The other end may be up a little later."""
    ping = ("ping", "-c1", "-W1", TARGET)
    eventually(lambda: namespace.run(*ping, check=False).returncode == 0, 10.0, "an answer")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_restart_keeps_the_interface_and_all_that_is_on_it(
    kept: Kept, figure: Callable[[str], None], end: str
) -> None:
    a = kept.a
    furnish(a.namespace)
    before = link(a.namespace)["ifindex"]

    a.stop() if end == "stop" else a.kill()
    between = link(a.namespace)
    a.start()
    entry = a.wait_for_state(NAME, "up")

    figure(f"restart by {end}: up {a.status()['uptime_seconds']:.1f} s after the start")
    assert between["ifindex"] == before
    # Nobody serves it: routing daemons are to see that. A velad that is killed says nothing more.
    assert ("NO-CARRIER" in between["flags"]) == (end == "stop")
    assert link(a.namespace)["ifindex"] == before
    assert is_furnished(a.namespace)
    assert entry["reason"] == ""
    wait_until_it_answers(a.namespace)


def test_restart_twice_keeps_the_interface(kept: Kept, store: FdStore) -> None:
    # Those that listen, and the circuit's own, which is the last to come.
    eventually(lambda: sum(name.startswith("udp-") for name in store.names) == 4, 10.0, "sockets")
    before, names = link(kept.a.namespace)["ifindex"], store.names

    for _ in range(2):
        kept.a.stop()
        kept.a.start()
        kept.a.wait_for_state(NAME, "up")

    assert link(kept.a.namespace)["ifindex"] == before
    wait_until_it_answers(kept.a.namespace)
    eventually(lambda: store.names == names, 10.0, "the same names in the store")


def test_stop_of_the_unit_removes_the_interface(kept: Kept, store: FdStore) -> None:
    kept.a.stop()

    store.discard()

    assert NAME not in interfaces(kept.a.namespace)


def test_circuit_that_is_deleted_while_it_is_kept_goes_at_once(kept: Kept, store: FdStore) -> None:
    kept.a.configure("")
    kept.a.control("reload", "--allow-empty")

    assert NAME not in interfaces(kept.a.namespace)
    eventually(lambda: f"tap-{NAME}" not in store.names, 10.0, "the store to forget it")


def test_circuit_that_the_file_lacks_at_the_restart_goes(kept: Kept, store: FdStore) -> None:
    kept.a.stop()
    kept.a.configure("")
    kept.a.start()

    assert NAME not in interfaces(kept.a.namespace)
    eventually(lambda: f"tap-{NAME}" not in store.names, 10.0, "the store to forget it")


def test_restart_makes_of_the_interface_what_the_file_says_now(
    kept: Kept, routers: TwoRouters
) -> None:
    namespace = kept.a.namespace
    namespace.run("ip", "link", "add", "br0", "type", "bridge")
    namespace.run("ip", "link", "set", "br0", "up")
    before = link(namespace)["ifindex"]
    furnish(namespace)

    kept.a.stop()
    kept.a.configure(
        asking(routers.b.ipv4, addresses=["172.16.16.9/29"], bridge="br0", description="other")
    )
    kept.a.start()
    kept.a.wait_for_state(NAME, "up")

    shown = link(namespace)
    assert shown["ifindex"] == before
    assert shown["ifalias"] == "other"
    assert master(namespace, NAME) == "br0"
    # What others gave it stays; what the file gave it before does not.
    assert addresses(namespace, NAME) == {"172.16.16.9/29", "10.99.0.1/24"}


def test_interface_that_was_removed_meanwhile_is_made_anew(kept: Kept) -> None:
    kept.a.stop()
    kept.a.namespace.run("ip", "link", "delete", NAME)
    kept.a.start()

    kept.a.wait_for_state(NAME, "up")
    wait_until_it_answers(kept.a.namespace)
    assert "interface_not_adopted" in kept.a.log()


def test_other_listening_addresses_can_be_had_at_the_restart(
    kept: Kept, routers: TwoRouters, store: FdStore
) -> None:
    before = link(kept.a.namespace)["ifindex"]

    kept.a.stop()
    kept.a.configure(f'[daemon]\nlisten = ["0.0.0.0", "::"]\n{asking(routers.b.ipv4)}')
    kept.a.start()

    kept.a.wait_for_state(NAME, "up")
    assert link(kept.a.namespace)["ifindex"] == before
    wait_until_it_answers(kept.a.namespace)


def test_start_that_fails_leaves_what_is_kept(kept: Kept, routers: TwoRouters) -> None:
    namespace, good = kept.a.namespace, asking(routers.b.ipv4)
    before = link(namespace)["ifindex"]
    kept.a.stop()

    # Another program's.
    namespace.run("ip", "link", "add", "vela8", "type", "bridge")
    peer = {"addresses": ["172.16.17.2/30"]}
    other = asking(routers.b.ipv4, name="vela8", id=8, addresses=["172.16.17.1/30"], peer=peer)
    kept.a.configure(good + other)
    kept.a.launch()
    assert kept.a.process is not None
    assert kept.a.process.wait(30) == 1
    assert link(namespace)["ifindex"] == before

    kept.a.configure(good)
    kept.a.start()
    kept.a.wait_for_state(NAME, "up")
    assert link(namespace)["ifindex"] == before


def test_velad_that_was_replaced_and_is_restarted_keeps_the_interface(
    kept: Kept, store: FdStore
) -> None:
    before, names = link(kept.a.namespace)["ifindex"], set(store.names)

    kept.a.replace_by_hand()
    kept.a.wait_for_state(NAME, "up")
    # What was stored by the velad before is stored once.
    eventually(
        lambda: set(store.names) >= names and len(store.names) == len(set(store.names)),
        10.0,
        "the same in the store",
    )
    kept.a.stop()
    kept.a.start()

    kept.a.wait_for_state(NAME, "up")
    assert link(kept.a.namespace)["ifindex"] == before
    wait_until_it_answers(kept.a.namespace)


def test_velad_that_replaced_another_by_hand_goes_on_with_the_store(
    kept: Kept, routers: TwoRouters, store: FdStore
) -> None:
    """The manager hears it from when the former one has named it as its successor."""
    namespace = kept.a.namespace
    before = link(namespace)["ifindex"]

    kept.a.replace_by_hand()
    kept.a.configure(asking(routers.b.ipv4, addresses=["172.16.16.9/29"]))
    kept.a.control("reload")
    assert addresses(namespace, NAME) == {"172.16.16.9/29"}
    kept.a.stop()
    kept.a.configure(asking(routers.b.ipv4))
    kept.a.start()

    kept.a.wait_for_state(NAME, "up")
    assert link(namespace)["ifindex"] == before
    assert addresses(namespace, NAME) == set(ADDRESSES_A)
    wait_until_it_answers(namespace)


def test_descriptors_for_another_process_are_left_alone(tmp_path: Path) -> None:
    from vela.supervisor.inheritance import Inheritance

    environment = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "tap-vela0", "LISTEN_PID": "1"}
    assert os.getpid() != 1

    assert not Inheritance.from_manager(environment).names()
    assert environment == {}
