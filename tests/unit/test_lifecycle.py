"""The lifecycle's tables: every pair of state and input, what holds for all, and some walks."""

from __future__ import annotations

from itertools import product

import pytest

from vela.reasons import Reason
from vela.supervisor.circuit.lifecycle import (
    STATIC,
    WITH_SIGNALING,
    Action,
    Input,
    Lifecycle,
    State,
    Step,
    Table,
)

S, In, A = State, Input, Action

SESSION_INPUTS = {
    In.AGREED,
    In.UP,
    In.DOWN,
    In.UNANSWERED,
    In.REJECTED,
    In.REMOTE_DISABLED,
    In.CLOSED,
    In.DELETED,
    In.SWITCHED,
}
SEARCH_INPUTS = {In.UNRESOLVED, In.NO_ROUTE, In.ROUTED, In.AWAITS, In.CUT_OFF}
BEGINNINGS = {In.START, In.ACCEPT, In.RESUME, In.ENABLE}

# What cannot happen, by state. Everything else must be in the table.
IMPOSSIBLE_WITH_SIGNALING = {
    S.RESOLVING: {In.ENABLE},
    S.CONNECTING: BEGINNINGS,
    S.DOWN: BEGINNINGS,
    S.REJECTED: BEGINNINGS,
    # A session that is up says DOWN before anything else of these.
    S.UP: BEGINNINGS | {In.UNANSWERED, In.REJECTED, In.REMOTE_DISABLED},
    S.FAILED: BEGINNINGS,
    S.BROKEN: BEGINNINGS,
    # Signalling has said goodbye, and the search is paused.
    S.DISABLED: SESSION_INPUTS
    | SEARCH_INPUTS
    | {In.START, In.ACCEPT, In.RESUME, In.FAILED, In.DISABLE},
    S.UNMONITORED: set(In),
}
IMPOSSIBLE_FOR_STATIC = {
    S.RESOLVING: SESSION_INPUTS | {In.ACCEPT, In.ENABLE, In.AWAITS},
    S.DOWN: SESSION_INPUTS | BEGINNINGS | {In.AWAITS},
    S.UNMONITORED: SESSION_INPUTS | BEGINNINGS | {In.AWAITS},
    S.FAILED: SESSION_INPUTS | BEGINNINGS | {In.AWAITS},
    S.BROKEN: SESSION_INPUTS | BEGINNINGS | {In.AWAITS},
    S.DISABLED: SESSION_INPUTS
    | SEARCH_INPUTS
    | {In.START, In.ACCEPT, In.RESUME, In.FAILED, In.DISABLE},
    S.CONNECTING: set(In),
    S.UP: set(In),
    S.REJECTED: set(In),
}

CARRYING = {S.UP, S.UNMONITORED}


def lifecycle_in(state: State, *, static: bool, was_up: bool) -> Lifecycle:
    lifecycle = Lifecycle(static=static)
    if was_up and not static:
        lifecycle.take(In.UP)
    lifecycle.state, lifecycle.reason = state, Reason("a reason from before")
    return lifecycle


def steps(*, static: bool) -> list[tuple[State, Input, bool, Step]]:
    """Return every step that there is: from, input, whether it was up before, and what follows."""
    table = STATIC if static else WITH_SIGNALING
    return [
        (state, happened, was_up, lifecycle_in(state, static=static, was_up=was_up).take(happened))
        for state, happened in table
        for was_up in (False, True)
    ]


@pytest.mark.parametrize(
    ("static", "table", "impossible"),
    [
        (False, WITH_SIGNALING, IMPOSSIBLE_WITH_SIGNALING),
        (True, STATIC, IMPOSSIBLE_FOR_STATIC),
    ],
)
def test_every_pair_is_in_the_table_or_impossible_and_raises(
    static: bool, table: Table, impossible: dict[State, set[Input]]
) -> None:
    for state, happened in product(State, Input):
        lifecycle = lifecycle_in(state, static=static, was_up=False)
        if happened in impossible[state]:
            assert (state, happened) not in table
            with pytest.raises(RuntimeError, match=f"{happened.name} in {state.name}"):
                lifecycle.take(happened)
            assert (lifecycle.state, lifecycle.reason) == (state, "a reason from before")
        else:
            assert (state, happened) in table
            lifecycle.take(happened)


@pytest.mark.parametrize("static", [False, True])
def test_every_state_in_the_table_can_be_reached_from_the_beginning(static: bool) -> None:
    table = STATIC if static else WITH_SIGNALING
    reached = {S.RESOLVING}
    while True:
        more = {step.state for state, _, _, step in steps(static=static) if state in reached}
        if more <= reached:
            break
        reached |= more

    assert reached == {state for state, _ in table}


