"""Whether a circuit's frames cross, and what follows: up, down, or from the listening port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vela.errors import VelaError
from vela.reasons import NO_REASON, Cause, Reason
from vela.signaling.agreement import Agreement
from vela.signaling.inputs import State as SessionState
from vela.signaling.session import Session
from vela.wire import CIRCUIT_ID, SEAL, datagram_limit

from ..config.records import CircuitConfig, Encapsulation
from ..runtime.loop import EventLoop
from ..status import LossStatus
from .data_path import DataPath
from .delays import DelayMeter
from .echoes import Answered, Echoes
from .history import History
from .lifecycle import Input, State

# For both ends to notice that frames do not cross, and to try it from the listening ports.
FALLBACK_S = 3.0
# For the other end to be told that it may seal answers.
KEYS_S = 0.05

# Before a static circuit asks: nothing waits for the answer, and a remote that is stopped or an
# older one is left alone at first.
STATIC_S = 10.0


class Watched(Protocol):
    """A circuit."""

    @property
    def config(self) -> CircuitConfig: ...

    @property
    def state(self) -> State: ...

    @property
    def session(self) -> Session | None:
        """None: it is static."""

    @property
    def agreement(self) -> Agreement | None: ...

    def apply_terms(self) -> None:
        """Tell the remote what this end offers now."""

    def announce(self) -> None:
        """Show the remote where this end is now, by a KEEPALIVE."""


class FrameWatch:
    """Asks the remote's worker, where that answers, as long as there is a session with it.

    A static circuit has no session. Its remote is asked, too, but only to measure.
    """

    def __init__(
        self,
        circuit: Watched,
        data_path: DataPath,
        loop: EventLoop,
        take: Callable[[Input, Reason], None],
        history: History,
    ) -> None:
        """take: takes UP, DOWN and UNANSWERED, of the circuit's lifecycle. history: see Echoes."""
        self._circuit = circuit
        self._data_path = data_path
        self._loop = loop
        self._take = take
        self._echoes = Echoes(
            loop, data_path.send_echo, self._carries, self.look, self._on_missing, history
        )
        # Since when both ends are to send from the listening ports, as frames do not cross.
        self._wanted_at: float | None = None
        data_path.set_echo_handler(self._echoes.take)

    @property
    def delays(self) -> DelayMeter:
        return self._echoes.delays

    def loss(self) -> LossStatus:
        return self._echoes.loss()

    def reported(self, arrived: int) -> None:
        """Take how many requests have reached the remote's worker, by what it says."""
        self._echoes.reported(arrived)

    @property
    def wants_listening(self) -> bool:
        """Whether frames do not cross from ports of their own, as far as is known here."""
        return self._wanted_at is not None

    @property
    def note(self) -> Reason:
        """What there is to say of a circuit that is up; empty: nothing."""
        return Cause.FROM_LISTENING_PORT.say() if self._falls_back else NO_REASON

    @property
    def awaited(self) -> bool:
        """Whether the circuit is not up before frames have crossed."""
        agreement = self._circuit.agreement
        demanded = agreement is not None and agreement.echo
        return demanded and self._circuit.state is not State.UP and not self._echoes.crosses

    def begin_anew(self) -> None:
        """Let frames leave from ports of their own again."""
        self._wanted_at = None

    def resume_listening(self) -> None:
        """Say that frames did not cross from ports of their own, as another velad has found."""
        self._wanted_at = self._loop.now()

    def session_lost(self) -> None:
        """To be called when the session goes down, before the circuit does."""
        if self._circuit.state is not State.UP:
            self._wanted_at = None  # it was of no use

    def stop(self) -> None:
        self._echoes.stop()

    def follow(self) -> None:
        """Ask, or ask no more; to be called when anything of the circuit may have changed."""
        circuit, attached = self._circuit, self._data_path.attached
        session, agreement = circuit.session, circuit.agreement
        if session is None and attached is not None and self._is_measurable:
            path, profile = attached
            self._echoes.watch(
                (path.endpoint, path.route.source, profile.source_port),
                circuit.config.id,
                circuit.config.keepalive,
                crosses=False,
                delay_s=STATIC_S,
                rarely=True,
            )
            return
        if (
            session is None
            or attached is None
            or agreement is None
            or not agreement.echo
            or self._data_path.has_former
            or session.state not in (SessionState.LINKED, SessionState.UP)
        ):
            self._echoes.stop()
            return
        path, profile = attached
        if profile.encrypted and not self._has_keys(session):
            self._echoes.stop()
            return
        self._echoes.watch(
            (session.local_nonces[0], path.endpoint, path.route.source, profile.source_port),
            circuit.config.id,
            agreement.keepalive_s,
            crosses=circuit.state is State.UP,
            delay_s=KEYS_S if profile.encrypted else 0.0,
        )

    def check(self) -> None:
        """Follow and look; to be called once a second."""
        self.follow()
        self.look()

    def look(self) -> None:
        """Go up when frames cross, and down when they do not."""
        circuit, echoes = self._circuit, self._echoes
        session = circuit.session
        if session is None or not echoes.running:
            return
        if echoes.crosses:
            if self.wants_listening and not self._falls_back:
                # The other end's worker was slow to start.
                self._want_listening(None)
            if circuit.state is not State.UP and session.state is SessionState.UP:
                self._take(Input.UP, NO_REASON)
        elif circuit.state is State.UP:
            self._take(Input.DOWN, Cause.FRAMES_BLOCKED.say())
        elif echoes.blocked and self._wanted_at is None:
            self._want_listening(self._loop.now())
        elif echoes.blocked and self._loop.now() >= (self._wanted_at or 0) + FALLBACK_S:
            self._take(Input.UNANSWERED, Cause.FRAMES_BLOCKED.say())

    def _on_missing(self) -> None:
        """Let a remote that follows this end know at once, if a NAT has given it another port."""
        agreement = self._circuit.agreement
        if agreement is not None and agreement.nat and self._circuit.state is State.UP:
            self._circuit.announce()

    def ping(self, size: int, answered: Answered) -> None:
        """Ask once; answered is called when the answer comes, if it does.

        size: in bytes, as of an IP packet whose Ethernet header is elided. Raises VelaError.
        """
        config, attached = self._circuit.config, self._data_path.attached
        if config.encapsulation is Encapsulation.IP:
            raise VelaError(f"{config.name}: a remote that takes only IP packets does not answer")
        if attached is None:
            raise VelaError(
                f"{config.name} carries no frames at present: {self._circuit.state.word}"
            )
        path, profile = attached
        most = datagram_limit(path.mtu, path.endpoint.family) - CIRCUIT_ID
        most -= SEAL if profile.encrypted else 0
        if size > most:
            raise VelaError(f"{config.name}: {size} bytes do not fit a datagram; {most} do")
        self._echoes.ask(config.id, answered, CIRCUIT_ID + size)

    @property
    def _is_measurable(self) -> bool:
        """Whether a static circuit's remote may answer. One that takes only IP packets does not."""
        circuit = self._circuit
        takes_frames = circuit.config.encapsulation is not Encapsulation.IP
        asks = takes_frames and not self._data_path.has_former
        return asks and circuit.state is State.UNMONITORED

    @property
    def _falls_back(self) -> bool:
        agreement = self._circuit.agreement
        return agreement is not None and agreement.from_listening and not agreement.nat

    def _has_keys(self, session: Session) -> bool:
        """Whether there are keys: the session's, or of the one that it follows without a gap."""
        return session.state is SessionState.UP or self._circuit.state is State.UP

    def _carries(self) -> bool:
        """Whether this end, at least, can carry frames."""
        session = self._circuit.session
        return self._data_path.carries and (session is None or self._has_keys(session))

    def _want_listening(self, since: float | None) -> None:
        """Say that both ends are to send frames from their listening ports; None: that not.

        Control messages cross there. Both ends do it when the other one says so, too.
        """
        self._wanted_at = since
        self._circuit.apply_terms()
