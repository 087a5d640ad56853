"""What a session tells its owner: events, and datagrams to send. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from vela.address import Endpoint, IPAddress
from vela.reasons import Cause, Reason
from vela.signaling.agreement import Agreement
from vela.signaling.messages import Confirm, Description, Offer, RejectCode


@dataclass(frozen=True, slots=True)
class Datagram:
    """To be sent from the listening socket."""

    data: bytes
    remote: Endpoint
    local_address: IPAddress | None = None
    """The source address; None: the kernel chooses."""
    dont_fragment: bool = False


@dataclass(frozen=True, slots=True)
class CircuitRequested:
    """A remote asks for a circuit on this host, has proved its address, and the policy allows it.

    Answer with Session.accept, or with Responder.reject.
    """

    source: Endpoint
    confirm: Confirm
    local_address: IPAddress | None = None
    """The address of this host that the remote asked."""
    transcript: bytes = field(default=b"", compare=False)
    """codec.transcript() of the CONFIRM, for the handshake of an encrypted circuit."""

    @property
    def circuit_id(self) -> int:
        return self.confirm.circuit_id

    @property
    def description(self) -> Description:
        return self.confirm.description

    @property
    def offer(self) -> Offer:
        """The settings that this end is to have."""
        return self.confirm.offer


@dataclass(frozen=True, slots=True)
class Agreed:
    """These values apply from now on. Comes before Up, and again whenever one changes."""

    agreement: Agreement


@dataclass(frozen=True, slots=True)
class OfferChanged:
    """The remote that set up this circuit wants other settings, and the policy allows them.

    Answer with accept() of another session, which replaces this one; this one
    continues until then. Or answer with Responder.reject.
    """

    requested: CircuitRequested


@dataclass(frozen=True, slots=True)
class Up:
    """Each end has heard that the other end hears it: carrier on."""


@dataclass(frozen=True, slots=True)
class Down:
    """The session was up and is no longer: carrier off. It seeks the remote again by itself."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Three requests in a row or more were not answered, at any address of the remote.

    For the status, until the next event.
    """

    reason: Reason


@dataclass(frozen=True, slots=True)
class Rejected:
    """The remote refuses. The session tries again later."""

    code: int
    text: str
    """In the remote's words; a Reason where this end refuses."""

    @property
    def reason(self) -> Reason:
        """The text, with the code of its row in vela.reasons."""
        if isinstance(self.text, Reason):
            return self.text
        known = any(self.code == each for each in RejectCode)
        cause = Cause[f"REFUSED_{RejectCode(self.code).name}"] if known else Cause.REFUSED
        return cause.say(text=self.text)


@dataclass(frozen=True, slots=True)
class Refused:
    """The remote asked for what it may not have, and was told so."""

    source: Endpoint
    code: RejectCode
    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """The remote has heard what set_local() said last before await_heard()."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The remote has answered from another endpoint, and the session goes on there.

    Agreed follows.
    """

    remote: Endpoint


@dataclass(frozen=True, slots=True)
class ResolveWanted:
    """Look up the remote's name again, and call Session.set_remotes."""


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    """A probe of this size, in bytes of UDP payload, arrived."""

    size: int


@dataclass(frozen=True, slots=True)
class EchoesArrived:
    """So many echo requests of this end have reached the remote's worker, from any moment on.

    With each KEEPALIVE of a remote that counts them.
    """

    number: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over, and its last datagrams are still to be sent. start() begins again."""

    by_remote: bool
    """The remote deleted the circuit: delete it here too, if the remote set it up."""


Event = (
    Agreed
    | OfferChanged
    | Up
    | Down
    | Unanswered
    | Rejected
    | Heard
    | Moved
    | Refused
    | ResolveWanted
    | ProbeAnswered
    | EchoesArrived
    | Closed
)
