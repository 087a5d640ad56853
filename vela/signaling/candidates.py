"""Where a remote may be, and which of its addresses is asked next. Pure.

After RFC 8305, sections 4 and 5: families alternate, and the next address is asked a moment after
the one before, whether that answers or not. The first answer wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest

from vela.address import Endpoint, IPAddress
from vela.signaling.events import Rejected

# Between two addresses: the default of RFC 8305, section 8.
ATTEMPT_DELAY_S = 0.25


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint where the remote may be."""

    endpoint: Endpoint
    local_address: IPAddress | None = None
    """The address of this host to ask from; None: the kernel chooses."""


def interleaved(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Return addresses, best first, so that families alternate from that of the first on."""
    given = tuple(addresses)
    if not given:
        return ()
    alike = [each for each in given if each.version == given[0].version]
    others = [each for each in given if each.version != given[0].version]
    pairs = chain.from_iterable(zip_longest(alike, others))
    return tuple(each for each in pairs if each is not None)


class Candidates:
    """The candidates, best first, and which were asked in the present round.

    In a round each one is asked once. Its order is the same in each round.
    """

    def __init__(self, *candidates: Candidate) -> None:
        self._all = candidates
        self._asked: set[Endpoint] = set()
        self.refusal: Rejected | None = None
        """The last one of this round."""

    def __bool__(self) -> bool:
        return bool(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def first(self) -> Candidate | None:
        """The best one; None: there is none."""
        return self._all[0] if self._all else None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(each.endpoint for each in self._all)

    @property
    def round_is_over(self) -> bool:
        """Whether all have been asked."""
        return all(each.endpoint in self._asked for each in self._all)

    def begin(self) -> None:
        """Begin with the best one, in a new round."""
        self._asked.clear()
        self.refusal = None

    def replace(self, *candidates: Candidate) -> bool:
        """Have these from now on. Those that were not asked yet are next. Tell if any is new."""
        before = set(self.endpoints)
        self._all = candidates
        self._asked &= set(self.endpoints)
        return not before.issuperset(self.endpoints)

    def next(self) -> Candidate:
        """Return the one to ask now; in a new round if all were asked. There must be one."""
        if self.round_is_over:
            self.begin()
        candidate = next(each for each in self._all if each.endpoint not in self._asked)
        self._asked.add(candidate.endpoint)
        return candidate

    def at(self, source: Endpoint) -> Candidate | None:
        """Return which one an answer comes from; None: from none.

        A NAT may translate its port.
        """
        near = [each for each in self._all if each.endpoint.address == source.address]
        exact = (each for each in near if each.endpoint == source)
        return next(exact, near[0] if near else None)
