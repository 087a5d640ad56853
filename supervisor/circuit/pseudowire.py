"""What carries one circuit's frames: its interface, its sockets, its worker."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from vela.address import Endpoint
from vela.dataplane.bundle import bundle_limit
from vela.dataplane.contract import Abilities, Attachment
from vela.dataplane.counters import CounterSlab, Slot
from vela.dataplane.ecn import DSCP_SHIFT
from vela.dataplane.engine import LoadedEngine
from vela.dataplane.frame import REBUILD_ROOM
from vela.errors import DeviceError, VelaError
from vela.linux.choice import UnderlayChoice, set_tos
from vela.linux.features import Features
from vela.linux.forwarding import Forwarding
from vela.linux.idle_cpus import IdleCpus
from vela.linux.netlink import Netlink
from vela.linux.sandbox import User, worker_filter
from vela.linux.underlay import (
    Route,
    UnderlayPath,
    find_route,
    pktinfo,
    restore_send_socket,
    set_narrowed,
)
from vela.mac import derive_mac
from vela.reasons import NO_REASON, Reason
from vela.wire import (
    MAX_UDP_PAYLOAD,
    datagram_limit,
    frame_limit,
)
from vela.worker import Queue, WorkerTask

from ..config.records import CircuitConfig, Latency
from ..demux import Claim, Demux
from ..inheritance import Inheritance, member_name, sending_name, tap_name
from ..runtime.burst import Burst, Pause
from ..runtime.descriptors import DescriptorBudget
from ..runtime.loop import Callback, EventLoop, Timer
from ..status import CounterStatus, WorkerStatus
from .data_path import EchoHandler
from .diversion import Diversion
from .interface import AttachmentCircuit
from .keeper import WorkerKeeper
from .links import Links
from .loops import Aim, Carriers
from .queues import place_of, queues_in_use, tap_queues, without_ports
from .rates import Traffic
from .send_sockets import SendSockets, Sockets
from .shaper import Shaper
from .source_ports import SourcePorts, derived_ports
from .spread import Spread
from .terms import Profile, is_encrypted, provisional_mtu

# Workers that start are forked in bursts: what the supervisor writes to between two forks is copied
# for each (measured with 255: 8 MB a worker, and 1 ms of page faults of the supervisor's after each
# fork). Those of a burst share their copies: with 255, a burst each 0.15 s leaves each worker
# 2.9 MB, each 0.6 s 2.4 MB, and all are up no later.
FORK_PAUSE = Pause(shortest_s=0.15, each_s=0.03, longest_s=0.6)


# How long a CPU stays set aside: until the next check, and one that is late.
KEPT_S = 3.0

TRAFFIC = tuple(map(int, (Slot.TX_FRAMES, Slot.TX_BYTES, Slot.RX_FRAMES, Slot.RX_BYTES)))
# TAP, two sockets, two ends of the diversion, the worker's pidfd, a key page.
DESCRIPTORS = 7
# Of each further queue: TAP, two sockets, two ends of the diversion.
QUEUE_DESCRIPTORS = 5


@dataclass(frozen=True, slots=True)
class PseudowireFactory:
    """What the pseudowires of a daemon are made of."""

    loop: EventLoop
    netlink: Netlink
    links: Links
    forwarding: Forwarding
    demux: Demux
    carriers: Carriers
    forks: Burst
    """Where workers are started: see FORK_PAUSE."""
    counters: CounterSlab
    engine: LoadedEngine
    features: Features
    """Of the kernel, that the engine uses."""
    user: User
    identity: tuple[str, ...]
    """What tells this machine from others, for addresses that are derived."""
    descriptors: DescriptorBudget = field(default_factory=lambda: DescriptorBudget(DESCRIPTORS))
    diverted: bytearray = field(default_factory=lambda: bytearray(REBUILD_ROOM + MAX_UDP_PAYLOAD))
    """What a worker passes on is read into this. One for all: each circuit has an answer a second,
    which is no reason to fill 64 KiB with zeros."""
    idle_cpus: IdleCpus | None = None
    """Where threads of saturated workers go; None: they stay where they are."""
    inheritance: Inheritance = field(default_factory=Inheritance)
    shared: bool = False
    """The service manager keeps copies of the interfaces' descriptors."""

    def __call__(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False, shielded: bool = False
    ) -> Pseudowire:
        """Create a circuit's interface: see Pseudowire.

        Raises NoRoomError too, before the limit of open files leaves none to go on with.
        """
        further = QUEUE_DESCRIPTORS * (tap_queues(config) - 1)
        self.descriptors.take(further)
        try:
            return Pseudowire(config, self, cpu, await_bridge=await_bridge, shielded=shielded)
        except VelaError:
            self.descriptors.give_back(further)
            raise


