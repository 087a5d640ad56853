"""What is known of this host's addresses and routes, as records. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vela.address import IPInterface, IPNetwork


@dataclass(frozen=True, slots=True)
class KnownAddress:
    """An address of this host, and the subnet that its interface leads to."""

    address: IPInterface
    subnet: IPNetwork
    interface: str


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """A route that is neither a default one nor that of an address's subnet."""

    network: IPNetwork
    interface: str
    """Empty where there are several."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is known of this host."""

    addresses: tuple[KnownAddress, ...] = ()
    routes: tuple[KnownRoute, ...] = ()


NO_FACTS = HostFacts()
