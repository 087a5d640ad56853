"""The configuration file to records, and a circuit's record to its table.

Only load_config does input: it reads one file. A caller passes a check that compares values
with the host, such as names of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
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
from vela.wire import MAX_CIRCUIT_ID, MAX_IP_PACKET, MAX_TAP_MTU, MIN_CIRCUIT_ID, MIN_TAP_MTU

from ..constants import LOG_LEVELS, MAX_DESCRIPTION, MAX_KEEPALIVE_S, MIN_KEEPALIVE_S
from .conflicts import find_missing_keys, find_mistakes
from .files import Access, UntrustedError, open_trusted, resolve_links
from .records import (
    AutoconfigureConfig,
    CircuitConfig,
    ClampMss,
    Config,
    DaemonConfig,
    Encapsulation,
    Encryption,
    Fragment,
    PeerConfig,
    SourcePort,
    SourceRules,
)
from .syntax import TomlSyntaxError, parse_toml
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
MAX_SOCKET_PATH = 107  # bytes; sun_path without its final NUL (unix(7))
MAX_FILE_SIZE = 1 << 20  # bytes; hundreds of circuits need a tenth of it

_DAEMON = DaemonConfig()
_AUTOCONFIGURE = AutoconfigureConfig()
_UNREAD_CIRCUIT = CircuitConfig(name="", id=0, remote=Remote(""))
"""The defaults. A circuit keeps this id or remote if its table has no valid one."""

Check = Callable[[Config], Iterable[str]]
"""Returns further mistakes: "key.path: what is wrong; what would be right"."""


def load_config(path: Path, check: Check = lambda config: ()) -> Config:
    """Read and validate a configuration file.

    Raises ConfigError with all mistakes, also those that check finds. In the
    configuration that check gets, defaults replace wrong values.
    """
    source = str(path)
    try:
        fd = open_trusted(resolve_links(path), Access.READ)
        with open(fd, "rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except UntrustedError as err:
        raise ConfigError(str(err)) from err
    except OSError as err:
        raise ConfigError(f"{source}: cannot be read: {err.strerror}") from err
    except ValueError as err:  # a NUL in the path
        raise ConfigError(f"{source!r}: cannot be read: {err}") from err
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"{source}: is larger than {MAX_FILE_SIZE} bytes")
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        column = err.start - data.rfind(b"\n", 0, err.start)
        raise ConfigError(f"{source}: line {line}, column {column}: is not UTF-8") from err
    return parse_config(decoded, source, check)


def parse_config(toml_text: str, source: str, check: Check = lambda config: ()) -> Config:
    """Validate the text of a configuration. source: its name in messages.

    Raises ConfigError with all mistakes, a line each: "SOURCE: key.path: what is wrong; what
    would be right". If the text is not TOML, only the first syntax error is reported.
    """
    try:
        values = parse_toml(toml_text)
    except TomlSyntaxError as err:
        raise ConfigError(f"{source}: {err}") from err.__cause__
    mistakes: list[str] = []
    config = _read_config(Table(values, mistakes))
    mistakes.extend(check(config))
    _raise_mistakes(mistakes, source)
    return config


def parse_circuits(
    tables: Mapping[str, object], daemon: DaemonConfig, source: str
) -> tuple[CircuitConfig, ...]:
    """Validate tables as in [circuits], each alone and against each other.

    Raises ConfigError as parse_config does.
    """
    mistakes: list[str] = []
    circuits = _read_circuits(Table({"circuits": dict(tables)}, mistakes), daemon)
    _raise_mistakes(mistakes, source)
    return circuits


def format_circuit(circuit: CircuitConfig) -> dict[str, object]:
    """Return the table of a circuit, without keys that have their defaults."""
    return write_record(circuit, CIRCUIT_KEYS, _UNREAD_CIRCUIT)


def _raise_mistakes(mistakes: Iterable[str], source: str) -> None:
    lines = [f"{source}: {mistake}" for mistake in mistakes]
    if lines:
        raise ConfigError(*lines)


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
_CPU = word_or({"auto": None}, integer(0, MAX_CPU), "'auto' or a CPU's number")
_DSCP = word_or({"inherit": None}, integer(0, MAX_DSCP), "'inherit' or a number of 0..63")
_SOURCE_PORT = word_or(
    {word.value: word for word in SourcePort}, _PORT, "'auto', 'listen' or a port's number"
)
_MSS = word_or(
    {"auto": ClampMss.AUTO, "off": ClampMss.OFF},
    integer(MIN_MSS, MAX_IP_PACKET),
    "'auto', true, false or a number of bytes",
)


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
    Key("remote", text(parse_remote), str, required="a host's name or address"),
    Key("description", text(_description)),
    Key("enabled", boolean),
    Key("family", _FAMILY),
    _ADDRESSES,
    Key("bridge", _INTERFACE_NAME),
    Key("mtu", _MTU),
    Key("fragmentation", member(Fragment)),
    Key("clamp_mss", _clamp_mss),
    Key("mac", _MAC, format_mac),
    Key("encapsulation", member(Encapsulation)),
    Key("encryption", member(Encryption)),
    Key("peer_key", _PUBLIC_KEY, format_public_key),
    Key("source_port", _SOURCE_PORT),
    Key("bind", text(_source_address), str),
    Key("device", _INTERFACE_NAME),
    Key("mark", integer(1, MAX_MARK)),
    Key("dscp", _DSCP),
    Key("cpu", _CPU),
    Key("keepalive", number(MIN_KEEPALIVE_S, MAX_KEEPALIVE_S)),
    Key("autoconfigure", boolean),
    Key("key_file", _ABSOLUTE_PATH, str),
    Key("accept_ra", boolean),
    TableKey("peer", PEER_KEYS, PeerConfig()),
)


def _read_config(root: Table) -> Config:
    daemon_table = root.table("daemon")
    daemon = _DAEMON if daemon_table is None else _read_daemon(daemon_table)
    autoconfigure_table = root.table("autoconfigure")
    config = Config(
        daemon=daemon,
        autoconfigure=(
            None if autoconfigure_table is None else _read_autoconfigure(autoconfigure_table)
        ),
        circuits=_read_circuits(root, daemon),
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


def _read_circuits(root: Table, daemon: DaemonConfig) -> tuple[CircuitConfig, ...]:
    table = root.table("circuits")
    if table is None:
        return ()
    circuits = tuple(_read_circuit(name, table, inner) for name, inner in table.tables())
    root.mistakes.extend(find_mistakes(circuits, daemon))
    return circuits


def _read_circuit(name: str, circuits: Table, table: Table) -> CircuitConfig:
    try:
        _INTERFACE_NAME(name)
    except ValueError as err:
        circuits.report(name, str(err))
    return read_record(table, CIRCUIT_KEYS, replace(_UNREAD_CIRCUIT, name=name))
