"""velad under a service manager: what it tells, and what its watchdog is tied to.

The manager is a socket, as the real one's is; vm/guest/unit.py has a real one.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.autoconfigured import asking, ends, policy
from lab.daemon import STOP_TIMEOUT_S, Velad
from lab.topology import TwoRouters
from lab.waiting import PATIENCE

pytestmark = pytest.mark.needs_net_admin

# Long beside the second between two rounds of checks, also on a busy machine.
WATCHDOG_S = 2.0 * PATIENCE
MESSAGE_TIMEOUT_S = 10.0 * PATIENCE
FEED = "WATCHDOG=1"
STATIC = """
[circuits.vela0]
id = 1
remote = "10.201.0.2"
autoconfigure = false
"""
# The loop turns, or does not; either way nobody looks after the circuits.
STUCK = """
import os, time
from vela.supervisor.registry.registry import Registry
check = Registry.check
def stuck(self):
    if os.path.exists({flag!r}):
        {does}
    check(self)
Registry.check = stuck
"""


class Manager:
    """The end of the notification socket that systemd would have."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening

    def next(self, timeout_s: float = MESSAGE_TIMEOUT_S) -> str:
        """Return the next message, but for descriptors to be kept. Raises TimeoutError."""
        self._socket.settimeout(timeout_s)
        while (message := self._socket.recv(1000).decode()).startswith("FDSTORE"):
            pass
        return message

    def wait_for(self, wanted: Callable[[str], bool]) -> str:
        while not wanted(message := self.next()):
            pass
        return message

    def forget(self) -> None:
        """Forget what was said so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(1000)
        except BlockingIOError:
            pass

    def is_fed_in_time(self) -> bool:
        deadline = time.monotonic() + WATCHDOG_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                if self.next(left_s) == FEED:
                    return True
            except TimeoutError:
                break
        return False


@contextmanager
def manager_of(velad: Velad) -> Iterator[Manager]:
    """Hear what a velad that runs says from now on."""
    path = velad.directory / "notify.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        yield Manager(listening)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each velad have a watchdog."""
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)


@pytest.mark.usefixtures("watched")
def test_stopped_supervisor_starves_its_watchdog_and_says_where_it_was(routers: TwoRouters) -> None:
    with Velad(routers.a.namespace, STATIC) as velad, manager_of(velad) as manager:
        assert manager.is_fed_in_time()
        assert manager.is_fed_in_time()

        os.kill(velad.pid, signal.SIGSTOP)
        manager.forget()
        assert not manager.is_fed_in_time()

        # As systemd does (kill_and_sigcont).
        os.kill(velad.pid, signal.SIGABRT)
        os.kill(velad.pid, signal.SIGCONT)
        assert velad.process is not None
        assert velad.process.wait(STOP_TIMEOUT_S) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in velad.log()
        assert "supervisor/runtime/loop.py" in velad.log()

        velad.start()
        assert velad.wait_for_state("vela0", "unmonitored")


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("does", ["time.sleep(3600)", "raise RuntimeError", "return"])
def test_supervisor_that_does_not_get_on_starves_its_watchdog(
    routers: TwoRouters, tmp_path: Path, does: str
) -> None:
    flag = tmp_path / "stuck"
    before = STUCK.format(flag=str(flag), does=does)
    with Velad(routers.a.namespace, STATIC, before=before) as velad, manager_of(velad) as manager:
        assert manager.is_fed_in_time()

        flag.touch()
        # What was begun is over after another round.
        manager.is_fed_in_time()

        # A round that ends at once is what a velad without circuits does.
        assert manager.is_fed_in_time() == (does == "return")
        if does.startswith("time"):
            velad.kill()


def test_velad_without_a_watchdog_says_how_many_circuits_are_in_which_state(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking(routers.b.ipv4), "") as both, manager_of(both.a) as manager:
        said = [manager.next()]
        both.b.configure(policy())
        both.b.reload()
        while said[-1] != "STATUS=1 circuit: 1 up":
            said.append(manager.next())
        both.a.control("down", "vela0")
        assert manager.next() == "STATUS=1 circuit: 1 disabled"
        both.a.stop()
        assert manager.next() == "STOPPING=1"

    assert FEED not in said


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("by", ["signal", "command"])
def test_reload_begins_and_ends_for_the_manager(routers: TwoRouters, by: str, good: bool) -> None:
    with Velad(routers.a.namespace, STATIC) as velad, manager_of(velad) as manager:
        velad.configure(f"{STATIC}mtu = 1400\n" if good else f"{STATIC}mtv = 1400\n")
        before_us = time.monotonic_ns() // 1000
        if by == "signal":
            velad.reload()
        else:
            velad.control("reload", check=False)

        begun = manager.wait_for(lambda message: not message.startswith("STATUS="))
        state, _, stamp = begun.partition("\nMONOTONIC_USEC=")
        assert state == "RELOADING=1"
        assert before_us <= int(stamp) <= time.monotonic_ns() // 1000
        assert manager.next() == "READY=1"
