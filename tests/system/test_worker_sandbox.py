"""What a worker that was taken over can do: a loop of the test's, in a real worker's sandbox."""

from __future__ import annotations

import _thread
import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import random
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
import structlog
from forked_worker import TIMEOUT_S, Circuit, engine_of

from lab.waiting import eventually
from vela import worker
from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Counters, CounterSlab, Slot
from vela.dataplane.engine import Engine
from vela.linux import sandbox, seccomp
from vela.linux.features import ALL_FEATURES, Features
from vela.log import configure
from vela.supervisor.circuit.keeper import WorkerKeeper
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.process import ExitStatus, fork
from vela.supervisor.status import CounterStatus, document

pytestmark = [
    pytest.mark.forks,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]
needs_filter = pytest.mark.skipif(seccomp.why_not() != "", reason=seccomp.why_not())

FORBIDDEN = "worker: killed by SIGSYS for a system call that it may not make"

# Bound here, as a worker makes nothing itself.
libc = ctypes.CDLL(None, use_errno=True)
_MACHINE = list(seccomp._AUDIT_ARCHITECTURES).index(os.uname().machine)

SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 51
TUNSETPERSIST, TUNSETOWNER, TUNSETCARRIER = 0x400454CB, 0x400454CC, 0x400454E2
SIOCSIFHWADDR, TIOCSTI = 0x8924, 0x5412
PTRACE_ATTACH, CLONE_NEWUSER = 16, 0x10000000
PROT_RWX, PROT_RX, MAP_ANONYMOUS_PRIVATE = 7, 5, 0x22
PR_SET_DUMPABLE, PR_SET_VMA = 4, 0x53564D41

Attack = Callable[[Attachment], object]


def call(name: str, *arguments: int) -> int:
    """Make a system call by its number. Return its errno; 0: it succeeded."""
    number = seccomp.NUMBERS[name][_MACHINE]
    if number is None:
        return errno.EPERM  # there is none, as good as refused
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments)) >= 0:
        return 0
    return ctypes.get_errno()


def by_os(function: Callable[..., object], *arguments: object) -> int:
    try:
        function(*arguments)
    except OSError as err:
        return err.errno or -1
    return 0


def attach(fd: int, option: int) -> int:
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
    fprog = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(code)))
    return int(libc.setsockopt(fd, socket.SOL_SOCKET, option, fprog, 16))


def map_memory(protection: int) -> int:
    return call("mmap", 0, 4096, protection, MAP_ANONYMOUS_PRIVATE, -1, 0)


def protect(protection: int) -> int:
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return call("mprotect", ctypes.addressof(ctypes.c_char.from_buffer(memory)), 4096, protection)


def receive(task: Attachment) -> int:
    return task.receive_socket.fileno()


