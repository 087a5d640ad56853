"""vela.linux.seccomp: by the kernel's headers, in an interpreter of BPF, and in the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal
import socket
import struct
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.program import COMPILER
from vela.linux import seccomp
from vela.linux.seccomp import (
    ALLOW,
    KILL,
    NUMBERS,
    OWN_PID,
    Filter,
    allow,
    equals,
    fail,
    has_bit_of,
    has_no_bit_of,
    kill,
    program,
)
from vela.supervisor.runtime.process import ExitStatus, fork

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # include/uapi/linux/audit.h
I386 = 0x40000003
PR_SET_NO_NEW_PRIVS = 38
EPERM = 0x00050000 + errno.EPERM

needs_filter = pytest.mark.skipif(seccomp.why_not() != "", reason=seccomp.why_not())


def header_numbers(header: str, *definitions: str) -> dict[str, int]:
    done = subprocess.run(
        [COMPILER[0], "-E", "-dM", *definitions, "-include", header, "-"],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no {header}")
    defined = dict(re.findall(r"#define (__NR\w+) (\w+)", done.stdout))

    def value(name: str) -> int:
        while not name.isdecimal():
            name = defined[name]
        return int(name)

    return {each.removeprefix("__NR_"): value(each) for each in defined if each.startswith("__NR_")}


@pytest.mark.parametrize(
    ("column", "header", "definitions"),
    [
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", ()),
        # As arch/arm64/include/uapi/asm/unistd.h wants it.
        (
            1,
            "/usr/include/asm-generic/unistd.h",
            ("-D__BITS_PER_LONG=64", "-D__ARCH_WANT_NEW_STAT", "-D__ARCH_WANT_SYS_CLONE3"),
        ),
    ],
    ids=MACHINES,
)
def test_numbers_are_those_of_the_kernels_headers(
    column: int, header: str, definitions: tuple[str, ...]
) -> None:
    known = header_numbers(header, *definitions)

    assert {name: numbers[column] for name, numbers in NUMBERS.items()} == {
        name: known.get(name) for name in NUMBERS
    }


def run(code: bytes, machine: str, name: str, *arguments: int, high: int = 0) -> int:
    """Return what a program says of a call."""
    number = NUMBERS[name][list(MACHINES).index(machine)]
    assert number is not None
    return judge(code, number, MACHINES[machine], arguments, high)


def judge(
    code: bytes, number: int, architecture: int, arguments: tuple[int, ...], high: int
) -> int:
    """Interpret as Documentation/networking/filter.rst says."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    # struct seccomp_data; the upper halves of arguments are not to matter.
    data = struct.pack("<iIQ6Q", number, architecture, 0, *(high << 32 | each for each in padded))
    steps = list(struct.iter_unpack("<HBBI", code))
    accumulator = position = 0
    while True:
        opcode, if_true, if_false, k = steps[position]
        position += 1
        match opcode:
            case 0x05:  # ja k
                position += k
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x15:  # jeq #k
                position += if_true if accumulator == k else if_false
            case 0x35:  # jge #k
                position += if_true if accumulator >= k else if_false
            case 0x45:  # jset #k
                position += if_true if accumulator & k else if_false
            case 0x06:  # ret #k
                return int(k)
            case _:
                raise AssertionError(f"unexpected instruction {opcode:#x}")


