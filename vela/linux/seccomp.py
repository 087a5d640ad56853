"""Filters of system calls: from rules to classic BPF, and to the kernel.

Linux, Documentation/userspace-api/seccomp_filter.rst; include/uapi/linux/seccomp.h and audit.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from vela.linux import bpf

# Actions.
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS: SIGSYS, which cannot be caught
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_FLAG_TSYNC = 1  # all threads of the process
# Without it Linux before 5.16 mitigates speculation in the process (commit 2f46993d83ff), which
# slows it down and protects its memory from itself.
_FLAG_SPEC_ALLOW = 4

# Offsets in struct seccomp_data.
_CALL, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_VALUE = 4  # offset in struct sock_filter, of what is compared with
# On x86-64, numbers from here on are x32's names for the same calls.
_X32 = 0x40000000

_MACHINES = ("x86_64", "aarch64")
_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# By machine: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h. None:
# that machine has it not.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "access": (21, None),
    "add_key": (248, 217),
    "bind": (49, 200),
    "bpf": (321, 280),
    "brk": (12, 214),
    "chroot": (161, 51),
    "clock_gettime": (228, 113),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "execve": (59, 221),
    "execveat": (322, 281),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fork": (57, None),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "listen": (50, 201),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mount": (165, 40),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "preadv2": (327, 286),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "recvmmsg": (299, 243),
    "recvmsg": (47, 212),
    "request_key": (249, 218),
    "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigqueueinfo": (129, 138),
    "rt_sigreturn": (15, 139),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "stat": (4, None),
    "statx": (332, 291),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
    "write": (1, 64),
    "writev": (20, 66),
}

# As the value of an argument: the process id of whoever installs the filter. No process has it:
# PID_MAX_LIMIT is 2^22.
OWN_PID = 0x7FFFFFFF

_machine = platform.machine()
_column = _MACHINES.index(_machine) if _machine in _MACHINES else None

_NR = 0 if _column is None else NUMBERS["seccomp"][_column]

# Made ahead of any fork: what a child makes is memory of its own.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_char_p)

_WORD = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on the lower 32 bits of an argument: of descriptors and flags, all there are."""

    index: int
    code: int
    value: int
    negated: bool = False


def equals(index: int, value: int) -> Argument:
    return Argument(index, bpf.IF_EQUAL, value)


def has_bit_of(index: int, bits: int) -> Argument:
    return Argument(index, bpf.IF_ANY_BIT, bits)


def has_no_bit_of(index: int, bits: int) -> Argument:
    return Argument(index, bpf.IF_ANY_BIT, bits, negated=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to a call of which all conditions are true."""

    call: str
    """As the kernel names it. Where a machine has no such call, the rule says nothing."""
    action: int = ALLOW
    conditions: tuple[Argument, ...] = ()


def allow(call: str, *conditions: Argument) -> Rule:
    return Rule(call, ALLOW, conditions)


def kill(call: str, *conditions: Argument) -> Rule:
    return Rule(call, KILL, conditions)


def fail(error: int, call: str, *conditions: Argument) -> Rule:
    """Let a call fail with this errno."""
    return Rule(call, _ERRNO | error, conditions)


def why_not() -> str:
    """Return why this machine cannot filter system calls; empty: it can."""
    if _column is None:
        return f"the filter does not know the system calls of {_machine}"
    if _syscall(_NR, _GET_ACTION_AVAIL, 0, _WORD.pack(KILL)) != 0:
        return f"the kernel refuses it: {os.strerror(ctypes.get_errno())}"
    return ""


def program(rules: Iterable[Rule], default: int, *, machine: str = _machine) -> bytes:
    """Return a filter: the first rule that holds decides, then default.

    Calls are compared in the order in which they first occur: frequent ones come first. Kernels
    since Linux 5.11 remember calls that are allowed whatever their arguments (commit
    8e01b51a31a1), so their place does not matter there.

    Calls by the numbers of another architecture end the process.
    """
    column = _MACHINES.index(machine)
    by_call: dict[str, list[Rule]] = {}
    for rule in rules:
        by_call.setdefault(rule.call, []).append(rule)
    code = [
        bpf.instruction(bpf.LOAD_WORD, _ARCHITECTURE),
        bpf.instruction(bpf.IF_EQUAL, _AUDIT_ARCHITECTURES[machine], if_true=1),
        bpf.instruction(bpf.RETURN, KILL),
        bpf.instruction(bpf.LOAD_WORD, _CALL),
    ]
    if default != KILL and machine == "x86_64":
        code.append(bpf.instruction(bpf.IF_AT_LEAST, _X32, if_false=1))
        code.append(bpf.instruction(bpf.RETURN, KILL))
    code += [_assemble(tuple(each), default, column) for each in by_call.values()]
    code.append(bpf.instruction(bpf.RETURN, default))
    return b"".join(code)


# Most rules are the same for all workers.
@lru_cache(maxsize=256)
def _assemble(rules: tuple[Rule, ...], default: int, column: int) -> bytes:
    """Return instructions that judge one call, and fall through for all others.

    Before and behind them the call's number is loaded.
    """
    number = NUMBERS[rules[0].call][column]
    if number is None:
        return b""
    code = b"".join(map(_judge, rules))
    if rules[-1].conditions:
        code += bpf.instruction(bpf.RETURN, default)
    skip = len(code) // bpf.INSTRUCTION_SIZE
    if skip > bpf.FURTHEST:  # a worker of many queues
        code = bpf.instruction(bpf.JUMP, skip) + code
        return bpf.instruction(bpf.IF_EQUAL, number, if_true=1) + code
    return bpf.instruction(bpf.IF_EQUAL, number, if_false=skip) + code


def _judge(rule: Rule) -> bytes:
    """Return instructions that return the action, or fall through where a condition is false."""
    code = [bpf.instruction(bpf.RETURN, rule.action)]
    for condition in reversed(rule.conditions):
        skip = len(code)
        branches = (skip, 0) if condition.negated else (0, skip)
        code.insert(0, bpf.instruction(condition.code, condition.value, *branches))
        # The lower half: both machines are little endian.
        code.insert(0, bpf.instruction(bpf.LOAD_WORD, _ARGUMENTS + 8 * condition.index))
    return b"".join(code)


class Filter:
    """A program, ready to be installed. Made ahead of a fork: what a child makes costs memory."""

    def __init__(self, filter_program: bytes) -> None:
        self._fprog = bpf.Fprog(filter_program)
        self._own_pids = [
            offset
            for offset in range(_VALUE, len(filter_program), bpf.INSTRUCTION_SIZE)
            if _WORD.unpack_from(filter_program, offset) == (OWN_PID,)
        ]

    def install(self) -> None:
        """Put all threads of this process, and all that they start, under it, for good.

        The process needs no_new_privs, or CAP_SYS_ADMIN. Raises OSError.
        """
        for offset in self._own_pids:
            _WORD.pack_into(self._fprog.instructions, offset, os.getpid())
        refused = _syscall(_NR, _SET_MODE_FILTER, _FLAG_TSYNC | _FLAG_SPEC_ALLOW, self._fprog.raw)
        if refused < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"seccomp: {os.strerror(error)}")
        if refused > 0:
            raise RuntimeError(f"seccomp: the thread {refused} has a filter of its own")
