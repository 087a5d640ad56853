"""What the status says of one circuit."""

from __future__ import annotations

from typing import Protocol

from vela.address import Endpoint, Remote
from vela.dataplane.frame import Elision
from vela.reasons import Reason, joined
from vela.signaling.session import Session

from ..config.records import CircuitConfig
from ..status import CircuitStatus, RateStatus, ReasonStatus, RemoteStatus, milliseconds
from .data_path import DataPath
from .dialogue import Dialogue
from .frame_watch import FrameWatch
from .lifecycle import State
from .setup import Origin
from .transitions import Transitions


class Reported(Protocol):
    """A circuit."""

    origin: Origin

    @property
    def config(self) -> CircuitConfig: ...

    @property
    def state(self) -> State: ...

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it has its state, and what it still waits for."""

    @property
    def remote(self) -> Remote:
        """The one in use."""

    @property
    def session(self) -> Session | None:
        """None: it is static."""

    def remotes(self) -> tuple[RemoteStatus, ...]: ...

    def rates(self) -> RateStatus: ...


def report(
    circuit: Reported,
    dialogue: Dialogue,
    data_path: DataPath,
    frames: FrameWatch,
    transitions: Transitions,
    *,
    now: float,
    port: int,
) -> CircuitStatus:
    """Return a circuit's status. port: of a remote that names none."""
    config, session = circuit.config, circuit.session
    path, profile = data_path.attached or (None, None)
    endpoint = None if path is None else path.endpoint
    heard_at = None if session is None else session.last_heard_at
    reasons = circuit.reasons
    reason = joined(reasons)
    return CircuitStatus(
        name=config.name,
        id=config.id,
        origin=circuit.origin.value,
        description=config.description,
        state=circuit.state.word,
        reason=str(reason),
        reason_code=reason.code,
        reasons=ReasonStatus.of(reasons),
        since_seconds=round(transitions.since_s(now), 3),
        transitions=transitions.count(now),
        remote=str(circuit.remote),
        remotes=circuit.remotes(),
        remote_address=None if endpoint is None else str(endpoint.address),
        remote_port=_remote_port(circuit.remote, endpoint, port),
        family=None if endpoint is None else endpoint.family.value,
        mtu=data_path.mtu,
        path_mtu=None if path is None else path.mtu,
        source_port=data_path.frame_port,
        encapsulation=config.encapsulation.value,
        elision=profile is not None and profile.elision is not Elision.NEVER,
        encryption=config.encryption.value,
        cipher=dialogue.cipher_status(),
        asking=dialogue.asking_status(),
        rtt_ms=milliseconds(None if session is None else session.rtt_s),
        last_heard_seconds=None if heard_at is None else round(now - heard_at, 3),
        loss=frames.loss(),
        delay_ms=frames.delays.status(),
        rates=circuit.rates(),
        worker=data_path.worker_status(),
        counters=data_path.counter_status(),
    )


def _remote_port(remote: Remote, endpoint: Endpoint | None, port: int) -> int | None:
    if endpoint is not None:
        return endpoint.port
    return None if remote.is_any else remote.port or port
