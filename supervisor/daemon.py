"""The daemon: start, stop, reload, status, and the requests of velactl."""

from __future__ import annotations

import gc
import grp
import os
import re
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import structlog

from vela import __version__
from vela.dataplane.counters import CounterSlab
from vela.dataplane.engine import Engine, LoadedEngine, load_engine
from vela.errors import ConfigError, DeviceError, VelaError
from vela.linux import ebpf
from vela.linux.affinity import allowed_cpus
from vela.linux.features import ALL_FEATURES, Features, probe, words
from vela.linux.forwarding import Forwarding
from vela.linux.icmp import IcmpErrors
from vela.linux.idle_cpus import IdleCpus
from vela.linux.netlink import Netlink
from vela.linux.sandbox import check_capabilities, find_user, may_move_children, why_no_filter
from vela.linux.tap import Tap, check_tun
from vela.linux.underlay import RECEIVE_BUFFER, namespace_number
from vela.log import level, limit, set_level

from .circuit.keeper import CHECK_INTERVAL_S
from .circuit.links import Links
from .circuit.loops import Carriers
from .circuit.pseudowire import FORK_PAUSE, PseudowireFactory
from .config.key import (
    MIN_ENCRYPTION_KEY,
    MIN_KEY,
    MissingKeyError,
    open_identity,
    open_key,
)
from .config.records import Config, Encryption
from .config.sources import Text
from .config.writer import format_config
from .constants import LOG_LEVELS, MAX_TRIAL_S
from .control_channel import ControlChannel
from .control_socket import Answer, Caller, Connected, ControlSocket, Later, Reply, Subscribe
from .demux import Demux
from .fd_store import FdStore
from .inheritance import Inheritance, tap_name
from .intermission import Intermission, recall
from .keys import Keys
from .listening import listen
from .notify import ServiceManager
from .predecessor import Predecessor
from .registry.ciphers import Ciphers
from .registry.host import HostNetwork
from .registry.pings import Pings
from .registry.registry import Registry
from .reloads import Reloads
from .runtime.burst import Burst
from .runtime.lines import LineLimiter
from .runtime.loop import EventLoop
from .runtime.names import Names
from .states import total
from .status import DaemonStatus, ReceiveBufferStatus, document
from .succession import CONTROL, METRICS, Listening, Succession

# A minute. A collection takes 5 ms.
CHECKS_BETWEEN_COLLECTIONS = 60
# Each leaves 33 kB in cycles, and the system does not get back what a heap once took.
REMOVALS_BETWEEN_COLLECTIONS = 16

_MACHINE_ID = Path("/etc/machine-id")
_IS_MACHINE_ID = re.compile(r"[0-9a-f]{32}")  # machine-id(5)


