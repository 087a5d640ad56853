"""The files of a configuration: FILE, FILE.d/*.toml, and what [defaults] gives circuits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vela.errors import ConfigError
from vela.supervisor.cli import main
from vela.supervisor.config.reader import load_config, parse_circuits, parse_config
from vela.supervisor.config.records import DaemonConfig

MAIN = """\
[defaults]
keepalive = 1.5

[circuits.vela0]
id = 1
remote = "192.0.2.1"
"""


def circuit(name: str, number: int, more: str = "") -> str:
    return f'[circuits."{name}"]\nid = {number}\nremote = "192.0.2.1"\n{more}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "vela.toml"
    file.write_text(MAIN)
    (tmp_path / "vela.d").mkdir(mode=0o755)
    return file


def write(path: Path, name: str, text: str) -> Path:
    file = path.with_suffix(".d") / name
    file.write_text(text)
    return file


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return list(caught.value.mistakes)


def test_files_beside_add_circuits_in_the_order_of_their_names(path: Path) -> None:
    second = write(path, "b.toml", circuit("vela.2", 3))
    first = write(path, "a.toml", circuit("vela1", 2, "keepalive = 9.0\n"))

    config = load_config(path)

    assert [each.name for each in config.circuits] == ["vela0", "vela1", "vela.2"]
    assert [each.keepalive for each in config.circuits] == [1.5, 9.0, 1.5]
    assert config.files == {"vela0": str(path), "vela1": str(first), "vela.2": str(second)}


def test_file_alone_is_read_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "vela.toml"
    file.write_text(MAIN)

    config = load_config(file)

    assert config == parse_config(MAIN, "f")
    assert config.files == {}


def test_file_of_another_name_has_a_folder_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "vela.d").mkdir()
    (tmp_path / "vela.d" / "a.toml").write_text("no toml")
    other = tmp_path / "other.toml"
    other.write_text(MAIN)

    assert len(load_config(other).circuits) == 1


@pytest.mark.parametrize("name", [".a.toml", "a.toml~", "a.bak", "#a.toml#"])
def test_files_of_editors_do_not_count(path: Path, name: str) -> None:
    write(path, name, "no toml")

    assert len(load_config(path).circuits) == 1


def test_mistakes_of_all_files_name_the_file_that_they_are_in(path: Path) -> None:
    a = write(path, "a.toml", circuit("vela1", 300) + circuit("vela10", 4, "mtu = 1\n"))
    b = write(path, "b.toml", circuit("vela.2", 3, 'colour = "red"\n'))
    path.write_text(MAIN + "[daemon]\nprot = 1\n")

    found = mistakes(path)

    assert [each.rpartition(" is ")[0] for each in found[:1]] == [f"{path}: daemon.prot:"]
    assert sorted(each.split(": ")[0] + " " + each.split(": ")[1] for each in found[1:]) == [
        f"{a} circuits.vela1.id",
        f"{a} circuits.vela10.mtu",
        f'{b} circuits."vela.2".colour',
    ]


def test_circuit_in_two_files_is_a_mistake_that_names_both(path: Path) -> None:
    a = write(path, "a.toml", circuit("vela1", 2))
    b = write(path, "b.toml", circuit("vela1", 3) + circuit("vela0", 4))

    assert mistakes(path) == [
        f"{b}: circuits.vela1: is in {a}, too; one of the two would be right",
        f"{b}: circuits.vela0: is in {path}, too; one of the two would be right",
    ]


def test_conflict_between_two_files_is_found(path: Path) -> None:
    a = write(path, "a.toml", circuit("vela1", 1))

    assert mistakes(path) == [
        f"{a}: circuits.vela1.id: 1 toward 192.0.2.1 is taken by circuits.vela0.id; "
        "another one would be right"
    ]


@pytest.mark.parametrize("table", ["daemon", "autoconfigure", "defaults", "colours"])
def test_only_circuits_can_be_in_the_files_beside(path: Path, table: str) -> None:
    a = write(path, "a.toml", f"[{table}]\n")

    assert mistakes(path) == [f"{a}: {table}: only circuits can be here; {path} would be right"]


def test_each_file_that_is_no_toml_is_reported(path: Path) -> None:
    a, b = (write(path, name, "[[[") for name in ("a.toml", "b.toml"))

    found = mistakes(path)

    assert [each.split(": ")[0] for each in found] == [str(a), str(b)]


def test_files_and_folders_that_others_can_write_are_not_trusted(path: Path) -> None:
    a = write(path, "a.toml", circuit("vela1", 2))
    a.chmod(0o666)
    assert mistakes(path) == [f"{a} can be changed by others (mode 0666); run chmod go-w on it"]

    a.chmod(0o644)
    path.with_suffix(".d").chmod(0o777)
    assert "vela.d can be changed by others (mode 0777)" in mistakes(path)[0]


def test_fifo_beside_is_refused_at_once(path: Path) -> None:
    os.mkfifo(path.with_suffix(".d") / "a.toml")

    assert "is not a regular file" in mistakes(path)[0]


def test_check_says_how_many_files_there_are(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, "a.toml", circuit("vela1", 2))
    write(path, "b.toml", circuit("vela2", 3))

    assert main(["--config", str(path), "--check"]) == 0

    assert capsys.readouterr().out == f"{path} and 2 beside it: no mistakes, 3 circuits\n"


# [defaults].

DEFAULTS = """\
[defaults]
remote = "192.0.2.9"
mtu = 1400
[defaults.peer]
bridge = "br0"
mac = "02:00:5e:10:00:02"
"""


def test_circuit_has_the_defaults_that_it_does_not_contradict_also_those_of_its_peer() -> None:
    text = (
        DEFAULTS + '[circuits.vela0]\nid = 1\nmtu = 1300\n[circuits.vela0.peer]\nbridge = "br1"\n'
    )

    (config,) = parse_config(text, "f").circuits

    assert (str(config.remote), config.mtu) == ("192.0.2.9", 1300)
    assert (config.peer.bridge, config.peer.mac) == ("br1", bytes.fromhex("02005e100002"))


def test_mistake_in_the_defaults_is_reported_once_and_there() -> None:
    text = "[defaults]\nmtu = 1\nkeepalife = 1\n" + circuit("vela0", 1) + circuit("vela1", 2)

    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f")

    assert [each.split(": ")[1] for each in caught.value.mistakes] == [
        "defaults.mtu",
        "defaults.keepalife",
    ]


def test_key_that_is_required_may_be_in_the_defaults_and_is_missing_otherwise() -> None:
    with pytest.raises(ConfigError, match=r"circuits\.vela0\.id: is missing") as caught:
        parse_config(DEFAULTS + "[circuits.vela0]\n", "f")

    assert len(caught.value.mistakes) == 1


def test_defaults_are_those_of_circuits_of_commands_too() -> None:
    config = parse_config(DEFAULTS, "f")

    (added,) = parse_circuits({"vela7": {"id": 3}}, DaemonConfig(), "add", config.defaults)

    assert (str(added.remote), added.mtu, added.peer.bridge) == ("192.0.2.9", 1400, "br0")


def test_empty_defaults_change_nothing() -> None:
    assert parse_config("[defaults]\n" + circuit("vela0", 1), "f").circuits == (
        parse_config(circuit("vela0", 1), "f").circuits
    )
