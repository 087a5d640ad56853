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


def test_check_warns_of_what_the_machine_does_not_have(config: Path, tmp_path: Path) -> None:
    """Friction 19."""
    hook = tmp_path / "down.sh"
    hook.write_text("#!/bin/sh\n")
    circuit = '[circuits.vela0]\nid = 1\nremote = "192.0.2.9"\n'
    circuit += f'bridge = "br-absent"\nup = "{tmp_path}/up.sh"\ndown = "{hook}"\n'
    config.write_text(circuit)

    status, out, err = velad("--config", str(config), "--check")

    assert (status, out) == (0, f"{config}: no mistakes, 1 circuits\n")
    warning = f"{config}: warning: circuits.vela0"
    assert err.splitlines() == [
        f"{warning}.bridge: there is no bridge br-absent now; velad waits for it",
        f"{warning}.up: {tmp_path}/up.sh cannot be read: No such file or directory; "
        "it would not be run",
        f"{warning}.down: {hook} is not executable; run chmod u+x on it; it would not be run",
    ]
    hook.chmod(0o755)
    config.write_text(circuit.replace("up.sh", "down.sh").replace('bridge = "br-absent"', ""))
    assert velad("--config", str(config), "--check")[2] == ""


def test_check_warns_of_keys_interfaces_and_addresses_that_are_not_there(
    config: Path, tmp_path: Path
) -> None:
    """Friction 19. velad starts without the latter two, and not without a key."""
    keys = {name: tmp_path / name for name in ("identity", "shared", "own")}
    text = f'''[daemon]
identity = "{keys["identity"]}"
[autoconfigure]
key_file = "{keys["shared"]}"
interfaces = "vela*"
[circuits.vela0]
id = 1
remote = "192.0.2.9"
key_file = "{keys["own"]}"
device = "absent0"
[circuits.vela1]
id = 2
remote = "192.0.2.9"
bind = "192.0.2.77"
'''
    config.write_text(text)

    status, out, err = velad("--config", str(config), "--check")

    assert (status, out) == (0, f"{config}: no mistakes, 2 circuits\n")
    missing = "cannot be read: No such file or directory"
    without = "create it; velad does not start without it"
    assert err.splitlines() == [
        f"{config}: warning: {line}"
        for line in (
            f"daemon.identity: {keys['identity']} {missing}; velad --generate-key makes it; "
            "velad does not start without it",
            f"autoconfigure.key_file: {keys['shared']} {missing}; {without}",
            f"circuits.vela0.key_file: {keys['own']} {missing}; {without}",
            "circuits.vela0.device: the interface absent0 does not exist; waiting for it",
            "circuits.vela1.bind: 192.0.2.77 is no address of this machine; waiting for it",
        )
    ]


@needs_root
def test_key_that_is_not_there_is_a_mistake_at_the_start(config: Path, tmp_path: Path) -> None:
    config.write_text(
        f'[circuits.vela0]\nid = 1\nremote = "192.0.2.9"\nkey_file = "{tmp_path}/k"\n'
    )

    status, _, err = velad("--config", str(config))

    assert status == 2
    assert err.startswith(f"{config}: circuits.vela0.key_file: {tmp_path}/k cannot be read: ")


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
    text = config.read_text().replace("id = 1", "id = 256\nkey_file = '/'")
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


def test_key_is_generated_once_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"

    status, generated, err = velad("--generate-key", str(path))
    assert status == 0
    assert err.startswith(f"private key: {path}; fingerprint SHA256:")
    status, shown, err = velad("--show-key", str(path))
    assert (status, shown) == (0, generated)
    assert err.startswith("fingerprint SHA256:")
    assert len(shown) == 45

    assert velad("--generate-key", str(path)) == (
        1,
        "",
        f"velad: {path} exists, and is not overwritten; velad --show-key prints its public key\n",
    )
    assert path.stat().st_mode & 0o777 == 0o600


