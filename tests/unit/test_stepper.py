"""In which order a circuit's inputs and actions come, and what a failing action does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vela.errors import DeviceError
from vela.reasons import NO_REASON, Reason
from vela.supervisor.circuit.lifecycle import Action, Input, State
from vela.supervisor.circuit.stepper import Stepper


class Steps:
    """A stepper, what it had carried out, and the states that followed."""

    def __init__(self, *, static: bool = False) -> None:
        self.done: list[Action] = []
        self.followed: list[tuple[Input, State]] = []
        self.on: dict[Action, Callable[[], None]] = {}
        self.stepper = Stepper(self._carry_out, self._on_step, static=static)

    def _carry_out(self, action: Action) -> None:
        self.done.append(action)
        self.on.get(action, lambda: None)()

    def _on_step(self, happened: Input, _: Reason) -> None:
        self.followed.append((happened, self.stepper.state))


def test_actions_of_an_input_are_carried_out_before_those_that_arrive_meanwhile() -> None:
    steps = Steps()
    steps.on[Action.RESOLVE] = lambda: steps.stepper.take(Input.ROUTED)

    steps.stepper.take(Input.START)

    assert steps.done[:2] == [Action.RESOLVE, Action.SEEK]
    assert steps.followed == [(Input.START, State.RESOLVING), (Input.ROUTED, State.CONNECTING)]


def test_action_that_fails_is_the_next_input_and_ends_its_step() -> None:
    steps = Steps()
    steps.stepper.take(Input.START)
    steps.stepper.take(Input.ROUTED)

    def agree_and_fail() -> None:
        steps.on.clear()
        steps.stepper.take(Input.UNRESOLVED)
        raise DeviceError("the kernel refuses")

    steps.on[Action.CARRY] = agree_and_fail
    steps.stepper.take(Input.AGREED)

    # What waited may assume a circuit that carries frames.
    assert steps.followed[2:] == [
        (Input.FAILED, State.FAILED),
        (Input.UNRESOLVED, State.FAILED),
    ]
    assert steps.stepper.reason == "the kernel refuses"


def test_stepper_that_is_paused_forgets_inputs() -> None:
    steps = Steps()
    steps.stepper.paused = True

    steps.stepper.take(Input.START)
    steps.stepper.paused = False

    assert steps.done == []
    steps.stepper.take(Input.START)
    assert steps.done == [Action.RESOLVE, Action.SEEK]


def test_stepper_that_is_stopped_in_an_action_carries_out_no_other() -> None:
    steps = Steps()

    def stop() -> None:
        steps.stepper.take(Input.ROUTED)
        steps.stepper.stop()

    steps.on[Action.RESOLVE] = stop
    steps.stepper.take(Input.START)

    assert steps.done == [Action.RESOLVE]
    assert steps.followed == []
    steps.stepper.take(Input.DISABLE)
    assert steps.done == [Action.RESOLVE]


def test_bug_in_an_action_leaves_no_input_behind() -> None:
    steps = Steps()

    def break_down() -> None:
        steps.stepper.take(Input.ROUTED)
        raise ZeroDivisionError

    steps.on[Action.RESOLVE] = break_down
    with pytest.raises(ZeroDivisionError):
        steps.stepper.take(Input.START)
    steps.on.clear()

    steps.stepper.take(Input.NO_ROUTE, Reason("no route", "no_route"))

    assert [happened for happened, _ in steps.followed] == [Input.NO_ROUTE]


def test_stepper_that_begins_anew_is_in_the_state_of_a_circuit_that_was_made() -> None:
    steps = Steps()
    steps.stepper.take(Input.START)
    steps.stepper.take(Input.ROUTED)

    steps.stepper.begin_anew(static=True)

    assert (steps.stepper.state, steps.stepper.reason) == (State.RESOLVING, NO_REASON)
    steps.stepper.take(Input.START)
    steps.stepper.take(Input.ROUTED)
    assert steps.stepper.state is State.UNMONITORED
