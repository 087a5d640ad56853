"""The configuration file: TOML text to the records of vela.circuit; the only importer of toml.

Pure but for load_config's reading: nothing of the machine is consulted, unless by the
check that a caller brings.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import toml

from vela.address import (
    MAX_PORT,
    parse_endpoint,
    parse_interface,
    parse_interface_name,
    parse_interface_pattern,
    parse_listen_address,
    parse_network,
    parse_remote,
    parse_source,
)
from vela.circuit import (
    MAX_CIRCUIT_ID,
    MIN_CIRCUIT_ID,
    AutoconfigureConfig,
    CircuitConfig,
    Config,
    DaemonConfig,
    Encapsulation,
    Engine,
    IPAddress,
    IPInterface,
    PeerConfig,
    Remote,
    SourcePort,
)
from vela.control import MAX_ADDRESSES
from vela.errors import ConfigError
from vela.features import Feature
from vela.mac import format_mac, parse_mac
from vela.mtu import MAX_TAP_MTU, MIN_IPV6_MTU, MIN_TAP_MTU, Family
from vela.tables import (
    Table,
    boolean,
    integer,
    known_word,
    member,
    number,
    text,
    word,
    word_or,
)

MIN_KEEPALIVE_S, MAX_KEEPALIVE_S = 0.1, 3600.0
MAX_CPU = 8191  # the largest NR_CPUS that Linux can be built for (arch/x86/Kconfig)
MAX_SOCKET_PATH = 107  # bytes; sun_path without its final NUL (unix(7))
MAX_FILE_SIZE = 1 << 20  # bytes; hundreds of circuits need a tenth of it

ANY_IPV6 = IPv6Address("::")  # a socket bound to it takes IPv4 as well

_DAEMON = DaemonConfig()
_AUTOCONFIGURE = AutoconfigureConfig()
_CIRCUIT = CircuitConfig(name="", id=MIN_CIRCUIT_ID, remote=Remote(""))  # for its defaults


Check = Callable[[Config], Iterable[str]]
"""Finds further mistakes, "key.path: what is wrong; what would be right"."""


def load_config(path: Path, check: Check = lambda config: ()) -> Config:
    """Read and validate a configuration file.

    Raises ConfigError with all mistakes in it, those that check finds included;
    it sees defaults where the file is wrong.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
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
    """Validate the text of a configuration; source names it in messages.

    Raises ConfigError with all mistakes in it, "SOURCE: key.path: what is wrong; what would
    be right"; where the text is not TOML, with the first.
    """
    try:
        values = _parse_toml(toml_text)
    except _NotTomlError as err:
        raise ConfigError(f"{source}: {err}") from err.__cause__
    mistakes: list[str] = []
    config = _read_config(Table(values, mistakes))
    mistakes.extend(check(config))
    if mistakes:
        raise ConfigError(*(f"{source}: {mistake}" for mistake in mistakes))
    return config


def parse_circuits(
    tables: Mapping[str, object], daemon: DaemonConfig, source: str
) -> tuple[CircuitConfig, ...]:
    """Validate tables as they stand under [circuits], one by one and against each other.

    Raises ConfigError as parse_config does.
    """
    mistakes: list[str] = []
    circuits = Table({"circuits": dict(tables)}, mistakes).table("circuits")
    read = () if circuits is None else _read_circuits(circuits, daemon)
    if mistakes:
        raise ConfigError(*(f"{source}: {mistake}" for mistake in mistakes))
    return read


