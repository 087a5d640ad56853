"""The benchmark: what it measures is what it says, all of it works, and nothing of it stays."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest

from lab.bench import Fragments
from lab.blast import UNLIMITED, Trial, blast_across
from lab.busy_loops import BusyLoops
from lab.capture import Capture
from lab.cpu import cpu_used, ran_s
from lab.daemon import ROOT
from lab.errors import LabError
from lab.link import rx_bytes
from lab.load import BackgroundStream, iperf3, ping
from lab.machine import Machine
from lab.measurements import percentile
from lab.namespace import existing, prefix
from lab.program import Program
from lab.rate_search import Effort, highest_rate
from lab.regimes import Regime, shaped_rate, tcp_ceiling
from lab.results import Results
from lab.streams import Shares, concurrent_streams
from lab.tables import Table, tables
from lab.topology import Router, TwoRouters
from lab.tunnels.catalogue import BRIDGED, CIRCUITS, FRAGMENTS, TUNNELS
from lab.tunnels.direct import direct
from lab.tunnels.tunnel import UnavailableError, fragments_made, need_program
from lab.waiting import eventually

needs_net_admin = pytest.mark.needs_net_admin
BENCH = [sys.executable, "-m", "lab.bench"]
MOST_TRIES = 5


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose path is short, as those of sockets have to be."""
    with TemporaryDirectory(prefix="vela-") as made:
        yield Path(made)


def environment(temporary: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "TMPDIR": str(temporary)}


