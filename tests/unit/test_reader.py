"""vela.supervisor.config.reader: what is taken, what is refused and in which words."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import fields
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path

import pytest
from config_texts import MINIMAL, circuit_with, mistakes_in, only_mistake_in, peer_with
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vela.address import Family, Remote
from vela.dataplane.engine import Engine
from vela.errors import ConfigError
from vela.linux.features import Feature
from vela.supervisor.config.reader import (
    format_circuit,
    load_config,
    parse_circuits,
    parse_config,
)
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    ClampMss,
    Config,
    DaemonConfig,
    Encapsulation,
    PeerConfig,
    SourcePort,
    SourceRules,
)

EXAMPLE = Path(__file__).parents[2] / "config" / "vela.toml"
EXAMPLE_TEXT = EXAMPLE.read_text()
# What a person does to the example: take the "#" away before a key.
UNCOMMENTED = re.sub(r"(?m)^# ([a-z_]+ = )", r"\1", EXAMPLE_TEXT)


def remote_of(text: str) -> Remote:
    return parse_config(circuit_with("", remote=text), "f").circuits[0].remote


def test_config_empty_is_all_defaults() -> None:
    assert parse_config("", "f") == Config(
        daemon=DaemonConfig(
            listen=(IPv6Address("::"),),
            port=48621,
            control_socket=Path("/run/vela/velad.sock"),
            state_directory=Path("/var/lib/vela"),
            user="nobody",
            engine=Engine.AUTO,
            disable_features=(),
            log_level="info",
            log_format="console",
        ),
        autoconfigure=None,
        circuits=(),
    )


def test_config_autoconfigure_table_empty_is_its_defaults() -> None:
    assert parse_config("[autoconfigure]\n", "f").autoconfigure == AutoconfigureConfig(
        accept=True,
        sources=(),
        key_file=None,
        networks=(),
        bridges=(),
        interfaces="vela*",
        max_circuits=64,
        max_circuits_per_remote=16,
        accept_ra=False,
        per_source=(),
    )


@pytest.mark.parametrize(
    ("table", "all_together", "of_one"),
    [
        ("", 64, 16),
        # Who wrote this before the other key was there meant the circuits of one machine, too.
        ("max_circuits = 255", 255, 255),
        ("max_circuits = 3", 3, 3),
        ("max_circuits = 255\nmax_circuits_per_remote = 20", 255, 20),
        ("max_circuits_per_remote = 20", 64, 20),
    ],
)
def test_number_of_circuits_of_one_machine_is_that_of_all_where_only_that_is_said(
    table: str, all_together: int, of_one: int
) -> None:
    read = parse_config(f"[autoconfigure]\n{table}\n", "f").autoconfigure

    assert read is not None
    assert (read.max_circuits, read.max_circuits_per_remote) == (all_together, of_one)


def test_rules_of_sources_leave_open_what_they_do_not_say_and_mistakes_have_their_path() -> None:
    text = (
        '[autoconfigure.sources."192.0.2.7"]\nbridges = []\n'
        '[autoconfigure.sources."router1.example.net"]\nmax_circuits = 4\n'
    )
    read = parse_config(text, "f").autoconfigure

    assert read is not None
    assert read.per_source == (
        SourceRules(IPv4Network("192.0.2.7/32"), bridges=()),
        SourceRules("router1.example.net", max_circuits=4),
    )
    wrong = (
        '[autoconfigure.sources."192.0.2.7/24"]\n[autoconfigure.sources.r1]\nnetwork = []\n'
        "max_circuits = -1\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong, "f")
    assert str(caught.value).split("\n") == [
        'f: autoconfigure.sources."192.0.2.7/24": 192.0.2.7/24 has bits set after its prefix; '
        "192.0.2.0/24 would be right",
        "f: autoconfigure.sources.r1.max_circuits: -1 is less than 0",
        "f: autoconfigure.sources.r1.network: is an unknown key; did you mean 'networks'?",
    ]


def test_config_every_key_set_is_in_the_records() -> None:
    config = parse_config(
        """
