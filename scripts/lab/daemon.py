"""velad in a namespace: its configuration, its readiness, its status, its end."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.counters import Expectation, Wanted
from lab.cpu import waited_s
from lab.errors import LabError
from lab.namespace import Namespace
from lab.process import descendants
from lab.resource import Resource
from lab.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 15.0 * PATIENCE
STOP_TIMEOUT_S = 15.0 * PATIENCE
VELACTL_TIMEOUT_S = 15.0 * PATIENCE
COUNTED_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 40

CONTROL_SOCKET = "velad.sock"
_DAEMON_TABLE = re.compile(r"^\[daemon\][ \t]*(#.*)?$", re.MULTILINE)

_MAIN = "import sys; from vela.supervisor.cli import main; sys.exit(main())"

recent: list[Velad] = []
"""Every one made since the list was last cleared: what a failed test shows the logs of."""

disabled_features: tuple[str, ...] = ()
"""Of the kernel: what every velad is told not to use."""


class Velad(Resource):
    """One velad. A context: started and ready inside, stopped on leaving.

    config is TOML; the keys that name files are added to its [daemon] table.
    Everything it writes is in directory: a temporary one, removed at the end,
    unless one is given. prefix comes before its command line, such as "ip vrf exec red".
    before is Python that runs in its process ahead of its own code.
    """

    def __init__(
        self,
        namespace: Namespace,
        config: str,
        *,
        name: str = "",
        directory: Path | None = None,
        prefix: Sequence[str] = (),
        before: str = "",
    ) -> None:
        self.namespace = namespace
        self._prefix = prefix
        self._before = before
        self.name = name or namespace.name
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="vela-lab-"))
        self.config_path = self.directory / "vela.toml"
        self.control_socket = self.directory / CONTROL_SOCKET
        self.log_path = self.directory / "velad.log"
        self.process: subprocess.Popen[str] | None = None
        self._notify: socket.socket | None = None
        self._last_log = ""
        self.configure(config)
        recent.append(self)

    @property
    def pid(self) -> int:
        """The supervisor's process id; LabError if it does not run."""
        if self.process is None:
            raise LabError(f"velad {self.name} does not run")
        return self.process.pid

    def processes(self) -> list[int]:
        """Return the process ids of the supervisor and of all that it has for children."""
        return [self.pid, *descendants(self.pid)]

    def configure(self, config: str) -> None:
        """Write the configuration; a running velad sees it when told to reload."""
        more = f"disable_features = {json.dumps(disabled_features)}" if disabled_features else ""
        self.config_path.write_text(with_files(config, self.directory, more))

    def start(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it and wait until it says READY=1 (sd_notify).

        Raises LabError, with the end of its log, if it exits or is not ready in time.
        """
        self.launch()
        self.await_ready(timeout_s)

    def replace(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Let another velad take over from it, and wait for that: velad --replace.

        Raises LabError if it does not; this is then the one that failed.
        """
        former = self.process
        if former is None:
            raise LabError(f"velad {self.name} does not run")
        self.launch("--replace")
        self.await_ready(timeout_s)
        status = former.wait(timeout_s)
        if status:
            raise self._error(f"was replaced, and ended with status {status}")

    def launch(self, *options: str) -> None:
        """Start it; await_ready() is to follow. options: more of the command line."""
        notify_path = self._await_notices()
        command, env = entry_point("velad", "vela.supervisor.cli")
        if self._before:
            command = [sys.executable, "-c", f"{self._before}\n{_MAIN}"]
            env["PYTHONPATH"] = str(ROOT)
        command = [*self._prefix, *command]
        env["NOTIFY_SOCKET"] = str(notify_path)
        with self.log_path.open("ab") as log:
            self.process = self.namespace.popen(
                *(*command, "--config", str(self.config_path), *options),
                stdout=log,
                stderr=log,
                env=env,
            )

    def _await_notices(self) -> Path:
        """Return the path of the socket that it is to notify."""
        self._close_notify()
        path = self.directory / "notify.sock"
        path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        return path

    def await_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it is ready; see start()."""
        assert self.process is not None
        assert self._notify is not None
        deadline = time.monotonic() + timeout_s
        exited = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(self._notify, select.POLLIN)
            poll.register(exited, select.POLLIN)
            while True:
                left_ms = max(0.0, deadline - time.monotonic()) * 1000
                ready = [fd for fd, _ in poll.poll(left_ms)]
                if self._notify.fileno() in ready:
                    if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                        return
                elif exited in ready:
                    status = self.process.wait()
                    raise self._error(f"exited with status {status} before it was ready")
                else:
                    raise self._error(f"not ready after {timeout_s:g} s")
        finally:
            os.close(exited)
            self._close_notify()

    def _close_notify(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def control(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run velactl against it. Raises LabError if that fails and check is set."""
        done = velactl(self.control_socket, *argv)
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise self._error(f"velactl {' '.join(argv)}: exit status {done.returncode}: {said}")
        return done

    def status(self) -> dict[str, Any]:
        """Return what `velactl status --json` says, without the time that velactl takes to start.

        LabError if velad does not answer.
        """
        try:
            return self._ask_status()
        except (OSError, ValueError) as err:
            raise self._error(f"does not answer: {err}") from err

    def _ask_status(self) -> dict[str, Any]:
        return self.ask({"command": "status"})

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a command. Raises OSError or ValueError."""
        return ask(self.control_socket, command)

    def circuit(self, name: str) -> dict[str, Any]:
        """Return one circuit's entry of the status."""
        for entry in self.status()["circuits"]:
            if entry["name"] == name:
                found: dict[str, Any] = entry
                return found
        raise self._error(f"has no circuit {name}")

    def counted(self, circuit: str, **wanted: Wanted) -> dict[str, Any]:
        """Return the circuit's counters as soon as they have come to what is wanted.

        See lab.counters. Raises LabError, with those last seen, if they do not
        in time; at once if one exceeds what is wanted.
        """
        expectation = Expectation(wanted)

        def counters(status: dict[str, Any]) -> dict[str, Any]:
            (entry,) = (one for one in status["circuits"] if one["name"] == circuit)
            found: dict[str, Any] = entry["counters"]
            return found

        def decided(status: dict[str, Any]) -> bool:
            seen = counters(status)
            return expectation.is_exceeded(seen) or expectation.is_reached(seen)

        what = f"{circuit} to count {expectation}"
        seen = counters(self.wait_for(decided, COUNTED_TIMEOUT_S, what))
        if expectation.is_exceeded(seen):
            raise self._error(f"waited for {what}; it is more: {json.dumps(seen)}")
        return seen

    def worker_pid(self, circuit: str) -> int:
        """Return the process id of a circuit's worker, as soon as there is one."""

        def pid(status: dict[str, Any]) -> int:
            for entry in status["circuits"]:
                if entry["name"] == circuit and entry["worker"]:
                    return int(entry["worker"]["pid"] or 0)
            return 0

        status = self.wait_for(lambda status: pid(status) != 0, 5.0, f"a worker of {circuit}")
        return pid(status)

    def wait_for(
        self, predicate: Callable[[dict[str, Any]], bool], timeout_s: float, what: str = ""
    ) -> dict[str, Any]:
        """Return the first status of which predicate is true.

        Raises LabError, with the last status, if there is none in time; at
        once if velad ends.
        """
        seen: dict[str, Any] = {}

        def met() -> bool:
            nonlocal seen
            try:
                seen = self.status()
            except LabError:
                if self.process is None or self.process.poll() is not None:
                    awaited = what or "its status"
                    raise self._error(f"ended while waiting for {awaited}") from None
                raise
            return predicate(seen)

        try:
            eventually(met, timeout_s, what or "a status")
        except LabError as err:
            raise LabError(f"{err}\nlast status: {json.dumps(seen)}") from err
        return seen

    def wait_for_state(self, circuit: str, *states: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return the circuit's entry as soon as it is in one of the states."""

        def entries(status: dict[str, Any]) -> list[dict[str, Any]]:
            return [one for one in status["circuits"] if one["name"] == circuit]

        status = self.wait_for(
            lambda status: any(one["state"] in states for one in entries(status)),
            timeout_s,
            f"circuit {circuit} to be {' or '.join(states)}",
        )
        return entries(status)[0]

    def detach(self) -> None:
        """Let it run on, and keep its files, after this process ends."""
        self.process = None
        self._own_directory = False

    def reload(self) -> None:
        """Send SIGHUP."""
        os.kill(self.pid, signal.SIGHUP)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send SIGTERM and return the exit status; negative, the signal that ended it.

        Raises LabError if it has to be killed.
        """
        if self.process is None:
            raise LabError(f"velad {self.name} does not run")
        self.process.terminate()
        try:
            return self._reap(timeout_s)
        except subprocess.TimeoutExpired as err:
            self.kill()
            raise self._error(f"did not stop within {timeout_s:g} s of SIGTERM") from err

    def kill(self) -> None:
        """Send SIGKILL and wait; its workers are then the kernel's to end."""
        if self.process is not None:
            self.process.kill()
            self._reap(STOP_TIMEOUT_S)

    def _reap(self, timeout_s: float) -> int:
        assert self.process is not None
        status = self.process.wait(timeout_s)
        self.process = None
        return status

    def close(self) -> None:
        """Stop it if it runs, and remove its directory if that was made here."""
        self._close_notify()
        try:
            if self.process is not None:
                self.stop()
        finally:
            self._last_log = self.log()
            if self._own_directory:
                shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """Return all it wrote to stderr so far; also after it was closed."""
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return self._last_log

    def logged(self, event: str, key: str) -> list[str]:
        """Return what velad has logged so far for this key of an event, in its order."""
        # The last line may not be whole yet.
        lines = (line for line in self.log().split("\n")[:-1] if f"] {event} " in line)
        return [found[1] for line in lines if (found := re.search(rf" {key}=(\S+)", line))]

    def logged_at(self, event: str, since: float, timeout_s: float = 15.0, **keys: str) -> float:
        """Return when, first after since, velad logged an event with these keys. Unix times.

        Raises LabError if it does not in time. By its own time stamp: when
        somebody here looks does not matter.
        """
        words = [f" {key}={value} " for key, value in keys.items()]

        def found() -> float:
            for line in self.log().splitlines():
                stamp, _, rest = f"{line} ".partition(" ")
                if f"] {event} " in rest and all(word in rest for word in words):
                    at = datetime.fromisoformat(stamp).timestamp()
                    if at >= since:
                        return at
            return 0.0

        what = " ".join((f"velad {self.name} to log", event, *(word.strip() for word in words)))
        return eventually(found, timeout_s, what)

    def waited_s(self) -> float:
        """Return how long its processes have been ready to run while others ran.

        Of those that there are now, since each was started: so much earlier they would have done,
        at the most, what they did on a machine of their own. Zero if it does not run.
        """
        if self.process is None:
            return 0.0
        return sum(waited_s(pid) for pid in self.processes())

    def log_tail(self) -> str:
        """Return the log's last lines."""
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:]) or "(empty)"

    def _error(self, what: str) -> LabError:
        error = LabError(f"velad {self.name}: {what}")
        error.add_note(f"its log ends:\n{self.log_tail()}")
        return error


