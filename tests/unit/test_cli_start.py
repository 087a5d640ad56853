"""velad's start, up to the first thing that the kernel refuses.

It runs as the root of a user namespace, who may make no interface: so any user can run this, and
nothing on the machine changes. user_namespaces(7).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from http_clients import free_endpoint

from lab.daemon import entry_point
from vela.supervisor.config.sources import Text, read_texts
from vela.supervisor.trial import FILE, TrialFile

CONFIG = """
[daemon]
port = {port}
control_socket = "{folder}/velad.sock"
state_directory = "{folder}/state"
log_format = "json"

[circuits.vela0]
id = 1
remote = "192.0.2.9"
autoconfigure = false
"""
AS_ROOT = ("unshare", "--user", "--map-root-user")


def _is_possible() -> bool:
    if shutil.which(AS_ROOT[0]) is None:
        return False
    return subprocess.run([*AS_ROOT, "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _is_possible(), reason="this user may not make user namespaces")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vela.toml"
    path.write_text(CONFIG.format(folder=tmp_path, port=free_endpoint().port))
    path.chmod(0o644)
    return path


def start(config: Path, *argv: str) -> tuple[int, str, list[dict[str, Any]], str]:
    """Return exit status, output, what was logged, and the last line, which is not of the log."""
    command, env = entry_point("velad", "vela.supervisor.cli")
    done = subprocess.run(
        [*AS_ROOT, *command, "--config", str(config), *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
    )
    lines = done.stderr.splitlines()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    # Ahead of the last line may be what became of helpers, which cannot change their user there.
    return done.returncode, done.stdout, logged, lines[-1]


def refusals(circuit: str) -> tuple[str, str]:
    """Return what the kernel refuses first: that depends on who may open the device."""
    return (
        "velad: cannot open /dev/net/tun: Permission denied",
        f"velad: {circuit}: cannot create a TAP: Operation not permitted",
    )


def events(logged: list[dict[str, Any]]) -> set[str]:
    return {str(each["event"]) for each in logged}


def test_root_that_may_make_no_interface_is_told_in_one_line_with_status_1(
    config: Path, tmp_path: Path
) -> None:
    status, out, _, said = start(config)

    assert (status, out) == (1, "")
    assert said in refusals("vela0")
    assert not (tmp_path / "velad.sock").exists()


def test_mistakes_of_the_file_come_before_what_the_machine_refuses(config: Path) -> None:
    config.write_text(config.read_text().replace("id = 1", "id = 256"))

    status, out, logged, said = start(config)

    assert (status, out, logged) == (2, "", [])
    assert said == f"{config}: circuits.vela0.id: 256 is outside 1..255"


def test_velad_that_is_to_replace_another_one_says_that_none_runs(
    config: Path, tmp_path: Path
) -> None:
    status, out, _, said = start(config, "--replace")

    assert (status, out) == (1, "")
    assert f"{tmp_path}/velad.sock" in said


def on_trial(config: Path, tmp_path: Path, former: str) -> Path:
    """Put the file on trial, as `velactl reload --confirm` does. Return where that is kept."""
    before = (Text(str(config), former),)
    TrialFile(tmp_path / "state").write(read_texts(config), before)
    return tmp_path / "state" / FILE


def test_configuration_that_nobody_has_confirmed_is_taken_back(
    config: Path, tmp_path: Path
) -> None:
    former = config.read_text().replace("vela0", "before0")
    kept = on_trial(config, tmp_path, former)

    status, _, logged, said = start(config)

    assert status == 1
    assert "configuration_taken_back" in events(logged)
    assert said in refusals("before0")
    # Until an operator has corrected the files, the next start takes it back again.
    assert kept.exists()


def test_configuration_that_was_changed_since_its_trial_is_taken_and_the_trial_forgotten(
    config: Path, tmp_path: Path
) -> None:
    kept = on_trial(config, tmp_path, config.read_text())
    config.write_text(config.read_text() + "# by hand\n")

    status, _, logged, _ = start(config)

    assert status == 1
    assert not {"configuration_taken_back", "trial_not_taken_back"} & events(logged)
    assert not kept.exists()


@pytest.mark.parametrize("damage", ["record", "former"])
def test_trial_that_cannot_be_read_is_logged_and_the_file_is_taken(
    config: Path, tmp_path: Path, damage: str
) -> None:
    kept = on_trial(config, tmp_path, "[daemon]\nport = 0\n")
    if damage == "record":
        kept.write_text("{")

    status, _, logged, said = start(config)

    assert status == 1
    (entry,) = (each for each in logged if each["event"] == "trial_not_taken_back")
    expected = FILE if damage == "record" else "daemon.port: 0 is outside 1..65535"
    assert expected in entry["error"]
    assert said in refusals("vela0")
