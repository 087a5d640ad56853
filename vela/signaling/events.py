"""What a session tells. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vela.address import Endpoint, IPAddress
from vela.circuit import PeerConfig
from vela.signaling.agreement import Agreement
from vela.signaling.messages import Confirm, Description


@dataclass(frozen=True, slots=True)
class Datagram:
    """What is to be sent, from the listening socket."""

    data: bytes
    remote: Endpoint
    here: IPAddress | None = None
    """This end's address to send it from; None: whichever the kernel takes."""
    dont_fragment: bool = False


@dataclass(frozen=True, slots=True)
class CircuitRequested:
    """A remote asks for a circuit here, has shown its address, and fits the policy.

    Answer with Session.accept, or with Responder.reject.
    """

    source: Endpoint
    confirm: Confirm
    here: IPAddress | None = None
    """This end's address that was asked."""

    @property
    def circuit_id(self) -> int:
        return self.confirm.circuit_id

    @property
    def description(self) -> Description:
        return self.confirm.description

    @property
    def offer(self) -> PeerConfig:
        """What this end shall get."""
        return self.confirm.offer


@dataclass(frozen=True, slots=True)
class Agreed:
    """These values hold from now on; comes before Up, and again whenever one changes."""

    agreement: Agreement


@dataclass(frozen=True, slots=True)
class OfferChanged:
    """The remote, which once set this circuit up, wants other settings; the policy allows them.

    Answer with another session's accept in place of this one, which goes on
    until then; or with Responder.reject.
    """

    requested: CircuitRequested


@dataclass(frozen=True, slots=True)
class Up:
    """Each end has heard that the other one hears it."""


@dataclass(frozen=True, slots=True)
class Down:
    """It was up and is no more; the session goes on trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Three requests in a row went unanswered, or three more.

    Call Session.set_remote where there is another address.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The remote refuses; tried again later."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class ResolveWanted:
    """Look the remote's name up again, and call Session.set_remote."""


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    """A probe of this size, in bytes of UDP payload, arrived."""

    size: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over: by close(), or because the remote deleted the circuit."""

    by_remote: bool


Event = (
    Agreed
    | OfferChanged
    | Up
    | Down
    | Unanswered
    | Rejected
    | ResolveWanted
    | ProbeAnswered
    | Closed
)
