"""vela.linux.underlay: groups of listening sockets and sending sockets, against the kernel."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from exhaustion import no_descriptors

from lab.namespace import Namespace
from lab.topology import TwoRouters
from vela.address import Endpoint, Family
from vela.errors import DeviceError
from vela.linux.features import ALL_FEATURES, Feature, Features, probe
from vela.linux.steering import Route as Steer
from vela.linux.steering import steering_program
from vela.linux.underlay import ReceiveGroup, find_route, namespace_number, open_send_socket

TIMEOUT_S = 5.0
ANY = ip_address("::")
LOCALHOST = ip_address("127.0.0.1")
LOCALHOST6 = ip_address("::1")


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def group_of(stack: ExitStack, address: str = "::", *, only_ipv6: bool = False) -> ReceiveGroup:
    made = ReceiveGroup(ip_address(address), free_port(), only_ipv6=only_ipv6)
    stack.callback(made.close)
    return made


def sender(stack: ExitStack, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    made.bind((address, 0))
    return made


def received(each: socket.socket) -> bytes:
    assert select.select([each], [], [], TIMEOUT_S)[0]
    return each.recv(2048)


def readable(each: socket.socket) -> bool:
    return bool(select.select([each], [], [], 0)[0])


def test_group_index_means_the_same_socket_through_release_and_acquire(stack: ExitStack) -> None:
    group = group_of(stack)
    indices = [group.acquire() for _ in range(4)]
    sockets = {index: group.member(index) for index in indices}
    # Behind the three of the supervisor.
    assert sorted(indices) == [3, 4, 5, 6]

    group.release(4)
    group.release(6)
    assert {group.acquire(), group.acquire()} == {4, 6}
    assert group.acquire() == 7

    source = sender(stack, "127.0.0.1")
    group.steer(steering_program([Steer(LOCALHOST, index, index) for index in range(3, 8)]).program)
    for index in (7, 5, 3, 6, 4):
        source.sendto(bytes([index]), ("127.0.0.1", group.port))
        assert received(group.member(index)) == bytes([index])
        assert index == 7 or group.member(index) is sockets[index]
    source.sendto(b"\x09", ("127.0.0.1", group.port))
    assert received(group.control_socket) == b"\x09"


def test_socket_that_was_released_comes_back_empty_and_blocking(stack: ExitStack) -> None:
    group, source = group_of(stack), sender(stack, "127.0.0.1")
    index = group.acquire()
    group.steer(steering_program([Steer(LOCALHOST, 1, index)]).program)
    for size in (0, 1, 1400):
        source.sendto(b"\x01" * size, ("127.0.0.1", group.port))
    source.sendto(b"\x01 last", ("127.0.0.1", group.port))
    assert select.select([group.member(index)], [], [], TIMEOUT_S)[0]

    group.release(index)

    assert group.acquire() == index
    assert not readable(group.member(index))
    assert group.member(index).getblocking()
    assert not group.control_socket.getblocking()


@pytest.mark.parametrize("shares", [False, True])
def test_group_on_a_port_that_is_taken_says_so(stack: ExitStack, shares: bool) -> None:
    """Also by a process that would share it: a second velad."""
    other = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
    other.bind(("::", 0))
    port = other.getsockname()[1]
    holder = stack.enter_context(subprocess.Popen(("sleep", "60"), pass_fds=(other.fileno(),)))
    stack.callback(holder.kill)
    # Nothing is said of the process that asks, and psutil names one of those that share a socket.
    other.close()

    with pytest.raises(DeviceError) as caught:
        ReceiveGroup(ANY, port, only_ipv6=False)

    said = f"cannot listen on [::]:{port}: Address already in use: sleep, pid {holder.pid}"
    assert str(caught.value) == said


def test_group_on_an_address_that_is_not_here_says_so() -> None:
    with pytest.raises(DeviceError) as caught:
        ReceiveGroup(ip_address("192.0.2.1"), 48621, only_ipv6=False)

    assert str(caught.value) == (
        "cannot listen on 192.0.2.1:48621: Cannot assign requested address"
    )


def test_group_closed_frees_its_port(stack: ExitStack) -> None:
    group = group_of(stack)
    group.acquire()
    group.close()

    with closing(ReceiveGroup(ANY, group.port, only_ipv6=False)):
        pass


@pytest.mark.parametrize(
    ("address", "only_ipv6", "hears"),
    [
        ("::", False, {"127.0.0.1", "::1"}),
        ("::", True, {"::1"}),
        ("127.0.0.1", False, {"127.0.0.1"}),
        ("::1", False, {"::1"}),
    ],
)
def test_group_hears_the_families_that_it_serves(
    stack: ExitStack, address: str, only_ipv6: bool, hears: set[str]
) -> None:
    group = group_of(stack, address, only_ipv6=only_ipv6)
    group.steer(steering_program(()).program)
    assert group.serves(Family.IPV4) is ("127.0.0.1" in hears)
    assert group.serves(Family.IPV6) is ("::1" in hears)

    for source in ("127.0.0.1", "::1"):
        sender(stack, source).sendto(source.encode(), (source, group.port))
    heard = set()
    while readable(group.control_socket):
        heard.add(group.control_socket.recv(100).decode())

    assert heard == hears


@pytest.mark.parametrize(
    ("address", "remote", "sockaddr"),
    [
        ("::", "192.0.2.9", "::ffff:192.0.2.9"),
        ("::", "2001:db8::9", "2001:db8::9"),
        ("0.0.0.0", "192.0.2.9", "192.0.2.9"),
    ],
)
def test_sockaddr_suits_the_groups_sockets(
    stack: ExitStack, address: str, remote: str, sockaddr: str
) -> None:
    group = group_of(stack, address)

    assert group.sockaddr(Endpoint(ip_address(remote), 48621)) == (sockaddr, 48621)


@pytest.mark.parametrize("remote", [LOCALHOST, LOCALHOST6])
def test_send_socket_sends_from_its_port_and_receives_nothing(
    stack: ExitStack, remote: object
) -> None:
    address = str(remote)
    far = sender(stack, address)
    port = free_port()
    opened = open_send_socket(ANY, port, Endpoint(ip_address(address), far.getsockname()[1]))
    stack.enter_context(opened)

    opened.send(b"a frame")
    data, source = far.recvfrom(100)
    assert (data, source[:2]) == (b"a frame", (address, port))
    assert opened.getblocking()

    # From the very address that it is connected to; what follows shows that it had arrived.
    far.sendto(b"stray", (address, port))
    far.sendto(b"to itself", far.getsockname()[:2])
    assert received(far) == b"to itself"
    assert not readable(opened)


def test_send_socket_on_a_port_that_is_taken_raises(stack: ExitStack) -> None:
    other = sender(stack, "0.0.0.0")

    with pytest.raises(OSError, match="in use") as caught:
        open_send_socket(ANY, other.getsockname()[1], Endpoint(LOCALHOST, 48621))

    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.needs_net_admin
def test_find_route_tells_source_and_mtu_of_each_family(routers: TwoRouters) -> None:
    a, b = routers.a, routers.b
    a.namespace.run("ip", "route", "add", "192.0.2.0/24", "via", b.ipv4, "mtu", "1400")
    with a.namespace.entered():
        on_link = find_route(ANY, Endpoint(ip_address(b.ipv4), 48621))
        on_link6 = find_route(ANY, Endpoint(ip_address(b.ipv6), 48621))
        narrow = find_route(ANY, Endpoint(ip_address("192.0.2.9"), 48621))
        with pytest.raises(OSError, match="unreachable") as caught:
            find_route(ANY, Endpoint(ip_address("198.51.100.9"), 48621))

    assert (str(on_link.source), on_link.mtu) == ("10.201.0.1", 1500)
    assert (str(on_link6.source), on_link6.mtu) == ("fd00:201::1", 1500)
    assert (str(narrow.source), narrow.mtu) == ("10.201.0.1", 1400)
    assert caught.value.errno == errno.ENETUNREACH


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("family", list(Family))
def test_datagram_above_the_mtu_is_fragmented_not_refused(
    routers: TwoRouters, family: Family
) -> None:
    """Also where the system's default (ip_no_pmtu_disc) would send without."""
    a, b = routers.a, routers.b
    a.namespace.sysctl("net/ipv4/ip_no_pmtu_disc", 1)
    far = ip_address(b.ipv4 if family is Family.IPV4 else b.ipv6)
    with b.namespace.entered():
        group = ReceiveGroup(ANY, 48621, only_ipv6=False)
    group.steer(steering_program(()).program)
    with a.namespace.entered():
        sending = open_send_socket(ANY, 50000, Endpoint(far, 48621))
    with sending, closing(group):
        sending.send(bytes(8972))

        assert select.select([group.control_socket], [], [], TIMEOUT_S)[0]
        assert len(group.control_socket.recv(65536)) == 8972


