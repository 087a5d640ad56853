"""Circuits that cannot be created at present: the reasons, and when they are tried again."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from vela.address import Remote
from vela.errors import VelaError
from vela.reasons import NO_REASON, Reason, reason_of

from ..circuit.lifecycle import State
from ..circuit.remotes import STANDS_BY
from ..circuit.setup import Origin
from ..circuit.terms import provisional_mtu
from ..config.records import CircuitConfig
from ..runtime.loop import EventLoop, Timer
from ..status import (
    NOT_MEASURED,
    CircuitStatus,
    CounterStatus,
    RateStatus,
    ReasonStatus,
    RemoteStatus,
)
from .store import StoredCircuit

# The obstacle, such as a taken interface name, goes when an operator acts.
RETRY_INTERVAL_S = 10.0

Maker = Callable[[StoredCircuit], None]
"""Raises VelaError."""


class PendingCircuits:
    """The circuits by name, with reasons. Each is tried again until it exists or is dropped."""

    def __init__(self, loop: EventLoop, port: int, make: Maker) -> None:
        """port: the one of remotes that name none."""
        self._loop = loop
        self._port = port
        self._make = make
        self._wanted: dict[str, tuple[StoredCircuit, Reason]] = {}
        self._since: dict[str, float] = {}
        self._timer: Timer | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._wanted

    def find(self, name: str) -> tuple[StoredCircuit, Reason] | None:
        """Return the circuit of this name, and why it could not be created."""
        return self._wanted.get(name)

    def reasons(self, origin: Origin) -> dict[str, str]:
        """Return why the circuits of an origin could not be created, by name."""
        return {
            name: reason
            for name, (wanted, reason) in self._wanted.items()
            if wanted.origin is origin
        }

    def add(self, wanted: StoredCircuit, error: VelaError | None = None) -> None:
        """Add a circuit that could not be created; without an error, one not tried yet."""
        reason = NO_REASON if error is None else reason_of(error)
        self._wanted[wanted.config.name] = (wanted, reason)
        self._since.setdefault(wanted.config.name, self._loop.now())
        if self._timer is None:
            self._timer = self._loop.call_later(RETRY_INTERVAL_S, self._on_timer)

    def drop(self, name: str) -> None:
        self._wanted.pop(name, None)
        self._since.pop(name, None)

    def retry(self) -> None:
        """Try all now."""
        for name in tuple(self._wanted):
            self.retry_one(name)

    def retry_one(self, name: str) -> None:
        """Try a circuit now, if it is still wanted."""
        if name not in self._wanted:
            return
        wanted, before = self._wanted[name]
        try:
            self._make(wanted)
        except VelaError as err:
            reason = reason_of(err)
            if reason != before:
                structlog.get_logger().error("circuit_not_started", circuit=name, error=str(reason))
            self._wanted[name] = (wanted, reason)
        else:
            self.drop(name)

    def wanted(self) -> dict[str, tuple[CircuitConfig, Origin]]:
        """Return the circuits, by name, and their origins."""
        return {name: (each.config, each.origin) for name, (each, _) in self._wanted.items()}

    def makers(self) -> dict[str, bytes | None]:
        """Return which machines set up what is wanted, by name; None: this one, or unknown."""
        return {name: each.maker for name, (each, _) in self._wanted.items()}

    def status(self) -> tuple[CircuitStatus, ...]:
        now = self._loop.now()
        loss, delay_ms = NOT_MEASURED
        return tuple(
            CircuitStatus(
                name=wanted.config.name,
                id=wanted.config.id,
                origin=wanted.origin.value,
                description=wanted.config.description,
                state=State.FAILED.value,
                reason=str(reason),
                reason_code=reason.code,
                reasons=ReasonStatus.of((reason,) if reason else ()),
                since_seconds=round(now - self._since[wanted.config.name], 3),
                transitions=0,
                remote=str(wanted.config.remote),
                remotes=_remotes(wanted.config.remote, reason),
                remote_address=None,
                remote_port=_port_of(wanted.config.remote, self._port),
                family=None,
                mtu=wanted.config.mtu or provisional_mtu(wanted.config),
                path_mtu=None,
                source_port=None,
                encapsulation=wanted.config.encapsulation.value,
                elision=False,
                encryption=wanted.config.encryption.value,
                cipher=None,
                asking=None,
                rtt_ms=None,
                last_heard_seconds=None,
                loss=loss,
                delay_ms=delay_ms,
                rates=RateStatus.unknown(),
                worker=None,
                counters=CounterStatus.zero(),
            )
            for wanted, reason in self._wanted.values()
        )

    def _on_timer(self) -> None:
        self._timer = None
        self.retry()
        if self._wanted:
            self._timer = self._loop.call_later(RETRY_INTERVAL_S, self._on_timer)


def _port_of(remote: Remote, port: int) -> int | None:
    return None if remote.is_any else remote.port or port


def _remotes(remote: Remote, reason: str) -> tuple[RemoteStatus, ...]:
    primary, *standbys = map(str, remote.all)
    return (
        RemoteStatus(primary, State.FAILED.value, current=True, reason=reason),
        *(RemoteStatus(each, STANDS_BY, current=False, reason="") for each in standbys),
    )
