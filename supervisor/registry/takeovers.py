"""Whether a machine is still at the address of a circuit that it asks for from another one.

Its token says that it is the same machine, and is no proof (docs/protocol.md, 4.10): who has read
it, or has a copy of the machine's files, can say it, too. So a circuit that is up is not given
away while its remote is heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vela.signaling.events import CircuitRequested

from ..circuit.circuit import Circuit
from ..runtime.loop import EventLoop

ASK_S = 0.25
TIMES = 4
"""The remote is asked so often, at this interval, and has one more to answer: four lost messages in
a row are no address that is gone, and a renumbered machine waits for a second."""

KNOWN_S = 2.0
"""How long what was found out is true: the machine repeats its CONFIRM."""

_SIZE = 128  # of a PROBE: no probe of the path has it


@dataclass(slots=True)
class _Question:
    """Of one circuit."""

    circuit: Circuit
    requested: CircuitRequested
    """What is to be decided."""
    nonces: tuple[int, ...]
    """Of the session whose remote is asked."""
    asked_at: float
    asked: int = 0
    decided_at: float | None = None

    @property
    def is_heard(self) -> bool:
        """Whether the remote was heard since, or another session began."""
        session = self.circuit.session
        if session is None or session.local_nonces[:1] != self.nonces:
            return True
        return session.last_heard_at is not None and session.last_heard_at > self.asked_at


class Takeovers:
    """Asks the remote of a circuit that is up, before its machine gets it at another address."""

    def __init__(self, loop: EventLoop, decide: Callable[[CircuitRequested], None]) -> None:
        """decide: to be called with what must_wait() was given, once it need not."""
        self._loop = loop
        self._decide = decide
        self._questions: dict[str, _Question] = {}

    def must_wait(self, circuit: Circuit, requested: CircuitRequested) -> bool:
        """Ask the remote of a circuit that is up, unless what it answers is known."""
        question = self._questions.get(circuit.name)
        if question is not None and question.circuit is circuit:
            if question.decided_at is None:
                question.requested = requested
                return True
            if self._loop.now() - question.decided_at < KNOWN_S:
                return False
        session = circuit.session
        if session is None:
            return False
        nonces = session.local_nonces[:1]
        begun = _Question(circuit, requested, nonces, self._loop.now())
        self._questions[circuit.name] = begun
        self._ask(begun)
        return True

    def are_silent(self) -> frozenset[str]:
        """Return the names of the circuits whose remotes did not answer."""
        now = self._loop.now()
        return frozenset(
            name
            for name, question in self._questions.items()
            if question.decided_at is not None
            and now - question.decided_at < KNOWN_S
            and not question.is_heard
        )

    def _ask(self, question: _Question) -> None:
        if self._questions.get(question.circuit.name) is not question:
            return
        if not question.is_heard and question.asked < TIMES:
            question.asked += 1
            question.circuit.ask_remote(_SIZE)
            self._loop.call_later(ASK_S, lambda: self._ask(question))
            return
        question.decided_at = self._loop.now()
        self._loop.call_later(KNOWN_S, lambda: self._forget(question))
        self._decide(question.requested)

    def _forget(self, question: _Question) -> None:
        if self._questions.get(question.circuit.name) is question:
            del self._questions[question.circuit.name]
