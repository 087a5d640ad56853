"""Which remotes may set up circuits on this host, and with which settings. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vela.address import IPAddress, IPInterface, IPNetwork, shown
from vela.signaling.messages import Description, Offer, RejectCode


@dataclass(frozen=True, slots=True)
class Rejection:
    """A code for programs, and a sentence for the operator of the host that asked."""

    code: RejectCode
    text: str


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

    def judge_new(self, description: Description, offer: Offer, circuits: int) -> Rejection | None:
        """Return why a circuit may not be set up; circuits: how many remotes have set up."""
        if not self.accept:
            return Rejection(
                RejectCode.NOT_ACCEPTING, "autoconfigure.accept is false on the other end"
            )
        if circuits >= self.max_circuits:
            return Rejection(
                RejectCode.TOO_MANY,
                f"autoconfigure.max_circuits is {self.max_circuits} on the other end, "
                f"and {circuits} are set up",
            )
        return self.judge(description, offer)

    def judge(self, description: Description, offer: Offer) -> Rejection | None:
        """Return why these settings are not allowed; None: they are."""
        if offer.mac is not None and offer.mac == description.mac:
            return Rejection(RejectCode.MAC, "both ends of a circuit cannot have one MAC address")
        return self.judge_offer(offer)

    def judge_offer(self, offer: Offer) -> Rejection | None:
        """Return why this end may not have these settings, whatever the remote has."""
        for interface in offer.addresses:
            if not _lies_in(interface, self.networks):
                return Rejection(
                    RejectCode.ADDRESS,
                    f"address {interface} lies in none of autoconfigure.networks "
                    f"on the other end{_listed(self.networks)}",
                )
        if offer.bridge is not None and offer.bridge not in self.bridges:
            return Rejection(
                RejectCode.BRIDGE,
                f"bridge {shown(offer.bridge)} is none of autoconfigure.bridges "
                f"on the other end{_listed(self.bridges)}",
            )
        if offer.interface is not None and not fnmatchcase(offer.interface, self.interfaces):
            return Rejection(
                RejectCode.INTERFACE,
                f"interface {shown(offer.interface)} does not match autoconfigure.interfaces "
                f"on the other end, {shown(self.interfaces)}",
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
