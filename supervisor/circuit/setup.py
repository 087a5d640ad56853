"""What a circuit is, and who asked for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from vela.signaling.messages import Description, Offer
from vela.signaling.session import Session
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

    def make_session(
        self,
        channel: ControlChannel,
        description: Description,
        *,
        passive: bool,
        maker: bytes | None,
        echoes_arrived: Callable[[], int],
    ) -> Session:
        """Return a session that has not begun, of this end as described.

        passive: the remote set the circuit up. maker, echoes_arrived: see Session.
        """
        return Session(
            self.config.id,
            description,
            remote=None,
            key=self.key,
            cookies=channel.cookies,
            randomness=channel.randomness,
            offer=self.offer,
            policy=channel.policy if passive else None,
            machine=self.machine,
            maker=maker,
            frame_keys=self.frame_keys,
            echoes_arrived=echoes_arrived,
        )
