"""A real worker, forked as velad does it, between a pair for the TAP and real UDP."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from users import child_user

from lab.waiting import PATIENCE, eventually
from vela.dataplane.contract import Abilities, Attachment, DataPlane
from vela.dataplane.counters import Counters
from vela.dataplane.engine import Engine, LoadedEngine, load_engine
from vela.dataplane.exit_message import ExitMessage
from vela.dataplane.frame import Elision
from vela.dataplane.handover import Handover
from vela.linux.features import Feature, Features
from vela.linux.sandbox import worker_filter
from vela.worker import WorkerTask

LOCAL = bytes.fromhex("02005e100001")
REMOTE = bytes.fromhex("02005e100002")
TIMEOUT_S = 10.0


def frame(mark: int) -> bytes:
    return (b"\xff" * 6 + LOCAL + b"\x88\xb5" + mark.to_bytes(4, "big")).ljust(60, b"\xee")


def stop(pid: int) -> None:
    """Stop a process, and wait until each of its threads has."""
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    eventually(
        lambda: all("\nState:\tT" in (thread / "status").read_text() for thread in threads),
        TIMEOUT_S,
        f"process {pid} to stop",
    )


def engine_of(name: str, make: Callable[[Attachment], DataPlane]) -> LoadedEngine:
    """Return an engine whose loops are the test's, under the filter of the task's own engine."""
    return LoadedEngine(
        name, lambda attachment: partial(make, attachment), Abilities(), lambda _: ()
    )


class Circuit:
    """A task, and in the test's hands all that is around its worker."""

    def __init__(
        self, stack: ExitStack, engine: Engine, features: Features, *, low_latency: bool = False
    ) -> None:
        self.host, self.tap = self._pair(stack)
        self.tap.setblocking(Feature.RWF_NOWAIT in features)
        self.supervisor, divert = self._pair(stack)
        divert.setblocking(False)
        self.remote = self._udp(stack)
        self.receiving, sending = self._udp(stack), self._udp(stack)
        sending.connect(self.remote.getsockname())
        self.counters = Counters()
        cpus = sorted(os.sched_getaffinity(0))
        # Not the one that the workers of other test runs are pinned to.
        self.cpu = cpus[os.getpid() % len(cpus)]
        attachment = Attachment(
            circuit_id=7,
            tap_fd=self.tap.fileno(),
            receive_socket=self.receiving,
            send_socket=sending,
            destination=None,
            divert_socket=divert,
            local_mac=LOCAL,
            remote_mac=REMOTE,
            elision=Elision.KNOWN,
            frame_limit=1489,
            datagram_limit=1472,
            counters=self.counters.worker,
            features=features,
            low_latency=low_latency,
        )
        loaded = load_engine(engine)
        self.task = WorkerTask(
            circuit="vela0",
            engine=loaded,
            attachment=attachment,
            page=self.counters.page,
            exit_message=ExitMessage(self.counters.exit_message),
            handover=Handover(self.counters.handover),
            cpu=self.cpu,
            user=child_user(),
            supervisor_pid=os.getpid(),
            filter=worker_filter(loaded.calls(attachment)),
        )
        self.remote.settimeout(PATIENCE * TIMEOUT_S)
        self.host.settimeout(PATIENCE * TIMEOUT_S)

    @staticmethod
    def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return stack.enter_context(ours), stack.enter_context(theirs)

    @staticmethod
    def _udp(stack: ExitStack) -> socket.socket:
        made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind(("127.0.0.1", 0))
        return made

    def exchange(self, count: int) -> None:
        """Let count frames cross in each direction, and see them arrive in order."""
        for mark in range(count):
            self.host.send(frame(mark))
            self.remote.sendto(b"\x07" + frame(mark), self.receiving.getsockname())
        for mark in range(count):
            assert self.remote.recv(2048) == b"\x07" + frame(mark)
            assert self.host.recv(2048) == frame(mark)