def test_key_is_where_the_configuration_says(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "id"
    config.write_text(config.read_text().replace("[daemon]", f'[daemon]\nidentity = "{path}"'))
    of_config = ("--config", str(config))

    status, _, err = velad(*of_config, "--check")
    assert status == 0
    assert err == (
        f"{config}: warning: daemon.identity: {path} cannot be read: No such file or directory; "
        "velad --generate-key makes it; velad does not start without it\n"
    )
    status, public, _ = velad(*of_config, "--generate-key")
    assert status == 0
    assert velad(*of_config, "--show-key")[:2] == (0, public)
    assert velad("--show-key", str(path))[:2] == (0, public)
    assert velad(*of_config, "--check")[0] == 0


def test_key_of_a_configuration_with_mistakes_is_not_made(config: Path, tmp_path: Path) -> None:
    config.write_text("[daemon]\nport = 0\n")

    status, out, err = velad("--config", str(config), "--generate-key")

    assert (status, out) == (2, "")
    assert err == f"{config}: daemon.port: 0 is outside 1..65535\n"
    assert os.listdir(tmp_path) == ["vela.toml"]


@pytest.mark.parametrize(
    ("encryption", "size", "mistakes"),
    [
        ("none", 16, []),
        ("none", 15, ["key_file"]),
        ("required", 32, []),
        ("required", 31, ["key_file"]),
    ],
)
def test_encryption_needs_a_strong_key(
    config: Path, tmp_path: Path, encryption: str, size: int, mistakes: list[str]
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * size)
    key.chmod(0o600)
    text = config.read_text().replace("autoconfigure = false", "")
    config.write_text(f'{text}encryption = "{encryption}"\nkey_file = "{key}"\n')

    status, _, err = velad("--config", str(config), "--check")

    assert status == (2 if mistakes else 0)
    assert [line.split(": ")[1].removeprefix("circuits.vela0.") for line in err.splitlines()] == (
        mistakes
    )
    if size == 31:
        assert f"{key} has a key of 31 bytes; 32..1024 are right where encryption is" in err


@pytest.mark.parametrize("arguments", [("--check",), pytest.param((), marks=needs_root)])
def test_configuration_that_others_can_change_is_refused_with_status_2(
    config: Path, arguments: tuple[str, ...]
) -> None:
    config.chmod(0o666)

    assert velad("--config", str(config), *arguments) == (
        2,
        "",
        f"{config} can be changed by others (mode 0666); run chmod go-w on it\n",
    )


@pytest.mark.parametrize("arguments", [("--check",), pytest.param((), marks=needs_root)])
def test_configuration_in_a_fifo_is_refused_at_once(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    fifo = tmp_path / "vela.toml"
    os.mkfifo(fifo, 0o600)

    assert velad("--config", str(fifo), *arguments) == (
        2,
        "",
        f"{fifo} is not a regular file; name one that is\n",
    )


def test_configuration_may_be_reached_by_a_link(config: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(config)

    assert velad("--config", str(link), "--check")[0] == 0


@pytest.mark.parametrize("table", ["daemon.identity", "circuits.vela0.key_file"])
@pytest.mark.parametrize("kind", ["fifo", "link", "readable"])
def test_file_of_a_key_that_is_not_trusted_is_a_mistake(
    config: Path, tmp_path: Path, table: str, kind: str
) -> None:
    path = tmp_path / "key"
    said = {
        "fifo": "is not a regular file",
        "link": "is a symbolic link; name the file itself",
        "readable": "gives others access (mode 0644); run chmod 600 on it",
    }[kind]
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "link":
        (tmp_path / "real").write_bytes(b"k" * 44)
        path.symlink_to(tmp_path / "real")
    else:
        path.write_bytes(b"k" * 44)
        path.chmod(0o644)
    text = config.read_text()
    if table == "daemon.identity":
        text = text.replace("[daemon]", f'[daemon]\nidentity = "{path}"')
    else:
        text += f'key_file = "{path}"\n'
    config.write_text(text)

    status, _, err = velad("--config", str(config), "--check")

    assert status == 2
    assert err.startswith(f"{config}: {table}: {path} {said}")


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("kind", ["writable", "link", "fifo", "foreign"])
def test_state_that_is_not_trusted_is_refused_with_status_1(
    config: Path, tmp_path: Path, kind: str
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    circuits = state / "circuits.json"
    circuits.write_text('{"version": 1, "circuits": {}, "disabled": []}')
    config.write_text(
        config.read_text().replace("[daemon]", f'[daemon]\nstate_directory = "{state}"')
    )
    match kind:
        case "writable":
            state.chmod(0o777)
            said = f"{state} can be changed by others (mode 0777); run chmod go-w on it"
        case "link":
            circuits.rename(tmp_path / "elsewhere")
            circuits.symlink_to(tmp_path / "elsewhere")
            said = f"{circuits} is a symbolic link; name the file itself"
        case "fifo":
            circuits.unlink()
            os.mkfifo(circuits, 0o600)
            said = f"{circuits} is not a regular file; name one that is"
        case _:
            os.chown(circuits, 65534, 65534)
            said = f"{circuits} belongs to user 65534, not to root; run chown root on it"

    with Namespace("cli") as namespace:
        prefix = tuple(namespace.command())
        status, out, err = velad("--config", str(config), prefix=prefix)

    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == f"velad: {said}"


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
            status, out, err = velad(*arguments, prefix=prefix)
            assert (status, out) == (1, "")
            said = "velad: cannot listen on [::]:48621: Address already in use: "
            assert err.startswith(said)
            assert err.endswith(f", pid {os.getpid()}\n")
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