RULES = (
    allow("writev", equals(0, 9)),
    allow("tgkill", equals(0, 100), equals(2, 6)),
    allow("mmap", has_no_bit_of(2, 4)),
    allow("futex"),
    allow("writev", equals(0, 2)),
    fail(errno.EPERM, "openat"),
    allow("clone", has_bit_of(0, 0x10000)),
    fail(errno.EPERM, "clone"),
    kill("ptrace"),
)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
@pytest.mark.parametrize("default", [KILL, ALLOW])
def test_program_decides_by_the_first_rule_that_holds(
    machine: str, high: int, default: int
) -> None:
    code = program(RULES, default, machine=machine)

    for name, arguments, decided in (
        ("writev", (9,), ALLOW),
        ("writev", (2,), ALLOW),
        ("writev", (3,), default),
        ("tgkill", (100, 7, 6), ALLOW),
        ("tgkill", (101, 7, 6), default),
        ("tgkill", (100, 7, 9), default),
        ("mmap", (0, 0, 3), ALLOW),
        ("mmap", (0, 0, 7), default),
        ("futex", (1, 2, 3), ALLOW),
        ("openat", (), EPERM),
        ("clone", (0x10F00,), ALLOW),
        ("clone", (17,), EPERM),
        ("ptrace", (), KILL),
        ("execve", (), default),
    ):
        assert run(code, machine, name, *arguments, high=high) == decided, (name, arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("count", [84, 85, 86, 400])
def test_call_may_have_more_rules_than_a_branch_can_skip(machine: str, count: int) -> None:
    """Three instructions each; a branch skips 255 at most."""
    many = tuple(allow("writev", equals(0, fd)) for fd in range(count))
    code = program((*many, allow("preadv2", equals(0, 7))), KILL, machine=machine)

    for fd in (0, 84, count - 1):
        assert run(code, machine, "writev", fd) == (ALLOW if fd < count else KILL)
    assert run(code, machine, "writev", count) == KILL
    assert run(code, machine, "preadv2", 7) == ALLOW
    assert run(code, machine, "preadv2", 8) == KILL


@given(
    number=st.integers(0, 600),
    architecture=st.integers(0, 2**32 - 1).filter(lambda each: each not in MACHINES.values()),
)
def test_program_kills_calls_of_another_architecture(number: int, architecture: int) -> None:
    for machine in MACHINES:
        for default in (KILL, ALLOW):
            code = program(RULES, default, machine=machine)
            assert judge(code, number, architecture, (), 0) == KILL
            assert judge(code, number, I386, (), 0) == KILL


@pytest.mark.parametrize("default", [KILL, ALLOW])
def test_program_kills_calls_by_numbers_of_x32(default: int) -> None:
    code = program(RULES, default, machine="x86_64")

    for name in ("ptrace", "futex", "execve"):
        number = NUMBERS[name][0]
        assert number is not None
        assert judge(code, 0x40000000 | number, MACHINES["x86_64"], (), 0) == KILL


def test_rule_for_a_call_that_a_machine_lacks_says_nothing() -> None:
    rules = (fail(errno.EPERM, "open"), allow("futex"))

    assert program(rules, KILL, machine="aarch64") == program(rules[1:], KILL, machine="aarch64")
    assert run(program(rules, KILL, machine="x86_64"), "x86_64", "open") == EPERM


def under(rules: tuple[seccomp.Rule, ...], default: int, call: str, *arguments: int) -> ExitStatus:
    """Return how a child ended that made a call under a filter: with its errno, if it lived."""
    number = NUMBERS[call][list(MACHINES).index(platform.machine())]
    calls = Filter(program(rules, default))
    libc = ctypes.CDLL(None, use_errno=True)

    def body() -> None:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        calls.install()
        result = libc.syscall(number, *arguments)
        os._exit(ctypes.get_errno() if result < 0 else 0)

    return fork(body, ()).reap()


@needs_filter
@pytest.mark.forks  # these fork
def test_kernel_does_what_the_rules_say() -> None:
    assert under((fail(errno.EXDEV, "getcwd"),), ALLOW, "getcwd", 0, 0).code == errno.EXDEV
    assert under((kill("getcwd"),), ALLOW, "getcwd", 0, 0).signal == signal.SIGSYS
    living = (allow("getcwd", equals(1, 5)), allow("exit_group"))
    assert under(living, KILL, "getcwd", 0, 5).code == errno.ERANGE
    assert under(living, KILL, "getcwd", 0, 6).signal == signal.SIGSYS


@needs_filter
@pytest.mark.forks
def test_own_process_id_is_that_of_whoever_installs_the_filter() -> None:
    rules = (fail(errno.EXDEV, "tgkill", equals(0, OWN_PID)), fail(errno.ENOENT, "tgkill"))
    calls = Filter(program(rules, ALLOW))
    libc = ctypes.CDLL(None, use_errno=True)
    number = NUMBERS["tgkill"][list(MACHINES).index(platform.machine())]

    def body() -> None:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        calls.install()
        errors = []
        for pid in (os.getpid(), os.getppid()):
            libc.syscall(number, pid, pid, 0)
            errors.append(ctypes.get_errno())
        os._exit(errors == [errno.EXDEV, errno.ENOENT])

    # Each has its own, by the same filter.
    assert [fork(body, ()).reap().code for _ in range(2)] == [1, 1]


@needs_filter
@pytest.mark.forks
def test_filter_holds_for_threads_that_run_already() -> None:
    calls = Filter(program((kill("getcwd"),), ALLOW))
    libc = ctypes.CDLL(None, use_errno=True)

    def body() -> None:
        installed = threading.Event()

        def late() -> None:
            installed.wait()
            os.getcwd()
            os._exit(0)

        threading.Thread(target=late).start()
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        calls.install()
        installed.set()
        signal.pause()

    assert fork(body, ()).reap().signal == signal.SIGSYS


@needs_filter
@pytest.mark.forks
def test_filter_that_the_kernel_refuses_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    libc = ctypes.CDLL(None, use_errno=True)
    calls = Filter(struct.pack("=HBBI", 0x20, 0, 0, 0))  # it returns nothing

    def body() -> None:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        try:
            calls.install()
        except OSError as err:
            theirs.send(str(err).encode())

    with ours, theirs:
        fork(body, (theirs.fileno(),)).reap()
        assert ours.recv(100) == b"[Errno 22] seccomp: Invalid argument"
