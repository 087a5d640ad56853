"""A pair of nonces with its counters: which messages belong to it, and its next messages. Pure.

docs/protocol.md, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vela.address import Endpoint, IPAddress
from vela.signaling.agreement import Agreement, agree
from vela.signaling.codec import NOISE_1_LENGTHS, encode, transcript
from vela.signaling.encryption import Encryption, Fields
from vela.signaling.messages import (
    Acknowledge,
    CipherOffer,
    Close,
    Confirm,
    Description,
    HandshakePattern,
    Header,
    Keepalive,
    Message,
    Offer,
    Probe,
    ProbeReply,
    Reject,
    RejectCode,
    Request,
)
from vela.signaling.nonces import Nonces
from vela.signaling.signer import Key, SessionContext, Signer

# A REQUEST and a CONFIRM have at least this size, so that every answer fits: bytes.
PADDED_SIZE = 320

# Header and tag; TLVs 5 and 6 with IPv6 addresses, 26, and 27: bytes.
LARGEST_ACKNOWLEDGE = 28 + 16 + 2 * (3 + 18) + 3 + (3 + 8)

# How many counters behind the highest one a message may be that need not come in order.
WINDOW = 64

_U64_MASK = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True, weakref_slot=True, eq=False)
class Link:
    """One session, or one that was asked for and not answered: then remote_nonce is 0."""

    circuit_id: int
    local_nonce: int
    remote_nonce: int
    endpoint: Endpoint
    """Where messages go."""
    local_address: IPAddress | None
    """The address of this host that the remote speaks to; None: not known yet."""
    sent: int = 0
    """The counter of the last message that this end sent."""
    heard: int = 0
    """The highest counter of the remote's."""
    _heard_before: int = 0
    """Bit n: the counter n below it was heard, too."""
    proof: int = 0
    """The first counter of this end's that proves, if the remote heard it, that it hears."""
    accepted: bool = False
    """The remote asked, this end answered."""
    remote_description: Description | None = None
    remote_was_up: bool = False
    agreement: Agreement | None = None
    outdated: bool = False
    """The remote resumed it with other settings than this end wants it to have."""
    signer: Signer | None = None
    """Signs and verifies the messages of the session, where it has keys of its own."""
    derived: tuple[bytes, bool] | None = None
    """What the signer's keys are bound to, where they come from the pre-shared key; and whether
    this end is the initiator."""
    keys_lost: bool = False
    """Its keys were another process's: nothing can be tagged, and no tag checked."""
    encryption: Encryption | None = None
    """The keys of the session's frames, on an encrypted circuit."""
    predecessor: Encryption | None = None
    """The keys of the session that this one follows, for frames until it has its own."""
    predecessor_until: float = math.inf
    unheard: int = 0
    """The counter of what is to be heard, and is repeated until then; 0: there is nothing."""
    heard_back: bool = False
    """The remote has heard what proves that it hears this end."""
    _agreed_on: tuple[Description, Description] | None = None
    _told: tuple[Endpoint | None, Endpoint | None] | None = None
    """What each CONFIRM says of its sender's own and the receiver's endpoint: the keys are bound
    to it, and nobody knows which of them arrived."""
    _first_confirm: Confirm | None = None
    """On an encrypted circuit each CONFIRM is as the first one, which the handshake is bound to."""
    _described: tuple[Description, IPAddress | None, Endpoint, Description] | None = None
    """What describe() has last made of what."""
    _clock: int | None = None
    """Microseconds of the remote's clock, at _clock_at of this end's."""
    _clock_at: float = 0.0

    @classmethod
    def accept(
        cls,
        confirm: Confirm,
        source: Endpoint,
        local_address: IPAddress | None,
        port: int,
        key: Key | None,
    ) -> Link:
        """Return the session that a CONFIRM with a valid cookie asks for; port: the local one."""
        link = cls(
            confirm.circuit_id,
            confirm.receiver_nonce,
            confirm.sender_nonce,
            source,
            local_address,
            sent=confirm.counter,
            heard=confirm.counter,
            proof=confirm.counter + 1,
            accepted=True,
            remote_description=confirm.description,
        )
        if confirm.session_keys and key is not None:
            told = confirm.description
            context = SessionContext(
                confirm.circuit_id,
                initiator_nonce=confirm.sender_nonce,
                responder_nonce=confirm.receiver_nonce,
                initiator_own=told.own,
                responder_seen=told.seen,
                responder_own=own_endpoint(local_address, port),
                initiator_seen=source,
            )
            link.signer = key.derive(context, initiator=False)
            link.derived = context.pack(), False
        return link

    def acknowledge(
        self,
        message: Acknowledge,
        source: Endpoint,
        local_address: IPAddress | None,
        local: Description,
        key: Key | None,
    ) -> None:
        """Take the remote's nonce from the answer to the REQUEST."""
        self.remote_nonce = message.sender_nonce
        self.heard = message.counter
        self.proof = self.sent + 1
        self.local_address = local_address or self.local_address
        if self.endpoint.address != source.address:
            # Another address of the remote's, which was asked before and is slow.
            self.endpoint = Endpoint(source.address, self.endpoint.port)
        if message.session_keys and key is not None:
            description = self.describe(local)
            self._told = description.own, description.seen
            context = SessionContext(
                self.circuit_id,
                initiator_nonce=self.local_nonce,
                responder_nonce=self.remote_nonce,
                initiator_own=description.own,
                responder_seen=description.seen,
                responder_own=message.own,
                initiator_seen=message.seen,
            )
            self.signer = key.derive(context, initiator=True)
            self.derived = context.pack(), True

    # For another process that goes on with it.

    @property
    def memory(self) -> tuple[int, int | None, float]:
        """Which counters below the highest one were heard; the remote's clock, and since when."""
        return self._heard_before, self._clock, self._clock_at

    def restore(self, heard_before: int, clock: int | None, clock_at: float) -> None:
        """Take what memory said."""
        self._heard_before, self._clock, self._clock_at = heard_before, clock, clock_at

    # Which messages belong to it.

    def has(self, message: Message | Header) -> bool:
        return (
            self.remote_nonce != 0
            and message.sender_nonce == self.remote_nonce
            and message.receiver_nonce == self.local_nonce
        )

    def advances_with(self, message: Message) -> bool:
        """Tell whether it is of this session, and neither a replay nor overtaken by a later one."""
        return self.has(message) and message.counter > self.heard

    def is_new(self, message: Message) -> bool:
        """Tell whether it is of this session and no replay; later ones may have overtaken it.

        A large probe takes longer than a small one; it says nothing that a later one would refute.
        """
        behind = self.heard - message.counter
        return self.has(message) and (
            behind < 0 or (0 < behind < WINDOW and not self._heard_before >> behind & 1)
        )

    def hear(self, counter: int) -> None:
        """Take note of a message's counter."""
        ahead = counter - self.heard
        if ahead > 0:
            self.heard = counter
            kept = self._heard_before << ahead if ahead < WINDOW else 0
            self._heard_before = (kept | 1) & ((1 << WINDOW) - 1)
        else:
            self._heard_before |= 1 << -ahead

    def awaits(self, message: Acknowledge) -> bool:
        """Tell whether it answers the REQUEST, and is the first answer."""
        return (
            not self.remote_nonce
            and message.receiver_nonce == self.local_nonce
            and message.sender_nonce != 0
        )

    def is_refused_by(self, message: Reject) -> bool:
        """Tell whether it answers a message of this end's, which had asked for the session.

        Only the remote knows the nonce, so nobody off the path can forge it. That there is no
        such session counts only if it answers what came from here: a copy that somebody else
        sent from another address gets the same answer.
        """
        if message.code == RejectCode.NO_SUCH_SESSION and not self._is_seen_at(message.seen):
            return False
        return (
            not self.accepted
            and message.receiver_nonce == self.local_nonce
            and message.counter <= self.sent
        )

    def _is_seen_at(self, endpoint: Endpoint | None) -> bool:
        """Tell whether the remote sees this end there, by what it said in the session."""
        if endpoint is None:
            return self.signer is None  # an older remote does not say it
        description = self.remote_description
        return description is None or description.seen in (None, endpoint)

    def move(self, endpoint: Endpoint, local_address: IPAddress | None) -> None:
        """Send there from now on; both ends have to agree anew."""
        self.endpoint = endpoint
        self.local_address = local_address or self.local_address
        self.agreement = self._agreed_on = None

    def take_keepalive(self, message: Keepalive, now: float) -> float | None:
        """Take what a KEEPALIVE says; return the round trip, in seconds, if it says that."""
        self.remote_description = message.description
        self._clock, self._clock_at = message.timestamp, now
        if message.echo is None or _microseconds(now) < message.echo:
            return None
        return (_microseconds(now) - message.echo) / 1e6

    def settle(self, local: Description) -> Agreement | None:
        """Agree with what the remote said last; return the agreement if it changed."""
        if self.remote_description is None:
            return None
        descriptions = (self.describe(local), self.remote_description)
        if descriptions == self._agreed_on:
            return None
        self._agreed_on = descriptions
        agreement = agree(*descriptions, self.endpoint)
        if agreement == self.agreement:
            return None
        self.agreement = agreement
        return agreement

    @property
    def keepalive_s(self) -> float:
        """The agreed interval between keepalives."""
        if self.agreement is None:
            raise RuntimeError(f"circuit {self.circuit_id}: no agreement in a session")
        return self.agreement.keepalive_s

    # Its next messages.

    def request(
        self,
        local: Description,
        offer: Offer,
        resuming: bool,
        *,
        session_keys: bool,
        ciphers: CipherOffer | None = None,
    ) -> Request:
        return Request(
            *self.next_header(),
            self.describe(local),
            offer,
            resuming,
            PADDED_SIZE,
            session_keys=session_keys,
            ciphers=ciphers,
        )

    def confirm(
        self, local: Description, offer: Offer, resuming: bool, machine: bytes | None = None
    ) -> Confirm:
        description = self.describe(local)
        if self._told is not None:
            own, seen = self._told
            description = replace(description, own=own, seen=seen)
        has_keys = self.signer is not None
        return Confirm(
            *self.next_header(),
            description,
            offer,
            resuming,
            PADDED_SIZE,
            session_keys=has_keys,
            machine=machine,
        )

    def confirm_encrypted(self, confirm: Confirm, ciphers: CipherOffer, now: float) -> Confirm:
        """Return a CONFIRM of confirm() with message 1 of the handshake.

        Raises KeysUnavailable.
        """
        if self.encryption is None:
            raise RuntimeError(f"circuit {self.circuit_id}: no keys to confirm with")
        if self._first_confirm is None:
            length = NOISE_1_LENGTHS[ciphers.pattern == HandshakePattern.IK_PSK2]
            blank = replace(confirm, ciphers=ciphers, noise_1=bytes(length))
            noise_1 = self.encryption.begin(transcript(encode(blank, None)), now)
            self._first_confirm = replace(blank, noise_1=noise_1)
        return replace(self._first_confirm, counter=confirm.counter)

    def keepalive(
        self, local: Description, now: float, *, up: bool, arrived: int | None = None
    ) -> Keepalive:
        echo = None
        if self._clock is not None:
            echo = (self._clock + _microseconds(now - self._clock_at)) & _U64_MASK
        said = Fields() if self.encryption is None else self.encryption.fields()
        return Keepalive(
            *self.next_header(),
            self.describe(local),
            self.heard,
            _microseconds(now),
            echo,
            up,
            said.noise_1,
            said.noise_2,
            said.generation,
            arrived,
        )

    @property
    def sends_frames(self) -> bool:
        """Whether this end may send frames: where it encrypts, the remote has the keys."""
        return self.encryption is None or self.encryption.ready

    def wipe_keys(self) -> None:
        """Wipe the keys of frames, as the session is over."""
        self.wipe_predecessor()
        if self.encryption is not None:
            self.encryption.wipe()

    def follow(self, previous: Link) -> None:
        """Let frames go on with the keys of another session until this one has keys."""
        self.predecessor = previous.encryption
        previous.wipe_predecessor()

    def wipe_predecessor(self) -> None:
        if self.predecessor is not None:
            self.predecessor.wipe()
        self.predecessor, self.predecessor_until = None, math.inf

    def close(self, reason: int) -> Close:
        return Close(*self.next_header(), reason)

    def probe(self, size: int) -> Probe:
        return Probe(*self.next_header(), size)

    def probe_reply(self, size: int) -> ProbeReply:
        return ProbeReply(*self.next_header(), size)

    def describe(self, local: Description) -> Description:
        """Return what this end says about itself to the remote, which speaks to local_address."""
        described = self._described
        known = described is not None and described[0] is local
        if described is None or not known or described[1:3] != (self.local_address, self.endpoint):
            own = local.own
            if self.local_address is not None:
                own = Endpoint(self.local_address, local.port)
            described = (
                local,
                self.local_address,
                self.endpoint,
                replace(local, own=own, seen=self.endpoint),
            )
            self._described = described
        return described[3]

    def next_header(self) -> tuple[int, int, int, int]:
        """Return the first fields of the next message: circuit id, both nonces, counter."""
        self.sent += 1
        return self.circuit_id, self.local_nonce, self.remote_nonce, self.sent


def open_link(
    circuit_id: int, nonces: Nonces, endpoint: Endpoint, local_address: IPAddress | None
) -> Link:
    """Return what asks for a session, with a fresh nonce."""
    link = Link(circuit_id, nonces.draw(), 0, endpoint, local_address)
    nonces.hold(link.local_nonce, link)
    return link


def own_endpoint(local_address: IPAddress | None, port: int) -> Endpoint | None:
    """Return what a responder says that its own endpoint is; local_address: where it was asked."""
    return None if local_address is None else Endpoint(local_address, port)


def offer_session_keys(
    answer: Acknowledge,
    request: Request,
    own: Endpoint | None,
    source: Endpoint,
    session: int | None = None,
) -> Acknowledge:
    """Return the answer to a REQUEST with what the keys of the session are bound to.

    Not where the initiator knows of no keys, or the answer would be larger than the REQUEST.
    session: this end's nonce in the session that it has with the initiator.
    """
    if request.size < LARGEST_ACKNOWLEDGE:
        return answer
    if request.ciphers is not None:  # the keys come from the handshake
        return replace(answer, session=session)
    if not request.session_keys:
        return answer
    return replace(answer, session_keys=True, own=own, seen=source, session=session)


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)
