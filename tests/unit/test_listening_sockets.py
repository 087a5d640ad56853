"""vela.supervisor.listening: real sockets, new ones and those that another velad has left."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vela.errors import DeviceError
from vela.linux.features import Feature
from vela.linux.steering import CONTROL_SOCKETS
from vela.linux.underlay import RECEIVE_BUFFER, ReceiveGroup
from vela.supervisor import notify
from vela.supervisor.config.records import DaemonConfig
from vela.supervisor.fd_store import FdStore
from vela.supervisor.inheritance import Inheritance, member_name
from vela.supervisor.listening import listen
from vela.supervisor.notify import ServiceManager

UDP_GRO = 104  # include/uapi/linux/udp.h
FOUR, SIX, ANY = ip_address("127.0.0.1"), ip_address("::1"), ip_address("::")
GRO = frozenset({Feature.UDP_GRO})


class Scene:
    """A machine on which one velad after the other listens."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.stack = stack
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
            port: int = probe.getsockname()[1]
        self.daemon = DaemonConfig(listen=(FOUR,), port=port)
        self.manager = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        )
        self.manager.bind(str(folder / "notify"))
        self.manager.settimeout(0)

    def listen(
        self, inheritance: Inheritance | None = None, *addresses: str, gro: bool = True
    ) -> tuple[ReceiveGroup, ...]:
        if addresses:
            self.daemon = replace(self.daemon, listen=tuple(map(ip_address, addresses)))
        inheritance = Inheritance() if inheritance is None else inheritance
        self.stack.callback(inheritance.close)
        notified = ServiceManager({"NOTIFY_SOCKET": str(self.manager.getsockname())})
        self.stack.callback(notified.close)
        store = FdStore(notified, inheritance, self.daemon)
        self.stack.callback(store.close)
        groups = listen(self.daemon, GRO if gro else frozenset(), inheritance, store)
        for group in groups:
            self.stack.callback(group.close)
        return groups

    def left(self, *groups: ReceiveGroup) -> dict[str, int]:
        """Return copies of the sockets of groups, by their names, and close the groups."""
        copies = {
            member_name(group, index): os.dup(member.fileno())
            for group in groups
            for index, member in enumerate(group.sockets)
        }
        for group in groups:
            group.close()
        return copies

    def forgotten(self) -> set[str]:
        """Return the names of what the service manager was told to forget."""
        names: set[str] = set()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.manager, 1000, 1)
            except BlockingIOError:
                return names
            for fd in fds:  # of a barrier
                os.close(fd)
            lines = data.decode().split("\n")
            if "FDSTOREREMOVE=1" in lines:
                names.add(lines[1].removeprefix("FDNAME="))

    def send(self, *, to: str = "127.0.0.1") -> None:
        family = socket.AF_INET if "." in to else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", (to, self.daemon.port))


def inodes(*groups: ReceiveGroup) -> list[int]:
    return [os.fstat(each.fileno()).st_ino for group in groups for each in group.sockets]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    # Nobody here answers.
    monkeypatch.setattr(notify, "BARRIER_S", 0.0)
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


def receive(group: ReceiveGroup) -> int:
    """Return which control sockets of a group have got something, how many times."""
    found = 0
    for each in group.control_sockets:
        while True:
            try:
                each.recv(100)
            except BlockingIOError:
                break
            found += 1
    return found


def test_each_address_is_listened_on_in_order(scene: Scene) -> None:
    groups = scene.listen(None, "::1", "127.0.0.1")

    assert [str(group) for group in groups] == [
        f"[::1]:{scene.daemon.port}",
        f"127.0.0.1:{scene.daemon.port}",
    ]
    for to, group in zip(("::1", "127.0.0.1"), groups, strict=True):
        scene.send(to=to)
        assert receive(group) == 1
    assert not any(group.adopted for group in groups)


@pytest.mark.parametrize("gro", [True, False])
def test_datagrams_are_joined_where_the_kernel_can(scene: Scene, gro: bool) -> None:
    (group,) = scene.listen(gro=gro)

    assert {each.getsockopt(socket.IPPROTO_UDP, UDP_GRO) for each in group.sockets} == {int(gro)}


def test_any_ipv6_address_hears_ipv4_unless_that_is_listed_itself(scene: Scene) -> None:
    (both,) = scene.listen(None, "::")
    scene.send()
    assert receive(both) == 1
    both.close()

    six, four = scene.listen(None, "::", "127.0.0.1")
    scene.send()
    assert (receive(six), receive(four)) == (0, 1)


