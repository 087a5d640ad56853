"""What velad says when it cannot start: one clear line, an exit status, and nothing half made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.daemon import CONTROL_SOCKET, Velad, entry_point, with_files
from lab.link import bridge
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

CIRCUIT = """
[circuits.vela0]
id = 1
remote = "10.201.0.2"
autoconfigure = false
"""
SECOND = """
[circuits.vela1]
id = 2
remote = "10.201.0.2"
autoconfigure = false
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that a user other than root can read, too."""
    made = Path(tempfile.mkdtemp(prefix="vela-refusal-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def interfaces(namespace: Namespace) -> list[str]:
    lines = namespace.run("ip", "-o", "link", "show").stdout.splitlines()
    return sorted(line.split(":")[1].strip().partition("@")[0] for line in lines)


def refused(
    namespace: Namespace,
    directory: Path,
    config: str,
    *options: str,
    prefix: tuple[str, ...] = (),
) -> tuple[int, str]:
    """Run velad to its end; return its exit status and what it said, once nothing else is left."""
    path = directory / "vela.toml"
    path.write_text(with_files(config, directory))
    command, env = entry_point("velad", "vela.supervisor.cli")
    before, pids = interfaces(namespace), namespace.pids()
    files = set(directory.iterdir())

    done = namespace.run(
        *prefix, *command, "--config", str(path), *options, check=False, timeout_s=20, env=env
    )

    eventually(lambda: namespace.pids() == pids, 10, "all of its processes to end")
    assert interfaces(namespace) == before
    assert set(directory.iterdir()) == files
    assert done.stdout == ""
    return done.returncode, done.stderr


def line_of(text: str) -> str:
    """Return the one line that text is."""
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[:-1]


def test_velad_started_by_another_user_than_root_says_so(
    routers: TwoRouters, directory: Path
) -> None:
    path = directory / "vela.toml"
    path.write_text(with_files(CIRCUIT, directory))
    # Imported as root: the source tree and Python need not be readable by everybody.
    code = (
        "import encodings.utf_8_sig, os, sys; from vela.supervisor.cli import main; "
        "os.setgroups([]); "
        "os.setresgid(*3 * (65534,)); os.setresuid(*3 * (65534,)); sys.exit(main(sys.argv[1:]))"
    )

    env = entry_point("velad", "vela.supervisor.cli")[1]
    done = routers.a.namespace.run(
        *(sys.executable, "-c", code, "--config", str(path)), check=False, env=env
    )

    assert done.returncode == 1
    assert line_of(done.stderr) == (
        "velad: must run as root, to create interfaces; workers run without privileges"
    )
    assert interfaces(routers.a.namespace) == ["eth0", "lo"]
    assert list(directory.iterdir()) == [path]


@pytest.mark.parametrize("config", [CIRCUIT, "[autoconfigure]\nfrom = ['192.0.2.0/24']\n"])
def test_velad_without_dev_net_tun_says_so(
    routers: TwoRouters, directory: Path, config: str
) -> None:
    hidden = 'mount -t tmpfs none /dev/net && exec "$@"'

    status, said = refused(
        routers.a.namespace, directory, config, prefix=("unshare", "-m", "sh", "-c", hidden, "sh")
    )

    assert status == 1
    assert line_of(said) == "velad: no /dev/net/tun; load the kernel's tun module (modprobe tun)"


@pytest.mark.parametrize(
    ("listen", "family", "shown"),
    [
        ('["::"]', socket.AF_INET6, "[::]:48621"),
        ('["::"]', socket.AF_INET, "[::]:48621"),
        ('["10.201.0.1"]', socket.AF_INET, "10.201.0.1:48621"),
        ('["fd00:201::1", "10.201.0.1"]', socket.AF_INET, "10.201.0.1:48621"),
    ],
)
@pytest.mark.parametrize("shares", [False, True])
def test_velad_whose_port_is_taken_says_so(
    routers: TwoRouters, directory: Path, listen: str, family: int, shown: str, shares: bool
) -> None:
    with routers.a.namespace.socket(family, socket.SOCK_DGRAM) as other:
        if shares:  # with whoever else wants to: datagrams would be divided
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 48621))

        status, said = refused(
            routers.a.namespace, directory, f"[daemon]\nlisten = {listen}\n{CIRCUIT}"
        )

    assert status == 1
    assert line_of(said).startswith(f"velad: cannot listen on {shown}: Address already in use: ")
    assert line_of(said).endswith(f", pid {os.getpid()}")


def test_velad_whose_port_another_velad_has_says_so(routers: TwoRouters, directory: Path) -> None:
    with Velad(routers.a.namespace, CIRCUIT) as first:
        status, said = refused(routers.a.namespace, directory, SECOND)

        assert status == 1
        assert line_of(said) == (
            "velad: cannot listen on [::]:48621: Address already in use: "
            f"velad, pid {first.pid}, with {first.config_path}"
        )
        assert first.wait_for_state("vela0", "unmonitored")["worker"]["restarts"] == 0


def test_velad_whose_listening_address_is_not_here_says_so(
    routers: TwoRouters, directory: Path
) -> None:
    config = f'[daemon]\nlisten = ["fd00:201::1", "192.0.2.77"]\n{CIRCUIT}'

    status, said = refused(routers.a.namespace, directory, config)

    assert status == 1
    assert line_of(said) == (
        "velad: cannot listen on 192.0.2.77:48621: Cannot assign requested address"
    )


@pytest.mark.parametrize(
    "taking",
    [
        "ip link add vela1 type veth peer name other",
        "ip tuntap add dev vela1 mode tap",
        "ip tuntap add dev vela1 mode tun",
        "ip link add vela1 type bridge",
    ],
)
def test_velad_whose_interface_name_is_taken_says_so_and_leaves_the_other(
    routers: TwoRouters, directory: Path, taking: str
) -> None:
    routers.a.namespace.run(*taking.split())

    status, said = refused(routers.a.namespace, directory, CIRCUIT + SECOND)

    assert status == 1
    assert line_of(said) == "velad: vela1: an interface of this name exists already"


def test_velad_whose_bridge_is_no_bridge_says_so(routers: TwoRouters, directory: Path) -> None:
    config = CIRCUIT + SECOND + 'bridge = "eth0"\n'

    status, said = refused(routers.a.namespace, directory, config)

    assert status == 1
    assert line_of(said).startswith("velad: vela1: cannot join it to eth0: ")


def test_velad_whose_bridge_is_there_joins_it(routers: TwoRouters) -> None:
    bridge(routers.a.namespace, "br9")
    with Velad(routers.a.namespace, CIRCUIT + 'bridge = "br9"\n'):
        shown = routers.a.namespace.run("ip", "-o", "link", "show", "dev", "vela0").stdout

    assert "master br9" in shown


def test_velad_whose_address_the_kernel_refuses_says_so(
    routers: TwoRouters, directory: Path
) -> None:
    routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)

    status, said = refused(
        routers.a.namespace, directory, CIRCUIT + 'addresses = ["fd00:16::1/64"]\n'
    )

    assert status == 1
    assert line_of(said).startswith("velad: vela0: cannot add address fd00:16::1/64: ")


def test_circuit_whose_name_does_not_resolve_is_tried_again_and_says_why(
    routers: TwoRouters,
) -> None:
    config = SECOND + CIRCUIT.replace("10.201.0.2", "no-such-host.invalid")
    with Velad(routers.a.namespace, config) as velad:
        asked = velad.wait_for(
            lambda status: bool(status["circuits"][1]["reason"]), 15, "an answer"
        )
        velad.wait_for_state("vela1", "unmonitored")
        circuit = asked["circuits"][1]
        assert circuit["state"] == "resolving"
        assert "no-such-host.invalid" in circuit["reason"]
        assert circuit["worker"] is None

        text = velad.control("status").stdout
        assert f"vela0: {circuit['reason']}" in text

        status = velad.stop()
    assert status == 0
    assert "Traceback" not in velad.log()


def test_circuit_whose_name_resolves_later_comes_up_then(routers: TwoRouters) -> None:
    # What `ip netns exec` shows as /etc/hosts in there.
    hosts = Path("/etc/netns", routers.a.namespace.name, "hosts")
    hosts.parent.mkdir(parents=True)
    try:
        hosts.write_text("127.0.0.1 localhost\n")
        config = CIRCUIT.replace("10.201.0.2", "later.invalid")
        with Velad(routers.a.namespace, config) as velad:
            velad.wait_for(lambda status: bool(status["circuits"][0]["reason"]), 15, "an answer")
            with hosts.open("a") as file:
                file.write("10.201.0.2 later.invalid\n")

            circuit = velad.wait_for_state("vela0", "unmonitored", timeout_s=15)

        assert circuit["remote_address"] == "10.201.0.2"
        assert circuit["reason"] == ""
    finally:
        shutil.rmtree(hosts.parent)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("[daemon\n", ["{path}: line 5, column 8: "]),
        (CIRCUIT + "colour = 1\n", ["{path}: circuits.vela0.colour: "]),
        (
            "[circuits.vela0]\nid = 256\nremote = ''\n",
            ["{path}: circuits.vela0.id: ", "{path}: circuits.vela0.remote: "],
        ),
        (
            "[daemon]\nuser = 'no-such-user'\n" + CIRCUIT,
            ["{path}: daemon.user: there is no user 'no-such-user'"],
        ),
        (
            CIRCUIT + "cpu = 8000\n",
            ["{path}: circuits.vela0.cpu: velad may not use CPU 8000; it may use "],
        ),
    ],
    ids=["no TOML", "unknown key", "two mistakes", "unknown user", "absent CPU"],
)
def test_velad_with_mistakes_in_its_configuration_says_each_in_a_line(
    routers: TwoRouters, directory: Path, config: str, expected: list[str], check: bool
) -> None:
    options = ("--check",) if check else ()

    status, said = refused(routers.a.namespace, directory, config, *options)

    assert status == 2
    lines = said.splitlines()
    assert len(lines) == len(expected), said
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning.format(path=directory / "vela.toml")), said


def test_velad_without_its_configuration_says_so(routers: TwoRouters, directory: Path) -> None:
    command, env = entry_point("velad", "vela.supervisor.cli")

    done = routers.a.namespace.run(
        *command, "--config", str(directory / "none.toml"), check=False, env=env
    )

    assert done.returncode == 2
    assert line_of(done.stderr) == (
        f"{directory / 'none.toml'}: cannot be read: No such file or directory"
    )


def test_check_of_a_correct_configuration_changes_nothing_beside_a_running_velad(
    routers: TwoRouters, directory: Path
) -> None:
    with Velad(routers.a.namespace, CIRCUIT) as velad:
        velad.wait_for_state("vela0", "unmonitored")
        before = velad.worker_pid("vela0"), interfaces(routers.a.namespace)
        command, env = entry_point("velad", "vela.supervisor.cli")

        done = routers.a.namespace.run(
            *command, "--config", str(velad.config_path), "--check", check=False, env=env
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{velad.config_path}: ")
        assert (velad.worker_pid("vela0"), interfaces(routers.a.namespace)) == before


def test_velad_whose_control_socket_another_velad_serves_says_so(
    routers: TwoRouters, directory: Path
) -> None:
    with Velad(routers.b.namespace, "", directory=directory) as first:
        config = CIRCUIT  # in another namespace, so that only the path is shared
        first_config = first.config_path.read_text()

        status, said = refused(routers.a.namespace, directory, config)

        assert status == 1
        assert line_of(said) == (
            f"velad: control socket {directory / CONTROL_SOCKET}: another velad answers there"
        )
        first.config_path.write_text(first_config)
        assert json.loads(first.control("status", "--json").stdout)["circuits"] == []


@pytest.mark.parametrize("kind", ["file", "directory", "in a file", "in /proc"])
def test_velad_whose_control_socket_cannot_be_made_says_so_and_removes_nothing(
    routers: TwoRouters, directory: Path, kind: str
) -> None:
    path = directory / "there"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_text("precious")
    wanted = {"in a file": path / "socket", "in /proc": Path("/proc/vela/socket")}.get(kind, path)
    config = f"[daemon]\ncontrol_socket = '{wanted}'\n{CIRCUIT}"
    (directory / "vela.toml").write_text(config)
    command, env = entry_point("velad", "vela.supervisor.cli")

    try:
        done = routers.a.namespace.run(
            *(*command, "--config", str(directory / "vela.toml")),
            check=False,
            timeout_s=20,
            env=env,
        )
    finally:
        still = path.is_dir() if kind == "directory" else path.exists()

    assert still
    assert done.returncode == 1
    assert line_of(done.stderr).startswith(f"velad: control socket {wanted}: ")
    assert interfaces(routers.a.namespace) == ["eth0", "lo"]


def test_velactl_without_a_velad_says_so(routers: TwoRouters, directory: Path) -> None:
    command, env = entry_point("velactl", "vela.supervisor.velactl")

    # In a namespace: it would name the socket of another velad of the machine.
    line = (*command, "--socket", str(directory / "none.sock"), "status")
    done = routers.a.namespace.run(*line, env=env, check=False)

    assert done.returncode == 1
    assert line_of(done.stderr) == (
        f"velactl: no velad is running at {directory / 'none.sock'}; "
        "start it: systemctl start vela, or velad --config FILE"
    )
