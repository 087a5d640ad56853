"""Feeds a circuit's lifecycle, an input at a time, and has its actions carried out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vela.errors import VelaError
from vela.reasons import NO_REASON, Reason, reason_of

from .lifecycle import Action, Input, Lifecycle, State


class Stepper:
    """A lifecycle at work. Inputs that arrive while actions are carried out wait."""

    def __init__(
        self,
        carry_out: Callable[[Action], None],
        on_step: Callable[[Input, Reason], None],
        *,
        static: bool,
    ) -> None:
        """carry_out may raise VelaError, which is the next input. on_step follows each that does
        not. static: see Lifecycle."""
        self._carry_out = carry_out
        self._on_step = on_step
        self._lifecycle = Lifecycle(static=static)
        self._inputs: deque[tuple[Input, Reason]] = deque()
        self._stepping = False
        self.paused = False
        """While true, inputs are forgotten."""
        self.stopped = False

    @property
    def state(self) -> State:
        return self._lifecycle.state

    @property
    def reason(self) -> Reason:
        return self._lifecycle.reason

    def begin_anew(self, *, static: bool) -> None:
        self._lifecycle = Lifecycle(static=static)

    def stop(self) -> None:
        """Carry out nothing any more."""
        self.stopped = True

    def take(self, happened: Input, reason: Reason = NO_REASON) -> None:
        """Take an input, and have its actions carried out."""
        if self.paused:
            return
        self._inputs.append((happened, reason))
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inputs and not self.stopped:
                self._step(*self._inputs.popleft())
        finally:
            self._inputs.clear()
            self._stepping = False

    def _step(self, happened: Input, reason: Reason) -> None:
        step = self._lifecycle.take(happened, reason)
        try:
            for action in step.actions:
                self._carry_out(action)
                if self.stopped:
                    return
        except VelaError as err:
            # Before the inputs that wait: they assume a circuit that carries frames.
            self._inputs.appendleft((Input.FAILED, reason_of(err)))
            return
        self._on_step(happened, reason)
