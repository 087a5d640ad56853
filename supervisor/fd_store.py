"""The service manager's store of descriptors: what a restart of velad leaves alone.

systemd keeps copies of what it is given (FDSTORE=1, sd_notify(3)), hands them to the velad that it
starts next, and closes them when the unit is stopped. So interfaces with all that is on them, and
the listening sockets, outlive a restart and a crash. A record among them says what the interfaces
were made by; and, where velad has ended to be started again, how its circuits stood.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from vela.errors import ConfigError
from vela.linux.tap import interface_of
from vela.linux.underlay import ReceiveGroup

from .config.reader import format_circuit, parse_circuits
from .config.records import CircuitConfig, DaemonConfig
from .inheritance import RECORD, Inheritance, is_key_page, is_tap, member_name, tap_name
from .notify import ServiceManager

_VERSION = 1
_MAX_RECORD = 16 << 20  # bytes; 255 circuits take 100 000, and 300 000 with how they stood
_UNKNOWN = -1
"""What a name stands for that the manager may have another descriptor of."""

Standings = Mapping[str, Mapping[str, Any]]
"""How each circuit stood, by name; as JSON has it."""


class FdStore:
    """Keeps the manager's copies like what there is."""

    def __init__(
        self, manager: ServiceManager, inheritance: Inheritance, daemon: DaemonConfig
    ) -> None:
        """inheritance: what there is to go on with. It learns what the record in it says."""
        self._manager = manager
        self._daemon = daemon
        self._configs: Mapping[str, CircuitConfig] = {}
        self._standings: Standings = {}
        self.standings: Standings = {}
        """How circuits stood when velad ended to be started again, as it has said in leave()."""
        # What each name stands for. A velad that was replaced does not say what it has stored.
        self._stored: dict[str, int] = {}
        names = inheritance.storable()
        self._record = inheritance.take(RECORD)
        if inheritance.end_worker is not None:
            self._stored = dict.fromkeys((*names, RECORD), _UNKNOWN)
            return
        self._stored = {name: _identity(name, inheritance.peek(name)) for name in names}
        if self._record is not None:
            self._stored[RECORD] = _inode(self._record)
            self._recall(self._record, inheritance)
        # This process has their descriptors now, and so they are to go with it.
        for name in filter(is_key_page, names):
            if manager.forget(name):
                del self._stored[name]

    def close(self) -> None:
        if self._record is not None:
            os.close(self._record)
            self._record = None

    def __len__(self) -> int:
        """How many descriptors the manager has, if it has taken all that it was given."""
        return len(self._stored)

    def update(
        self,
        taps: Mapping[str, tuple[tuple[int, ...], int]],
        groups: tuple[ReceiveGroup, ...],
        configs: Mapping[str, CircuitConfig],
        more: Mapping[str, int] | None = None,
    ) -> bool:
        """Let the manager have copies of these. To be called once a second.

        taps: descriptors and indices of interfaces, by circuit. configs: what they were made by.
        more: further descriptors, by name. Return whether the manager was given all of them.
        """
        if not self._manager.told:
            return False
        wanted: dict[str, tuple[int, int]] = {}
        # First: a manager takes a few messages at once (net.unix.max_dgram_qlen), and a velad that
        # ends now has no other time to tell the rest, which is likely to be the same as before.
        if self._rewrite(configs, {}) and self._record is not None:
            wanted[RECORD] = self._record, _inode(self._record)
        wanted |= {
            tap_name(name, queue): (fd, interface)
            for name, (fds, interface) in taps.items()
            for queue, fd in enumerate(fds)
        }
        for group in groups:
            for index, member in enumerate(group.sockets):
                wanted[member_name(group, index)] = member.fileno(), _inode(member.fileno())
        wanted |= {name: (fd, _inode(fd)) for name, fd in (more or {}).items()}
        # What is new first: at no time is there less in the store than there has to be.
        for name, (fd, identity) in wanted.items():
            if self._stored.get(name) == identity:
                continue
            # Another one of the same name, or what may be one: these are forgotten together.
            if name in self._stored and not self._manager.forget(name):
                return False
            self._stored.pop(name, None)
            if not self._manager.store(name, fd):
                return False
            self._stored[name] = identity
        for name in self._stored.keys() - wanted.keys():
            if not self._manager.forget(name):
                return False
            del self._stored[name]
        return True

    def leave(self, standings: Standings) -> bool:
        """Let the velad that is started next know how circuits stand. False: it does not."""
        return self._rewrite(self._configs, standings)

    def forget(self, names: frozenset[str]) -> None:
        """Let the manager close its copies of these, and wait until it has."""
        gone = [name for name in names if self._manager.forget(name)]
        for name in gone:
            self._stored.pop(name, None)
        if gone:
            self._manager.wait_until_read()

    def _rewrite(self, configs: Mapping[str, CircuitConfig], standings: Standings) -> bool:
        """Let the record say this. Whoever has a descriptor of it has all that is in it."""
        if (configs, standings) == (self._configs, self._standings) and self._record is not None:
            return True
        document = {
            "version": _VERSION,
            "circuits": {name: format_circuit(config) for name, config in configs.items()},
            "listen": _listening(self._daemon),
            "standings": standings,
        }
        text = json.dumps(document).encode()
        try:
            if self._record is None:
                self._record = os.memfd_create("vela-record", os.MFD_CLOEXEC)
            os.ftruncate(self._record, 0)
            os.pwrite(self._record, text, 0)
        except OSError as err:
            structlog.get_logger().warning("record_not_written", error=str(err))
            return False
        self._configs, self._standings = dict(configs), dict(standings)
        return True

    def _recall(self, fd: int, inheritance: Inheritance) -> None:
        """Read what the velad before has said. What cannot be read is not known."""
        try:
            document = json.loads(os.pread(fd, _MAX_RECORD, 0))
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            tables = document["circuits"].items()
            # An older velad does not say it.
            standings = dict(document.get("standings", {}))
            if document.get("listen") == _listening(self._daemon):
                self.standings = standings
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            structlog.get_logger().warning("record_not_read", error=str(err))
            return
        former: dict[str, CircuitConfig] = {}
        for name, table in tables:
            with suppress(ConfigError):
                for config in parse_circuits({name: table}, self._daemon, RECORD):
                    former[name] = config
        inheritance.remember(former)
        self._configs, self._standings = former, standings
        # For one start alone: later the sessions are no longer where they were.
        self._rewrite(former, {})


def _listening(daemon: DaemonConfig) -> list[str]:
    """Return what sockets and sessions are bound to."""
    return [str(daemon.port), *map(str, daemon.listen)]


def _identity(name: str, fd: int) -> int:
    """Return what tells the descriptor of a name from others."""
    return (interface_of(fd) or _UNKNOWN) if is_tap(name) else _inode(fd)


def _inode(fd: int) -> int:
    """Each socket and each memory has its own."""
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return _UNKNOWN