[daemon]
listen = ["192.0.2.1", "2001:db8:0::1"]
port = 1
control_socket = "/s"
state_directory = "/d"
user = "vela"
engine = "python"
disable_features = ["uso", "rwf_nowait"]
log_level = "debug"
log_format = "json"
[autoconfigure]
accept = false
from = ["192.0.2.0/24", "192.0.2.7", "2001:db8::7", "Router1.example.net"]
key_file = "/k"
networks = ["172.16.0.0/12", "fd00::/8"]
bridges = ["br-lan"]
interfaces = "v[ab]?"
max_circuits = 0
max_circuits_per_remote = 7
accept_ra = true
[autoconfigure.sources."198.51.100.0/24"]
networks = ["10.0.0.0/8"]
bridges = ["br1"]
interfaces = "v*"
max_circuits = 9
[circuits.vela0]
id = 255
remote = "[2001:db8::9]:65535"
family = "ipv6"
addresses = ["172.16.16.1/30", "fd00:16::1/64"]
bridge = "br0"
mtu = 1280
mac = "02:00:5E:10:00:01"
encapsulation = "ethernet"
source_port = 65535
rate = "2.5G"
cpu = 0
keepalive = 1
autoconfigure = true
key_file = "/k0"
up = "/up.sh"
down = "/down.sh"
[circuits.vela0.peer]
interface = "vela1"
addresses = ["172.16.16.2/30"]
bridge = "br1"
mac = "02:00:5e:10:00:02"
checksum_offload = true
""",
        "f",
    )

    assert config == Config(
        daemon=DaemonConfig(
            listen=(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")),
            port=1,
            control_socket=Path("/s"),
            state_directory=Path("/d"),
            user="vela",
            engine=Engine.PYTHON,
            disable_features=(Feature.USO, Feature.RWF_NOWAIT),
            log_level="debug",
            log_format="json",
        ),
        autoconfigure=AutoconfigureConfig(
            accept=False,
            sources=(
                IPv4Network("192.0.2.0/24"),
                IPv4Network("192.0.2.7/32"),
                IPv6Network("2001:db8::7/128"),
                "Router1.example.net",
            ),
            key_file=Path("/k"),
            networks=(IPv4Network("172.16.0.0/12"), IPv6Network("fd00::/8")),
            bridges=("br-lan",),
            interfaces="v[ab]?",
            max_circuits=0,
            max_circuits_per_remote=7,
            accept_ra=True,
            per_source=(
                SourceRules(
                    IPv4Network("198.51.100.0/24"),
                    networks=(IPv4Network("10.0.0.0/8"),),
                    bridges=("br1",),
                    interfaces="v*",
                    max_circuits=9,
                ),
            ),
        ),
        circuits=(
            CircuitConfig(
                name="vela0",
                id=255,
                remote=Remote("2001:db8::9", 65535),
                family=Family.IPV6,
                addresses=(IPv4Interface("172.16.16.1/30"), IPv6Interface("fd00:16::1/64")),
                bridge="br0",
                mtu=1280,
                mac=b"\x02\x00\x5e\x10\x00\x01",
                encapsulation=Encapsulation.ETHERNET,
                source_port=65535,
                rate=2_500_000_000,
                cpu=0,
                keepalive=1.0,
                autoconfigure=True,
                key_file=Path("/k0"),
                up=Path("/up.sh"),
                down=Path("/down.sh"),
                peer=PeerConfig(
                    interface="vela1",
                    addresses=(IPv4Interface("172.16.16.2/30"),),
                    bridge="br1",
                    mac=b"\x02\x00\x5e\x10\x00\x02",
                    checksum_offload=True,
                ),
            ),
        ),
    )


def test_circuit_minimal_has_defaults() -> None:
    (circuit,) = parse_config(MINIMAL, "f").circuits

    assert circuit == CircuitConfig(name="vela0", id=1, remote=Remote("192.0.2.9"))
    assert circuit.mtu is None
    assert circuit.source_port is SourcePort.AUTO
    assert circuit.keepalive == 5.0
    assert circuit.autoconfigure


def test_example_as_shipped_is_accepted() -> None:
    config = load_config(EXAMPLE)

    assert config.daemon == DaemonConfig()
    assert [circuit.name for circuit in config.circuits] == ["vela0"]


def test_example_as_shipped_names_no_file_of_the_operator() -> None:
    config = load_config(EXAMPLE)

    assert config.autoconfigure is not None
    assert config.autoconfigure.key_file is None
    circuit = config.circuits[0]
    assert circuit.key_file is None


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('"auto"', ClampMss.AUTO),
        ('"off"', ClampMss.OFF),
        ("false", ClampMss.OFF),
        ("true", ClampMss.ON),
        ("88", 88),
        ("1360", 1360),
        ("65535", 65535),
    ],
)
def test_clamp_mss_is_a_word_a_boolean_or_a_number(value: str, read: ClampMss | int) -> None:
    text = f'[circuits.vela0]\nid = 1\nremote = "192.0.2.1"\nclamp_mss = {value}\n'
    (circuit,) = parse_config(text, "f").circuits

    assert circuit.clamp_mss == read
    (again,) = parse_circuits({"vela0": format_circuit(circuit)}, DaemonConfig(), "f")
    assert again == circuit


@pytest.mark.parametrize(
    ("setting", "mistake"),
    [
        ('clamp_mss = "on"', "'on' is not valid; 'auto', true, false or a number of bytes would"),
        ("clamp_mss = 87", "87 is outside 88..65535"),
        ("clamp_mss = 1.5", "1.5 is a number with a fraction"),
        ("clamp_mss = []", "this is a list; 'auto', true, false or a number of bytes would be"),
        ('fragmentation = "on"', "'on' is not valid; 'auto' or 'tunnel' or 'ip' or 'off' would"),
        (
            'fragmentation = "tunnel"\nencapsulation = "ip"',
            "'tunnel' needs a remote that takes pieces, and encapsulation = 'ip' is for one",
        ),
    ],
)
def test_clamp_and_fragmentation_that_cannot_be_are_mistakes(setting: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f'[circuits.vela0]\nid = 1\nremote = "192.0.2.1"\n{setting}\n', "f")

    (message,) = str(caught.value).splitlines()
    assert message.startswith(f"f: circuits.vela0.{setting.split()[0]}: {mistake}")


def test_example_uncommented_sets_every_key_there_is() -> None:
    parse_config(UNCOMMENTED, "f")
    tables = tomllib.loads(UNCOMMENTED)

    def names(record: type, *, without: set[str]) -> set[str]:
        return {field.name for field in fields(record)} - without

    assert set(tables["daemon"]) == names(DaemonConfig, without=set())
    assert set(tables["autoconfigure"]) == names(
        AutoconfigureConfig, without={"sources", "per_source"}
    ) | {"from", "sources"}
    (rules,) = tables["autoconfigure"]["sources"].values()
    assert set(rules) == names(SourceRules, without={"source"})
    circuit = tables["circuits"]["vela0"]
    assert set(circuit) == names(CircuitConfig, without={"name"})
    assert set(circuit["peer"]) == names(PeerConfig, without=set())


def test_mistakes_in_all_tables_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "[daemon]\nport = 0\n[autoconfigure]\naccept = 1\n[circuits.vela0]\nid = 0\n",
            "/etc/vela.toml",
        )

    assert str(caught.value).split("\n") == [
        "/etc/vela.toml: daemon.port: 0 is outside 1..65535",
        "/etc/vela.toml: autoconfigure.accept: 1 is a whole number; true or false would be right",
        "/etc/vela.toml: circuits.vela0.id: 0 is outside 1..255",
        "/etc/vela.toml: circuits.vela0.remote: is missing; "
        "a host's name or address would be right",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[deamon]\n", "deamon: is an unknown table; did you mean 'daemon'?"),
        ("[daemon]\nPort = 1\n", "daemon.Port: is an unknown key; did you mean 'port'?"),
        (
            circuit_with("adresses = []"),
            "circuits.vela0.adresses: is an unknown key; did you mean 'addresses'?",
        ),
        (
            peer_with("zzz = 1"),
            "circuits.vela0.peer.zzz: is an unknown key; known: interface, addresses, bridge, mac, "
            "checksum_offload",
        ),
        (
            "xyzzy = 1\n",
            "xyzzy: is an unknown key; known: daemon, autoconfigure, defaults, circuits",
        ),
        (
            '"a b" = 1\n',
            '"a b": is an unknown key; known: daemon, autoconfigure, defaults, circuits',
        ),
    ],
)
def test_key_unknown_is_reported_with_the_closest(text: str, mistake: str) -> None:
    assert only_mistake_in(text) == mistake


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[daemon]\nmetric = "127.0.0.1:9486"\n', "daemon.metric"),
        (circuit_with("burst = 7"), "circuits.vela0.burst"),
    ],
)
def test_key_that_would_have_no_effect_is_unknown(text: str, key: str) -> None:
    assert only_mistake_in(text).startswith(f"{key}: is an unknown key; ")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("circuits = 3\n", "circuits: 3 is a whole number; a table"),
        ("daemon = true\n", "daemon: true is a boolean; a table"),
        ("[[circuits]]\nid = 1\n", "circuits: this is a list; a table"),
        ("[circuits]\nvela0 = 3\n", "circuits.vela0: 3 is a whole number; a table"),
        (circuit_with('peer = "x"'), "circuits.vela0.peer: 'x' is a string; a table"),
        ("[daemon]\nport = true\n", "daemon.port: true is a boolean; a whole number"),
        ("[daemon]\nport = 1.0\n", "daemon.port: 1.0 is a number with a fraction; a whole number"),
        ('[daemon]\nport = "1"\n', "daemon.port: '1' is a string; a whole number"),
        ("[daemon]\nport = 1979-05-27\n", "daemon.port: this is a date or time; a whole number"),
        ("[daemon]\nuser = 5\n", "daemon.user: 5 is a whole number; a string"),
        ("[daemon]\nuser = {}\n", "daemon.user: this is a table; a string"),
        ('[daemon]\nlisten = "::"\n', "daemon.listen: '::' is a string; a list"),
        ("[daemon]\nlisten = [1]\n", "daemon.listen[0]: 1 is a whole number; a string"),
        ("[daemon]\nengine = 1\n", "daemon.engine: 1 is a whole number; 'auto' or 'native'"),
        (
            "[daemon]\ndisable_features = 1\n",
            "daemon.disable_features: 1 is a whole number; a list",
        ),
        ("[daemon]\ndisable_features = [1]\n", "daemon.disable_features[0]: 1 is a whole number; "),
        (circuit_with("keepalive = true"), "circuits.vela0.keepalive: true is a boolean"),
        (circuit_with('keepalive = "5"'), "circuits.vela0.keepalive: '5' is a string; a number"),
        (circuit_with("autoconfigure = 1"), "circuits.vela0.autoconfigure: 1 is a whole number"),
        (circuit_with("mtu = true"), "circuits.vela0.mtu: true is a boolean; 'auto' or a"),
        (circuit_with("cpu = false"), "circuits.vela0.cpu: false is a boolean; 'auto', a CPU's"),
        (circuit_with('cpu = ["1"]'), "circuits.vela0.cpu: '1' is a string; a whole number"),
        (circuit_with("cpu = 1.5"), "circuits.vela0.cpu: 1.5 is a number with a fraction"),
        (circuit_with("source_port = true"), "circuits.vela0.source_port: true is a boolean"),
    ],
)
def test_value_of_wrong_type_is_reported(text: str, mistake: str) -> None:
    assert only_mistake_in(text).startswith(mistake)


@pytest.mark.parametrize(
    "line",
    [
        "port = 0",
        "port = 65536",
        "port = -1",
        "listen = []",
        'listen = ["localhost"]',
        'listen = ["[::]:48621"]',
        'listen = ["::", "0::0"]',
        'listen = ["224.0.0.1"]',
        'listen = ["ff02::1"]',
        'listen = ["fe80::1"]',
        'listen = ["::1%lo"]',
        'listen = ["::ffff:192.0.2.1"]',
        'control_socket = "run/velad.sock"',
        'control_socket = ""',
        f'control_socket = "/{"x" * 107}"',
        'state_directory = "lib"',
        'state_directory = "/a\\u0000b"',
        'user = ""',
        'user = " "',
        'engine = "fast"',
        'disable_features = ["fast"]',
        'disable_features = ["uso", "uso"]',
        'log_level = "INFO"',
        'log_format = "xml"',
        'metrics = "127.0.0.1"',
        'metrics = "localhost:9486"',
        'metrics = "127.0.0.1:0"',
        'metrics = "[fe80::1]:9486"',
    ],
)
def test_daemon_value_out_of_range_is_one_mistake(line: str) -> None:
    key = line.split(" ")[0]

    assert re.match(rf"daemon\.{key}(\[\d\])?: ", only_mistake_in(f"[daemon]\n{line}\n"))


def test_control_socket_of_107_bytes_is_accepted() -> None:
    path = "/" + "x" * 106

    config = parse_config(f'[daemon]\ncontrol_socket = "{path}"\n', "f")

    assert config.daemon.control_socket == Path(path)


@pytest.mark.parametrize(
    "line",
    [
        'accept = "yes"',
        'from = ["192.0.2.1/24"]',
        'from = ["192.0.2.0/33"]',
        'from = ["192.0.2.0/255.255.255.0"]',
        'from = ["2001:db8::/129"]',
        'from = ["fe80::1%eth0"]',
        'from = ["-bad.example.net"]',
        'from = ["10.1"]',
        'from = [""]',
        'from = ["192.0.2.1", "192.0.2.1/32"]',
        'networks = ["example.net"]',
        'networks = ["172.16.0.1/12"]',
        'bridges = ["br/lan"]',
        'bridges = ["br0", "br0"]',
        'interfaces = ""',
        'interfaces = "ve la*"',
        'interfaces = "../*"',
        'interfaces = "sixteen-letters-"',
        'interfaces = "customer-circuit*"',
        'interfaces = "fifteen-letter[0-9][!]a]*"',
        "max_circuits = -1",
        "max_circuits = 1.5",
        'key_file = "key"',
    ],
)
def test_autoconfigure_value_out_of_range_is_one_mistake(line: str) -> None:
    key = line.split(" ")[0]

    mistake = only_mistake_in(f"[autoconfigure]\n{line}\n")

    assert re.match(rf"autoconfigure\.{key}(\[\d\])?: ", mistake)


def test_network_with_host_bits_is_reported_with_the_network() -> None:
    assert only_mistake_in('[autoconfigure]\nfrom = ["192.0.2.1/24"]\n') == (
        "autoconfigure.from[0]: 192.0.2.1/24 has bits set after its prefix; "
        "192.0.2.0/24 would be right"
    )


@pytest.mark.parametrize(
    "line",
    [
        'family = "inet"',
        'addresses = ["172.16.16.1"]',
        'addresses = ["172.16.16.1/33"]',
        'addresses = ["172.16.16.1/255.255.255.252"]',
        'addresses = ["172.16.16.1/"]',
        'addresses = ["172.16.16.0/30"]',
        'addresses = ["172.16.16.3/30"]',
        'addresses = ["172.16.16.1/0"]',
        'addresses = ["fd00:16::/64"]',
        'addresses = ["fd00:16::1/129"]',
        'addresses = ["224.0.0.1/24"]',
        'addresses = ["ff02::1/64"]',
        'addresses = ["0.0.0.0/32"]',
        'addresses = ["::/128"]',
        'addresses = ["127.0.0.1/8"]',
        'addresses = ["::ffff:192.0.2.1/120"]',
        'addresses = ["fe80::1%eth0/64"]',
        'addresses = ["172.16.16.1/30", "172.16.16.1/24"]',
        'bridge = ""',
        'bridge = "vela0"',
        "mtu = 67",
        "mtu = 65488",
        'mtu = "1400"',
        'mac = "02:00:5e:10:00"',
        'mac = "03:00:5e:10:00:01"',
        'mac = "00:00:00:00:00:00"',
        'mac = "02-00-5e-10-00-01"',
        'encapsulation = "IP"',
        'source_port = "any"',
        "source_port = 0",
        "source_port = 65536",
        'cpu = "0"',
        "cpu = -1",
        "cpu = 8192",
        "cpu = []",
        "cpu = [0, 8192]",
        "cpu = [1, 0, 1]",
        "cpu = [0, 1, 2, 3, 4, 5, 6, 7, 8]",
        "keepalive = 0",
        "keepalive = 0.09",
        "keepalive = -5.0",
        "keepalive = 3600.1",
        "keepalive = nan",
        "keepalive = inf",
        'key_file = "key"',
    ],
)
def test_circuit_value_out_of_range_is_one_mistake(line: str) -> None:
    key = line.split(" ")[0]

    mistake = only_mistake_in(circuit_with(line))

    assert re.match(rf"circuits\.vela0\.{key}(\[\d\])?: ", mistake)


@pytest.mark.parametrize(
    ("address", "mistake"),
    [
        ("172.16.16.1", "'172.16.16.1' has no prefix length; '172.16.16.1/NN' would be right"),
        (
            "172.16.16.1/255.255.255.252",
            "'172.16.16.1/255.255.255.252' has no valid prefix length; 1..32 would be right",
        ),
        ("fd00::1/129", "'fd00::1/129' has no valid prefix length; 1..128 would be right"),
        (
            "172.16.16.0/30",
            "172.16.16.0/30 is the address of the subnet; a host's address would be right",
        ),
        (
            "172.16.16.3/30",
            "172.16.16.3/30 is the broadcast address of the subnet; "
            "a host's address would be right",
        ),
    ],
)
def test_circuit_address_is_refused_with_what_would_be_right(address: str, mistake: str) -> None:
    text = circuit_with(f'addresses = ["{address}"]')

    assert only_mistake_in(text) == f"circuits.vela0.addresses[0]: {mistake}"


def test_network_prefix_as_netmask_is_reported_with_the_range() -> None:
    assert only_mistake_in('[autoconfigure]\nfrom = ["192.0.2.0/255.255.255.0"]\n') == (
        "autoconfigure.from[0]: '192.0.2.0/255.255.255.0' has no valid prefix length; "
        "0..32 would be right"
    )


@pytest.mark.parametrize(
    "pattern", ["vela[0-9][0-9][0-9]", "fifteen-letter-*", "twelve-lette*[!]a][]a]"]
)
def test_interface_pattern_longer_than_a_name_that_fits_is_accepted(pattern: str) -> None:
    config = parse_config(f'[autoconfigure]\ninterfaces = "{pattern}"\n', "f")

    assert config.autoconfigure is not None
    assert config.autoconfigure.interfaces == pattern


def test_interface_pattern_that_no_name_fits_is_reported_with_both_lengths() -> None:
    assert only_mistake_in('[autoconfigure]\ninterfaces = "customer-circuit*"\n') == (
        "autoconfigure.interfaces: 'customer-circuit*' matches no interface name: it needs 16 "
        "characters or more, and a name has at most 15; a shorter one would be right"
    )


@pytest.mark.parametrize("word", ["rwf_nowayt", "RWF_NOWAIT", "rwf-nowait", "nowait"])
def test_feature_that_is_nearly_known_is_recognized_in_the_message(word: str) -> None:
    assert only_mistake_in(f'[daemon]\ndisable_features = ["uso", "{word}"]\n') == (
        f"daemon.disable_features[1]: '{word}' is unknown here; did you mean 'rwf_nowait'?"
    )


def test_feature_that_is_unknown_is_reported_with_all_that_are_known() -> None:
    assert only_mistake_in('[daemon]\ndisable_features = ["io_uring"]\n') == (
        "daemon.disable_features[0]: 'io_uring' is unknown here; "
        "known: netns_cookie, rwf_nowait, tso, udp_gro, udp_segment, uso"
    )


def test_value_of_great_length_is_cut_in_the_message() -> None:
    mistake = only_mistake_in(f'[daemon]\nengine = "{"x" * 61}"\n')

    assert mistake.startswith(f"daemon.engine: '{'x' * 60}'... is not valid; ")


@pytest.mark.parametrize(
    "line",
    [
        'addresses = ["172.16.16.0/31", "172.16.16.3/31", "172.16.16.4/32"]',
        'addresses = ["fd00:16::/127", "fd00:17::/128", "fd00:18::ffff/112"]',
        'bridge = "br0"\naddresses = ["172.16.16.1/30"]',
        "mtu = 68",
        "mtu = 65487",
        'mtu = 1280\naddresses = ["fd00:16::1/64"]',
        'mtu = 1279\naddresses = ["172.16.16.1/30"]',
        'mtu = "auto"\naddresses = ["fd00:16::1/64"]',
        'source_port = "listen"',
        "source_port = 1",
        "keepalive = 0.1",
        "keepalive = 3600",
        'encapsulation = "ip"',
        "cpu = 8191",
        "cpu = [0, 1, 2, 3, 4, 5, 6, 8191]",
    ],
)
def test_circuit_value_at_the_edge_is_accepted(line: str) -> None:
    assert mistakes_in(circuit_with(line)) == []


@pytest.mark.parametrize("value", ["0", "256", "-1"])
def test_circuit_id_outside_its_range_is_reported(value: str) -> None:
    text = f'[circuits.vela0]\nid = {value}\nremote = "192.0.2.9"\n'

    assert only_mistake_in(text) == f"circuits.vela0.id: {value} is outside 1..255"


def test_circuit_without_id_and_remote_has_two_mistakes() -> None:
    assert mistakes_in("[circuits.vela0]\n") == [
        "circuits.vela0.id: is missing; a number of 1..255 would be right",
        "circuits.vela0.remote: is missing; a host's name or address would be right",
    ]


@pytest.mark.parametrize("name", ["a", "fifteen-letters", "vela.1", "eth0@x", "~"])
def test_circuit_name_that_linux_takes_is_accepted(name: str) -> None:
    (circuit,) = parse_config(circuit_with("", name=f'"{name}"'), "f").circuits

    assert circuit.name == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "lo", "all", "default", "sixteen-letters-", "a/b", "a b", "a:b", "tap%d", "é"],
)
def test_circuit_name_that_linux_refuses_is_reported(name: str) -> None:
    mistake = only_mistake_in(
        f'[circuits]\n"{name}" = {{id = 1, remote = "192.0.2.9"}}\n'
        if name
        else '[circuits]\n"" = {id = 1, remote = "192.0.2.9"}\n'
    )

    assert mistake.startswith("circuits.")


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("router2.example.net", Remote("router2.example.net")),
        ("Router2.example.net.:1", Remote("Router2.example.net.", 1)),
        ("my_host", Remote("my_host")),
        ("1and1.example", Remote("1and1.example")),
        ("192.0.2.9", Remote("192.0.2.9")),
        ("192.0.2.9:65535", Remote("192.0.2.9", 65535)),
        ("2001:DB8:0::9", Remote("2001:db8::9")),
        ("[2001:db8::9]", Remote("2001:db8::9")),
        ("[2001:db8::9]:48621", Remote("2001:db8::9", 48621)),
        ("169.254.1.1", Remote("169.254.1.1")),
        ("127.0.0.1", Remote("127.0.0.1")),
        ("a" * 63 + ".example", Remote("a" * 63 + ".example")),
    ],
)
def test_remote_in_each_notation_is_parsed(text: str, remote: Remote) -> None:
    assert remote_of(text) == remote


@pytest.mark.parametrize(
    ("text", "address"),
    [("192.0.2.9:1", IPv4Address("192.0.2.9")), ("[::1]:1", IPv6Address("::1")), ("a.b", None)],
)
def test_remote_address_is_known_for_literals_only(
    text: str, address: IPv4Address | IPv6Address | None
) -> None:
    assert remote_of(text).address == address


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        (":48621", "neither an address nor"),
        ("router2:", "port"),
        ("router2:0", "port"),
        ("router2:65536", "port"),
        ("router2:+1", "port"),
        ("router2:\u0661", "port"),
        ("[2001:db8::9", "malformed"),
        ("[2001:db8::9]48621", "malformed"),
        ("[2001:db8::9]:", "port"),
        ("[192.0.2.9]:1", "malformed"),
        ("[router2]:1", "malformed"),
        ("2001:db8::9::1", "is not an address"),
        ("-a.example", "neither an address nor"),
        ("a-.example", "neither an address nor"),
        ("a..example", "neither an address nor"),
        (".", "neither an address nor"),
        ("a b", "neither an address nor"),
        ("http://router2", "port"),
        ("a" * 64, "neither an address nor"),
        ("a." * 127 + "a", "255 characters"),
        ("bücher.example", "xn--"),
        ("192.0.2.256", "is not an address"),
        ("192.0.2.09", "is not an address"),
        ("10.1", "is not an address"),
        ("0x7f000001", "is not an address"),
        ("3232235777", "is not an address"),
        ("192.0.2.0/24", "neither an address nor"),
        ("fe80::1%eth0", "zone"),
        ("[fe80::1%eth0]:1", "zone"),
        ("fe80::1", "zone"),
        ("0.0.0.0", "not a host's address"),
        ("[::]:1", "not a host's address"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("::ffff:192.0.2.9", "write 192.0.2.9"),
        ("[::ffff:c000:209]:1", "write 192.0.2.9"),
    ],
)
def test_remote_that_cannot_be_reached_is_reported(text: str, part: str) -> None:
    mistake = only_mistake_in(circuit_with("", remote=text))

    assert mistake.startswith("circuits.vela0.remote: ")
    assert part in mistake


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ('["::", "2001:db8::1"]', "2001:db8::1 is covered by ::; remove one of the two"),
        ('["192.0.2.1", "0.0.0.0"]', "192.0.2.1 is covered by 0.0.0.0; remove one of the two"),
    ],
)
def test_listen_addresses_of_which_one_is_all_are_reported(listen: str, message: str) -> None:
    assert only_mistake_in(f"[daemon]\nlisten = {listen}\n") == f"daemon.listen: {message}"


@pytest.mark.parametrize("listen", ['["::", "192.0.2.1"]', '["::", "0.0.0.0"]', '["::1", "::2"]'])
def test_listen_addresses_that_do_not_overlap_are_accepted(listen: str) -> None:
    assert mistakes_in(f"[daemon]\nlisten = {listen}\n") == []


def test_mistakes_that_a_check_finds_are_told_together_with_those_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            '[daemon]\nport = 0\nuser = "me"\n',
            "f",
            lambda config: [f"daemon.user: no {config.daemon.user}"],
        )

    assert caught.value.mistakes == (
        "f: daemon.port: 0 is outside 1..65535",
        "f: daemon.user: no me",
    )


def test_number_of_five_thousand_digits_is_reported() -> None:
    text = f"[daemon]\nlisten = [0x{'f' * 5000}]\n"

    assert only_mistake_in(text).startswith("daemon.listen[0]: this is a whole number; ")


def test_load_config_file_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"
    path.write_bytes(b"\xef\xbb\xbf[daemon]\r\nport = 7\r\n")

    assert load_config(path).daemon.port == 7


def test_load_config_mistake_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"
    path.write_text("[daemon]\nport = 0\n")

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert str(caught.value) == f"{path}: daemon.port: 0 is outside 1..65535"


def test_load_config_not_utf8_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"
    path.write_bytes(b'[daemon]\nuser = "\xff"\n')

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert str(caught.value) == f"{path}: line 2, column 9: is not UTF-8"


def test_load_config_missing_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"


def test_load_config_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)

    assert str(caught.value) == f"{tmp_path} is not a regular file; name one that is"


def test_load_config_of_too_large_a_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "vela.toml"
    path.write_bytes(b"#" * (1 << 20))
    assert load_config(path) == Config()
    path.write_bytes(b"#" * ((1 << 20) + 1))

    with pytest.raises(ConfigError, match=r"vela.toml: is larger than 1048576 bytes"):
        load_config(path)


def test_load_config_from_a_device_is_reported() -> None:
    with pytest.raises(ConfigError, match="/dev/zero is not a regular file"):
        load_config(Path("/dev/zero"))


def test_load_config_path_with_nul_is_reported() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Path("/a\0b"))


# Set VELA_FUZZ to a number of examples to search longer.
FUZZ = settings(
    max_examples=int(os.environ.get("VELA_FUZZ", "200")),
    suppress_health_check=[HealthCheck.too_slow],
)
SYNTAX = "[]{}=,.\"'\\#\n\r \t-+_01TZ\0\ud800\u2028\u00e9x"
ESCAPES = ['"""', "'''", "\\u", "\\U0000d800"]
VALUES = "0x 1e9 nan inf true false 1979-05-27 10:00:00 :: % / daemon circuits vela0 peer listen id"
TOML_PIECES = st.sampled_from([*SYNTAX, *ESCAPES, *VALUES.split()])
STRINGS = st.text() | st.sampled_from(["::", "1.2.3.4/0", "[::1%a]:1", "a:1", "0x", "auto", "/"])
SCALARS = STRINGS | st.integers() | st.floats() | st.booleans()


