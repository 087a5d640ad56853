"""What the running velad does when another one takes over: `velad --replace`, the other side of it
is in predecessor.

A channel of its own (SOCK_SEQPACKET) carries JSON objects, and descriptors with some:

    successor                   this velad
    {"go": true}                freezes: its workers carry frames, and nothing else happens;
                                {"daemon": ...}, {"descriptors": [names]}, {"circuit": ...},
                                {"end": true}
    {"release": circuit}        ends the worker after its batch: {"released": circuit}
    {"done": ...}               ends without a word to anybody

If the channel ends before that, or the successor is too slow, this velad goes on.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import structlog

from vela import __version__
from vela.errors import DeviceError, VelaError

from .config.reader import format_circuit
from .config.records import DaemonConfig
from .control_socket import Caller, Connected, Hand
from .demux import Demux
from .inheritance import client_name, keys_name, member_name, sending_name, tap_name
from .notify import ServiceManager
from .registry.registry import Registry
from .runtime.loop import EventLoop, Timer

VERSION = 1
"""Of what is said here."""
LIMIT_S = 10.0
"""From "go", and from each worker that was ended, to what the successor says next."""
SEND_S = 2.0
AT_ONCE = 64
"""Descriptors in one message; the kernel takes 253 (SCM_MAX_FD)."""
MAX_MESSAGE = 65536
CONTROL, METRICS = "control", "metrics"


class Part(Protocol):
    """What has to be quiet while another velad takes over."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


class Listening(Part, Protocol):
    """One that accepts connections, too."""

    def fileno(self) -> int: ...


class Control(Listening, Protocol):
    """One whose connections can be gone on with, too."""

    @property
    def connected(self) -> Iterable[Connected]: ...


