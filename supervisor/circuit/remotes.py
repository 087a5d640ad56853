"""The remotes of a circuit: the one in use, and those that stand by or stand in for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from vela.address import IPAddress, Remote
from vela.errors import ConfigError
from vela.reasons import NO_REASON, Cause, Reason

from ..nearest import nearest
from ..runtime.loop import Callback, EventLoop, Timer
from ..status import RemoteStatus
from .lifecycle import Input, State
from .primary_watch import PrimaryWatch
from .standby import Phase, Standby

# They say that the remote in use does not work, if the circuit is not up afterwards.
_FAILURES = frozenset(
    {
        Input.UNRESOLVED,
        Input.NO_ROUTE,
        Input.CUT_OFF,
        Input.DOWN,
        Input.REJECTED,
        Input.REMOTE_DISABLED,
        Input.CLOSED,
        Input.FAILED,
    }
)
_NOT_THE_REMOTE = frozenset({State.BROKEN, State.DISABLED})

# States of remotes that are not in use.
STANDS_BY, LOST, ANSWERS = "standby", "lost", "answers"


class User(Protocol):
    """A circuit: whereabouts.Whereabouts."""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of the remote in use."""

    def use_remote(self, why: str) -> None:
        """Go to the remote that is now in use; why: for the log."""

    def watch_primary(
        self, primary: Remote, on_answer: Callback, on_silence: Callable[[Reason], None]
    ) -> PrimaryWatch:
        """Begin to ask the primary at intervals."""


