"""The lab itself: what it makes works, what it reports is so, and nothing of it stays behind."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from pathlib import Path

import pytest

from lab import headers
from lab.bad_underlay import Every, Hits, bad_underlay
from lab.capture import Capture, Packet
from lab.copying import BLOCK, content, copy
from lab.daemon import ROOT, Velad, with_files
from lab.datagrams import VELA_PORT, send_joined, udp_socket
from lab.errors import LabError
from lab.frames import Outlet
from lab.injector import Injector
from lab.link import Interface, Regime
from lab.load import iperf3, kernel_counts, ping
from lab.namespace import Namespace, existing
from lab.stream import Stream
from lab.topology import TwoRouters, bridged_host, routed_host, three_routers, two_routers
from lab.waiting import eventually

pytest_plugins = ["pytester"]
needs_net_admin = pytest.mark.needs_net_admin


def payload_of(packet: Packet) -> bytes | None:
    found = headers.datagram(packet.data)
    return found.udp.payload if found else None


@needs_net_admin
def test_namespace_after_an_exception_is_gone_with_its_processes() -> None:
    namespace = Namespace()
    process = namespace.popen("sleep", "60")

    with pytest.raises(LabError), namespace:
        namespace.run("false")

    assert namespace.name not in existing()
    assert process.returncode == -15


@needs_net_admin
def test_namespace_removed_ends_a_grandchild_that_ignores_sigterm() -> None:
    with Namespace() as namespace:
        shell = namespace.popen("sh", "-c", "trap '' TERM; sleep 60 & echo $!; exit 0", stdout=-1)
        assert shell.stdout is not None
        grandchild = os.pidfd_open(int(shell.stdout.readline()))

    try:
        assert select.select([grandchild], [], [], 0)[0] == [grandchild]
    finally:
        os.close(grandchild)


@needs_net_admin
def test_namespace_removed_leaves_a_stranger_alive() -> None:
    with Namespace() as namespace:
        namespace.popen("sleep", "60")
        stranger = subprocess.Popen(namespace.command("sleep", "60"))
        eventually(lambda: stranger.pid in namespace.pids(), 5, "the stranger to be inside")

    try:
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@needs_net_admin
def test_namespace_of_a_process_that_exits_is_gone() -> None:
    code = "from lab.namespace import Namespace; print(Namespace('left').name)"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip().endswith("-left")
    assert done.stdout.strip() not in existing()


@needs_net_admin
def test_run_of_a_failing_command_says_what_it_said() -> None:
    with Namespace() as namespace, pytest.raises(LabError, match=r"exit status 3: no such luck"):
        namespace.run("sh", "-c", "echo no such luck >&2; exit 3")


@needs_net_admin
def test_entered_opens_sockets_inside_and_comes_back() -> None:
    def here() -> int:
        return Path("/proc/thread-self/ns/net").stat().st_ino

    outside = here()
    with Namespace() as namespace:
        with namespace.entered():
            assert here() != outside

            # A port number that means something else out here can be bound in there.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
                inside.bind(("127.0.0.1", 48621))
        assert here() == outside


@needs_net_admin
def test_ping_across_the_cable_is_answered(routers: TwoRouters) -> None:
    ipv4 = ping(routers.a.namespace, "10.201.0.2", count=3)
    ipv6 = ping(routers.a.namespace, "fd00:201::2", count=3)

    assert (ipv4.transmitted, ipv4.received, len(ipv4.rtt_ms)) == (3, 3, 3)
    assert (ipv6.transmitted, ipv6.received, len(ipv6.rtt_ms)) == (3, 3, 3)


@needs_net_admin
def test_ping_size_counts_the_ip_header(routers: TwoRouters) -> None:
    for address in ("10.201.0.2", "fd00:201::2"):
        fits = ping(routers.a.namespace, address, count=1, size=1500, dont_fragment=True)
        exceeds = ping(routers.a.namespace, address, count=1, size=1501, dont_fragment=True)

        assert (fits.received, exceeds.received) == (1, 0)


@needs_net_admin
@pytest.mark.parametrize("address", ["10.201.0.2", "fd00:201::2"])
def test_ping_counts_a_last_reply_for_which_ping_does_not_wait(
    routers: TwoRouters, address: str
) -> None:
    a = routers.a.namespace
    routers.b.namespace.sysctl("net/ipv4/icmp_echo_ignore_all", 1)
    routers.b.namespace.sysctl("net/ipv6/icmp/echo_ignore_all", 1)
    with (
        ThreadPoolExecutor(1) as executor,
        Capture(routers.b.underlay) as requests,
        Injector(routers.b.underlay) as injector,
    ):

        def answer() -> None:
            for number in (1, 2, 3):
                request = requests.wait_for_count(lambda packet: is_echo(packet.data), number)[-1]
                if number == 3:
                    eventually(lambda: not a.pids(), 10, "ping to end")
                injector.send(answered(request.data))

        answering = executor.submit(answer)
        pings = ping(a, address, count=3, interval_s=0.1)
        answering.result()

    assert (pings.transmitted, pings.received) == (3, 3)
    # On a busy machine ping may not wait for others, either.
    assert len(pings.rtt_ms) < 3


# RFC 792 and RFC 4443, sections 4.1 and 4.2: where the type is, of a request and of a reply.
ECHO = {b"\x08\x00": (34, 8, 0), b"\x86\xdd": (54, 128, 129)}


def is_echo(frame: bytes) -> bool:
    position, request, _ = ECHO.get(frame[12:14], (0, -1, 0))
    protocol = frame[23] if frame[12:14] == b"\x08\x00" else frame[20]
    return protocol in (1, 58) and frame[position] == request


def answered(frame: bytes) -> bytes:
    """Return the reply to an echo request."""
    position, request, reply = ECHO[frame[12:14]]
    width = 4 if position == 34 else 16
    source, destination = position - 2 * width, position - width
    made = bytearray(frame)
    made[:6], made[6:12] = frame[6:12], frame[:6]
    made[source:destination], made[destination:position] = (
        frame[destination:position],
        frame[source:destination],
    )
    made[position] = reply
    # RFC 1624, equation 3: a sum in which one word has changed.
    old = int.from_bytes(frame[position + 2 : position + 4])
    total = (old ^ 0xFFFF) + (request << 8 ^ 0xFFFF) + (reply << 8)
    total = (total & 0xFFFF) + (total >> 16)
    made[position + 2 : position + 4] = ((total & 0xFFFF) + (total >> 16) ^ 0xFFFF).to_bytes(2)
    return bytes(made)


@needs_net_admin
def test_ping_without_a_route_raises(routers: TwoRouters) -> None:
    with pytest.raises(LabError, match="unreachable"):
        ping(routers.a.namespace, "192.0.2.1", count=1)


@needs_net_admin
def test_capture_sees_a_datagram_on_both_ends_of_the_cable(routers: TwoRouters) -> None:
    with (
        Capture(routers.a.underlay) as leaving,
        Capture(routers.b.underlay) as arriving,
        routers.a.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.bind(("10.201.0.1", 50000))
        sender.sendto(b"\x01vela", ("10.201.0.2", 48621))
        left = leaving.wait_for(lambda packet: payload_of(packet) == b"\x01vela")
        arrived = arriving.wait_for(lambda packet: payload_of(packet) == b"\x01vela")

    assert (left.outgoing, arrived.outgoing) == (True, False)
    assert left.data == arrived.data
    assert 0 < left.time_ns <= arrived.time_ns
    assert len(arrived.data) == 14 + 20 + 8 + 5
    assert headers.parse_ethernet(arrived.data).source == routers.a.underlay.mac
    found = headers.datagram(arrived.data)
    assert found is not None
    assert (found.ip.source, found.udp.source_port) == (IPv4Address("10.201.0.1"), 50000)
    assert (found.ip.destination, found.udp.destination_port) == (IPv4Address("10.201.0.2"), 48621)


@needs_net_admin
def test_capture_of_a_datagram_over_ipv6_is_parsed(routers: TwoRouters) -> None:
    with (
        Capture(routers.b.underlay) as arriving,
        routers.a.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"\x02six", ("fd00:201::2", 48621))
        arrived = arriving.wait_for(lambda packet: payload_of(packet) == b"\x02six")

    found = headers.datagram(arrived.data)
    assert found is not None
    assert found.ip.source == IPv6Address("fd00:201::1")


@needs_net_admin
def test_capture_of_a_tagged_frame_shows_the_tag(routers: TwoRouters) -> None:
    frame = bytes.fromhex("ffffffffffff 02005e100001 8100 2064 88b5") + bytes(46)

    with (
        Capture(routers.b.underlay) as arriving,
        routers.a.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
    ):
        sender.bind(("eth0", 0))
        sender.send(frame)
        arrived = arriving.wait_for(lambda packet: packet.data[6:12] == frame[6:12])

    assert arrived.data == frame
    assert headers.parse_ethernet(arrived.data).vlan == 0x2064


@needs_net_admin
def test_stream_has_sent_what_it_says(routers: TwoRouters) -> None:
    with Outlet(routers.b.underlay) as outlet:
        with Stream(routers.a.underlay, "even", 0.001) as stream:
            eventually(lambda: len(outlet.frames()) >= 20, 10, "20 frames")
        eventually(lambda: len(outlet.frames()) >= stream.sent, 10, "all of them")

    assert outlet.frames() == [("even", number) for number in range(stream.sent)]


@needs_net_admin
def test_stream_whose_interface_goes_away_ends_early(routers: TwoRouters) -> None:
    with Stream(routers.a.underlay, "early", 0.001) as stream:
        routers.a.namespace.run("ip", "link", "delete", "eth0")

    assert stream.sent > 0


@needs_net_admin
def test_stream_that_cannot_send_raises(routers: TwoRouters) -> None:
    routers.a.underlay.set_mtu(68)

    with pytest.raises(LabError, match="Message too long"), Stream(routers.a.underlay, "big", 0.01):
        pass


@needs_net_admin
def test_capture_that_waits_in_vain_raises(routers: TwoRouters) -> None:
    with (
        Capture(routers.a.underlay) as capture,
        pytest.raises(LabError, match=r"saw 0 of 1 in 0\.3 s of a unicorn"),
    ):
        capture.wait_for(lambda packet: False, 0.1, "a unicorn")


@needs_net_admin
def test_link_down_takes_the_carrier_of_the_other_end(routers: TwoRouters) -> None:
    routers.a.underlay.set_down()
    assert not routers.b.underlay.carrier

    routers.a.underlay.set_up()
    assert routers.b.underlay.carrier


@needs_net_admin
def test_routers_with_a_jumbo_mtu_carry_it_whole() -> None:
    with two_routers(mtu=9000) as routers:
        assert routers.b.underlay.mtu == 9000
        assert ping(routers.a.namespace, "10.201.0.2", size=9000, dont_fragment=True).lost == 0


@needs_net_admin
def test_regime_wire_splits_tcp_before_the_cable() -> None:
    def largest(regime: Regime) -> int:
        with two_routers(regime=regime) as routers, Capture(routers.a.underlay) as capture:
            iperf3(routers.b.namespace, routers.a.namespace, "10.201.0.2", seconds=1)
            sent = [packet for packet in capture.packets() if packet.outgoing]
            return max(len(packet.data) for packet in sent)

    assert largest(Regime.WIRE) == 14 + 1500
    assert largest(Regime.OFFLOAD) > 14 + 1500


@needs_net_admin
def test_regime_frames_carries_single_datagrams_of_one_buffer(framed: TwoRouters) -> None:
    batch = [bytes([number]) * 100 for number in range(60)]
    with (
        Capture(framed.a.underlay) as leaving,
        Capture(framed.b.underlay) as arriving,
        udp_socket(framed.a.namespace, framed.a.ipv4) as sender,
        udp_socket(framed.b.namespace, framed.b.ipv4, VELA_PORT),
    ):
        send_joined(sender, batch, framed.b.ipv4)

        for capture in (leaving, arriving):
            seen = capture.wait_for_count(lambda packet: payload_of(packet) is not None, 60)
            assert [payload_of(packet) for packet in seen] == batch


@needs_net_admin
def test_iperf3_over_a_limited_rate_measures_it(routers: TwoRouters) -> None:
    routers.a.underlay.set_rate("50mbit")

    measured = iperf3(routers.b.namespace, routers.a.namespace, "10.201.0.2", seconds=1)

    assert 5e6 < measured.received_bits_per_s < 60e6


@needs_net_admin
def test_iperf3_over_udp_counts_packets(routers: TwoRouters) -> None:
    measured = iperf3(
        routers.b.namespace,
        routers.a.namespace,
        "10.201.0.2",
        seconds=1,
        udp=True,
        bitrate="8M",
        length=1000,
    )

    # 8 Mbit/s in datagrams of 8000 bits: a thousand a second, fewer where the machine paused.
    assert 100 <= measured.packets <= 1100 * measured.seconds
    # On a busy machine its server's socket may run over.
    assert 0 <= measured.lost_packets <= kernel_counts(routers.b.namespace, "UdpRcvbufErrors")


@needs_net_admin
def test_iperf3_without_a_route_raises(routers: TwoRouters) -> None:
    with pytest.raises(LabError, match=r"iperf3: .*unreachable"):
        iperf3(routers.b.namespace, routers.a.namespace, "192.0.2.1")


@needs_net_admin
def test_three_routers_reach_one_another_through_the_switch() -> None:
    with three_routers() as routers:
        assert ping(routers.a.namespace, "10.201.0.2").lost == 0
        assert ping(routers.b.namespace, "10.201.0.3").lost == 0
        assert ping(routers.c.namespace, "fd00:201::1").lost == 0


@needs_net_admin
def test_routed_host_reaches_the_far_router(routers: TwoRouters) -> None:
    with routed_host(routers.a, "192.0.2.1/28", "192.0.2.2/28") as host:
        routers.b.namespace.run("ip", "route", "add", "192.0.2.0/28", "via", "10.201.0.1")

        assert ping(host.namespace, "10.201.0.2").lost == 0


@needs_net_admin
def test_bridged_hosts_share_a_segment(routers: TwoRouters) -> None:
    routers.a.namespace.run("ip", "link", "add", "br-lan", "type", "bridge", "forward_delay", "0")
    Interface(routers.a.namespace, "br-lan").set_up()

    with (
        bridged_host(routers.a, "br-lan", "192.0.2.1/24") as one,
        bridged_host(routers.a, "br-lan", "192.0.2.2/24"),
    ):
        assert ping(one.namespace, "192.0.2.2").lost == 0


@needs_net_admin
def test_velad_with_a_mistaken_configuration_shows_its_log() -> None:
    with Namespace() as namespace:
        velad = Velad(namespace, "[daemon]\nport = 'none'\n", name="mistaken")

        with pytest.raises(LabError, match=r"velad mistaken: exited with status \d+ before"), velad:
            pass

        assert velad.log()
        assert not velad.directory.exists()


def test_velad_configuration_gets_its_files_into_the_daemon_table() -> None:
    config = "[daemon] # mine\nport = 1\n[circuits.vela0]\nid = 1\n"

    assert with_files(config, Path("/run/lab")) == (
        "[daemon] # mine\n"
        'control_socket = "/run/lab/velad.sock"\n'
        'state_directory = "/run/lab/state"\n'
        "port = 1\n[circuits.vela0]\nid = 1\n"
    )
    assert with_files("", Path("/run/lab")).startswith("[daemon]\ncontrol_socket = ")


def test_eventually_asks_once_more_at_the_deadline() -> None:
    answers = iter([0, 7])

    assert eventually(lambda: next(answers), 0.01, "seven", interval_s=10) == 7


def test_eventually_in_vain_names_what_was_awaited() -> None:
    with pytest.raises(LabError, match=r"waited 0 s in vain for rain"):
        eventually(lambda: False, 0, "rain")


@pytest.mark.parametrize("size", range(14 + 20 + 8 + 1))
def test_datagram_truncated_at_any_byte_is_refused(size: int) -> None:
    frame = bytes.fromhex(
        "02005e100002 02005e100001 0800"
        "4500 001d 0000 4000 40 11 0000 c0000201 c0000202"
        "c000 bded 0009 0000 00"
    )

    assert headers.datagram(frame) is not None
    with pytest.raises(ValueError, match="bytes,"):
        headers.datagram(frame[:size])


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param("pytest.skip('no')", 1, id="all skipped"),
        pytest.param("pass", 0, id="one ran", marks=needs_net_admin),
    ],
)
def test_session_in_ci_with_all_root_tests_skipped_fails(
    body: str,
    status: int,
    processes: int,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'scripts'}:{ROOT / 'tests'}")
    pytester.makeini("[pytest]\nmarkers =\n    needs_net_admin: root\n")
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(
        f"""
        import pytest

        def test_free() -> None: pass

        @pytest.mark.needs_net_admin
        def test_first() -> None: pytest.skip("no")

        @pytest.mark.needs_net_admin
        def test_second() -> None: {body}
        """
    )

    result = pytester.runpytest_subprocess(f"--numprocesses={processes}")

    assert result.ret == status
    # The count is still the closing line.
    assert " passed" in result.outlines[-1]


@needs_net_admin
@pytest.mark.parametrize("version", [4, 6])
def test_bad_underlay_drops_duplicates_and_reorders_single_datagrams(version: int) -> None:
    with bad_underlay(every=Every(drop=100, duplicate=99, delay=66)) as underlay:
        a, b = underlay.routers.a, underlay.routers.b
        source, target = (a.ipv4, b.ipv4) if version == 4 else (a.ipv6, b.ipv6)
        with (
            Capture(b.underlay) as arriving,
            udp_socket(a.namespace, source) as sender,
            udp_socket(b.namespace, target, VELA_PORT),
        ):
            for first in range(0, 6000, 60):
                # One buffer each, which the underlay must not see as one datagram.
                batch = [number.to_bytes(1000, "big") for number in range(first, first + 60)]
                send_joined(sender, batch, target)
            packets = arriving.wait_for_count(lambda packet: payload_of(packet) is not None, 6000)

        # Each rule sees what the one before it let through: 6000, 5940, 5940.
        there, back = underlay.hits()
        assert there == Hits(datagrams=6000, dropped=60, duplicated=60, delayed=90, spilled=0)
        assert back == Hits(datagrams=0, dropped=0, duplicated=0, delayed=0, spilled=0)
    numbers = [int.from_bytes(payload_of(packet) or b"", "big") for packet in packets]
    assert set(range(6000)) - set(numbers) == set(range(99, 6000, 100))
    assert len(numbers) - len(set(numbers)) == 60
    overtaken = sum(before > after for before, after in pairwise(numbers))
    # Some are the last of their batch, and overtaken by nothing.
    assert overtaken > 60


@needs_net_admin
def test_copy_reports_equal_hashes_and_runs_what_is_to_happen_under_way(
    routers: TwoRouters,
) -> None:
    called: list[int] = []

    copied = copy(
        *(routers.a.namespace, routers.b.namespace, routers.b.ipv4, 3_000_001),
        timeout_s=10,
        under_way=lambda: called.append(1),
    )

    assert (copied.sent, copied.received, called) == (3_000_001, 3_000_001, [1])
    assert copied.sent_digest == copied.received_digest
    assert copied.sent_digest == hashlib.sha256(b"".join(content(3_000_001))).hexdigest()


def test_content_has_no_two_equal_pieces_in_one_place_of_two_blocks() -> None:
    blocks = list(content(300 * BLOCK))

    assert len(set(blocks)) == 300
    assert len({block[4096:8192] for block in blocks}) == 300


@needs_net_admin
def test_copy_that_stops_raises_and_says_how_far_it_came(routers: TwoRouters) -> None:
    with pytest.raises(LabError, match=r"copying to 10\.201\.0\.2: \d+ of 64000000 bytes after"):
        copy(
            *(routers.a.namespace, routers.b.namespace, routers.b.ipv4, 64_000_000),
            timeout_s=1,
            under_way=routers.a.underlay.set_down,
        )
