"""How an interface differs from what its circuit made it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from vela.linux.rtnetlink import TunLink
from vela.supervisor.circuit.surroundings import Wanted, departures, missing_addresses

FOUR, SIX = ip_interface("172.16.16.1/30"), ip_interface("fd00:16::1/64")
FOREIGN = ip_interface("10.9.0.1/24")
WANTED = Wanted("vela0", 1471, (FOUR, SIX), None, None)
LINK = TunLink(
    mac=bytes(6),
    owner=0,
    group=0,
    persistent=False,
    port_of="",
    master=None,
    name="vela0",
    up=True,
    mtu=1471,
)
NAMES = {7: "br0", 8: "br1"}


@pytest.mark.parametrize(
    ("changed", "present", "missing"),
    [
        ({}, {FOUR, SIX}, ()),
        ({}, {FOUR, SIX, FOREIGN}, ()),
        ({}, {FOUR}, (SIX,)),
        ({}, set(), (FOUR, SIX)),
        # With another prefix length it is another subnet.
        ({}, {ip_interface("172.16.16.1/24"), SIX}, (FOUR,)),
        ({"up": False}, set(), ()),
        ({"mtu": 1279}, set(), (FOUR,)),
        ({"mtu": 1280}, {FOUR}, (SIX,)),
    ],
)
def test_addresses_come_back_when_the_interface_takes_them(
    changed: dict[str, object], present: set[object], missing: tuple[object, ...]
) -> None:
    link = replace(LINK, **changed)  # type: ignore[arg-type]

    assert missing_addresses(WANTED, link, present) == missing  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "changed", "shown"),
    [
        ({}, {}, ()),
        ({}, {"name": "lan0"}, ("its interface was renamed to lan0",)),
        ({}, {"up": False}, ("its interface was set down; ip link set vela0 up",)),
        (
            {},
            {"queue_length": 0},
            (
                "its interface was left without a queue, so no frame leaves; ip link set vela0 "
                "txqueuelen 1000",
            ),
        ),
        ({}, {"queue_length": 1}, ()),
        (
            {},
            {"master": 7, "port_of": "bridge"},
            ("its interface was made a port of br0, where its own addresses do not answer",),
        ),
        ({}, {"master": 7, "port_of": "vrf"}, ()),
        (
            {},
            {"mtu": 1400},
            ("its interface was given an MTU of 1400; the circuit's is 1471",),
        ),
        (
            {},
            {"mtu": 1279},
            ("its interface was given an MTU of 1279, too small for IPv6; the circuit's is 1471",),
        ),
        (
            {"addresses": (FOUR,)},
            {"mtu": 1279},
            ("its interface was given an MTU of 1279; the circuit's is 1471",),
        ),
        ({"bridge": "br0", "bridge_index": 7}, {"master": 7}, ()),
        (
            {"bridge": "br0", "bridge_index": 7},
            {"master": None},
            ("its interface was taken out of the bridge br0",),
        ),
        (
            {"bridge": "br0", "bridge_index": 7},
            {"master": 8},
            ("its interface was moved to br1 from the bridge br0",),
        ),
        # It waits for its bridge, and its reason says so.
        ({"bridge": "br0"}, {"master": None}, ()),
        # An operator may join it to what he likes, where it has no addresses.
        ({"addresses": ()}, {"master": 8, "port_of": "bridge"}, ()),
        (
            {},
            {"name": "lan0", "up": False},
            (
                "its interface was renamed to lan0",
                "its interface was set down; ip link set lan0 up",
            ),
        ),
    ],
)
def test_what_somebody_changed_is_said(
    wanted: dict[str, object], changed: dict[str, object], shown: tuple[str, ...]
) -> None:
    made, link = replace(WANTED, **wanted), replace(LINK, **changed)  # type: ignore[arg-type]

    assert departures(made, link, lambda index: NAMES[index]) == shown
