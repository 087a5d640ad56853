"""vela.supervisor.daemon: what it takes this machine for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vela.linux.features import ALL_FEATURES
from vela.supervisor import daemon

MACHINE_ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n", "\0" * 32, None])
def test_machine_without_an_id_of_its_own_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    path = tmp_path / "machine-id"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(daemon, "_MACHINE_ID", path)

    assert daemon._identity(ALL_FEATURES)[0] == os.uname().nodename


def test_machine_is_told_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "machine-id"
    path.write_text(f"{MACHINE_ID}\n")
    monkeypatch.setattr(daemon, "_MACHINE_ID", path)

    assert daemon._identity(ALL_FEATURES)[0] == MACHINE_ID