def test_group_without_descriptors_is_refused_in_words_and_leaves_nothing(
    stack: ExitStack,
) -> None:
    port = free_port()
    with no_descriptors(), pytest.raises(DeviceError, match=r"cannot listen on .*: Too many open"):
        ReceiveGroup(ANY, port, only_ipv6=False)

    group = ReceiveGroup(ANY, port, only_ipv6=False)
    stack.callback(group.close)
    group.acquire()
    with no_descriptors(), pytest.raises(DeviceError, match=r"cannot listen on .*: Too many open"):
        group.acquire()
    assert group.acquire() == 4


def test_group_of_ipv6_where_the_kernel_has_none_says_what_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after ipv6.disable=1 on the kernel's command line."""
    make = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with pytest.raises(DeviceError) as caught:
        ReceiveGroup(ANY, 48621, only_ipv6=False)

    assert str(caught.value) == (
        "cannot listen on [::]:48621: this kernel has no IPv6; "
        'daemon.listen = ["0.0.0.0"] would be right'
    )


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("cookies", [True, False])
def test_namespaces_have_numbers_of_their_own_with_cookies_and_without(cookies: bool) -> None:
    features: Features = frozenset({Feature.NETNS_COOKIE} & probe()) if cookies else frozenset()
    numbers = [namespace_number(features)]
    for _ in range(2):
        with Namespace("number") as namespace, namespace.entered():
            numbers.append(namespace_number(features))
            assert namespace_number(features) == numbers[-1]
            with Namespace("other") as other, other.entered():
                numbers.append(namespace_number(features))

    # Of namespaces that are gone the inodes are used again.
    assert len(set(numbers[:3])) == 3


@pytest.mark.skipif(
    not Path("/proc/sys/net/core/dev_weight").exists(),
    reason="not in the first network namespace",
)
def test_first_namespace_is_1_whatever_cookie_the_kernel_gives_it() -> None:
    """3 by Linux 6.18, 1 by those before: a MAC address that is derived of it must not change."""
    assert namespace_number(frozenset()) == namespace_number(ALL_FEATURES) == 1
