"""Whether a remote answers, without a session with it: a REQUEST that no CONFIRM follows. Pure.

docs/protocol.md, section 4.2: who answers a REQUEST stores nothing before the CONFIRM. So a remote
can be asked while another one carries the circuit. Its ACKNOWLEDGE shows that a velad is there that
has the key and lists this machine; not that it would allow the circuit, nor that frames cross.
"""

from __future__ import annotations

from collections.abc import Iterable

from vela.address import Endpoint
from vela.signaling.candidates import Candidate, Candidates
from vela.signaling.codec import decode
from vela.signaling.events import Datagram
from vela.signaling.link import Link
from vela.signaling.messages import Acknowledge, CipherOffer, Description, Offer
from vela.signaling.nonces import Nonces
from vela.signaling.outbox import Outbox
from vela.signaling.signer import Key


class Enquiry:
    """Asks one remote for one circuit, as often as wanted."""

    def __init__(self, circuit_id: int, nonces: Nonces) -> None:
        """nonces: of this daemon."""
        self.nonce = nonces.draw()
        """Of this end: only who was asked knows it."""
        self._circuit_id = circuit_id
        self._asked = Candidates()
        self._key: Key | None = None
        # Answers have the counters of what they answer.
        self._first = self._last = 0
        nonces.hold(self.nonce, self)

    def ask(
        self,
        candidates: Iterable[Candidate],
        local: Description,
        offer: Offer,
        key: Key | None,
        ciphers: CipherOffer | None,
    ) -> list[Datagram]:
        """Return a REQUEST to each of these addresses; ciphers: see Session."""
        asked = tuple(candidates)
        self._asked, self._key = Candidates(*asked), key
        self._first = self._last + 1
        outbox = Outbox()
        for each in asked:
            link = Link(self._circuit_id, self.nonce, 0, each.endpoint, each.local_address)
            link.sent = self._last
            request = link.request(
                local,
                offer,
                False,
                session_keys=key is not None and ciphers is None,
                ciphers=ciphers,
            )
            outbox.put(request, key, each.endpoint, each.local_address)
            self._last = link.sent
        return outbox.take_all()

    def is_answered_by(self, data: bytes, source: Endpoint) -> bool:
        """Tell whether a message answers what was asked last. Raises RemoteProtocolError."""
        message = decode(data, self._key)
        return (
            isinstance(message, Acknowledge)
            and message.circuit_id == self._circuit_id
            and message.receiver_nonce == self.nonce
            and message.sender_nonce != 0
            and self._first <= message.counter <= self._last
            and self._asked.at(source) is not None
        )
