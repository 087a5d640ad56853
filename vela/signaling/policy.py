"""What other machines may set up here: the judgement on what they ask for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vela.address import IPAddress, IPInterface, IPNetwork, shown
from vela.circuit import AutoconfigureConfig, PeerConfig
from vela.signaling.messages import Description, RejectCode


@dataclass(frozen=True, slots=True)
class Rejection:
    """A code for programs, and a sentence for the operator of the machine that asked."""

    code: RejectCode
    text: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The [autoconfigure] table, with the addresses that its host names stand for."""

    config: AutoconfigureConfig
    resolved: tuple[IPAddress, ...] = ()

    def knows(self, source: IPAddress, *, authenticated: bool) -> bool:
        """Tell whether a source may be answered at all.

        A message under the key is enough where no sources are listed; where
        they are, it takes both. Without a key only they count.
        """
        if not self.config.sources:
            return authenticated
        return source in self.resolved or any(
            source in network
            for network in self.config.sources
            if not isinstance(network, str)  # a name: among the resolved ones
        )

    def judge_new(
        self, description: Description, offer: PeerConfig, circuits: int
    ) -> Rejection | None:
        """Return why a circuit may not be set up; circuits: how many others have here already."""
        if not self.config.accept:
            return Rejection(
                RejectCode.NOT_ACCEPTING, "autoconfigure.accept is false on the other end"
            )
        if circuits >= self.config.max_circuits:
            return Rejection(
                RejectCode.TOO_MANY,
                f"autoconfigure.max_circuits is {self.config.max_circuits} on the other end, "
                f"and {circuits} are set up",
            )
        return self.judge(description, offer)

    def judge(self, description: Description, offer: PeerConfig) -> Rejection | None:
        """Return what of these settings may not be; None: all of them may."""
        if offer.mac is not None and offer.mac == description.mac:
            return Rejection(RejectCode.MAC, "both ends of a circuit cannot have one MAC address")
        return self.judge_offer(offer)

    def judge_offer(self, offer: PeerConfig) -> Rejection | None:
        """Return what of the settings for this end may not be, whoever wants them."""
        config = self.config
        for interface in offer.addresses:
            if not _lies_in(interface, config.networks):
                return Rejection(
                    RejectCode.ADDRESS,
                    f"address {interface} lies in none of autoconfigure.networks "
                    f"on the other end{_listed(config.networks)}",
                )
        if offer.bridge is not None and offer.bridge not in config.bridges:
            return Rejection(
                RejectCode.BRIDGE,
                f"bridge {shown(offer.bridge)} is none of autoconfigure.bridges "
                f"on the other end{_listed(config.bridges)}",
            )
        if offer.interface is not None and not fnmatchcase(offer.interface, config.interfaces):
            return Rejection(
                RejectCode.INTERFACE,
                f"interface {shown(offer.interface)} does not match autoconfigure.interfaces "
                f"on the other end, {shown(config.interfaces)}",
            )
        return None


def _lies_in(interface: IPInterface, networks: Iterable[IPNetwork]) -> bool:
    """Tell whether the address does; its subnet must, too, as a route to all of it appears."""
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
