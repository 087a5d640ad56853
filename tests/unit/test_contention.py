"""What an end decides when both ends ask: the whole table."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from itertools import product

import pytest
from simulated_link import CIRCUIT, LOCAL1, LOCAL2, OFFER

from vela.signaling.contention import (
    Claim,
    Decision,
    is_outdated,
    on_confirm_while_confirming,
    on_confirm_while_rejected,
    on_confirm_while_requesting,
)
from vela.signaling.messages import Confirm, Offer

TAKE, DECLINE, ASK, REFUSE = Decision.TAKE, Decision.DECLINE, Decision.ASK, Decision.REFUSE
CONFIRM = Confirm(CIRCUIT, 0x11, 0x22, 5, LOCAL1, OFFER)
LOW, HIGH = LOCAL1.mac, LOCAL2.mac


@pytest.mark.parametrize(
    ("insists", "outdated", "refused", "decision"),
    [
        (False, False, False, TAKE),
        (False, False, True, TAKE),
        (False, True, False, TAKE),  # this end has insisted for long enough
        (False, True, True, REFUSE),
        (True, True, False, ASK),
        (True, True, True, ASK),
    ],
)
def test_confirm_while_requesting(
    insists: bool, outdated: bool, refused: bool, decision: Decision
) -> None:
    found = on_confirm_while_requesting(insists=insists, outdated=outdated, refused=refused)

    assert found is decision


@pytest.mark.parametrize(
    ("outdated", "refused", "resumes_ours", "decision"),
    [
        (False, False, False, TAKE),  # another machine's circuit, or it is configured, too
        (False, True, False, TAKE),
        (False, False, True, ASK),
        (False, True, True, ASK),
        (True, False, True, ASK),  # DISABLED there says nothing about the settings
        (True, True, True, REFUSE),
    ],
)
def test_confirm_while_rejected(
    outdated: bool, refused: bool, resumes_ours: bool, decision: Decision
) -> None:
    found = on_confirm_while_rejected(outdated=outdated, refused=refused, resumes_ours=resumes_ours)

    assert found is decision


@pytest.mark.parametrize(
    ("ours", "theirs", "decision"),
    [
        (Claim(True, LOW, 1), Claim(False, HIGH, 2), DECLINE),  # the configured end
        (Claim(False, HIGH, 2), Claim(True, LOW, 1), TAKE),
        (Claim(True, LOW, 2), Claim(True, HIGH, 1), TAKE),  # the larger MAC address
        (Claim(True, HIGH, 1), Claim(True, LOW, 2), DECLINE),
        (Claim(True, LOW, 1), Claim(True, LOW, 2), TAKE),  # only between equal ones the nonce
        (Claim(True, LOW, 2), Claim(True, LOW, 1), DECLINE),
    ],
)
def test_confirm_while_confirming(ours: Claim, theirs: Claim, decision: Decision) -> None:
    assert on_confirm_while_confirming(ours, theirs) is decision


def test_both_ends_decide_alike() -> None:
    claims = [Claim(*each) for each in product((False, True), (LOW, HIGH), (1, 2))]

    for one, other in product(claims, claims):
        if one != other:
            decisions = {
                on_confirm_while_confirming(one, other),
                on_confirm_while_confirming(other, one),
            }
            assert decisions == {TAKE, DECLINE}


def test_claim_of_a_confirm() -> None:
    assert Claim.of(CONFIRM) == Claim(True, LOCAL1.mac, 0x11)
    assert Claim.of(replace(CONFIRM, resuming=True)) == Claim(False, LOCAL1.mac, 0x11)


@pytest.mark.parametrize(
    ("change", "outdated"),
    [
        ({}, False),
        ({"interface": "vela1"}, True),
        ({"interface": None}, True),
        ({"bridge": "br-lan"}, True),
        ({"mac": LOCAL2.mac}, True),
        ({"addresses": ()}, True),
        ({"addresses": (IPv4Interface("172.16.16.2/29"),)}, True),
    ],
)
def test_settings_that_a_remote_resumes_are_outdated_if_they_differ(
    change: dict[str, object], outdated: bool
) -> None:
    wanted = replace(OFFER, **change)  # type: ignore[arg-type]

    assert is_outdated(replace(CONFIRM, resuming=True), wanted) is outdated
    assert not is_outdated(CONFIRM, wanted)  # it does not resume


def test_settings_with_their_addresses_in_another_order_are_not_outdated() -> None:
    one, other = IPv4Interface("172.16.16.2/30"), IPv6Interface("fd00:16::2/64")
    resuming = replace(CONFIRM, resuming=True, offer=Offer(addresses=(one, other)))

    assert not is_outdated(resuming, Offer(addresses=(other, one)))
