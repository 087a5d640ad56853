"""vela.supervisor.inheritance: what one velad leaves to the next one, with real descriptors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from exhaustion import open_descriptors
from structlog.testing import capture_logs

from lab.daemon import ROOT
from vela.address import Remote
from vela.linux.steering import CONTROL_SOCKETS
from vela.linux.underlay import ReceiveGroup
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.inheritance import (
    Inheritance,
    client_name,
    keys_name,
    member_name,
    sending_name,
    tap_name,
)

HERE = IPv4Address("192.0.2.1")
PORT = 48621
GROUP = "udp-c0000201-48621-"
"""Of HERE, in hexadecimal, and PORT; the index follows."""


@pytest.fixture
def left() -> Iterator[Callable[..., Inheritance]]:
    """Make what has a descriptor of its own for each name, all of which are closed at the end."""
    with ExitStack() as stack:

        def make(*names: str, sockets: bool = False) -> Inheritance:
            def new() -> int:
                return socket.socket().detach() if sockets else os.memfd_create("left")

            made = Inheritance({name: new() for name in names})
            stack.callback(made.close)
            return made

        yield make


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# What the service manager hands over: sd_listen_fds(3). It begins with descriptor 3.
PROGRAM = """
import json, os, sys
from vela.supervisor.inheritance import Inheritance

