"""The lifecycle of one circuit: (state, input) -> (actions, next state). Pure.

Circuit feeds inputs and carries out the actions. An action that fails is another input.
There are two tables: for circuits with signalling, and for static circuits.
A pair that is in neither table is a bug, and raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from vela.reasons import NO_REASON, Reason


class State(Enum):
    """The state of a circuit. The values are those of the status; BROKEN is shown as "failed"."""

    RESOLVING = "resolving"  # no address of the remote is known
    CONNECTING = "connecting"  # asks the remote; was never up
    UP = "up"  # each end hears the other
    DOWN = "down"  # asks the remote; was up, or has no route
    REJECTED = "rejected"  # the remote refuses it; asks again later
    UNMONITORED = "unmonitored"  # static: carries frames; the remote is not monitored
    DISABLED = "disabled"  # administratively down
    FAILED = "failed"  # an action failed; tried again with the next route
    BROKEN = "broken"  # interface or worker does not work; until MENDED

    @property
    def word(self) -> str:
        """The name in the status."""
        return State.FAILED.value if self is State.BROKEN else self.value


class Input(Enum):
    """An event of a circuit. Those marked (reason) come with a sentence."""

    START = auto()
    ACCEPT = auto()  # starts with the session that the remote asked for
    RESUME = auto()  # goes on with what another velad's circuit did
    DISABLE = auto()
    ENABLE = auto()
    # From the search for the remote.
    UNRESOLVED = auto()  # (reason)
    NO_ROUTE = auto()  # (reason)
    ROUTED = auto()
    AWAITS = auto()  # (reason) the other end calls; nobody is looked for
    SWITCHED = auto()  # (reason) another remote is looked for from now on
    CUT_OFF = auto()  # (reason) there is nothing that may be sent by: no device, a loop
    # From signalling.
    AGREED = auto()  # both ends agree how to carry frames
    UP = auto()
    DOWN = auto()  # (reason)
    UNANSWERED = auto()  # (reason)
    REJECTED = auto()  # (reason)
    REMOTE_DISABLED = auto()  # (reason) administratively down at the remote
    CLOSED = auto()  # (reason) the remote deleted its end
    DELETED = auto()  # the remote set this circuit up and has deleted it
    # From this machine.
    FAILED = auto()  # (reason) an action failed
    BROKEN = auto()  # (reason) interface or worker does not work
    MENDED = auto()  # it works again


class Action(Enum):
    """What a circuit does. Actions are carried out in the order of their list."""

    RESOLVE = auto()  # look for the remote's addresses, and a route
    RESOLVE_SOON = auto()  # the same after a back-off
    REUSE_PATH = auto()  # ROUTED with the known path; RESOLVE if there is none
    SEEK = auto()  # start the session
    SUSPEND = auto()  # suspend the session; the remote is told the reason
    LEAVE = auto()  # close the session
    CARRY = auto()  # attach sockets and worker; may fail
    FOLLOW_ROUTE = auto()  # CARRY if the route in use has changed
    RELEASE = auto()  # detach sockets and worker
    CARRIER_ON = auto()
    CARRIER_OFF = auto()
    REMOVE = auto()  # remove the circuit


class _Same(Enum):
    """Stay in the state, and keep the reason or take the new one."""

    KEEP_REASON = auto()
    TAKE_REASON = auto()


@dataclass(frozen=True, slots=True)
class _ByHistory:
    """The next state depends on whether the circuit has ever been up."""

    before: State | _Same
    after: State | _Same


_Next = State | _Same | _ByHistory


@dataclass(frozen=True, slots=True)
class Transition:
    """The effect of an input."""

    next: _Next
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The result of an input."""

    state: State
    reason: Reason
    actions: tuple[Action, ...]


Table = Mapping[tuple[State, Input], Transition]

