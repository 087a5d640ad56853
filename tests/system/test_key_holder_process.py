"""Where keys are: in the key holder, and in no other process; and what its death does not do."""

from __future__ import annotations

import os
import pwd
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from process_memory import found_in_memory

from lab.autoconfigured import Ends, asking, policy, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.daemon import Velad
from lab.headers import datagram
from lab.load import ping
from lab.process import children
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.signaling.codec import decode, read_header
from vela.signaling.messages import Acknowledge, Confirm, MessageType
from vela.signaling.signer import LocalKey, SessionContext, derive_session_keys

pytestmark = pytest.mark.needs_net_admin

SHARED = os.urandom(24).hex().encode()
OTHER = os.urandom(24).hex().encode()
NOTICED_S = 10.0


@dataclass(frozen=True)
class Keyed:
    """Two circuits, each under a key of its own at A; B lets others in by the first."""

    ends: Ends
    session_keys: frozenset[bytes]
    machine: bytes
    """A's secret, as it is in the file."""

    @property
    def keys(self) -> set[bytes]:
        return {SHARED, OTHER, self.machine, *self.session_keys}


def key_file(directory: Path, name: str, key: bytes) -> str:
    path = directory / name
    path.write_bytes(key + b"\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def keyed(routers: TwoRouters, tmp_path: Path) -> Iterator[Keyed]:
    shared, other = key_file(tmp_path, "shared", SHARED), key_file(tmp_path, "other", OTHER)
    second: dict[str, Any] = {
        "name": "vela1",
        "id": 2,
        "addresses": ["172.16.17.1/30"],
        "key_file": other,
    }
    config_a = asking(routers.b.ipv4, key_file=shared, keepalive=0.5)
    config_a += asking(routers.b.ipv4, peer={"addresses": []}, **second)
    with (
        Capture(routers.a.underlay) as wire,
        Velad(routers.b.namespace, policy(key_file=shared), name="b") as b,
        Velad(routers.a.namespace, config_a, name="a") as a,
    ):
        ends = Ends(a, b)
        wait_until_up(ends)
        machine = (a.directory / "state" / "machine.key").read_bytes().strip()
        yield Keyed(ends, frozenset(session_keys_on(wire)), machine)


def session_keys_on(wire: Capture) -> set[bytes]:
    """Return the keys of the session whose handshake was seen, as whoever has the key can."""
    acknowledged, found = {}, set()
    for packet in wire.packets():
        message = datagram(packet.data)
        data = b"" if message is None else message.udp.payload
        if not data.startswith(b"\0\1") or data[3] != 1:
            continue
        if read_header(data).type not in (MessageType.ACKNOWLEDGE, MessageType.CONFIRM):
            continue
        said = decode(data, LocalKey(SHARED))
        if isinstance(said, Acknowledge):
            acknowledged[said.sender_nonce] = said
        elif isinstance(said, Confirm) and said.session_keys:
            answer = acknowledged[said.receiver_nonce]
            context = SessionContext(
                said.circuit_id,
                said.sender_nonce,
                said.receiver_nonce,
                said.description.own,
                said.description.seen,
                answer.own,
                answer.seen,
            )
            keys = derive_session_keys(SHARED, context.pack(), initiator=True)
            found |= {keys.transmit, keys.receive}
    assert found
    return found


def holder_of(velad: Velad) -> int:
    [pid] = [
        pid
        for pid in children(velad.pid)
        if Path(f"/proc/{pid}/comm").read_text().strip() == "velad-keys"
    ]
    return pid


def holder_other_than(velad: Velad, lost: int) -> int:
    def another() -> int:
        found = [
            pid
            for pid in children(velad.pid)
            if pid != lost and Path(f"/proc/{pid}/comm").read_text().strip() == "velad-keys"
        ]
        return found[0] if found else 0

    return eventually(another, NOTICED_S, "another key holder")


def test_keys_are_in_the_memory_of_the_key_holder_alone(keyed: Keyed) -> None:
    a, b = keyed.ends
    keyed.ends.a.reload()
    for velad, own in ((a, keyed.keys), (b, keyed.keys - {OTHER, keyed.machine})):
        holder = holder_of(velad)
        # The positive control: that what is looked for would be found.
        assert found_in_memory(holder, keyed.keys) == own
        others = {velad.pid, *children(velad.pid)} - {holder}
        assert len(others) >= 3  # supervisor, resolver helper, worker
        assert {pid: found_in_memory(pid, keyed.keys) for pid in others} == {
            pid: set() for pid in others
        }


def test_key_holder_is_confined_and_holds_its_channel_alone(keyed: Keyed) -> None:
    holder = holder_of(keyed.ends.a)
    lines = Path(f"/proc/{holder}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    limits = Path(f"/proc/{holder}/limits").read_text()
    descriptors = Path(f"/proc/{holder}/fd")
    opened = [os.readlink(descriptors / fd).partition(":")[0] for fd in os.listdir(descriptors)]

    assert status["Uid"].split() == [str(pwd.getpwnam("nobody").pw_uid)] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    # Where whoever runs this may lock memory: without CAP_SYS_RESOURCE, the limit decides.
    is_locked = int(status["VmLck"].split()[0]) > 0
    assert is_locked is ("key_memory_not_locked" not in keyed.ends.a.log())
    assert re.search(r"Max core file size +0 +0 ", limits)
    # Nobody but root owns what shows a process that is not dumpable: proc(5).
    assert Path(f"/proc/{holder}/mem").stat().st_uid == 0
    assert sorted(opened) == ["/dev/null"] * 3 + ["socket"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_key_holder_that_is_killed_or_hangs_is_replaced_and_circuits_stay_up(
    keyed: Keyed, number: signal.Signals, routers: TwoRouters
) -> None:
    a, b = keyed.ends
    since = time.time()
    for velad in (a, b):
        lost = holder_of(velad)
        os.kill(lost, number)
        assert holder_other_than(velad, lost) != lost
        velad.logged_at("key_holder_lost", since, pid=str(lost))
        velad.logged_at("key_holder_replaced", since)
    # Longer than it takes to miss keepalives.
    pings = ping(routers.a.namespace, "172.16.16.2", count=25, interval_s=0.1)

    assert pings.lost == 0
    assert [velad.circuit(NAME)["state"] for velad in (a, b)] == ["up", "up"]
    assert all("state=down" not in velad.log() for velad in (a, b))
    # At B there are those of the circuit whose key it does not have.
    assert "control_tag" not in a.status()["rx_dropped"]


def test_circuit_comes_up_again_under_keys_of_another_key_holder(keyed: Keyed) -> None:
    """With a handshake that the new one has to do."""
    a, b = keyed.ends
    os.kill(holder_of(b), signal.SIGKILL)

    a.kill()
    a.start()

    wait_until_up(keyed.ends)


def test_velad_whose_circuits_are_all_static_has_no_key_holder(routers: TwoRouters) -> None:
    with Velad(routers.a.namespace, asking(routers.b.ipv4, autoconfigure=False)) as velad:
        names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(velad.pid)]
    assert names
    assert "velad-keys" not in names
