"""Which remotes may set up circuits on this host, and with which settings. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from vela.address import IPAddress, IPInterface, IPNetwork, shown
from vela.signaling.messages import Description, Offer, RejectCode


@dataclass(frozen=True, slots=True)
class Rejection:
    """A code for programs, and a sentence for the operator of the host that asked."""

    code: RejectCode
    text: str


class PeerCircuits(NamedTuple):
    """How many circuits remotes have set up."""

    total: int
    of_remote: int
    """Of the one that asks."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one remote may have."""

    networks: tuple[IPNetwork, ...]
    """Where the addresses that it assigns must lie."""
    bridges: tuple[str, ...]
    interfaces: str
    """A shell pattern (fnmatch)."""
    max_circuits: int


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """What is otherwise for some remotes. None: as for all."""

    sources: tuple[IPNetwork, ...]
    networks: tuple[IPNetwork, ...] | None
    bridges: tuple[str, ...] | None
    interfaces: str | None
    max_circuits: int | None


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules. Messages name the keys of the [autoconfigure] table, where they come from."""

    accept: bool
    """Whether remotes may set up circuits at all."""
    sources: tuple[IPNetwork, ...] | None
    """Who may ask, beside resolved; None: whoever has the key."""
    networks: tuple[IPNetwork, ...]
    """Where the addresses that a remote assigns must lie."""
    bridges: tuple[str, ...]
    interfaces: str
    """A shell pattern (fnmatch)."""
    max_circuits: int
    """Of all remotes together."""
    max_circuits_per_remote: int
    per_source: tuple[SourceLimits, ...] = ()
    """Of those that fit a remote, the one with the longest prefix counts."""
    resolved: tuple[IPAddress, ...] = ()
    """The addresses of the host names that may ask."""

    def knows(self, source: IPAddress, *, authenticated: bool) -> bool:
        """Tell whether messages from this address may be answered.

        authenticated: only messages with the tag of the key are. Where
        sources are listed, the address must be among them, too.
        """
        if self.sources is None:
            return authenticated
        return source in self.resolved or any(source in network for network in self.sources)

    def limits(self, source: IPAddress) -> Limits:
        """Return what the remote at this address may have."""
        fitting = [
            (network.prefixlen, rules)
            for rules in self.per_source
            for network in rules.sources
            if source in network
        ]
        if not fitting:
            return Limits(
                self.networks, self.bridges, self.interfaces, self.max_circuits_per_remote
            )
        _, rules = max(fitting, key=lambda each: each[0])
        return Limits(
            networks=self.networks if rules.networks is None else rules.networks,
            bridges=self.bridges if rules.bridges is None else rules.bridges,
            interfaces=self.interfaces if rules.interfaces is None else rules.interfaces,
            max_circuits=(
                self.max_circuits_per_remote if rules.max_circuits is None else rules.max_circuits
            ),
        )

    def judge_new(
        self, description: Description, offer: Offer, source: IPAddress, circuits: PeerCircuits
    ) -> Rejection | None:
        """Return why the remote at an address may not set a circuit up."""
        if not self.accept:
            return Rejection(
                RejectCode.NOT_ACCEPTING, "autoconfigure.accept is false on the other end"
            )
        if circuits.total >= self.max_circuits:
            return Rejection(
                RejectCode.TOO_MANY,
                f"autoconfigure.max_circuits is {self.max_circuits} on the other end, "
                f"and {circuits.total} are set up",
            )
        limit = self.limits(source).max_circuits
        if circuits.of_remote >= limit:
            return Rejection(
                RejectCode.TOO_MANY,
                f"this machine may set up {limit} circuits on the other end, "
                "by autoconfigure.max_circuits_per_remote there or by its own rules, "
                f"and has {circuits.of_remote}",
            )
        return self.judge(description, offer, source)

    def judge(self, description: Description, offer: Offer, source: IPAddress) -> Rejection | None:
        """Return why the remote at an address may not have these settings; None: it may."""
        if offer.mac is not None and offer.mac == description.mac:
            return Rejection(RejectCode.MAC, "both ends of a circuit cannot have one MAC address")
        return self.judge_offer(offer, source)

    def judge_offer(self, offer: Offer, source: IPAddress) -> Rejection | None:
        """Return why this end may not have these settings, whatever the remote has."""
        limits = self.limits(source)
        for interface in offer.addresses:
            if not _lies_in(interface, limits.networks):
                return Rejection(
                    RejectCode.ADDRESS,
                    f"address {interface} lies in none of autoconfigure.networks "
                    f"on the other end{_listed(limits.networks)}",
                )
        if offer.bridge is not None and offer.bridge not in limits.bridges:
            return Rejection(
                RejectCode.BRIDGE,
                f"bridge {shown(offer.bridge)} is none of autoconfigure.bridges "
                f"on the other end{_listed(limits.bridges)}",
            )
        if offer.interface is not None and not fnmatchcase(offer.interface, limits.interfaces):
            return Rejection(
                RejectCode.INTERFACE,
                f"interface {shown(offer.interface)} does not match autoconfigure.interfaces "
                f"on the other end, {shown(limits.interfaces)}",
            )
        return None


def _lies_in(interface: IPInterface, networks: Iterable[IPNetwork]) -> bool:
    """Tell whether all of the address's subnet does: the kernel adds a route to the subnet."""
    subnet = interface.network
    return any(
        subnet.version == network.version
        and subnet.prefixlen >= network.prefixlen
        and interface.ip in network
        for network in networks
    )


def _listed(items: Iterable[object]) -> str:
    names = [str(item) for item in items]
    if not names:
        return ", which is empty"
    more = "" if len(names) <= 4 else f" and {len(names) - 4} more"
    return ": " + ", ".join(names[:4]) + more
