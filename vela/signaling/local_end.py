"""What this end of a circuit is and asks for, and the messages that say so. Pure.

docs/protocol.md, sections 4.2 and 4.11. Where the circuit is encrypted, the keys of a session come
from its handshake; else from the pre-shared key, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vela.errors import RemoteProtocolError
from vela.signaling import contention
from vela.signaling.contention import Claim
from vela.signaling.continuation import Continuation
from vela.signaling.encryption import Encryption
from vela.signaling.frame_keys import KeysUnavailable
from vela.signaling.inputs import Received
from vela.signaling.link import Link, offer_session_keys, own_endpoint
from vela.signaling.messages import (
    SESSION_TYPES,
    Acknowledge,
    CipherOffer,
    Confirm,
    Description,
    Header,
    Message,
    Offer,
    Request,
    type_of,
)
from vela.signaling.outbox import Outbox
from vela.signaling.session_cipher import SessionCipher
from vela.signaling.signer import Key, PackedContext, Signer

UNKNOWN_SESSION = "session"
"""The reason word of RemoteProtocolError: a message of another session than the circuit has."""


class LocalEnd:
    """This end of one circuit, from session to session."""

    def __init__(
        self,
        description: Description,
        offer: Offer,
        *,
        passive: bool,
        machine: bytes | None,
        key: Key | None,
        cipher: SessionCipher | None,
    ) -> None:
        """passive: the remote set the circuit up. machine: see Session."""
        self.description = description
        self.offer = offer
        """The settings of the remote's end; if passive, those of this end."""
        self.passive = passive
        self.key = key
        self.cipher = cipher
        """None: the circuit is not encrypted."""
        self._machine = machine
        self.outbox = Outbox()

    @property
    def ciphers(self) -> CipherOffer | None:
        """What this end requires; None: it does not encrypt."""
        return None if self.cipher is None else self.cipher.offer

    # What it says.

    def send(self, message: Message, link: Link, *, dont_fragment: bool = False) -> None:
        """Send a message to the remote of a link."""
        in_session = type_of(message) in SESSION_TYPES
        signer = (link.signer if in_session else None) or self.key
        self.outbox.put(
            message, signer, link.endpoint, link.local_address, dont_fragment=dont_fragment
        )

    def send_beside(self, message: Message, link: Link, received: Received) -> None:
        """Send a message of a session to where another one came from; the remote may be there."""
        signer = link.signer or self.key
        self.outbox.put(message, signer, received.source, received.local_address)

    def answer(self, message: Message, received: Received) -> None:
        """Send a message to where another one came from."""
        self.outbox.put(message, self.key, received.source, received.local_address)

    def request(self, link: Link) -> Request:
        # Those of an encrypted session come from its handshake.
        has_key = self.key is not None and self.cipher is None
        return link.request(
            self.description,
            self.offer,
            self.passive,
            session_keys=has_key,
            ciphers=self.ciphers,
        )

    def confirm(self, link: Link, now: float, follows: int | None = None) -> Confirm:
        """Return the next CONFIRM. Raises KeysUnavailable before the first of an encrypted one.

        follows: see Confirm; where frames are not encrypted, it is not said.
        """
        confirm = link.confirm(self.description, self.offer, self.passive, self._machine)
        ciphers = self.ciphers
        if ciphers is None:
            return confirm
        return link.confirm_encrypted(replace(confirm, follows=follows), ciphers, now)

    def offer_keys(
        self, answer: Acknowledge, received: Received, session: int | None
    ) -> Acknowledge:
        """Return the answer to a REQUEST: see link.offer_session_keys()."""
        if self.key is None and self.cipher is None:
            return answer
        own = own_endpoint(received.local_address, self.description.port)
        request = received.message_of(Request)
        return offer_session_keys(answer, request, own, received.source, session)

    # What it takes.

    def take_acknowledge(self, link: Link, received: Received, follows: int | None = None) -> bool:
        """Take an ACKNOWLEDGE. False: the circuit is encrypted, and no keys can be had.

        follows: of the CONFIRM that is next.
        """
        message = received.message_of(Acknowledge)
        source, local_address = received.source, received.local_address
        link.acknowledge(message, source, local_address, self.description, self.key)
        if self.cipher is None:
            return True
        try:
            self.cipher.initiate(link)
            self.confirm(link, received.now, follows)
        except KeysUnavailable:
            return False
        return True

    def take_confirm(self, received: Received, encryption: Encryption | None) -> Link:
        """Return the session of a CONFIRM. encryption: with its keys, on an encrypted circuit."""
        link = Link.accept(
            received.message_of(Confirm),
            received.source,
            received.local_address,
            self.description.port,
            self.key,
        )
        if encryption is not None:
            link.encryption, link.signer = encryption, encryption.signer
        return link

    def resume(self, link: Link, former: Continuation) -> None:
        """Give a session of another process its keys again, as far as they can be had here."""
        if self.cipher is not None:
            link.keys_lost = True
            self.cipher.phase = former.phase
        elif former.context is not None and self.key is not None:
            context = PackedContext(bytes.fromhex(former.context))
            link.signer = self.key.derive(context, initiator=former.initiator)
            link.derived = context.packed, former.initiator

    # What decides between it and the remote.

    def is_outdated(self, message: Request | Confirm) -> bool:
        """Tell whether the remote resumes other settings than this end wants it to have."""
        return not self.passive and contention.is_outdated(message, self.offer)

    def claim(self, link: Link) -> Claim:
        """Return what this end has to set against the CONFIRM of the remote."""
        return Claim(not self.passive, self.description.mac, link.local_nonce)

    # Tags.

    def verifier(self, header: Header, links: Iterable[Link]) -> Signer | None:
        """Return what verifies a message with this header. links: all sessions that there are.

        Raises RemoteProtocolError where it is of none of them: no tag has to be computed for it.
        """
        if header.type not in SESSION_TYPES or (self.key is None and self.cipher is None):
            return self.key
        for link in links:
            if link.has(header) and not link.keys_lost:
                return link.signer or self.key
        raise RemoteProtocolError(UNKNOWN_SESSION, "of a session that is not this one")
