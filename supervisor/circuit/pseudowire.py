"""What carries one circuit's frames: its interface, its sockets, its worker."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address

import structlog

from vela.address import Endpoint
from vela.dataplane.contract import Abilities, Attachment
from vela.dataplane.counters import CounterSlab, Slot
from vela.dataplane.echo import send_echo
from vela.dataplane.ecn import DSCP_SHIFT
from vela.dataplane.engine import LoadedEngine
from vela.dataplane.frame import REBUILD_ROOM, Decapsulator, Dropped, Piece, Verification
from vela.errors import DeviceError, VelaError
from vela.linux.arrival import ARRIVAL_SPACE, age_s, show_arrival
from vela.linux.choice import UnderlayChoice, set_tos
from vela.linux.features import Features
from vela.linux.forwarding import Forwarding
from vela.linux.netlink import Netlink
from vela.linux.sandbox import User, worker_filter
from vela.linux.underlay import (
    Route,
    UnderlayPath,
    find_route,
    open_send_socket,
    pktinfo,
    restore_send_socket,
    set_narrowed,
    set_send_buffer,
)
from vela.mac import derive_mac
from vela.reasons import Cause, Reason
from vela.wire import (
    MAX_SOURCE_PORT,
    MAX_UDP_PAYLOAD,
    MIN_SOURCE_PORT,
    datagram_limit,
    frame_limit,
)
from vela.worker import WorkerTask

from ..config.records import CircuitConfig
from ..demux import DATAGRAMS_AT_ONCE, UNKNOWN_PORT, Claim, Demux
from ..inheritance import Inheritance, member_name, sending_name, tap_name
from ..runtime.burst import Burst
from ..runtime.descriptors import DescriptorBudget
from ..runtime.loop import Callback, EventLoop, Timer
from ..status import CounterStatus, WorkerStatus
from .data_path import EchoHandler
from .interface import AttachmentCircuit
from .keeper import WorkerKeeper
from .links import Links
from .loops import Aim, Carriers
from .rates import Traffic
from .send_sockets import SendSockets
from .shaper import Shaper
from .terms import Profile, is_encrypted, provisional_mtu

# Workers that start are forked in a row, this often: what the supervisor writes to
# between two forks is copied for each (measured with 255: 8 MB a worker, and
# 1 ms of page faults of the supervisor's after each fork).
FORK_INTERVAL_S = 0.15


# Ports tried from the derived one on, where others have it.
SOURCE_PORT_TRIES = 64
TRAFFIC = tuple(map(int, (Slot.TX_FRAMES, Slot.TX_BYTES, Slot.RX_FRAMES, Slot.RX_BYTES)))
# TAP, two sockets, two ends of the diversion, the worker's pidfd, a key page.
DESCRIPTORS = 7


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
    """Where workers are started: see FORK_INTERVAL_S."""
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
    inheritance: Inheritance = field(default_factory=Inheritance)
    shared: bool = False
    """The service manager keeps copies of the interfaces' descriptors."""

    def __call__(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False, shielded: bool = False
    ) -> Pseudowire:
        """Create a circuit's interface: see Pseudowire.

        Raises NoRoomError too, before the limit of open files leaves none to go on with.
        """
        self.descriptors.take()
        try:
            return Pseudowire(config, self, cpu, await_bridge=await_bridge, shielded=shielded)
        except VelaError:
            self.descriptors.give_back()
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
        self._on_echo: EchoHandler = lambda _, _age_s: False
        self._config = config
        self._parts = parts
        self._cpu = cpu
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._attached: tuple[UnderlayPath, Profile] | None = None
        self._attachment: Attachment | None = None
        self._key_page: int | None = None
        self._frame_port: int | None = None
        self._carrier = self._narrowed = False
        self._interface_lost = self._changed = False
        self._claim: Claim | None = None
        self._send_sockets = SendSockets(parts.loop, self._open_send_socket)
        self._starting: Timer | None = None
        self._inherited = parts.inheritance.take(sending_name(config.name))

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
        with ExitStack() as undo:
            undo.callback(parts.counters.give_back, self._counters)
            self._divert_reader, self._divert_writer = _socket_pair(config.name)
            undo.callback(self._divert_reader.close)
            undo.callback(self._divert_writer.close)
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
            )
            undo.pop_all()
        if self._interface.adopted:
            end_worker = parts.inheritance.end_worker
            if end_worker is None:
                # Whoever read from it last may have changed it.
                self._keeper.expect_leftovers()
                self.set_carrier(False)
            else:
                self._keeper.follow(partial(end_worker, config.name))
        self._shaper = Shaper(config.name, parts.netlink, adopted=self._interface.adopted)
        self._decapsulator = self._make_decapsulator(None, partial_checksums=False)
        set_send_buffer(self._divert_writer)
        parts.loop.watch(self._divert_reader.fileno(), self._on_diverted)

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
        return *self._interface.obstacles, self._shaper.obstacle

    def set_failure_handler(self, handler: Callback) -> None:
        """Let handler be called when workers fail again and again, and when one lives again."""
        self._on_failure = handler

    @property
    def carries(self) -> bool:
        """Whether there is a worker that takes frames."""
        return all(self._counters.progress())

    def set_echo_handler(self, handler: EchoHandler) -> None:
        """Let handler take messages of in-circuit verification that the worker passes on."""
        self._on_echo = handler

    def send_echo(self, request: bytes) -> None:
        """Send an echo request from where frames leave, if it carries any."""
        if self._attachment is not None:
            send_echo(self._attachment, self._divert_reader, request)

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
            (mac, cpu, config.dscp, config.packet_too_big)
            != (self.local_mac, self._cpu, self._config.dscp, self._config.packet_too_big)
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
    def sending(self) -> int | None:
        """The descriptor of the socket of its own that it sends from, if there is one."""
        present = self._send_sockets.present
        return None if present is None else present.fileno()

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
    def tap(self) -> tuple[int, int]:
        """The descriptor of the interface, and the number that the kernel knows that by."""
        return self._interface.fd, self._interface.index

    def _take_down(self) -> None:
        self.detach()
        if self._inherited is not None:
            os.close(self._inherited)
            self._inherited = None
        self._parts.loop.unwatch(self._divert_reader.fileno())
        self._divert_reader.close()
        self._divert_writer.close()
        self._parts.demux.watch_route(self, None)
        self._parts.carriers.forget(self._interface.index)
        self._parts.counters.give_back(self._counters)
        self._parts.descriptors.give_back()

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
            if before is not None and before[1].source_port != profile.source_port:
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
        return self._send_sockets.prepare(path, profile.source_port)

    def expect_frames_from(self, port: int | None) -> None:
        """Take only frames that come from this UDP port of the remote's; None: from any."""
        if self._claim is not None:
            self._parts.demux.restrict(self._claim, port)

    def detach(self) -> None:
        """Stop carrying frames; those that come meanwhile wait in the interface's queue."""
        self._release()
        self._keeper.forget()

    def _release(self) -> None:
        self._attached = self._attachment = self._frame_port = self._key_page = None
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
        self._interface.look_for_bridge()
        self._shaper.check()
        if self._keeper.failure:
            raise DeviceError(self._keeper.failure)

    def deliver(self, data: bytearray, start: int, end: int) -> None:
        """Take a datagram that came past the worker. See demux.Receiver.

        Those of an encrypted circuit are the worker's, whatever they are: it
        has the keys, and none may reach the TAP without them.
        """
        counters = self._counters.supervisor
        if self._key_page is not None:
            try:
                self._divert_reader.send(memoryview(data)[start:end])
            except OSError:  # its queue is full, or the datagram larger than that
                counters[Slot.RX_CONGESTED] += 1
            return
        try:
            frame, elided = self._decapsulator.decapsulate(data, start, end)
        except Dropped as dropped:
            counters[dropped.slot] += 1
            return
        except Verification:
            # A request asks for the worker; an answer from here would show nothing.
            if not self._on_echo(memoryview(data)[start:end], 0.0):
                counters[Slot.RX_RESERVED] += 1
            return
        except Piece:
            # The worker has the others.
            counters[Slot.RX_INCOMPLETE] += 1
            return
        try:
            self._interface.write(memoryview(data)[frame:end])
        except OSError:
            counters[Slot.RX_INTERFACE_DOWN] += 1
            return
        counters[Slot.RX_FRAMES] += 1
        counters[Slot.RX_BYTES] += end - frame
        counters[Slot.RX_ELIDED] += elided

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
            set_narrowed(self._send_sockets.present or self._claim.socket, self._narrowed)

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
            engine=self._parts.engine.name,
            restarts=self._keeper.restarts,
            cpu_percent=cpu_percent,
            memory_bytes=memory_bytes,
        )

    def _stop_worker(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
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
            present = self._send_sockets.present
            if present is not None and self._attached is not None:
                endpoint = self._attached[0].endpoint
                restore_send_socket(present, endpoint, narrowed=self._narrowed, tos=self._tos)
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

    def _make_decapsulator(
        self, remote_mac: bytes | None, *, partial_checksums: bool
    ) -> Decapsulator:
        return Decapsulator(
            self.local_mac,
            remote_mac or self._made_up_mac,
            frame_limit(self._interface.mtu),
            partial_checksums=partial_checksums,
        )

    def _attach(self, path: UnderlayPath, profile: Profile, key_page: int | None) -> None:
        if profile.encrypted != (key_page is not None):
            raise DeviceError("an encrypted circuit, and no other, needs a key page")
        family = path.endpoint.family
        self._narrowed = path.route.narrowed
        self._interface.set_mtu(profile.mtu, encrypted=profile.encrypted)
        self._decapsulator = self._make_decapsulator(
            profile.remote_mac, partial_checksums=profile.partial_checksums
        )
        claim = self._claim
        if claim is None:
            claim = self._claim = self._parts.demux.claim(
                self, self._config.id, path.sources, path.group, path.route.source
            )
        destination = source_address = None
        if profile.source_port == path.group.port:
            send_socket = claim.socket
            set_narrowed(send_socket, self._narrowed)
            set_tos(send_socket, self._tos)
            self._choice.mark_socket(send_socket)
            destination = path.group.sockaddr(path.endpoint)
            if path.group.address.is_unspecified or path.route.device is not None:
                source_address = pktinfo(path.route.source, path.route.device or 0)
        else:
            # It may have been there, with other numbers.
            send_socket = self._send_sockets.take(path, profile.source_port)
            set_narrowed(send_socket, self._narrowed)
            set_tos(send_socket, self._tos)
        attachment = self._attachment = Attachment(
            circuit_id=self._config.id,
            tap_fd=self._interface.fd,
            receive_socket=claim.socket,
            send_socket=send_socket,
            destination=destination,
            source_address=source_address,
            divert_socket=self._divert_writer,
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
            mss_clamp=profile.mss_clamp,
            dscp=self._config.dscp,
            carry_ecn=profile.carry_ecn,
            features=self._parts.features,
            key_page=key_page,
        )
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
            filter=worker_filter(self._parts.engine.calls(attachment)),
        )
        self._starting = self._parts.forks.add(lambda: self._keeper.replace(task))
        self._attached, self._key_page, self._changed = (path, profile), key_page, False
        self._frame_port = send_socket.getsockname()[1]

    def _open_send_socket(self, path: UnderlayPath, wanted: int | None) -> socket.socket:
        if wanted is not None:
            ports = [wanted]
        else:
            identity = f"{self._config.name} {self._config.id} {self._config.remote}"
            span = MAX_SOURCE_PORT - MIN_SOURCE_PORT + 1
            first = zlib.crc32(identity.encode())
            ports = [MIN_SOURCE_PORT + (first + i) % span for i in range(SOURCE_PORT_TRIES)]
        inherited = self._take_inherited(path, ports)
        if inherited is not None:
            return inherited
        for port in ports:
            self._send_sockets.free(port)
            try:
                return open_send_socket(
                    path.route.source,
                    port,
                    path.endpoint,
                    narrowed=self._narrowed,
                    tos=self._tos,
                    choice=self._choice,
                )
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise DeviceError(
                        f"cannot send to {path.endpoint}: {os.strerror(err.errno or 0)}"
                    ) from err
        taken = str(ports[0]) if len(ports) == 1 else f"{ports[0]} and {len(ports) - 1} more"
        raise DeviceError(Cause.PORT_IN_USE.say(port=taken))

    def _take_inherited(self, path: UnderlayPath, ports: Sequence[int]) -> socket.socket | None:
        """Return the socket that another velad sends from, once, if it is the right one."""
        fd, self._inherited = self._inherited, None
        if fd is None:
            return None
        inherited = socket.socket(fileno=fd)
        endpoint = path.endpoint
        with suppress(OSError):
            address, port = inherited.getpeername()[:2]
            source = inherited.getsockname()
            same = (ip_address(address), port) == (endpoint.address, endpoint.port)
            if same and source[1] in ports and ip_address(source[0]) == path.route.source:
                self._choice.mark_socket(inherited)
                return inherited
        inherited.close()
        return None

    def _on_diverted(self) -> None:
        """Pass on what UDP GRO joined to this circuit's datagrams: same remote, other circuit."""
        data = self._parts.diverted
        view = memoryview(data)[REBUILD_ROOM:]
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                length, ancillary, _, _ = self._divert_reader.recvmsg_into([view], ARRIVAL_SPACE)
            except BlockingIOError:
                return
            if length and data[REBUILD_ROOM] == self._config.id:
                # An answer to an echo request; the worker passes nothing else of its circuit on.
                if not self._on_echo(view[:length], age_s(ancillary)):
                    self._counters.supervisor[Slot.RX_RESERVED] += 1
                return  # mostly there is one; if not, the loop calls again
            if self._attached is not None:
                path, _ = self._attached
                # UDP GRO joins what comes from one port.
                demux, claim = self._parts.demux, self._claim
                port = None if claim is None else demux.port_of(claim)
                source = Endpoint(path.endpoint.address, UNKNOWN_PORT if port is None else port)
                end = REBUILD_ROOM + length
                demux.dispatch(source, path.route.source, data, REBUILD_ROOM, end)


def _receives_alike(old: UnderlayPath, new: UnderlayPath) -> bool:
    """Tell whether frames come by the same socket on both paths, from and to the same addresses."""
    return (old.endpoint, old.sources, old.group, old.route.source) == (
        *(new.endpoint, new.sources, new.group),
        new.route.source,
    )


def _socket_pair(circuit: str) -> tuple[socket.socket, socket.socket]:
    try:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        show_arrival(pair[0])
        return pair
    except OSError as err:
        raise DeviceError(f"{circuit}: cannot make a socket pair: {err.strerror}") from err
