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
import sys

from vela.linux import seccomp
from vela.linux.seccomp import Filter, Rule, equals, fail, has_bit_of

_PR_SET_NO_NEW_PRIVS = 38

SUPPORTED = not seccomp.why_not()

_TUNSETOFFLOAD, _TUN_F_TSO, _TUN_F_USO = 0x400454D0, 0x02 | 0x04, 0x20 | 0x40
_RWF_NOWAIT = 0x08
_IPPROTO_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_SOL_SOCKET, _SO_NETNS_COOKIE = 1, 71

_REFUSALS = {
    "rwf_nowait": fail(errno.EOPNOTSUPP, "preadv2", has_bit_of(5, _RWF_NOWAIT)),
    "tso": fail(errno.EINVAL, "ioctl", equals(1, _TUNSETOFFLOAD), has_bit_of(2, _TUN_F_TSO)),
    "uso": fail(errno.EINVAL, "ioctl", equals(1, _TUNSETOFFLOAD), has_bit_of(2, _TUN_F_USO)),
    "udp_segment": fail(
        errno.ENOPROTOOPT, "setsockopt", equals(1, _IPPROTO_UDP), equals(2, _UDP_SEGMENT)
    ),
    "udp_gro": fail(errno.ENOPROTOOPT, "setsockopt", equals(1, _IPPROTO_UDP), equals(2, _UDP_GRO)),
    "netns_cookie": fail(
        errno.ENOPROTOOPT, "getsockopt", equals(1, _SOL_SOCKET), equals(2, _SO_NETNS_COOKIE)
    ),
}

FEATURES = tuple(sorted(_REFUSALS))

# As a kernel, or a container, in which nobody can filter system calls.
SECCOMP = fail(errno.ENOSYS, "seccomp")


def lack(*features: str) -> None:
    """Let this process, and all that it starts, find these features missing from now on."""
    refuse(*(_REFUSALS[feature] for feature in features))


def refuse(*rules: Rule) -> None:
    """Let these rules hold for this process, and all that it starts, from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    Filter(seccomp.program(rules, seccomp.ALLOW)).install()


if __name__ == "__main__":
    wanted = sys.argv[1].split(",")
    refuse(*(SECCOMP if each == "seccomp" else _REFUSALS[each] for each in wanted))
    os.execvp(sys.argv[2], sys.argv[2:])