def processes_that_name(path: Path) -> list[str]:
    """Return the command lines in which a path occurs: configurations are named there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(path) in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@needs_net_admin
@pytest.mark.timeout(240)
def test_bench_quick_shows_writes_and_leaves_nothing_behind(
    tmp_path: Path, temporary: Path
) -> None:
    output = tmp_path / "output"
    chosen = [f"--tunnel={name}" for name in ("vela python", "kernel vxlan")]
    with subprocess.Popen(
        [*BENCH, "--quick", *chosen, f"--output={output}"],
        env=environment(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        shown, said = running.communicate(timeout=200)

    assert running.returncode == 0, said
    titles = [line for line in shown.splitlines() if line.startswith("Frames as on a wire: ")]
    assert [title.partition(": ")[2] for title in titles] == [
        "One TCP stream",
        "Several TCP streams",
        "UDP with less than 1 % loss, thousand frames/s",
        "64-byte frames from a sender without limit, thousand/s",
        "Round trip, µs",
        "Round trip under one TCP stream, µs",
        "Round trip on busy hosts, µs",
        "A TCP stream on each of many circuits at once",
    ]
    assert shown.count("\nvela python ") == shown.count("\nkernel vxlan ") == 8
    assert shown.startswith("Ratio to kernel vxlan in the same round: median (least to most)\n")
    assert re.search(r"wire: one TCP stream +0\.\d\d \(0\.\d\d to \d\.\d\d\)\n", shown)
    found = json.loads((output / "results.json").read_text())
    assert (found["skipped"], found["failures"]) == ({}, [])
    assert found["machine"]["cpus"] == len(os.sched_getaffinity(0))
    tunnels = found["regimes"]["wire"]
    assert {name: entry["mtu"] for name, entry in tunnels.items()} == {
        "vela python": 1471,
        "kernel vxlan": 1450,
    }
    for entry in tunnels.values():
        for key in (
            "tcp_1_ba_mbit_per_s",
            "tcp_8_ab_mbit_per_s",
            "udp_full_frames_per_s",
            "overload_frames_per_s",
            "rtt_p99_us",
            "loaded_p99_us",
            "loaded_mbit_per_s",
            "busy_p99_us",
            "circuits_2_jain",
        ):
            assert len(entry["figures"][key]["rounds"]) == 2
            assert entry["figures"][key]["median"] == mean(entry["figures"][key]["rounds"]) > 0
        assert entry["figures"]["udp_64_loss"]["median"] < 0.01
    assert tunnels["kernel vxlan"]["figures"]["rtt_p50_us"]["relative_to"] == {"kernel vxlan": 1.0}
    bars = ElementTree.parse(output / "plot.svg").findall(".//{*}line")
    assert len(bars) == 2 * 15  # of quantities.py
    assert "| vela python |" in (output / "table.md").read_text()
    assert [name for name in existing() if name.startswith(prefix(running.pid))] == []
    assert list(temporary.iterdir()) == []
    assert processes_that_name(temporary) == []


@needs_net_admin
@pytest.mark.timeout(120)
def test_bench_bridged_shows_ratios_to_vxlan_and_to_fragments(
    tmp_path: Path, temporary: Path
) -> None:
    output = tmp_path / "output"
    done = subprocess.run(
        [*BENCH, "--bridged", "--quick", "--rounds=1", f"--output={output}"],
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr  # fragments where they are measured are no failure
    titles = re.findall("^Ratio to (.*) in the same round", done.stdout, re.MULTILINE)
    assert titles == ["vxlan bridged", FRAGMENTS]
    assert len(re.findall(r"^wire: full frames +\d", done.stdout, re.MULTILINE)) == 2
    found = json.loads((output / "results.json").read_text())
    assert (found["skipped"], found["failures"]) == ({}, [])
    tunnels = found["regimes"]["wire"]
    assert {name: entry["mtu"] for name, entry in tunnels.items()} == {
        "vela bridged": 1500,
        FRAGMENTS: 1500,
        "vxlan bridged": 1450,
    }
    for entry in tunnels.values():
        for key in ("tcp_1_ab_mbit_per_s", "udp_full_frames_per_s", "rtt_p50_us"):
            assert entry["figures"][key]["median"] > 0
        assert "udp_64_frames_per_s" not in entry["figures"]


@needs_net_admin
@pytest.mark.parametrize("name", BRIDGED)
def test_bridged_tunnel_joins_hosts_that_are_not_the_routers(
    routers: TwoRouters, name: str
) -> None:
    with BRIDGED[name](routers, 7) as segment:
        namespaces = {end.namespace.name for end in segment.ends}
        pings = ping(
            segment.a.namespace, segment.b.address, size=segment.mtu, dont_fragment=True, count=1
        )
        made = fragments_made(routers.a.namespace)

    assert not namespaces & {routers.a.namespace.name, routers.b.namespace.name}
    assert pings.lost == 0
    assert bool(made) == segment.fragments == (name == FRAGMENTS)

    def left(router: Router) -> list[str]:
        links = router.namespace.run("ip", "-o", "link", "show").stdout.splitlines()
        return [line.split()[1] for line in links if "eth0" not in line]

    # The kernel removes a namespace, and the cables that end in it, some time after its last user.
    for router in (routers.a, routers.b):
        eventually(lambda end=router: left(end) == ["lo:"], 10, "the cables to be gone")  # type: ignore[misc]


@needs_net_admin
def test_fragments_of_a_tunnel_that_is_to_make_none_are_counted(routers: TwoRouters) -> None:
    fragments = Fragments(routers)
    with direct(routers, 1) as segment:
        for expected in (True, False):
            with fragments.of(replace(segment, fragments=expected)):
                ping(segment.a.namespace, segment.b.address, size=2000, count=1)

    assert fragments.count == 2 * 2  # of the request, and of its answer


@needs_net_admin
def test_bench_interrupted_leaves_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    output = tmp_path / "output"
    chosen = [f"--tunnel={name}" for name in ("vela python", "socat")]
    with subprocess.Popen(
        [*BENCH, "--seconds=20", "--measurement=tcp", *chosen, f"--output={output}"],
        env=environment(temporary),
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line == "bench: socat is up\n":
                break
        assert len(processes_that_name(temporary)) >= 2
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()

    assert rest == "bench: interrupted by SIGINT\n"
    assert running.returncode == 130
    assert [name for name in existing() if name.startswith(prefix(running.pid))] == []
    assert list(temporary.iterdir()) == []
    assert processes_that_name(temporary) == []
    assert not output.exists()


@needs_net_admin
@pytest.mark.usefixtures("framed")
@pytest.mark.parametrize("name", [name for name in TUNNELS if name != "no tunnel"])
def test_tunnel_of_its_mtu_fills_the_cable_and_no_more(routers: TwoRouters, name: str) -> None:
    try:
        with TUNNELS[name](routers, 7) as segment, Capture(routers.a.underlay) as capture:
            pings = ping(
                segment.a.namespace, "10.220.7.2", size=segment.mtu, dont_fragment=True, count=1
            )
            full = capture.wait_for(lambda packet: packet.outgoing and len(packet.data) >= 1514)
            sizes = [len(packet.data) for packet in capture.packets()]
            forwards_itself = not segment.forwarders
            interfaces = [end.interface for end in segment.ends]
    except UnavailableError as err:
        pytest.skip(str(err))

    assert pings.lost == 0
    assert len(full.data) == max(sizes, default=1514) == 14 + 1500
    assert forwards_itself == name.startswith("kernel")
    for router, interface in zip((routers.a, routers.b), interfaces, strict=True):
        assert fragments_made(router.namespace) == 0
        shown = router.namespace.run("ip", "link", "show", "dev", interface, check=False)
        assert shown.returncode == 1


@needs_net_admin
def test_streams_at_once_each_carry_their_own(routers: TwoRouters) -> None:
    with CIRCUITS["kernel vxlan"](routers, 30, 3) as segments, Program("streams") as streams:
        shares = concurrent_streams(streams, segments, 0.3)

    assert len({segment.b.address for segment in segments}) == 3
    assert len(shares.bits_per_s) == 3
    assert min(shares.bits_per_s) > 0


@needs_net_admin
def test_blast_sends_single_frames_of_that_size_at_that_rate(routers: TwoRouters) -> None:
    with (
        Program("blast") as program,
        direct(routers, 1) as segment,
        blast_across(program, segment, 60) as blast,
        Capture(routers.b.underlay) as capture,
    ):
        tries = [blast.trial(1000, 0.2)]
        # The machine may pause; arrears are not made up for beyond a batch.
        while tries[-1].sent < 100 and len(tries) < MOST_TRIES:
            tries.append(blast.trial(1000, 0.2))
        # What else there is is not IPv4: ARP, and what IPv6 says when an interface is new.
        sizes = [
            len(packet.data)
            for packet in capture.packets()
            if not packet.outgoing and packet.data[12:14] == b"\x08\x00"
        ]

    assert 100 <= tries[-1].sent <= 201
    assert sizes == [60] * sum(tried.sent for tried in tries)
    for tried in tries:
        assert tried.received == tried.sent
        assert (tried.loss, tried.reordered) == (0, 0)
        assert 0.2 <= tried.sending_s <= tried.seconds


@needs_net_admin
def test_blast_counts_what_a_full_queue_drops(routers: TwoRouters) -> None:
    routers.a.underlay.set_rate("1mbit", burst="2kb", latency="1ms")
    with (
        Program("blast") as program,
        direct(routers, 1) as segment,
        blast_across(program, segment, 60) as blast,
    ):
        tried = blast.trial(10_000, 0.5)

    # 1 Mbit/s carries 2083 frames of 480 bits a second, and those that the bucket holds; a sender
    # that was held up sent fewer.
    assert 0 < tried.received < tried.seconds * 2083 + 2 * 2048 / 60 + 40
    assert tried.sent > 1.5 * tried.received
    assert tried.loss == 1 - tried.received / tried.sent


@needs_net_admin
def test_blast_without_limit_sends_more_than_is_taken(routers: TwoRouters) -> None:
    routers.a.underlay.set_rate("1mbit", burst="2kb", latency="1ms")
    with (
        Program("blast") as program,
        direct(routers, 1) as segment,
        blast_across(program, segment, 60) as blast,
    ):
        tried = blast.trial(UNLIMITED, 0.2)

    assert tried.sent > 4 * tried.received > 0


@needs_net_admin
def test_background_stream_carries_as_long_as_it_is_there(routers: TwoRouters) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    with BackgroundStream(b, a, "10.201.0.2") as stream:
        before = rx_bytes(b, "eth0")
        eventually(lambda: rx_bytes(b, "eth0") > before + 10**7, 30, "10 MB of it to arrive")
        stream.check()

    assert a.run("ss", "-Htn", "state", "established").stdout == ""


@needs_net_admin
def test_background_stream_that_ends_before_the_measurement_fails_it(routers: TwoRouters) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    with BackgroundStream(b, a, "10.201.0.2", limit_s=1) as stream:
        eventually(lambda: has_ended(stream), 30, "it to end")


def has_ended(stream: BackgroundStream) -> bool:
    try:
        stream.check()
    except LabError as err:
        return str(err).startswith("not done before the load ended")
    return False


def test_busy_loops_compute_on_each_cpu_until_they_are_ended() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with BusyLoops(cpus, limit_s=60) as loops:
        pids = loops.pids
        assert [os.sched_getaffinity(pid) for pid in pids] == [{cpu} for cpu in cpus]
        before = {pid: ran_s(pid) for pid in pids}
        eventually(
            lambda: all(ran_s(pid) > before[pid] + 0.05 for pid in pids), 30, "all of them to run"
        )
        loops.check()

    assert loops.pids == []
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)


def test_busy_loops_that_end_before_the_measurement_fail_it() -> None:
    with BusyLoops([min(os.sched_getaffinity(0))], limit_s=1) as loops:
        (pid,) = loops.pids
        pidfd = os.pidfd_open(pid)
        assert select.select([pidfd], [], [], 30)[0]
        os.close(pidfd)
        with pytest.raises(LabError, match="not done within the 1 s of a busy loop"):
            loops.check()


@needs_net_admin
def test_blast_of_a_frame_above_the_mtu_is_refused(routers: TwoRouters) -> None:
    with (
        Program("blast") as program,
        direct(routers, 1) as segment,
        pytest.raises(LabError, match=r"frames of 1515 bytes .* MTU of 1500"),
        blast_across(program, segment, 1515),
    ):
        pass


@needs_net_admin
def test_regime_gigabit_carries_no_more_than_a_gigabit_wire(routers: TwoRouters) -> None:
    Regime.GIGABIT.apply(routers)
    limited = iperf3(routers.b.namespace, routers.a.namespace, "10.201.0.2", seconds=1)
    Regime.WIRE.apply(routers)
    qdisc = routers.a.namespace.run("tc", "qdisc", "show", "dev", "eth0").stdout

    # 0.2 % of a second is the bucket's; without what the wire adds it would be 1.6 % more.
    assert 100e6 < limited.received_bits_per_s < 1.01 * tcp_ceiling(1500, 1500)
    assert "tbf" not in qdisc


def test_program_that_is_missing_makes_a_tunnel_unavailable() -> None:
    with pytest.raises(UnavailableError, match="the program unheard-of is not installed"):
        need_program("unheard-of")


@pytest.mark.parametrize(
    ("mtu", "mbit_per_s"),
    # 1538 bytes of wire carry mtu - 52 of payload.
    [(1471, 922.6), (1462, 916.8), (1450, 909.0), (1500, 941.5)],
)
def test_tcp_ceiling_of_a_gigabit_wire(mtu: int, mbit_per_s: float) -> None:
    assert round(tcp_ceiling(1500, mtu) / 1e6, 1) == mbit_per_s


def test_shaped_rate_leaves_out_what_only_the_wire_adds() -> None:
    assert round(shaped_rate(1500)) == 984395319  # 10^9 * 1514 / 1538


def tunnel_model(
    capacity: float, sender: float = 1e9, collapse: float = 0.0
) -> Callable[[float, float], Trial]:
    """A tunnel without queues; each frame above its capacity costs it collapse others."""

    def trial(rate: float, seconds: float) -> Trial:
        sent = min(rate, sender) * seconds
        above = max(0.0, min(rate, sender) - capacity) * seconds
        received = max(0.0, sent - above * (1 + collapse))
        return Trial(rate, round(sent), round(received), 0, seconds, seconds)

    return trial


@pytest.mark.parametrize("start", [100, 20_000, 3_000_000])
@pytest.mark.parametrize("collapse", [0, 0.5, 5])
def test_highest_rate_is_found_from_any_guess(start: float, collapse: float) -> None:
    found = highest_rate(tunnel_model(50_000, collapse=collapse), start, Effort(tolerance=0.02))

    assert found.loss < 0.01
    assert 49_000 <= found.delivered_per_s <= 50_000


def test_highest_rate_of_a_sender_at_its_own_limit_is_that_limit() -> None:
    found = highest_rate(tunnel_model(1e9, sender=80_000), 1000, Effort())

    assert found.sent_per_s == 80_000
    assert found.offered_per_s < 300_000  # 1000 * 1.6**12: asked for more twice in vain


def test_highest_rate_is_given_up_where_everything_is_lost() -> None:
    with pytest.raises(LabError, match="100% lost"):
        highest_rate(tunnel_model(0, collapse=0), 20_000, Effort())


def test_highest_rate_is_confirmed_by_a_longer_trial() -> None:
    brief, lasting = tunnel_model(50_000), tunnel_model(40_000)
    tried = []

    def trial(rate: float, seconds: float) -> Trial:
        tried.append(seconds)
        return (brief if seconds < 1 else lasting)(rate, seconds)

    found = highest_rate(trial, 20_000, Effort(trial_s=0.25, confirmation_s=1.0))

    assert found.loss < 0.01
    assert 38_000 <= found.delivered_per_s <= 40_000
    assert tried[0] == 0.25
    assert tried[-1] == 1.0


def test_highest_rate_is_not_limited_by_a_pause_of_the_machine() -> None:
    tunnel = tunnel_model(50_000)
    tried = []

    def trial(rate: float, seconds: float) -> Trial:
        tried.append(rate)
        found = tunnel(rate, seconds)
        return replace(found, received=round(found.received * 0.9)) if len(tried) == 2 else found

    found = highest_rate(trial, 10_000, Effort(tolerance=0.02))

    assert tried[1] == tried[2] == 16_000
    assert found.delivered_per_s >= 49_000


def test_cpu_used_counts_a_process_and_the_machine() -> None:
    with cpu_used([os.getpid()]) as cpu:
        before = time.process_time()
        while time.process_time() < before + 0.1:
            pass

    # /proc counts in ticks of 10 ms.
    assert 0.08 <= cpu.processes_s < 1
    assert cpu.machine_s >= 0.08


def test_cpu_used_of_a_process_that_ends_is_refused() -> None:
    def measured() -> None:
        with subprocess.Popen(["sleep", "60"]) as sleeping, cpu_used([sleeping.pid]):
            sleeping.kill()
            sleeping.wait()

    with pytest.raises(LabError, match="has ended"):
        measured()


def test_trial_counts_no_queue_as_rate() -> None:
    # 1000 sent in one second, but the last arrived after two.
    tried = Trial(1000, sent=1000, received=998, reordered=0, sending_s=1.0, seconds=2.0)

    assert tried.delivered_per_s == 499
    assert round(tried.loss, 4) == 0.002


@pytest.mark.parametrize(("percent", "value"), [(50, 50.0), (99, 99.0), (100, 100.0), (0.5, 1.0)])
def test_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile(tuple(float(n) for n in range(100, 0, -1)), percent) == value


def test_shares_of_unequal_circuits() -> None:
    shares = Shares((3.0, 1.0))

    assert shares.total == 4
    assert shares.fairness == 0.8  # 16 / (2 * 10)
    assert round(shares.least_to_most, 3) == 0.333


MACHINE = Machine("a CPU", 2, 8 << 30, "Linux", "3.11", 0.0, {})


def results() -> Results:
    found = Results(
        MACHINE,
        started="2026-01-01T00:00:00+00:00",
        settings={"rounds": 3, "circuits": (1,), "streams": (4,)},
        underlay_mtu=1500,
        references=("kernel vxlan",),
    )
    for turn, (vela, vxlan) in enumerate(((800, 400), (900, 450), (100, 460))):
        found.add(Regime.GIGABIT, "vela native", 1471, {"tcp_1_ab_mbit_per_s": vela}, turn)
        found.add(Regime.GIGABIT, "kernel vxlan", 1450, {"tcp_1_ab_mbit_per_s": vxlan}, turn)
    return found


def test_tables_show_medians_ratios_and_the_share_of_the_ceiling() -> None:
    assert tables(results()) == [
        Table(
            "Ratio to kernel vxlan in the same round: median (least to most)",
            ("quantity", "vela native"),
            (("gigabit: one TCP stream", "2.00 (0.22 to 2.00)"),),  # 800/400, 900/450, 100/460
        ),
        Table(
            "A wire of 1 Gbit/s: One TCP stream",
            ("tunnel", "A→B Mbit/s", "/ vxlan", "of ceiling"),
            (
                ("vela native", "800", "1.78", "86.7%"),  # of 922.6
                ("kernel vxlan", "450", "1.00", "49.5%"),  # of 909.0
            ),
        ),
    ]


def test_ratios_are_of_rounds_that_both_have() -> None:
    found = results()
    # The reference failed once, and the other one another time.
    found.add(Regime.WIRE, "vela native", 1471, {"rtt_p50_us": 30}, 0)
    found.add(Regime.WIRE, "vela native", 1471, {"rtt_p50_us": 80}, 2)
    found.add(Regime.WIRE, "kernel vxlan", 1450, {"rtt_p50_us": 10}, 1)
    found.add(Regime.WIRE, "kernel vxlan", 1450, {"rtt_p50_us": 2}, 2)

    assert found.ratios(Regime.WIRE, "vela native", "kernel vxlan", "rtt_p50_us") == [40]
    assert tables(found)[0].rows[1] == ("wire: round trip p50 (less is better)", "40")


def test_each_reference_has_a_table_of_ratios() -> None:
    found = replace(results(), references=("kernel vxlan", "fastd null"))
    for turn in range(3):
        found.add(Regime.GIGABIT, "fastd null", 1415, {"tcp_1_ab_mbit_per_s": 300}, turn)

    first, second, *_ = tables(found)

    assert first.title.startswith("Ratio to kernel vxlan ")
    assert second.title.startswith("Ratio to fastd null ")
    assert second.rows == (("gigabit: one TCP stream", "2.67 (0.33 to 3.00)"),)


def test_without_a_reference_there_are_no_ratios() -> None:
    alone = replace(results(), references=())

    assert [table.title for table in tables(alone)] == ["A wire of 1 Gbit/s: One TCP stream"]


def test_results_as_json_have_every_round_and_the_ratio_of_medians() -> None:
    document = replace(results(), skipped={"kernel gretap": "none"}).document()

    entry = document["regimes"]["gigabit"]["vela native"]
    assert entry["figures"]["tcp_1_ab_mbit_per_s"] == {
        "rounds": [800, 900, 100],
        "median": 800,
        "relative_to": {"kernel vxlan": 800 / 450},
    }
    assert document["skipped"] == {"kernel gretap": "none"}


def test_table_in_markdown_aligns_numbers_to_the_right() -> None:
    table = Table("Speed", ("tunnel", "Mbit/s"), (("vela", "800"),))

    assert table.markdown() == ("**Speed**\n\n| tunnel | Mbit/s |\n| --- | ---: |\n| vela | 800 |")
    assert table.text() == "Speed\ntunnel  Mbit/s\nvela       800"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "rounds, seconds and streams are at least 1"),
        (["--tunnel", "hyperspace"], "invalid choice: 'hyperspace'"),
        (["--regime", "vacuum"], "invalid choice: 'vacuum'"),
        (["--queues", "--bridged"], "--queues and --bridged choose tunnels: only one of them"),
    ],
)
def test_bench_with_a_mistaken_argument_is_refused(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*BENCH, *arguments], env=environment(tmp_path), capture_output=True, text=True
    )

    assert done.returncode == 2
    assert said in done.stderr