KILLED: dict[str, Attack] = {
    "socket": lambda _: libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0),
    "socketpair": lambda _: socket.socketpair(),
    "ptrace": lambda _: call("ptrace", PTRACE_ATTACH, os.getppid(), 0, 0),
    "process_vm_readv": lambda _: call("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0),
    "kill": lambda _: call("kill", os.getpid(), 0),
    "kill of everybody": lambda _: call("kill", -1, 0),
    "tkill": lambda _: call("tkill", os.getpid(), 0),
    "tgkill of another process": lambda _: call("tgkill", 1, 1, signal.SIGABRT),
    "tgkill by another signal": lambda _: call("tgkill", os.getpid(), os.getpid(), 0),
    "pidfd_open": lambda _: call("pidfd_open", 1, 0),
    "unshare": lambda _: call("unshare", CLONE_NEWUSER),
    "setns": lambda _: call("setns", 0, 0),
    "execve": lambda _: os.execv("/bin/true", ["true"]),
    "fork": lambda _: os.fork(),
    "vfork": lambda _: call("vfork") or call("clone", 0x4100, 0, 0, 0, 0),
    "clone3": lambda _: call("clone3", 0, 0),
    "a thread": lambda _: _thread.start_new_thread(os.getpid, ()),
    "bpf": lambda _: call("bpf", 0, 0, 0),
    "io_uring_setup": lambda _: call("io_uring_setup", 1, 0),
    "userfaultfd": lambda _: call("userfaultfd", 0),
    "perf_event_open": lambda _: call("perf_event_open", 0, 0, 0, 0, 0),
    "seccomp": lambda _: call("seccomp", 2, 0, 0),
    "prctl": lambda _: call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0),
    "setrlimit": lambda _: call("prlimit64", 0, 7, 0, 0),
    "sched_setaffinity": lambda _: os.sched_setaffinity(0, {0}),
    "setpriority": lambda _: call("setpriority", 0, 0, 5),
    "mount": lambda _: call("mount", 0, 0, 0, 0, 0),
    "attach a steering program": lambda task: attach(receive(task), SO_ATTACH_REUSEPORT_CBPF),
    "attach a filter": lambda task: attach(receive(task), SO_ATTACH_FILTER),
    "SO_RCVTIMEO": lambda task: task.receive_socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@qq", 1, 0)
    ),
    "connect": lambda task: task.send_socket.connect(("127.0.0.1", 9)),
    "shutdown": lambda task: task.divert_socket.shutdown(socket.SHUT_RDWR),
    "bind": lambda task: task.send_socket.bind(("127.0.0.1", 0)),
    "TUNSETPERSIST": lambda task: fcntl.ioctl(task.tap_fd, TUNSETPERSIST, 1),
    "TUNSETOWNER": lambda task: fcntl.ioctl(task.tap_fd, TUNSETOWNER, 65534),
    "TUNSETCARRIER": lambda task: fcntl.ioctl(task.tap_fd, TUNSETCARRIER, bytes(4)),
    "SIOCSIFHWADDR": lambda task: fcntl.ioctl(task.tap_fd, SIOCSIFHWADDR, bytes(40)),
    "TIOCSTI": lambda _: fcntl.ioctl(2, TIOCSTI, b"x"),
    "fcntl": lambda task: os.set_blocking(task.tap_fd, True),
    "dup": lambda task: os.dup(task.tap_fd),
    "close": lambda task: os.close(task.tap_fd),
    # By descriptors that are its own, but not for this.
    "send from the receiving socket": lambda task: task.receive_socket.sendmsg([b"x"]),
    "receive on the sending socket": lambda task: task.send_socket.recvmsg(1),
    "read from the supervisor": lambda task: task.divert_socket.recvmsg(1),
    "a descriptor to the supervisor": lambda task: task.divert_socket.sendmsg([b"x"]),
    "read standard input": lambda _: os.read(0, 1),
    "an option of the receiving socket": lambda task: task.receive_socket.getsockopt(1, 3),
    "another option of the sending socket": lambda task: task.send_socket.getsockopt(1, 26, 8),
    # Code of its own.
    "executable memory": lambda _: map_memory(PROT_RWX),
    "memory made executable": lambda _: protect(PROT_RX),
}

REFUSED: dict[str, Callable[[Attachment], int]] = {
    "open": lambda _: by_os(os.open, "/etc/passwd", os.O_RDONLY),
    "open by the older call": lambda _: call("open", 0, 0, 0),
    "stat": lambda _: by_os(os.stat, "/etc/passwd"),
    "access": lambda _: call("access", 0, 0),
    "readlink": lambda _: by_os(os.readlink, "/proc/self/exe"),
    "getcwd": lambda _: by_os(os.getcwd),
    "lseek": lambda task: by_os(os.lseek, task.tap_fd, 0, 0),
}


class Hostile:
    """A data path that does one thing, once."""

    def __init__(self, attachment: Attachment, attack: Attack) -> None:
        self._attachment, self._attack = attachment, attack
        self._forever = _thread.allocate_lock()
        self._forever.acquire()

    def egress(self) -> None:
        result = self._attack(self._attachment)
        counters = self._attachment.counters
        counters[Slot.TX_ERRORS] = result if isinstance(result, int) and result >= 0 else 0
        counters[Slot.EGRESS_PROGRESS] = 1
        self._forever.acquire()

    def ingress(self) -> None:
        self._forever.acquire()

    def egress_until(self, stop: memoryview, states: memoryview, /) -> None:
        self.egress()

    def ingress_until(self, stop: memoryview, states: memoryview, /) -> None:
        self.ingress()

    def poll_until(self, stop: memoryview, states: memoryview, /) -> None:
        self.egress()


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    configure("info", "console")
    yield
    structlog.reset_defaults()


@pytest.fixture(params=[ALL_FEATURES, frozenset()], ids=["with all features", "without any"])
def features(request: pytest.FixtureRequest) -> Features:
    chosen: Features = request.param
    return chosen


