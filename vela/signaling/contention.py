"""What an end does with a remote that asks while this end asks, too: decisions. Pure.

docs/protocol.md, sections 4.6 and 4.8. A remote *resumes* when it has the circuit only because
this end once asked for it; what it resumes is *outdated* when this end wants other settings now.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from vela.signaling.messages import Confirm, Offer, Request

OUTDATED_TEXT = "the other end wants other settings for this circuit, and this end refuses them"


class Decision(Enum):
    """What to do with a message."""

    TAKE = auto()  # begin what it asks for
    DECLINE = auto()  # leave it unanswered for good: this end's own session wins
    ASK = auto()  # decline it, and send this end's own REQUEST soon
    REFUSE = auto()  # answer with OUTDATED


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """What decides between two CONFIRMs, the most important first: the larger claim wins.

    The nonce comes last. It is drawn anew with each attempt, so a CONFIRM of an
    attempt that was given up would win over the other end's again and again.
    """

    configured: bool
    """The end has the circuit in its configuration; it does not resume it."""
    mac: bytes
    nonce: int

    @classmethod
    def of(cls, confirm: Confirm) -> Claim:
        return cls(not confirm.resuming, confirm.description.mac, confirm.sender_nonce)


def is_outdated(message: Request | Confirm, offer: Offer) -> bool:
    """Tell whether a remote resumes other settings than this configured end offers."""
    return message.resuming and _contents(message.offer) != _contents(offer)


def _contents(offer: Offer) -> tuple[object, ...]:
    """Return what a message says of an offer; addresses have no order there."""
    return offer.interface, frozenset(offer.addresses), offer.bridge, offer.mac


def on_confirm_while_requesting(*, insists: bool, outdated: bool, refused: bool) -> Decision:
    """Decide on a CONFIRM. refused: the remote has refused the settings that this end wants."""
    if insists:
        return Decision.ASK
    if outdated and refused:
        return Decision.REFUSE
    return Decision.TAKE


def on_confirm_while_confirming(ours: Claim, theirs: Claim) -> Decision:
    """Decide between two CONFIRMs that met on the way; both ends decide alike."""
    return Decision.TAKE if theirs > ours else Decision.DECLINE


def on_confirm_while_rejected(*, outdated: bool, refused: bool, resumes_ours: bool) -> Decision:
    """Decide on a CONFIRM. resumes_ours: the remote resumes, and this end is configured.

    If outdated settings were taken, nobody would see that the present ones
    are refused. A remote that resumes anything else may not refuse any more.
    """
    if outdated and refused:
        return Decision.REFUSE
    return Decision.ASK if resumes_ours else Decision.TAKE
