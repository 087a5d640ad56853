"""Which names, circuit ids, addresses, MAC addresses and ports of this machine are free."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Container, Iterable, Mapping
from fnmatch import fnmatchcase

from vela.address import IPAddress, Remote, parse_interface_name, parse_remote
from vela.errors import ConfigError
from vela.reasons import Cause
from vela.wire import MAX_CIRCUIT_ID, MIN_CIRCUIT_ID

from ..circuit.circuit import Circuit
from ..circuit.setup import Origin
from ..config.conflicts import ConflictFinder, find_contradictions
from ..config.records import CircuitConfig, DaemonConfig
from .requests import subnets_overlap

# Numbers tried in automatic interface names.
NAMES_TRIED = 4096
_WILDCARDS = re.compile(r"[*?]+")


class Allocation:
    """Checks and allocates what only one circuit can have, by the circuits that exist."""

    def __init__(
        self, daemon: DaemonConfig, circuits: Mapping[str, Circuit], reserved: Container[str]
    ) -> None:
        """reserved: names that automatic naming never assigns."""
        self._daemon = daemon
        self._circuits = circuits
        self._reserved = reserved
        self._conflicts = ConflictFinder()

    def check_free(
        self,
        config: CircuitConfig,
        replaced: Container[str] = (),
        *,
        instead: Iterable[CircuitConfig] = (),
        unless: Origin | None = None,
    ) -> None:
        """Raise ConfigError if a circuit conflicts with others or with itself.

        Circuits called as in replaced are ignored: the new one takes the place of
        one, and those of instead that of the others. unless: so are circuits of this
        origin, as they change together and are judged as a set.
        """
        if config.name in self._circuits and config.name not in replaced:
            raise ConfigError(f"there is a circuit {config.name} already")
        others = (
            each.config
            for name, each in self._circuits.items()
            if name not in replaced and each.origin is not unless
        )
        mistakes = [
            *self._conflicts.find(config, (*others, *instead)),
            *find_contradictions(config, self._daemon),
        ]
        if mistakes:
            raise ConfigError(*(f"{config.name}: {mistake}" for mistake in mistakes))

    def in_the_way(self, config: CircuitConfig, replaced: str) -> set[str]:
        """Return the names of the circuits that have what this one wants, but for its own place."""
        others = [each.config for name, each in self._circuits.items() if name != replaced]
        return self._conflicts.holders(config, others) | {
            other.name
            for other in others
            if other.name == config.name or subnets_overlap(config, other)
        }

    def check_id(self, circuit: Circuit, sources: Iterable[IPAddress]) -> None:
        """Raise ConfigError if another circuit has the id toward one of these addresses."""
        for other in self._circuits.values():
            if other is circuit or other.config.id != circuit.config.id:
                continue
            shared = set(sources).intersection(other.sources)
            if shared:
                raise ConfigError(
                    Cause.ID_IN_USE.say(
                        circuit=other.name, id=circuit.config.id, address=min(shared, key=str)
                    )
                )

    def free_id(self, remotes: Collection[str], unwanted: Collection[int] = ()) -> int:
        """Return the lowest circuit id that is certainly free toward some remotes.

        unwanted: ids that are not to be had there. Raises ConfigError if there is none.
        """
        taken: set[int] = set()
        for remote in remotes:
            try:
                wanted = parse_remote(remote)
            except ValueError:
                wanted = Remote(remote)  # the reader reports it, with other mistakes
            taken |= self._ids_toward(wanted)
        for number in range(MIN_CIRCUIT_ID, MAX_CIRCUIT_ID + 1):
            if number not in taken and number not in unwanted:
                return number
        raise ConfigError(
            f"no circuit id toward {' and '.join(remotes)} is certainly free; "
            f"name one of 1..{MAX_CIRCUIT_ID}"
        )

    def _ids_toward(self, remote: Remote) -> set[int]:
        """Return the ids that may be taken toward a remote."""
        known = self._addresses_of(remote)
        return {
            each.config.id
            for each in self._circuits.values()
            if _may_use(each, remote)
            # A name that is not resolved may have the same address.
            or not (known and each.all_addresses and known.isdisjoint(each.all_addresses))
        }

    def _addresses_of(self, remote: Remote) -> frozenset[IPAddress]:
        """Return the known addresses of a remote: its own or those of its circuits."""
        if remote.address is not None:
            return frozenset({remote.address})
        return frozenset(
            address
            for each in self._circuits.values()
            if each.remote.identity == remote.identity
            for address in each.addresses
        )

    def free_name(self, pattern: str) -> str:
        """Return a free interface name that matches the pattern.

        Raises ConfigError if none is found.
        """
        # The empty filling last: a pattern may already be as long as a name can be.
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
        raise ConfigError(f"no interface name that matches {pattern!r} is free; name one")


def _may_use(circuit: Circuit, remote: Remote) -> bool:
    """Tell whether a circuit names a remote, be it as one that stands by."""
    return any(each.identity == remote.identity for each in circuit.config.remote.all)
