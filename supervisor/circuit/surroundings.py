"""How an interface differs from what its circuit made it: what is put right or shown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vela.address import IPInterface
from vela.linux.rtnetlink import TunLink
from vela.reasons import Cause, Reason
from vela.wire import MIN_IPV6_MTU


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the circuit made the interface."""

    name: str
    mtu: int
    addresses: tuple[IPInterface, ...]
    bridge: str | None
    bridge_index: int | None
    """None: it has not joined its bridge, or has none."""


def missing_addresses(
    wanted: Wanted, link: TunLink, present: Iterable[IPInterface]
) -> tuple[IPInterface, ...]:
    """Return the addresses to give back.

    The kernel removes those of IPv6 when the interface is set down, or gets an MTU that is too
    small for them, and does not bring them back.
    """
    if not link.up:
        return ()
    there = set(present)
    return tuple(
        each
        for each in wanted.addresses
        if each not in there and (each.version == 4 or link.mtu >= MIN_IPV6_MTU)
    )


def departures(wanted: Wanted, link: TunLink, name_of: Callable[[int], str]) -> tuple[Reason, ...]:
    """Return what somebody changed on purpose. name_of: by index."""
    return tuple(_departures(wanted, link, name_of))


def _departures(wanted: Wanted, link: TunLink, name_of: Callable[[int], str]) -> Iterator[Reason]:
    if link.name != wanted.name:
        yield Cause.INTERFACE_RENAMED.say(name=link.name)
    if not link.up:
        yield Cause.INTERFACE_DOWN.say(name=link.name)
    if link.mtu != wanted.mtu:
        without = any(each.version == 6 for each in wanted.addresses) and link.mtu < MIN_IPV6_MTU
        what = ", too small for IPv6" if without else ""
        yield Cause.INTERFACE_MTU.say(mtu=link.mtu, consequence=what, wanted=wanted.mtu)
    if link.queue_length == 0:
        yield Cause.INTERFACE_QUEUE.say(name=link.name)
    if wanted.bridge is None:
        # In a VRF they do answer. Without addresses there is nothing to lose.
        if link.master is not None and wanted.addresses and link.port_of != "vrf":
            yield Cause.INTERFACE_PORT.say(master=name_of(link.master))
    elif wanted.bridge_index is not None and link.master != wanted.bridge_index:
        if link.master is None:
            yield Cause.INTERFACE_OUT_OF_BRIDGE.say(bridge=wanted.bridge)
        else:
            yield Cause.INTERFACE_MOVED.say(master=name_of(link.master), bridge=wanted.bridge)
