"""What a worker without a filter could leave on its descriptors, and its successor's fate."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from lab.circuit import ADDRESSES_B, NAME, static_circuit
from lab.daemon import Velad
from lab.link import Interface
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

SYS_PIDFD_GETFD = 438
PORT = 48621
SO_ATTACH_FILTER, SO_LOCK_FILTER = 26, 44
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68
IFF_VNET_HDR_SIZE = 12
TUNSETPERSIST, TUNSETCARRIER = 0x400454CB, 0x400454E2
TUNSETOWNER, TUNSETGROUP = 0x400454CC, 0x400454CE
TUNATTACHFILTER, TUNSETTXFILTER = 0x401054D5, 0x400454D1
TUNSETVNETLE, TUNGETVNETLE = 0x400454DC, 0x800454DD
TUNSETSNDBUF, TUNSETVNETHDRSZ, TUNSETOFFLOAD = 0x400454D4, 0x400454D8, 0x400454D0
SIOCGIFHWADDR, SIOCSIFHWADDR = 0x8927, 0x8924
NOBODY = 65534
INT = struct.Struct("=i")
TIMEVAL = struct.Struct("@qq")

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Descriptors:
    """A worker's, in the test's hands."""

    tap: int
    receiving: socket.socket
    sending: socket.socket


@contextmanager
def descriptors(pid: int) -> Iterator[Descriptors]:
    with ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        sockets: dict[bool, socket.socket] = {}
        tap = -1
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if not target.startswith(("socket:", "/dev/net/tun")) or int(name) < 3:
                continue
            fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(name), 0)
            assert fd >= 0
            if target.startswith("/dev"):
                tap = fd
                stack.callback(os.close, fd)
                continue
            opened = stack.enter_context(socket.socket(fileno=fd))
            if opened.family != socket.AF_UNIX:
                sockets[opened.getsockname()[1] == PORT] = opened
        yield Descriptors(tap, sockets[True], sockets[False])


@contextmanager
def program(result: int) -> Iterator[bytes]:
    """A struct sock_fprog of one instruction, which returns result."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, result), 8)
    yield struct.pack("@HP", 1, ctypes.addressof(code))


def attach(opened: socket.socket, option: int, result: int) -> None:
    with program(result) as fprog:
        opened.setsockopt(socket.SOL_SOCKET, option, fprog)


def filter_tap(own: Descriptors) -> None:
    with program(0) as fprog:
        fcntl.ioctl(own.tap, TUNATTACHFILTER, fprog)


def set_mac(own: Descriptors, mac: str = "02deadbeef01") -> None:
    request = struct.pack("=16xH6s16x", 1, bytes.fromhex(mac))
    fcntl.ioctl(own.tap, SIOCSIFHWADDR, request)


LEFT: dict[str, Callable[[Descriptors], object]] = {
    "receive time-out": lambda own: own.receiving.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL.pack(0, 1000)
    ),
    "receiving does not block": lambda own: os.set_blocking(own.receiving.fileno(), False),
    "receive buffer": lambda own: own.receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1),
    "no GRO": lambda own: own.receiving.setsockopt(socket.IPPROTO_UDP, 104, 0),
    "no steering": lambda own: own.receiving.setsockopt(
        socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0
    ),
    "send time-out": lambda own: own.sending.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(0, 1)
    ),
    "sent elsewhere": lambda own: own.sending.connect(("10.201.0.77", 9)),
    "TAP does not block": lambda own: os.set_blocking(own.tap, False),
    "TAP takes little": lambda own: fcntl.ioctl(own.tap, TUNSETSNDBUF, INT.pack(1)),
    "TAP has another header": lambda own: fcntl.ioctl(
        own.tap, TUNSETVNETHDRSZ, INT.pack(IFF_VNET_HDR_SIZE)
    ),
    "TAP without offloads": lambda own: fcntl.ioctl(own.tap, TUNSETOFFLOAD, 0),
    "TAP has another byte order": lambda own: fcntl.ioctl(
        own.tap, TUNSETVNETLE, INT.pack(sys.byteorder != "little")
    ),
    "TAP gives nothing": filter_tap,
    # struct tun_filter: one address, that of the fourth host.
    "TAP gives little": lambda own: fcntl.ioctl(
        own.tap, TUNSETTXFILTER, struct.pack("=HH6s", 0, 1, bytes.fromhex("020000000004"))
    ),
    "MAC address": set_mac,
    "carrier": lambda own: fcntl.ioctl(own.tap, TUNSETCARRIER, INT.pack(0)),
}


def settings(own: Descriptors) -> dict[str, object]:
    """Return what can be asked of what LEFT changes."""
    found: dict[str, object] = {
        f"{name} {option}": opened.getsockopt(socket.SOL_SOCKET, option, 16)
        for name, opened in (("receiving", own.receiving), ("sending", own.sending))
        for option in (socket.SO_RCVBUF, socket.SO_RCVTIMEO, socket.SO_SNDBUF, socket.SO_SNDTIMEO)
    }
    found["blocking"] = [os.get_blocking(each.fileno()) for each in (own.receiving, own.sending)]
    found["gro"] = own.receiving.getsockopt(socket.IPPROTO_UDP, 104)
    found["to"] = own.sending.getpeername()
    found["tap blocking"] = os.get_blocking(own.tap)
    found["mac"] = fcntl.ioctl(own.tap, SIOCGIFHWADDR, bytes(40))[18:24]
    for name, request in (
        ("send buffer", 0x800454D3),
        ("header", 0x800454D7),
        ("byte order", TUNGETVNETLE),
    ):
        found[name] = fcntl.ioctl(own.tap, request, bytes(4))
    return found


