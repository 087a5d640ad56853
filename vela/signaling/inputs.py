"""What can happen to a session, and which messages count. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from vela.address import Endpoint, IPAddress
from vela.signaling.encryption import Encryption
from vela.signaling.link import Link
from vela.signaling.messages import (
    Acknowledge,
    Confirm,
    Keepalive,
    Message,
    MessageType,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
    type_of,
)
from vela.signaling.renewal import Renewal

_M = TypeVar("_M", bound=Message)


class State(Enum):
    """IDLE and CLOSED do nothing, SUSPENDED refuses; all others but CLOSING strive for UP."""

    IDLE = auto()
    REQUESTING = auto()
    CONFIRMING = auto()
    REJECTED = auto()
    LINKED = auto()  # both ends have the session, and may not hear each other yet
    UP = auto()
    SUSPENDED = auto()  # this end cannot carry frames
    CLOSING = auto()
    CLOSED = auto()


class Input(Enum):
    """An input that is not the first message of its kind."""

    START = auto()
    ACCEPT = auto()
    CLOSE_WANTED = auto()
    SEND_DUE = auto()
    RENEWAL_DUE = auto()
    KEYS_DUE = auto()  # a rekey, or a repetition in one
    EXPIRED = auto()
    CONFIRM_AGAIN = auto()  # of the session that an earlier CONFIRM began
    RENEWED = auto()  # the first KEEPALIVE of the session that is sought beside another
    RENEWAL_REFUSED = auto()  # a REJECT of that one


HANDSHAKE_TYPES = frozenset(
    {MessageType.REQUEST, MessageType.ACKNOWLEDGE, MessageType.CONFIRM, MessageType.REJECT}
)
"""The messages that are of no session yet, or of none any more. All others count in one."""

AnyInput = Input | MessageType
"""A message is the input of its type, if it counts."""


@dataclass(frozen=True, slots=True)
class Received:
    """When an input came; and the message, if it is one."""

    now: float
    message: Message | None = None
    _source: Endpoint | None = None
    local_address: IPAddress | None = None
    """The address of this host that the message came to."""
    transcript: bytes = b""
    """codec.transcript() of a CONFIRM."""
    encryption: Encryption | None = None
    """The keys of the session that a CONFIRM asks for, where its handshake was answered before."""

    def message_of(self, kind: type[_M]) -> _M:
        if not isinstance(self.message, kind):
            raise RuntimeError(f"{self.message} where {kind.__name__} is due")
        return self.message

    @property
    def source(self) -> Endpoint:
        if self._source is None:
            raise RuntimeError("an input without a source")
        return self._source


def classify(
    received: Received,
    state: State,
    link: Link | None,
    renewal: Renewal | None,
    has_valid_cookie: Callable[[Received], bool],
) -> AnyInput | None:
    """Return which input a message is; None: it changes nothing and is not answered.

    link: the session, or the request for one; renewal: another one that is
    sought beside it.
    """
    message = received.message_of(Message)
    counts = False
    match message:
        case Request():
            counts = (
                received.source.port != 0  # else it is forged: no answer can be sent there
                and not message.receiver_nonce
                and message.sender_nonce != 0
            )
        case Acknowledge():
            request = link if renewal is None else renewal.link
            counts = request is not None and request.awaits(message)
        case Confirm() if link is not None and link.accepted and link.has(message):
            return Input.CONFIRM_AGAIN if link.advances_with(message) else None
        case Confirm():
            counts = has_valid_cookie(received)
        case Reject() if renewal is not None and renewal.is_refused_by(message):
            return Input.RENEWAL_REFUSED
        case Keepalive() if renewal is not None and renewal.link.advances_with(message):
            return Input.RENEWED
        case Reject():
            # Once there is a session, only that the remote does not have it.
            in_session = state in (State.LINKED, State.UP, State.CLOSING)
            counts = (
                link is not None
                and link.is_refused_by(message)
                and in_session == (message.code == RejectCode.NO_SUCH_SESSION)
            )
        case Probe() | ProbeReply():
            counts = link is not None and link.is_new(message)
        case _:
            counts = link is not None and link.advances_with(message)
    return type_of(message) if counts else None
