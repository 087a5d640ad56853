"""Descriptors that one velad leaves to the next one, by name.

They come from the service manager's store, or from the velad that is replaced. A TAP and what is on
it live on while anybody has a descriptor; so do sockets, and what waits in them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress

import structlog

from vela.address import IPAddress
from vela.linux.steering import CONTROL_SOCKETS
from vela.linux.tap import drop_carrier
from vela.linux.underlay import ReceiveGroup
from vela.wire import MAX_QUEUES

from .config.records import CircuitConfig

RECORD = "record"
"""What the interfaces were given: see fd_store."""
_FIRST = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START
EndWorker = Callable[[str, Callable[[], object]], None]
"""Given a circuit, and what to call when its worker is gone."""

_TAP, _MEMBER, _KEYS = "tap-", "udp-", "keys-"
_CLIENT, _SUBSCRIBER = "client-", "subscriber-"
_FURTHER_TAPS = tuple(f"tap{queue}-" for queue in range(1, MAX_QUEUES))


def tap_name(circuit: str, queue: int = 0) -> str:
    return f"{(_TAP, *_FURTHER_TAPS)[queue]}{circuit}"


def sending_name(circuit: str, queue: int = 0) -> str:
    return f"send{queue or ''}-{circuit}"


def keys_name(circuit: str) -> str:
    return f"{_KEYS}{circuit}"


def client_name(number: int, *, subscribed: bool) -> str:
    """Return the name of a connection to the control socket."""
    return f"{_SUBSCRIBER if subscribed else _CLIENT}{number}"


def is_tap(name: str) -> bool:
    return name.startswith((_TAP, *_FURTHER_TAPS))


def is_key_page(name: str) -> bool:
    return name.startswith(_KEYS)


def member_name(group: ReceiveGroup, index: int) -> str:
    """Return the name of a socket of a group. The manager takes no colon (sd_notify(3))."""
    return _member_name(group.address, group.port, group.choice.device, index)


def _member_name(address: IPAddress, port: int, device: str | None, index: int) -> str:
    parts = (address.packed.hex(), str(port), str(index), *filter(None, (device,)))
    return _MEMBER + "-".join(parts)


def _has_device(member: str) -> bool:
    return member.count("-") > 3


class Inheritance:
    """What there is to go on with. Who takes a descriptor owns it."""

    def __init__(
        self,
        descriptors: Mapping[str, int] | None = None,
        former: Mapping[str, CircuitConfig] | None = None,
    ) -> None:
        """former: what the velad before made of each circuit's interface, as far as it is known."""
        self._descriptors = dict(descriptors or {})
        self._former = dict(former or {})
        self._members: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._stood: set[str] = set()
        self._kept = False
        self.end_worker: EndWorker | None = None
        """Ends the worker of a circuit in a velad that still runs; None: there is none."""

    @classmethod
    def from_manager(cls, environment: MutableMapping[str, str] = os.environ) -> Inheritance:
        """Take what the service manager has kept: sd_listen_fds(3)."""
        names = environment.pop("LISTEN_FDNAMES", "").split(":")
        count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
        if pid != str(os.getpid()) or not count.isdecimal():
            return cls()
        inherited = cls()
        inherited._kept = True
        for fd, name in zip(range(_FIRST, _FIRST + int(count)), names, strict=False):
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue
            twin = inherited._descriptors.setdefault(name, fd)
            if twin != fd:
                os.close(fd)
        return inherited

    def names(self) -> frozenset[str]:
        """Return what nobody has taken yet."""
        return frozenset(self._descriptors)

    def storable(self) -> frozenset[str]:
        """Return those that a service manager may have, from a velad that had the same."""
        kinds = (_TAP, *_FURTHER_TAPS, _MEMBER)
        if self.end_worker is None:
            kinds = (*kinds, _KEYS)
        return frozenset(name for name in self._descriptors if name.startswith(kinds))

    def peek(self, name: str) -> int:
        """Return a descriptor, which nobody has taken yet."""
        return self._descriptors[name]

    def circuits(self) -> Iterator[str]:
        """Yield the circuits whose interfaces nobody has taken yet."""
        yield from [name[len(_TAP) :] for name in self._descriptors if name.startswith(_TAP)]

    def remember(self, former: Mapping[str, CircuitConfig]) -> None:
        """Take note of what the velad before made of its interfaces."""
        self._former.update(former)

    def former(self, circuit: str) -> CircuitConfig | None:
        return self._former.get(circuit)

    def receives_on(self, circuit: str, member: str, *indices: int) -> None:
        """Say which sockets of a group a circuit receives on, as it still does.

        member: the name of the first.
        """
        self._members[circuit] = member, indices
        self._stood.add(circuit)

    def goes_on(self, config: CircuitConfig) -> bool:
        """Tell whether a circuit is to go on as it stood when velad ended to be started again.

        Then it was made by the same configuration, and is expected to be carried all the while.
        """
        name = config.name
        return self.end_worker is None and name in self._stood and self._former.get(name) == config

    def indices_of(self, circuit: str, group: ReceiveGroup) -> tuple[int, ...]:
        """Return the indices of the sockets that a circuit receives on, once; none: it has none."""
        name, indices = self._members.get(circuit, ("", (0,)))
        if name != member_name(group, indices[0]):
            return ()
        del self._members[circuit]
        return indices

    def in_use(self, address: IPAddress, port: int, device: str | None = None) -> frozenset[int]:
        """Return the indices of the sockets in a group that circuits receive on."""
        return frozenset(
            index
            for name, indices in self._members.values()
            if name == _member_name(address, port, device, indices[0])
            for index in indices
        )

    def take(self, name: str) -> int | None:
        """Return a descriptor, which is the caller's from now on; None: there is none."""
        return self._descriptors.pop(name, None)

    def take_queues(self, name: Callable[[str, int], str], circuit: str) -> tuple[int, ...]:
        """Return the descriptors of a circuit's queues behind the first, until one is missing.

        name: tap_name or sending_name.
        """
        found: list[int] = []
        for queue in range(1, MAX_QUEUES):
            fd = self.take(name(circuit, queue))
            if fd is None:
                break
            found.append(fd)
        return tuple(found)

    def take_clients(self) -> tuple[tuple[int, bool], ...]:
        """Return the connections to the control socket, and whether each gets events."""
        names = [name for name in self._descriptors if name.startswith((_CLIENT, _SUBSCRIBER))]
        return tuple((self._descriptors.pop(name), name.startswith(_SUBSCRIBER)) for name in names)

    def take_group(
        self, address: IPAddress, port: int, device: str | None = None
    ) -> tuple[socket.socket, ...]:
        """Return the sockets of a group, by their index; none where one is missing."""
        found: list[int] = []
        while (fd := self.take(_member_name(address, port, device, len(found)))) is not None:
            found.append(fd)
        try:
            if len(found) >= CONTROL_SOCKETS:
                return tuple(socket.socket(fileno=fd) for fd in found)
        except OSError as err:
            structlog.get_logger().warning("sockets_not_inherited", error=str(err))
        for fd in found:
            with suppress(OSError):
                os.close(fd)
        return ()

    def drop(self, name: str) -> None:
        """Close what has this name, if there is anything."""
        fd = self.take(name)
        if fd is not None:
            os.close(fd)

    def drop_sockets(self, *, apart: bool) -> frozenset[str]:
        """Close the listening sockets that nobody has taken, and return their names.

        apart: also those of devices, whose groups are made when a circuit needs them.
        """
        names = frozenset(
            name
            for name in self._descriptors
            if name.startswith(_MEMBER) and (apart or not _has_device(name))
        )
        for name in names:
            os.close(self._descriptors.pop(name))
        return names

    def close(self) -> None:
        """Close what nobody has taken.

        Where it was the service manager's, no velad carries frames: it has no carrier then.
        """
        for name, fd in self._descriptors.items():
            if self._kept and is_tap(name):
                drop_carrier(fd)
            os.close(fd)
        self._descriptors.clear()
