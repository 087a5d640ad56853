"""Datagrams on their way in: read, and checked whether they are the remote's. Pure.

docs/protocol.md, sections 4 and 4.9. Whether such a message counts is for inputs.classify() to say.
"""

from __future__ import annotations

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.reasons import Cause
from vela.signaling.acceptor import Acceptor
from vela.signaling.codec import MALFORMED, WRONG_TAG, decode, read_header
from vela.signaling.events import Rejected
from vela.signaling.inputs import Received
from vela.signaling.link import Link
from vela.signaling.local_end import UNKNOWN_SESSION, LocalEnd
from vela.signaling.messages import (
    SESSION_TYPES,
    CloseReason,
    Keepalive,
    Message,
    MessageType,
    RejectCode,
)
from vela.signaling.nonces import Nonces
from vela.signaling.remote_port import WRONG_PORT, RemotePort
from vela.signaling.renewer import Renewer
from vela.signaling.seeker import Seeker
from vela.signaling.session_cipher import awaits_handshake, finish_handshake
from vela.signaling.variables import SessionVariables


class Inbox:
    """Of one circuit, from session to session."""

    def __init__(
        self,
        variables: SessionVariables,
        local: LocalEnd,
        nonces: Nonces,
        remote_port: RemotePort,
        seeker: Seeker,
        acceptor: Acceptor,
        renewer: Renewer,
    ) -> None:
        """Of the variables it writes none."""
        self._vars = variables
        self._local = local
        self._nonces = nonces
        self._remote_port = remote_port
        self._seeker = seeker
        self._acceptor = acceptor
        self._renewer = renewer

    def open(self, data: bytes, received: Received, remote: Endpoint | None) -> Message | None:
        """Return the message of a datagram; None: it is done with.

        received: when it came and where from. remote: where the remote is known to be. Raises
        RemoteProtocolError.
        """
        header = read_header(data)
        try:
            message = decode(data, self._local.verifier(header, self._vars.links()))
        except RemoteProtocolError as err:
            # The tag of a session would say nothing of the key.
            if err.reason == WRONG_TAG and header.type not in SESSION_TYPES:
                self._seeker.note_wrong_tag()
            if err.reason == UNKNOWN_SESSION:
                self._acceptor.deny_session(data, header, received)
            raise
        if message.circuit_id != self._vars.circuit_id:
            raise RemoteProtocolError(MALFORMED, f"about circuit {message.circuit_id}")
        self._nonces.reject_reflected(message)
        source = received.source
        if self._local.key is None and not self._may_come_from(source, header.type, remote):
            raise RemoteProtocolError(WRONG_PORT, f"from port {source.port}")
        if isinstance(message, Keepalive) and not self._finish_handshake(message, data, received):
            return None
        return message

    def _may_come_from(self, source: Endpoint, kind: MessageType, remote: Endpoint | None) -> bool:
        """Tell whether a message that has no tag can be the remote's."""
        if self._acceptor.caller is not None:
            return True  # it proves its identity in the handshake, and tags what follows
        return self._remote_port.may_send(
            kind,
            source,
            remote,
            asked=self._seeker.endpoints,
            maker_is_known=self._acceptor.maker is not None,
            in_session=self._vars.in_session,
        )

    def _finish_handshake(self, message: Keepalive, data: bytes, received: Received) -> bool:
        """Take message 2 of a first KEEPALIVE, whose own keys are needed to verify the rest of it.

        False: the message is done with. Raises RemoteProtocolError.
        """
        link = next((each for each in self._vars.links() if each.advances_with(message)), None)
        if link is None or not awaits_handshake(link):
            return True
        if message.noise_2 is None:
            self._close_unencrypted(link, received.now)
            return False
        finish_handshake(link, message, data, received.now)
        return True

    def _close_unencrypted(self, link: Link, now: float) -> None:
        """Close the session of a remote that is older, or was talked out of encryption."""
        self._local.send(link.close(CloseReason.STOPPING), link)
        if link is not self._vars.link:
            self._renewer.end(now)
            return
        refusal = Rejected(RejectCode.ENCRYPTION, Cause.NO_ENCRYPTION.say())
        self._seeker.be_refused(refusal, now)
