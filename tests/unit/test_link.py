"""A pair of nonces: its counters, its clock, and what both ends agree on."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from simulated_link import CIRCUIT, LOCAL1, LOCAL2, OFFER, ROUTER1, ROUTER2

from vela.address import Endpoint
from vela.signaling.link import Link
from vela.signaling.messages import Keepalive

OURS, THEIRS = 0x11, 0x22
# This end asked for it, counts 5, and has heard 7.
LINK = Link(CIRCUIT, OURS, THEIRS, ROUTER2, None, sent=5, heard=7)


def test_link_counts_each_message_and_describes_this_end_as_the_remote_sees_it() -> None:
    local_address = ip_address("198.51.100.2")
    link = replace(LINK, local_address=local_address)

    messages = (
        link.request(LOCAL1, OFFER, False, session_keys=False),
        link.confirm(LOCAL1, OFFER, True),
        link.keepalive(LOCAL1, 2.0, up=True),
        link.close(1),
        link.probe(1400),
        link.probe_reply(1400),
    )

    assert [each.counter for each in messages] == [6, 7, 8, 9, 10, 11]
    assert {(each.sender_nonce, each.receiver_nonce) for each in messages} == {(OURS, THEIRS)}
    described = messages[0].description
    assert (described.own, described.seen) == (Endpoint(local_address, LOCAL1.port), ROUTER2)
    assert LINK.describe(LOCAL1).own == ROUTER1


def test_link_describes_what_has_changed_since_the_last_message() -> None:
    link = replace(LINK)
    first = link.describe(LOCAL1)
    assert link.describe(LOCAL1) is first  # made once: each KEEPALIVE has it

    assert link.describe(replace(LOCAL1, mtu=1280)).mtu == 1280
    link.endpoint = ROUTER1
    assert link.describe(LOCAL1).seen == ROUTER1
    link.local_address = ip_address("198.51.100.2")
    own = link.describe(LOCAL1).own
    assert own == Endpoint(link.local_address, LOCAL1.port)


def test_link_echoes_the_remotes_clock_and_measures_the_round_trip() -> None:
    link = replace(LINK)
    alive = Keepalive(CIRCUIT, THEIRS, OURS, 8, LOCAL2, 5, 2**64 - 500_000, 9_900_000, True)

    assert link.keepalive(LOCAL1, 9.0, up=True).echo is None
    assert link.take_keepalive(alive, 10.0) == pytest.approx(0.1)
    # It goes on from what was heard; 64 bits wide.
    assert link.keepalive(LOCAL1, 11.0, up=True).echo == 500_000
    assert link.take_keepalive(replace(alive, echo=None), 12.0) is None
    assert link.take_keepalive(replace(alive, echo=13_000_000), 12.0) is None  # of no clock here


def test_link_agrees_anew_only_when_something_changed() -> None:
    link = replace(LINK)
    assert link.settle(LOCAL1) is None
    with pytest.raises(RuntimeError, match="no agreement"):
        _ = link.keepalive_s

    link.remote_description = LOCAL2
    first = link.settle(LOCAL1)
    assert first is not None
    assert (first, link.keepalive_s) == (link.agreement, 1.0)
    assert link.settle(LOCAL1) is None
    link.remote_description = replace(LOCAL2, mtu=9000)  # the other end's is smaller
    second = link.settle(LOCAL1)
    assert second == replace(first, mtu=1471)
    assert link.settle(replace(LOCAL1, keepalive_ms=2000)) == replace(
        first, mtu=1471, keepalive_s=2
    )
    link.remote_description = replace(LOCAL2, mtu=9000, keepalive_ms=4000)
    assert link.settle(replace(LOCAL1, keepalive_ms=2000)) is None
