"""What the circuits of a daemon have that only one can have, and what of that is free."""

from __future__ import annotations

import re
import socket
from collections.abc import Container, Iterable, Mapping
from fnmatch import fnmatchcase

from vela.address import IPAddress, Remote, parse_interface_name, parse_remote
from vela.errors import ConfigError
from vela.wire import MAX_CIRCUIT_ID, MIN_CIRCUIT_ID

from ..circuit.circuit import Circuit
from ..config.conflicts import ConflictFinder, find_contradictions, remote_identity
from ..config.records import CircuitConfig, DaemonConfig

# Numbers, for interfaces that nobody named.
NAMES_TRIED = 4096
_WILDCARDS = re.compile(r"[*?]+")


class Allocation:
    """Names, ids, addresses, MACs and ports, as the circuits there are at each moment have them."""

    def __init__(
        self, daemon: DaemonConfig, circuits: Mapping[str, Circuit], reserved: Container[str]
    ) -> None:
        """reserved: names that nobody gets who wants none in particular."""
        self._daemon = daemon
        self._circuits = circuits
        self._reserved = reserved
        self._conflicts = ConflictFinder()

    def check_free(self, config: CircuitConfig, replaced: str | None = None) -> None:
        """Raise ConfigError if another circuit has what this one needs, or its values conflict.

        The circuit called replaced does not count: this one takes its place.
        """
        if config.name in self._circuits and config.name != replaced:
            raise ConfigError(f"there is a circuit {config.name} already")
        others = (each.config for name, each in self._circuits.items() if name != replaced)
        mistakes = [
            *self._conflicts.find(config, others),
            *find_contradictions(config, self._daemon),
        ]
        if mistakes:
            raise ConfigError(*(f"{config.name}: {mistake}" for mistake in mistakes))

    def check_id(self, circuit: Circuit, sources: Iterable[IPAddress]) -> None:
        """Raises ConfigError where another circuit has the id toward one of these addresses."""
        for other in self._circuits.values():
            if other is circuit or other.config.id != circuit.config.id:
                continue
            shared = set(sources).intersection(other.sources)
            if shared:
                raise ConfigError(
                    f"circuit id {circuit.config.id} of {min(shared, key=str)} "
                    f"is {other.name}'s already"
                )

    def free_id(self, remote: str) -> int:
        """Return the lowest circuit id that is free toward a remote, whatever it is called.

        Raises ConfigError: none surely is.
        """
        try:
            wanted = parse_remote(remote)
        except ValueError:
            wanted = Remote(remote)  # refused soon, with its other mistakes
        known = self._addresses_of(wanted)
        taken = {
            each.config.id
            for each in self._circuits.values()
            if remote_identity(each.config.remote) == remote_identity(wanted)
            # What is not resolved may be the same.
            or not (known and each.addresses and known.isdisjoint(each.addresses))
        }
        for number in range(MIN_CIRCUIT_ID, MAX_CIRCUIT_ID + 1):
            if number not in taken:
                return number
        raise ConfigError(
            f"all {MAX_CIRCUIT_ID} circuit ids toward {remote} are taken, "
            "or may be while names do not resolve; say which it is to be"
        )

    def _addresses_of(self, remote: Remote) -> frozenset[IPAddress]:
        """Return what is known of a remote's addresses, by itself or from its circuits."""
        if remote.address is not None:
            return frozenset({remote.address})
        return frozenset(
            address
            for each in self._circuits.values()
            if remote_identity(each.config.remote) == remote_identity(remote)
            for address in each.addresses
        )

    def free_name(self, pattern: str) -> str:
        """Return an interface name that the pattern allows and that nothing here has.

        Raises ConfigError where none is found.
        """
        # Nothing in its place last: a pattern may be as long as a name already.
        for filling in (*map(str, range(NAMES_TRIED)), ""):
            name = _WILDCARDS.sub(filling, pattern, count=1)
            name = _WILDCARDS.sub("", name)
            taken = name in self._circuits or name in self._reserved
            if taken or not fnmatchcase(name, pattern):
                continue
            try:
                parse_interface_name(name)
            except ValueError:
                continue
            try:
                socket.if_nametoindex(name)
            except OSError:
                return name
        raise ConfigError(f"no interface name that fits {pattern!r} is free; name one that is")
