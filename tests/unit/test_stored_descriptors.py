"""vela.supervisor.fd_store: what the service manager is told, and what the next velad learns."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from exhaustion import no_descriptors
from http_clients import free_endpoint
from structlog.testing import capture_logs

from vela.linux.underlay import ReceiveGroup
from vela.supervisor import notify
from vela.supervisor.config.reader import parse_circuits
from vela.supervisor.config.records import CircuitConfig, DaemonConfig
from vela.supervisor.fd_store import FdStore
from vela.supervisor.inheritance import RECORD, EndWorker, Inheritance
from vela.supervisor.notify import ServiceManager

DAEMON = DaemonConfig()
STANDING = {"vela0": {"remote": "192.0.2.1"}}


def circuit(name: str = "vela0", **settings: Any) -> dict[str, CircuitConfig]:
    table = {"id": 1, "remote": "192.0.2.1", **settings}
    return {each.name: each for each in parse_circuits({name: table}, DAEMON, "a test")}


class Manager:
    """The service manager's end, and all that it keeps."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._listening = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        )
        self._listening.bind(str(folder / "notify"))
        self.kept: dict[str, int] = {}

    def hear(self) -> list[str]:
        """Return what was said since the last time: + and - with what is to be kept or not."""
        said: list[str] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._listening, 1000, 1)
            except BlockingIOError:
                return said
            fields = dict(line.split("=") for line in data.decode().split("\n"))
            if "BARRIER" in fields:
                os.close(fds[0])
                said.append("barrier")
                continue
            name = fields["FDNAME"]
            said.append(("+" if "FDSTORE" in fields else "-") + name)
            if fds:
                self._stack.callback(os.close, fds[0])
                self.kept[name] = fds[0]
            else:
                self.kept.pop(name, None)

    def fill(self) -> None:
        """Be so busy that nothing more is taken, until hear()."""
        address = self._listening.getsockname()
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as other, suppress(BlockingIOError):
            while True:
                other.sendto(b"FDSTOREREMOVE=1\nFDNAME=x", address)

    def start(
        self, daemon: DaemonConfig = DAEMON, end_worker: EndWorker | None = None
    ) -> tuple[FdStore, Inheritance]:
        """Start a velad with what is kept. end_worker: the one before still runs."""
        notified = ServiceManager({"NOTIFY_SOCKET": str(self._listening.getsockname())})
        self._stack.callback(notified.close)
        inheritance = Inheritance({name: os.dup(fd) for name, fd in self.kept.items()})
        self._stack.callback(inheritance.close)
        inheritance.end_worker = end_worker
        store = FdStore(notified, inheritance, daemon)
        self._stack.callback(store.close)
        return store, inheritance


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def manager(tmp_path: Path, stack: ExitStack) -> Manager:
    return Manager(tmp_path, stack)


@pytest.fixture
def pipes(stack: ExitStack) -> list[int]:
    """Some descriptors that differ."""
    ends = [end for _ in range(2) for end in os.pipe()]
    for end in ends:
        stack.callback(os.close, end)
    return ends


def taps(*named: tuple[str, int, int]) -> Mapping[str, tuple[tuple[int, ...], int]]:
    return {name: ((fd,), index) for name, fd, index in named}


def test_what_is_new_is_stored_before_what_is_gone_is_forgotten(
    manager: Manager, pipes: list[int]
) -> None:
    store, _ = manager.start()
    assert store.update(taps(("vela0", pipes[0], 5)), (), {})
    assert manager.hear() == ["+record", "+tap-vela0"]

    assert store.update(taps(("vela1", pipes[1], 6)), (), {})

    assert manager.hear() == ["+tap-vela1", "-tap-vela0"]
    assert len(store) == 2


def test_what_stays_is_not_told_again(manager: Manager, pipes: list[int]) -> None:
    store, _ = manager.start()
    for _ in range(2):
        store.update(taps(("vela0", pipes[0], 5)), (), circuit())

    assert manager.hear() == ["+record", "+tap-vela0"]


def test_other_interface_of_the_same_name_takes_the_place_of_the_former(
    manager: Manager, pipes: list[int]
) -> None:
    store, _ = manager.start()
    store.update(taps(("vela0", pipes[0], 5)), (), {})
    manager.hear()

    store.update(taps(("vela0", pipes[1], 6)), (), {})

    assert manager.hear() == ["-tap-vela0", "+tap-vela0"]


