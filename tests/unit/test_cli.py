"""velad's command line, run as a program: what it prints and with which status it ends."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from lab.daemon import entry_point
from lab.namespace import Namespace
from vela import __version__
from vela.supervisor.cli import main

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="velad starts as root only")

GOOD = """
[daemon]
control_socket = "{directory}/velad.sock"

[circuits.vela0]
id = 1
remote = "192.0.2.9"
autoconfigure = false
"""


def velad(*argv: str, prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
    command, env = entry_point("velad", "vela.supervisor.cli")
    done = subprocess.run(
        [*prefix, *command, *argv], capture_output=True, text=True, timeout=30, env=env
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vela.toml"
    path.write_text(GOOD.format(directory=tmp_path))
    return path


def test_version_and_help_end_with_success() -> None:
    assert velad("--version") == (0, f"velad {__version__}\n", "")
    status, out, err = velad("--help")
    assert (status, err) == (0, "")
    for word in ("usage: velad", "--config", "--check", "/etc/vela.toml", "HUP", "Exit status"):
        assert word in out


def test_check_of_a_good_file_changes_nothing(config: Path, tmp_path: Path) -> None:
    assert velad("--config", str(config), "--check") == (
        0,
        f"{config}: no mistakes, 1 circuits\n",
        "",
    )
    assert os.listdir(tmp_path) == ["vela.toml"]
    assert "vela0" not in {name for _, name in socket.if_nameindex()}


@pytest.mark.parametrize("arguments", [("--check",), pytest.param((), marks=needs_root)])
def test_mistakes_are_told_all_at_once_with_status_2(
    config: Path, arguments: tuple[str, ...]
) -> None:
    text = config.read_text().replace("id = 1", "id = 256\ncpu = -1\nspeed = 1")
    config.write_text(text)

    status, out, err = velad("--config", str(config), *arguments)

    assert (status, out) == (2, "")
    assert {tuple(line.split(": ")[:2]) for line in err.splitlines()} == {
        (str(config), "circuits.vela0.id"),
        (str(config), "circuits.vela0.cpu"),
        (str(config), "circuits.vela0.speed"),
    }
    assert "vela0" not in {name for _, name in socket.if_nameindex()}


def test_what_only_the_machine_can_tell_is_a_mistake_too(config: Path) -> None:
    text = config.read_text().replace("id = 1", "id = 1\ncpu = 500")
    config.write_text(text.replace("[daemon]", '[daemon]\nuser = "no-such-user"'))

    status, _, err = velad("--config", str(config), "--check")

    assert status == 2
    user, cpu = err.splitlines()
    assert user.startswith(f"{config}: daemon.user: there is no user 'no-such-user'")
    assert cpu.startswith(f"{config}: circuits.vela0.cpu: velad may not use CPU 500")


def test_mistakes_of_the_file_and_of_the_machine_are_told_together(config: Path) -> None:
    text = config.read_text().replace("id = 1", "id = 256\nkey_file = '/nowhere/key'")
    config.write_text(text.replace("[daemon]", '[daemon]\nuser = "no-such-user"'))

    status, _, err = velad("--config", str(config), "--check")

    assert status == 2
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        "circuits.vela0.id",
        "daemon.user",
        "circuits.vela0.key_file",
    ]


def test_not_root_is_one_line_with_status_1_whatever_the_file_is(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)

    assert main(["--config", "/nowhere/vela.toml"]) == 1
    assert capsys.readouterr() == (
        "",
        "velad: must run as root, to create interfaces; workers run without privileges\n",
    )
    assert main(["--config", str(config), "--check"]) == 0


@pytest.mark.parametrize("argv", [("--config",), ("--chek",), ("extra",)])
def test_command_line_with_a_mistake_ends_with_status_2(argv: tuple[str, ...]) -> None:
    status, out, err = velad(*argv)

    assert (status, out) == (2, "")
    assert err.startswith("usage: velad")


@needs_root
def test_file_that_is_not_there_ends_with_status_2(tmp_path: Path) -> None:
    status, out, err = velad("--config", str(tmp_path / "none.toml"))

    assert (status, out) == (2, "")
    assert err.startswith(f"{tmp_path}/none.toml: ")
    assert err.count("\n") == 1


@pytest.mark.needs_net_admin
def test_machine_that_refuses_is_told_in_one_line_with_status_1(
    config: Path, tmp_path: Path
) -> None:
    with Namespace("cli") as namespace:
        prefix = tuple(namespace.command())
        arguments = ("--config", str(config))
        blocker = namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with blocker:
            blocker.bind(("::", 48621))
            assert velad(*arguments, prefix=prefix) == (
                1,
                "",
                "velad: cannot listen on [::]:48621: Address already in use\n",
            )
        namespace.run("ip", "link", "add", "vela0", "type", "bridge")
        assert velad(*arguments, prefix=prefix) == (
            1,
            "",
            "velad: vela0: an interface of this name exists already\n",
        )
    assert os.listdir(tmp_path) == ["vela.toml"]


@pytest.mark.needs_net_admin
def test_root_without_privileges_ends_with_the_reason_and_status_1(config: Path) -> None:
    """As in a container; what it logged before that is no matter here."""
    with Namespace("cli") as namespace:
        prefix = (*namespace.command(), "setpriv", "--bounding-set=-all", "--inh-caps=-all")
        status, out, err = velad("--config", str(config), prefix=prefix)

    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == "velad: vela0: cannot create a TAP: Operation not permitted"
