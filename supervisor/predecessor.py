"""The velad that runs, and that this one takes over from: `velad --replace`. See succession."""

from __future__ import annotations

import json
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from vela.errors import ConfigError, DeviceError, VelaError

from .circuit.setup import Origin
from .circuit.standing import Standing
from .config.reader import parse_circuits
from .config.records import CircuitConfig, Config, DaemonConfig
from .inheritance import Inheritance
from .runtime.loop import EventLoop
from .succession import AT_ONCE, METRICS, VERSION

LIMIT_S = 5.0
"""For each answer of the velad that runs, until it has handed everything over."""
AT_A_TIME = 2
"""Workers that end at the same time. A fork takes 5 ms, and the forks come one after the other."""
END_S = 1.0
"""From when it closes the channel to its end, which follows at once."""
# A worker dies with its supervisor (PR_SET_PDEATHSIG), a moment later.
LAST_WORKER_S = 0.1
_MAX_MESSAGE = 1 << 18


class Predecessor:
    """A velad that runs. It goes on as before if this object is closed before take_over()."""

    def __init__(self, daemon: DaemonConfig) -> None:
        """Ask the velad at the control socket. Raises VelaError."""
        self.inheritance = Inheritance()
        self.standings: dict[str, Standing] = {}
        self.pid = 0
        self._daemon = daemon
        self._managed = False
        self._loop: EventLoop | None = None
        self._done: Callable[[], object] = lambda: None
        self._waiting: deque[str] = deque()
        self._ending: dict[str, list[Callable[[], object]]] = {}
        self._ended: set[str] = set()
        self._circuits: set[str] = set()
        self._log = structlog.get_logger()
        self._channel = self._ask()
        self._channel.settimeout(LIMIT_S)
        try:
            self._process = os.pidfd_open(self.pid)
        except OSError as err:
            self._channel.close()
            raise DeviceError(
                f"the running velad, {self.pid}, is not there: {err.strerror}"
            ) from err

    def _ask(self) -> socket.socket:
        """Return the channel. Raises VelaError."""
        path = self._daemon.control_socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(LIMIT_S)
            try:
                asking.connect(str(path))
                asking.sendall(json.dumps({"command": "replace", "version": VERSION}).encode())
                asking.sendall(b"\n")
                data, fds, _, _ = socket.recv_fds(asking, _MAX_MESSAGE, 1)
            except TimeoutError:
                raise DeviceError(_silent(path)) from None
            except OSError as err:
                raise DeviceError(
                    f"there is no velad to replace at {path}: {err.strerror}; "
                    "start one without --replace"
                ) from err
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {"error": "it answers nonsense"}
        if fds and "error" not in answer:
            self.pid = int(answer.get("pid", 0))
            return socket.socket(fileno=fds[0])
        for fd in fds:
            os.close(fd)
        why = str(answer.get("error", "it hands nothing over"))
        if "does not understand" in why:
            why = "it is too old for that; restart velad instead"
        raise DeviceError(f"the running velad is not replaced: {why}")

    def receive(self, config: Config, environment: MutableMapping[str, str]) -> Config:
        """Take what it has. Return the configuration to begin with: that of its circuits.

        environment: gets the service manager of the other, if it has none. Raises VelaError.
        """
        descriptors: dict[str, int] = {}
        circuits: dict[str, tuple[CircuitConfig, Origin]] = {}
        metrics: object = None
        self._tell({"go": True})
        try:
            while True:
                message, fds = self._hear()
                match message:
                    case {"daemon": dict(daemon), "environment": dict(manager)}:
                        self._check(daemon)
                        metrics = daemon.get("metrics")
                        self._inherit_manager(manager, environment)
                    case {"descriptors": list(names)} if len(names) == len(fds):
                        descriptors |= dict(zip(map(str, names), fds, strict=True))
                    case {"circuit": str(name), "settings": dict(settings), "origin": origin}:
                        circuits[name] = self._parse(name, settings), Origin(origin)
                        if message.get("standing") is not None:
                            self.standings[name] = Standing.parse(message["standing"])
                    case {"end": True}:
                        break
                    case _:
                        raise DeviceError(f"the running velad says {message}")
        except (KeyError, TypeError, ValueError) as err:
            raise DeviceError(f"the running velad says what is not understood: {err}") from err
        finally:
            self.inheritance = Inheritance(
                descriptors, {name: each for name, (each, _) in circuits.items()}
            )
        self._circuits = set(circuits)
        if metrics != (None if config.daemon.metrics is None else str(config.daemon.metrics)):
            self.inheritance.drop(METRICS)
        for name, standing in self.standings.items():
            self.inheritance.receives_on(name, standing.member, standing.index, *standing.further)
        self.inheritance.end_worker = self.end_worker
        of_file = tuple(each for each, origin in circuits.values() if origin is Origin.CONFIG)
        return replace(config, circuits=of_file)

    def close(self) -> None:
        """Let it go on."""
        self.inheritance.close()
        self._channel.close()
        os.close(self._process)

    def fail(self, why: str) -> None:
        """Let it go on, and tell it why."""
        with suppress(OSError):
            self._channel.send(json.dumps({"failed": why}).encode())
        self.close()

    def take_over(
        self, loop: EventLoop, going_on: Collection[str], done: Callable[[], object]
    ) -> None:
        """Let its workers end one after the other, as circuits have others to take their place.

        going_on: the circuits that ask for that themselves. done is called when it has ended.
        """
        self._loop, self._done = loop, done
        loop.watch(self._channel.fileno(), self._on_message)
        asked, self._ending = self._ending, {}
        for name, callbacks in asked.items():
            for callback in callbacks:
                self.end_worker(name, callback)
        for name in self._circuits.difference(going_on):
            self.end_worker(name, lambda: None)
        self._finish_if_due()

    def end_worker(self, circuit: str, gone: Callable[[], object]) -> None:
        """End a circuit's worker, and call gone then. Until take_over() nothing is ended."""
        if circuit in self._ended:
            gone()
            return
        first = circuit not in self._ending
        self._ending.setdefault(circuit, []).append(gone)
        if first and self._loop is not None:
            self._waiting.append(circuit)
            self._go_on()

    def _go_on(self) -> None:
        under_way = len(self._ending) - len(self._waiting)
        while self._waiting and under_way < AT_A_TIME:
            under_way += 1
            try:
                self._channel.send(json.dumps({"release": self._waiting.popleft()}).encode())
            except OSError as err:
                self._log.error("predecessor_not_told", error=str(err))

    def _on_message(self) -> None:
        try:
            message, _ = self._hear()
        except VelaError as err:
            self._on_end(str(err))
            return
        name = str(message.get("released", ""))
        self._end(name)
        self._go_on()
        self._finish_if_due()

    def _end(self, name: str) -> None:
        self._ended.add(name)
        for gone in self._ending.pop(name, ()):
            gone()

    def _finish_if_due(self) -> None:
        if self._ended >= self._circuits:
            with suppress(OSError):
                self._channel.send(json.dumps({"done": self._managed}).encode())

    def _on_end(self, why: str) -> None:
        """Go on alone, if it has ended; it is not to be told any more."""
        loop = self._loop
        assert loop is not None
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        if not poll.poll(END_S * 1000):
            # It took this velad for dead, and has what this one was about to have.
            self._log.error("predecessor_goes_on", pid=self.pid, reason=why)
            os._exit(1)
        os.close(self._process)
        loop.unwatch(self._channel.fileno())
        self._channel.close()
        early = self._circuits - self._ended
        if early:
            self._log.error("predecessor_ended_early", pid=self.pid, reason=why)

        def finish() -> None:
            for name in early:
                self._end(name)
            self._done()

        loop.call_later(LAST_WORKER_S if early else 0.0, finish)

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError as err:
            raise DeviceError(f"the running velad cannot be told: {err}") from err

    def _hear(self) -> tuple[dict[str, Any], list[int]]:
        """Return the next message and its descriptors. Raises VelaError."""
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, _MAX_MESSAGE, AT_ONCE)
        except TimeoutError:
            raise DeviceError(_silent(self._daemon.control_socket)) from None
        except OSError as err:
            raise DeviceError(f"the running velad is not heard: {err}") from err
        for fd in fds:
            os.set_inheritable(fd, False)
        try:
            message = json.loads(data) if data else None
        except ValueError as err:
            raise DeviceError(f"the running velad says nonsense: {err}") from err
        if not isinstance(message, dict):
            raise DeviceError("the running velad ended, or gave up")
        return message, fds

    def _check(self, daemon: Mapping[str, object]) -> None:
        """Raise ConfigError where what cannot be taken over is to be another one."""
        own = self._daemon
        wanted = {
            "listen": [str(each) for each in own.listen],
            "port": own.port,
            "state_directory": str(own.state_directory),
        }
        differ = [f"daemon.{key}" for key, value in wanted.items() if daemon.get(key) != value]
        if differ:
            raise ConfigError(f"{', '.join(differ)} changed; restart velad for that to take effect")

    def _parse(self, name: str, settings: dict[str, object]) -> CircuitConfig:
        (config,) = parse_circuits({name: settings}, self._daemon, "the running velad")
        return config

    def _inherit_manager(
        self, manager: Mapping[str, object], environment: MutableMapping[str, str]
    ) -> None:
        if manager and "NOTIFY_SOCKET" not in environment:
            self._managed = True
            environment.pop("WATCHDOG_PID", None)
            environment.update({name: str(value) for name, value in manager.items()})


def _silent(path: object) -> str:
    return f"the velad at {path} does not answer within {LIMIT_S:g} s; it is not replaced"