def test_sockets_that_another_velad_left_are_gone_on_with_and_what_waits_in_them(
    scene: Scene,
) -> None:
    groups = scene.listen(None, "127.0.0.1", "::1")
    members = inodes(*groups)
    copies = scene.left(*groups)
    scene.send()

    adopted = scene.listen(Inheritance(copies))

    assert all(group.adopted for group in adopted)
    assert inodes(*adopted) == members
    assert receive(adopted[0]) == 1
    assert scene.forgotten() == set()


def test_sockets_of_circuits_that_go_on_are_given_to_nobody_else(scene: Scene) -> None:
    (group,) = scene.listen()
    indices = [group.acquire() for _ in range(3)]
    inheritance = Inheritance(scene.left(group))
    first = member_name(group, indices[1])
    inheritance.receives_on("vela1", first, indices[1])

    (adopted,) = scene.listen(inheritance)

    given = {adopted.acquire() for _ in range(2)}
    assert given == {indices[0], indices[2]}
    assert adopted.acquire() == CONTROL_SOCKETS + 3


def test_address_that_is_new_is_bound_beside_those_that_were_left(scene: Scene) -> None:
    (group,) = scene.listen(None, "127.0.0.1")
    members = inodes(group)
    copies = scene.left(group)

    six, four = scene.listen(Inheritance(copies), "::1", "127.0.0.1")

    assert (four.adopted, six.adopted) == (True, False)
    assert inodes(four) == members
    scene.send(to="::1")
    assert receive(six) == 1


def test_address_that_is_no_longer_listed_is_left_and_forgotten(scene: Scene) -> None:
    groups = scene.listen(None, "127.0.0.1", "::1")
    names = {member_name(groups[1], index) for index in range(CONTROL_SOCKETS)}
    inheritance = Inheritance(scene.left(*groups))

    (four,) = scene.listen(inheritance, "127.0.0.1")

    assert four.adopted
    assert scene.forgotten() == names
    assert not inheritance.names()
    # Nobody has it any more.
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::1", scene.daemon.port))


def test_any_address_that_is_to_hear_other_families_is_bound_anew(scene: Scene) -> None:
    """The kernel lets that be chosen before a socket is bound only."""
    (both,) = scene.listen(None, "::")
    members = inodes(both)
    names = {member_name(both, index) for index in range(len(members))}
    inheritance = Inheritance(scene.left(both))

    six, four = scene.listen(inheritance, "::", "127.0.0.1")

    assert (six.adopted, four.adopted) == (False, False)
    assert not set(inodes(six)) & set(members)
    assert scene.forgotten() == names
    scene.send()
    assert (receive(six), receive(four)) == (0, 1)


def test_group_of_which_a_socket_is_missing_is_bound_anew(scene: Scene) -> None:
    (group,) = scene.listen()
    name = member_name(group, CONTROL_SOCKETS - 1)
    copies = scene.left(group)
    os.close(copies.pop(name))

    (fresh,) = scene.listen(Inheritance(copies))

    assert not fresh.adopted
    scene.send()
    assert receive(fresh) == 1


def test_port_that_is_taken_is_refused_and_nothing_stays_bound(scene: Scene) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", scene.daemon.port))

        with pytest.raises(DeviceError, match=r"cannot listen on 127\.0\.0\.1") as refused:
            scene.listen(None, "::1", "127.0.0.1")

    assert refused.traceback  # which keeps what nobody has closed
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::1", scene.daemon.port))


def test_buffer_that_the_kernel_clips_is_said_for_each_address(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = 212_992
    monkeypatch.setattr(ReceiveGroup, "receive_buffer", granted)
    with capture_logs() as lines:
        groups = scene.listen(None, "127.0.0.1", "::1")

    assert [line["listen"] for line in lines] == [str(group) for group in groups]
    for line in lines:
        assert (line["event"], line["log_level"]) == ("receive_buffer_clipped", "warning")
        assert (line["wanted_bytes"], line["granted_bytes"]) == (RECEIVE_BUFFER, granted)

    monkeypatch.setattr(ReceiveGroup, "receive_buffer", RECEIVE_BUFFER)
    for group in groups:
        group.close()
    with capture_logs() as lines:
        scene.listen()
    assert lines == []