@pytest.mark.parametrize("static", [False, True])
def test_carrier_goes_with_the_states_that_carry_frames(static: bool) -> None:
    for state, happened, _, (following, _, actions) in unpacked(static=static):
        if following in CARRYING and state not in CARRYING:
            assert actions == (A.CARRY, A.CARRIER_ON), (state, happened)
        if following not in CARRYING:
            assert A.CARRIER_ON not in actions, (state, happened)
        if state in CARRYING and following not in CARRYING:
            assert A.CARRIER_OFF in actions, (state, happened)


def test_remote_is_told_of_what_this_machine_cannot_carry_and_sought_again_after() -> None:
    suspended = {S.FAILED, S.BROKEN}
    for state, happened, _, (following, _, actions) in unpacked(static=False):
        if following in suspended and (
            state not in suspended or happened in (In.FAILED, In.BROKEN)
        ):
            ignored = state is S.BROKEN and happened is In.FAILED
            assert (A.SUSPEND in actions) is not ignored, (state, happened)
        if state in suspended and happened in (In.MENDED, In.ROUTED, In.NO_ROUTE):
            assert (A.SEEK in actions) is (following not in suspended), (state, happened)


@pytest.mark.parametrize("static", [False, True])
def test_failure_is_followed_by_another_try(static: bool) -> None:
    for state, happened, _, (following, _, actions) in unpacked(static=static):
        if happened is In.FAILED and following is S.FAILED:
            assert A.RESOLVE_SOON in actions, state
    table = STATIC if static else WITH_SIGNALING
    assert A.CARRY in table[S.FAILED, In.ROUTED].actions


@pytest.mark.parametrize("static", [False, True])
def test_operator_can_take_down_and_up_a_circuit_in_any_state(static: bool) -> None:
    for state in {state for state, _ in (STATIC if static else WITH_SIGNALING)} - {S.DISABLED}:
        lifecycle = lifecycle_in(state, static=static, was_up=True)

        down = lifecycle.take(In.DISABLE)
        up = lifecycle.take(In.ENABLE)

        assert down.state is S.DISABLED
        assert {A.RELEASE, A.CARRIER_OFF} <= set(down.actions)
        assert (A.LEAVE in down.actions) is not static
        assert up.state is S.RESOLVING
        assert A.RESOLVE in up.actions
        assert (A.SEEK in up.actions) is not static


@pytest.mark.parametrize(
    ("was_up", "state", "happened", "following", "reason", "actions"),
    [
        (False, S.RESOLVING, In.START, S.RESOLVING, "r", (A.RESOLVE, A.SEEK)),
        (False, S.RESOLVING, In.ROUTED, S.CONNECTING, "r", ()),
        (True, S.RESOLVING, In.ROUTED, S.DOWN, "r", ()),
        (False, S.RESOLVING, In.NO_ROUTE, S.DOWN, "r", ()),
        (False, S.DOWN, In.ROUTED, S.CONNECTING, "r", (A.SEEK,)),
        (True, S.DOWN, In.ROUTED, S.DOWN, "before", (A.SEEK,)),
        (
            *(True, S.UP, In.CUT_OFF, S.DOWN, "r"),
            (A.CARRIER_OFF, A.SUSPEND, A.RELEASE, A.RESOLVE_SOON),
        ),
        (True, S.BROKEN, In.CUT_OFF, S.BROKEN, "before", ()),
        (False, S.CONNECTING, In.UNANSWERED, S.CONNECTING, "r", ()),
        (True, S.CONNECTING, In.UNANSWERED, S.DOWN, "r", ()),
        (False, S.CONNECTING, In.UNRESOLVED, S.RESOLVING, "r", ()),
        (True, S.DOWN, In.UNRESOLVED, S.DOWN, "before", ()),
        (False, S.CONNECTING, In.AGREED, S.CONNECTING, "before", (A.CARRY,)),
        (False, S.CONNECTING, In.UP, S.UP, "r", (A.CARRY, A.CARRIER_ON)),
        (True, S.UP, In.NO_ROUTE, S.UP, "before", ()),
        (True, S.UP, In.ROUTED, S.UP, "before", (A.FOLLOW_ROUTE,)),
        (True, S.UP, In.AGREED, S.UP, "before", (A.CARRY, A.CARRIER_ON)),
        (True, S.UP, In.CLOSED, S.DOWN, "r", (A.CARRIER_OFF, A.SEEK)),
        (True, S.UP, In.DELETED, S.UP, "before", (A.REMOVE,)),
        (False, S.CONNECTING, In.REJECTED, S.REJECTED, "r", ()),
        (False, S.REJECTED, In.REMOTE_DISABLED, S.DOWN, "r", ()),
        (False, S.FAILED, In.NO_ROUTE, S.DOWN, "r", (A.SEEK,)),
        (False, S.FAILED, In.AGREED, S.CONNECTING, "r", (A.CARRY,)),
        (True, S.BROKEN, In.BROKEN, S.BROKEN, "r", (A.SUSPEND,)),
        (True, S.BROKEN, In.UP, S.BROKEN, "before", (A.SUSPEND,)),
        (True, S.BROKEN, In.MENDED, S.DOWN, "r", (A.CARRY, A.SEEK)),
        (True, S.DISABLED, In.BROKEN, S.DISABLED, "r", ()),
    ],
)
def test_step_with_signaling(
    was_up: bool,
    state: State,
    happened: Input,
    following: State,
    reason: str,
    actions: tuple[Action, ...],
) -> None:
    lifecycle = lifecycle_in(state, static=False, was_up=was_up)
    lifecycle.reason = Reason("before")

    assert lifecycle.take(happened, Reason("r")) == Step(following, Reason(reason), actions)
    assert (lifecycle.state, lifecycle.reason) == (following, reason)


