"""vela.supervisor.config.conflicts: which values contradict each other, and which are taken."""

from __future__ import annotations

import json
import re
from ipaddress import ip_interface
from typing import Any

import pytest
from config_texts import circuit_with, mistakes_in, only_mistake_in, peer_with

from vela.address import Remote
from vela.errors import ConfigError
from vela.supervisor.config.conflicts import ConflictFinder
from vela.supervisor.config.reader import format_circuit, parse_config
from vela.supervisor.config.records import CircuitConfig, PeerConfig


@pytest.mark.parametrize(
    ("listen", "remote", "family", "key"),
    [
        ("::", "192.0.2.9", "ipv6", "remote"),
        ("::", "2001:db8::9", "ipv4", "remote"),
        ("0.0.0.0", "2001:db8::9", "any", "remote"),
        ("2001:db8::1", "192.0.2.9", "any", "remote"),
        ("0.0.0.0", "router2", "ipv6", "family"),
        ("::1", "router2", "ipv4", "family"),
    ],
)
def test_remote_of_a_family_that_is_not_there_is_reported(
    listen: str, remote: str, family: str, key: str
) -> None:
    text = f'[daemon]\nlisten = ["{listen}"]\n' + circuit_with(
        f'family = "{family}"', remote=remote
    )

    assert only_mistake_in(text).startswith(f"circuits.vela0.{key}: ")


@pytest.mark.parametrize(
    ("listen", "remote"),
    [("::", "192.0.2.9"), ("::", "2001:db8::9"), ("0.0.0.0", "192.0.2.9"), ("0.0.0.0", "router2")],
)
def test_remote_of_a_family_that_is_there_is_accepted(listen: str, remote: str) -> None:
    text = f'[daemon]\nlisten = ["{listen}"]\n' + circuit_with("", remote=remote)

    assert mistakes_in(text) == []


@pytest.mark.parametrize(
    ("listen", "remote", "lines", "start"),
    [
        ("::", "2001:db8::9", 'bind = "192.0.2.1"', "bind: 192.0.2.1 contradicts remote; "),
        ("::", "router2", 'bind = "::1"\nfamily = "ipv4"', "bind: ::1 contradicts family; "),
        ("192.0.2.2", "router2", 'bind = "192.0.2.1"', "bind: daemon.listen does not have "),
        ("::", "router2", 'device = "vela0"', "device: is the circuit's own interface; "),
        ("::", "router2", 'bind = "0.0.0.0"', "bind: 0.0.0.0 stands for all addresses; "),
        ("::", "router2", 'bind = "fe80::1"', "bind: "),
        ("::", "router2", "mark = 0", "mark: 0 is outside 1..4294967295"),
    ],
)
def test_choice_of_the_underlay_that_cannot_be_is_reported(
    listen: str, remote: str, lines: str, start: str
) -> None:
    text = f'[daemon]\nlisten = ["{listen}"]\n' + circuit_with(lines, remote=remote)

    assert only_mistake_in(text).startswith(f"circuits.vela0.{start}")