def format_circuit(circuit: CircuitConfig) -> dict[str, object]:
    """Return the table that is read as this circuit; keys that have their defaults are left out."""
    table: dict[str, object] = {"id": circuit.id, "remote": str(circuit.remote)}
    table |= _format_end(circuit.addresses, circuit.bridge, circuit.mac)
    if circuit.family is not None:
        table["family"] = circuit.family.value
    if circuit.mtu is not None:
        table["mtu"] = circuit.mtu
    if circuit.encapsulation is not _CIRCUIT.encapsulation:
        table["encapsulation"] = circuit.encapsulation.value
    if circuit.source_port is not _CIRCUIT.source_port:
        port = circuit.source_port
        table["source_port"] = port if isinstance(port, int) else port.value
    if circuit.cpu is not None:
        table["cpu"] = circuit.cpu
    if circuit.keepalive != _CIRCUIT.keepalive:
        table["keepalive"] = circuit.keepalive
    if circuit.autoconfigure is not _CIRCUIT.autoconfigure:
        table["autoconfigure"] = circuit.autoconfigure
    for key, path in (
        ("key_file", circuit.key_file),
        ("up", circuit.up),
        ("down", circuit.down),
    ):
        if path is not None:
            table[key] = str(path)
    peer = _format_end(circuit.peer.addresses, circuit.peer.bridge, circuit.peer.mac)
    if circuit.peer.interface is not None:
        peer["interface"] = circuit.peer.interface
    if circuit.peer.checksum_offload:
        peer["checksum_offload"] = True
    if peer:
        table["peer"] = peer
    return table


def _format_end(
    addresses: tuple[IPInterface, ...], bridge: str | None, mac: bytes | None
) -> dict[str, object]:
    table: dict[str, object] = {}
    if addresses:
        table["addresses"] = [str(address) for address in addresses]
    if bridge is not None:
        table["bridge"] = bridge
    if mac is not None:
        table["mac"] = format_mac(mac)
    return table


class _NotTomlError(Exception):
    """Carries the line, where it is known, and what is wrong there."""


# What toml says, and what a person can do about it.
_TOML_MESSAGES = (
    (r"Duplicate keys!", "this key is there twice"),
    (r"What\? (.+?) already exists\?", r"the table or key '\1' is there twice"),
    (
        r"invalid literal for int|Invalid date or number|This float doesn't have",
        "this is no value; a string in quotes, a number, true or false would be right",
    ),
    (
        r"Found tokens after a closed string",
        "something follows a string's closing quote; perhaps a comma or quote is missing",
    ),
)
# What tomllib ends its messages with, up to Python 3.13 at least.
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _parse_toml(toml_text: str) -> dict[str, object]:
    """Return what the text says by TOML 1.0. Raises _NotTomlError.

    The standard library's tomllib decides: toml 0.10.2 takes what is broken
    ("[1,,2]", a list without its end) and refuses what is right (0x10, a list
    of several types). But it has names for mistakes that tomllib only calls
    unexpected, such as a key that is there twice: so it explains.
    """
    unix = toml_text.replace("\r\n", "\n")
    try:
        return tomllib.loads(unix)
    except tomllib.TOMLDecodeError as err:
        raise _NotTomlError(_explain(unix, str(err))) from err
    except RecursionError as err:
        raise _NotTomlError("is nested too deeply") from err
    except ValueError as err:  # int() takes 4300 digits at most
        raise _NotTomlError(f"holds a number that is none: {_printable(str(err))}") from err


def _explain(toml_text: str, message: str) -> str:
    """Return the place and the kind of a mistake that tomllib found."""
    place = _PLACE.search(message)
    line = toml_text.rstrip("\n").count("\n") + 1
    column = ""
    if place is not None:
        message = message[: place.start()]
        if place[1] is not None:
            line, column = int(place[1]), f", column {place[2]}"
    explanation = _explained_by_toml(toml_text, line)
    if explanation is not None:
        return f"line {line}: {explanation}"
    return f"line {line}{column}: {_printable(message)}"


def _explained_by_toml(toml_text: str, line: int) -> str | None:
    """Return the words for a mistake in this line that toml knows, too."""
    try:
        toml.loads(toml_text)
    except toml.TomlDecodeError as err:
        for pattern, explanation in _TOML_MESSAGES:
            match = re.match(pattern, err.msg, re.DOTALL)
            if match and err.lineno == line:
                return _printable(match.expand(explanation))
    except Exception:  # toml 0.10.2 also lets IndexError, TypeError and others out
        return None
    return None