@pytest.mark.parametrize(
    ("state", "happened", "following", "reason", "actions"),
    [
        (S.RESOLVING, In.START, S.RESOLVING, "r", (A.RESOLVE,)),
        (S.RESOLVING, In.ROUTED, S.UNMONITORED, "r", (A.CARRY, A.CARRIER_ON)),
        (S.UNMONITORED, In.UNRESOLVED, S.UNMONITORED, "before", ()),
        (S.UNMONITORED, In.NO_ROUTE, S.DOWN, "r", (A.RELEASE, A.CARRIER_OFF)),
        (
            *(S.UNMONITORED, In.CUT_OFF, S.DOWN, "r"),
            (A.RELEASE, A.CARRIER_OFF, A.RESOLVE_SOON),
        ),
        (S.DOWN, In.UNRESOLVED, S.RESOLVING, "r", ()),
        (S.UNMONITORED, In.FAILED, S.FAILED, "r", (A.RELEASE, A.CARRIER_OFF, A.RESOLVE_SOON)),
        (S.UNMONITORED, In.BROKEN, S.BROKEN, "r", (A.CARRIER_OFF,)),
        (S.BROKEN, In.ROUTED, S.BROKEN, "before", ()),
        (S.BROKEN, In.MENDED, S.RESOLVING, "r", (A.REUSE_PATH,)),
    ],
)
def test_step_of_a_static_circuit(
    state: State, happened: Input, following: State, reason: str, actions: tuple[Action, ...]
) -> None:
    lifecycle = lifecycle_in(state, static=True, was_up=False)
    lifecycle.reason = Reason("before")

    assert lifecycle.take(happened, Reason("r")) == Step(following, Reason(reason), actions)


def test_status_word_of_a_broken_circuit_is_failed() -> None:
    assert S.BROKEN.word == S.FAILED.word == "failed"
    assert {state.word for state in S} == {
        "resolving",
        "connecting",
        "up",
        "down",
        "rejected",
        "unmonitored",
        "disabled",
        "failed",
    }


def unpacked(
    *, static: bool
) -> list[tuple[State, Input, bool, tuple[State, str, tuple[Action, ...]]]]:
    return [
        (state, happened, was_up, (step.state, step.reason, step.actions))
        for state, happened, was_up, step in steps(static=static)
    ]


def test_circuit_that_is_called_waits_without_a_reason_of_its_own_and_says_why_it_went_down() -> (
    None
):
    lifecycle = Lifecycle(static=False)
    lifecycle.take(In.START)

    assert lifecycle.take(In.AWAITS) == Step(S.CONNECTING, Reason(""), ())
    lifecycle.take(In.AGREED)
    lifecycle.take(In.UP)
    # Each minute: the route may be another one.
    assert lifecycle.take(In.AWAITS).actions == (A.FOLLOW_ROUTE,)
    lifecycle.take(In.DOWN, Reason("keepalives missed", "keepalives_missed"))

    assert lifecycle.take(In.AWAITS) == Step(S.DOWN, Reason("keepalives missed"), (A.SEEK,))


def test_circuit_that_is_called_and_failed_takes_calls_again_after_a_while() -> None:
    lifecycle = Lifecycle(static=False)
    lifecycle.take(In.START)
    lifecycle.take(In.AWAITS)

    assert A.RESOLVE_SOON in lifecycle.take(In.FAILED, Reason("no room")).actions

    assert lifecycle.take(In.AWAITS) == Step(S.CONNECTING, Reason(""), (A.SEEK,))
