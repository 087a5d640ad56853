"""What another process needs to go on with a session, without the remote's noticing. Pure.

No key is in it. Where the session has keys of its own, whoever has the pre-shared key derives them
again; those of an encrypted circuit are lost, and another session follows it at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any, Self

from vela.address import Endpoint, IPAddress
from vela.errors import RemoteProtocolError
from vela.signaling.codec import decode, encode
from vela.signaling.link import Link
from vela.signaling.messages import Keepalive


@dataclass(frozen=True, slots=True)
class Continuation:
    """A session that is up, in what JSON can say."""

    local_nonce: int
    remote_nonce: int
    remote_address: str
    remote_port: int
    local_address: str | None
    sent: int
    heard: int
    heard_before: int
    proof: int
    accepted: bool
    outdated: bool
    description: str
    """A KEEPALIVE with what the remote said last of itself, in hexadecimal."""
    clock: int | None
    clock_at: float
    """Monotonic seconds, which are the same in all processes of a machine."""
    context: str | None
    """What the keys of the session are bound to, in hexadecimal; None: it has none."""
    initiator: bool
    heard_at: float | None
    rtt_s: float | None
    translated: bool | None
    phase: int | None
    """That of the keys of an encrypted circuit."""

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Return what format() wrote. Raises TypeError for a document of another shape."""
        return cls(**document)

    def format(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def remote(self) -> Endpoint:
        """Raises ValueError, as link() does, for what format() cannot have written."""
        return Endpoint(ip_address(self.remote_address), self.remote_port)

    @property
    def source(self) -> IPAddress | None:
        """The address of this host that the remote speaks to."""
        return None if self.local_address is None else ip_address(self.local_address)

    def link(self, circuit_id: int) -> Link:
        """Return the session, without keys. Raises ValueError."""
        try:
            said = decode(bytes.fromhex(self.description), None)
        except RemoteProtocolError as err:
            raise ValueError(f"what the remote said cannot be read: {err}") from err
        if not isinstance(said, Keepalive):
            raise ValueError("what the remote said is no KEEPALIVE")
        link = Link(
            circuit_id,
            self.local_nonce,
            self.remote_nonce,
            self.remote,
            self.source,
            sent=self.sent,
            heard=self.heard,
            proof=self.proof,
            accepted=self.accepted,
            remote_description=said.description,
            remote_was_up=True,
            outdated=self.outdated,
            heard_back=True,
        )
        link.restore(self.heard_before, self.clock, self.clock_at)
        return link


def continuation_of(
    link: Link,
    *,
    heard_at: float | None,
    rtt_s: float | None,
    translated: bool | None,
    phase: int | None,
) -> Continuation | None:
    """Return what there is to go on with; None: the remote has not described itself."""
    if link.remote_description is None:
        return None
    said = Keepalive(link.circuit_id, 1, 1, 1, link.remote_description, 0, 0, None, up=True)
    heard_before, clock, clock_at = link.memory
    context, initiator = link.derived or (None, False)
    return Continuation(
        local_nonce=link.local_nonce,
        remote_nonce=link.remote_nonce,
        remote_address=str(link.endpoint.address),
        remote_port=link.endpoint.port,
        local_address=None if link.local_address is None else str(link.local_address),
        sent=link.sent,
        heard=link.heard,
        heard_before=heard_before,
        proof=link.proof,
        accepted=link.accepted,
        outdated=link.outdated,
        description=encode(said, None).hex(),
        clock=clock,
        clock_at=clock_at,
        context=None if context is None else context.hex(),
        initiator=initiator,
        heard_at=heard_at,
        rtt_s=rtt_s,
        translated=translated,
        phase=phase,
    )
