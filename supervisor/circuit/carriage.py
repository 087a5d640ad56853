"""By what a circuit's frames are carried: the path, and what was agreed on or configured."""

from __future__ import annotations

from typing import Protocol

from vela.address import Endpoint, IPAddress, Remote
from vela.errors import ConfigError, DeviceError
from vela.linux.underlay import UnderlayPath
from vela.mac import format_mac
from vela.rate import STEP
from vela.reasons import Cause
from vela.signaling.agreement import Agreement
from vela.signaling.candidates import Candidate
from vela.signaling.messages import Description
from vela.signaling.session import Session

from ..config.records import CircuitConfig
from ..runtime.loop import EventLoop
from .data_path import DataPath
from .dialogue import Dialogue
from .frame_watch import FrameWatch
from .lifecycle import State
from .path_prober import PathProber
from .paths import Paths
from .port_switch import PortSwitch
from .setup import Origin
from .terms import agreed_profile, describe, static_profile


class Carried(Protocol):
    """A circuit."""

    origin: Origin

    @property
    def config(self) -> CircuitConfig: ...

    @property
    def state(self) -> State: ...

    @property
    def remote(self) -> Remote:
        """The one in use."""

    @property
    def static(self) -> bool:
        """Whether it has no signalling."""

    @property
    def key_page(self) -> int | None:
        """The descriptor of an encrypted circuit's key page."""

    @property
    def sequences(self) -> int:
        """Of counters, that there is room for in that page; 1: there is none."""


class Carriage:
    """Attaches the data path, and tells the remote what this end offers by the path in use."""

    def __init__(
        self,
        circuit: Carried,
        dialogue: Dialogue,
        data_path: DataPath,
        loop: EventLoop,
        paths: Paths,
        ports: PortSwitch,
        prober: PathProber,
        frames: FrameWatch,
    ) -> None:
        self._circuit = circuit
        self._dialogue = dialogue
        self._data_path = data_path
        self._loop = loop
        self._paths = paths
        self._ports = ports
        self._prober = prober
        self._frames = frames
        self._bridge_mtu = data_path.bridge_mtu
        self.sought: UnderlayPath | None = None
        """The best path to the remote that is looked for. None: not known, or none is."""

    def carry(self) -> None:
        """Attach sockets and worker by agreement or configuration. Raises VelaError."""
        session = self._dialogue.session
        if session is None:
            self._carry_by_configuration()
        elif self._dialogue.agreement is not None and session.remote is not None:
            self._carry_by_agreement(session, session.remote, self._dialogue.agreement)

    def _carry_by_configuration(self) -> None:
        if self.sought is None:
            return
        config = self._circuit.config
        profile = static_profile(config, self.sought, self._data_path.bridge_mtu)
        self._data_path.attach(self.sought, profile)
        self._data_path.limit(config.rate)

    def _carry_by_agreement(self, session: Session, remote: Endpoint, agreement: Agreement) -> None:
        # By the present one: the agreement may be of a session that failed for it.
        if agreement.remote_mac == self._data_path.local_mac:
            mac = format_mac(agreement.remote_mac)
            raise ConfigError(Cause.DUPLICATE_MAC.say(mac=mac))
        # Behind a NAT only the translated port leads back.
        port = remote.port if agreement.nat else agreement.remote_port
        path = self._path_to(Endpoint(remote.address, port))
        if self._circuit.remote.is_any:
            self.sought = path
        # The session may be with another address than the one that was asked.
        self.describe_by(path)
        profile = agreed_profile(self._circuit.config, agreement, path, self._data_path.bridge_mtu)
        profile = self._ports.until_heard(path, profile, up=self._circuit.state is State.UP)
        self._data_path.attach(path, profile, self._circuit.key_page)
        rate_kbit = agreement.rate_kbit
        self._data_path.limit(None if rate_kbit is None else rate_kbit * STEP)
        self._data_path.expect_frames_from(agreement.frame_port, agreement.frame_ports)
        # The remote is told which port they leave from, now that it is known.
        self.describe_by(path)
        if self._ports.begun():
            session.await_heard(self._loop.now())

    def apply_terms(self) -> None:
        """Tell the remote what this end offers now, and carry frames by it. Raises VelaError."""
        in_use = self.path_in_use() or self.sought
        if in_use is not None and not self._circuit.static:
            self.describe_by(in_use)
        if self._data_path.attached is not None:
            self.carry()

    def follow_route(self) -> None:
        """Attach again if the route to the remote in use has changed. Raises VelaError.

        The agreement may stay the same, if the MTU is configured or the remote's is
        smaller. The worker still needs the MTU of the new route.
        """
        in_use, attached = self.path_in_use(), self._data_path.attached
        if in_use is not None and attached is not None and attached[0].route != in_use.route:
            self.carry()
            self.probe()

    def bridge_changed(self) -> bool:
        """Tell, once, whether the interface has joined its bridge, or lost it."""
        before, self._bridge_mtu = self._bridge_mtu, self._data_path.bridge_mtu
        return self._bridge_mtu != before

    def release(self) -> None:
        """Carry nothing."""
        self._ports.stop()
        self._data_path.detach()

    def probe(self) -> None:
        """Find out how large packets to the remote may be, while the session is up."""
        attached, channel = self._data_path.attached, self._dialogue.channel
        if attached is not None and channel is not None and self._circuit.state is State.UP:
            self._prober.start(attached[0], channel)
        else:
            self._prober.stop()

    def describe(self, path: UnderlayPath | None) -> Description:
        """Return the description of this end. Raises ConfigError if the path is too narrow."""
        data_path = self._data_path
        return describe(
            self._circuit.config,
            path,
            data_path.local_mac,
            self._paths.port,
            data_path.abilities,
            frame_port=self._ports.port,
            frame_ports=self._ports.count,
            bridge_mtu=data_path.bridge_mtu,
            from_listening=self._frames.wants_listening,
            sequences=self._circuit.sequences,
        )

    def describe_by(self, path: UnderlayPath) -> None:
        """Tell the remote what this end offers by a path. Raises ConfigError: see describe()."""
        self._dialogue.set_local(self.describe(path))

    def path_in_use(self) -> UnderlayPath | None:
        """Return the path to the remote of the session; None: there is none at present."""
        remote = self._dialogue.remote
        try:
            return None if remote is None else self._path_to(remote)
        except DeviceError:
            return None  # if it stays so, the session goes down by itself

    def _path_to(self, endpoint: Endpoint) -> UnderlayPath:
        """Return the path from the session's local address to an endpoint. Raises DeviceError."""
        return self._paths.to(endpoint, self._dialogue.local_address)

    def local_address(self) -> IPAddress | None:
        """Return the local address that the remote uses; None: any."""
        # A remote that set the circuit up knows this end by the address that it asked.
        if self._circuit.state is State.UP or self._circuit.origin is Origin.PEER:
            return self._dialogue.local_address
        return None

    def candidates(self, paths: tuple[UnderlayPath, ...]) -> tuple[Candidate, ...]:
        """Return where to ask for the remote by these paths."""
        bind = self._circuit.config.bind
        return self._paths.candidates(paths, self.local_address(), bind)