@contextmanager
def started_together(*velads: Velad) -> Iterator[None]:
    """All of them, in about the time that one takes; where none has to be there before another."""
    with ExitStack() as stack:
        for velad in velads:
            stack.callback(velad.close)
        for velad in velads:
            velad.launch()
        for velad in velads:
            velad.await_ready()
        yield


def waits_from_now(*velads: Velad) -> Callable[[], float]:
    """Return what tells, in seconds, how long they have waited for a CPU since this call.

    See Velad.waited_s; one that does not run yet has not waited yet.
    """
    before = sum(velad.waited_s() for velad in velads)
    return lambda: sum(velad.waited_s() for velad in velads) - before


def with_files(config: str, directory: Path, more: str = "") -> str:
    """Return the TOML text with keys added to [daemon]: those that name files, and more."""
    added = (
        f"control_socket = {json.dumps(str(directory / CONTROL_SOCKET))}\n"
        f"state_directory = {json.dumps(str(directory / 'state'))}"
    )
    if more:
        added += f"\n{more}"
    header = _DAEMON_TABLE.search(config)
    if header is None:
        return f"[daemon]\n{added}\n\n{config}"
    return f"{config[: header.end()]}\n{added}{config[header.end() :]}"


def ask(control_socket: Path, command: dict[str, Any]) -> dict[str, Any]:
    """Return velad's answer to a command, without velactl. Raises OSError or ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(VELACTL_TIMEOUT_S)
        asking.connect(str(control_socket))
        asking.sendall(json.dumps(command).encode() + b"\n")
        with asking.makefile() as answers:
            answer: dict[str, Any] = json.loads(answers.readline())
    return answer


def velactl(control_socket: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run velactl on a control socket; a Unix socket is reached across namespaces."""
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    line = [*command, "--socket", str(control_socket), *argv]
    try:
        return subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VELACTL_TIMEOUT_S,
            env=env,
        )
    except subprocess.TimeoutExpired as err:
        raise LabError(f"velactl {' '.join(argv)}: no answer in {VELACTL_TIMEOUT_S:g} s") from err


@contextmanager
def running_velactl(velad: Velad, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run velactl inside, its output a pipe, and end it on leaving."""
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    line = [*command, "--socket", str(velad.control_socket), *argv]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.terminate()


def is_asked(velad: Velad) -> bool:
    """Tell whether a client from outside the namespace is connected."""
    return str(velad.control_socket) in Path("/proc/net/unix").read_text()


def entry_point(script: str, module: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of an installed script, or of this source tree's."""
    env = dict(os.environ)
    installed = Path(sys.executable).with_name(script)
    if installed.exists():
        return [str(installed)], env
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    code = f"import sys; from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", code], env