class Remotes:
    """Says which remote of its list a circuit uses."""

    def __init__(self, listed: Remote, name: str, user: User, loop: EventLoop) -> None:
        """name: the circuit's."""
        self._name = name
        self._all = listed.all
        self._user = user
        self._loop = loop
        self._standby = Standby(len(self._all))
        self._used = 0
        self._known: dict[Remote, tuple[IPAddress, ...]] = {}
        self._timer: Timer | None = None
        self._watch: PrimaryWatch | None = None
        self._stopped = self._frozen = False

    @property
    def in_use(self) -> Remote:
        return self._all[self._used]

    @property
    def is_list(self) -> bool:
        return len(self._all) > 1

    def known_addresses(self) -> dict[Remote, tuple[IPAddress, ...]]:
        """Return the addresses of each remote that is not in use, as far as they are known."""
        return {
            each: self._known.get(each, ()) if each.address is None else (each.address,)
            for index, each in enumerate(self._all)
            if index != self._used
        }

    def stop(self) -> None:
        """Change nothing any more."""
        self._stopped = True
        self._standby.rest()
        self._set()

    def freeze(self) -> None:
        """Change nothing until thaw(): another velad is about to take over."""
        self._frozen = True
        self._set()

    def thaw(self) -> None:
        self._frozen = False
        self._set()

    @property
    def standing(self) -> tuple[int, bool, list[tuple[str, str]]]:
        """The number of the one in use, whether a command says so, and why each does not work.

        The latter as text and code.
        """
        failures = [(str(each), each.code) for each in self._standby.failures]
        return self._used, self._standby.held, failures

    def resume(self, used: int, held: bool, failures: Sequence[tuple[str, str]]) -> bool:
        """Take over what standing said. Return whether another remote than the first is in use.

        Raises ValueError if the list is another one.
        """
        if not 0 <= used < len(self._all) == len(failures):
            raise ValueError("its remotes are others than before")
        self._standby.current = self._used = used
        self._standby.held = held
        self._standby.failures = [Reason(text, code) for text, code in failures]
        return used != 0

    def begin_anew(self) -> bool:
        """Begin with the primary again. Return whether another remote was in use."""
        self._standby.begin_anew()
        return self._apply()

    def change(self, listed: Remote) -> bool:
        """Take another list. Return whether the remote in use is another one than before."""
        before, former = self.in_use, self._all
        self._all = listed.all
        numbers = [former.index(each) if each in former else None for each in self._all]
        self._standby.relist(numbers, self._loop.now())
        if self._watch is not None:
            self._watch.stop()  # the primary may be another one
            self._watch = None
        self._used = self._standby.current
        self._set()
        return self.in_use != before

    def note(self, happened: Input, state: State, reason: Reason) -> None:
        """Take note of what happened to the circuit, and of the state that followed."""
        standby, now = self._standby, self._loop.now()
        if self._stopped or standby.current != self._used:
            return
        if state in _NOT_THE_REMOTE:
            standby.rest()
        elif state is State.UP:
            standby.up(now)
        else:
            if standby.phase is Phase.RESTING:
                standby.begin(now)
            if happened in _FAILURES:
                standby.fail(reason, now)
            elif happened is Input.UNANSWERED:
                standby.doubt(reason, now)
        self._after()

    def switch(self, wanted: str | None) -> Remote:
        """Use another remote at once: the one of this name, or the next. Raises ConfigError."""
        if not self.is_list:
            raise ConfigError(f"{self._name} has no standby remote; `remote` may be a list of them")
        index = (self._used + 1) % len(self._all) if wanted is None else self._find(wanted)
        self._standby.switch(index, self._loop.now())
        if self._apply():
            self._user.use_remote("a command says so")
        return self.in_use

    def _find(self, wanted: str) -> int:
        names = [str(each) for each in self._all]
        for number, each in enumerate(self._all):
            if wanted.lower() in (names[number].lower(), each.identity):
                return number
        raise ConfigError(f"{self._name} has no remote {wanted}{nearest(wanted, names)}")

    # What there is to say.

    def explain(self, state: State, reason: Reason) -> tuple[Reason, ...]:
        """Return the reasons for a circuit's state, with those of its remotes."""
        if not self.is_list or state in _NOT_THE_REMOTE:
            return (reason,)
        if state is State.UP:
            return self._why_not_primary(), reason
        whys = (self._failure(number, reason) for number in range(len(self._all)))
        return tuple(
            Reason(f"{each}: {why}", why.code)
            for each, why in zip(self._all, whys, strict=True)
            if why
        )

    def status(self, state: State, reason: Reason) -> tuple[RemoteStatus, ...]:
        """Return what each remote does; state and reason: the circuit's."""
        return tuple(
            RemoteStatus(
                name=str(each),
                state=state.word if number == self._used else self._word(number),
                current=number == self._used,
                reason=str(self._failure(number, reason)),
            )
            for number, each in enumerate(self._all)
        )

    def _why_not_primary(self) -> Reason:
        if self._used == 0:
            return NO_REASON
        primary, used = self._all[0], self.in_use
        if self._standby.held:
            return Cause.STANDBY_ORDERED.say(used=used)
        why = self._standby.failures[0]
        if why and not self._standby.primary_answers:
            return Cause.STANDBY_USED.say(used=used, primary=primary, why=why)
        return Cause.STANDBY_LEAVES.say(
            used=used,
            primary=primary,
            answers="answers again, and " if why else "",
            seconds=self._standby.good_s,
        )

    def _failure(self, number: int, reason: Reason) -> Reason:
        known = self._standby.failures[number]
        return reason or known if number == self._used else known

    def _word(self, number: int) -> str:
        if number == 0 and self._standby.primary_answers:
            return ANSWERS
        return LOST if self._standby.failures[number] else STANDS_BY

    # What follows.

    def _after(self) -> None:
        """Do what the list wants done, but for a move, which is not for now: see use_remote."""
        self._set()
        if self._standby.current != self._used:
            self._loop.call_soon(self._move)

    def _move(self) -> None:
        former = self._used
        if not (self._stopped or self._frozen) and self._apply():
            why = self._standby.failures[former]
            self._user.use_remote(why or "the primary has answered for long enough")

    def _apply(self) -> bool:
        """Use the current remote from now on. Return whether that is another one."""
        self._set()
        if self._standby.current == self._used:
            return False
        self._known[self.in_use] = self._user.addresses
        self._used = self._standby.current
        return True

    def _set(self) -> None:
        """Set the timer, and watch the primary or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._standby.next_timer()
        if self._frozen:
            if self._watch is not None:
                self._watch.stop()
                self._watch = None
            return
        if at < math.inf:
            self._timer = self._loop.call_at(at, self._on_timer)
        if self._standby.watches_primary and self._watch is None:
            self._watch = self._user.watch_primary(self._all[0], self._on_answer, self._on_silence)
        elif not self._standby.watches_primary and self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _on_timer(self) -> None:
        self._timer = None
        self._standby.handle_timer(self._loop.now())
        self._after()

    def _on_answer(self) -> None:
        self._standby.answered(self._loop.now())
        self._after()

    def _on_silence(self, why: Reason) -> None:
        self._standby.unanswered(why)
        self._after()
