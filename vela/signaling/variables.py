"""The state variables of one circuit's session, which its parts share. Pure.

RFC 5880, section 6.8.1, has the same for BFD: every part reads them, and each variable has few
writers. session.py has the table of states.
"""

from __future__ import annotations

from vela.signaling.encryption import Encryption
from vela.signaling.inputs import Input, State
from vela.signaling.link import Link
from vela.signaling.renewal import Renewal


class SessionVariables:
    """What there is of a circuit's session at present."""

    def __init__(self, circuit_id: int) -> None:
        self.circuit_id = circuit_id
        self.state = State.IDLE
        self.link: Link | None = None
        """The session, or the one that is asked for; None: there is neither."""
        self.renewal: Renewal | None = None
        """Another session that is sought beside it."""
        self.due: dict[Input, float] = {}
        """The timers, in monotonic seconds."""
        self.rtt_s: float | None = None
        self.last_heard_at: float | None = None

    @property
    def in_session(self) -> bool:
        """Whether both ends have the session."""
        return self.state in (State.LINKED, State.UP)

    @property
    def session(self) -> Link | None:
        """The session that both ends have; None: there is none."""
        return self.link if self.in_session else None

    def the_link(self) -> Link:
        if self.link is None:
            raise RuntimeError(f"circuit {self.circuit_id}: {self.state.name} without a link")
        return self.link

    @property
    def beside(self) -> Link | None:
        """The session that is sought beside it."""
        return None if self.renewal is None else self.renewal.link

    def links(self) -> tuple[Link, ...]:
        """Return the session, and the one that is sought beside it, as far as there are any."""
        return tuple(link for link in (self.link, self.beside) if link is not None)

    def encryptions(self) -> tuple[Encryption, ...]:
        """Return what has their keys, as far as they are encrypted."""
        return tuple(link.encryption for link in self.links() if link.encryption is not None)

    @property
    def local_nonces(self) -> tuple[int, ...]:
        """What the remote puts into its messages, except to ask: the nonces of this end."""
        if self.renewal is None:  # mostly; this is asked for at every message
            return () if self.link is None else (self.link.local_nonce,)
        return tuple(link.local_nonce for link in self.links())

    def drop_renewal(self) -> None:
        """Seek no other session beside the present one."""
        if self.renewal is not None:
            self.renewal.link.wipe_keys()
        self.renewal = None
        self.due.pop(Input.RENEWAL_DUE, None)

    def drop(self) -> None:
        """Forget the session, and all that was to be done in it."""
        self.drop_renewal()
        if self.link is not None:
            self.link.wipe_keys()
        self.link = None
        self.due.clear()