@pytest.mark.parametrize(
    ("listen", "lines"),
    [
        ("::", 'bind = "192.0.2.1"'),
        ("0.0.0.0", 'bind = "192.0.2.1"'),
        ("192.0.2.1", 'bind = "192.0.2.1"'),
        ("::1", 'bind = "fd00::1"\ndevice = "red"'),
        ("::", 'device = "eth1"\nmark = 4294967295'),
    ],
)
def test_choice_of_the_underlay_is_accepted(listen: str, lines: str) -> None:
    text = f'[daemon]\nlisten = ["{listen}"]\n' + circuit_with(lines, remote="router2")

    assert mistakes_in(text) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("router2.example.net", "ROUTER2.example.net."),
        ("router2.example.net", "router2.example.net:48622"),
        ("2001:db8::9", "[2001:0DB8:0::9]:1"),
    ],
)
def test_circuit_id_twice_toward_one_remote_is_reported(first: str, second: str) -> None:
    text = circuit_with("", remote=first) + circuit_with("", remote=second, name="vela1")

    assert re.fullmatch(
        r"circuits\.vela1\.id: 1 toward .* is taken by circuits\.vela0\.id; "
        "another one would be right",
        only_mistake_in(text),
    )


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("source_port", "source_port = 50000"),
        ("mac", 'mac = "02:00:5e:10:00:01"'),
        ("addresses", 'addresses = ["172.16.16.1/30"]'),
        ("addresses", 'addresses = ["fd00:16::1/64"]'),
    ],
)
def test_circuit_value_that_another_one_has_is_reported(key: str, line: str) -> None:
    text = circuit_with(line) + circuit_with(line, remote="192.0.2.10", name="vela1")

    mistake = only_mistake_in(text)

    assert mistake.startswith(f"circuits.vela1.{key}: ")
    assert f"taken by circuits.vela0.{key};" in mistake


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("interface", 'interface = "vela9"'),
        ("mac", 'mac = "02:00:5e:10:00:02"'),
        ("addresses", 'addresses = ["172.16.16.2/30"]'),
    ],
)
def test_peer_value_twice_on_one_remote_is_reported(key: str, line: str) -> None:
    here, there = "192.0.2.9", "192.0.2.10"

    same = peer_with(line, remote=here) + peer_with(line, remote=here, name="vela1", id=2)
    other = peer_with(line, remote=here) + peer_with(line, remote=there, name="vela1", id=2)

    assert only_mistake_in(same).startswith(f"circuits.vela1.peer.{key}: ")
    assert mistakes_in(other) == []


def test_peer_of_static_circuits_is_judged_by_its_mac_alone() -> None:
    def circuits(line: str) -> str:
        static = f"autoconfigure = false\n[circuits.vela{{n}}.peer]\n{line}"
        return "".join(
            circuit_with(static.format(n=n), name=f"vela{n}", id=n + 1) for n in range(2)
        )

    assert mistakes_in(circuits('interface = "vela9"\naddresses = ["172.16.16.2/30"]')) == []
    assert len(mistakes_in(circuits('mac = "02:00:5e:10:00:02"'))) == 1


def test_circuits_with_equal_id_toward_different_remotes_are_accepted() -> None:
    text = circuit_with("") + circuit_with("", remote="192.0.2.10", name="vela1")

    assert len(parse_config(text, "f").circuits) == 2


def test_link_local_address_on_two_circuits_is_accepted() -> None:
    line = 'addresses = ["fe80::1/64"]'
    text = circuit_with(line) + circuit_with(line, remote="192.0.2.10", name="vela1")

    assert mistakes_in(text) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (circuit_with('mtu = 1279\naddresses = ["fd00:16::1/64"]'), "mtu"),
        (peer_with('addresses = ["fd00:16::1/64"]').replace("id = 1", "id = 1\nmtu = 68"), "mtu"),
        (circuit_with('encapsulation = "ip"\nbridge = "br0"'), "encapsulation"),
        (circuit_with('accept_ra = true\nbridge = "br0"'), "accept_ra"),
        (
            peer_with('bridge = "br0"').replace("id = 1", 'id = 1\nencapsulation = "ip"'),
            "encapsulation",
        ),
        (circuit_with("source_port = 48621"), "source_port"),
        ("[daemon]\nport = 7\n" + circuit_with("source_port = 7"), "source_port"),
        (
            circuit_with(
                'mac = "02:00:5e:10:00:01"\n[circuits.vela0.peer]\nmac = "02:00:5E:10:00:01"'
            ),
            "peer.mac",
        ),
        (
            circuit_with(
                'addresses = ["10.0.0.1/30"]\n[circuits.vela0.peer]\naddresses = ["10.0.0.1/24"]'
            ),
            "peer.addresses",
        ),
    ],
)
def test_circuit_values_that_contradict_are_one_mistake(text: str, key: str) -> None:
    assert only_mistake_in(text).startswith(f"circuits.vela0.{key}: ")


