"""Messages on their way out: encoded, with where they go. Pure."""

from __future__ import annotations

from collections import deque

from vela.address import Endpoint, IPAddress
from vela.signaling.codec import encode
from vela.signaling.events import Datagram
from vela.signaling.messages import Message
from vela.signaling.signer import Signer


class Outbox:
    """The datagrams that are to be sent, oldest first."""

    def __init__(self) -> None:
        self._datagrams: deque[Datagram] = deque()

    def put(
        self,
        message: Message,
        signer: Signer | None,
        to: Endpoint,
        local_address: IPAddress | None,
        *,
        dont_fragment: bool = False,
    ) -> None:
        self._datagrams.append(Datagram(encode(message, signer), to, local_address, dont_fragment))

    def take_all(self) -> list[Datagram]:
        """Hand over the datagrams; each is handed over once."""
        datagrams = list(self._datagrams)
        self._datagrams.clear()
        return datagrams

    def clear(self) -> None:
        self._datagrams.clear()