def parses_or_reports(text: str) -> None:
    assert all(mistake.isprintable() for mistake in mistakes_in(text))


@FUZZ
@given(st.text())
def test_config_of_any_text_raises_nothing_but_config_error(text: str) -> None:
    parses_or_reports(text)


@FUZZ
@given(st.lists(TOML_PIECES).map("".join))
@example("a=1\r")
@example("a=" + "[" * 5000)
def test_config_of_toml_pieces_raises_nothing_but_config_error(text: str) -> None:
    parses_or_reports(text)


@FUZZ
@given(st.data())
def test_config_of_mutated_example_raises_nothing_but_config_error(data: st.DataObject) -> None:
    lines = [line for line in UNCOMMENTED.splitlines() if line and not line.startswith("#")]
    index = data.draw(st.integers(0, len(lines) - 1))
    line = lines[index]
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    lines[index] = line[:start] + data.draw(st.lists(TOML_PIECES).map("".join)) + line[end:]

    parses_or_reports("\n".join(lines) + "\n")


@FUZZ
@given(st.data())
def test_config_of_any_value_raises_nothing_but_config_error(data: st.DataObject) -> None:
    def written(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
        return str(value)

    lines = [line for line in UNCOMMENTED.splitlines() if line and not line.startswith("#")]
    keys = [index for index, line in enumerate(lines) if " = " in line]
    index = data.draw(st.sampled_from(keys))
    kind = data.draw(st.sampled_from([STRINGS, st.integers(), st.floats(), SCALARS]))
    value = data.draw(
        kind.map(written) | st.lists(kind.map(written)).map(", ".join).map("[{}]".format)
    )
    lines[index] = lines[index].partition(" = ")[0] + " = " + value

    parses_or_reports("\n".join(lines) + "\n")


def listed(*remotes: object, more: str = "") -> str:
    return f"[circuits.vela0]\nid = 1\nremote = {json.dumps(list(remotes))}\n{more}\n"


def test_list_of_remotes_is_a_primary_with_standbys() -> None:
    text = listed("router2.example.net", "192.0.2.9:4711", "[2001:db8::9]:48621")
    (circuit,) = parse_config(text, "f").circuits

    assert circuit.remote == Remote(
        "router2.example.net",
        standbys=(Remote("192.0.2.9", 4711), Remote("2001:db8::9", 48621)),
    )
    assert str(circuit.remote) == "router2.example.net"
    assert format_circuit(circuit)["remote"] == [
        "router2.example.net",
        "192.0.2.9:4711",
        "[2001:db8::9]:48621",
    ]


def test_list_of_one_remote_is_that_remote() -> None:
    (circuit,) = parse_config(listed("192.0.2.9"), "f").circuits

    assert (circuit.remote, format_circuit(circuit)["remote"]) == (Remote("192.0.2.9"), "192.0.2.9")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (listed(), "remote: is empty; at least one item would be right"),
        (
            listed("a.example", "b.example", "A.example."),
            "remote[2]: 'A.example.' repeats remote[0]",
        ),
        (listed("192.0.2.9", "any"), "remote[1]: 'any' has no place in a list; "),
        (listed("192.0.2.9", 7), "remote[1]: 7 is a whole number; a string would be right"),
        (listed("192.0.2.9", "224.0.0.1"), "remote[1]: 224.0.0.1 is a multicast address; "),
        (
            listed(*(f"192.0.2.{n}" for n in range(1, 10))),
            "remote: has 9 items; 8 at most would be right",
        ),
        (
            listed("192.0.2.9", "192.0.2.8", more="autoconfigure = false"),
            "remote: a list needs the handshake that autoconfigure = false turns off; ",
        ),
        (
            listed("192.0.2.9", "192.0.2.8", more='encapsulation = "ip"'),
            "remote: encapsulation 'ip' has no handshake, which shows when a remote is lost; ",
        ),
        (
            listed("192.0.2.9", "2001:db8::9", more='family = "ipv4"'),
            "remote: 2001:db8::9 contradicts family; 'ipv6' would be right there",
        ),
        (
            listed("192.0.2.9", "2001:db8::9", more='bind = "192.0.2.1"'),
            "bind: 192.0.2.1 contradicts remote; ",
        ),
        (
            listed("192.0.2.9", "192.0.2.8")
            + circuit_with("", remote="192.0.2.8", name="vela1", id=1),
            "id: 1 toward 192.0.2.8 is taken by circuits.vela0.id; ",
        ),
    ],
)
def test_mistake_in_a_list_of_remotes_is_reported(text: str, mistake: str) -> None:
    said = only_mistake_in(text)

    assert said.partition(".")[2].partition(".")[2].startswith(mistake)
