"""Extended BPF: a classic program translated and loaded, as a descriptor.

A reuseport group frees the classic program that another one replaces at once, although packets on
other CPUs may be in the middle of it: the kernel then executes freed memory (CVE-2026-52910; all
kernels before the fix of 2026). It frees an extended one when no CPU can be in it any more
(kernel/bpf/syscall.c, bpf_prog_put).

Linux, Documentation/bpf/standardization/instruction-set.rst; include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from functools import lru_cache

from vela.linux import bpf
from vela.linux.seccomp import NUMBERS

_PROG_LOAD = 5
_SOCKET_FILTER = 1  # BPF_PROG_TYPE_SOCKET_FILTER
_LICENSE = b"Apache-2.0\0"

# Registers. Loads of the packet take the context from register 6, give their value in register 0
# and overwrite 1 to 5 (instruction-set.rst, "Legacy BPF Packet access instructions").
_A, _ARGUMENT, _CONTEXT, _X, _KEPT_A, _FRAME = 0, 1, 6, 7, 8, 10

# Each is a sum of class, source or size, and operation or mode. Comparisons are those of 32 bits
# (BPF_JMP32, Linux 5.1): those of 64 extend the sign of what they compare with.
_MOVE = 0xBF  # BPF_ALU64 | BPF_MOV | BPF_X
_SET = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT_LEFT = 0x64  # BPF_ALU | BPF_LSH | BPF_K
_STORE = 0x63  # BPF_STX | BPF_MEM | BPF_W
_RECALL = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_EXIT = 0x95  # BPF_JMP | BPF_EXIT
_IF = {bpf.IF_EQUAL: 0x16, bpf.IF_AT_LEAST: 0x36, bpf.IF_ANY_BIT: 0x46}
_UNLESS = {bpf.IF_EQUAL: 0x56, bpf.IF_AT_LEAST: 0xA6}  # BPF_JNE, BPF_JLT

_SLOT_SIZE = 4
_CLASSIC = struct.Struct("=HBBI")
_EXTENDED = struct.Struct("=BBhI")  # struct bpf_insn
_ATTRIBUTES = struct.Struct("=IIQQ")  # union bpf_attr: type, count, instructions, license

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def translate(program: bytes) -> bytes:
    """Return an array of struct bpf_insn that does what an array of struct sock_filter does.

    A load beyond the packet's end returns 0 in both. Raises ValueError if there is an instruction
    that bpf.py does not name.
    """
    classic = list(_CLASSIC.iter_unpack(program))
    bodies = [_body(*step) for step in classic]
    # Where each classic instruction begins; the first three set up registers.
    starts = [3]
    for body in bodies:
        starts.append(starts[-1] + len(body))
    steps = [
        _pack(_MOVE, _CONTEXT, _ARGUMENT),
        _pack(_SET, _A),
        _pack(_SET, _X),
    ]
    for index, body in enumerate(bodies):
        for code, registers, skip, k in body:
            # Jumps name a classic instruction, by how many are between.
            offset = skip
            if _is_jump(code):
                offset = starts[index + 1 + skip] - len(steps) - 1
            steps.append(_EXTENDED.pack(code, registers, offset, k))
    return b"".join(steps)


def load(program: bytes) -> int:
    """Return the descriptor of a program that translate() returned.

    Raises OSError: EPERM where this process may not (CAP_BPF, or kernel.unprivileged_bpf_disabled
    0), ENOSYS on machines whose number of the call is not known here.
    """
    number = NUMBERS["bpf"][platform.machine() == "aarch64"]
    if platform.machine() not in ("x86_64", "aarch64") or number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(_LICENSE)
    attributes = ctypes.create_string_buffer(
        _ATTRIBUTES.pack(
            _SOCKET_FILTER,
            len(program) // _EXTENDED.size,
            ctypes.addressof(instructions),
            ctypes.addressof(license_text),
        ),
        128,
    )
    fd: int = _libc.syscall(number, _PROG_LOAD, attributes, ctypes.sizeof(attributes))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


@lru_cache(maxsize=1)
def why_unavailable() -> str:
    """Return why this process may not load programs; "" where it may.

    Raises OSError where there is no descriptor for one: that says nothing about the next try.
    """
    try:
        os.close(load(translate(bpf.instruction(bpf.RETURN, 0))))
    except OSError as err:
        if err.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return "it has no CAP_BPF" if err.errno == errno.EPERM else os.strerror(err.errno or 0)
    return ""


# Code, registers, how many classic instructions a jump skips or the offset in memory, constant.
_Step = tuple[int, int, int, int]


def _body(code: int, if_true: int, if_false: int, k: int) -> list[_Step]:
    """Return the extended instructions for a classic one."""
    match code:
        case bpf.LOAD_WORD | bpf.LOAD_HALF | bpf.LOAD_BYTE:
            return [(code, 0, 0, k)]
        case bpf.LOAD_HALF_BEHIND:
            return [(code, _X << 4, 0, k)]
        case bpf.LOAD_HEADER_LENGTH:
            return [
                (_MOVE, _KEPT_A | _A << 4, 0, 0),
                (bpf.LOAD_BYTE, 0, 0, k),
                (_AND, _A, 0, 0xF),
                (_SHIFT_LEFT, _A, 0, 2),
                (_MOVE, _X | _A << 4, 0, 0),
                (_MOVE, _A | _KEPT_A << 4, 0, 0),
            ]
        case bpf.STORE:
            return [(_STORE, _FRAME | _A << 4, _slot(k), 0)]
        case bpf.RECALL:
            return [(_RECALL, _A | _FRAME << 4, _slot(k), 0)]
        case bpf.SHIFT_RIGHT | bpf.MULTIPLY | bpf.MODULO:
            return [(code, _A, 0, k)]
        case bpf.XOR_KEPT:
            return [(code, _A | _X << 4, 0, 0)]
        case bpf.KEEP:
            return [(_MOVE, _X | _A << 4, 0, 0)]
        case bpf.RECALL_KEPT:
            return [(_RECALL, _X | _FRAME << 4, _slot(k), 0)]
        case bpf.RETURN_LOADED:
            return [(_EXIT, 0, 0, 0)]
        case bpf.JUMP:
            return [(code, 0, k, 0)]
        case bpf.RETURN:
            return [(_SET, _A, 0, k), (_EXIT, 0, 0, 0)]
        case bpf.IF_EQUAL | bpf.IF_AT_LEAST | bpf.IF_ANY_BIT:
            if not if_true and code in _UNLESS:
                return [(_UNLESS[code], _A, if_false, k)]
            steps = [(_IF[code], _A, if_true, k)]
            return steps if not if_false else [*steps, (bpf.JUMP, 0, if_false, 0)]
        case _:
            raise ValueError(f"no translation of instruction {code:#x}")


def _is_jump(code: int) -> bool:
    return code == bpf.JUMP or code in _IF.values() or code in _UNLESS.values()


def _slot(k: int) -> int:
    """Return where a slot of the scratch memory is, from the frame pointer."""
    return -_SLOT_SIZE * (k + 1)


def _pack(code: int, destination: int, source: int = 0) -> bytes:
    return _EXTENDED.pack(code, destination | source << 4, 0, 0)
