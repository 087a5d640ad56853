"""Where a circuit's remote is: looked for by name and route, found, and followed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

from vela.address import Endpoint, IPAddress, Remote
from vela.errors import DeviceError, VelaError
from vela.linux.underlay import UnderlayPath
from vela.reasons import Cause, Reason, reason_of
from vela.signaling.enquiry import Enquiry
from vela.signaling.events import Datagram
from vela.signaling.messages import CloseReason, Description

from ..config.records import CircuitConfig
from ..runtime.loop import Callback, EventLoop
from .caller_wait import CallerWait
from .carriage import Carriage
from .data_path import DataPath
from .dialogue import Dialogue
from .frame_watch import FrameWatch
from .lifecycle import Input, State
from .paths import Paths
from .primary_watch import PrimaryWatch
from .remote import Listener, RemoteSearch
from .remotes import Remotes
from .routes import RouteLoop
from .setup import Origin
from .stepper import Stepper


class Located(Protocol):
    """A circuit."""

    origin: Origin
    started: bool
    disabled: bool
    log: Any

    @property
    def config(self) -> CircuitConfig: ...

    @property
    def static(self) -> bool:
        """Whether it has no signalling."""

    def check_id(self, sources: tuple[IPAddress, ...]) -> None:
        """Raise ConfigError if another circuit has the id toward one of these addresses."""


class Whereabouts:
    """Looks for the remote in use, aims the session at what is found, and goes to another one."""

    def __init__(
        self,
        circuit: Located,
        dialogue: Dialogue,
        data_path: DataPath,
        loop: EventLoop,
        paths: Paths,
        carriage: Carriage,
        frames: FrameWatch,
        steps: Stepper,
    ) -> None:
        """Nothing is looked for before resolve()."""
        self._circuit = circuit
        self._dialogue = dialogue
        self._data_path = data_path
        self._loop = loop
        self._paths = paths
        self._carriage = carriage
        self._frames = frames
        self._steps = steps
        # Whether the remote has got another name, and the session goes on until that is found.
        self._moving = False
        self.remotes = Remotes(circuit.config.remote, circuit.config.name, self, loop)
        self.search = self._begin_search()

    @property
    def in_use(self) -> Remote:
        """The remote in use."""
        return self.remotes.in_use

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of the remote in use."""
        return self.search.addresses

    @property
    def idle_addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of its other remotes."""
        known = self.remotes.known_addresses().values()
        return tuple(address for addresses in known for address in addresses)

    @property
    def all_addresses(self) -> tuple[IPAddress, ...]:
        """The addresses of all its remotes; none, if those of one are not known."""
        known = (self.addresses, *self.remotes.known_addresses().values())
        return tuple(each for addresses in known for each in addresses) if all(known) else ()

    @property
    def remote_endpoint(self) -> Endpoint | None:
        """Where the remote of the session is, or the one that is asked; None: not known."""
        return self._dialogue.remote

    @property
    def trouble(self) -> Reason:
        """What keeps the remote from being found; empty: nothing."""
        return self.search.trouble

    # What the circuit wants.

    def resolve(self) -> None:
        """Look for the remote now."""
        self.search.resolve()

    def resolve_soon(self) -> None:
        """Look for it after a back-off."""
        self.search.resolve_soon()

    def pause(self, paused: bool) -> None:
        """While paused, tell the lifecycle nothing of what is found."""
        self.search.paused = paused

    def stop(self) -> None:
        """Look for nothing any more."""
        self.remotes.stop()
        self.search.stop()

    def begin_anew(self) -> None:
        """Look for the remote that the configuration names now, by what it chooses."""
        self._moving = False
        self.remotes.change(self._circuit.config.remote)
        self._paths.begin_anew(self._circuit.config)
        self.search_anew()

    def return_to_first(self) -> None:
        """Use the first of the remotes, if another one is in use."""
        if self.remotes.begin_anew():
            self.search_anew()

    def search_anew(self) -> None:
        """Look for the remote that is in use now, from now on."""
        self.search.stop()
        self.search = self._begin_search()

    def session_anew(self) -> None:
        """Forget what was agreed on, and with whom; the session was left."""
        self._carriage.sought = self._dialogue.agreement = None
        self._dialogue.open()

    def _begin_search(self) -> RemoteSearch | CallerWait:
        if self.in_use.is_any:
            wait = self._paths.wait(self._circuit.config, self)
            self._dialogue.take_calls(self._describe_to, wait.hears)
            return wait
        self._dialogue.take_no_calls()
        return self._paths.search(
            self._circuit.config, self.in_use, self, self._carriage.local_address
        )

    def reuse_path(self) -> None:
        """Aim at what was found before, or look for it."""
        if self._carriage.sought is None:
            self.resolve()
        else:
            self.on_routed((self._carriage.sought,))

    def look_elsewhere(self) -> None:
        """Look for the remote by another name. The session goes on until its address is known."""
        self.search_anew()
        circuit, is_any = self._circuit, self.in_use.is_any
        self.pause(circuit.disabled)
        self._moving = not (circuit.disabled or is_any)
        if is_any and self._steps.state not in (State.UP, State.DISABLED):
            self._steps.take(Input.SWITCHED)
        if circuit.started or circuit.disabled:
            self.resolve()

    # From Remotes, which chooses between those of a list.

    def use_remote(self, why: str) -> None:
        """Leave the remote that was in use for the one that is to be used now."""
        self._dialogue.leave(CloseReason.STOPPING)
        self._moving = False
        self._frames.begin_anew()
        self.search_anew()
        self.session_anew()
        self._circuit.log.info("remote_switched", remote=str(self.in_use), reason=str(why))
        self._steps.take(Input.SWITCHED)
        self.resolve()

    def watch_primary(
        self, primary: Remote, on_answer: Callback, on_silence: Callable[[Reason], None]
    ) -> PrimaryWatch:
        """Ask the primary at intervals, while another remote is in use."""
        config = self._circuit.config

        def search(listener: Listener) -> RemoteSearch:
            return self._paths.search(self._circuit.config, primary, listener)

        def ask(enquiry: Enquiry, paths: tuple[UnderlayPath, ...]) -> list[Datagram]:
            setup, local = self._dialogue.setup, self._carriage.describe(None)
            ciphers = None if setup.frame_keys is None else setup.frame_keys.offer
            candidates = self._carriage.candidates(paths)
            return enquiry.ask(candidates, local, setup.offer, setup.key, ciphers)

        return PrimaryWatch(
            config.id,
            self._loop,
            self._dialogue.require_control(),
            config.underlay,
            search,
            ask,
            on_answer,
            on_silence,
        )

    # From the search.

    def on_awaits(self) -> None:
        self._steps.take(Input.AWAITS)
        self._dialogue.pump()

    def on_unresolved(self, reason: Reason) -> None:
        self._steps.take(Input.UNRESOLVED, reason)

    def on_no_route(self, reason: Reason) -> None:
        self._steps.take(Input.NO_ROUTE, reason)

    def on_routed(self, paths: tuple[UnderlayPath, ...]) -> None:
        if self._moving:
            self._moving = False
            self._leave_former_remote(paths[0])
        with self._paths.found(paths):
            self._take_paths(paths)

    def _take_paths(self, paths: tuple[UnderlayPath, ...]) -> None:
        try:
            self._aim(paths)
        except VelaError as err:
            self._steps.take(Input.FAILED, reason_of(err))
            return
        self._steps.take(Input.ROUTED)
        self._dialogue.pump()

    def _aim(self, paths: tuple[UnderlayPath, ...]) -> None:
        """Let the session look for the remote there, the best path first. Raises VelaError."""
        channel, path = self._dialogue.channel, paths[0]
        self._paths.check_path(path)
        if channel is None:
            self._carriage.sought = path
            self.search.use(path.endpoint.address)
            return
        # Before the first message: the remote would take both circuits for one.
        self._circuit.check_id(path.sources)
        self._carriage.sought = path
        channel.expect_from(path.sources)
        up = self._steps.state is State.UP
        in_use = self._carriage.path_in_use() if up else path
        if in_use is not None:
            self._carriage.describe_by(in_use)
        channel.session.set_remotes(self._carriage.candidates(paths), self._loop.now())

    def _describe_to(self, source: Endpoint, local_address: IPAddress | None) -> Description:
        """Return the description of this end for a remote that calls. Raises VelaError."""
        path = self._paths.to(source, local_address)
        self._circuit.check_id(path.sources)
        return self._carriage.describe(path)

    def _leave_former_remote(self, path: UnderlayPath) -> None:
        """End the session with a machine that the remote's new name does not lead to."""
        remote, port = self._dialogue.remote, path.endpoint.port
        if remote is None or (remote.address in path.sources and self._reaches(remote, port)):
            return
        self._dialogue.leave(CloseReason.DELETED)
        self._data_path.detach()
        self.session_anew()
        self._steps.take(Input.SWITCHED, Cause.REMOTE_CHANGED.say())

    def _reaches(self, remote: Endpoint, port: int) -> bool:
        """Tell whether a remote is the one at this port; behind a NAT it shows another one."""
        agreement = self._dialogue.agreement
        return port in (remote.port, agreement.remote_port if agreement else None)

    # From the machine.

    def on_route_changed(self) -> None:
        """Stop sending at once where the route now leads into this circuit, or look again."""
        if self._circuit.disabled or self._steps.stopped:
            return
        attached = self._data_path.attached
        if attached is None:
            self.resolve()
            return
        try:
            self._paths.to(attached[0].endpoint, attached[0].route.source)
        except RouteLoop as err:
            self._steps.take(Input.CUT_OFF, reason_of(err))
        except DeviceError as err:
            cause = err.__cause__
            # If there is just no route now, and it stays so, the session goes down by itself.
            if isinstance(cause, OSError) and cause.errno == errno.EADDRNOTAVAIL:
                self._leave_former_address(attached[0])

    def _leave_former_address(self, path: UnderlayPath) -> None:
        """Begin a session from another address, as this machine has lost the one of the present.

        Not where the remote set the circuit up: it knows this end by that address, and seeks it.
        """
        if self._circuit.static or self._circuit.origin is Origin.PEER:
            return
        try:
            self._paths.to(path.endpoint, None)
        except DeviceError:
            return
        self._dialogue.give_up(Cause.SOURCE_LOST.say(address=path.route.source))

    def look_at_underlay(self) -> None:
        """Follow the chosen device and source address as they come and go."""
        if self._circuit.disabled or not self._circuit.started:
            return
        obstacle = self._paths.change_of_underlay()
        if obstacle and self._data_path.attached is not None:
            self._steps.take(Input.CUT_OFF, obstacle)
        elif obstacle is not None:
            self.resolve()
