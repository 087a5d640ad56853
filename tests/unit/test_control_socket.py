"""vela.supervisor.control_socket: a real socket in a real loop, and clients of all kinds."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from exhaustion import no_descriptors, open_descriptors

from lab.waiting import eventually
from vela.errors import DeviceError, VelaError
from vela.supervisor.control_socket import (
    MAX_CLIENTS,
    MAX_REQUEST,
    MAX_SUBSCRIBERS,
    MAX_UNSENT,
    MAX_UNSENT_EVENTS,
    Answer,
    Caller,
    Connected,
    ControlSocket,
    Later,
    Subscribe,
)
from vela.supervisor.runtime import listener
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.velactl.client import Connection, ask

TIMEOUT_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "velad.sock"


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


class Server:
    """A control socket, served in a thread for as long as a test talks to it."""

    def __init__(self, loop: EventLoop, path: Path) -> None:
        self._loop = loop
        self.path = path
        self.requests = 0
        self.callers: list[Caller] = []
        self.later: list[Later] = []
        self.control = ControlSocket(loop, path, self._handle)
        self._events: deque[tuple[Mapping[str, object], threading.Event]] = deque()
        self._woken, self._wakeup = os.pipe()
        loop.watch(self._woken, self._publish)

    def _handle(self, request: Mapping[str, object], caller: Caller) -> Answer:
        self.requests += 1
        self.callers.append(caller)
        match request:
            case {"fail": str(text)}:
                raise VelaError(text)
            case {"bug": True}:
                raise ZeroDivisionError
            case {"later": True}:
                self.later.append(Later())
                return self.later[-1]
            case {"finish": int(number)}:
                self.later[number].give({"done": number})
                return {}
            case {"freeze": True}:
                self._loop.call_soon(self.control.freeze)
                return {"frozen": True}
            case {"monitor": True}:
                return Subscribe({"monitoring": True})
            case {"fill": int(size)}:
                return {"filling": "x" * size}
        return {"echo": request}

    def publish(self, event: Mapping[str, object]) -> None:
        """Publish an event in the thread of the loop, and wait until that is done."""
        done = threading.Event()
        self._events.append((event, done))
        os.write(self._wakeup, b"x")
        assert done.wait(TIMEOUT_S)

    def _publish(self) -> None:
        os.read(self._woken, 4096)
        while self._events:
            event, done = self._events.popleft()
            self.control.publish(event)
            done.set()

    def close(self) -> None:
        self._loop.unwatch(self._woken)
        os.close(self._woken)
        os.close(self._wakeup)
        self.control.close()

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(str(self.path))  # which a timeout would let fail where the backlog is full
        made.settimeout(TIMEOUT_S)
        return made

    def run(self, client: Callable[[], object], busy_s: float = 0.0) -> None:
        """Serve while client, in another thread, does its work; what it raises is raised here."""
        failures: list[BaseException] = []
        ready, done = os.pipe()

        def work() -> None:
            try:
                client()
            except BaseException as err:
                failures.append(err)
            finally:
                os.close(done)

        self._loop.watch(ready, self._loop.stop)
        thread = threading.Thread(target=work)
        thread.start()
        self._loop.call_soon(lambda: time.sleep(busy_s))
        try:
            self._loop.run()
        finally:
            thread.join()
            self._loop.unwatch(ready)
            os.close(ready)
        if failures:
            raise failures[0]


@pytest.fixture
def server(loop: EventLoop, path: Path) -> Iterator[Server]:
    made = Server(loop, path)
    yield made
    made.close()


def read_line(connection: socket.socket) -> object:
    received = b""
    while not received.endswith(b"\n"):
        data = connection.recv(65536)
        assert data, f"closed after {received[:100]!r}"
        received += data
    return json.loads(received)


def wait_for_close(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass


def test_request_gets_its_reply_and_an_error_its_text(server: Server) -> None:
    def client() -> None:
        assert ask(server.path, {"command": "status"}, TIMEOUT_S) == {"echo": {"command": "status"}}
        with pytest.raises(VelaError, match="no such circuit"):
            ask(server.path, {"fail": "no such circuit"}, TIMEOUT_S)

    server.run(client)


def test_request_that_meets_a_bug_is_told_so_and_the_next_is_answered(server: Server) -> None:
    def client() -> None:
        with pytest.raises(VelaError, match="internal error"):
            ask(server.path, {"bug": True}, TIMEOUT_S)
        assert ask(server.path, {"command": "status"}, TIMEOUT_S) == {"echo": {"command": "status"}}

    server.run(client)


def test_socket_is_roots_alone_whatever_the_umask(loop: EventLoop, path: Path) -> None:
    before = os.umask(0)
    try:
        control = ControlSocket(loop, path, lambda request, _: request)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0) == 0
        control.close()
    finally:
        os.umask(before)
    assert not path.exists()


def test_socket_that_a_killed_velad_left_is_replaced(loop: EventLoop, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))

    server = Server(loop, path)

    server.run(lambda: ask(path, {}, TIMEOUT_S))
    server.control.close()


def test_second_velad_is_refused_and_the_first_serves_on(loop: EventLoop, server: Server) -> None:
    with pytest.raises(DeviceError, match="another velad answers there"):
        ControlSocket(loop, server.path, lambda request, _: request)

    server.run(lambda: ask(server.path, {}, TIMEOUT_S))


def test_file_that_is_no_socket_is_left_alone(loop: EventLoop, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")

    with pytest.raises(DeviceError, match="the path exists and is not a socket"):
        ControlSocket(loop, path, lambda request, _: request)

    assert path.read_text() == "precious"


def test_path_that_cannot_be_says_why(loop: EventLoop, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 200)
    with pytest.raises(DeviceError, match="too long"):
        ControlSocket(loop, long, lambda request, _: request)
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"velad.sock: (Not a directory|File exists)"):
        ControlSocket(loop, tmp_path / "file" / "velad.sock", lambda request, _: request)
    (tmp_path / "velad.sock").mkdir()
    with pytest.raises(DeviceError, match="the path exists and is not a socket"):
        ControlSocket(loop, tmp_path / "velad.sock", lambda request, _: request)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"status",
        b"[]",
        b"null",
        b'"status"',
        b"\xff\xfe\x00",
        b"{" * 60000,
        b"[" * 60000,
        b"9" * 6000,
        b'{"command": ',
        b"GET / HTTP/1.1\r",
    ],
)
def test_garbage_is_answered_and_what_follows_is_served(server: Server, garbage: bytes) -> None:
    def client() -> None:
        with server.connect() as connection:
            connection.sendall(garbage + b"\n")
            reply = read_line(connection)
            assert isinstance(reply, dict)
            assert str(reply["error"]).startswith("not a request: ")
            connection.sendall(b"{}\n")
            assert read_line(connection) == {"echo": {}}

    server.run(client)
    assert server.requests == 1


def test_request_in_pieces_and_several_in_one_are_answered_in_order(server: Server) -> None:
    def client() -> None:
        with server.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            for byte in b'{"a": 1}\n':
                connection.sendall(bytes([byte]))
            assert read_line(connection) == {"echo": {"a": 1}}
            connection.sendall(b'{"b": 2}\n{"c": 3}\n{"d"')
            with connection.makefile("rb") as replies:
                assert json.loads(replies.readline()) == {"echo": {"b": 2}}
                assert json.loads(replies.readline()) == {"echo": {"c": 3}}
                connection.sendall(b": 4}\n")
                assert json.loads(replies.readline()) == {"echo": {"d": 4}}

    server.run(client)


def test_request_without_end_is_cut_off(server: Server) -> None:
    def client() -> None:
        with server.connect() as connection:
            try:
                for _ in range(MAX_REQUEST // 1024 + 2):
                    connection.sendall(b"x" * 1024)
            except OSError:
                pass
            wait_for_close(connection)

    server.run(client)
    server.run(lambda: ask(server.path, {}, TIMEOUT_S))


def test_slow_reader_gets_all_of_a_large_reply_and_holds_nobody_up(server: Server) -> None:
    size = MAX_UNSENT - 1000

    def client() -> None:
        with server.connect() as slow:
            slow.sendall(json.dumps({"fill": size}).encode() + b"\n")
            for _ in range(3):
                assert ask(server.path, {"n": 1}, TIMEOUT_S) == {"echo": {"n": 1}}
            assert read_line(slow) == {"filling": "x" * size}

    server.run(client)


def test_reader_that_never_reads_gets_no_further_reply_and_holds_nobody_up(
    server: Server,
) -> None:
    """All requests come in one piece: replies must not pile up behind the first of them."""
    request = json.dumps({"fill": 1 << 20}).encode() + b"\n"
    in_one_piece = MAX_REQUEST // len(request)

    def client() -> None:
        with server.connect() as deaf:
            deaf.sendall(request * in_one_piece)
            for _ in range(20):
                assert ask(server.path, {}, TIMEOUT_S) == {"echo": {}}

    server.run(client)
    assert in_one_piece > 3000
    assert server.requests == 20 + 1


def test_readers_that_never_read_are_dropped_before_they_fill_memory(server: Server) -> None:
    request = json.dumps({"fill": MAX_UNSENT - 1000}).encode() + b"\n"

    def client() -> None:
        with ExitStack() as stack:
            deaf = [stack.enter_context(server.connect()) for _ in range(10)]
            for each in deaf:
                each.sendall(request)
                ask(server.path, {}, TIMEOUT_S)  # it has its turn
            poll = select.poll()
            poll.register(deaf[0], 0)
            assert poll.poll(TIMEOUT_S * 1000), "it is still served"
            poll.register(deaf[-1], 0)
            assert deaf[-1].fileno() not in [fd for fd, _ in poll.poll(0)]

    server.run(client)


def test_requests_of_one_client_do_not_hold_others_up(server: Server) -> None:
    many = 2000

    def client() -> None:
        with server.connect() as busy, server.connect() as other:
            busy.sendall(b"{}\n" * many)
            other.sendall(b"{}\n")
            assert read_line(other) == {"echo": {}}
            served = server.requests
            with busy.makefile("rb") as replies:
                for _ in range(many):
                    replies.readline()
            assert served < many / 2

    server.run(client)


def test_clients_that_leave_at_any_moment_leave_nothing_behind(server: Server) -> None:
    before = open_descriptors()

    def client() -> None:
        for moment in range(30):
            with server.connect() as connection:
                connection.sendall([b"", b'{"a"', b'{"fill": 3000000}\n'][moment % 3])
        ask(server.path, {}, TIMEOUT_S)

    server.run(client)
    # With the two ends of the pipe by which a client's end is told.
    server.run(
        lambda: eventually(lambda: open_descriptors() <= before + 2, TIMEOUT_S, "them to close")
    )
    assert open_descriptors() == before


def test_client_beyond_the_limit_takes_the_place_of_the_one_idle_for_longest(
    server: Server,
) -> None:
    def client() -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(MAX_CLIENTS)]
            for each in (connections[-1], connections[0]):
                each.sendall(b"{}\n")
                read_line(each)
            assert ask(server.path, {"n": 1}, TIMEOUT_S) == {"echo": {"n": 1}}
            wait_for_close(connections[1])
            connections[0].sendall(b"{}\n")
            assert read_line(connections[0]) == {"echo": {}}

    server.run(client)


def test_half_requests_of_many_lock_nobody_out(server: Server) -> None:
    def client() -> None:
        with ExitStack() as stack:
            for _ in range(3 * MAX_CLIENTS):
                stack.enter_context(server.connect()).sendall(b'{"n"')
            assert ask(server.path, {}, TIMEOUT_S) == {"echo": {}}

    server.run(client)


def test_handler_is_told_which_user_and_process_asks(server: Server) -> None:
    server.run(lambda: ask(server.path, {}, TIMEOUT_S))

    assert server.callers == [Caller(os.getuid(), os.getpid())]


def test_socket_with_a_group_is_the_groups_too(loop: EventLoop, path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("another group needs root")
    before = os.getegid()

    control = ControlSocket(loop, path, lambda request, _: request, group=12345)

    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, 12345)
    assert os.getegid() == before
    control.close()


def test_subscriber_gets_events_and_replies_and_others_no_events(server: Server) -> None:
    def client() -> None:
        with Connection(str(server.path)) as watching, Connection(str(server.path)) as other:
            assert watching.ask({"monitor": True}) == {"monitoring": True}
            other.ask({})
            server.publish({"event": "state", "n": 1})
            assert watching.read(time.monotonic() + TIMEOUT_S) == {"event": "state", "n": 1}
            assert watching.ask({"n": 2}) == {"echo": {"n": 2}}
            assert other.ask({"n": 3}) == {"echo": {"n": 3}}

    server.run(client)


def test_subscriber_that_does_not_read_is_told_how_many_events_it_lost(server: Server) -> None:
    event = {"event": "state", "filling": "x" * 1000}
    published = 2000

    def client() -> None:
        with Connection(str(server.path)) as slow:
            slow.ask({"monitor": True})
            began = time.monotonic()
            for _ in range(published):
                server.publish(event)
            assert ask(server.path, {}, TIMEOUT_S) == {"echo": {}}
            assert time.monotonic() - began < TIMEOUT_S
            got = 0
            while (received := slow.read(time.monotonic() + TIMEOUT_S)) == event:
                got += 1
            assert received is not None
            assert received["event"] == "lost"
            assert got + received["events"] == published
            assert got * 1000 < 2 * MAX_UNSENT_EVENTS

    server.run(client)


def test_subscribers_beyond_the_limit_are_refused(server: Server) -> None:
    def client() -> None:
        with ExitStack() as stack:
            for _ in range(MAX_SUBSCRIBERS):
                connection = stack.enter_context(Connection(str(server.path)))
                connection.ask({"monitor": True})
            with pytest.raises(VelaError, match="clients monitor circuits already"):
                ask(server.path, {"monitor": True}, TIMEOUT_S)
            assert ask(server.path, {}, TIMEOUT_S) == {"echo": {}}

    server.run(client)


def test_client_that_ends_its_side_still_gets_the_whole_reply(server: Server) -> None:
    """As socat and nc do at the end of their input."""

    def client() -> None:
        with server.connect() as connection:
            connection.sendall(b'{"fill": 3000000}\n')
            connection.shutdown(socket.SHUT_WR)
            assert read_line(connection) == {"filling": "x" * 3_000_000}

    server.run(client)


def await_request(server: Server) -> None:
    eventually(lambda: len(server.later) == 1, TIMEOUT_S, "the request to arrive")


def test_reply_that_comes_later_holds_up_only_the_client_that_waits_for_it(
    server: Server,
) -> None:
    def client() -> None:
        with server.connect() as waiting, server.connect() as other:
            waiting.sendall(b'{"later": true}\n{"n": 1}\n')
            await_request(server)
            other.sendall(b'{"n": 2}\n')
            assert read_line(other) == {"echo": {"n": 2}}
            other.sendall(b'{"finish": 0}\n')
            assert read_line(other) == {}
            with waiting.makefile("rb") as replies:
                assert json.loads(replies.readline()) == {"done": 0}
                assert json.loads(replies.readline()) == {"echo": {"n": 1}}

    server.run(client)


def test_client_that_ends_its_side_gets_its_later_reply(server: Server) -> None:
    def client() -> None:
        with server.connect() as waiting, server.connect() as other:
            waiting.sendall(b'{"later": true}\n')
            waiting.shutdown(socket.SHUT_WR)
            await_request(server)
            other.sendall(b'{"finish": 0}\n')
            assert read_line(other) == {}
            assert read_line(waiting) == {"done": 0}
            wait_for_close(waiting)

    server.run(client)


def test_client_that_leaves_before_its_later_reply_leaves_nothing_behind(server: Server) -> None:
    def client() -> None:
        with server.connect() as other:
            other.sendall(b'{"n": 1}\n')
            read_line(other)
            files = open_descriptors()
            with server.connect() as waiting:
                waiting.sendall(b'{"later": true}\n')
                await_request(server)
            other.sendall(b'{"finish": 0}\n')
            assert read_line(other) == {}
            eventually(
                lambda: open_descriptors() == files, TIMEOUT_S, "the connection to be closed"
            )

    server.run(client)


def test_clients_that_wait_for_a_later_reply_are_the_last_to_make_room(server: Server) -> None:
    def client() -> None:
        with ExitStack() as open_ones:
            waiting = open_ones.enter_context(server.connect())
            waiting.sendall(b'{"later": true}\n')
            await_request(server)
            for _ in range(MAX_CLIENTS):
                open_ones.enter_context(server.connect())
            assert ask(server.path, {"finish": 0}, TIMEOUT_S) == {}
            assert read_line(waiting) == {"done": 0}

    server.run(client)


def test_requests_that_were_read_are_answered_before_it_freezes(server: Server) -> None:
    with ExitStack() as stack:
        clients: list[socket.socket] = []

        def connect() -> None:
            for _ in range(20):
                clients.append(stack.enter_context(server.connect()))
                clients[-1].sendall(b"{}\n")
                assert read_line(clients[-1]) == {"echo": {}}

        def client() -> None:
            for number, each in enumerate(clients):
                request = {"freeze": True} if number == 1 else {"n": number}
                each.sendall(json.dumps(request).encode() + b"\n")
            for number, each in enumerate(clients):
                wanted = {"frozen": True} if number == 1 else {"echo": {"n": number}}
                assert read_line(each) == wanted

        server.run(connect)
        # All have asked before the first one is answered.
        server.run(client, busy_s=0.5)

        assert len(server.control.connected) == len(clients)


def test_slow_reader_gets_the_rest_of_its_reply_from_a_frozen_one(server: Server) -> None:
    size = MAX_UNSENT // 2

    with server.connect() as slow, server.connect() as other:

        def begins() -> None:
            slow.sendall(json.dumps({"fill": size}).encode() + b"\n")
            select.select([slow], [], [], TIMEOUT_S)
            other.sendall(b'{"freeze": true}\n')
            assert read_line(other) == {"frozen": True}

        server.run(begins)
        # What it is sent later would mix with the replies of another process.
        assert [each.subscribed for each in server.control.connected] == [False]

        reply = server_reads(server, slow)

        assert reply == {"filling": "x" * size}
        assert len(server.control.connected) == 2


def server_reads(server: Server, connection: socket.socket) -> object:
    """Return what a client of it reads."""
    replies: list[object] = []
    server.run(lambda: replies.append(read_line(connection)))
    return replies[0]


def test_another_one_goes_on_with_the_connections_of_a_frozen_one(
    loop: EventLoop, server: Server
) -> None:
    idle, watching = Connection(str(server.path)), Connection(str(server.path))
    with idle, watching:

        def before() -> None:
            assert idle.ask({"n": 1}) == {"echo": {"n": 1}}
            assert watching.ask({"monitor": True}) == {"monitoring": True}

        server.run(before)
        server.control.freeze()
        former = server.control
        clients = [Connected(os.dup(each.descriptor), each.subscribed) for each in former.connected]
        assert sorted(each.subscribed for each in clients) == [False, True]
        server.control = ControlSocket(
            loop,
            server.path,
            lambda request, _: {"follows": request},
            None,
            os.dup(former.fileno()),
            clients,
        )

        def after() -> None:
            assert idle.ask({"n": 2}) == {"follows": {"n": 2}}
            server.publish({"event": "state", "n": 3})
            assert watching.read(time.monotonic() + TIMEOUT_S) == {"event": "state", "n": 3}
            assert idle.ask({"n": 4}) == {"follows": {"n": 4}}
            assert ask(server.path, {}, TIMEOUT_S) == {"follows": {}}

        # It may hear of something yet, of which the other one tells.
        former.publish({"event": "state", "n": 0})
        server.run(after)
        former.close(leave=True)
        server.run(after)


def test_thawed_one_serves_all_that_were_connected(server: Server) -> None:
    idle, watching = Connection(str(server.path)), Connection(str(server.path))
    with idle, watching:

        def before() -> None:
            idle.ask({"n": 1})
            watching.ask({"monitor": True})

        server.run(before)
        server.control.freeze()
        # Nobody is answered meanwhile.
        idle.send({"n": 2})
        asked = server.requests
        server.run(lambda: time.sleep(0.1))
        assert server.requests == asked

        server.control.thaw()

        def after() -> None:
            assert idle.read(time.monotonic() + TIMEOUT_S) == {"echo": {"n": 2}}
            server.publish({"event": "state", "n": 3})
            assert watching.read(time.monotonic() + TIMEOUT_S) == {"event": "state", "n": 3}
            assert ask(server.path, {}, TIMEOUT_S) == {"echo": {}}

        server.run(after)


@pytest.mark.parametrize("request_", [b'{"later": true}\n', b'{"n": '])
def test_frozen_one_drops_those_that_nobody_could_answer(server: Server, request_: bytes) -> None:
    with server.connect() as idle, server.connect() as unanswerable:

        def before() -> None:
            idle.sendall(b'{"n": 1}\n')
            read_line(idle)
            unanswerable.sendall(request_)
            idle.sendall(b'{"n": 2}\n')
            read_line(idle)

        server.run(before)

        server.control.freeze()

        wait_for_close(unanswerable)
        assert len(server.control.connected) == 1


def test_ask_of_nobody_says_so(path: Path, tmp_path: Path) -> None:
    with pytest.raises(VelaError, match=f"no velad is running at {path}"):
        ask(path, {}, TIMEOUT_S)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "stale"))
    with pytest.raises(VelaError, match="no velad is running at"):
        ask(tmp_path / "stale", {}, TIMEOUT_S)


def test_ask_of_one_that_does_not_answer_ends_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        with pytest.raises(VelaError, match=r"did not answer on .* within 0.1 s"):
            ask(tmp_path / "deaf", {}, 0.1)


def test_ask_by_many_at_once_is_answered_to_all(server: Server) -> None:
    """More than the backlog holds, while velad is busy with something else."""

    def one(answers: list[object]) -> None:
        answers.append(ask(server.path, {}, TIMEOUT_S))

    def client() -> None:
        answers: list[object] = []
        threads = [threading.Thread(target=one, args=(answers,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [{"echo": {}}] * 40

    server.run(client, busy_s=0.2)


def test_connection_without_a_descriptor_for_it_is_answered_later_and_does_not_race(
    server: Server,
    loop: EventLoop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pause_s = 0.1
    monkeypatch.setattr(listener, "EXHAUSTED_PAUSE_S", pause_s)
    said = 0

    def look() -> None:
        nonlocal said
        said += capsys.readouterr().out.count("control_connection_not_accepted")
        if said >= 3:
            loop.stop()
        else:
            loop.call_later(0.01, look)

    with server.connect() as client:
        client.sendall(b'{"say": 1}\n')
        started = loop.now()
        look()
        with no_descriptors():
            loop.run()
        assert said - 1 <= (loop.now() - started) / pause_s
        assert server.requests == 0

        answers: list[object] = []
        server.run(lambda: answers.append(read_line(client)))

    assert answers == [{"echo": {"say": 1}}]


def test_control_socket_closed_while_it_lacks_descriptors_is_gone(
    loop: EventLoop, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "EXHAUSTED_PAUSE_S", 0.05)
    made = Server(loop, path)
    with made.connect():
        loop.call_later(0.01, loop.stop)
        with no_descriptors():
            loop.run()
        made.control.close()
        loop.call_later(0.2, loop.stop)
        loop.run()

    assert not path.exists()
