"""circuits.json: what is read is what was saved, whatever becomes of the file meanwhile."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import pytest

from vela.address import Remote
from vela.errors import DeviceError
from vela.supervisor.circuit.setup import Origin
from vela.supervisor.config.records import CircuitConfig, DaemonConfig, PeerConfig
from vela.supervisor.registry.store import StateFile, Stored, StoredCircuit

DAEMON = DaemonConfig()
COMMANDED = StoredCircuit(
    CircuitConfig(
        name="vela7",
        id=7,
        remote=Remote("router9.example.net", 48622),
        addresses=(ip_interface("10.9.0.1/30"), ip_interface("fd00:9::1/64")),
        mac=bytes.fromhex("02005e100001"),
        mtu=1400,
        keepalive=0.5,
        key_file=Path("/etc/vela/key"),
        peer=PeerConfig(interface="vela1", addresses=(ip_interface("10.9.0.2/30"),), bridge="br0"),
    ),
    Origin.COMMAND,
)
OF_PEER = StoredCircuit(
    CircuitConfig(name="vela0", id=1, remote=Remote("2001:db8::9"), bridge="br-lan"),
    Origin.PEER,
    named_by_peer=True,
)
STORED = Stored((COMMANDED, OF_PEER), disabled=frozenset({"vela0", "vela3"}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "circuits.json"


def test_store_that_was_never_saved_holds_nothing(path: Path) -> None:
    assert StateFile(path.parent).load(DAEMON) == Stored()
    assert not path.parent.exists()


def test_store_returns_what_was_saved_last(path: Path) -> None:
    StateFile(path.parent).save(Stored())
    StateFile(path.parent).save(STORED)

    assert StateFile(path.parent).load(DAEMON) == STORED
    assert [each.name for each in path.parent.iterdir()] == ["circuits.json"]
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_store_ignores_a_file_that_was_not_finished(path: Path) -> None:
    StateFile(path.parent).save(STORED)
    path.with_suffix(".new").write_text('{"version": 1, "circ')

    assert StateFile(path.parent).load(DAEMON) == STORED


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 512,
        b"\xff\xfe",
        b"[]",
        b"7",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 2, "circuits": {}, "disabled": []}',
        b'{"version": 1, "circuits": [], "disabled": []}',
        b'{"version": 1, "circuits": {}, "disabled": "vela0"}',
    ],
)
def test_store_sets_a_file_aside_that_makes_no_sense(
    path: Path, text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_bytes(text)

    assert StateFile(path.parent).load(DAEMON) == Stored()

    assert "state_unreadable" in capsys.readouterr().out
    assert not path.exists()
    assert (path.parent / "circuits.json.unreadable").read_bytes() == text
    StateFile(path.parent).save(STORED)
    assert StateFile(path.parent).load(DAEMON) == STORED


def test_store_overwrites_nothing_that_was_set_aside_before(path: Path) -> None:
    path.parent.mkdir()

    for text in (b"first", b"second", b"third"):
        path.write_bytes(text)
        StateFile(path.parent).load(DAEMON)

    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == {
        "circuits.json.unreadable": b"first",
        "circuits.json.unreadable.2": b"second",
        "circuits.json.unreadable.3": b"third",
    }


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({}, "KeyError: 'settings'"),
        (7, "TypeError: not an object"),
        (
            {
                "origin": "nobody",
                "named_by_peer": False,
                "settings": {"id": 1, "remote": "192.0.2.9"},
            },
            "ValueError: 'nobody' is not a valid Origin",
        ),
        (
            {
                "origin": "peer",
                "named_by_peer": False,
                "settings": {"id": 256, "remote": "192.0.2.9"},
            },
            "circuits.vela5.id: 256 is outside 1..255",
        ),
        ({"origin": "peer", "named_by_peer": False, "settings": None}, "circuits.vela5: "),
    ],
)
def test_store_keeps_an_entry_that_makes_no_sense_and_reads_the_others(
    path: Path, entry: object, error: str
) -> None:
    StateFile(path.parent).save(STORED)
    document = json.loads(path.read_text())
    document["circuits"]["vela5"] = entry
    path.write_text(json.dumps(document))

    stored = StateFile(path.parent).load(DAEMON)

    assert (stored.circuits, stored.disabled) == (STORED.circuits, STORED.disabled)
    assert [(each.name, each.entry) for each in stored.unread] == [("vela5", entry)]
    assert error in stored.unread[0].error
    StateFile(path.parent).save(stored)
    assert json.loads(path.read_text()) == document


def test_store_cut_at_any_byte_is_whole_or_set_aside(path: Path) -> None:
    store = StateFile(path.parent)
    store.save(STORED)
    text = path.read_bytes()
    for length in range(len(text)):
        path.write_bytes(text[:length])
        # All but the last line's end is needed.
        assert store.load(DAEMON) == (STORED if length == len(text) - 1 else Stored())
        for renamed in path.parent.glob("*.unreadable*"):
            renamed.unlink()


def test_store_that_cannot_be_saved_keeps_what_was_there(path: Path) -> None:
    store = StateFile(path.parent)
    store.save(Stored((OF_PEER,)))
    # What is in the way of the new file.
    path.with_suffix(".new").mkdir()

    with pytest.raises(DeviceError, match=r"circuits\.json: Is a directory$"):
        store.save(STORED)

    assert store.load(DAEMON) == Stored((OF_PEER,))


@pytest.fixture
def synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool]]:
    """What was synced so far, and whether circuits.json was in its place by then."""
    calls: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        fsync(fd)
        calls.append((Path(os.readlink(f"/proc/self/fd/{fd}")), path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    return calls


def test_store_syncs_the_file_before_the_rename_and_the_folder_after(
    path: Path, synced: list[tuple[Path, bool]]
) -> None:
    path.parent.mkdir()

    StateFile(path.parent).save(STORED)

    assert synced == [(path.with_suffix(".new"), False), (path.parent, True)]


def test_store_syncs_the_folders_that_hold_the_ones_it_makes(
    tmp_path: Path, synced: list[tuple[Path, bool]]
) -> None:
    StateFile(tmp_path / "outer" / "inner").save(STORED)

    folders = [folder for folder, _ in synced if folder.is_dir()]
    assert folders == [tmp_path / "outer", tmp_path, tmp_path / "outer" / "inner"]


def test_store_syncs_the_folder_after_a_file_was_set_aside(
    path: Path, synced: list[tuple[Path, bool]]
) -> None:
    path.parent.mkdir()
    path.write_text("[]")

    StateFile(path.parent).load(DAEMON)

    assert synced == [(path.parent, False)]


@pytest.mark.parametrize(("error", "raised"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_store_folder_that_cannot_be_synced_is_an_error_if_its_file_system_syncs_folders(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int, raised: bool
) -> None:
    path.parent.mkdir()
    fsync = os.fsync

    def fail(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(error, os.strerror(error))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)

    if raised:
        with pytest.raises(DeviceError, match=r"circuits\.json: Input/output error$"):
            StateFile(path.parent).save(STORED)
    else:
        StateFile(path.parent).save(STORED)
        assert StateFile(path.parent).load(DAEMON) == STORED


def test_store_whose_directory_is_a_file_says_so(path: Path) -> None:
    path.parent.write_text("in the way")

    with pytest.raises(DeviceError, match=r"/state is not a directory$"):
        StateFile(path.parent).save(STORED)
    with pytest.raises(DeviceError, match=r"/state is no directory$"):
        StateFile(path.parent).load(DAEMON)


def test_store_in_a_directory_that_others_can_change_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    said = r"/state can be changed by others \(mode 0777\); run chmod go-w on it$"

    with pytest.raises(DeviceError, match=said):
        StateFile(path.parent).load(DAEMON)
    with pytest.raises(DeviceError, match=said):
        StateFile(path.parent).save(STORED)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["circuits.json", "circuits.new"])
def test_store_writes_through_no_link(path: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path.parent.mkdir()
    (path.parent / name).symlink_to(precious)

    StateFile(path.parent).save(STORED)

    assert precious.read_text() == "precious"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert StateFile(path.parent).load(DAEMON) == STORED


def test_store_reads_through_no_link_and_no_fifo(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match=r"circuits\.json is a symbolic link; name the file"):
        StateFile(path.parent).load(DAEMON)

    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(DeviceError, match=r"circuits\.json is not a regular file"):
        StateFile(path.parent).load(DAEMON)


def test_store_is_readable_json(path: Path) -> None:
    StateFile(path.parent).save(Stored((OF_PEER,), disabled=frozenset({"vela0"})))

    assert json.loads(path.read_text()) == {
        "version": 1,
        "circuits": {
            "vela0": {
                "origin": "peer",
                "named_by_peer": True,
                "settings": {"id": 1, "remote": "2001:db8::9", "bridge": "br-lan"},
            }
        },
        "disabled": ["vela0"],
    }


def test_store_keeps_which_machine_set_a_circuit_up(path: Path) -> None:
    kept = Stored((replace(OF_PEER, maker=bytes(range(16))),))
    StateFile(path.parent).save(kept)

    assert StateFile(path.parent).load(DAEMON) == kept
    document = json.loads(path.read_text())
    assert document["circuits"]["vela0"]["maker"] == "000102030405060708090a0b0c0d0e0f"
    for wrong in ("no hexadecimal", 5):
        document["circuits"]["vela0"]["maker"] = wrong
        path.write_text(json.dumps(document))
        assert [each.name for each in StateFile(path.parent).load(DAEMON).unread] == ["vela0"]
