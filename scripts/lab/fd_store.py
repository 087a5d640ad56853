"""A service manager that keeps descriptors, as systemd does (sd_notify(3), FDSTORE=1)."""

from __future__ import annotations

import array
import os
import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

from lab.daemon import READY_TIMEOUT_S, Velad, entry_point
from lab.job_list import JobList
from lab.namespace import Namespace
from lab.resource import Resource

_MOST = 16  # descriptors in one message
_SIZE = 4096
_CREDENTIALS = Struct("@iII")  # struct ucred, unix(7)
_INT = array.array("i")

# In the process that becomes velad: what systemd does between fork and exec. Descriptors are above
# those that it hands over until all are there.
_RECEIVE = """
import os, socket
_asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
_asking.connect({path!r})
_names, _kept = [], []
while True:
    _name, _fds, _, _ = socket.recv_fds(_asking, 4096, 1)
    if not _name:
        break
    _names.append(_name.decode())
    _kept.append(os.dup2(_fds[0], 1000 + len(_kept)))
    os.close(_fds[0])
_asking.close()
for _number, _fd in enumerate(_kept):
    os.dup2(_fd, 3 + _number)
    os.close(_fd)
if _kept:
    os.environ.update(
        LISTEN_FDS=str(len(_kept)), LISTEN_FDNAMES=":".join(_names), LISTEN_PID=str(os.getpid())
    )
"""

# Not systemd's own socket, which may be there.
_ASK = """
from pathlib import Path
import vela.supervisor.jobs
vela.supervisor.jobs.PRIVATE_SOCKET = Path({path!r})
"""


class FdStore(Resource):
    """Hears what velad says, keeps what it is given, and hands that to the next one."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vela-store-")
        self.path = Path(self._directory.name, "notify.sock")
        self._handing = Path(self._directory.name, "hand.sock")
        self.kept: list[tuple[str, int]] = []
        """Names and descriptors, the oldest first."""
        self.said: list[str] = []
        self._main = 0
        """Who is listened to (NotifyAccess=main), and may name another one."""
        self._heard = threading.Condition()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind(str(self.path))
        self._hands = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._hands.bind(str(self._handing))
        self._hands.listen(1)
        self.jobs = JobList(Path(self._directory.name, "private.sock"), self._service)
        """What it says of its jobs, which are none unless a test says so."""
        self._end, self._ends = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.jobs.start()

    def close(self) -> None:
        self.jobs.close()
        os.close(self._ends)
        self._thread.join()
        os.close(self._end)
        self.discard()
        self._notify.close()
        self._hands.close()
        self._directory.cleanup()

    @property
    def before(self) -> str:
        """Python that receives what is kept, ahead of velad's own code, and says where to ask."""
        return _RECEIVE.format(path=str(self._handing)) + _ASK.format(path=str(self.jobs.path))

    def _service(self) -> tuple[int, int]:
        """Return the main process, and how many descriptors are kept."""
        with self._heard:
            return self._main, len(self.kept)

    @property
    def names(self) -> list[str]:
        with self._heard:
            return sorted(name for name, _ in self.kept)

    def discard(self) -> None:
        """Close what is kept, as systemd does when a unit is stopped."""
        with self._heard:
            for _, fd in self.kept:
                os.close(fd)
            self.kept.clear()

    def wait_for(self, word: str, after: int, timeout_s: float) -> bool:
        """Wait until velad has said a line, beyond the first so many messages."""
        with self._heard:
            return self._heard.wait_for(
                lambda: any(word in each.split("\n") for each in self.said[after:]), timeout_s
            )

    @contextmanager
    def start_of(self, velad: Velad) -> Iterator[None]:
        """Listen to the process that is started inside, and to no former one any more."""
        with self._heard:
            yield
            self._main = velad.pid

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self._notify.fileno(), self._hands.fileno(), self._end):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._end in ready:
                return
            if self._notify.fileno() in ready:
                self._hear()
            if self._hands.fileno() in ready:
                self._hand_over()

    def _hear(self) -> None:
        space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_MOST * _INT.itemsize)
        data, ancillary, _, _ = self._notify.recvmsg(_SIZE, space)
        said = {kind: content for _, kind, content in ancillary}
        pid, _, _ = _CREDENTIALS.unpack(said[socket.SCM_CREDENTIALS])
        fds = list(array.array("i", said.get(socket.SCM_RIGHTS, b"")))
        message = data.decode()
        fields = dict(line.partition("=")[::2] for line in message.split("\n"))
        name = fields.get("FDNAME", "stored")
        with self._heard:
            if pid != self._main:
                # systemd: "reception only permitted for main PID". What is not stored is closed.
                message = ""
            elif "MAINPID" in fields:
                self._main = int(fields["MAINPID"])
            elif fields.get("FDSTORE") == "1":
                self.kept += [(name, fd) for fd in fds]
                fds = []
            elif fields.get("FDSTOREREMOVE") == "1":
                fds = [fd for each, fd in self.kept if each == name]
                self.kept = [each for each in self.kept if each[0] != name]
            self.said.append(message)
            self._heard.notify_all()
        for fd in fds:
            os.close(fd)

    def _hand_over(self) -> None:
        connection, _ = self._hands.accept()
        with connection, self._heard:
            for name, fd in self.kept:
                socket.send_fds(connection, [name.encode()], [fd])
            connection.send(b"")


class StoredVelad(Velad):
    """A velad whose manager keeps descriptors. It is ready when it has said so to that."""

    def __init__(self, namespace: Namespace, config: str, store: FdStore, before: str = "") -> None:
        super().__init__(namespace, config, before=store.before + before)
        self._store = store
        self._after = 0

    def launch(self, *options: str) -> None:
        with self._store.start_of(self):
            super().launch(*options)

    def restart(self) -> None:
        """Do what `systemctl restart` does, and wait until the next velad is ready."""
        self.stop_to_restart()
        self.start()

    def stop_to_restart(self) -> None:
        """Do what systemd does before it starts the unit again."""
        with self._store.jobs.restart():
            assert self.stop() == 0

    def replace_by_hand(self) -> None:
        """Let another velad take over that systemd did not start, and wait until it has."""
        former, self._after = self.process, len(self._store.said)
        command, env = entry_point("velad", "vela.supervisor.cli")
        env.pop("NOTIFY_SOCKET", None)
        with self.log_path.open("ab") as log:
            self.process = self.namespace.popen(
                *(*command, "--config", str(self.config_path), "--replace"),
                stdout=log,
                stderr=log,
                env=env,
            )
        self.await_ready()
        assert former is not None
        assert former.wait(READY_TIMEOUT_S) == 0

    def _await_notices(self) -> Path:
        self._after = len(self._store.said)
        return self._store.path

    def await_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        if not self._store.wait_for("READY=1", self._after, timeout_s):
            raise self._error(f"not ready after {timeout_s:g} s")


@contextmanager
def fd_store() -> Iterator[FdStore]:
    with FdStore() as store:
        yield store