class Daemon:
    """Everything between start and stop."""

    def __init__(
        self,
        path: Path,
        texts: tuple[Text, ...],
        config: Config,
        inheritance: Inheritance | None = None,
        predecessor: Predecessor | None = None,
    ) -> None:
        """Create everything that config asks for. texts: it, as it was read at path.

        inheritance: what another velad has left, to go on with. predecessor: that velad,
        if it still runs; config has its circuits then, and those of texts follow.
        Raises VelaError, or OSError if a resource is exhausted, and then leaves
        nothing behind.
        """
        self._config = config
        self._log = structlog.get_logger()
        # _check() collects: a collection at any other time could delay a worker's restart.
        gc.disable()
        self._checks = self._collected_at = 0
        self._stopping = False
        _raise_descriptor_limit()
        self._loop = EventLoop()
        # Hundreds of circuits take seconds to create. What is asked meanwhile is done afterwards:
        # a signal without a handler would end velad.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._on_stop)
        self._loop.on_signal(signal.SIGHUP, self._on_hangup)
        self._started = self._loop.now()
        self._lines = LineLimiter(self._loop.now)
        limit(self._lines.admits)
        user = find_user(config.daemon.user)
        # Fail now, not when another machine asks for a circuit.
        check_tun()
        engine = _load_engine(config.daemon.engine)
        self._kernel = probe()
        self._features = self._features_of(engine)
        self._missing_features = engine.abilities.features - self._kernel
        with ExitStack() as undo:
            self._manager = ServiceManager()
            undo.callback(self._manager.close)
            inheritance = Inheritance() if inheritance is None else inheritance
            undo.callback(inheritance.close)
            self._predecessor = predecessor
            self._inheritance = inheritance
            self._store = FdStore(self._manager, inheritance, config.daemon)
            undo.callback(self._store.close)
            self._standings = recall(self._store, inheritance)
            groups = listen(config.daemon, self._features, inheritance, self._store)
            for group in groups:
                undo.callback(group.close)
            _warn_of_missing_filter()
            _warn_of_classic_steering()
            self._forwarding = Forwarding()
            netlink = Netlink()
            undo.callback(netlink.close)
            links = Links(self._loop)
            undo.callback(links.close)
            self._demux = Demux(self._loop, groups, inheritance=inheritance)
            undo.callback(self._demux.close)
            names = Names(self._loop, user)
            undo.callback(names.close)
            self._keys = Keys(self._loop, user, config.daemon.state_directory)
            undo.callback(self._keys.close)
            self._ciphers = Ciphers(self._keys, config.daemon, engine.suites(), inheritance)
            icmp = IcmpErrors(config.daemon.port)
            undo.callback(icmp.close)
            if not icmp.hears:
                self._log.info("icmp_errors_not_read", reason="there is no CAP_NET_RAW")
            moves = may_move_children()
            if not moves:
                self._log.info("threads_not_moved", reason="there is no CAP_SYS_NICE")
            self._control_channel = ControlChannel(
                self._loop, self._demux, names, config.daemon.port, icmp.read
            )
            self._set_policy(config)
            self._factory = PseudowireFactory(
                loop=self._loop,
                netlink=netlink,
                links=links,
                forwarding=self._forwarding,
                demux=self._demux,
                carriers=Carriers(netlink),
                forks=Burst(self._loop, FORK_PAUSE),
                counters=CounterSlab(),
                engine=engine,
                features=self._features,
                user=user,
                identity=_identity(self._features),
                idle_cpus=IdleCpus() if moves else None,
                inheritance=inheritance,
                shared=self._manager.told,
            )
            self._registry = Registry(
                config,
                loop=self._loop,
                names=names,
                routes=self._demux,
                control_channel=self._control_channel,
                keys=self._keys,
                make_data_path=self._factory,
                host=HostNetwork(self._loop.now),
                lines=self._lines,
                ciphers=self._ciphers,
            )
            self._pings = Pings(self._loop, self._registry)
            self._control_channel.set_request_handler(self._registry)
            undo.callback(self._registry.close)
            self._reloads = Reloads(
                path,
                texts,
                config,
                self._loop,
                self._registry,
                find_mistakes,
                self._set_policy,
                self._set_engine,
                self._manager,
            )
            undo.callback(self._reloads.close)
            control_socket = ControlSocket(
                self._loop,
                config.daemon.control_socket,
                self._on_request,
                _find_group(config.daemon.control_group),
                inheritance.take(CONTROL),
                [Connected(fd, subscribed) for fd, subscribed in inheritance.take_clients()],
            )
            undo.callback(lambda: control_socket.close(leave=self._predecessor is not None))
            listening: dict[str, Listening] = {}
            if config.daemon.metrics is not None:
                # Loaded where it is used: it takes 3 ms and 1 MB.
                from .export.exporter import Exporter

                exporter = Exporter(
                    self._loop,
                    config.daemon.metrics,
                    self.status,
                    self._registry.rates,
                    inheritance.take(METRICS),
                )
                undo.callback(exporter.close)
                listening[METRICS] = exporter
            self._succession = Succession(
                self._loop,
                self._registry,
                self._demux,
                self._manager,
                config.daemon,
                control_socket,
                listening,
                (links,),
                lambda: self._reloads.obstacle,
            )
            undo.callback(self._succession.close)
            self._intermission = Intermission(
                self._loop,
                self._registry,
                self._succession,
                self._manager,
                self._store,
                self._keep,
            )
            self._registry.set_change_handler(
                lambda event: control_socket.publish({"time": time.time(), **event})
            )
            self._registry.create_all()
            if predecessor is None:
                self._remove_left(inheritance, netlink)
            # Behind what says more where all of them are missing; no worker runs yet.
            check_capabilities()
            self._undo = undo.pop_all()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then remove everything."""
        loop = self._loop
        self._log.info(
            "kernel_features",
            used=list(words(self._features)),
            disabled=list(words(self._config.daemon.disable_features)),
            missing=list(words(self._missing_features)),
        )
        if self._predecessor is None:
            self._go_on()
            self._registry.start()
            self._check()
            self._manager.ready()
        else:
            self._take_over(self._predecessor)
        self._log.info(
            "daemon_started",
            version=__version__,
            listen=[str(group) for group in self._demux.groups],
            circuits=len(self._registry),
        )
        loop.run()
        if self._predecessor is None:
            self._keep()
        self._undo.close()
        self._log.info("daemon_stopped")

    def _go_on(self) -> None:
        """Go on where the velad before has ended to be started again, as far as that can be."""
        resumed = self._registry.resume(self._standings, self._inheritance.goes_on)
        self._demux.release_inherited(self._standings.keys() - resumed)
        # Before a circuit of their device binds others.
        self._store.forget(self._inheritance.drop_sockets(apart=True))
        self._inheritance.close()
        if self._standings:
            self._log.info("circuits_resumed", circuits=len(resumed), of=len(self._standings))

    def _take_over(self, predecessor: Predecessor) -> None:
        """Go on with what another velad did. It ends when nothing of it is needed any more."""
        going_on = self._registry.resume(predecessor.standings)
        self._registry.start()
        predecessor.take_over(self._loop, going_on, self._on_taken_over)
        self._check()

    def _on_taken_over(self) -> None:
        predecessor, self._predecessor = self._predecessor, None
        assert predecessor is not None
        predecessor.inheritance.close()
        self._log.info("velad_taken_over", predecessor=predecessor.pid)
        self._manager.ready()
        try:
            self._reloads.begin(allow_empty=True)
        except VelaError as err:
            self._log.error("configuration_rejected", error=str(err))

    def status(self) -> DaemonStatus:
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=round(self._loop.now() - self._started, 3),
            listen=tuple(str(group) for group in self._demux.groups),
            engine_features=words(self._features),
            unused_features=words(ALL_FEATURES - self._features),
            receive_buffer=ReceiveBufferStatus(
                wanted_bytes=RECEIVE_BUFFER,
                granted_bytes=min(group.receive_buffer for group in self._demux.groups),
            ),
            rx_dropped=self._demux.dropped() | self._control_channel.dropped(),
            wrong_keys=self._control_channel.wrong_keys(),
            circuits=self._registry.status(),
        )

    def _on_request(self, request: Mapping[str, object], caller: Caller) -> Answer:
        """Carry out a request of velactl. Raises VelaError."""
        match request:
            case {"command": "status"}:
                reply: Reply = document(self.status())
                return reply
            case {"command": "reload", "dry_run": True}:
                return self._reloads.preview(allow_empty=request.get("allow_empty") is True)
            case {"command": "replace"}:
                return self._succession.begin(request.get("version"), caller)
            case {"command": "monitor"}:
                return Subscribe({"monitoring": True})
            case {"command": "ping", "circuit": str(name)}:
                return self._pings.ask(name, request.get("size"))
            case {"command": "history", "circuit": str(name)}:
                minutes = self._registry.find(name).history.status(time.time() - self._loop.now())
                return {"circuit": name, "minutes": document(minutes)}
            case {"command": "show-config"}:
                return self._show_config()
            case {"command": "log-level"} if "level" not in request:
                return {"level": level()}
        return self._change(request, caller)

    def _change(self, request: Mapping[str, object], caller: Caller) -> Reply | Later:
        """Carry out a request that changes something, and log who asked. Raises VelaError."""
        log = self._log.bind(uid=caller.uid, pid=caller.pid, command=request.get("command"))
        for key in ("circuit", "level"):
            if key in request:
                log = log.bind(**{key: request[key]})
        try:
            reply = self._carry_out(request)
        except VelaError as err:
            log.warning("command_refused", error="; ".join(str(err).splitlines()))
            raise
        if isinstance(reply, Later):
            reply.then(lambda _: log.info("command_done"))
        else:
            log.info("command_done")
        return reply

    def _carry_out(self, request: Mapping[str, object]) -> Reply | Later:
        registry = self._registry
        match request:
            case {"command": "reload"}:
                return self._reloads.begin(
                    allow_empty=request.get("allow_empty") is True, trial_s=_trial_s(request)
                )
            case {"command": "confirm"}:
                self._reloads.confirm()
            case {"command": "add", "circuit": str(name), "settings": dict(settings)}:
                added = registry.add(name, settings)
                return {"circuit": name, "id": added.config.id}
            case {"command": "delete", "circuit": str(name)}:
                registry.delete(name)
            case {"command": "down", "circuit": str(name)}:
                registry.disable(name)
            case {"command": "up", "circuit": str(name)}:
                registry.enable(name)
            case {"command": "restart", "circuit": str(name)}:
                registry.restart(name)
            case {"command": "switch", "circuit": str(name)}:
                wanted = request.get("remote")
                remote = registry.switch(name, None if wanted is None else str(wanted))
                return {"circuit": name, "remote": remote}
            case {"command": "log-level", "level": str(wanted)} if wanted in LOG_LEVELS:
                set_level(wanted)
                return {"level": level()}
            case _:
                raise VelaError(f"velad does not understand {request}")
        return {}

    def _show_config(self) -> Reply:
        circuits = self._registry.configurations()
        return {
            "config": format_config(
                self._reloads.config, (config for config, _ in circuits.values())
            ),
            "files": dict(self._reloads.config.files),
            "origins": {name: origin.value for name, (_, origin) in circuits.items()},
        }

    def _features_of(self, engine: LoadedEngine) -> Features:
        """Return the kernel's features that an engine uses."""
        usable = self._kernel & engine.abilities.features
        return usable.difference(self._config.daemon.disable_features)

    def _set_engine(self, wanted: Engine) -> None:
        """Let another engine carry frames, when circuits are reloaded. Raises ConfigError."""
        engine = _load_engine(wanted)
        self._features = self._features_of(engine)
        self._factory = replace(self._factory, engine=engine, features=self._features)
        self._registry.set_engine(engine, self._features, self._factory)

    def _set_policy(self, config: Config) -> None:
        autoconfigure = config.autoconfigure
        key = None
        if autoconfigure is not None and autoconfigure.key_file is not None:
            key = self._keys.load(autoconfigure.key_file)
        ciphers = self._ciphers.offer(autoconfigure)
        self._control_channel.set_policy(autoconfigure, key, ciphers)

    def _check(self) -> None:
        self._loop.call_later(CHECK_INTERVAL_S, self._check)
        self._forwarding.look()
        self._control_channel.look_for_errors()
        if self._succession.frozen:
            self._manager.feed(self._loop.now())
            return
        self._registry.check()
        for left_out in self._lines.summaries():
            self._log.warning(
                "log_lines_left_out",
                source=left_out.source,
                lines=left_out.lines,
                events=dict(left_out.events),
            )
        self._checks += 1
        removed = self._registry.removed
        due = removed - self._collected_at >= REMOVALS_BETWEEN_COLLECTIONS
        if due or self._checks % CHECKS_BETWEEN_COLLECTIONS == 0:
            self._collected_at = removed
            gc.collect()
        if self._predecessor is not None:
            return  # that one feeds the manager, which hears nobody else yet
        self._keep()
        self._manager.show(total(self._registry.states()))
        # Here, and by no timer of its own: a loop that turns without getting here is stuck.
        self._manager.feed(self._loop.now())

    def _keep(self, more: Mapping[str, int] | None = None) -> bool:
        """Let the service manager have what the next velad is to go on with. False: not all yet."""
        configs = {name: config for name, (config, _) in self._registry.configurations().items()}
        return self._store.update(self._registry.taps(), self._demux.all_groups, configs, more)

    @staticmethod
    def _remove_left(inheritance: Inheritance, netlink: Netlink) -> None:
        """Remove the interfaces of circuits that there are no more."""
        for name in inheritance.circuits():
            fd = inheritance.take(tap_name(name))
            try:
                if fd is not None:
                    tap = Tap(name, b"", 0, adopted=fd)
                    netlink.remove(tap.index)
                    tap.close()
            except DeviceError as err:
                structlog.get_logger().warning("interface_not_removed", error=str(err))
            else:
                structlog.get_logger().info("interface_removed_at_start", interface=name)

    def _on_stop(self) -> None:
        """Leave all to the velad that is started next; or run the hooks that are due, and stop.

        At the second time, stop at once.
        """
        if self._stopping:
            self._loop.stop()
            return
        self._stopping = True
        self._manager.stopping()
        if self._predecessor is None:
            self._intermission.begin(self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self._registry.run_last_hooks(self._loop.stop)

    def _on_hangup(self) -> None:
        if self._reloads.waiting:
            return  # it reads what is there now
        try:
            self._reloads.begin()
        except VelaError as err:
            self._log.error("configuration_rejected", error=str(err))


def find_mistakes(config: Config, *, awaits_keys: bool = False) -> list[str]:
    """Return what in a configuration does not fit this machine, one line each, with key path.

    awaits_keys: files of keys that do not exist are no mistakes.
    Raises DeviceError if the machine cannot be examined.
    """
    mistakes = []
    try:
        find_user(config.daemon.user)
    except ConfigError as err:
        mistakes.append(f"daemon.user: {err}; name one that exists")
    try:
        _find_group(config.daemon.control_group)
    except ConfigError as err:
        mistakes.append(f"daemon.control_group: {err}; create it: groupadd --system NAME")
    obstacle = None
    try:
        obstacle = load_engine(config.daemon.engine).encryption_obstacle()
    except ConfigError as err:
        mistakes.append(f"daemon.engine: {err}")
    mistakes.extend(_find_key_mistakes(config, obstacle, awaits_keys=awaits_keys))
    allowed = allowed_cpus()
    mistakes.extend(
        f"circuits.{circuit.name}.cpu: velad may not use CPU {cpu}; "
        f"it may use {', '.join(map(str, allowed))}"
        for circuit in config.circuits
        for cpu in circuit.cpus
        if cpu not in allowed
    )
    return mistakes


def _trial_s(request: Mapping[str, object]) -> float | None:
    """Return after how many seconds a reload is taken back; None: never. Raises VelaError."""
    match request.get("confirm"):
        case None:
            return None
        case int(seconds) | float(seconds) if 0 < seconds <= MAX_TRIAL_S:
            return float(seconds)
        case other:
            raise VelaError(f"confirm: {other} is no number of seconds of 1..{MAX_TRIAL_S}")


def _find_group(name: str | None) -> int | None:
    """Return the id of the group of this name. Raises ConfigError if there is none."""
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError as err:
        raise ConfigError(f"there is no group {name!r}") from err


def _find_key_mistakes(config: Config, obstacle: str | None, *, awaits_keys: bool) -> Iterator[str]:
    """Yield what is wrong with files of keys, and where encryption cannot be had.

    obstacle: why the engine cannot encrypt; None: it can. awaits_keys: see find_mistakes.
    """
    if config.daemon.identity is not None:
        try:
            os.close(open_identity(config.daemon.identity))
        except ConfigError as err:
            if not (awaits_keys and isinstance(err, MissingKeyError)):
                yield f"daemon.identity: {err}"
    shared, shared_least = config.autoconfigure, MIN_KEY
    for circuit in config.circuits:
        path = f"circuits.{circuit.name}"
        required = circuit.encryption is Encryption.REQUIRED
        # Beside public keys a pre-shared one is not what holds.
        least = MIN_ENCRYPTION_KEY if required and circuit.peer_key is None else MIN_KEY
        if circuit.key_file is None:
            shared_least = max(shared_least, least)
        else:
            yield from _find_key_mistake(path, circuit.key_file, least, awaits_keys)
        if required and obstacle is not None:
            yield f"{path}.encryption: {obstacle}; 'none' would be right"
    if shared is None:
        return
    required = shared.encryption is Encryption.REQUIRED
    if required and not shared.peers:
        shared_least = MIN_ENCRYPTION_KEY
    if shared.key_file is not None:
        yield from _find_key_mistake("autoconfigure", shared.key_file, shared_least, awaits_keys)
    if required and obstacle is not None:
        yield f"autoconfigure.encryption: {obstacle}; 'none' would be right"


def _find_key_mistake(table: str, path: Path, least: int, awaits_key: bool) -> Iterator[str]:
    try:
        os.close(open_key(path, least))
    except ConfigError as err:
        if awaits_key and isinstance(err, MissingKeyError):
            return
        why = " where encryption is required" if least > MIN_KEY else ""
        yield f"{table}.key_file: {err}{why}"


def _load_engine(wanted: Engine) -> LoadedEngine:
    engine = load_engine(wanted)
    if engine.fallback:
        structlog.get_logger().error(
            "native_engine_missing",
            reason=engine.fallback,
            consequence="the Python engine carries frames at a tenth of the rate",
            advice='build the package with a C compiler, or write engine = "python"',
        )
    return engine


def _warn_of_missing_filter() -> None:
    if why_no_filter():
        structlog.get_logger().warning(
            "system_calls_not_filtered",
            reason=why_no_filter(),
            consequence="a worker that is taken over can do more: see docs/security.md",
        )


def _warn_of_classic_steering() -> None:
    reason = ebpf.why_unavailable()
    if reason:
        structlog.get_logger().warning(
            "steering_programs_classic",
            reason=f"this process may not load extended BPF programs: {reason}",
            consequence="a kernel without the fix of CVE-2026-52910 can crash when circuits change",
        )


def _raise_descriptor_limit() -> None:
    """Raise the limit of descriptors to the hard limit: a circuit takes six."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _identity(features: Features) -> tuple[str, ...]:
    """Return what identifies this machine and this network namespace."""
    try:
        machine = _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = ""
    # Empty in machine images, and "uninitialized" during the first boot.
    if not _IS_MACHINE_ID.fullmatch(machine):
        machine = os.uname().nodename
    return machine, str(namespace_number(features))
