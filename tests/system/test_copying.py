"""A file copied over a circuit whose underlay drops, duplicates and reorders, or becomes narrower.

Little is copied in each case unless more is asked for: the whole gigabyte by
`scripts/test tests/system/test_copying.py --copy-bytes 1000000000`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from lab.bad_underlay import BadUnderlay, Every, Hits, bad_underlay
from lab.circuit import ADDRESSES_A, ADDRESSES_B, NAME, Circuit, static_circuit
from lab.copying import Copied, copy
from lab.load import kernel_counts
from lab.namespace import Namespace
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

ENGINES = ("python", "native")

MORE_COPIES, LITTLE = 5, 4_000_000
# What one test copies at most: over IPv4 and over IPv6, inside.
COPIES = 2
START_S = 20.0
# A fifth of what the Python engine does, with fragments, on an otherwise idle machine.
LEAST_BYTES_PER_S = 4_000_000

OFTEN = Every(drop=331, duplicate=337, delay=199)
# A sixth as many datagrams carry as much.
OFTEN_WHERE_LARGE = Every(drop=83, duplicate=79, delay=23)


def limit_s(length: int) -> float:
    """Return how long copying length bytes may take."""
    return START_S + length / LEAST_BYTES_PER_S


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "copy_bytes" in metafunc.fixturenames:
        length: int = metafunc.config.getoption("--copy-bytes")
        limit = pytest.mark.timeout(60 + COPIES * limit_s(length))
        metafunc.parametrize("copy_bytes", [pytest.param(length, marks=limit)])


@dataclass(frozen=True, slots=True)
class Way:
    """One direction so far: frames that its sender sent and its receiver got, and hits between."""

    sent: int
    received: int
    hits: Hits

    def since(self, before: Way) -> Way:
        now, then = self.hits, before.hits
        return Way(
            self.sent - before.sent,
            self.received - before.received,
            Hits(
                now.datagrams - then.datagrams,
                now.dropped - then.dropped,
                now.duplicated - then.duplicated,
                now.delayed - then.delayed,
                now.spilled - then.spilled,
            ),
        )


def ways(underlay: BadUnderlay, circuit: Circuit) -> tuple[Way, Way]:
    """Return A's sending to B and B's to A, as soon as nothing is under way."""

    def frames() -> tuple[int, int, int, int]:
        a, b = circuit.a.counters, circuit.b.counters
        return a["tx_frames"], b["rx_frames"], b["tx_frames"], a["rx_frames"]

    def still() -> tuple[Way, Way] | None:
        a_sent, b_received, b_sent, a_received = before = frames()
        there, back = underlay.hits()
        if frames() != before:
            return None
        return Way(a_sent, b_received, there), Way(b_sent, a_received, back)

    found = eventually(still, 10.0, "the circuit to be still")
    assert found is not None
    return found


def overtaken(namespace: Namespace) -> int:
    """Return how often a sender there was told that it was not a loss."""
    return kernel_counts(namespace, "TcpExtTCPSACKReorder", "TcpExtTCPTSReorder")


def assert_whole(copied: Copied, length: int) -> None:
    assert (copied.sent, copied.received) == (length, length)
    assert copied.received_digest == copied.sent_digest


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("outer", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("mtu", "every"),
    [(1280, OFTEN), (1500, OFTEN), (9000, OFTEN_WHERE_LARGE)],
    ids=["1280", "1500", "9000"],
)
def test_file_copied_over_a_bad_underlay_arrives_whole(
    mtu: int, every: Every, outer: str, engine: str, copy_bytes: int
) -> None:
    copy_over_a_bad_underlay(mtu, every, outer, engine, copy_bytes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("features", ["no rwf_nowait", "no features"], indirect=True)
def test_file_copied_over_a_bad_underlay_arrives_whole_without_features_of_the_kernel(
    features: str, engine: str, copy_bytes: int
) -> None:
    # What leaves one by one is too far apart for one that is delayed to be overtaken.
    in_trains = features != "no features"
    copy_over_a_bad_underlay(1500, OFTEN, "ipv4", engine, copy_bytes, overtaking=in_trains)


def copy_over_a_bad_underlay(
    mtu: int, every: Every, outer: str, engine: str, copy_bytes: int, *, overtaking: bool = True
) -> None:
    # What 1280 bytes outside leave is too little for IPv6 inside (RFC 8200, section 5).
    count = 1 if mtu == 1280 else 2
    addresses = (ADDRESSES_A[:count], ADDRESSES_B[:count])
    with (
        bad_underlay(mtu, every) as underlay,
        static_circuit(
            underlay.routers, outer=outer, engine=engine, addresses=addresses
        ) as circuit,
    ):
        a, b = underlay.routers.a.namespace, underlay.routers.b.namespace
        began = time.monotonic()
        before = ways(underlay, circuit)

        for address in addresses[1]:
            inner = address.partition("/")[0]
            copied = copy(a, b, inner, copy_bytes, timeout_s=limit_s(copy_bytes))

            assert_whole(copied, copy_bytes)
        there, back = (
            now.since(then) for now, then in zip(ways(underlay, circuit), before, strict=True)
        )
        for way in (there, back):
            # Each frame was one datagram, and all that is missing, or too much, is the underlay's.
            # Both ends may ask once a second, and are answered.
            echoes = 2 * (time.monotonic() - began)
            assert way.sent - way.hits.spilled <= way.hits.datagrams <= way.sent + echoes
            missing = way.hits.dropped + way.hits.spilled
            assert way.received == way.sent - missing + way.hits.duplicated
            assert way.hits.dropped == pytest.approx(way.sent / every.drop, abs=1)
        assert there.sent > count * copy_bytes / mtu
        assert min(there.hits.dropped, there.hits.duplicated, there.hits.delayed) >= 5
        # TCP, too, saw its segments overtaken, and not only lost. What is delayed is overtaken
        # where others are right behind it, which on a busy machine may take more.
        for _ in range(MORE_COPIES if overtaking else 0):
            if overtaken(a):
                break
            copy(a, b, inner, LITTLE, timeout_s=limit_s(LITTLE))
        assert overtaken(a) or not overtaking
        # It had none to mend.
        assert kernel_counts(a, "TcpInCsumErrors") == kernel_counts(b, "TcpInCsumErrors") == 0
        for end in (circuit.a, circuit.b):
            assert end.velad.circuit(NAME)["worker"]["engine"] == engine
            assert end.velad.circuit(NAME)["worker"]["restarts"] == 0
            assert end.counters["tx_fragmented"] == end.counters["tx_errors"] == 0
            assert set(end.counters["rx_dropped"].values()) == {0}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("outer", "every"),
    [("ipv4", None), ("ipv6", OFTEN)],
    ids=["good-ipv4", "bad-ipv6"],
)
def test_file_copied_while_the_route_becomes_narrower_arrives_whole_in_fragments(
    outer: str, every: Every | None, engine: str, copy_bytes: int
) -> None:
    """From then on the kernel refuses to cut what the worker sends, which was made for 1500."""
    with (
        bad_underlay(1500, every) as underlay,
        static_circuit(underlay.routers, outer=outer, engine=engine) as circuit,
    ):
        a, b = underlay.routers.a.namespace, underlay.routers.b.namespace
        family, network = ("-4", "10.201.0.0/24") if outer == "ipv4" else ("-6", "fd00:201::/64")
        before = ways(underlay, circuit)

        limit = limit_s(copy_bytes)
        inner = ADDRESSES_B[0].partition("/")[0]

        def fragmented_now() -> bool:
            copy(a, b, inner, 100_000, timeout_s=limit)
            return bool(circuit.a.counters["tx_fragmented"])

        def lower() -> None:
            assert circuit.a.counters["tx_fragmented"] == 0
            shown = a.run("ip", family, "route", "show", network).stdout.split()
            a.run("ip", family, "route", "change", *shown, "mtu", "lock", "1400")
            # velad hears of it, and has its socket follow: on a busy machine not at once.
            eventually(fragmented_now, 10, "fragments")

        copied = copy(a, b, inner, copy_bytes, timeout_s=limit, under_way=lower)

        assert_whole(copied, copy_bytes)
        there, back = (
            now.since(then) for now, then in zip(ways(underlay, circuit), before, strict=True)
        )
        # The other half, in segments of 1419 bytes at most, of which few are much smaller; but
        # velad looks at the route each minute, and a long copy then goes on without fragments.
        fragmented = circuit.a.counters["tx_fragmented"]
        # A part of it has crossed when the route is narrower.
        assert fragmented > 0.6 * min(copy_bytes, 20_000_000) / 2 / 1419
        assert circuit.a.counters["tx_errors"] == 0
        # Each of them crossed in two pieces, as did a few that went alone before the first refusal.
        pieces = there.hits.datagrams - there.sent
        assert fragmented - there.hits.spilled <= pieces < fragmented + 64
        # A frame is lost with either of its pieces, and by nothing else.
        assert there.received >= there.sent - there.hits.dropped - there.hits.spilled
        if every is None:
            assert there.received <= there.sent
            assert back.received == back.sent - back.hits.spilled
        else:
            assert there.hits.dropped > 0