def kill_and_await_successor(velad: Velad, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: velad.circuit(NAME)["worker"]["pid"] not in (None, pid), 10.0, "the successor"
    )


@pytest.mark.parametrize("engine", ["native", "python"])
def test_successor_finds_the_descriptors_as_they_were(routers: TwoRouters, engine: str) -> None:
    """Whatever they were left like; with a filter no worker can change any of it."""
    with static_circuit(routers, engine=engine) as circuit:
        velad = circuit.b.velad
        interface = Interface(routers.b.namespace, NAME)
        pid = velad.worker_pid(NAME)
        with descriptors(pid) as own:
            before = settings(own)
            for name, leave in LEFT.items():
                if engine == "python" and name in ("TAP has another header",):
                    continue
                leave(own)
            assert settings(own) != before
            kill_and_await_successor(velad, pid)
            eventually(lambda: settings(own) == before, 5.0, f"{before}")

        assert interface.carrier
        address = ADDRESSES_B[0].partition("/")[0]
        # Which would deliver, too, what is steered to no worker.
        os.kill(velad.pid, signal.SIGSTOP)
        try:
            assert ping(routers.a.namespace, address, count=5).lost == 0
        finally:
            os.kill(velad.pid, signal.SIGCONT)
        assert velad.circuit(NAME)["worker"]["restarts"] == 1


def test_kernel_refuses_programs_on_the_socket_that_a_worker_receives_on(
    routers: TwoRouters,
) -> None:
    """Neither a filter, which could be locked for all successors, nor the group's steering."""
    with (
        static_circuit(routers) as circuit,
        descriptors(circuit.b.velad.worker_pid(NAME)) as own,
    ):
        for option in (SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF):
            with pytest.raises(PermissionError):
                attach(own.receiving, option, 0)
        with pytest.raises(PermissionError):
            own.receiving.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 0)

        # The supervisor steers nevertheless, by a socket of its own.
        kill_and_await_successor(circuit.b.velad, circuit.b.velad.worker_pid(NAME))
        address = ADDRESSES_B[0].partition("/")[0]
        assert ping(routers.a.namespace, address, count=5).lost == 0
        assert "descriptors_not_restored" not in circuit.b.velad.log()


def test_interface_goes_with_velad_though_a_worker_made_it_stay(routers: TwoRouters) -> None:
    with static_circuit(routers) as circuit:
        velad = circuit.b.velad
        with descriptors(velad.worker_pid(NAME)) as own:
            fcntl.ioctl(own.tap, TUNSETPERSIST, 1)
        names = routers.b.namespace.run("ip", "-o", "link").stdout
        assert NAME in names

        assert velad.stop() == 0

        assert NAME not in routers.b.namespace.run("ip", "-o", "link").stdout


CHANGED: dict[str, tuple[str, Callable[[Descriptors], object]]] = {
    "mac": ("mac", set_mac),
    "stays": ("persistence", lambda own: fcntl.ioctl(own.tap, TUNSETPERSIST, 1)),
    "nobody's": ("owner", lambda own: fcntl.ioctl(own.tap, TUNSETOWNER, NOBODY)),
    "nogroup's": ("owner", lambda own: fcntl.ioctl(own.tap, TUNSETGROUP, NOBODY)),
    "carrier": ("", lambda own: fcntl.ioctl(own.tap, TUNSETCARRIER, INT.pack(0))),
}


def shown(routers: TwoRouters) -> dict[str, object]:
    """What everybody sees of the interface, but counters."""
    text = routers.b.namespace.run("ip", "-d", "-j", "link", "show", "dev", NAME).stdout
    (link,) = json.loads(text)
    tun = link["linkinfo"]["info_data"]
    return {
        "mac": link["address"],
        "carrier": "LOWER_UP" in link["flags"],
        **{each: tun.get(each) for each in ("persist", "user", "group")},
    }


@pytest.mark.parametrize("change", CHANGED)
def test_interface_that_a_worker_changed_is_put_back_while_the_worker_lives(
    routers: TwoRouters, change: str
) -> None:
    what, make = CHANGED[change]
    with static_circuit(routers) as circuit:
        velad = circuit.b.velad
        before = shown(routers)
        with descriptors(velad.worker_pid(NAME)) as own:
            make(own)
            eventually(lambda: shown(routers) == before, 5.0, f"{before}")

        assert velad.circuit(NAME)["worker"]["restarts"] == 0
        lines = [each for each in velad.log().splitlines() if "interface_restored" in each]
        assert [what in each for each in lines] == [True] * bool(what)


def test_interface_changed_without_a_pause_costs_three_lines_of_log(routers: TwoRouters) -> None:
    with static_circuit(routers) as circuit:
        velad = circuit.b.velad
        before = shown(routers)
        with descriptors(velad.worker_pid(NAME)) as own:
            until = time.monotonic() + 2.0
            times = 0
            while time.monotonic() < until:
                set_mac(own, f"02dead{times & 0xFFFFFF:06x}")
                times += 1
            # It is not deaf to anything else.
            assert velad.circuit(NAME)["state"] == "unmonitored"
            eventually(lambda: shown(routers) == before, 5.0, f"{before}")

        assert times > 100
        assert velad.log().count("interface_restored") == 3


def test_interface_is_nobodys_but_roots(routers: TwoRouters) -> None:
    """Who may open it matters where velad was killed and somebody made the interface stay."""
    with static_circuit(routers):
        assert (shown(routers)["user"], shown(routers)["group"]) == ("root", "root")