_S, _I, _A = State, Input, Action
_STAY, _TAKE_REASON = _Same.KEEP_REASON, _Same.TAKE_REASON
# Asks the remote: "connecting" until it is up for the first time, "down" later.
_SEEKING = _ByHistory(_S.CONNECTING, _S.DOWN)


def _in_states(
    states: Iterable[State], transitions: Mapping[Input, Transition]
) -> dict[tuple[State, Input], Transition]:
    return {(state, each): step for state in states for each, step in transitions.items()}


_DISABLE = Transition(_S.DISABLED, (_A.LEAVE, _A.RELEASE, _A.CARRIER_OFF, _A.RESOLVE))
_FAIL = Transition(_S.FAILED, (_A.CARRIER_OFF, _A.SUSPEND, _A.RESOLVE_SOON))
_BREAK = Transition(_S.BROKEN, (_A.CARRIER_OFF, _A.SUSPEND))
# Nothing is sent any more. By a route that leads back, the circuit would carry its own packets.
_CUT_OFF = Transition(_S.DOWN, (_A.CARRIER_OFF, _A.SUSPEND, _A.RELEASE, _A.RESOLVE_SOON))

_SWITCH_ACTIONS = (_A.CARRIER_OFF, _A.RELEASE, _A.SEEK)

# Inputs of a circuit with signalling that is not up.
_NOT_UP = {
    _I.AGREED: Transition(_STAY, (_A.CARRY,)),
    _I.UP: Transition(_S.UP, (_A.CARRY, _A.CARRIER_ON)),
    _I.DOWN: Transition(_S.DOWN, (_A.CARRIER_OFF,)),
    _I.UNANSWERED: Transition(_SEEKING),
    _I.REJECTED: Transition(_S.REJECTED),
    _I.REMOTE_DISABLED: Transition(_S.DOWN),
    _I.CLOSED: Transition(_S.DOWN, (_A.CARRIER_OFF, _A.SEEK)),
    _I.DELETED: Transition(_STAY, (_A.REMOVE,)),
    _I.SWITCHED: Transition(_ByHistory(_S.RESOLVING, _S.DOWN), _SWITCH_ACTIONS),
    _I.NO_ROUTE: Transition(_S.DOWN),
    _I.CUT_OFF: _CUT_OFF,
    _I.FAILED: _FAIL,
    _I.BROKEN: _BREAK,
    _I.MENDED: Transition(_STAY),
    _I.DISABLE: _DISABLE,
}

