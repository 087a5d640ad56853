"""Two machines without TAPs, sockets or time: the real registry, circuits and sessions of each.

What a machine lacks is at its edge only: the data path records what it is told, the network
between the machines loses, delays and repeats control messages, and time jumps to the next timer.
"""

from __future__ import annotations

import random
import selectors
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from vela.address import Endpoint, Family, IPAddress, IPNetwork
from vela.dataplane.contract import Abilities
from vela.dataplane.engine import LoadedEngine
from vela.dataplane.frame import ECHO_REPLY
from vela.errors import DeviceError, VelaError
from vela.linux.choice import UnderlayChoice
from vela.linux.features import Features
from vela.linux.steering import ControlSteering
from vela.linux.underlay import ReceiveGroup, Route, UnderlayPath
from vela.reasons import NO_REASON, Reason
from vela.signaling.identity import token
from vela.signaling.signer import Key, LocalKey
from vela.supervisor.circuit.data_path import EchoHandler
from vela.supervisor.circuit.rates import Traffic
from vela.supervisor.circuit.standing import Standing
from vela.supervisor.circuit.terms import Profile
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, Config, DaemonConfig
from vela.supervisor.control_channel import ControlChannel
from vela.supervisor.demux import ControlHandler
from vela.supervisor.keys import KeySource
from vela.supervisor.registry.ciphers import Ciphers
from vela.supervisor.registry.facts import HostFacts
from vela.supervisor.registry.registry import Registry
from vela.supervisor.runtime.lines import LineLimiter
from vela.supervisor.runtime.loop import Callback, Clock, EventLoop, Ready
from vela.supervisor.runtime.names import AnswerCallback, DelayCallback
from vela.supervisor.runtime.resolver import Answer
from vela.supervisor.status import CircuitStatus, CounterStatus, WorkerStatus
from vela.wire import DEFAULT_PORT

ROUTER_A, ROUTER_B = ip_address("192.0.2.1"), ip_address("192.0.2.2")