class Pseudowire:
    """A circuit's means, from the moment it is configured until it is closed.

    The interface, the counters and the sockets live as long as this does;
    workers come and go.
    """

    def __init__(
        self,
        config: CircuitConfig,
        parts: PseudowireFactory,
        cpu: int,
        *,
        await_bridge: bool,
        shielded: bool = False,
    ) -> None:
        """Create the interface, without carrier. Raises DeviceError, and then there is none.

        await_bridge, shielded: see AttachmentCircuit.
        """
        self._on_failure: Callback | None = None
        self._on_route: Callback | None = None
        self._config = config
        self._parts = parts
        self._cpu = cpu
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._attached: tuple[UnderlayPath, Profile] | None = None
        self._key_page: int | None = None
        self._frame_port: int | None = None
        self._carrier = self._narrowed = False
        self._interface_lost = self._changed = False
        self._claim: Claim | None = None
        self._send_sockets = SendSockets(parts.loop, self._open_send_sockets)
        self._queues = 1
        self._queue_obstacle = NO_REASON
        self._reserved = QUEUE_DESCRIPTORS * (tap_queues(config) - 1)
        self._starting: Timer | None = None
        self._source_ports = SourcePorts(
            parts.inheritance.take(sending_name(config.name)),
            parts.inheritance.take_queues(sending_name, config.name),
        )

        self.local_mac = config.mac or self._derive_mac()
        self._made_up_mac = self._derive_mac("remote")
        self._counters = parts.counters.take()
        self._keeper = WorkerKeeper(
            config.name,
            parts.loop,
            self._counters,
            self._on_interface_lost,
            self._on_failure_changed,
            self._restore,
        )
        self._spread: Spread | None = None
        if parts.idle_cpus is not None:
            self._spread = Spread(
                config.name, parts.loop, parts.idle_cpus, self._spreadable, self.traffic
            )
        with ExitStack() as undo:
            undo.callback(parts.counters.give_back, self._counters)
            self._diversion = Diversion(
                config.name,
                config.id,
                parts.loop,
                parts.demux,
                self._counters,
                parts.diverted,
                lambda frame: self._interface.write(frame),
            )
            undo.callback(self._diversion.close)
            adopted = parts.inheritance.take(tap_name(config.name))
            self._interface = AttachmentCircuit(
                config,
                self.local_mac,
                config.mtu or provisional_mtu(config),
                netlink=parts.netlink,
                links=parts.links,
                forwarding=parts.forwarding,
                virtio_header=parts.engine.abilities.virtio_header,
                features=parts.features,
                await_bridge=await_bridge,
                shielded=shielded,
                adopted=adopted,
                former=parts.inheritance.former(config.name),
                shared=parts.shared,
                queues=parts.inheritance.take_queues(tap_name, config.name),
            )
            undo.pop_all()
        if self._interface.adopted:
            end_worker = parts.inheritance.end_worker
            if end_worker is None:
                # Whoever read from it last may have changed it.
                self._keeper.expect_leftovers()
                self.set_carrier(parts.inheritance.goes_on(config))
            else:
                self._keeper.follow(partial(end_worker, config.name))
        self._shaper = Shaper(config.name, parts.netlink, adopted=self._interface.adopted)

    @property
    def name(self) -> str:
        return self._config.name

    @property
    def cpu(self) -> int:
        return self._cpu

    @property
    def mtu(self) -> int:
        """The TAP's, in bytes."""
        return self._interface.mtu

    @property
    def bridge_mtu(self) -> int | None:
        """Of the bridge that the interface is part of; None: there is none."""
        return self._interface.bridge_mtu

    @property
    def abilities(self) -> Abilities:
        """What the engine can do with this interface, which another one may have made."""
        abilities = self._parts.engine.abilities
        if abilities.virtio_header and not self._interface.virtio_header:
            # Only the header of a frame says that its checksum is a partial one.
            return replace(abilities, virtio_header=False, partial_checksums=False)
        return abilities

    @property
    def attached(self) -> tuple[UnderlayPath, Profile] | None:
        """Where frames go at present, and how."""
        return self._attached

    @property
    def obstacles(self) -> tuple[Reason, ...]:
        """What the interface still waits for; empty: nothing."""
        return *self._interface.obstacles, self._shaper.obstacle, self._queue_obstacle

    def set_failure_handler(self, handler: Callback) -> None:
        """Let handler be called when workers fail again and again, and when one lives again."""
        self._on_failure = handler

    @property
    def carries(self) -> bool:
        """Whether there is a worker that takes frames."""
        return all(self._counters.progress())

    def set_echo_handler(self, handler: EchoHandler) -> None:
        """Let handler take messages of in-circuit verification that the worker passes on."""
        self._diversion.set_echo_handler(handler)

    def send_echo(self, request: bytes) -> None:
        """Send an echo request from where frames leave, if it carries any."""
        self._diversion.send_echo(request)

    def echoes_arrived(self) -> int:
        """Return how many echo requests of the remote's the workers have answered."""
        return self._counters.total(Slot.RX_VERIFICATIONS)

    def set_route_handler(self, handler: Callback) -> None:
        """Let handler be called when the route to the remote may have changed."""
        self._on_route = handler

    def change(self, config: CircuitConfig, cpu: int) -> None:
        """Take another configuration of the circuit with this name and id. Raises DeviceError.

        The interface stays. What the worker was told is out of date then: attach() follows.
        """
        mac = self.local_mac
        if config.mac != self._config.mac:
            mac = config.mac or self._derive_mac()
        self._interface.change(config, mac)
        self._changed = self._changed or (
            (mac, cpu, config.cpus, config.latency, config.dscp, config.packet_too_big)
            != (
                *(self.local_mac, self._cpu, self._config.cpus, self._config.latency),
                *(self._config.dscp, self._config.packet_too_big),
            )
        )
        if self._attached is None and config.mtu is not None and config.mtu != self._config.mtu:
            self._interface.set_mtu(config.mtu, encrypted=is_encrypted(config))
        self._config, self.local_mac, self._cpu = config, mac, cpu

    def change_engine(self, engine: LoadedEngine, features: Features) -> None:
        """Let another engine carry frames, on the same interface; attach() follows.

        Raises DeviceError.
        """
        virtio_header = engine.abilities.virtio_header
        self._interface.change_engine(features, virtio_header=virtio_header)
        self._parts = replace(self._parts, engine=engine, features=features)
        self._changed = True

    @property
    def _choice(self) -> UnderlayChoice:
        return self._config.underlay

    @property
    def _tos(self) -> int:
        """What the sending socket has by itself; the worker sets others packet by packet."""
        return (self._config.dscp or 0) << DSCP_SHIFT

    def _derive_mac(self, *end: str) -> bytes:
        config = self._config
        return derive_mac(
            *end, *self._parts.identity, config.name, str(config.id), str(config.remote)
        )

    def kill_worker(self) -> None:
        """Begin to end the worker, ahead of close() in the same turn of the loop."""
        self._keeper.kill()

    def close(self) -> None:
        """Take everything down; the interface is gone afterwards."""
        self._take_down()
        self._interface.close()

    def leave(self) -> None:
        """Take everything down; the interface is gone unless somebody has a copy of its descriptor.

        It then has no carrier.
        """
        self._take_down()
        self._interface.leave()

    @property
    def member(self) -> tuple[str, int] | None:
        """The name of the socket that it receives on, and its index; None: it carries nothing."""
        claim = self._claim
        return None if claim is None else (member_name(claim.group, claim.index), claim.index)

    @property
    def further_members(self) -> tuple[int, ...]:
        """The indices of further sockets that it receives on."""
        return () if self._claim is None else self._claim.further

    @property
    def sending(self) -> tuple[int, ...]:
        """The descriptors of the sockets of its own that it sends from, if there are any."""
        return tuple(each.fileno() for each in self._send_sockets.all_present)

    @property
    def has_former(self) -> bool:
        """Whether another velad's worker still carries frames."""
        return self._keeper.has_former

    def retire_worker(self, done: Callback) -> None:
        """End the worker after what it has in hand, and start no other; then call done."""
        if self._starting is not None:
            self._starting.cancel()
        self._keeper.retire(done)

    @property
    def taps(self) -> tuple[tuple[int, ...], int]:
        """The descriptors of the interface, and the number that the kernel knows that by."""
        return self._interface.fds, self._interface.index

    def _take_down(self) -> None:
        self.detach()
        self._source_ports.close()
        self._diversion.close()
        self._parts.demux.watch_route(self, None)
        self._parts.carriers.forget(self._interface.index)
        self._parts.counters.give_back(self._counters)
        self._parts.descriptors.give_back(self._reserved)

    def attach(self, path: UnderlayPath, profile: Profile, key_page: int | None = None) -> None:
        """Carry frames to and from this remote from now on.

        key_page is the descriptor of the circuit's key page, which the worker
        gets and this process never maps. An encrypted circuit needs one, also
        where there is no key in it yet, and no other may have one.

        Does nothing where it already does just that. Where only numbers differ, a
        new worker goes on with the same descriptors. Raises VelaError, and then it
        is detached.
        """
        before = self._attached
        if before == (path, profile) and key_page == self._key_page and not self._changed:
            return
        goes_on = before is not None and _receives_alike(before[0], path)
        if not goes_on or key_page != self._key_page:
            self._release()
        else:
            if self._starting is not None:
                self._starting.cancel()
            if before is not None and (
                before[1].source_port != profile.source_port
                or 0 < len(self._send_sockets.all_present) < self._ports_for(profile)
            ):
                self._send_sockets.retire()
        try:
            self._attach(path, profile, key_page)
        except BaseException:
            self.detach()
            raise
        self._log.debug(
            "circuit_attached",
            remote=str(path.endpoint),
            source=str(path.route.source),
            mtu=profile.mtu,
            elision=profile.elision.name.lower(),
        )

    @property
    def frame_port(self) -> int | None:
        """The UDP port that frames leave from; None: it carries none."""
        return self._frame_port

    def prepare_port(self, path: UnderlayPath, profile: Profile) -> int:
        """Return the UDP port that frames will leave from with this profile.

        One of the circuit's own is opened for that. Raises DeviceError.
        """
        if profile.source_port == path.group.port:
            return path.group.port
        return self._send_sockets.prepare(path, profile.source_port, self._ports_for(profile))

    def _ports_for(self, profile: Profile) -> int:
        there = len(self._interface.fds)
        return queues_in_use(self._config, profile, self.abilities, there)[0]

    def ports_from(self, port: int) -> int:
        """Return how many UDP ports in a row are this circuit's to send from, from this one on."""
        return self._send_sockets.count_from(port)

    def expect_frames_from(self, port: int | None, count: int = 1) -> None:
        """Take only frames of so many UDP ports of the remote's, from this one on; None: of any."""
        if self._claim is not None:
            self._parts.demux.restrict(self._claim, port, count)

    def detach(self) -> None:
        """Stop carrying frames; those that come meanwhile wait in the interface's queue."""
        self._release()
        self._keeper.forget()

    def _release(self) -> None:
        self._attached = self._frame_port = self._key_page = None
        self._diversion.rest()
        self._stop_worker()
        self._send_sockets.close()
        if self._claim is not None:
            self._parts.demux.withdraw(self._claim)
            self._claim = None

    def limit(self, rate: int | None) -> None:
        """Send at most this many bits per second; None: whatever there is to send.

        The worker takes no note of it.
        """
        self._shaper.limit(rate, self._interface.mtu)

    def set_carrier(self, carrier: bool) -> None:
        """Show the link up or down to routing daemons and bridges. Raises DeviceError.

        It stays down while workers die again and again.
        """
        self._carrier = carrier
        # One that was removed gets its carrier when it is made again.
        if self._interface.exists():
            self._interface.set_carrier(carrier and not self._keeper.failure)

    def check(self) -> None:
        """Look after interface and worker; to be called once a second.

        Raises VelaError as long as an interface that somebody removed cannot
        be made again, or workers die again and again.
        """
        if not self._interface.exists():
            self._replace_interface()
        self._interface.set_gso_max_size()
        self._keeper.check()
        if self._parts.idle_cpus is not None and self._config.latency is Latency.LOW:
            self._parts.idle_cpus.keep(self._config.cpus, self._parts.loop.now() + KEPT_S)
        if self._spread is not None:
            self._spread.check()
        self._interface.look_for_bridge()
        self._shaper.check()
        if self._keeper.failure:
            raise DeviceError(self._keeper.failure)

    def _spreadable(self) -> tuple[int | None, int]:
        """Return the worker, and its CPU, if the operator leaves to velad where its threads run."""
        config = self._config
        usual = not config.cpus and config.latency is not Latency.LOW
        may = usual and self._parts.engine.abilities.several_queues
        return self._keeper.pid if may else None, self._cpu

    def deliver(self, data: bytearray, start: int, end: int) -> None:
        """Take a datagram that came past the worker. See demux.Receiver."""
        self._diversion.deliver(data, start, end)

    def find_loop(self, remote: Endpoint, route: Route) -> Reason:
        """Return why the circuit cannot send to a remote by this route; empty: it can.

        Where it cannot, the circuit is told when routes to the remote change.
        """
        aim = Aim(self.name, route.source, remote, self._choice)
        carriers, index = self._parts.carriers, self._interface.index
        carriers.aim(index, aim)
        loop = carriers.find_loop(index, aim, route)
        self._parts.demux.watch_route(self, remote.address if loop else None)
        return loop

    def look_at_route(self) -> None:
        """Let fragments follow the route at once; the circuit's MTU does within a minute."""
        self._follow_narrowed()
        if self._on_route is not None:
            self._on_route()

    def _follow_narrowed(self) -> None:
        if self._attached is None or self._claim is None:
            return
        path, _ = self._attached
        with suppress(OSError):  # without a route nothing is sent
            self._narrowed = find_route(path.route.source, path.endpoint, self._choice).narrowed
            for each in self._send_sockets.all_present or (self._claim.socket,):
                set_narrowed(each, self._narrowed)

    def traffic(self) -> Traffic:
        """Return what it has carried, at less cost than counter_status()."""
        return Traffic(*self._counters.totals(*TRAFFIC))

    def counter_status(self) -> CounterStatus:
        return CounterStatus.of(self._counters)

    def worker_status(self) -> WorkerStatus | None:
        """Return what there is to say of the worker, if there is to be one."""
        if self._attached is None:
            return None
        cpu_percent, memory_bytes = self._keeper.usage()
        return WorkerStatus(
            pid=self._keeper.pid,
            cpu=self._cpu,
            queues=self._queues,
            latency=self._config.latency.value,
            engine=self._parts.engine.name,
            restarts=self._keeper.restarts,
            cpu_percent=cpu_percent,
            memory_bytes=memory_bytes,
            ingress_cpu=None if self._spread is None else self._spread.ingress_cpu,
        )

    def _stop_worker(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        if self._spread is not None:
            self._spread.stop()
        self._keeper.stop()

    def _on_interface_lost(self) -> None:
        try:
            self._replace_interface()
        except DeviceError as err:
            self._log.error("interface_not_replaced", error=str(err))

    def _on_failure_changed(self) -> None:
        try:
            self.set_carrier(self._carrier)
        except DeviceError as err:
            self._log.error("carrier_not_set", error=str(err))
        if self._on_failure is not None:
            self._on_failure()

    def _restore(self) -> None:
        """Set what a dead worker may have left changed behind its descriptors.

        Where its system calls were filtered, that is nothing.
        """
        try:
            self._interface.restore()
            self.set_carrier(self._carrier)
            if self._claim is not None:
                self._claim.restore()
                set_narrowed(self._claim.socket, self._narrowed)
                set_tos(self._claim.socket, self._tos)
            if self._attached is not None:
                endpoint = self._attached[0].endpoint
                for each in self._send_sockets.all_present:
                    restore_send_socket(each, endpoint, narrowed=self._narrowed, tos=self._tos)
        except (OSError, DeviceError) as err:
            # The worker finds out, if it matters; a TAP may just have been removed.
            self._log.warning("descriptors_not_restored", error=str(err))

    def _replace_interface(self) -> None:
        """Make the interface again, which somebody removed, and go on as before."""
        if not self._interface_lost:
            self._interface_lost = True
            self._log.warning("interface_removed")
        attached, key_page = self._attached, self._key_page
        # What fails now can be tried again from here: it stays attached.
        self._stop_worker()
        self._parts.carriers.forget(self._interface.index)
        self._interface.make_again()
        self._interface_lost = False
        self._release()
        if attached is not None:
            self.attach(*attached, key_page)
        self._shaper.check()
        self.set_carrier(self._carrier)

    def _attach(self, path: UnderlayPath, profile: Profile, key_page: int | None) -> None:
        if profile.encrypted != (key_page is not None):
            raise DeviceError("an encrypted circuit, and no other, needs a key page")
        family = path.endpoint.family
        self._narrowed = path.route.narrowed
        self._interface.set_mtu(profile.mtu, encrypted=profile.encrypted)
        claim = self._claim
        if claim is None:
            claim = self._claim = self._parts.demux.claim(
                self,
                self._config.id,
                path.sources,
                path.group,
                path.route.source,
                len(self._interface.fds),
            )
        there = min(len(self._interface.fds), len(claim.indices))
        queues, self._queue_obstacle = queues_in_use(self._config, profile, self.abilities, there)
        sending: Sockets
        destination = source_address = None
        if profile.source_port == path.group.port:
            sending = (claim.socket,)
            set_narrowed(claim.socket, self._narrowed)
            set_tos(claim.socket, self._tos)
            self._choice.mark_socket(claim.socket)
            destination = path.group.sockaddr(path.endpoint)
            if path.group.address.is_unspecified or path.route.device is not None:
                source_address = pktinfo(path.route.source, path.route.device or 0)
        else:
            # It may have been there, with other numbers.
            sending = self._send_sockets.take(path, profile.source_port, queues)
            for each in sending:
                set_narrowed(each, self._narrowed)
                set_tos(each, self._tos)
        if len(sending) < queues:
            self._queue_obstacle = without_ports(self._config, queues)
        queues = self._queues = min(queues, len(sending))
        self._counters.make_room(queues)
        self._diversion.make_room(queues)
        self._interface.spread(queues)
        self._parts.demux.spread(claim, queues)
        attachment = Attachment(
            circuit_id=self._config.id,
            tap_fd=self._interface.fd,
            receive_socket=claim.socket,
            send_socket=sending[0],
            destination=destination,
            source_address=source_address,
            divert_socket=self._diversion.worker_ends[0],
            local_mac=self.local_mac,
            remote_mac=profile.remote_mac or self._made_up_mac,
            elision=profile.elision,
            frame_limit=frame_limit(self._interface.mtu),
            datagram_limit=datagram_limit(path.mtu, family),
            counters=self._counters.worker,
            virtio_header=self._interface.virtio_header,
            partial_checksums=profile.partial_checksums,
            fragmentation=profile.fragmentation,
            packet_too_big=self._config.packet_too_big,
            queue=place_of(0, queues),
            mss_clamp=profile.mss_clamp,
            dscp=self._config.dscp,
            carry_ecn=profile.carry_ecn,
            features=self._parts.features,
            low_latency=self._config.latency is Latency.LOW,
            key_page=key_page,
            sequences=profile.sequences,
            bundle_limit=bundle_limit(profile.mtu) if profile.bundles else 0,
        )
        fds = self._interface.fds
        further = tuple(
            replace(
                attachment,
                tap_fd=fds[queue],
                receive_socket=claim.group.member(claim.indices[queue]),
                send_socket=sending[queue],
                divert_socket=self._diversion.worker_ends[queue],
                counters=self._counters.workers[queue],
                queue=place_of(queue, queues),
            )
            for queue in range(1, queues)
        )
        all_calls = map(self._parts.engine.calls, (attachment, *further))
        task = WorkerTask(
            circuit=self._config.name,
            engine=self._parts.engine,
            attachment=attachment,
            page=self._counters.page,
            exit_message=self._keeper.exit_message,
            handover=self._keeper.handover,
            cpu=self._cpu,
            user=self._parts.user,
            supervisor_pid=os.getpid(),
            filter=worker_filter(rule for calls in all_calls for rule in calls),
            further=tuple(map(Queue, further, self._config.cpus[1:])),
        )
        self._starting = self._parts.forks.add(lambda: self._keeper.replace(task))
        self._attached, self._key_page, self._changed = (path, profile), key_page, False
        self._frame_port = sending[0].getsockname()[1]
        self._diversion.follow(attachment, further, path, claim)

    def _open_send_sockets(self, path: UnderlayPath, wanted: int | None, count: int) -> Sockets:
        config = self._config
        identity = f"{config.name} {config.id} {config.remote}"
        ports = derived_ports(identity) if wanted is None else [wanted]
        return self._source_ports.open(
            path,
            ports,
            count,
            self._choice,
            self._send_sockets.free,
            narrowed=self._narrowed,
            tos=self._tos,
        )


def _receives_alike(old: UnderlayPath, new: UnderlayPath) -> bool:
    """Tell whether frames come by the same socket on both paths, from and to the same addresses."""
    return (old.endpoint, old.sources, old.group, old.route.source) == (
        *(new.endpoint, new.sources, new.group),
        new.route.source,
    )
