"""What carries one circuit's frames: its interface, its sockets, its worker."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from contextlib import ExitStack
from dataclasses import dataclass

import structlog

from vela.dataplane.contract import Attachment
from vela.dataplane.counters import CounterSlab, Slot
from vela.dataplane.engine import LoadedEngine
from vela.dataplane.frame import REBUILD_ROOM, Decapsulator, Dropped, Verification
from vela.errors import DeviceError
from vela.linux.confinement import User
from vela.linux.features import Features
from vela.linux.forwarding import Forwarding
from vela.linux.netlink import Netlink
from vela.linux.tap import Tap
from vela.linux.underlay import (
    UnderlayPath,
    open_send_socket,
    pktinfo,
    set_send_buffer,
)
from vela.mac import derive_mac
from vela.wire import (
    MAX_SOURCE_PORT,
    MAX_UDP_PAYLOAD,
    MIN_SOURCE_PORT,
    datagram_limit,
    frame_limit,
    gso_max_size,
)
from vela.worker import WorkerTask

from ..config.records import CircuitConfig, Encapsulation
from ..demux import DATAGRAMS_AT_ONCE, Claim, Demux
from ..runtime.burst import Burst
from ..runtime.loop import Callback, EventLoop, Timer
from ..status import CounterStatus, WorkerStatus
from .keeper import WorkerKeeper
from .terms import PROVISIONAL_MTU, Profile

# Workers that start are forked in a row, this often: what the supervisor writes to
# between two forks is copied for each (measured with 255: 8 MB a worker, and
# 1 ms of page faults of the supervisor's after each fork).
FORK_INTERVAL_S = 0.15


# Ports tried from the derived one on, where others have it.
SOURCE_PORT_TRIES = 64


@dataclass(frozen=True, slots=True)
class PseudowireFactory:
    """What the pseudowires of a daemon are made of."""

    loop: EventLoop
    netlink: Netlink
    forwarding: Forwarding
    demux: Demux
    forks: Burst
    """Where workers are started: see FORK_INTERVAL_S."""
    counters: CounterSlab
    engine: LoadedEngine
    features: Features
    """Of the kernel, that the engine uses."""
    user: User
    identity: tuple[str, ...]
    """What tells this machine from others, for addresses that are derived."""

    def __call__(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False
    ) -> Pseudowire:
        """Create a circuit's interface: see Pseudowire."""
        return Pseudowire(config, self, cpu, await_bridge=await_bridge)


