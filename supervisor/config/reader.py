"""The configuration file to records, and a circuit's record to its table.

Only load_config does input. A caller passes a check that compares values
with the host, such as names of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vela.address import (
    MAX_PORT,
    Family,
    IPAddress,
    Remote,
    parse_interface,
    parse_interface_name,
    parse_interface_pattern,
    parse_listen_address,
    parse_listen_endpoint,
    parse_network,
    parse_remote,
    parse_source,
)
from vela.dataplane.ecn import MAX_DSCP
from vela.dataplane.engine import Engine
from vela.dataplane.mss import MIN_MSS
from vela.errors import ConfigError
from vela.linux.features import Feature
from vela.mac import format_mac, parse_mac
from vela.public_key import format_public_key, parse_public_key
from vela.rate import format_rate, parse_rate
from vela.wire import (
    MAX_CIRCUIT_ID,
    MAX_IP_PACKET,
    MAX_QUEUES,
    MAX_TAP_MTU,
    MIN_CIRCUIT_ID,
    MIN_TAP_MTU,
)

from ..constants import LOG_LEVELS, MAX_DESCRIPTION, MAX_KEEPALIVE_S, MIN_KEEPALIVE_S
from .conflicts import find_missing_keys, find_mistakes
from .records import (
    UNREAD_CIRCUIT,
    AutoconfigureConfig,
    CircuitConfig,
    ClampMss,
    Config,
    DaemonConfig,
    Encapsulation,
    Encryption,
    Fragment,
    Latency,
    PeerConfig,
    SourcePort,
    SourceRules,
)
from .sources import Text, merge, read_texts
from .tables import (
    Key,
    ListKey,
    Table,
    TableField,
    TableKey,
    boolean,
    integer,
    known_word,
    member,
    number,
    read_record,
    text,
    word,
    word_or,
    write_record,
)

MAX_CPU = 8191  # the largest NR_CPUS that Linux can be built for (arch/x86/Kconfig)
MAX_MARK = 0xFFFFFFFF  # 32 bits; socket(7), SO_MARK
MAX_REMOTES = 8  # of one circuit; each is tried for seconds
MAX_SOCKET_PATH = 107  # bytes; sun_path without its final NUL (unix(7))

_DAEMON = DaemonConfig()
_AUTOCONFIGURE = AutoconfigureConfig()

Check = Callable[[Config], Iterable[str]]
"""Returns further mistakes: "key.path: what is wrong; what would be right"."""


def load_config(path: Path, check: Check = lambda config: ()) -> Config:
    """Read and validate a configuration file, and those in the folder beside it: see sources.

    Raises ConfigError with all mistakes, also those that check finds. In the
    configuration that check gets, defaults replace wrong values.
    """
    return parse_texts(read_texts(path), check)


def parse_config(toml_text: str, source: str, check: Check = lambda config: ()) -> Config:
    """Validate the text of a configuration. source: its name in messages.

    Raises ConfigError with all mistakes, a line each: "SOURCE: key.path: what is wrong; what
    would be right". If the text is not TOML, only the first syntax error is reported.
    """
    return parse_texts((Text(source, toml_text),), check)


def parse_texts(texts: Iterable[Text], check: Check = lambda config: ()) -> Config:
    """Validate the texts of a configuration, the main one first. Raises ConfigError likewise."""
    merged = merge(texts)
    mistakes: list[str] = []
    config = _read_config(Table(merged.values, mistakes))
    mistakes.extend(check(config))
    lines = [merged.locate(mistake) for mistake in mistakes]
    if merged.mistakes or lines:
        raise ConfigError(*merged.mistakes, *lines)
    return replace(config, files=merged.files)


def parse_circuits(
    tables: Mapping[str, object],
    daemon: DaemonConfig,
    source: str,
    defaults: CircuitConfig = UNREAD_CIRCUIT,
) -> tuple[CircuitConfig, ...]:
    """Validate tables as in [circuits], each alone and against each other.

    defaults: what [defaults] says. Raises ConfigError as parse_config does.
    """
    mistakes: list[str] = []
    circuits = _read_circuits(Table({"circuits": dict(tables)}, mistakes), daemon, defaults)
    if mistakes:
        raise ConfigError(*(f"{source}: {mistake}" for mistake in mistakes))
    return circuits


def format_circuit(circuit: CircuitConfig) -> dict[str, object]:
    """Return the table of a circuit, without keys that have their defaults."""
    return write_record(circuit, CIRCUIT_KEYS, UNREAD_CIRCUIT)


def _path(value: str) -> Path:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not absolute; a path that begins with '/' would be right")
    return Path(value)


def _socket_path(value: str) -> Path:
    size = len(value.encode())
    if size > MAX_SOCKET_PATH:
        raise ValueError(f"has {size} bytes; a socket's path has {MAX_SOCKET_PATH} at most")
    return _path(value)


def _user(value: str) -> str:
    if not value or value.isspace():
        raise ValueError("is empty; a user's name such as 'nobody' would be right")
    return value


def _group(value: str) -> str:
    if not value or value.isspace():
        raise ValueError("is empty; a group's name such as 'vela' would be right")
    return value


def _description(value: str) -> str:
    size = len(value.encode())
    if size > MAX_DESCRIPTION:
        raise ValueError(f"has {size} bytes; {MAX_DESCRIPTION} fit")
    return value


def _source_address(value: str) -> IPAddress:
    address = parse_listen_address(value)
    if address.is_unspecified:
        raise ValueError(f"{value} stands for all addresses; one of them would be right")
    return address


def _listed_remote(value: str) -> Remote:
    remote = parse_remote(value)
    if remote.is_any:
        raise ValueError(
            f"{value!r} has no place in a list; a host's name or address would be right"
        )
    return remote


@dataclass(frozen=True, slots=True)
class _RemoteKey(Key[Remote]):
    """A remote, or a list: the first is the primary, the others stand by."""

    def read(self, table: Table, default: Remote) -> Remote:
        if not table.has_list(self.name):
            return Key.read(self, table, default)
        remotes = table.read_list(
            self.name,
            text(_listed_remote),
            same=lambda remote: (remote.identity, remote.port),
            may_be_empty=False,
        )
        if len(remotes) > MAX_REMOTES:
            mistake = f"has {len(remotes)} items; {MAX_REMOTES} at most would be right"
            table.report(self.name, mistake)
        return replace(remotes[0], standbys=remotes[1:]) if remotes else default


def _format_remote(remote: Remote) -> object:
    return [str(each) for each in remote.all] if remote.standbys else str(remote)


_ABSOLUTE_PATH = text(_path)
_PORT = integer(1, MAX_PORT)
_FEATURE = known_word({feature.value: feature for feature in Feature})
_LOG_LEVEL = word({level: level for level in LOG_LEVELS})
_LOG_FORMAT = word({name: name for name in ("console", "json")})
_INTERFACE_NAME = text(parse_interface_name)
_MAC = text(parse_mac)
_PUBLIC_KEY = text(parse_public_key)
_FAMILY = word({"any": None, **{family.value: family for family in Family}})
_MTU = word_or({"auto": None}, integer(MIN_TAP_MTU, MAX_TAP_MTU), "'auto' or a number of bytes")
_CPU_RIGHT = "'auto', a CPU's number, or a list of them"
_ONE_CPU = word_or({"auto": None}, integer(0, MAX_CPU), _CPU_RIGHT)
_DSCP = word_or({"inherit": None}, integer(0, MAX_DSCP), "'inherit' or a number of 0..63")
_SOURCE_PORT = word_or(
    {word.value: word for word in SourcePort}, _PORT, "'auto', 'listen' or a port's number"
)
_RATE = text(parse_rate)
_MSS = word_or(
    {"auto": ClampMss.AUTO, "off": ClampMss.OFF},
    integer(MIN_MSS, MAX_IP_PACKET),
    "'auto', true, false or a number of bytes",
)


def _cpu(value: object) -> int | tuple[int, ...] | None:
    if not isinstance(value, list):
        return _ONE_CPU(value)
    cpus = tuple(map(integer(0, MAX_CPU), value))
    if not cpus:
        raise ValueError(f"is empty; {_CPU_RIGHT} would be right")
    if len(cpus) > MAX_QUEUES:
        raise ValueError(f"has {len(cpus)} CPUs; {MAX_QUEUES} at most would be right")
    if len(set(cpus)) < len(cpus):
        raise ValueError("names a CPU twice; each once would be right")
    return cpus[0] if len(cpus) == 1 else cpus


def _write_cpu(value: int | tuple[int, ...] | None) -> object:
    return list(value) if isinstance(value, tuple) else value


def _clamp_mss(value: object) -> ClampMss | int:
    return ClampMss(value) if isinstance(value, bool) else _MSS(value)


_ADDRESSES = ListKey("addresses", text(parse_interface), str, same=lambda interface: interface.ip)

# All keys of a circuit. The reader and the writer both use these lists; the defaults are in
# the records.
PEER_KEYS: tuple[TableField, ...] = (
    Key("interface", _INTERFACE_NAME),
    _ADDRESSES,
    Key("bridge", _INTERFACE_NAME),
    Key("mac", _MAC, format_mac),
    Key("checksum_offload", boolean),
)
CIRCUIT_KEYS: tuple[TableField, ...] = (
    Key("id", integer(MIN_CIRCUIT_ID, MAX_CIRCUIT_ID), required="a number of 1..255"),
    _RemoteKey("remote", text(parse_remote), _format_remote, required="a host's name or address"),
    Key("description", text(_description)),
    Key("enabled", boolean),
    Key("family", _FAMILY),
    _ADDRESSES,
    Key("bridge", _INTERFACE_NAME),
    Key("mtu", _MTU),
    Key("fragmentation", member(Fragment)),
    Key("clamp_mss", _clamp_mss),
    Key("packet_too_big", boolean),
    Key("mac", _MAC, format_mac),
    Key("encapsulation", member(Encapsulation)),
    Key("encryption", member(Encryption)),
    Key("peer_key", _PUBLIC_KEY, format_public_key),
    Key("source_port", _SOURCE_PORT),
    Key("bind", text(_source_address), str),
    Key("device", _INTERFACE_NAME),
    Key("mark", integer(1, MAX_MARK)),
    Key("dscp", _DSCP),
    Key("rate", _RATE, format_rate),
    Key("cpu", _cpu, _write_cpu),
    Key("latency", member(Latency)),
    Key("keepalive", number(MIN_KEEPALIVE_S, MAX_KEEPALIVE_S)),
    Key("autoconfigure", boolean),
    Key("key_file", _ABSOLUTE_PATH, str),
    Key("accept_ra", boolean),
    Key("up", _ABSOLUTE_PATH, str),
    Key("down", _ABSOLUTE_PATH, str),
    TableKey("peer", PEER_KEYS, PeerConfig()),
)


def _read_config(root: Table) -> Config:
    daemon_table = root.table("daemon")
    daemon = _DAEMON if daemon_table is None else _read_daemon(daemon_table)
    autoconfigure_table = root.table("autoconfigure")
    defaults_table = root.table("defaults")
    defaults = UNREAD_CIRCUIT if defaults_table is None else _read_defaults(defaults_table)
    config = Config(
        daemon=daemon,
        autoconfigure=(
            None if autoconfigure_table is None else _read_autoconfigure(autoconfigure_table)
        ),
        defaults=defaults,
        circuits=_read_circuits(root, daemon, defaults),
    )
    root.mistakes.extend(find_missing_keys(config))
    root.finish()
    return config


def _read_daemon(table: Table) -> DaemonConfig:
    listen = table.read_list(
        "listen", text(parse_listen_address), _DAEMON.listen, may_be_empty=False
    )
    _check_listen(listen, table)
    daemon = DaemonConfig(
        listen=listen,
        port=table.read("port", _PORT, _DAEMON.port),
        control_socket=table.read("control_socket", text(_socket_path), _DAEMON.control_socket),
        control_group=table.read("control_group", text(_group), _DAEMON.control_group),
        state_directory=table.read("state_directory", _ABSOLUTE_PATH, _DAEMON.state_directory),
        user=table.read("user", text(_user), _DAEMON.user),
        engine=table.read("engine", member(Engine), _DAEMON.engine),
        disable_features=table.read_list("disable_features", _FEATURE),
        log_level=table.read("log_level", _LOG_LEVEL, _DAEMON.log_level),
        log_format=table.read("log_format", _LOG_FORMAT, _DAEMON.log_format),
        identity=table.read("identity", _ABSOLUTE_PATH, _DAEMON.identity),
        metrics=table.read("metrics", text(parse_listen_endpoint), _DAEMON.metrics),
    )
    table.finish()
    return daemon


def _check_listen(listen: tuple[IPAddress, ...], table: Table) -> None:
    """Report addresses that would bind one port twice.

    "::" beside an IPv4 address is valid: the socket for "::" then receives no IPv4.
    """
    for every in filter(lambda address: address.is_unspecified, listen):
        for other in listen:
            if other.version == every.version and other != every:
                table.report("listen", f"{other} is covered by {every}; remove one of the two")


def _read_autoconfigure(table: Table) -> AutoconfigureConfig:
    default = _AUTOCONFIGURE
    count = integer(0)
    max_circuits = table.read("max_circuits", count, None)
    autoconfigure = AutoconfigureConfig(
        accept=table.read("accept", boolean, default.accept),
        sources=table.read_list("from", text(parse_source)),
        key_file=table.read("key_file", _ABSOLUTE_PATH, default.key_file),
        peers=table.read_list("peers", _PUBLIC_KEY),
        encryption=table.read("encryption", member(Encryption), default.encryption),
        networks=table.read_list("networks", text(parse_network)),
        bridges=table.read_list("bridges", _INTERFACE_NAME),
        interfaces=table.read("interfaces", text(parse_interface_pattern), default.interfaces),
        max_circuits=default.max_circuits if max_circuits is None else max_circuits,
        # Who says how many there may be all together may mean those of one machine.
        max_circuits_per_remote=table.read(
            "max_circuits_per_remote",
            count,
            default.max_circuits_per_remote if max_circuits is None else max_circuits,
        ),
        accept_ra=table.read("accept_ra", boolean, default.accept_ra),
        packet_too_big=table.read("packet_too_big", boolean, default.packet_too_big),
        per_source=_read_per_source(table),
    )
    table.finish()
    return autoconfigure


def _read_per_source(autoconfigure: Table) -> tuple[SourceRules, ...]:
    table = autoconfigure.table("sources")
    if table is None:
        return ()
    rules = []
    for name, inner in table.tables():
        try:
            source = parse_source(name)
        except ValueError as err:
            table.report(name, str(err))
            continue
        rules.append(
            SourceRules(
                source=source,
                networks=inner.read_list_or_none("networks", text(parse_network)),
                bridges=inner.read_list_or_none("bridges", _INTERFACE_NAME),
                interfaces=inner.read("interfaces", text(parse_interface_pattern), None),
                max_circuits=inner.read("max_circuits", integer(0), None),
            )
        )
        inner.finish()
    return tuple(rules)


def _read_defaults(table: Table) -> CircuitConfig:
    keys = [replace(key, required="") if isinstance(key, Key) else key for key in CIRCUIT_KEYS]
    return read_record(table, keys, UNREAD_CIRCUIT)


def _read_circuits(
    root: Table, daemon: DaemonConfig, defaults: CircuitConfig
) -> tuple[CircuitConfig, ...]:
    table = root.table("circuits")
    if table is None:
        return ()
    keys = [_given(key, defaults) for key in CIRCUIT_KEYS]
    circuits = tuple(
        _read_circuit(name, table, inner, keys, defaults) for name, inner in table.tables()
    )
    root.mistakes.extend(find_mistakes(circuits, daemon))
    return circuits


def _given(key: TableField, defaults: CircuitConfig) -> TableField:
    """Return a key that need not be in a table where [defaults] has it."""
    has_default = getattr(defaults, key.name) != getattr(UNREAD_CIRCUIT, key.name)
    return replace(key, required="") if isinstance(key, Key) and has_default else key


def _read_circuit(
    name: str,
    circuits: Table,
    table: Table,
    keys: Sequence[TableField],
    defaults: CircuitConfig,
) -> CircuitConfig:
    try:
        _INTERFACE_NAME(name)
    except ValueError as err:
        circuits.report(name, str(err))
    return read_record(table, keys, replace(defaults, name=name))