inheritance = Inheritance.from_manager()
fds = {name: inheritance.peek(name) for name in inheritance.names()}
print(json.dumps({
    "texts": {name: os.pread(fd, 100, 0).decode() for name, fd in fds.items()},
    "inheritable": [name for name, fd in fds.items() if os.get_inheritable(fd)],
    "open": sorted(fd for fd in range(3, 9) if os.path.exists(f"/proc/self/fd/{fd}")),
    "environment": sorted(name for name in os.environ if name.startswith("LISTEN_")),
    "any": bool(inheritance.names()),
}))
"""


def started(
    contents: list[str], names: str, count: str | None = None, pid: str = "$$"
) -> dict[str, object]:
    """Start a process as the manager does, with memory that has these contents."""
    with ExitStack() as stack:
        given = []
        for text in contents:
            given.append(os.memfd_create("given"))
            stack.callback(os.close, given[-1])
            os.write(given[-1], text.encode())
        # Descriptors of this process are moved to where the manager has them.
        moves = " ".join(f"{3 + number}<&{fd}" for number, fd in enumerate(given))
        closes = " ".join(f"{fd}<&-" for fd in given if fd >= 3 + len(given))
        listed = len(contents) if count is None else count
        script = (
            f"export LISTEN_PID={pid} LISTEN_FDS='{listed}' LISTEN_FDNAMES='{names}'\n"
            f'exec "$@" {moves} {closes}'
        )
        done = subprocess.run(
            ["bash", "-c", script, "bash", sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            pass_fds=given,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_descriptors_of_the_manager_are_taken_by_name_and_no_child_inherits_them() -> None:
    found = started(["zero", "one"], "tap-vela0:record")

    assert found["texts"] == {"tap-vela0": "zero", "record": "one"}
    assert found["inheritable"] == []
    # Nor does a child take them for its own.
    assert found["environment"] == []
    assert found["any"] is True


def test_second_descriptor_of_a_name_is_closed() -> None:
    """The manager may have two, where a velad has ended between storing and forgetting."""
    found = started(["zero", "one", "two"], "record:record:tap-vela0")

    assert found["texts"] == {"record": "zero", "tap-vela0": "two"}
    assert 4 not in found["open"]  # type: ignore[operator]


def test_descriptor_that_is_not_there_is_left_out() -> None:
    found = started(["zero"], "record:tap-vela0", count="2")

    assert found["texts"] == {"record": "zero"}


@pytest.mark.parametrize(("count", "pid"), [("1", "1"), ("", "$$"), ("x", "$$"), ("-1", "$$")])
def test_descriptors_that_are_not_for_this_process_are_left_alone(count: str, pid: str) -> None:
    found = started(["zero"], "record", count, pid)

    assert found["texts"] == {}
    assert 3 in found["open"]  # type: ignore[operator]
    assert found["environment"] == []
    assert found["any"] is False


def test_names_of_descriptors_can_be_told_apart() -> None:
    circuit = "vela-1"
    names = [
        *(tap_name(circuit, queue) for queue in range(3)),
        *(sending_name(circuit, queue) for queue in range(3)),
        keys_name(circuit),
        client_name(0, subscribed=True),
        client_name(0, subscribed=False),
    ]

    assert names == [
        "tap-vela-1",
        "tap1-vela-1",
        "tap2-vela-1",
        "send-vela-1",
        "send1-vela-1",
        "send2-vela-1",
        "keys-vela-1",
        "subscriber-0",
        "client-0",
    ]
    # The manager takes no colon: sd_notify(3).
    assert not [name for name in names if ":" in name]


def test_what_a_manager_may_have_is_that_of_interfaces_sockets_and_keys(
    left: Callable[..., Inheritance],
) -> None:
    names = ("tap-vela0", "tap1-vela0", GROUP + "0", "keys-vela0")
    inheritance = left(*names, "send-vela0", "client-0", "record")

    assert inheritance.storable() == set(names)

    # A velad that still runs has the keys in use.
    inheritance.end_worker = lambda *_: None
    assert inheritance.storable() == set(names) - {"keys-vela0"}


def test_what_is_taken_is_no_longer_there_and_stays_open(left: Callable[..., Inheritance]) -> None:
    inheritance = left("record", "tap-vela0")
    peeked = inheritance.peek("record")

    taken = inheritance.take("record")

    assert taken == peeked
    assert inheritance.take("record") is None
    assert inheritance.names() == {"tap-vela0"}
    inheritance.close()
    assert not inheritance.names()
    assert is_open(peeked)
    os.close(peeked)


def test_dropped_descriptor_is_closed_and_others_stay(left: Callable[..., Inheritance]) -> None:
    inheritance = left("record", "tap-vela0")
    fds = {name: inheritance.peek(name) for name in inheritance.names()}

    inheritance.drop("record")
    inheritance.drop("record")

    assert {name: is_open(fd) for name, fd in fds.items()} == {"record": False, "tap-vela0": True}


def test_circuits_are_those_of_first_queues_that_nobody_has_taken(
    left: Callable[..., Inheritance],
) -> None:
    inheritance = left("tap-vela0", "tap1-vela0", "tap-vela-1", "send-vela2")

    circuits = inheritance.circuits()
    os.close(inheritance.take("tap-vela0") or -1)

    # One may take them on the way.
    assert sorted(inheritance.circuits()) == ["vela-1"]
    assert sorted(circuits) == ["vela-1"]


def test_queues_are_taken_until_one_is_missing(left: Callable[..., Inheritance]) -> None:
    inheritance = left(*(tap_name("vela0", queue) for queue in (0, 1, 2, 4)))
    wanted = tuple(inheritance.peek(tap_name("vela0", queue)) for queue in (1, 2))

    taken = inheritance.take_queues(tap_name, "vela0")

    assert taken == wanted
    assert inheritance.names() == {"tap-vela0", "tap4-vela0"}
    for fd in taken:
        os.close(fd)


def test_clients_are_taken_with_whether_they_get_events(left: Callable[..., Inheritance]) -> None:
    inheritance = left("client-0", "subscriber-1", "tap-vela0")
    expected = {
        (inheritance.peek("client-0"), False),
        (inheritance.peek("subscriber-1"), True),
    }

    taken = inheritance.take_clients()

    assert set(taken) == expected
    assert inheritance.names() == {"tap-vela0"}
    for fd, _ in taken:
        os.close(fd)


def test_group_is_taken_whole_in_the_order_of_its_indices(
    left: Callable[..., Inheritance],
) -> None:
    members = [f"{GROUP}{index}" for index in range(CONTROL_SOCKETS + 1)]
    others = {f"{GROUP}0-red", "udp-c0000202-48621-0"}
    inheritance = left(*reversed(members), *others, sockets=True)
    expected = [inheritance.peek(name) for name in members]

    taken = inheritance.take_group(HERE, PORT)

    assert [each.fileno() for each in taken] == expected
    assert inheritance.names() == others
    for each in taken:
        each.close()


@pytest.mark.parametrize("missing", range(CONTROL_SOCKETS))
def test_group_that_lacks_a_socket_is_none_and_what_there_was_before_it_is_closed(
    left: Callable[..., Inheritance], missing: int
) -> None:
    members = [f"{GROUP}{index}" for index in range(CONTROL_SOCKETS) if index != missing]
    inheritance = left(*members, sockets=True)
    before = open_descriptors()

    assert inheritance.take_group(HERE, PORT) == ()

    assert open_descriptors() == before - missing


def test_group_whose_descriptors_are_no_sockets_is_none(left: Callable[..., Inheritance]) -> None:
    before = open_descriptors()
    inheritance = Inheritance(
        {f"{GROUP}{index}": os.memfd_create("no socket") for index in range(CONTROL_SOCKETS)}
    )

    with capture_logs() as log:
        assert inheritance.take_group(HERE, PORT) == ()

    assert [entry["event"] for entry in log] == ["sockets_not_inherited"]
    assert open_descriptors() == before


def group_at(address: IPv4Address | IPv6Address) -> ReceiveGroup:
    """Return a group whose address counts; a real one is bound."""
    return ReceiveGroup(address, PORT, only_ipv6=True, adopted=(socket.socket(),))


def test_sockets_that_a_circuit_receives_on_are_told_once(
    left: Callable[..., Inheritance],
) -> None:
    inheritance = left()
    here, elsewhere = group_at(HERE), group_at(IPv6Address("2001:db8::1"))
    assert member_name(here, 4) == GROUP + "4"

    inheritance.receives_on("vela0", member_name(here, 4), 4, 5)
    inheritance.receives_on("vela1", member_name(here, 7), 7)
    inheritance.receives_on("vela2", member_name(elsewhere, 3), 3)

    assert inheritance.in_use(HERE, PORT) == {4, 5, 7}
    assert inheritance.in_use(HERE, PORT, "red") == set()
    assert inheritance.indices_of("vela0", elsewhere) == ()
    assert inheritance.indices_of("vela0", here) == (4, 5)
    assert inheritance.indices_of("vela0", here) == ()
    assert inheritance.indices_of("vela9", here) == ()
    assert inheritance.in_use(HERE, PORT) == {7}
    here.close()
    elsewhere.close()


def test_circuit_goes_on_only_by_the_configuration_that_it_was_made_by(
    left: Callable[..., Inheritance],
) -> None:
    config = CircuitConfig("vela0", 1, Remote("192.0.2.9"))
    inheritance = left()
    inheritance.remember({"vela0": config})
    # It was not carried when velad ended.
    assert not inheritance.goes_on(config)

    inheritance.receives_on("vela0", GROUP + "4", 4)

    assert inheritance.former("vela0") == config
    assert inheritance.goes_on(config)
    assert not inheritance.goes_on(replace(config, mtu=1400))
    assert not inheritance.goes_on(replace(config, name="vela1"))
    # Nor where its worker runs: then the velad that has it hands it over.
    inheritance.end_worker = lambda *_: None
    assert not inheritance.goes_on(config)