class Pseudowire:
    """A circuit's means, from the moment it is configured until it is closed.

    The interface, the counters and the sockets live as long as this does;
    workers come and go.
    """

    def __init__(
        self, config: CircuitConfig, parts: PseudowireFactory, cpu: int, *, await_bridge: bool
    ) -> None:
        """Create the interface, without carrier. Raises DeviceError, and then there is none.

        await_bridge: a bridge that does not exist is no error; see obstacle.
        """
        self._on_failure: Callback | None = None
        self._config = config
        self._parts = parts
        self._cpu = cpu
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._attached: tuple[UnderlayPath, Profile] | None = None
        self._carrier = False
        self._interface_lost = False
        self._bridge_index: int | None = None
        self._await_bridge = await_bridge
        self._claim: Claim | None = None
        self._send_socket: socket.socket | None = None
        self._starting: Timer | None = None

        identity = (*parts.identity, config.name, str(config.id), str(config.remote))
        self.local_mac = config.mac or derive_mac(*identity)
        self._made_up_mac = derive_mac("remote", *identity)
        self._counters = parts.counters.take()
        self._keeper = WorkerKeeper(
            config.name,
            parts.loop,
            self._counters,
            self._on_interface_lost,
            self._on_failure_changed,
        )
        with ExitStack() as undo:
            undo.callback(parts.counters.give_back, self._counters)
            self._divert_reader, self._divert_writer = _socket_pair(config.name)
            undo.callback(self._divert_reader.close)
            undo.callback(self._divert_writer.close)
            self._tap = self._make_interface(config.mtu or PROVISIONAL_MTU)
            undo.pop_all()
        # Made already, it outlives its bridge.
        self._await_bridge = True
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
        return self._tap.mtu

    @property
    def offloads(self) -> bool:
        """Whether the engine takes frames that the kernel left unfinished."""
        return self._parts.engine.offloads

    @property
    def attached(self) -> tuple[UnderlayPath, Profile] | None:
        """Where frames go at present, and how."""
        return self._attached

    @property
    def obstacle(self) -> str:
        """Why the interface is not part of its bridge; empty: it is, or has none."""
        if self._config.bridge is None or self._bridge_index is not None:
            return ""
        return f"waits for the bridge {self._config.bridge}, which does not exist"

    def set_failure_handler(self, handler: Callback) -> None:
        """Let handler be called when workers fail again and again, and when one lives again."""
        self._on_failure = handler

    def kill_worker(self) -> None:
        """Begin to end the worker, ahead of close() in the same turn of the loop."""
        self._keeper.kill()

    def close(self) -> None:
        """Take everything down; the interface is gone afterwards."""
        self.detach()
        self._parts.loop.unwatch(self._divert_reader.fileno())
        self._divert_reader.close()
        self._divert_writer.close()
        self._tap.close()
        self._parts.counters.give_back(self._counters)

    def attach(self, path: UnderlayPath, profile: Profile) -> None:
        """Carry frames to and from this remote from now on.

        Does nothing where it already does just that. Raises VelaError, and
        then it is detached.
        """
        if (path, profile) == self._attached:
            return
        self._release()
        try:
            self._attach(path, profile)
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

    def detach(self) -> None:
        """Stop carrying frames; those that come meanwhile wait in the interface's queue."""
        self._release()
        self._keeper.forget()

    def _release(self) -> None:
        self._attached = None
        self._stop_worker()
        if self._send_socket is not None:
            self._send_socket.close()
            self._send_socket = None
        if self._claim is not None:
            self._parts.demux.withdraw(self._claim)
            self._claim = None

    def set_carrier(self, carrier: bool) -> None:
        """Show the link up or down to routing daemons and bridges. Raises DeviceError.

        It stays down while workers die again and again.
        """
        self._carrier = carrier
        # One that was removed gets its carrier when it is made again.
        if self._tap.exists():
            self._tap.set_carrier(carrier and not self._keeper.failure)

    def check(self) -> None:
        """Look after interface and worker; to be called once a second.

        Raises VelaError as long as an interface that somebody removed cannot
        be made again, or workers die again and again.
        """
        if not self._tap.exists():
            self._replace_interface()
        self._set_gso_max_size()
        self._keeper.check()
        self._look_for_bridge()
        if self._keeper.failure:
            raise DeviceError(self._keeper.failure)

    def deliver(self, data: bytearray, start: int, end: int) -> None:
        """Take a datagram that came past the worker. See demux.Receiver."""
        counters = self._counters.supervisor
        try:
            frame, elided = self._decapsulator.decapsulate(data, start, end)
        except Dropped as dropped:
            counters[dropped.slot] += 1
            return
        except Verification:
            # It asks for the worker; an answer from here would show nothing.
            counters[Slot.RX_RESERVED] += 1
            return
        try:
            self._tap.write(memoryview(data)[frame:end])
        except OSError:
            counters[Slot.RX_INTERFACE_DOWN] += 1
            return
        counters[Slot.RX_FRAMES] += 1
        counters[Slot.RX_BYTES] += end - frame
        counters[Slot.RX_ELIDED] += elided

    def counter_status(self) -> CounterStatus:
        return CounterStatus.of(self._counters)

    def worker_status(self) -> WorkerStatus | None:
        """Return what there is to say of the worker, if there is to be one."""
        if self._attached is None:
            return None
        return WorkerStatus(
            pid=self._keeper.pid,
            cpu=self._cpu,
            engine=self._parts.engine.name,
            restarts=self._keeper.restarts,
        )

    def _stop_worker(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        self._keeper.stop()

    def _make_interface(self, mtu: int) -> Tap:
        config, netlink = self._config, self._parts.netlink
        engine = self._parts.engine
        limit = self._limit_for(mtu)
        tap = Tap(
            config.name,
            self.local_mac,
            mtu,
            offloads=engine.offloads,
            features=self._parts.features,
        )
        try:
            if config.bridge is not None:
                self._bridge_index = netlink.find(config.bridge)
                if self._bridge_index is not None or not self._await_bridge:
                    self._join_bridge(config.bridge)
                else:
                    self._log.warning("bridge_missing", bridge=config.bridge)
            # A remote that is a TUN answers no ARP and no neighbour solicitation.
            netlink.bring_up(
                config.name,
                config.addresses,
                arp=config.encapsulation is not Encapsulation.IP,
                gso_max_size=limit if engine.offloads else None,
            )
        except DeviceError:
            tap.close()
            raise
        self._gso_max_size = limit
        return tap

    def _join_bridge(self, bridge: str) -> None:
        bridge_mtu = self._parts.netlink.join_bridge(self._config.name, bridge)
        if self._config.mtu is None or self._config.mtu < bridge_mtu:
            self._log.warning(
                "bridge_mtu_exceeds_circuit",
                bridge=bridge,
                bridge_mtu=bridge_mtu,
                advice=f"set mtu = {bridge_mtu} to carry all that the bridge does",
            )

    def _look_for_bridge(self) -> None:
        """Join the bridge if it was made since the last look. Raises DeviceError."""
        bridge = self._config.bridge
        if bridge is None:
            return
        index = self._parts.netlink.find(bridge)
        if index == self._bridge_index:
            return
        self._bridge_index = None
        if index is None:
            self._log.warning("bridge_missing", bridge=bridge)
            return
        self._join_bridge(bridge)
        self._bridge_index = index
        self._log.info("bridge_joined", bridge=bridge)

    def _limit_for(self, mtu: int) -> int:
        bridged = self._config.bridge is not None
        forwarded = bridged or self._parts.forwarding.enabled
        return gso_max_size(mtu, forwarded=forwarded)

    def _set_gso_max_size(self) -> None:
        """Let GSO frames be as large as is best by now."""
        limit = self._limit_for(self._tap.mtu)
        if self._tap.offloads and limit != self._gso_max_size:
            self._parts.netlink.set_gso_max_size(self._config.name, limit)
            self._gso_max_size = limit

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

    def _replace_interface(self) -> None:
        """Make the interface again, which somebody removed, and go on as before."""
        if not self._interface_lost:
            self._interface_lost = True
            self._log.warning("interface_removed")
        attached, mtu = self._attached, self._tap.mtu
        # Kept, so that what fails now can be tried again from here.
        self._stop_worker()
        self._tap.close()
        self._tap = self._make_interface(mtu)
        self._interface_lost = False
        self._release()
        if attached is not None:
            self.attach(*attached)
        self.set_carrier(self._carrier)

    def _make_decapsulator(
        self, remote_mac: bytes | None, *, partial_checksums: bool
    ) -> Decapsulator:
        return Decapsulator(
            self.local_mac,
            remote_mac or self._made_up_mac,
            frame_limit(self._tap.mtu),
            partial_checksums=partial_checksums,
        )

    def _attach(self, path: UnderlayPath, profile: Profile) -> None:
        family = path.endpoint.family
        if profile.mtu != self._tap.mtu:
            self._tap.set_mtu(profile.mtu)
            self._set_gso_max_size()
        self._decapsulator = self._make_decapsulator(
            profile.remote_mac, partial_checksums=profile.partial_checksums
        )
        claim = self._claim = self._parts.demux.claim(
            self, self._config.id, path.sources, path.group
        )
        destination = source_address = None
        if profile.source_port == path.group.port:
            send_socket = claim.socket
            destination = path.group.sockaddr(path.endpoint)
            if path.group.address.is_unspecified:
                source_address = pktinfo(path.route.source)
        else:
            send_socket = self._send_socket = self._open_send_socket(path, profile.source_port)
        task = WorkerTask(
            circuit=self._config.name,
            engine=self._parts.engine,
            attachment=Attachment(
                circuit_id=self._config.id,
                tap_fd=self._tap.fd,
                receive_socket=claim.socket,
                send_socket=send_socket,
                destination=destination,
                source_address=source_address,
                divert_socket=self._divert_writer,
                local_mac=self.local_mac,
                remote_mac=profile.remote_mac or self._made_up_mac,
                elision=profile.elision,
                frame_limit=frame_limit(self._tap.mtu),
                datagram_limit=datagram_limit(path.route.mtu, family),
                counters=self._counters.worker,
                virtio_header=self._tap.offloads,
                partial_checksums=profile.partial_checksums,
                features=self._parts.features,
            ),
            exit_message=self._keeper.exit_message,
            cpu=self._cpu,
            user=self._parts.user,
            supervisor_pid=os.getpid(),
        )
        self._starting = self._parts.forks.add(lambda: self._keeper.start(task))
        self._attached = (path, profile)

    def _open_send_socket(self, path: UnderlayPath, wanted: int | None) -> socket.socket:
        if wanted is not None:
            ports = [wanted]
        else:
            identity = f"{self._config.name} {self._config.id} {self._config.remote}"
            span = MAX_SOURCE_PORT - MIN_SOURCE_PORT + 1
            first = zlib.crc32(identity.encode())
            ports = [MIN_SOURCE_PORT + (first + i) % span for i in range(SOURCE_PORT_TRIES)]
        for port in ports:
            try:
                return open_send_socket(path.route.source, port, path.endpoint)
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise DeviceError(
                        f"cannot send to {path.endpoint}: {os.strerror(err.errno or 0)}"
                    ) from err
        taken = str(ports[0]) if len(ports) == 1 else f"{ports[0]} and {len(ports) - 1} more"
        raise DeviceError(f"the source port {taken} is taken")

    def _on_diverted(self) -> None:
        """Pass on what UDP GRO joined to this circuit's datagrams: same remote, other circuit."""
        data = bytearray(REBUILD_ROOM + MAX_UDP_PAYLOAD)
        view = memoryview(data)[REBUILD_ROOM:]
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                length = self._divert_reader.recv_into(view)
            except BlockingIOError:
                return
            if self._attached is not None:
                path, _ = self._attached
                self._parts.demux.dispatch(
                    path.endpoint, path.route.source, data, REBUILD_ROOM, REBUILD_ROOM + length
                )


def _socket_pair(circuit: str) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    except OSError as err:
        raise DeviceError(f"{circuit}: cannot make a socket pair: {err.strerror}") from err
