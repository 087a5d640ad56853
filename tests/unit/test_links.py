"""vela.supervisor.circuit.links: messages as the kernel sends them, in a real event loop.

Only root changes an interface. Here the messages come from a socket pair: their bytes are those of
rtnetlink(7), and all behind the socket is real.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from exhaustion import open_descriptors

from vela.linux import rtnetlink
from vela.supervisor.circuit.links import Links
from vela.supervisor.runtime.loop import EventLoop

PATIENCE_S = 20.0
# include/uapi/linux/rtnetlink.h
NEW_LINK, DELETE_LINK, NEW_ADDRESS, DELETE_ADDRESS, NEW_ROUTE = 16, 17, 20, 21, 24


def message(kind: int, index: int) -> bytes:
    """Return struct nlmsghdr, and struct ifinfomsg or ifaddrmsg behind it, without attributes."""
    if kind in (NEW_LINK, DELETE_LINK):
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 1, index, 0, 0)
    else:
        body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, index)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class Machine:
    """Links, the kernel's end of their socket, and the interfaces that were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        monkeypatch.setattr(rtnetlink, "_open_socket", lambda *_: self.ours)
        self.loop = EventLoop()
        self.links = Links(self.loop)
        self.looks: list[int] = []
        self.times: list[float] = []

    def watch(self, *indices: int) -> None:
        for index in indices:
            self.links.watch(index, self._look_of(index))

    def _look_of(self, index: int) -> Callable[[float], None]:
        def look(now: float) -> None:
            self.looks.append(index)
            self.times.append(now)
            self.loop.call_soon(self.loop.stop)

        return look

    def change(self, *messages: bytes) -> None:
        self.kernel.send(b"".join(messages))

    def wait(self) -> list[int]:
        """Run until something was looked at. Return what was, since the last time, sorted."""
        late = self.loop.call_later(PATIENCE_S, self.loop.stop)
        self.loop.run()
        late.cancel()
        looks, self.looks = sorted(self.looks), []
        return looks


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(monkeypatch)
    yield made
    made.links.close()
    made.kernel.close()
    made.loop.close()


@pytest.mark.parametrize("kind", [NEW_LINK, DELETE_LINK, DELETE_ADDRESS])
def test_interface_that_has_changed_is_looked_at(machine: Machine, kind: int) -> None:
    machine.watch(5, 6)
    began = machine.loop.now()

    machine.change(message(kind, 5))

    assert machine.wait() == [5]
    assert began <= machine.times[0] <= machine.loop.now()


def test_changes_of_a_crowd_are_one_look_for_each_that_is_watched(machine: Machine) -> None:
    machine.watch(5, 6, 7)

    # As one message, and as several.
    machine.change(message(NEW_LINK, 5), message(NEW_LINK, 5), message(NEW_LINK, 99))
    machine.change(message(NEW_LINK, 6))
    machine.change(message(DELETE_ADDRESS, 5))

    assert machine.wait() == [5, 6]


def test_what_concerns_no_circuit_is_no_look(machine: Machine) -> None:
    machine.watch(5, 6)

    # Addresses that are added, and routes, do not matter either.
    machine.change(message(NEW_LINK, 99))
    machine.change(message(NEW_ADDRESS, 5), message(NEW_ROUTE, 5))
    machine.change(message(NEW_LINK, 6))

    assert machine.wait() == [6]


def test_each_change_is_looked_at_also_after_a_look(machine: Machine) -> None:
    machine.watch(5)
    for _ in range(3):
        machine.change(message(NEW_LINK, 5))

        assert machine.wait() == [5]


def test_all_interfaces_are_looked_at_where_messages_were_lost(machine: Machine) -> None:
    """The kernel says ENOBUFS then (netlink(7)); an error of another kind is taken for the same."""
    machine.watch(5, 6, 7)
    # unix(7): an end that is closed with unread data resets the other one.
    machine.ours.send(b"x")
    machine.kernel.close()

    assert machine.wait() == [5, 6, 7]


def test_interface_that_is_no_longer_watched_is_not_looked_at(machine: Machine) -> None:
    machine.watch(5, 6)
    machine.links.unwatch(6)
    machine.links.unwatch(6)

    machine.change(message(NEW_LINK, 6), message(NEW_LINK, 5))

    assert machine.wait() == [5]


def test_look_that_was_due_is_left_out_if_the_interface_is_given_up_meanwhile(
    machine: Machine,
) -> None:
    for index, other in ((5, 6), (6, 5)):
        # The first one removes the other, as a circuit does that is deleted.
        def look(_: float, index: int = index, other: int = other) -> None:
            machine.looks.append(index)
            machine.links.unwatch(other)
            machine.loop.call_soon(machine.loop.stop)

        machine.links.watch(index, look)

    machine.watch(7)
    machine.change(*(message(NEW_LINK, index) for index in (5, 6, 7)))

    assert machine.wait() in ([5, 7], [6, 7])


def test_look_that_fails_keeps_no_other_interface_from_its_own(machine: Machine) -> None:
    def fail(_: float) -> None:
        raise ZeroDivisionError

    machine.links.watch(5, fail)
    machine.watch(6)

    machine.change(message(NEW_LINK, 5), message(NEW_LINK, 6))

    assert machine.wait() == [6]


def test_frozen_links_hear_of_changes_when_they_are_thawed(machine: Machine) -> None:
    """Another velad looks after the interfaces meanwhile, or does not."""
    machine.watch(5)
    machine.links.freeze()
    machine.change(message(NEW_LINK, 5))
    machine.loop.call_later(0, machine.loop.stop)
    assert machine.wait() == []

    machine.links.thaw()

    assert machine.wait() == [5]


def test_kernel_s_own_socket_is_watched_and_closed() -> None:
    before = open_descriptors()
    loop = EventLoop()
    links = Links(loop)
    opened = open_descriptors()

    links.close()
    loop.close()

    # The loop has a selector and a pipe; one is of the links.
    assert (opened, open_descriptors()) == (before + 4, before)
