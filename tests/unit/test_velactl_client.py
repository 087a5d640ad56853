"""vela.supervisor.velactl.client, toward real sockets: velads that are slow, gone or refused."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from fake_velad import STATUS, Velad

from vela.errors import VelaError
from vela.supervisor.velactl.client import Connection, ask, find_socket

SHORT_S, LONG_S = 0.05, 20.0
REQUEST = {"command": "status"}


class Listening:
    """A control socket whose connections the test has in its hands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen(1)
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        self.accepted.append(self.socket.accept()[0])
        return self.accepted[-1]

    def close(self) -> None:
        for each in (self.socket, *self.accepted):
            each.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    made = Listening(tmp_path / "velad.sock")
    yield made
    made.close()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(VelaError) as refused:
        call()
    return str(refused.value)


def test_velad_that_does_not_answer_is_given_up_in_time(listening: Listening) -> None:
    expected = f"velad did not answer on {listening.path} within 0.05 s"

    assert refusal(lambda: ask(listening.path, REQUEST, SHORT_S)) == expected


def test_velad_that_accepts_nobody_is_given_up_in_time(listening: Listening) -> None:
    waiting = []
    # The queue of a socket has one place more than listen() says, or two.
    for _ in range(4):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        waiting.append(client)
        if client.connect_ex(str(listening.path)):
            break

    said = refusal(lambda: ask(listening.path, REQUEST, SHORT_S))

    for client in waiting:
        client.close()
    assert said == f"velad did not answer on {listening.path} within 0.05 s"


def test_velad_that_reads_nothing_is_given_up_in_time(listening: Listening) -> None:
    # More than the buffers of both sockets.
    large = {"command": "x" * (8 << 20)}

    said = refusal(lambda: ask(listening.path, large, SHORT_S))

    assert said == f"velad did not answer on {listening.path} within 0.05 s"


def test_time_counts_from_the_request_and_not_from_each_part_of_an_answer(
    listening: Listening,
) -> None:
    """One that sends a byte now and then has not answered."""
    done = threading.Event()

    def drip() -> None:
        connection = listening.accept()
        with suppress(BrokenPipeError):  # velactl has gone
            for _ in range(2000):
                connection.send(b" ")
                if done.wait(0.01):
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    said = refusal(lambda: ask(listening.path, REQUEST, 0.2))
    took_s = time.monotonic() - began
    done.set()
    dripping.join()

    assert said == f"velad did not answer on {listening.path} within 0.2 s"
    assert took_s >= 0.2


def test_answer_that_comes_in_pieces_is_read_to_its_end(listening: Listening) -> None:
    """Events ahead of it are left out."""
    with Connection(str(listening.path), LONG_S) as connection:
        serving = listening.accept()
        serving.settimeout(LONG_S)
        event, reply = {"event": "state"}, {"circuits": ["ü" * 100000]}
        lines = b"".join(json.dumps(each).encode() + b"\n" for each in (event, reply, event))

        def serve() -> None:
            for start in range(0, len(lines), 50000):
                serving.sendall(lines[start : start + 50000])

        sending = threading.Thread(target=serve)
        sending.start()
        answer = connection.ask(REQUEST)
        sending.join()

        assert answer == reply
        # What came behind the answer is not lost.
        assert connection.read(time.monotonic() + LONG_S) == event
    assert json.loads(serving.recv(1000)) == REQUEST


@pytest.mark.parametrize("answered", [b"", b'{"circuits": '])
def test_velad_that_ends_before_it_has_answered_is_told(
    listening: Listening, answered: bytes
) -> None:
    with Connection(str(listening.path), LONG_S) as connection:
        serving = listening.accept()
        connection.send(REQUEST)
        serving.recv(1000)
        serving.sendall(answered)
        serving.close()

        said = refusal(lambda: connection.read(time.monotonic() + LONG_S))

    assert said == f"velad at {listening.path} ended before it answered"


def test_velad_that_ends_without_having_read_is_told(listening: Listening) -> None:
    with Connection(str(listening.path), LONG_S) as connection:
        serving = listening.accept()
        connection.send(REQUEST)
        serving.close()  # which resets the connection: unix(7)
        read = refusal(lambda: connection.read(time.monotonic() + LONG_S))
        sent = refusal(lambda: connection.send(REQUEST))

    assert read == sent == f"velad at {listening.path} ended before it answered"


def test_event_that_does_not_come_until_the_deadline_is_none(listening: Listening) -> None:
    with Connection(str(listening.path), LONG_S) as connection:
        assert connection.read(time.monotonic() + SHORT_S) is None
        assert connection.read(time.monotonic()) is None


def test_path_that_is_no_socket_has_no_velad(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path in (tmp_path / "file", tmp_path / "none"):
        said = refusal(partial(ask, path, REQUEST))
        assert said.startswith(f"no velad is running at {path}; ")
        # Or where another one runs, if one does on this machine.
        advice = r"(start it: systemctl start vela, or velad --config FILE|use --socket /.*)$"
        assert re.search(advice, said)


def test_path_that_cannot_be_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below, long = tmp_path / "file" / "velad.sock", tmp_path / ("x" * 200)

    assert refusal(lambda: ask(below, REQUEST)) == f"{below}: Not a directory"
    assert refusal(lambda: ask(long, REQUEST)) == f"{long}: AF_UNIX path too long"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use each socket")
@pytest.mark.parametrize(
    ("mode", "who"),
    [
        # Neither has the owner the permission then, which this user is.
        (
            0o000,
            "only root may use it: try sudo, or let a group use it by control_group in the "
            "configuration",
        ),
        (0o060, "only root and the group {group} may use it: try sudo, or join the group"),
    ],
)
def test_socket_that_may_not_be_used_says_who_may(
    listening: Listening, mode: int, who: str
) -> None:
    import grp

    listening.path.chmod(mode)
    group = grp.getgrgid(listening.path.stat().st_gid).gr_name

    said = refusal(lambda: ask(listening.path, REQUEST))

    assert said == f"{listening.path}: permission denied; {who.format(group=group)}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter each folder")
def test_socket_in_a_folder_that_may_not_be_entered_says_what_to_try(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)

    said = refusal(lambda: ask(folder / "velad.sock", REQUEST))

    assert said == f"{folder}/velad.sock: permission denied; only root may use it: try sudo"


def test_socket_of_a_process_is_found_among_its_descriptors(listening: Listening) -> None:
    """Not one that is connected, whose path is the same."""
    program = (
        "import socket, sys\n"
        "listening = socket.socket(socket.AF_UNIX)\n"
        "listening.bind(sys.argv[1])\n"
        "listening.listen()\n"
        "connected = socket.socket(socket.AF_UNIX)\n"
        "connected.connect(sys.argv[2])\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = listening.path.with_name("a name with blanks.sock")
    with subprocess.Popen(
        [sys.executable, "-c", program, path, listening.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = find_socket(process.pid)
        process.communicate()

    assert found == str(path)


def test_process_that_listens_nowhere_or_is_gone_has_no_socket() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert find_socket(process.pid) is None
        process.communicate(b"\n")

    assert find_socket(process.pid) is None


def test_velad_that_systemd_reloads_is_found_without_its_path(tmp_path: Path) -> None:
    """As by ExecReload, whose MAINPID is velad's: the path in the file may be another one."""
    velad = Velad(tmp_path / "velad.sock")
    done = velad.control("status", "--json", named=False, env={"MAINPID": str(os.getpid())})
    velad.close()

    assert (done[0], done[2]) == (0, "")
    assert json.loads(done[1]) == STATUS
