"""Classic BPF: the instructions in use, and how the kernel takes a program.

Linux, Documentation/networking/filter.rst; include/uapi/linux/bpf_common.h and filter.h.
"""

from __future__ import annotations

import ctypes
import struct

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
FURTHEST = 255  # instructions that jt and jf can skip: one byte each
INSTRUCTION_SIZE = 8

# Each is a sum of class, size or operation, and mode or source.
LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
LOAD_HALF = 0x28  # BPF_LD | BPF_H | BPF_ABS
LOAD_HALF_BEHIND = 0x48  # BPF_LD | BPF_H | BPF_IND: at X and an offset
LOAD_HEADER_LENGTH = 0xB1  # BPF_LDX | BPF_B | BPF_MSH: X is four times the low nibble
LOAD_BYTE = 0x30  # BPF_LD | BPF_B | BPF_ABS
RECALL = 0x60  # BPF_LD | BPF_W | BPF_MEM
STORE = 0x02  # BPF_ST
SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
MULTIPLY = 0x24  # BPF_ALU | BPF_MUL | BPF_K
MODULO = 0x94  # BPF_ALU | BPF_MOD | BPF_K
XOR_KEPT = 0xAC  # BPF_ALU | BPF_XOR | BPF_X
KEEP = 0x07  # BPF_MISC | BPF_TAX: X is what is loaded
RECALL_KEPT = 0x61  # BPF_LDX | BPF_W | BPF_MEM: likewise, of the scratch memory
JUMP = 0x05  # BPF_JMP | BPF_JA
IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
RETURN_LOADED = 0x16  # BPF_RET | BPF_A

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_FPROG = struct.Struct("@HP")  # struct sock_fprog


def instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return a struct sock_filter; if_true and if_false are numbers of instructions to skip."""
    return _INSTRUCTION.pack(code, if_true, if_false, k)


class Fprog:
    """A struct sock_fprog, and the memory that it points to."""

    def __init__(self, program: bytes) -> None:
        """Take an array of struct sock_filter."""
        self.instructions = bytearray(program)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.instructions))
        self.raw = _FPROG.pack(len(program) // INSTRUCTION_SIZE, address)
