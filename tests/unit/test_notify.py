"""vela.supervisor.notify: sd_notify(3) toward a real socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vela.supervisor.notify import READY, STOPPING, notify


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive_at_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"vela-test-{os.getpid()}"
    path = str(tmp_path / name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else path)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else path)

        notify(READY)
        notify(STOPPING)

        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("path", [None, "", "/nowhere/notify", "@vela-test-nobody", "x" * 300])
def test_manager_that_is_not_there_is_no_error(
    monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if path is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", path)

    notify(READY)
