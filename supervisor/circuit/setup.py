"""What a circuit is, and who asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from vela.signaling.messages import Offer
from vela.signaling.signer import Key

from ..config.records import CircuitConfig
from ..control_channel import ControlChannel
from ..frame_keys import CircuitKeys


class Origin(Enum):
    """Who asked for a circuit."""

    CONFIG = "config"
    PEER = "peer"  # the remote set it up
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Setup:
    """What a circuit is, as far as its configuration and the policy decide."""

    config: CircuitConfig
    control_channel: ControlChannel | None
    """None: a static circuit."""
    offer: Offer = field(default_factory=Offer)
    """The settings of the remote's end; if the remote set the circuit up, those of this end."""
    key: Key | None = None
    machine: bytes | None = None
    """See Session."""
    frame_keys: CircuitKeys | None = None
    """Of an encrypted circuit, which closes them."""
