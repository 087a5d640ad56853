"""An underlay that drops, duplicates and reorders datagrams: one in so many, counted. By nftables.

The cable between the routers passes through a namespace in which every frame
goes from port to port by a rule. The routers cut their buffers before they
send (Regime.WIRE), so what meets the rules is single datagrams. Being counted
off rather than drawn, the same share is hit in every run; numbers without
common factors keep the hits from falling into step with batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.link import ETHERNET_MTU, Interface, Regime, tx_dropped, veth
from lab.namespace import Namespace
from lab.topology import UNDERLAY, TwoRouters, router

_TABLE = "underlay"
_OFFLOADS = ("tso", "gso", "gro", "tx-udp-segmentation")


@dataclass(frozen=True, slots=True)
class Every:
    """Which datagrams are hit, in each direction: the last of every so many that come so far.

    Fragments count as datagrams. What is dropped comes no further; a
    duplicate is sent at once, also where the datagram itself is delayed.
    """

    drop: int = 331
    duplicate: int = 337
    delay: int = 199


@dataclass(frozen=True, slots=True)
class Hits:
    """What happened to the datagrams of one direction so far."""

    datagrams: int
    dropped: int
    duplicated: int
    delayed: int
    """Those that took the longer way, so that what was right behind overtook them."""
    spilled: int
    """Found a queue of the cable full, as happens where the machine has other things to do."""


@dataclass(frozen=True, slots=True)
class BadUnderlay:
    """Two routers, and what lies between them."""

    routers: TwoRouters
    between: Namespace

    def hits(self) -> tuple[Hits, Hits]:
        """Return what was done to A's datagrams, and to B's."""
        shown = json.loads(self.between.run("nft", "-j", "list", "counters").stdout)
        packets = {
            entry["counter"]["name"]: entry["counter"]["packets"]
            for entry in shown["nftables"]
            if "counter" in entry
        }
        ports = tx_dropped(self.between)
        spilled = {
            # A veth counts at the end that sends what the other end had no room for.
            sender: tx_dropped(router.namespace)[UNDERLAY]
            + ports[f"port-{receiver}"]
            + ports[f"in-{sender}"]
            for sender, receiver, router in (
                ("a", "b", self.routers.a),
                ("b", "a", self.routers.b),
            )
        }
        a, b = (
            Hits(
                datagrams=packets[f"datagrams_{sender}"],
                dropped=packets[f"dropped_{sender}"],
                duplicated=packets[f"duplicated_{sender}"],
                delayed=packets[f"delayed_{sender}"],
                spilled=spilled[sender],
            )
            for sender in "ab"
        )
        return a, b


@contextmanager
def bad_underlay(mtu: int = ETHERNET_MTU, every: Every | None = None) -> Iterator[BadUnderlay]:
    """A (10.201.0.1/24, fd00:201::1/64) and B (.2, ::2), with single datagrams between them.

    mtu in bytes. Without every nothing is hit, and datagrams are only counted.
    """
    with Namespace("a") as a, Namespace("b") as b, Namespace("between") as between:
        between.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        a_end, a_port = veth(a, UNDERLAY, between, "port-a", mtu)
        b_end, b_port = veth(b, UNDERLAY, between, "port-b", mtu)
        detours = [veth(between, f"in-{each}", between, f"out-{each}", mtu) for each in "ab"]
        for port in (a_port, b_port, *(end for detour in detours for end in detour)):
            _cut(port)
        between.run("nft", "-f", "-", stdin=_rules(every))
        routers = TwoRouters(router(a, a_end, 1), router(b, b_end, 2))
        routers.set_regime(Regime.WIRE)
        yield BadUnderlay(routers, between)


def _cut(port: Interface) -> None:
    words = [word for feature in _OFFLOADS for word in (feature, "off")]
    port.namespace.run("ethtool", "-K", port.name, *words)


def _rules(every: Every | None) -> str:
    both = "".join(_direction(*ways, every) for ways in (("a", "b"), ("b", "a")))
    return f"table netdev {_TABLE} {{\n{both}}}\n"


def _direction(sender: str, receiver: str, every: Every | None) -> str:
    """Return what happens on the way: straight on, or over a second pair of interfaces.

    A frame that crosses a veth waits behind those that its CPU has taken in
    already (netif_rx, net/core/dev.c), so the second crossing lets the rest
    of the batch pass.
    """
    kinds = ("datagrams", "dropped", "duplicated", "delayed")
    counters = "".join(f"counter {kind}_{sender} {{ }}\n" for kind in kinds)
    rules = [f"meta l4proto udp counter name datagrams_{sender}"]
    if every is not None:
        rules += [
            f"{_one_in(every.drop)} counter name dropped_{sender} drop",
            f'{_one_in(every.duplicate)} counter name duplicated_{sender} dup to "port-{receiver}"',
            f'{_one_in(every.delay)} counter name delayed_{sender} fwd to "in-{sender}"',
        ]
    rules.append(f'fwd to "port-{receiver}"')
    return (
        counters
        + _chain(f"from_{sender}", f"port-{sender}", rules)
        + _chain(f"late_{sender}", f"out-{sender}", [f'fwd to "port-{receiver}"'])
    )


def _chain(name: str, device: str, rules: list[str]) -> str:
    body = "\n".join(rules)
    return f'chain {name} {{\ntype filter hook ingress device "{device}" priority 0\n{body}\n}}\n'


def _one_in(count: int) -> str:
    return f"meta l4proto udp numgen inc mod {count} == {count - 1}"
