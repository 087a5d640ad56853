"""A simulated machine with all that a velad hands over, or leaves, beside its circuits."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from running_velad import close_all, hear_all
from simulation import ROUTER_A, ROUTER_B, Machine, Network

from vela.address import Remote
from vela.linux.steering import CONTROL_SOCKETS
from vela.linux.underlay import ReceiveGroup
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.control_socket import Caller, ControlSocket
from vela.supervisor.demux import Demux
from vela.supervisor.inheritance import member_name
from vela.supervisor.notify import ServiceManager
from vela.supervisor.registry.registry import Registry
from vela.supervisor.succession import METRICS, VERSION, Succession

ROOT = Caller(0, 4711)
GO = {"go": True}


class Ended(BaseException):
    """The process has ended, with this status."""


class RecordingPart:
    """A part that listens, and remembers whether it is quiet."""

    def __init__(self, stack: ExitStack) -> None:
        self.frozen = False
        self._socket = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))

    def fileno(self) -> int:
        return self._socket.fileno()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


class HandingOver:
    """Machine a with two circuits to b, and all that a velad hands over beside them."""

    def __init__(self, link: Network, folder: Path, stack: ExitStack) -> None:
        self.link, self.loop, self.stack = link, link.loop, stack
        circuits = [
            [
                CircuitConfig(f"vela{n}", n + 1, Remote(str(other)), keepalive=keepalive)
                for n, keepalive in enumerate((1.0, 5.0))
            ]
            for other in (ROUTER_B, ROUTER_A)
        ]
        self.a, self.b = (
            Machine(link, address, folder / name, tuple(ours))
            for address, name, ours in zip((ROUTER_A, ROUTER_B), "ab", circuits, strict=True)
        )
        for machine in (self.a, self.b):
            machine.boot()
        link.run(5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.group = ReceiveGroup(ip_address("127.0.0.1"), port, only_ipv6=False)
        stack.callback(self.group.close)
        self.daemon = replace(
            self.a.config.daemon,
            listen=(self.group.address,),
            port=port,
            control_socket=folder / "control",
        )
        self.demux = Demux(self.loop, [self.group])
        stack.callback(self.demux.close)
        for path in self.a.data_paths.values():
            path.member = (member_name(self.group, self.group.acquire()), CONTROL_SOCKETS)
            path.tap_fds = (self._descriptor(), self._descriptor())
            path.sending = (self._descriptor(),)
        self.control = ControlSocket(self.loop, self.daemon.control_socket, lambda *_: {})
        stack.callback(self.control.close)
        self.part, self.metrics = RecordingPart(stack), RecordingPart(stack)
        self._manager = stack.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        )
        self._manager.bind(str(folder / "notify"))
        self.manager = ServiceManager({"NOTIFY_SOCKET": str(folder / "notify")})
        stack.callback(self.manager.close)
        self.obstacle = ""
        self.channels: list[socket.socket] = []
        self.succession = Succession(
            self.loop,
            self.registry,
            self.demux,
            self.manager,
            self.daemon,
            self.control,
            {METRICS: self.metrics},
            (self.part,),
            lambda: self.obstacle,
        )
        stack.callback(self.succession.close)
        self.parts = (self.part, self.metrics)

    @property
    def registry(self) -> Registry:
        assert self.a.registry is not None
        return self.a.registry

    def _descriptor(self) -> int:
        fd = os.memfd_create("a test")
        self.stack.callback(os.close, fd)
        return fd

    def begin(self) -> socket.socket:
        """Return the channel of a velad that takes over."""
        hand = self.succession.begin(VERSION, ROOT)
        assert hand.reply["pid"] == os.getpid()
        channel = socket.socket(fileno=os.dup(hand.descriptor))
        self.channels.append(channel)
        self.turn()
        return channel

    def leave(self) -> None:
        """Let no velad take over any more: what is frozen is not closed."""
        for channel in self.channels:
            channel.close()
        self.turn()

    def turn(self) -> None:
        self.loop.run_for(0.001)

    def say(self, channel: socket.socket, message: object) -> None:
        channel.send(json.dumps(message).encode())
        self.turn()

    def go(self, channel: socket.socket) -> list[dict[str, Any]]:
        """Let it hand everything over; return what it says."""
        self.say(channel, GO)
        heard = hear_all(channel)
        for _, fds in heard:
            close_all(fds)
        return [message for message, _ in heard]

    def words(self) -> list[str]:
        return [state for state, _ in self.a.states().values()]

    def told_manager(self) -> list[str]:
        said = []
        while True:
            try:
                said.append(self._manager.recv(1000).decode())
            except BlockingIOError:
                return said