def _printable(message: str) -> str:
    # It may quote the text, with all that is in there.
    return message.strip().encode("unicode_escape").decode("ascii")[:200]


def _path(value: str) -> Path:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not absolute; a path that begins with '/' would be right")
    return Path(value)


def _socket_path(value: str) -> Path:
    size = len(value.encode())
    if size > MAX_SOCKET_PATH:
        raise ValueError(f"has {size} bytes; {MAX_SOCKET_PATH} at most fit a socket's path")
    return _path(value)


def _user(value: str) -> str:
    if not value or value.isspace():
        raise ValueError("is empty; a user's name such as 'nobody' would be right")
    return value


_ABSOLUTE_PATH = text(_path)
_PORT = integer(1, MAX_PORT)
_LOG_LEVEL = word({level: level for level in ("debug", "info", "warning", "error")})
_LOG_FORMAT = word({name: name for name in ("console", "json")})
_INTERFACE_NAME = text(parse_interface_name)
_MAC = text(parse_mac)
_FAMILY = word({"any": None, **{family.value: family for family in Family}})
_MTU = word_or({"auto": None}, integer(MIN_TAP_MTU, MAX_TAP_MTU), "'auto' or a number of bytes")
_FEATURE = known_word({feature.value: feature for feature in Feature})
_CPU = word_or({"auto": None}, integer(0, MAX_CPU), "'auto' or a CPU's number")
_SOURCE_PORT = word_or(
    {word.value: word for word in SourcePort}, _PORT, "'auto', 'listen' or a port's number"
)


def _read_config(root: Table) -> Config:
    daemon_table = root.table("daemon")
    daemon = _DAEMON if daemon_table is None else _read_daemon(daemon_table)
    autoconfigure_table = root.table("autoconfigure")
    circuits_table = root.table("circuits")
    config = Config(
        daemon=daemon,
        autoconfigure=(
            None if autoconfigure_table is None else _read_autoconfigure(autoconfigure_table)
        ),
        circuits=() if circuits_table is None else _read_circuits(circuits_table, daemon),
    )
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
        state_directory=table.read("state_directory", _ABSOLUTE_PATH, _DAEMON.state_directory),
        user=table.read("user", text(_user), _DAEMON.user),
        engine=table.read("engine", member(Engine), _DAEMON.engine),
        disable_features=table.read_list("disable_features", _FEATURE),
        log_level=table.read("log_level", _LOG_LEVEL, _DAEMON.log_level),
        log_format=table.read("log_format", _LOG_FORMAT, _DAEMON.log_format),
        metrics=table.read("metrics", text(parse_endpoint), _DAEMON.metrics),
    )
    table.finish()
    return daemon


def _check_listen(listen: tuple[IPAddress, ...], table: Table) -> None:
    """Refuse what would take one port twice; "::" takes no IPv4 where an IPv4 address is there."""
    for every in filter(lambda address: address.is_unspecified, listen):
        for other in listen:
            if other.version == every.version and other != every:
                table.report("listen", f"{other} is one of {every}; leave out one of the two")


def _read_autoconfigure(table: Table) -> AutoconfigureConfig:
    default = _AUTOCONFIGURE
    autoconfigure = AutoconfigureConfig(
        accept=table.read("accept", boolean, default.accept),
        sources=table.read_list("from", text(parse_source)),
        key_file=table.read("key_file", _ABSOLUTE_PATH, default.key_file),
        networks=table.read_list("networks", text(parse_network)),
        bridges=table.read_list("bridges", _INTERFACE_NAME),
        interfaces=table.read("interfaces", text(parse_interface_pattern), default.interfaces),
        max_circuits=table.read("max_circuits", integer(0), default.max_circuits),
    )
    table.finish()
    return autoconfigure