def test_peer_of_static_circuit_without_effect_is_accepted() -> None:
    text = circuit_with(
        'autoconfigure = false\nmtu = 100\nencapsulation = "ip"\naddresses = ["10.0.0.1/30"]\n'
        '[circuits.vela0.peer]\nbridge = "br0"\naddresses = ["10.0.0.1/30", "fd00::1/64"]'
    )

    assert mistakes_in(text) == []


def test_peer_with_more_addresses_than_fit_one_message_is_a_mistake() -> None:
    addresses = ", ".join(f'"10.9.{number}.1/24"' for number in range(33))
    text = (
        '[circuits.vela0]\nid = 1\nremote = "192.0.2.9"\n'
        f"[circuits.vela0.peer]\naddresses = [{addresses}]\n"
    )

    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f")

    assert str(caught.value) == "f: circuits.vela0.peer.addresses: has 33 items; 32 fit one message"


def test_checksum_offload_without_the_peers_mac_is_reported_at_its_key() -> None:
    text = circuit_with("autoconfigure = false\n[circuits.vela0.peer]\nchecksum_offload = true")

    assert only_mistake_in(text) == (
        "circuits.vela0.peer.checksum_offload: has no effect without peer.mac; set both, or neither"
    )


def test_circuits_without_id_and_remote_have_no_further_mistakes() -> None:
    tables = (f"[circuits.vela{n}]\n[circuits.vela{n}.peer]\ninterface = 'x'\n" for n in (0, 1))

    assert [mistake.partition(": ")[0] for mistake in mistakes_in("".join(tables))] == [
        *("circuits.vela0.id", "circuits.vela0.remote"),
        *("circuits.vela1.id", "circuits.vela1.remote"),
    ]


def record(name: str, id: int = 1, remote: str = "192.0.2.9", **values: Any) -> CircuitConfig:
    return CircuitConfig(name, id, Remote(remote), **values)


FULL = record(
    "vela0",
    mac=b"\x02\x00\x5e\x10\x00\x01",
    source_port=50000,
    addresses=(ip_interface("10.9.0.1/30"), ip_interface("fd00::1/64")),
)


def test_finder_names_everything_that_is_taken_and_by_whom() -> None:
    others = [
        record("eth0.5", 2, addresses=FULL.addresses[1:]),
        record("vela1", remote="192.0.2.9"),
        record("vela2", 3, addresses=FULL.addresses, mac=FULL.mac, source_port=50000),
    ]

    assert ConflictFinder().find(FULL, others) == [
        "circuits.vela0.id: 1 toward 192.0.2.9 is taken by circuits.vela1.id; "
        "another one would be right",
        "circuits.vela0.source_port: 50000 is taken by circuits.vela2.source_port; "
        "another one would be right",
        "circuits.vela0.mac: 02:00:5e:10:00:01 is taken by circuits.vela2.mac; "
        "another one would be right",
        "circuits.vela0.addresses: 10.9.0.1 is taken by circuits.vela2.addresses; "
        "another one would be right",
        'circuits.vela0.addresses: fd00::1 is taken by circuits."eth0.5".addresses; '
        "another one would be right",
    ]


def test_finder_ignores_what_circuits_set_up_on_remotes() -> None:
    peer = PeerConfig("vela9", FULL.addresses, mac=FULL.mac)

    assert ConflictFinder().find(FULL, [record("vela1", 2, peer=peer)]) == []
    assert ConflictFinder().find(record("vela1", 2, peer=peer), [FULL]) == []
    same = record("vela1", 2, peer=peer), record("vela2", 3, peer=peer)
    assert ConflictFinder().find(same[0], same[1:]) == []


