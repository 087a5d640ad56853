"""What a circuit asks of whatever carries its frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vela.address import Endpoint
from vela.dataplane.contract import Abilities
from vela.dataplane.engine import LoadedEngine
from vela.linux.features import Features
from vela.linux.underlay import Route, UnderlayPath
from vela.reasons import Reason

from ..config.records import CircuitConfig
from ..runtime.loop import Callback
from ..status import CounterStatus, WorkerStatus
from .rates import Traffic
from .terms import Profile

EchoHandler = Callable[[memoryview, float], bool]
"""Takes a message, and how many seconds ago it came; False: it answers nothing that was asked."""


class DataPath(Protocol):
    """Carries the frames of a circuit: pseudowire.Pseudowire."""

    @property
    def cpu(self) -> int: ...

    @property
    def mtu(self) -> int: ...

    @property
    def local_mac(self) -> bytes: ...

    @property
    def abilities(self) -> Abilities: ...

    @property
    def bridge_mtu(self) -> int | None:
        """Of the bridge that the interface is part of; None: there is none."""

    @property
    def attached(self) -> tuple[UnderlayPath, Profile] | None: ...

    @property
    def frame_port(self) -> int | None:
        """The UDP port that frames leave from; None: it carries none."""

    def prepare_port(self, path: UnderlayPath, profile: Profile) -> int:
        """Return the UDP port that frames will leave from once they are carried so.

        It is this circuit's from now on. Raises VelaError.
        """

    def ports_from(self, port: int) -> int:
        """Return how many UDP ports in a row are this circuit's to send from, from this one on."""

    def expect_frames_from(self, port: int | None, count: int = 1) -> None:
        """Take only frames of so many UDP ports of the remote's, from this one on; None: of any."""

    def attach(self, path: UnderlayPath, profile: Profile, key_page: int | None = None) -> None: ...

    def detach(self) -> None: ...

    def limit(self, rate: int | None) -> None:
        """Send at most this many bits per second; None: whatever there is to send."""

    def set_carrier(self, carrier: bool) -> None: ...

    def check(self) -> None: ...

    def change(self, config: CircuitConfig, cpu: int) -> None:
        """Take another configuration; the interface stays. attach() follows. Raises VelaError."""

    def change_engine(self, engine: LoadedEngine, features: Features) -> None:
        """Let another engine carry frames; attach() follows. Raises VelaError."""

    def kill_worker(self) -> None: ...

    def close(self) -> None: ...

    def leave(self) -> None:
        """Close it, but leave the interface to whoever has a copy of its descriptor."""

    @property
    def member(self) -> tuple[str, int] | None:
        """The name of the socket that it receives on, and its index; None: it carries nothing."""

    @property
    def further_members(self) -> tuple[int, ...]:
        """The indices of further sockets that it receives on."""

    @property
    def sending(self) -> tuple[int, ...]:
        """The descriptors of the sockets of its own that it sends from, if there are any."""

    @property
    def has_former(self) -> bool:
        """Whether another velad's worker still carries frames, and gets what is answered."""

    def retire_worker(self, done: Callback) -> None:
        """End the worker after what it has in hand, and start no other; then call done."""

    @property
    def taps(self) -> tuple[tuple[int, ...], int]:
        """The descriptors of the interface, one for each queue, and its index."""

    @property
    def obstacles(self) -> tuple[Reason, ...]:
        """What it still waits for while it carries frames; empty: nothing."""

    def set_failure_handler(self, handler: Callback) -> None:
        """Set the callback for workers that fail repeatedly, and for one that works again."""

    @property
    def carries(self) -> bool:
        """Whether there is a worker that takes frames."""

    def set_echo_handler(self, handler: EchoHandler) -> None:
        """Set the callback for messages of in-circuit verification that the worker passes on."""

    def send_echo(self, request: bytes) -> None:
        """Send an echo request from where frames leave, if it carries any."""

    def echoes_arrived(self) -> int:
        """Return how many echo requests of the remote's the workers have answered."""

    def set_route_handler(self, handler: Callback) -> None:
        """Set the callback for routes to the remote that may have changed."""

    def find_loop(self, remote: Endpoint, route: Route) -> Reason:
        """Return why the circuit cannot send to a remote by this route; empty: it can."""

    def traffic(self) -> Traffic: ...

    def worker_status(self) -> WorkerStatus | None: ...

    def counter_status(self) -> CounterStatus: ...