def _read_circuits(table: Table, daemon: DaemonConfig) -> tuple[CircuitConfig, ...]:
    claims = _Claims()
    return tuple(
        _read_circuit(name, table, inner, daemon, claims) for name, inner in table.tables()
    )


def _read_circuit(
    name: str, circuits: Table, table: Table, daemon: DaemonConfig, claims: _Claims
) -> CircuitConfig:
    try:
        _INTERFACE_NAME(name)
    except ValueError as err:
        circuits.report(name, str(err))
    circuit_id = table.require("id", integer(MIN_CIRCUIT_ID, MAX_CIRCUIT_ID), "a number of 1..255")
    remote = table.require("remote", text(parse_remote), "a host's name or address")
    circuit = CircuitConfig(
        name=name,
        id=circuit_id or _CIRCUIT.id,
        remote=remote or _CIRCUIT.remote,
        family=table.read("family", _FAMILY, _CIRCUIT.family),
        addresses=_read_addresses(table),
        bridge=table.read("bridge", _INTERFACE_NAME, _CIRCUIT.bridge),
        mtu=table.read("mtu", _MTU, _CIRCUIT.mtu),
        mac=table.read("mac", _MAC, _CIRCUIT.mac),
        encapsulation=table.read("encapsulation", member(Encapsulation), _CIRCUIT.encapsulation),
        source_port=table.read("source_port", _SOURCE_PORT, _CIRCUIT.source_port),
        cpu=table.read("cpu", _CPU, _CIRCUIT.cpu),
        keepalive=table.read(
            "keepalive", number(MIN_KEEPALIVE_S, MAX_KEEPALIVE_S), _CIRCUIT.keepalive
        ),
        autoconfigure=table.read("autoconfigure", boolean, _CIRCUIT.autoconfigure),
        key_file=table.read("key_file", _ABSOLUTE_PATH, _CIRCUIT.key_file),
        up=table.read("up", _ABSOLUTE_PATH, _CIRCUIT.up),
        down=table.read("down", _ABSOLUTE_PATH, _CIRCUIT.down),
    )
    if circuit_id is not None and remote is not None:
        claims.claim(
            table, "id", (remote_identity(remote), circuit_id), f"{circuit_id} toward {remote.host}"
        )
    _claim_own(circuit, table, claims)
    if remote is not None:
        _check_family(circuit, table, daemon.listen)
    peer_table = table.table("peer")
    peer = _CIRCUIT.peer
    if peer_table is not None:
        peer = _read_peer(peer_table)
        _claim_peer(circuit, peer, peer_table, claims)
    table.finish()
    circuit = replace(circuit, peer=peer)
    _check_consistency(circuit, table, daemon.port)
    return circuit


def _read_peer(table: Table) -> PeerConfig:
    peer = PeerConfig(
        interface=table.read("interface", _INTERFACE_NAME, None),
        addresses=_read_addresses(table),
        bridge=table.read("bridge", _INTERFACE_NAME, None),
        mac=table.read("mac", _MAC, None),
        checksum_offload=table.read("checksum_offload", boolean, False),
    )
    if len(peer.addresses) > MAX_ADDRESSES:
        table.report(
            "addresses", f"has {len(peer.addresses)} items; {MAX_ADDRESSES} fit one message"
        )
    table.finish()
    return peer


def _read_addresses(table: Table) -> tuple[IPInterface, ...]:
    return table.read_list("addresses", text(parse_interface), same=lambda interface: interface.ip)


class _Claims:
    """What only one circuit can have, and the key path of the one that has it."""

    def __init__(self) -> None:
        self._holders: dict[Hashable, str] = {}

    def claim(self, table: Table, key: str, thing: Hashable, shown: str) -> None:
        path = table.path(key)
        holder = self._holders.setdefault(thing, path)
        if holder != path:
            table.report(key, f"{shown} is taken by {holder}; another one would be right")