def test_finder_sees_circuits_that_changed_came_and_went() -> None:
    finder = ConflictFinder()

    assert len(finder.find(FULL, [record("vela1")])) == 1
    assert finder.find(FULL, [record("vela1", 2)]) == []
    assert len(finder.find(FULL, [record("vela1", 2), record("vela2")])) == 1
    assert finder.find(FULL, []) == []
    assert len(finder.find(FULL, [record("vela1")])) == 1


def test_finder_tells_ipv4_addresses_from_ipv6_addresses_of_the_same_number() -> None:
    four = record("vela1", 1, addresses=(ip_interface("10.9.0.1/30"),))
    six = record("vela2", 2, addresses=(ip_interface("::a09:1/64"),))

    assert ConflictFinder().find(four, [six]) == []


VALUES = [
    {},
    {"mac": FULL.mac},
    {"source_port": 50000},
    {"addresses": FULL.addresses},
    {"addresses": (ip_interface("fe80::1/64"),)},
]


@pytest.mark.parametrize("second", VALUES)
@pytest.mark.parametrize("id", [1, 2])
def test_circuit_at_run_time_is_judged_as_one_of_the_file(id: int, second: dict[str, Any]) -> None:
    circuit = record("vela1", id, **second)
    file = text_of(FULL) + text_of(circuit)

    assert ConflictFinder().find(circuit, [FULL]) == mistakes_in(file)


def text_of(circuit: CircuitConfig) -> str:
    settings = format_circuit(circuit).items()
    return f"[circuits.{circuit.name}]\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in settings
    )


# Encryption.

KEY = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
IDENTITY = '[daemon]\nidentity = "/etc/vela/identity.key"\n'
REQUIRED = 'encryption = "required"'
PEER_KEY = f'peer_key = "{KEY}"'
KEY_FILE = 'key_file = "/etc/vela/key"'


