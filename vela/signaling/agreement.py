"""What both ends of a circuit settle on, and the events that tell of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vela.address import Endpoint, IPAddress
from vela.circuit import PeerConfig
from vela.signaling.codec import Capability, Confirm, Description


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both ends come to the same values, but for remote and local changing places."""

    local_mac: bytes
    remote_mac: bytes
    mtu: int
    """The smaller one."""
    elision: bool
    """Both ends do."""
    checksum_offload: bool
    """Both ends do."""
    keepalive_s: float
    """The smaller one."""
    remote_port: int
    """Where the remote listens, as it says."""
    remote_native: bool
    nat: bool
    """An address or port is translated on the way: send from the listening port."""


def agree(local: Description, remote: Description, source: Endpoint) -> Agreement:
    """Settle two descriptions; source: where the remote's messages come from."""
    both = local.capabilities & remote.capabilities
    return Agreement(
        local_mac=local.mac,
        remote_mac=remote.mac,
        mtu=min(local.mtu, remote.mtu),
        elision=Capability.ELISION in both,
        checksum_offload=Capability.CHECKSUM_OFFLOAD in both,
        keepalive_s=min(local.keepalive_ms, remote.keepalive_ms) / 1000,
        remote_port=remote.port,
        remote_native=Capability.NATIVE_ENGINE in remote.capabilities,
        nat=_differ(remote.own, source) or _differ(local.own, remote.seen),
    )


def _differ(believed: Endpoint | None, seen: Endpoint | None) -> bool:
    return believed is not None and seen is not None and believed != seen


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