def _claim_own(circuit: CircuitConfig, table: Table, claims: _Claims) -> None:
    if isinstance(circuit.source_port, int):
        port = circuit.source_port
        claims.claim(table, "source_port", ("source_port", port), str(port))
    if circuit.mac is not None:
        claims.claim(table, "mac", ("mac", circuit.mac), format_mac(circuit.mac))
    _claim_addresses(circuit.addresses, table, "here", claims)


def _claim_peer(circuit: CircuitConfig, peer: PeerConfig, table: Table, claims: _Claims) -> None:
    """Check the other end as a machine of its own: what its circuits with us share."""
    remote = remote_identity(circuit.remote)
    if peer.mac is not None:
        claims.claim(table, "mac", ("mac", remote, peer.mac), format_mac(peer.mac))
        if peer.mac == circuit.mac:
            table.report("mac", "is that of this end; another one would be right")
    if not circuit.autoconfigure:  # then nothing but the MAC has an effect
        return
    if peer.interface is not None:
        claims.claim(table, "interface", ("interface", remote, peer.interface), peer.interface)
    _claim_addresses(peer.addresses, table, remote, claims)
    own = {interface.ip for interface in circuit.addresses}
    for interface in peer.addresses:
        if interface.ip in own:
            table.report("addresses", f"{interface.ip} is that of this end; another would be right")


def _claim_addresses(
    addresses: tuple[IPInterface, ...], table: Table, machine: str, claims: _Claims
) -> None:
    for interface in addresses:
        # Link-local addresses are each link's own: fe80::1 may be on all of them.
        if not (interface.version == 6 and interface.is_link_local):
            thing = ("address", machine, interface.ip)
            claims.claim(table, "addresses", thing, str(interface.ip))


def _check_family(circuit: CircuitConfig, table: Table, listen: tuple[IPAddress, ...]) -> None:
    family, key = circuit.family, "family"
    address = circuit.remote.address
    if address is not None:
        family, key = Family.IPV4 if address.version == 4 else Family.IPV6, "remote"
        if circuit.family not in (None, family):
            table.report(
                key, f"{address} contradicts family; '{family.value}' would be right there"
            )
            return
    if family is None:
        return
    version = 4 if family is Family.IPV4 else 6
    if not any(local.version == version or local == ANY_IPV6 for local in listen):
        table.report(
            key,
            f"needs IPv{version}, but daemon.listen has no IPv{version} address; "
            "'::' there takes both",
        )


def _check_consistency(circuit: CircuitConfig, table: Table, port: int) -> None:
    addresses, bridges = circuit.addresses, [circuit.bridge]
    if circuit.autoconfigure:
        addresses, bridges = addresses + circuit.peer.addresses, [*bridges, circuit.peer.bridge]
    if circuit.mtu is not None and circuit.mtu < MIN_IPV6_MTU:
        six = next((interface for interface in addresses if interface.version == 6), None)
        if six is not None:
            table.report("mtu", f"{circuit.mtu} is too small for {six}; IPv6 needs {MIN_IPV6_MTU}")
    if circuit.encapsulation is Encapsulation.IP and any(bridges):
        table.report("encapsulation", "'ip' cannot carry a bridge's frames; 'auto' would be right")
    peer = circuit.peer
    if peer.checksum_offload and not circuit.autoconfigure and peer.mac is None:
        table.report(
            "peer.checksum_offload", "has no effect without peer.mac; set both, or neither"
        )
    if circuit.bridge == circuit.name:
        table.report("bridge", "is the circuit's own interface; a bridge's name would be right")
    if circuit.source_port == port:
        table.report("source_port", f"{port} is daemon.port; 'listen' would be right")


def remote_identity(remote: Remote) -> str:
    """Return what tells remotes apart: names in any case, with or without the final dot."""
    return remote.host.lower().removesuffix(".")
