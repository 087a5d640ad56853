"""What a velad that is replaced says of a circuit that carries frames, so that it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Self

from vela.linux.underlay import UnderlayPath
from vela.signaling.continuation import Continuation


@dataclass(frozen=True, slots=True)
class Standing:
    """A circuit that is up, or static; in what JSON can say."""

    remote: str
    """The address that it sends to."""
    source: str
    """The local address that the remote speaks to."""
    member: str
    """The name of the socket that it receives on: inheritance.member_name."""
    index: int
    """That of the socket in its group."""
    session: Mapping[str, Any] | None
    """See Continuation; None: it is static."""
    key: str | None
    """What the pre-shared key makes of KEY_PROOF, in hexadecimal; None: there is none."""
    listening: bool
    """Frames are to leave from the listening port: from one of their own they do not cross."""
    probed_mtu: int | None
    """See UnderlayPath."""
    used: int
    """Which remote of its list, and whether by command; and why each does not work."""
    held: bool
    failures: list[tuple[str, str]]
    """Text and code of a vela.reasons.Reason for each remote."""
    hooked: bool
    """The up hook has run."""
    maker: str | None = None
    """Which machine has called, by identity.maker_of, in hexadecimal; None: not known."""
    further: list[int] = field(default_factory=list)
    """The indices of the further sockets that it receives on, in the same group."""

    @classmethod
    def of(
        cls,
        path: UnderlayPath,
        member: tuple[str, int],
        session: Continuation | None,
        key: str | None,
        remotes: tuple[int, bool, list[tuple[str, str]]],
        *,
        listening: bool,
        hooked: bool,
        maker: bytes | None,
        further: Sequence[int],
    ) -> Self:
        """path: where frames go. remotes: Remotes.standing. All else: as below."""
        used, held, failures = remotes
        name, index = member
        return cls(
            remote=str(path.endpoint.address),
            source=str(path.route.source),
            member=name,
            index=index,
            session=None if session is None else session.format(),
            key=key,
            listening=listening,
            probed_mtu=path.probed_mtu,
            used=used,
            held=held,
            failures=failures,
            hooked=hooked,
            maker=None if maker is None else maker.hex(),
            further=list(further),
        )

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Return what format() wrote. Raises TypeError or KeyError for another shape.

        An older velad does not write what has a default.
        """
        return cls(
            **{
                each.name: document[each.name]
                for each in fields(cls)
                if each.name in document or each.default is each.default_factory is MISSING
            }
        )

    def format(self) -> dict[str, Any]:
        return asdict(self)

    def continuation(self) -> Continuation | None:
        """Raises TypeError."""
        return None if self.session is None else Continuation.parse(self.session)


KEY_PROOF = b"velad --replace"
"""Not a message: those begin with a zero byte."""
