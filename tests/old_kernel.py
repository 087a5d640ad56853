"""Runs a program as on a kernel that lacks features: a seccomp filter answers in its place.

    old_kernel.py FEATURE,FEATURE... COMMAND [ARGUMENT...]

Whatever the program starts is under the filter as well. It says what the kernels themselves say
(EOPNOTSUPP, EINVAL, ENOPROTOOPT), so nothing of VELA is replaced. What stands behind a pointer a
filter cannot see: a send with UDP_SEGMENT, or a frame of UDP GSO frame's kind, would still pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # include/uapi/linux/seccomp.h
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # include/uapi/linux/bpf_common.h
_INSTRUCTION = struct.Struct("=HBBI")
_FPROG = struct.Struct("@HP")
_NUMBER, _ARGUMENTS = 0, 16  # offsets in struct seccomp_data

# By machine: preadv2, ioctl, setsockopt, getsockopt.
_CALLS = {"x86_64": (327, 16, 54, 55), "aarch64": (286, 29, 208, 209)}
_PREADV2, _IOCTL, _SETSOCKOPT, _GETSOCKOPT = _CALLS.get(platform.machine(), (0, 0, 0, 0))

SUPPORTED = platform.machine() in _CALLS

_TUNSETOFFLOAD, _TUN_F_TSO, _TUN_F_USO = 0x400454D0, 0x02 | 0x04, 0x20 | 0x40
_RWF_NOWAIT = 0x08
_IPPROTO_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_SOL_SOCKET, _SO_NETNS_COOKIE = 1, 71

# What fails: a call whose arguments all match, by number and value or bits; and how.
_REFUSALS = {
    "rwf_nowait": (_PREADV2, ((5, _ANY_BIT, _RWF_NOWAIT),), errno.EOPNOTSUPP),
    "tso": (_IOCTL, ((1, _EQUAL, _TUNSETOFFLOAD), (2, _ANY_BIT, _TUN_F_TSO)), errno.EINVAL),
    "uso": (_IOCTL, ((1, _EQUAL, _TUNSETOFFLOAD), (2, _ANY_BIT, _TUN_F_USO)), errno.EINVAL),
    "udp_segment": (
        _SETSOCKOPT,
        ((1, _EQUAL, _IPPROTO_UDP), (2, _EQUAL, _UDP_SEGMENT)),
        errno.ENOPROTOOPT,
    ),
    "udp_gro": (
        _SETSOCKOPT,
        ((1, _EQUAL, _IPPROTO_UDP), (2, _EQUAL, _UDP_GRO)),
        errno.ENOPROTOOPT,
    ),
    "netns_cookie": (
        _GETSOCKOPT,
        ((1, _EQUAL, _SOL_SOCKET), (2, _EQUAL, _SO_NETNS_COOKIE)),
        errno.ENOPROTOOPT,
    ),
}

FEATURES = tuple(sorted(_REFUSALS))


def lack(*features: str) -> None:
    """Let this process, and all that it starts, find these features missing from now on."""
    program = b"".join(_refusal(feature) for feature in features)
    program += _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(
        _FPROG.pack(len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog, 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({arguments[0]})")


def _refusal(feature: str) -> bytes:
    """Return instructions that answer one call, and fall through for any other."""
    number, arguments, error = _REFUSALS[feature]
    tests = [(_NUMBER, _EQUAL, number)]
    # Little endian: the lower half of a 64-bit argument comes first.
    tests += [(_ARGUMENTS + 8 * index, how, value) for index, how, value in arguments]
    code = b""
    for behind, (offset, how, value) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
        code += _INSTRUCTION.pack(_LOAD, 0, 0, offset)
        code += _INSTRUCTION.pack(how, 0, 2 * behind + 1, value)
    return code + _INSTRUCTION.pack(_RETURN, 0, 0, _ERRNO | error)


if __name__ == "__main__":
    lack(*sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