@pytest.mark.parametrize(
    "text",
    [
        circuit_with('encryption = "none"'),
        IDENTITY,
        IDENTITY + circuit_with(f"{REQUIRED}\n{PEER_KEY}"),
        IDENTITY + circuit_with(f"{REQUIRED}\n{PEER_KEY}\n{KEY_FILE}"),
        circuit_with(f"{REQUIRED}\n{KEY_FILE}"),
        f"[autoconfigure]\n{KEY_FILE}\n" + circuit_with(REQUIRED),
        f"[autoconfigure]\n{KEY_FILE}\n{REQUIRED}\n",
        IDENTITY + f'[autoconfigure]\npeers = ["{KEY}"]\n{REQUIRED}\n',
        IDENTITY + f'[autoconfigure]\npeers = ["{KEY}"]\n{KEY_FILE}\n{REQUIRED}\n',
    ],
)
def test_encryption_with_the_keys_that_it_needs_is_accepted(text: str) -> None:
    assert mistakes_in(text) == []


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            circuit_with(REQUIRED),
            "circuits.vela0.encryption: 'required' needs a key; "
            "peer_key or key_file would be right",
        ),
        (
            "[autoconfigure]\naccept = true\n" + circuit_with(REQUIRED),
            "circuits.vela0.encryption: 'required' needs a key; "
            "peer_key or key_file would be right",
        ),
        (
            circuit_with(f"{REQUIRED}\n{PEER_KEY}"),
            "circuits.vela0.peer_key: needs this machine's own key; "
            "daemon.identity would be right, "
            "with a file that velad --generate-key makes",
        ),
        (
            IDENTITY + circuit_with(PEER_KEY),
            "circuits.vela0.peer_key: has no effect without encryption; "
            "encryption = 'required' would be right, or no peer_key",
        ),
        (
            circuit_with(f"{REQUIRED}\n{KEY_FILE}\nautoconfigure = false"),
            "circuits.vela0.encryption: 'required' needs the handshake that autoconfigure = false "
            "turns off; 'none' would be right, or autoconfigure = true",
        ),
        (
            circuit_with(f'{REQUIRED}\n{KEY_FILE}\nencapsulation = "ip"'),
            "circuits.vela0.encryption: encapsulation 'ip' is for remotes that do not encrypt; "
            "'none' would be right, or encapsulation = 'auto'",
        ),
        (
            circuit_with('encryption = "if-possible"'),
            "circuits.vela0.encryption: 'if-possible' is not valid; "
            "'none' or 'required' would be right",
        ),
        (
            circuit_with("encryption = true"),
            "circuits.vela0.encryption: true is a boolean; 'none' or 'required' would be right",
        ),
        (
            IDENTITY + circuit_with(f'{REQUIRED}\n{KEY_FILE}\npeer_key = "{KEY[4:]}"'),
            "circuits.vela0.peer_key: has 29 bytes, not 32; a machine's public key, as "
            "velad --show-key prints it there, would be right",
        ),
        (
            f"[autoconfigure]\n{REQUIRED}\n",
            "autoconfigure.encryption: 'required' needs a key; peers or key_file would be right",
        ),
        (
            f'[autoconfigure]\npeers = ["{KEY}"]\n{REQUIRED}\n',
            "autoconfigure.peers: needs this machine's own key; daemon.identity would be right, "
            "with a file that velad --generate-key makes",
        ),
        (
            IDENTITY + f'[autoconfigure]\npeers = ["{KEY}"]\n',
            "autoconfigure.peers: has no effect without encryption; "
            "encryption = 'required' would be right, or no peers",
        ),
        (
            IDENTITY + f'[autoconfigure]\npeers = ["{KEY}", "{KEY}"]\n{REQUIRED}\n',
            f"autoconfigure.peers[1]: '{KEY}' repeats peers[0]",
        ),
        (
            IDENTITY + f'[autoconfigure]\npeers = ["{KEY}", "key"]\n{REQUIRED}\n',
            "autoconfigure.peers[1]: is not base64; a machine's public key, as "
            "velad --show-key prints it there, would be right",
        ),
        (
            '[daemon]\nidentity = "identity.key"\n',
            "daemon.identity: 'identity.key' is not absolute; "
            "a path that begins with '/' would be right",
        ),
    ],
)
def test_encryption_that_cannot_be_had_is_a_mistake(text: str, mistake: str) -> None:
    assert only_mistake_in(text) == mistake


def test_peer_value_twice_on_a_standby_remote_is_reported() -> None:
    mac = 'mac = "02:00:5e:10:00:09"'
    both = "[circuits.vela0]\nid = 1\nremote = ['192.0.2.8', '192.0.2.9']\n"
    text = f"{both}[circuits.vela0.peer]\n{mac}\n" + peer_with(mac, name="vela1", id=2)

    assert only_mistake_in(text).startswith("circuits.vela1.peer.mac: 02:00:5e:10:00:09 is taken")


KEYED = 'key_file = "/etc/vela/key"\n'


@pytest.mark.parametrize("text", ["any", "ANY", "Any"])
def test_remote_that_is_any_is_read_and_written(text: str) -> None:
    (circuit,) = parse_config(circuit_with(KEYED, remote=text), "f").circuits

    assert circuit.remote == Remote("any")
    assert circuit.remote.is_any
    assert circuit.remote.address is None
    assert format_circuit(circuit)["remote"] == "any"
    assert not Remote("any.example").is_any


def test_remote_that_is_any_needs_a_key() -> None:
    assert only_mistake_in(circuit_with("", remote="any")) == (
        "circuits.vela0.remote: 'any' needs a key, or anybody could call; key_file would be right, "
        "or encryption = 'required' with peer_key"
    )


def test_encryption_without_a_key_is_one_mistake_also_where_the_remote_is_any() -> None:
    text = circuit_with('encryption = "required"', remote="any")

    assert only_mistake_in(text).startswith("circuits.vela0.encryption: 'required' needs a key; ")