WITH_SIGNALING: Table = {
    **_in_states((_S.RESOLVING, _S.CONNECTING, _S.DOWN, _S.REJECTED), _NOT_UP),
    (_S.RESOLVING, _I.START): Transition(_S.RESOLVING, (_A.RESOLVE, _A.SEEK)),
    (_S.RESOLVING, _I.ACCEPT): Transition(_S.CONNECTING),
    (_S.RESOLVING, _I.RESUME): Transition(_S.UP, (_A.CARRY, _A.CARRIER_ON)),
    (_S.RESOLVING, _I.UNRESOLVED): Transition(_S.RESOLVING),
    (_S.RESOLVING, _I.ROUTED): Transition(_SEEKING),
    (_S.RESOLVING, _I.AWAITS): Transition(_SEEKING),
    (_S.CONNECTING, _I.AWAITS): Transition(_STAY),
    # Why it is down says more.
    (_S.DOWN, _I.AWAITS): Transition(_STAY, (_A.SEEK,)),
    (_S.REJECTED, _I.AWAITS): Transition(_STAY),
    (_S.UP, _I.AWAITS): Transition(_STAY, (_A.FOLLOW_ROUTE,)),
    # The last address stays in use while the name does not resolve.
    (_S.CONNECTING, _I.UNRESOLVED): Transition(_ByHistory(_S.RESOLVING, _STAY)),
    (_S.CONNECTING, _I.ROUTED): Transition(_STAY),
    (_S.DOWN, _I.UNRESOLVED): Transition(_ByHistory(_S.RESOLVING, _STAY)),
    # After CUT_OFF the session is at rest.
    (_S.DOWN, _I.ROUTED): Transition(_ByHistory(_S.CONNECTING, _STAY), (_A.SEEK,)),
    (_S.REJECTED, _I.UNRESOLVED): Transition(_ByHistory(_S.RESOLVING, _STAY)),
    (_S.REJECTED, _I.ROUTED): Transition(_STAY),
    #
    (_S.UP, _I.UNRESOLVED): Transition(_STAY),
    # The session goes down by itself when nothing arrives any more.
    (_S.UP, _I.NO_ROUTE): Transition(_STAY),
    (_S.UP, _I.ROUTED): Transition(_STAY, (_A.FOLLOW_ROUTE,)),
    (_S.UP, _I.CUT_OFF): _CUT_OFF,
    # Who is at the other end changes: routing daemons and neighbours begin anew.
    (_S.UP, _I.SWITCHED): Transition(_S.DOWN, _SWITCH_ACTIONS),
    (_S.UP, _I.AGREED): Transition(_STAY, (_A.CARRY, _A.CARRIER_ON)),
    # Of the session that took the place of another one.
    (_S.UP, _I.UP): Transition(_STAY, (_A.CARRY, _A.CARRIER_ON)),
    (_S.UP, _I.DOWN): Transition(_S.DOWN, (_A.CARRIER_OFF,)),
    (_S.UP, _I.CLOSED): Transition(_S.DOWN, (_A.CARRIER_OFF, _A.SEEK)),
    (_S.UP, _I.DELETED): Transition(_STAY, (_A.REMOVE,)),
    (_S.UP, _I.FAILED): _FAIL,
    (_S.UP, _I.BROKEN): _BREAK,
    (_S.UP, _I.MENDED): Transition(_STAY),
    (_S.UP, _I.DISABLE): _DISABLE,
    #
    **_in_states((_S.FAILED,), _NOT_UP),
    (_S.FAILED, _I.UNRESOLVED): Transition(_STAY),
    (_S.FAILED, _I.NO_ROUTE): Transition(_S.DOWN, (_A.SEEK,)),
    (_S.FAILED, _I.ROUTED): Transition(_SEEKING, (_A.CARRY, _A.SEEK)),
    (_S.FAILED, _I.AWAITS): Transition(_SEEKING, (_A.SEEK,)),
    # A suspended session accepts a request that differs from the one that failed.
    (_S.FAILED, _I.AGREED): Transition(_SEEKING, (_A.CARRY,)),
    (_S.FAILED, _I.FAILED): Transition(_S.FAILED, (_A.SUSPEND, _A.RESOLVE_SOON)),
    #
    (_S.BROKEN, _I.MENDED): Transition(_SEEKING, (_A.CARRY, _A.SEEK)),
    (_S.BROKEN, _I.BROKEN): Transition(_TAKE_REASON, (_A.SUSPEND,)),
    (_S.BROKEN, _I.AGREED): Transition(_STAY, (_A.SUSPEND,)),
    (_S.BROKEN, _I.UP): Transition(_STAY, (_A.SUSPEND,)),
    (_S.BROKEN, _I.DISABLE): _DISABLE,
    (_S.BROKEN, _I.DELETED): Transition(_STAY, (_A.REMOVE,)),
    **_in_states(
        (_S.BROKEN,),
        dict.fromkeys(
            (
                _I.UNRESOLVED,
                _I.NO_ROUTE,
                _I.ROUTED,
                _I.AWAITS,
                _I.CUT_OFF,
                _I.DOWN,
                _I.UNANSWERED,
                _I.REJECTED,
                _I.REMOTE_DISABLED,
                _I.FAILED,
            ),
            Transition(_STAY),
        ),
    ),
    (_S.BROKEN, _I.CLOSED): Transition(_STAY, (_A.SEEK, _A.SUSPEND)),
    (_S.BROKEN, _I.SWITCHED): Transition(_STAY, (_A.RELEASE, _A.SEEK, _A.SUSPEND)),
    #
    (_S.DISABLED, _I.ENABLE): Transition(_S.RESOLVING, (_A.RESOLVE, _A.SEEK)),
    (_S.DISABLED, _I.BROKEN): Transition(_TAKE_REASON),
    (_S.DISABLED, _I.MENDED): Transition(_TAKE_REASON),
}
"""For circuits with signalling."""

