"""From the circuits of one file to those of the next: what happens to which, and how. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from ..config.effects import Difference, Effect, difference
from ..config.records import CircuitConfig


class Step(Enum):
    """What happens to a circuit. The values are what an operator reads."""

    NOTHING = Effect.NOTHING.value
    LIVE = Effect.LIVE.value
    NEW_WORKER = Effect.NEW_WORKER.value
    NEW_INTERFACE = Effect.NEW_INTERFACE.value
    ADDED = "added"
    DELETED = "deleted"


_KEEP_WORKER = frozenset({Step.NOTHING, Step.LIVE})


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one circuit."""

    name: str
    step: Step
    keys: tuple[str, ...] = ()
    """Of its table, those that differ."""
    config: CircuitConfig | None = None
    """As it is to be; None: it is to go."""
    new_session: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to the circuits of the file, in the order of the new one; then those that go."""

    changes: tuple[Change, ...]

    def of(self, *steps: Step) -> tuple[Change, ...]:
        """Return the changes that take one of these steps."""
        return tuple(change for change in self.changes if change.step in steps)


def make_plan(
    present: Mapping[str, CircuitConfig],
    wanted: Iterable[CircuitConfig],
    *,
    new_workers: tuple[str, ...] = (),
) -> Plan:
    """Return how the present circuits of the file become the wanted ones.

    new_workers: changed keys of all circuits because of which none keeps its worker.
    """
    changes = {config.name: _change(present.get(config.name), config) for config in wanted}
    if new_workers:
        for change in changes.values():
            if change.step in _KEEP_WORKER:
                keys = (*change.keys, *new_workers)
                changes[change.name] = replace(change, step=Step.NEW_WORKER, keys=keys)
    gone = [Change(name, Step.DELETED) for name in present if name not in changes]
    return Plan((*changes.values(), *gone))


def _change(before: CircuitConfig | None, after: CircuitConfig) -> Change:
    if before is None:
        return Change(after.name, Step.ADDED, config=after)
    how: Difference = difference(before, after)
    return Change(after.name, Step(how.effect.value), how.keys, after, how.new_session)