class SimulatedClock:
    """Jumps to the next timer as soon as no descriptor is ready."""

    def __init__(self) -> None:
        self._now = 1000.0

    def now(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Be that much later: what a callback took."""
        self._now += seconds

    def wait(self, selector: selectors.BaseSelector, timeout_s: float | None) -> Ready:
        ready = selector.select(0)
        if not ready:
            if timeout_s is None:
                raise AssertionError("nothing is due, for ever")
            self._now += timeout_s
        return ready


class StrictLoop(EventLoop):
    """Remembers what the supervisor's loop only logs: callbacks that failed."""

    def __init__(self, clock: Clock | None = None) -> None:
        """clock: None: one that jumps."""
        super().__init__(SimulatedClock() if clock is None else clock)
        self.failures: list[Exception] = []

    def guard(self, callback: Any) -> bool:
        try:
            callback()
        except Exception as err:
            self.failures.append(err)
            return False
        return True

    def run_for(self, seconds: float) -> None:
        self.call_later(seconds, self.stop)
        self.run()


@dataclass
class RecordingDataPath:
    """A pseudowire that has no interface: it remembers what it was told."""

    config: CircuitConfig
    cpu: int
    local_mac: bytes
    mtu: int = 1471
    bridge_mtu: int | None = None
    abilities: Abilities = field(default_factory=Abilities)
    attached: tuple[UnderlayPath, Profile] | None = None
    rate: int | None = None
    carrier: bool = False
    closed: bool = False
    broken: str = ""
    """What check() finds."""
    obstacles: tuple[Reason, ...] = ()
    refusal: str = ""
    """What attach() fails with."""
    loop: Reason = NO_REASON
    """Why the route to the remote cannot be."""
    frames_from: int | None = None
    """The remote's port that frames are taken from."""
    attachments: int = 0
    blocked: bool = False
    """Frames do not cross, but for those from the listening port."""
    silent: bool = False
    """Frames do not cross."""
    send: Callable[[bytes], None] = lambda _: None
    """Takes echo requests."""
    arrived: int = 0
    """Echo requests that were answered."""

    def attach(self, path: UnderlayPath, profile: Profile, key_page: int | None = None) -> None:
        assert not self.closed
        if self.refusal:
            self.attached = None
            raise DeviceError(self.refusal)
        if self.attached != (path, profile):
            self.attachments += 1
        self.attached, self.key_page = (path, profile), key_page
        self.mtu = profile.mtu

    @property
    def frame_port(self) -> int | None:
        return None if self.attached is None else self.prepare_port(*self.attached)

    def prepare_port(self, path: UnderlayPath, profile: Profile) -> int:
        return profile.source_port or 50000 + self.config.id

    @property
    def passes_frames(self) -> bool:
        if self.attached is None:
            return False
        path, profile = self.attached
        if self.silent:
            return False
        return not self.blocked or profile.source_port == path.group.port

    def ports_from(self, port: int) -> int:
        return 1

    def expect_frames_from(self, port: int | None, count: int = 1) -> None:
        self.frames_from = port

    def limit(self, rate: int | None) -> None:
        self.rate = rate

    def detach(self) -> None:
        self.attached = None

    def set_carrier(self, carrier: bool) -> None:
        assert not self.closed
        self.carrier = carrier

    def check(self) -> None:
        if self.broken:
            raise DeviceError(self.broken)

    def set_failure_handler(self, handler: Callback) -> None:
        self.on_failure = handler

    def set_route_handler(self, handler: Callback) -> None:
        self.on_route = handler

    @property
    def carries(self) -> bool:
        return self.attached is not None

    def set_echo_handler(self, handler: EchoHandler) -> None:
        self.on_echo = handler

    def send_echo(self, request: bytes) -> None:
        self.send(request)

    def echoes_arrived(self) -> int:
        return self.arrived

    def find_loop(self, remote: Endpoint, route: Route) -> Reason:
        return self.loop

    def change(self, config: CircuitConfig, cpu: int) -> None:
        assert not self.closed
        self.config, self.cpu = config, cpu
        self.local_mac = config.mac or self.local_mac

    def change_engine(self, engine: LoadedEngine, features: Features) -> None:
        assert not self.closed
        self.abilities = engine.abilities

    def kill_worker(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self.carrier = False

    def leave(self) -> None:
        self.close()

    member: tuple[str, int] | None = None
    further_members: tuple[int, ...] = ()
    sending: tuple[int, ...] = ()
    has_former: bool = False
    key_page: int | None = None
    """Of an encrypted circuit."""
    worker: WorkerStatus | None = None

    retired: bool = False
    tap_fds: tuple[int, ...] = (0,)

    def retire_worker(self, done: Callback) -> None:
        self.retired = True
        done()

    @property
    def taps(self) -> tuple[tuple[int, ...], int]:
        return self.tap_fds, 0

    def traffic(self) -> Traffic:
        return Traffic(0, 0, 0, 0)

    def worker_status(self) -> WorkerStatus | None:
        return self.worker

    def counter_status(self) -> CounterStatus:
        return CounterStatus.zero()


@dataclass(frozen=True, slots=True)
class _Group:
    """What a path says of its listening address."""

    address: IPAddress
    port: int


class Machine:
    """One daemon. boot() begins, crash() ends it without a word, stop() in order."""

    def __init__(
        self,
        network: Network,
        address: IPAddress,
        state_directory: Path,
        circuits: tuple[CircuitConfig, ...] = (),
        autoconfigure: AutoconfigureConfig | None = None,
        key: Key | None = None,
    ) -> None:
        self.network = network
        self.address = address
        self.key = key
        self.config = Config(
            daemon=DaemonConfig(state_directory=state_directory),
            autoconfigure=autoconfigure,
            circuits=circuits,
        )
        self.asked: list[tuple[float, str]] = []
        """Look-ups, and when they began."""
        self.names: dict[str, tuple[IPAddress, ...]] = {}
        self.reachable = True
        """Whether there is a route to the other machine."""
        self.data_paths: dict[str, RecordingDataPath] = {}
        self.refusals: dict[str, str] = {}
        """By circuit name, what its next data paths fail to attach with."""
        self.handler: ControlHandler | None = None
        self.expected_control = ControlSteering()
        self.known = HostFacts()
        """What the kernel says of this machine's addresses and routes."""
        self.registry: Registry | None = None
        network.machines[address] = self

    # What a daemon's parts take for the network, the name server and the kernel.

    def set_control_handler(self, handler: ControlHandler) -> None:
        self.handler = handler

    def expect_control(self, control: ControlSteering) -> None:
        self.expected_control = control

    def send_control(
        self,
        data: bytes,
        local_address: IPAddress,
        remote: Endpoint,
        choice: UnderlayChoice,
        *,
        dont_fragment: bool = False,
    ) -> None:
        self.network.carry(data, Endpoint(self.address, DEFAULT_PORT), remote)

    def ask(
        self,
        host: str,
        family: Family | None,
        callback: AnswerCallback,
        on_delay: DelayCallback | None = None,
    ) -> None:
        self.asked.append((self.network.loop.now(), host))
        generation = self.registry
        try:
            answer = Answer(host, family, (ip_address(host),), None)
        except ValueError:
            known = self.names.get(host, ())
            error = None if known else f"{host}: no such name"
            answer = Answer(host, family, known, error)

        def reply() -> None:
            if self.registry is generation:  # not to one that has crashed since
                callback(answer)

        self.network.loop.call_later(0.001, reply)

    def way_to(self, remote: Endpoint, choice: UnderlayChoice) -> tuple[ReceiveGroup, Route]:
        if not self.reachable:
            raise DeviceError(f"no way to {remote.address}: Network is unreachable")
        group = cast(ReceiveGroup, _Group(ip_address("::"), DEFAULT_PORT))
        return group, Route(self.address, 1500)

    def facts(self, wanted: tuple[IPNetwork, ...]) -> HostFacts:
        return self.known

    def way_from(
        self, here: IPAddress, remote: Endpoint, choice: UnderlayChoice
    ) -> tuple[ReceiveGroup, Route]:
        return self.way_to(remote, choice)

    def load(self, path: Path) -> Key:
        return LocalKey(path.read_bytes().strip())

    def token(self, context: bytes) -> bytes | None:
        return token(str(self.config.daemon.state_directory).encode(), context)

    def make_data_path(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False, shielded: bool = False
    ) -> RecordingDataPath:
        # Stable, and not the same on two machines.
        mac = bytes((2, 0, 0x5E, 0x10, int(self.address) & 0xFF, config.id))
        made = RecordingDataPath(config, cpu, config.mac or mac)
        for name, value in self.network.new_paths.items():
            setattr(made, name, value)
        made.refusal = self.refusals.get(config.name, "")
        self.data_paths[config.name] = made
        made.send = lambda request: self.network.echo(self, made, request)
        return made

    # What the operator does.

    def boot(self, former: Mapping[str, Standing] | None = None) -> frozenset[str]:
        """Begin, where another one's circuits stood; return which of them go on."""
        channel = self.channel = ControlChannel(self.network.loop, self, self, DEFAULT_PORT)
        self.set_policy()
        self.registry = Registry(
            self.config,
            loop=self.network.loop,
            names=self,
            routes=self,
            control_channel=channel,
            keys=self.key_source,
            ciphers=self.ciphers,
            make_data_path=self.make_data_path,
            host=self,
            lines=LineLimiter(self.network.loop.now),
        )
        channel.set_request_handler(self.registry)
        self.registry.create_all()
        resumed = frozenset() if former is None else self.registry.resume(former)
        self.registry.start()
        return resumed

    def hand_over(self, member: str = "udp-00") -> dict[str, Standing]:
        """Say how circuits stand, and end without a word to anybody; the next one boots with it."""
        registry, self.registry = self.registry, None
        assert registry is not None
        for index, path in enumerate(self.data_paths.values(), start=3):
            path.member = (member, index)
        registry.freeze()
        return {
            circuit.name: standing
            for circuit in registry.each()
            if (standing := circuit.standing()) is not None
        }

    @property
    def key_source(self) -> KeySource:
        return self

    @property
    def ciphers(self) -> Ciphers | None:
        return None

    def set_policy(self) -> None:
        """Let the control channel know what others may set up here."""
        self.channel.set_policy(self.config.autoconfigure, self.key)

    def crash(self) -> None:
        """End as kill -9 does: nothing is said, and no timer fires any more."""
        registry, self.registry, self.handler = self.registry, None, None
        if registry is not None:
            self.network.silence(self.address)
            registry.close()
            self.network.loop.run_for(1.5)  # the goodbyes are lost, and give up
            self.network.silence(None)
        self.data_paths.clear()

    def stop(self) -> None:
        registry, self.registry, self.handler = self.registry, None, None
        if registry is not None:
            registry.close()
            # The goodbyes leave; nothing that comes is heard by a process that ends.
            self.network.loop.run_for(1.5)
        self.data_paths.clear()

    def reload(self, config: Config) -> dict[str, str]:
        assert self.registry is not None
        if config.autoconfigure != self.config.autoconfigure:
            self.config = config
            self.set_policy()
        self.config = config
        for _ in self.registry.reload(config):
            pass
        return self.registry.failures()

    def add(self, name: str, settings: Mapping[str, object]) -> None:
        assert self.registry is not None
        self.registry.add(name, settings)

    def check(self) -> None:
        if self.registry is not None:
            self.registry.check()

    def states(self) -> dict[str, tuple[str, str]]:
        """Return state and reason of each circuit."""
        return {each.name: (each.state, each.reason) for each in self.statuses()}

    def statuses(self) -> tuple[CircuitStatus, ...]:
        assert self.registry is not None
        status = self.registry.status()
        for each in status:
            assert each.reason == "; ".join(reason.text for reason in each.reasons)
            assert each.reason_code == (each.reasons[0].code if each.reasons else "")
            assert all(reason.code for reason in each.reasons), each.reason
        return status

    def try_command(self, command: Any) -> None:
        """Run an operator's command; a refusal is an answer."""
        with suppress(VelaError):
            command()


@dataclass
class Network:
    """Time, and what is under way between the machines."""

    dice: random.Random
    loss: float = 0.0
    duplication: float = 0.0
    longest_delay_s: float = 0.002
    machines: dict[IPAddress, Machine] = field(default_factory=dict)
    loop: StrictLoop = field(default_factory=StrictLoop)
    carried: int = 0
    echo_loss: float = 0.0
    answer_loss: float = 0.0
    echoes: int = 0
    """Requests sent."""
    new_paths: Mapping[str, bool] = field(default_factory=dict)
    """What data paths are like that are made from now on."""
    nat: dict[IPAddress, Endpoint] = field(default_factory=dict)
    """Machines behind a translator, and where others see the one port of each. Its mappings never
    end, and what goes to other ports of its address gets nowhere."""
    overheard: list[tuple[bytes, Endpoint, Endpoint]] = field(default_factory=list)
    """What was sent, from where and to where, as somebody on the path sees it."""

    def __post_init__(self) -> None:
        self._silent: IPAddress | None = None

    def silence(self, address: IPAddress | None) -> None:
        """Let nothing that this machine sends arrive."""
        self._silent = address

    def carry(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        if source.address == self._silent:
            return
        source = self.nat.get(source.address, source)
        self.overheard.append((data, source, to))
        for _ in range(1 + (self.dice.random() < self.duplication)):
            if self.dice.random() < self.loss:
                continue
            delay_s = self.dice.uniform(0.0005, self.longest_delay_s)
            self.loop.call_later(delay_s, lambda: self._deliver(data, source, to))

    def _deliver(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        machine = self._machine_at(to)
        if machine is not None and machine.handler is not None:
            self.carried += 1
            machine.handler(data, source, machine.address)

    def _machine_at(self, endpoint: Endpoint) -> Machine | None:
        """Return the machine that gets what is sent there."""
        for inside, outside in self.nat.items():
            if outside == endpoint:
                return self.machines.get(inside)
        return None if endpoint.address in self.nat else self.machines.get(endpoint.address)

    def echo(self, machine: Machine, sender: RecordingDataPath, request: bytes) -> None:
        """Let the remote's worker answer, if both ends carry frames."""

        def answer() -> None:
            if not sender.passes_frames or sender.attached is None:
                return
            remote = self._machine_at(sender.attached[0].endpoint)
            paths = () if remote is None else tuple(remote.data_paths.values())
            for path in paths:
                ends = path.attached and self._machine_at(path.attached[0].endpoint)
                if path.config.id == sender.config.id and ends is machine:
                    if path.passes_frames:
                        path.arrived += 1
                        if self.dice.random() < self.answer_loss:
                            return
                        reply = bytearray(request)
                        reply[2] = ECHO_REPLY
                        sender.on_echo(memoryview(reply), 0.0)
                    return

        self.echoes += 1
        if self.dice.random() >= self.echo_loss:
            self.loop.call_later(0.001, answer)

    def forge(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        """Deliver what somebody else sends, from whatever source."""
        self.loop.call_later(0.001, lambda: self._deliver(data, source, to))

    def run(self, seconds: float) -> None:
        """Let time pass; each machine looks after its circuits once a second."""
        end = self.loop.now() + seconds
        while self.loop.now() < end:
            self.loop.run_for(min(1.0, end - self.loop.now()))
            for machine in self.machines.values():
                machine.check()


@contextmanager
def network(seed: int) -> Iterator[Network]:
    made = Network(random.Random(seed))
    try:
        yield made
    finally:
        made.loop.close()
