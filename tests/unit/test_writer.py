"""vela.supervisor.config.writer: what show-config says is read as the same records."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from vela.supervisor.config.reader import parse_config
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, DaemonConfig
from vela.supervisor.config.writer import format_config
from vela.supervisor.velactl.show_config import toml_lines

EVERYTHING = """
[daemon]
listen = ["192.0.2.1"]
port = 4000
control_socket = "/run/other.sock"
control_group = "adm"
state_directory = "/var/lib/other"
user = "daemon"
engine = "python"
disable_features = ["uso"]
log_level = "debug"
log_format = "json"
identity = "/etc/vela/identity.key"
metrics = "[::1]:9486"

[autoconfigure]
accept = false
from = ["192.0.2.0/24", "router1.example.net"]
key_file = "/etc/vela/key"
peers = ["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="]
encryption = "required"
networks = ["172.16.0.0/12"]
bridges = ["br-lan"]
interfaces = "v*"
max_circuits = 9
max_circuits_per_remote = 3
accept_ra = true

[autoconfigure.sources."192.0.2.7"]
networks = ["172.16.7.0/24"]
max_circuits = 4

[circuits."eth0.5"]
id = 1
remote = "router2.example.net:48622"
description = 'to "Zürich"'
enabled = false
family = "ipv4"
addresses = ["172.16.16.1/30", "fd00:16::1/64"]
mtu = 1400
mac = "02:00:5e:10:00:01"
encapsulation = "ethernet"
encryption = "required"
peer_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
source_port = 5000
rate = "100M"
cpu = 0
keepalive = 2.5
key_file = "/etc/vela/other.key"
accept_ra = true
up = "/etc/vela/up.sh"
down = "/etc/vela/down.sh"

[circuits."eth0.5".peer]
interface = "vela0"
addresses = ["172.16.16.2/30"]
bridge = "br-lan"
mac = "02:00:5e:10:00:02"
"""
LEAST = '[circuits.vela0]\nid = 2\nremote = "192.0.2.9"\n'


def shown(text: str) -> str:
    config = parse_config(text, "f")
    tables = format_config(config, config.circuits)
    origins = dict.fromkeys((each.name for each in config.circuits), "config")
    return "\n".join(toml_lines(tables, origins, config.files))


DEFAULTS = '[defaults]\nkeepalive = 1.5\n[defaults.peer]\nbridge = "br0"\n'


@pytest.mark.parametrize("text", ["", LEAST, EVERYTHING, DEFAULTS + LEAST])
def test_shown_configuration_is_read_as_the_same(text: str) -> None:
    assert parse_config(shown(text), "f") == parse_config(text, "f")


def test_shown_configuration_has_every_key_there_is() -> None:
    config = parse_config(LEAST + "[autoconfigure]\n", "f")
    tables: dict[str, Any] = format_config(config, config.circuits)

    def names(record: type) -> set[str]:
        return {each.name for each in fields(record)}

    assert set(tables["daemon"]) == names(DaemonConfig)
    others = names(AutoconfigureConfig) - {"sources", "per_source"}
    assert set(tables["autoconfigure"]) == others | {"from"}
    assert set(tables["circuits"]["vela0"]) == names(CircuitConfig) - {"name"}


def test_circuit_that_is_not_in_the_file_is_said_to_be_so() -> None:
    config = parse_config(LEAST, "f")
    lines = list(toml_lines(format_config(config, config.circuits), {"vela0": "peer"}))

    assert lines[lines.index("[circuits.vela0]") - 1] == (
        "# Not in the file: another machine set it up."
    )
    assert "# bridge: not set" in lines
