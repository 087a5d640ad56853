"""Whether a message without a tag can be the remote's, by its UDP port. Pure.

Any user of the remote's machine can send from its address, but velad has its port.
"""

from __future__ import annotations

from collections.abc import Collection

from vela.address import Endpoint
from vela.signaling.agreement import Agreement
from vela.signaling.messages import MessageType

WRONG_PORT = "port"
"""The reason word of RemoteProtocolError: without a key, a message from another UDP port than the
remote's."""


class RemotePort:
    """What one circuit knows of the port that its remote sends control messages from."""

    def __init__(self) -> None:
        self.translated: bool | None = None
        """Whether the port is translated on the way; None: there was no session yet."""

    def agreed(self, agreement: Agreement, endpoint: Endpoint) -> None:
        """Take note of an agreement with the remote at an endpoint."""
        self.translated = agreement.nat or endpoint.port != agreement.remote_port

    def may_send(
        self,
        kind: MessageType,
        source: Endpoint,
        remote: Endpoint | None,
        *,
        asked: Collection[Endpoint],
        maker_is_known: bool,
        in_session: bool,
    ) -> bool:
        """Tell whether a message may come from there.

        remote: where it is known to be. asked: where else an answer is due. Where the machine
        that set the circuit up is known, that is checked in place of the port.
        """
        if remote is None or source.port == remote.port or source in asked:
            return True
        if kind not in (MessageType.REQUEST, MessageType.CONFIRM):
            return self.translated is True
        return maker_is_known or (self.translated is not False and not in_session)