class Succession:
    """Hands everything over, at most to one velad at a time."""

    def __init__(
        self,
        loop: EventLoop,
        registry: Registry,
        demux: Demux,
        manager: ServiceManager,
        daemon: DaemonConfig,
        control: Control,
        listening: Mapping[str, Listening],
        parts: Iterable[Part],
        obstacle: Callable[[], str],
    ) -> None:
        """listening: those beside control, by name.

        obstacle: why nobody can take over at present, beside what the registry says.
        """
        self.frozen = False
        self._loop = loop
        self._registry = registry
        self._demux = demux
        self._manager = manager
        self._daemon = daemon
        self._control = control
        self._listening = {CONTROL: control, **listening}
        self._parts: tuple[Part, ...] = (*parts, demux, *listening.values())
        self._obstacle = obstacle
        self._channel: socket.socket | None = None
        self._successor = 0
        self._limit: Timer | None = None
        self._retired: set[str] = set()
        self._log = structlog.get_logger()

    def begin(self, version: object, caller: Caller) -> Hand:
        """Let a process take over. Raises VelaError."""
        if caller.uid != 0:
            raise VelaError("only root can replace velad")
        if version != VERSION:
            raise VelaError(
                f"the running velad, {__version__}, hands over by version {VERSION} of what velads "
                f"say to each other, and not by version {version}; restart velad"
            )
        if self._channel is not None:
            raise VelaError("another velad is about to take over already")
        obstacle = self._obstacle() or self._registry.obstacle()
        if obstacle:
            raise VelaError(f"velad cannot be replaced now: {obstacle}; try again")
        try:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as err:
            raise DeviceError(f"no channel to hand over by: {err.strerror}") from err
        self._channel.settimeout(SEND_S)
        self._successor = caller.pid
        self._loop.watch(self._channel.fileno(), self._on_message)
        self._wait()
        # The reply is sent before.
        self._loop.call_soon(theirs.close)
        return Hand({"version": __version__, "pid": os.getpid()}, theirs.fileno())

    def close(self) -> None:
        if self._channel is not None:
            self._end_channel()

    def _wait(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._loop.call_later(
            LIMIT_S, lambda: self._give_up(f"it said nothing for {LIMIT_S:g} s")
        )

    def _on_message(self) -> None:
        channel = self._channel
        assert channel is not None
        try:
            data = channel.recv(MAX_MESSAGE)
            message = json.loads(data) if data else {"failed": "it ended"}
        except (OSError, ValueError) as err:
            message = {"failed": str(err)}
        self._wait()
        try:
            match message:
                case {"go": True} if not self.frozen:
                    self._registry.once_settled(self._hand_over)
                case {"release": str(name)} if self.frozen:
                    self._release(name)
                case {"done": bool(managed)} if self.frozen:
                    self._finish(managed=managed)
                case {"failed": why}:
                    self._give_up(str(why))
                case _:
                    self._give_up(f"it said {message}")
        except OSError as err:
            self._give_up(f"it cannot be told: {err}")

    @property
    def obstacle(self) -> str:
        """Why no other velad can go on after this one at present; empty: one can."""
        return "another velad is about to take over" if self._channel is not None else ""

    def freeze(self) -> None:
        """Let workers carry frames, and do nothing else."""
        # It answers the last requests, for which all the others are awake.
        self._control.freeze()
        self.frozen = True
        self._registry.freeze()
        for part in self._parts:
            part.freeze()

    def _freeze(self) -> None:
        self.freeze()
        self._log.info("velad_about_to_be_replaced", successor=self._successor)

    def _give_up(self, why: str) -> None:
        """Go on, as nobody takes over."""
        was_frozen, retired = self.frozen, frozenset(self._retired)
        self._end_channel()
        if not was_frozen:
            return
        self.frozen = False
        for part in self._parts:
            part.thaw()
        self._registry.thaw(retired)
        self._control.thaw()
        self._log.error("velad_not_replaced", successor=self._successor, error=why)

    def _end_channel(self) -> None:
        channel, self._channel = self._channel, None
        assert channel is not None
        self._loop.unwatch(channel.fileno())
        channel.close()
        self._retired.clear()
        if self._limit is not None:
            self._limit.cancel()

    def _hand_over(self) -> None:
        if self._channel is None or self.frozen:
            return  # it has ended meanwhile, or has asked twice
        try:
            self._send_all()
        except OSError as err:
            self._give_up(f"it cannot be told: {err}")

    def _send_all(self) -> None:
        """Say and send everything. Raises OSError."""
        self._freeze()
        daemon = self._daemon
        self._send(
            {
                "daemon": {
                    "listen": [str(each) for each in daemon.listen],
                    "port": daemon.port,
                    "state_directory": str(daemon.state_directory),
                    "metrics": None if daemon.metrics is None else str(daemon.metrics),
                },
                "environment": self._manager.environment,
            }
        )
        descriptors = list(self._descriptors().items())
        for at in range(0, len(descriptors), AT_ONCE):
            names, fds = zip(*descriptors[at : at + AT_ONCE], strict=True)
            self._send({"descriptors": names}, fds)
        for circuit in self._registry.each():
            standing = circuit.standing()
            self._send(
                {
                    "circuit": circuit.name,
                    "origin": circuit.origin.value,
                    "settings": format_circuit(circuit.config),
                    "standing": None if standing is None else standing.format(),
                }
            )
        self._send({"end": True})

    def _descriptors(self) -> dict[str, int]:
        found = {name: each.fileno() for name, each in self._listening.items()}
        for number, client in enumerate(self._control.connected):
            found[client_name(number, subscribed=client.subscribed)] = client.descriptor
        for group in self._demux.all_groups:
            for index, member in enumerate(group.sockets):
                found[member_name(group, index)] = member.fileno()
        for circuit in self._registry.each():
            for queue, fd in enumerate(circuit.taps[0]):
                found[tap_name(circuit.name, queue)] = fd
            for queue, fd in enumerate(circuit.sending):
                found[sending_name(circuit.name, queue)] = fd
            if circuit.key_page is not None:
                found[keys_name(circuit.name)] = circuit.key_page
        return found

    def _release(self, name: str) -> None:
        circuits = {circuit.name: circuit for circuit in self._registry.each()}
        self._retired.add(name)
        if name in circuits:
            circuits[name].retire_worker(lambda: self._on_released(name))
        else:
            self._on_released(name)

    def _on_released(self, name: str) -> None:
        if self._channel is None:
            return
        try:
            self._send({"released": name})
        except OSError as err:
            self._give_up(f"it cannot be told: {err}")

    def _finish(self, *, managed: bool) -> None:
        """End, and leave everything as it is: nothing is closed, wiped or said to remotes."""
        self._log.info("velad_replaced", successor=self._successor)
        if managed:
            self._manager.hand_over(self._successor)
        os._exit(0)

    def _send(self, message: Mapping[str, Any], descriptors: Iterable[int] = ()) -> None:
        assert self._channel is not None
        data = json.dumps(message).encode()
        socket.send_fds(self._channel, [data], list(descriptors), socket.MSG_NOSIGNAL)