_STATIC_FAIL = Transition(_S.FAILED, (_A.RELEASE, _A.CARRIER_OFF, _A.RESOLVE_SOON))
_STATIC = {
    _I.ROUTED: Transition(_S.UNMONITORED, (_A.CARRY, _A.CARRIER_ON)),
    _I.NO_ROUTE: Transition(_S.DOWN, (_A.RELEASE, _A.CARRIER_OFF)),
    _I.CUT_OFF: Transition(_S.DOWN, (_A.RELEASE, _A.CARRIER_OFF, _A.RESOLVE_SOON)),
    _I.UNRESOLVED: Transition(_S.RESOLVING),
    _I.FAILED: _STATIC_FAIL,
    _I.BROKEN: Transition(_S.BROKEN, (_A.CARRIER_OFF,)),
    _I.MENDED: Transition(_STAY),
    _I.DISABLE: Transition(_S.DISABLED, (_A.RELEASE, _A.CARRIER_OFF, _A.RESOLVE)),
}

STATIC: Table = {
    **_in_states((_S.RESOLVING, _S.DOWN, _S.FAILED, _S.UNMONITORED, _S.BROKEN), _STATIC),
    (_S.RESOLVING, _I.START): Transition(_S.RESOLVING, (_A.RESOLVE,)),
    (_S.RESOLVING, _I.RESUME): Transition(_S.UNMONITORED, (_A.CARRY, _A.CARRIER_ON)),
    # The last address stays in use.
    (_S.UNMONITORED, _I.UNRESOLVED): Transition(_STAY),
    (_S.BROKEN, _I.ROUTED): Transition(_STAY),
    (_S.BROKEN, _I.NO_ROUTE): Transition(_STAY),
    (_S.BROKEN, _I.CUT_OFF): Transition(_STAY),
    (_S.BROKEN, _I.UNRESOLVED): Transition(_STAY),
    (_S.BROKEN, _I.FAILED): Transition(_STAY),
    (_S.BROKEN, _I.BROKEN): Transition(_TAKE_REASON),
    (_S.BROKEN, _I.MENDED): Transition(_S.RESOLVING, (_A.REUSE_PATH,)),
    #
    (_S.DISABLED, _I.ENABLE): Transition(_S.RESOLVING, (_A.RESOLVE,)),
    (_S.DISABLED, _I.BROKEN): Transition(_TAKE_REASON),
    (_S.DISABLED, _I.MENDED): Transition(_TAKE_REASON),
}
"""For circuits without signalling, configured on both ends."""


class Lifecycle:
    """The state of one circuit, and the reason for it."""

    def __init__(self, *, static: bool) -> None:
        self.state = State.RESOLVING
        self.reason = NO_REASON
        self._table = STATIC if static else WITH_SIGNALING
        self._was_up = False

    def take(self, happened: Input, reason: Reason = NO_REASON) -> Step:
        """Take an input. Return the next state and the actions to carry out.

        Raises RuntimeError if the table has no such pair.
        """
        transition = self._table.get((self.state, happened))
        if transition is None:
            raise RuntimeError(f"{happened.name} in {self.state.name}")
        following = transition.next
        if isinstance(following, _ByHistory):
            following = following.after if self._was_up else following.before
        if isinstance(following, State):
            self.state = following
            self.reason = reason
        elif following is _TAKE_REASON:
            self.reason = reason
        if self.state is State.UP:
            self._was_up = True
        return Step(self.state, self.reason, transition.actions)