def test_next_velad_keeps_what_it_goes_on_with_in_the_store_all_the_while(
    manager: Manager, pipes: list[int], stack: ExitStack
) -> None:
    listening = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    store, _ = manager.start()
    store.update({}, (), circuit(), {"udp-1": listening.fileno(), "udp-2": pipes[0]})
    manager.hear()

    next_store, inheritance = manager.start()
    fds = {name: inheritance.take(name) for name in ("udp-1", "udp-2")}
    other = pipes[2]  # of another pipe: both ends of one have one inode
    next_store.update({}, (), circuit(), {"udp-1": fds["udp-1"] or -1, "udp-2": other})

    # Not the record either, which has the same memory.
    assert manager.hear() == ["-udp-2", "+udp-2"]


def test_manager_that_takes_nothing_has_not_all(manager: Manager, pipes: list[int]) -> None:
    store, _ = manager.start()
    many = {f"x{number}": pipes[0] for number in range(5000)}

    assert not store.update({}, (), {}, many)

    told = len(manager.hear())
    assert len(store) == told
    assert not store.update({}, (), {}, many)  # goes on with the next ones
    assert manager.hear()[0] == f"+x{told - 1}"


def test_next_velad_learns_how_circuits_stood_and_what_they_were_made_by(manager: Manager) -> None:
    store, _ = manager.start()
    store.update({}, (), circuit())
    assert store.leave(STANDING)
    manager.hear()

    next_store, inheritance = manager.start()

    assert next_store.standings == STANDING
    assert inheritance.former("vela0") == circuit()["vela0"]


def test_how_circuits_stood_counts_for_one_start(manager: Manager) -> None:
    store, _ = manager.start()
    store.update({}, (), circuit())
    store.leave(STANDING)
    manager.hear()
    manager.start()  # and ends at once

    third, inheritance = manager.start()

    assert third.standings == {}
    assert inheritance.former("vela0") == circuit()["vela0"]


def test_update_takes_back_how_circuits_stood(manager: Manager) -> None:
    """velad has not ended after all."""
    store, _ = manager.start()
    store.update({}, (), circuit())
    store.leave(STANDING)
    store.update({}, (), circuit())
    manager.hear()

    assert manager.start()[0].standings == {}


@pytest.mark.parametrize("changed", [{"port": 4711}, {"listen": (IPv4Address("192.0.2.9"),)}])
def test_other_listening_address_is_no_place_to_go_on_at(
    manager: Manager, changed: dict[str, Any]
) -> None:
    store, _ = manager.start()
    store.update({}, (), circuit())
    store.leave(STANDING)
    manager.hear()

    next_store, inheritance = manager.start(DaemonConfig(**changed))

    assert next_store.standings == {}
    assert inheritance.former("vela0") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\xff",
        '{"version": 2, "circuits": {}}',
        '{"version": 1}',
        '{"version": 1, "circuits": []}',
        '{"version": 1, "circuits": {}, "standings": 7}',
    ],
)
def test_record_that_cannot_be_read_is_not_known(
    manager: Manager, stack: ExitStack, text: str
) -> None:
    record = os.memfd_create("record")
    stack.callback(os.close, record)
    os.write(record, text.encode("latin-1"))
    manager.kept[RECORD] = record

    store, inheritance = manager.start()

    assert store.standings == {}
    assert inheritance.former("vela0") is None
    assert store.update({}, (), circuit())
    assert json.loads(os.pread(record, 10_000, 0))["circuits"].keys() == {"vela0"}


def test_record_of_an_older_velad_says_nothing_of_standings(
    manager: Manager, stack: ExitStack
) -> None:
    record = os.memfd_create("record")
    stack.callback(os.close, record)
    os.write(record, b'{"version": 1, "circuits": {"vela0": {"id": 1, "remote": "192.0.2.1"}}}')
    manager.kept[RECORD] = record

    store, inheritance = manager.start()

    assert store.standings == {}
    assert inheritance.former("vela0") == circuit()["vela0"]


def test_key_pages_are_forgotten_at_once(manager: Manager, pipes: list[int]) -> None:
    store, _ = manager.start()
    store.update({}, (), {}, {"keys-vela0": pipes[0]})
    assert manager.hear() == ["+record", "+keys-vela0"]

    next_store, inheritance = manager.start()

    assert manager.hear() == ["-keys-vela0"]
    assert inheritance.names() == {"keys-vela0"}
    assert len(next_store) == 1


@pytest.mark.parametrize("apart", [False, True])
def test_sockets_of_devices_stay_unless_their_port_is_wanted(stack: ExitStack, apart: bool) -> None:
    """Of a VRF: the group is made when a circuit needs it."""
    names = ("udp-c0000201-48621-0", "udp-00000000-48621-0-red", "udp-00000000-48621-1-red-a")
    inheritance = Inheritance(
        {name: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach() for name in names}
    )
    stack.callback(inheritance.close)

    dropped = inheritance.drop_sockets(apart=apart)

    assert dropped == set(names if apart else names[:1])
    assert inheritance.names() == set(names) - dropped


