"""The service manager's store of descriptors: what a restart of velad leaves alone.

systemd keeps copies of what it is given (FDSTORE=1, sd_notify(3)), hands them to the velad that it
starts next, and closes them when the unit is stopped. So interfaces with all that is on them, and
the listening sockets, outlive a restart and a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress

import structlog

from vela.errors import ConfigError
from vela.linux.underlay import ReceiveGroup

from .config.reader import format_circuit, parse_circuits
from .config.records import CircuitConfig, DaemonConfig
from .inheritance import RECORD, Inheritance, member_name, tap_name
from .notify import ServiceManager

_VERSION = 1
_MAX_RECORD = 16 << 20  # bytes; 255 circuits take 100 000


class FdStore:
    """Keeps the manager's copies like what there is."""

    def __init__(self, manager: ServiceManager, kept: frozenset[str]) -> None:
        """kept: what the manager has kept from the velad before."""
        self._manager = manager
        # What each name stands for. Nobody knows it yet of what was kept; a velad that was replaced
        # does not hand over its record.
        self._stored: dict[str, int | None] = dict.fromkeys(kept | {RECORD})
        self._record: int | None = None
        self._configs: Mapping[str, CircuitConfig] = {}

    def close(self) -> None:
        if self._record is not None:
            os.close(self._record)
            self._record = None

    def update(
        self,
        taps: Mapping[str, tuple[tuple[int, ...], int]],
        groups: tuple[ReceiveGroup, ...],
        configs: Mapping[str, CircuitConfig],
    ) -> None:
        """Let the manager have copies of these. To be called once a second.

        taps: descriptors and indices of interfaces, by circuit. configs: what they were made by.
        """
        if not self._manager.told:
            return
        wanted: dict[str, tuple[int, int]] = {}
        # First: a manager takes a few messages at once (net.unix.max_dgram_qlen), and a velad that
        # ends now has no other time to tell the rest, which is likely to be the same as before.
        record = self._write(configs)
        if record is not None:
            wanted[RECORD] = (record, 1)
        wanted |= {
            tap_name(name, queue): (fd, interface)
            for name, (fds, interface) in taps.items()
            for queue, fd in enumerate(fds)
        }
        for group in groups:
            for index, member in enumerate(group.sockets):
                # No two have one number, and a group has the same sockets until it is closed.
                wanted[member_name(group, index)] = (member.fileno(), 0)
        for name in self._stored.keys() - wanted.keys():
            if not self._manager.forget(name):
                return
            del self._stored[name]
        for name, (fd, identity) in wanted.items():
            if self._stored.get(name, -1) == identity:
                continue
            # Another interface of the same name, or what may be one.
            if name in self._stored and not self._manager.forget(name):
                return
            self._stored.pop(name, None)
            if not self._manager.store(name, fd):
                return
            self._stored[name] = identity

    def forget(self, names: frozenset[str]) -> None:
        """Let the manager close its copies of these, and wait until it has."""
        gone = [name for name in names if self._manager.forget(name)]
        for name in gone:
            self._stored.pop(name, None)
        if gone:
            self._manager.wait_until_read()

    def _write(self, configs: Mapping[str, CircuitConfig]) -> int | None:
        """Return the descriptor of memory that says what the interfaces were made by."""
        if configs == self._configs and self._record is not None:
            return self._record
        circuits = {name: format_circuit(config) for name, config in configs.items()}
        text = json.dumps({"version": _VERSION, "circuits": circuits}).encode()
        try:
            if self._record is None:
                self._record = os.memfd_create("vela-record", os.MFD_CLOEXEC)
            os.ftruncate(self._record, 0)
            os.pwrite(self._record, text, 0)
        except OSError as err:
            structlog.get_logger().warning("record_not_written", error=str(err))
            return None
        self._configs = dict(configs)
        return self._record


def recall(inheritance: Inheritance, daemon: DaemonConfig) -> None:
    """Read what the velad before made of its interfaces. What cannot be read is not known."""
    fd = inheritance.take(RECORD)
    if fd is None:
        return
    try:
        document = json.loads(os.pread(fd, _MAX_RECORD, 0))
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        tables = document["circuits"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        structlog.get_logger().warning("record_not_read", error=str(err))
        return
    finally:
        os.close(fd)
    for name, table in tables:
        with suppress(ConfigError):
            for config in parse_circuits({name: table}, daemon, RECORD):
                inheritance.remember({name: config})