@pytest.mark.parametrize(
    "text",
    [
        circuit_with(KEYED, remote="any"),
        circuit_with("", remote="any") + '[autoconfigure]\nkey_file = "/etc/vela/key"\n',
        circuit_with(KEYED + 'encryption = "required"', remote="any"),
        circuit_with(
            f'encryption = "required"\npeer_key = "{"A" * 42}w="',
            remote="any",
        )
        + '[daemon]\nidentity = "/etc/vela/identity.key"\n',
        circuit_with(KEYED + 'bind = "192.0.2.1"\nmark = 7\nfamily = "ipv4"', remote="any"),
        circuit_with(KEYED + "source_port = 50000\nmtu = 1400", remote="any"),
        # On another machine each.
        peer_with('interface = "vela0"\naddresses = ["172.16.16.2/30"]', remote="any").replace(
            "id = 1\n", f"id = 1\n{KEYED}"
        )
        + peer_with(
            'interface = "vela0"\naddresses = ["172.16.16.2/30"]', remote="any", name="vela1", id=2
        ).replace("id = 2\n", f"id = 2\n{KEYED}"),
    ],
)
def test_remote_that_is_any_with_a_key_is_accepted(text: str) -> None:
    assert mistakes_in(text) == []


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            circuit_with(KEYED, remote="any:48621"),
            "vela0.remote: 'any:48621' has a port, and 'any' takes whichever the other end calls ",
        ),
        (
            circuit_with(KEYED + "autoconfigure = false", remote="any"),
            "vela0.remote: 'any' needs the handshake that autoconfigure = false turns off; ",
        ),
        (
            circuit_with(KEYED + 'encapsulation = "ip"', remote="any"),
            "vela0.remote: 'any' needs a handshake, and encapsulation 'ip' has none; ",
        ),
        (
            circuit_with(KEYED + 'device = "eth1"', remote="any"),
            "vela0.device: the other end of 'any' may call by any interface; bind would be right",
        ),
        (
            circuit_with(KEYED, remote="any") + circuit_with(KEYED, remote="any", name="vela1"),
            "vela1.id: 1 toward any is taken by circuits.vela0.id; ",
        ),
        (
            circuit_with(KEYED, remote="any").replace('"any"', '["192.0.2.9", "ANY"]'),
            "vela0.remote[1]: 'ANY' has no place in a list; ",
        ),
        (
            circuit_with(KEYED, remote="any").replace('"any"', '["any", "192.0.2.9"]'),
            "vela0.remote[0]: 'any' has no place in a list; ",
        ),
    ],
)
def test_mistake_with_a_remote_that_is_any_is_reported(text: str, start: str) -> None:
    assert only_mistake_in(text).startswith(f"circuits.{start}")


def test_low_latency_needs_a_cpu() -> None:
    mistake = only_mistake_in(circuit_with('latency = "low"'))

    assert mistake.startswith("circuits.vela0.latency: 'low' keeps a CPU busy")
    assert mistakes_in(circuit_with('latency = "low"\ncpu = 1')) == []
    assert mistakes_in(circuit_with('latency = "low"\ncpu = [0, 1]')) == []


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ('latency = "low"\ncpu = 1', 'latency = "low"\ncpu = [0, 1]', True),
        ('latency = "low"\ncpu = 1', 'latency = "low"\ncpu = 0', False),
        ('latency = "low"\ncpu = 1', "cpu = 1", False),
        ("cpu = 1", "cpu = 1", False),
    ],
)
def test_cpu_belongs_to_one_circuit_of_low_latency(first: str, second: str, taken: bool) -> None:
    text = circuit_with(first) + circuit_with(second, name="vela1", id=2)

    expected = [
        "circuits.vela1.cpu: CPU 1, for latency 'low', is taken by circuits.vela0.cpu; "
        "another one would be right"
    ]
    assert mistakes_in(text) == (expected if taken else [])
