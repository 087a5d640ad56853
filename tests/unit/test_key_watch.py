"""vela.supervisor.circuit.key_watch: two simulated machines, each with a real key holder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from encrypted_machine import EncryptedMachine, write_key
from simulation import ROUTER_A, ROUTER_B, Network, network

from vela.address import Remote
from vela.public_key import fingerprint
from vela.signaling.generations import Limits
from vela.supervisor.config.records import CircuitConfig, Encryption
from vela.supervisor.status import CipherStatus, WorkerStatus

pytestmark = pytest.mark.forks


class Pair:
    """Two machines with a circuit in the files of both, encrypted by a pre-shared key."""

    def __init__(self, link: Network, folder: Path, *, identities: bool = False) -> None:
        self.link = link
        self.a = EncryptedMachine(link, ROUTER_A, folder / "a")
        self.b = EncryptedMachine(link, ROUTER_B, folder / "b")
        self.machines = self.a, self.b
        for machine, other in ((self.a, self.b), (self.b, self.a)):
            circuit = CircuitConfig(
                "vela0", 1, Remote(str(other.address)), encryption=Encryption.REQUIRED
            )
            if identities:
                circuit = replace(circuit, peer_key=other.public)
            else:
                key = write_key(machine.daemon.state_directory / "key")
                circuit = replace(circuit, key_file=key)
            machine.config = replace(machine.config, circuits=(circuit,))
            machine.boot()

    def words(self) -> list[str]:
        return [machine.states()["vela0"][0] for machine in self.machines]

    def cipher(self, machine: EncryptedMachine) -> CipherStatus | None:
        (status,) = machine.statuses()
        return status.cipher

    def generations(self) -> list[int]:
        """Return which keys are in use at each end."""
        found = [self.cipher(machine) for machine in self.machines]
        return [0 if each is None else each.generation for each in found]

    def attachments(self) -> list[int]:
        return [machine.data_paths["vela0"].attachments for machine in self.machines]


@pytest.fixture
def link() -> Iterator[Network]:
    with network(1) as made:
        yield made
        assert made.loop.failures == []


@pytest.fixture
def pair(link: Network, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(link, tmp_path)
    yield made
    for machine in made.machines:
        machine.stop()


def test_circuit_is_up_with_the_first_keys_as_soon_as_the_workers_have_them(pair: Pair) -> None:
    pair.link.run(3)

    assert pair.words() == ["up", "up"]
    assert pair.generations() == [1, 1]
    for machine in pair.machines:
        cipher = pair.cipher(machine)
        assert cipher is not None
        assert (cipher.suite, cipher.pattern) == ("AES-256-GCM", "NNpsk0")
        assert cipher.peer_fingerprint is None
        (usage,) = machine.workers["vela0"].usages()
        assert usage.receives
        assert usage.sends


def test_circuit_of_public_keys_shows_whose_it_is(link: Network, tmp_path: Path) -> None:
    pair = Pair(link, tmp_path, identities=True)
    link.run(3)

    shown = [pair.cipher(machine) for machine in pair.machines]
    assert [(each.pattern, each.peer_fingerprint) for each in shown if each is not None] == [
        ("IKpsk2", fingerprint(pair.b.public)),
        ("IKpsk2", fingerprint(pair.a.public)),
    ]
    for machine in pair.machines:
        machine.stop()


@pytest.mark.parametrize("slow", [("a",), ("b",), ("a", "b")])
def test_no_end_sends_before_the_worker_of_the_other_has_the_keys(
    pair: Pair, slow: tuple[str, ...]
) -> None:
    named = {"a": pair.a, "b": pair.b}
    for name in slow:
        named[name].workers["vela0"].takes = False
    pair.link.run(10)
    for name in {"a", "b"} - set(slow):
        assert not any(each.sends for each in named[name].workers["vela0"].usages())

    for name in slow:
        named[name].workers["vela0"].takes = True
    pair.link.run(20)

    assert pair.words() == ["up", "up"]
    for machine in pair.machines:
        assert any(each.sends for each in machine.workers["vela0"].usages())


def test_keys_are_replaced_every_two_minutes_without_a_new_attachment(pair: Pair) -> None:
    pair.link.run(3)
    attachments = pair.attachments()

    for expected in (2, 3):
        pair.link.run(Limits().rekey_after_s + 5)
        assert pair.generations() == [expected, expected]

    pair.link.run(Limits().keep_old_s)
    for machine in pair.machines:
        # The keys before are wiped.
        (usage,) = machine.workers["vela0"].usages()
        assert (usage.generation, usage.receives) == (3, True)
    assert pair.words() == ["up", "up"]
    assert pair.attachments() == attachments


@pytest.mark.parametrize("end", ["a", "b"])
def test_keys_that_are_used_up_are_replaced_at_once(pair: Pair, end: str) -> None:
    pair.link.run(3)

    {"a": pair.a, "b": pair.b}[end].workers["vela0"].send(Limits().rekey_frames)
    pair.link.run(5)

    assert pair.generations() == [2, 2]
    assert pair.words() == ["up", "up"]


def test_keys_that_are_half_used_stay_and_that_is_shown(pair: Pair) -> None:
    pair.link.run(3)

    sent = Limits().rekey_frames - 1
    pair.a.workers["vela0"].send(sent)
    pair.b.workers["vela0"].sleep(120)
    pair.link.run(5)

    assert pair.generations() == [1, 1]
    cipher = pair.cipher(pair.a)
    assert cipher is not None
    assert cipher.frames_left == Limits().expire_frames - sent


@pytest.mark.parametrize("end", ["a", "b"])
def test_keys_that_have_aged_while_the_machine_slept_are_replaced(pair: Pair, end: str) -> None:
    pair.link.run(3)

    {"a": pair.a, "b": pair.b}[end].workers["vela0"].sleep(140)
    pair.link.run(5)

    assert pair.generations() == [2, 2]


@pytest.mark.parametrize("end", ["a", "b"])
def test_worker_that_was_restarted_gets_other_keys_once(pair: Pair, end: str) -> None:
    machine = {"a": pair.a, "b": pair.b}[end]
    machine.data_paths["vela0"].worker = worker(restarts=0)
    pair.link.run(20)
    assert pair.generations() == [1, 1]

    machine.data_paths["vela0"].worker = worker(restarts=1)
    pair.link.run(20)
    assert pair.generations() == [2, 2]
    machine.data_paths["vela0"].worker = None
    pair.link.run(5)
    machine.data_paths["vela0"].worker = worker(restarts=1)
    pair.link.run(5)
    assert pair.generations() == [2, 2]


def worker(restarts: int) -> WorkerStatus:
    return WorkerStatus(1234, 0, "native", restarts, 0.0, 1 << 20)


@pytest.mark.parametrize("end", ["a", "b"])
def test_lost_key_holder_costs_a_session_and_no_frame(pair: Pair, end: str) -> None:
    pair.link.run(3)
    machine = {"a": pair.a, "b": pair.b}[end]
    pair.link.run(Limits().rekey_after_s + 5)
    assert pair.generations() == [2, 2]
    lost = machine.holder
    downs = [machine.statuses()[0].transitions for machine in pair.machines]

    os.kill(lost, signal.SIGKILL)
    os.waitid(os.P_PID, lost, os.WEXITED | os.WNOWAIT)
    pair.link.run(10)

    assert machine.holder != lost
    # Those of another session, which has never been down.
    assert pair.generations() == [1, 1]
    assert [machine.statuses()[0].transitions for machine in pair.machines] == downs
    pair.link.run(Limits().rekey_after_s + 5)
    assert pair.generations() == [2, 2]


def test_deleted_circuit_leaves_no_keys_and_asks_for_none(pair: Pair) -> None:
    pair.link.run(3)
    worker = pair.a.workers["vela0"]
    supervisors = worker.path.key_page
    assert supervisors is not None
    page = os.dup(supervisors)

    pair.a.reload(replace(pair.a.config, circuits=()))
    pair.link.run(200)

    worker.path.key_page = page
    assert worker.usages() == []
    os.close(page)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(supervisors)
    assert pair.b.states()["vela0"][0] != "up"


def test_circuit_without_a_session_shows_no_keys(pair: Pair) -> None:
    pair.b.crash()
    pair.link.run(10)

    assert pair.cipher(pair.a) is None


def test_session_after_a_restart_has_its_own_keys(pair: Pair) -> None:
    pair.link.run(200)
    assert pair.generations() == [2, 2]
    assert pair.a.registry is not None

    pair.a.registry.restart("vela0")
    pair.link.run(20)

    assert pair.words() == ["up", "up"]
    assert pair.generations() == [1, 1]
