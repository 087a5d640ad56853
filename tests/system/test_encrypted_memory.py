"""Where the secrets of encrypted circuits are: in the key holder alone, and in no core."""

from __future__ import annotations

import _thread
import base64
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from attached_plane import CIRCUIT, Circuit
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from process_memory import found_in_memory
from sealed_circuit import (
    PSK,
    await_rekey,
    generation,
    holder_of,
    identity_configs,
    psk_file,
)

from lab.autoconfigured import Ends, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.process import children
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.dataplane.engine import Engine, load_engine
from vela.dataplane.key_page import KeyPage, KeyPair, create
from vela.signaling.session_secrets import psk_of
from vela.supervisor.runtime.process import fork
from vela.wire import Suite

pytestmark = pytest.mark.needs_net_admin

_CORES = ("prlimit", "--core=unlimited")


@pytest.fixture
def both(routers: TwoRouters, tmp_path: Path) -> Iterator[Ends]:
    """A circuit by identities and a pre-shared key; whoever starts velad has cores written."""
    config_a, config_b = identity_configs(routers, tmp_path, psk_file(tmp_path))
    with (
        Velad(routers.b.namespace, config_b, prefix=_CORES) as b,
        Velad(routers.a.namespace, config_a, prefix=_CORES) as a,
    ):
        ends = Ends(a, b)
        wait_until_up(ends)
        yield ends


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def replace_holder(velad: Velad) -> None:
    lost = holder_of(velad)
    os.kill(lost, signal.SIGKILL)
    eventually(lambda: holder_of(velad) not in (0, lost), 10, "another key holder")


def rekey(velad: Velad) -> None:
    known = generation(velad)
    os.kill(velad.worker_pid(NAME), signal.SIGKILL)
    await_rekey(velad, known)


def scanned(velad: Velad, secrets: set[bytes]) -> tuple[set[bytes], dict[str, set[bytes]]]:
    """Return what the key holder has of them, and what the others have, by name."""
    holder = holder_of(velad)
    others = {velad.pid, *children(velad.pid)} - {holder}
    assert len(others) >= 3  # supervisor, resolver helper, worker
    found = {f"{name_of(pid)} {pid}": found_in_memory(pid, secrets) for pid in others}
    return found_in_memory(holder, secrets), found


def test_secrets_are_in_the_memory_of_the_key_holder_alone(both: Ends, tmp_path: Path) -> None:
    texts = {
        velad: (tmp_path / f"{name}.key").read_bytes().strip()
        for velad, name in zip(both, "ab", strict=True)
    }
    privates = {velad: base64.b64decode(text) for velad, text in texts.items()}
    machine = (both.a.directory / "state" / "machine.key").read_bytes().strip()
    everything = {PSK, psk_of(PSK), machine, *privates.values(), *texts.values()}

    def check() -> None:
        for velad in both:
            held, others = scanned(velad, everything)
            assert others == {process: set() for process in others}
            # The positive control: that what is looked for would be found. What the handshake
            # takes in place of a key, and the text of a private key, need not stay in memory.
            assert {PSK, privates[velad]} <= held
        assert machine in scanned(both.a, {machine})[0]

    check()
    rekey(both.a)
    replace_holder(both.b)
    for velad in both:
        velad.control("reload")
    check()


@pytest.mark.forks
def test_threads_forget_wiped_keys_though_nothing_comes(stack: ExitStack) -> None:
    """The one that answers are sealed with, too, which nobody asks for any more."""
    fd = create()
    stack.callback(os.close, fd)
    page = stack.enter_context(KeyPage(fd))
    circuit = Circuit(stack, "native", key_page=fd)
    attachment = circuit.attachment
    attachment.receive_socket.settimeout(None)  # as a worker's

    def carry() -> None:
        plane = load_engine(Engine.NATIVE).make(attachment)
        never = memoryview(bytearray(2))
        _thread.start_new_thread(plane.egress_until, (never, never))
        plane.ingress_until(never, never)

    sockets = attachment.receive_socket, attachment.send_socket, attachment.divert_socket
    child = fork(carry, (fd, attachment.tap_fd, *(each.fileno() for each in sockets)))
    stack.callback(child.reap)
    stack.callback(child.signal, signal.SIGKILL)
    # Made behind the fork: the child has no other copy.
    tx, rx = os.urandom(32), os.urandom(32)
    page.install(0, KeyPair(Suite.AES_256_GCM, tx, bytes(8), rx, bytes(8)), 1)
    page.send_with(0)
    echo = b"\x41\x01" + bytes(16)
    sealed = AESGCM(rx).encrypt(bytes(11) + b"\1", echo, None)
    circuit.host.send(bytes(60))
    assert circuit.remote.recv(2048)[:2] == bytes([CIRCUIT, 0x42])
    circuit.send(bytes([CIRCUIT, 0x42, 0, 0, 0, 1]) + sealed)
    assert circuit.remote.recv(2048)[:2] == bytes([CIRCUIT, 0x42])
    # The positive control.
    assert found_in_memory(child.pid, {tx, rx}) == {tx, rx}

    page.wipe_all()

    eventually(lambda: not found_in_memory(child.pid, {tx, rx}), 10.0, "no key to be left")


def test_worker_and_key_holder_leave_no_core(both: Ends) -> None:
    for velad in both:
        limits = Path(f"/proc/{velad.pid}/limits").read_text()
        assert re.search(r"Max core file size +unlimited", limits)  # so that it is they who refuse
        for pid in (velad.worker_pid(NAME), holder_of(velad)):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits)
            # Nobody but root owns what shows a process that is not dumpable: proc(5).
            assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
            directory = os.open(f"/proc/{pid}/cwd", os.O_RDONLY | os.O_DIRECTORY)
            try:
                before = set(os.listdir(directory))
                os.kill(pid, signal.SIGSEGV)
                eventually(partial(_is_replaced, velad, pid), 10, f"another one than {pid}")
                assert {each for each in os.listdir(directory) if "core" in each} <= before
            finally:
                os.close(directory)


def _is_replaced(velad: Velad, pid: int) -> bool:
    worker = velad.circuit(NAME)["worker"] or {}
    return pid not in (worker.get("pid"), *children(velad.pid)) and holder_of(velad) != 0