@pytest.fixture(params=[Engine.PYTHON, Engine.NATIVE], ids=lambda engine: engine.value)
def circuit(stack: ExitStack, features: Features, request: pytest.FixtureRequest) -> Circuit:
    return Circuit(stack, request.param, features)


def hostile(circuit: Circuit, attack: Attack) -> worker.WorkerTask:
    """Return the circuit's task, with a loop that attacks under the filter of the engine's own."""
    return replace(circuit.task, engine=engine_of("hostile", lambda task: Hostile(task, attack)))


def attacked(circuit: Circuit, attack: Attack) -> ExitStatus | int:
    """Return how a worker ended that attacked; or what came back from the attack, if it lives."""
    task = hostile(circuit, attack)
    child = fork(worker.prepare(task), task.descriptors)
    died = os.pidfd_open(child.pid)
    try:
        eventually(
            lambda: circuit.counters.worker[Slot.EGRESS_PROGRESS] or ended(died),
            TIMEOUT_S,
            "the attack",
        )
        survived = circuit.counters.worker[Slot.EGRESS_PROGRESS] and not ended(died)
    finally:
        os.close(died)
        child.signal(signal.SIGKILL)
        status = child.reap()
    return circuit.counters.worker[Slot.TX_ERRORS] if survived else status


def ended(pidfd: int) -> bool:
    return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@needs_filter
@pytest.mark.parametrize("attack", KILLED)
def test_worker_that_makes_a_forbidden_call_is_killed(circuit: Circuit, attack: str) -> None:
    result = attacked(circuit, KILLED[attack])

    assert result == ExitStatus(signal=signal.SIGSYS)


@needs_filter
@pytest.mark.parametrize("attack", REFUSED)
def test_worker_that_looks_for_a_file_is_refused(circuit: Circuit, attack: str) -> None:
    """Not killed: a traceback looks for its source files."""
    assert attacked(circuit, REFUSED[attack]) == errno.EPERM


@needs_filter
def test_names_for_mappings_are_refused_as_by_a_kernel_without_them(circuit: Circuit) -> None:
    assert attacked(circuit, lambda _: call("prctl", PR_SET_VMA, 0, 0, 0, 0)) == errno.EINVAL


@needs_filter
def test_worker_that_aborts_says_so_itself(circuit: Circuit) -> None:
    """As libc does when it finds the heap damaged."""

    def abort(_: Attachment) -> None:
        faulthandler.disable()  # of pytest
        os.abort()

    assert attacked(circuit, abort) == ExitStatus(signal=signal.SIGABRT)


@needs_filter
def test_worker_that_takes_memory_and_gives_it_back_lives(circuit: Circuit) -> None:
    def take(_: Attachment) -> int:
        for size in (1 << 12, 1 << 16, 1 << 20, 64 << 20):
            held = [bytearray(size) for _ in range(4)]
            for each in held:
                each.extend(bytes(size))
            del held
        return 0

    assert attacked(circuit, take) == 0


@pytest.mark.parametrize(
    ("attack", "refusal"),
    [
        (lambda _: by_os(os.fork), errno.EAGAIN),
        (lambda _: by_os(os.open, "/dev/null", os.O_RDONLY), errno.EMFILE),
        (lambda task: by_os(os.dup, task.tap_fd), errno.EMFILE),
        (lambda _: by_os(socket.socketpair), errno.EMFILE),
        (lambda _: call("ptrace", PTRACE_ATTACH, os.getppid(), 0, 0), errno.EPERM),
        (lambda _: by_os(fcntl.ioctl, 2, TIOCSTI, b"x"), None),
    ],
    ids=["fork", "open", "dup", "socketpair", "ptrace", "TIOCSTI"],
)
def test_worker_without_a_filter_still_starts_and_opens_nothing(
    circuit: Circuit, attack: Callable[[Attachment], int], refusal: int | None
) -> None:
    circuit.task = replace(circuit.task, filter=None)

    result = attacked(circuit, attack)

    assert result == refusal if refusal is not None else result != 0


def test_worker_without_a_filter_carries_frames(circuit: Circuit) -> None:
    task = replace(circuit.task, filter=None)
    child = fork(worker.prepare(task), task.descriptors)
    try:
        circuit.exchange(50)
    finally:
        child.signal(signal.SIGTERM)
        child.reap()