def test_velad_that_takes_over_from_another_one_replaces_what_that_has_stored(
    manager: Manager, pipes: list[int]
) -> None:
    """It cannot know whether the manager's copies are of what it was given."""
    store, _ = manager.start()
    store.update(taps(("vela0", pipes[0], 5)), (), circuit(), {"udp-1": pipes[1]})
    manager.hear()

    next_store, inheritance = manager.start(end_worker=lambda *_: None)
    assert len(next_store) == 3
    # And what the other one has said of its circuits does not count: they have gone on since.
    assert inheritance.former("vela0") is None
    next_store.update(taps(("vela0", pipes[0], 5)), (), circuit())

    said = manager.hear()
    assert said == ["-record", "+record", "-tap-vela0", "+tap-vela0", "-udp-1"]
    next_store.update(taps(("vela0", pipes[0], 5)), (), circuit())
    assert manager.hear() == []


def test_without_a_manager_nothing_is_kept(stack: ExitStack, pipes: list[int]) -> None:
    store = FdStore(ServiceManager({}), Inheritance(), DAEMON)
    stack.callback(store.close)

    assert not store.update(taps(("vela0", pipes[0], 5)), (), circuit())
    assert len(store) == 0


def test_sockets_of_a_group_are_kept_by_their_address_port_and_index(
    manager: Manager, stack: ExitStack
) -> None:
    endpoint = free_endpoint()
    group = ReceiveGroup(endpoint.address, endpoint.port, only_ipv6=False)
    stack.callback(group.close)
    store, _ = manager.start()

    assert store.update({}, (group,), {})

    names = [f"udp-7f000001-{endpoint.port}-{index}" for index in range(3)]
    assert manager.hear() == ["+record", *(f"+{name}" for name in names)]
    for name, member in zip(names, group.sockets, strict=True):
        assert os.fstat(manager.kept[name]).st_ino == os.fstat(member.fileno()).st_ino


@pytest.mark.parametrize("replaced", [True, False])
def test_copy_that_the_manager_does_not_forget_now_is_forgotten_later(
    manager: Manager, pipes: list[int], replaced: bool
) -> None:
    store, _ = manager.start()
    store.update({}, (), {}, {"udp-1": pipes[0]})
    manager.hear()
    wanted = {"udp-1": pipes[2]} if replaced else {}
    manager.fill()

    assert not store.update({}, (), {}, wanted)
    assert len(store) == 2
    manager.hear()

    assert store.update({}, (), {}, wanted)
    assert manager.hear() == (["-udp-1", "+udp-1"] if replaced else ["-udp-1"])


def test_forgotten_copies_are_waited_for(
    manager: Manager, pipes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports of sockets are taken for as long as anybody has them."""
    monkeypatch.setattr(notify, "BARRIER_S", 0.01)  # this manager reads it later
    store, _ = manager.start()
    store.update({}, (), {}, {"udp-1": pipes[0], "udp-2": pipes[2]})
    manager.hear()

    store.forget(frozenset({"udp-1"}))
    assert manager.hear() == ["-udp-1", "barrier"]
    assert len(store) == 2

    store.forget(frozenset())
    assert manager.hear() == []


def test_record_for_which_there_is_no_descriptor_is_written_later(
    manager: Manager, pipes: list[int]
) -> None:
    store, _ = manager.start()

    with no_descriptors(), capture_logs() as log:
        assert store.update({}, (), circuit(), {"udp-1": pipes[0]})
        assert not store.leave(STANDING)

    assert {entry["event"] for entry in log} == {"record_not_written"}
    assert manager.hear() == ["+udp-1"]
    store.update({}, (), circuit(), {"udp-1": pipes[0]})
    assert manager.hear() == ["+record"]
    assert store.leave(STANDING)
    assert manager.start()[0].standings == STANDING


def test_descriptor_that_is_closed_is_taken_for_another_one(
    manager: Manager, pipes: list[int]
) -> None:
    store, _ = manager.start()
    store.update({}, (), {}, {"udp-1": pipes[0]})
    manager.hear()
    closed = os.dup(0)
    os.close(closed)

    store.update({}, (), {}, {"udp-1": closed})

    # The kernel does not send what is not open, and there is no use in trying again.
    assert manager.hear() == ["-udp-1"]