class Kept:
    """A keeper on a loop that the test turns, and what it says."""

    def __init__(self, circuit: Circuit, task: worker.WorkerTask) -> None:
        self.loop = EventLoop()
        self.restored = 0
        self.keeper = WorkerKeeper(
            "vela0",
            self.loop,
            circuit.counters,
            pytest.fail,
            lambda: None,
            self._restore,
        )
        self.keeper.start(task)

    def _restore(self) -> None:
        self.restored += 1

    def turn(self, until: Callable[[], object]) -> None:
        expired = self.loop.call_later(TIMEOUT_S, self.loop.stop)

        def look() -> None:
            if until():
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.run()
        expired.cancel()
        assert until()


@pytest.fixture
def keep(circuit: Circuit) -> Iterator[Callable[[worker.WorkerTask], Kept]]:
    made: list[Kept] = []

    def start(task: worker.WorkerTask) -> Kept:
        made.append(Kept(circuit, task))
        return made[-1]

    yield start
    for each in made:
        each.keeper.stop()
        each.loop.close()


@needs_filter
def test_death_for_a_forbidden_call_is_counted_named_and_the_worker_replaced(
    circuit: Circuit, keep: Callable[[worker.WorkerTask], Kept]
) -> None:
    kept = keep(hostile(circuit, KILLED["socket"]))

    kept.turn(lambda: kept.keeper.failure)

    assert kept.keeper.failure == FORBIDDEN
    assert kept.keeper.restarts == 3
    # Ahead of each successor.
    assert kept.restored == 2
    # Where the next one is sound, all goes on.
    kept.keeper.start(circuit.task)
    circuit.exchange(10)
    kept.turn(lambda: not kept.keeper.failure)


PATTERNS: dict[str, Callable[[int], bytes]] = {
    "ones": lambda size: b"\xff" * size,
    "noise": random.Random(10).randbytes,
    "text": lambda size: (b"\x1b[2J\n" * size)[:size],
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ends", [True, False], ids=["and ends", "and goes on"])
def test_page_that_a_worker_filled_is_that_circuits_trouble_alone(
    circuit: Circuit, keep: Callable[[worker.WorkerTask], Kept], pattern: str, ends: bool
) -> None:
    memory = circuit.counters.page.memory
    filling = PATTERNS[pattern](len(memory))

    def fill(_: Attachment) -> None:
        memory[:] = filling
        if ends:
            os._exit(3)
        while True:
            memory[:] = filling

    kept = keep(hostile(circuit, fill))
    counters = circuit.counters
    if ends:
        kept.turn(lambda: kept.keeper.failure)
    else:
        kept.turn(lambda: bytes(memory[-64:]) == filling[-64:])

    # All that the supervisor does with the page.
    kept.keeper.check()
    counters.supervisor[Slot.RX_FRAMES] += 1
    status = document(CounterStatus.of(counters))
    assert all(0 <= status[key] < 2**64 for key in status if not key.endswith("dropped"))
    said = kept.keeper.failure + kept.keeper.exit_message.read()
    assert said.isascii()
    assert said == "" or said.isprintable()
    # The next worker finds no trace of it, whichever its engine.
    kept.keeper.start(circuit.task)
    circuit.exchange(20)
    eventually(lambda: sum(counters.worker[:]) < 10_000, TIMEOUT_S, "counters that begin at zero")


def test_worker_has_no_page_but_its_own(stack: ExitStack) -> None:
    slab = CounterSlab()
    taken = [slab.take() for _ in range(600)]  # of three mappings
    for number in (0, 255, 256, 300, 599):
        assert touched(taken[number], taken[number]) is None
        for other in (taken[0], taken[254], taken[256], taken[511], taken[599]):
            if other is not taken[number]:
                assert touched(taken[number], other) == signal.SIGSEGV


def touched(own: Counters, other: Counters) -> int | None:
    """Return the signal that ends a fork which keeps its own page and writes to another."""

    def body() -> None:
        own.page.unmap_others()
        other.worker[Slot.TX_FRAMES] = 1

    with suppress(OSError):
        return fork(body, ()).reap().signal
    raise AssertionError("no fork")


def test_why_no_filter_is_empty_where_the_kernel_has_them() -> None:
    assert sandbox.why_no_filter() == seccomp.why_not()
