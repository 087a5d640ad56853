"""Keys that change each second lose no frame, and no frame meets the wrong key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from marked_load import INNER_B, load
from sealed_circuit import EACH_SECOND, generation, psk_configs, psk_file

from lab.autoconfigured import Ends, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.frames import Outlet, await_operational
from lab.link import Interface
from lab.load import iperf3, kernel_counts
from lab.stream import Stream
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

FULL_LOAD_S = 20


@pytest.mark.parametrize("seconds", [10])
def test_nothing_is_lost_where_keys_change_each_second(
    routers: TwoRouters, tmp_path: Path, seconds: int, figure: Callable[[str], None]
) -> None:
    config_a, config_b = psk_configs(routers, psk_file(tmp_path))
    with (
        Velad(routers.b.namespace, config_b, before=EACH_SECOND) as b,
        Velad(routers.a.namespace, config_a, before=EACH_SECOND) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)
        tap_a, tap_b = (Interface(each.namespace, NAME) for each in both)
        for tap in (tap_a, tap_b):
            await_operational(tap)
        before = generation(a)
        # An echo request may come before its answer can be sealed.
        early = [each.circuit(NAME)["counters"]["rx_dropped"]["no_key"] for each in both]
        with (
            load(routers),
            Outlet(tap_a) as out_of_a,
            Outlet(tap_b) as out_of_b,
        ):
            began = time.monotonic()
            with Stream(tap_a, "to B", 0.002) as to_b, Stream(tap_b, "to A", 0.002) as to_a:
                time.sleep(seconds)
            lasted_s = time.monotonic() - began
            for stream, outlet in ((to_b, out_of_b), (to_a, out_of_a)):
                eventually(
                    lambda s=stream, o=outlet: len(o.frames()) >= s.sent,  # type: ignore[misc]
                    5,
                    f"{stream.sent} frames; {len(outlet.frames())} came",
                )
        changes = [generation(each) - before for each in both]
        dropped = [each.circuit(NAME)["counters"]["rx_dropped"] for each in both]

    figure(f"{lasted_s:.0f} s: {to_b.sent} and {to_a.sent} frames, {changes} changes of keys")
    for stream, outlet, mark in ((to_b, out_of_b, "to B"), (to_a, out_of_a, "to A")):
        counts = Counter(outlet.frames())
        assert counts == {(mark, number): 1 for number in range(stream.sent)}
    assert [(each["bad_tag"], each["no_key"], each["replayed"]) for each in dropped] == [
        (0, count, 0) for count in early
    ]
    assert min(changes) >= 0.7 * seconds


@pytest.mark.thorough
@pytest.mark.parametrize("reverse", [False, True])
def test_circuit_loses_nothing_under_full_load_where_keys_change_each_second(
    routers: TwoRouters, tmp_path: Path, reverse: bool, figure: Callable[[str], None]
) -> None:
    """By the counters of both ends: a capture of all that would be no quicker than the circuit."""
    config_a, config_b = psk_configs(routers, psk_file(tmp_path))
    with (
        Velad(routers.b.namespace, config_b, before=EACH_SECOND) as b,
        Velad(routers.a.namespace, config_a, before=EACH_SECOND) as a,
    ):
        both = Ends(a, b)
        wait_until_up(both)
        for each in both:
            await_operational(Interface(each.namespace, NAME))
        before = generation(a)
        early = [each.circuit(NAME)["counters"]["rx_dropped"]["no_key"] for each in both]
        done = iperf3(b.namespace, a.namespace, INNER_B, seconds=FULL_LOAD_S, reverse=reverse)
        changes = [generation(each) - before for each in both]
        # What the kernel had no room for is no fault of keys.
        overflows = sum(
            kernel_counts(each.namespace, "UdpRcvbufErrors", "Udp6RcvbufErrors") for each in both
        )

        def lost() -> int:
            counters = [each.circuit(NAME)["counters"] for each in both]
            sent = sum(int(each["tx_frames"]) for each in counters)
            return sent - sum(int(each["rx_frames"]) for each in counters)

        eventually(lambda: lost() <= overflows, 5, f"{overflows} frames or fewer to be missing")
        dropped = [each.circuit(NAME)["counters"]["rx_dropped"] for each in both]

    figure(
        f"{done.received_bits_per_s / 1e6:.0f} Mbit/s, {changes} changes of keys, "
        f"{done.retransmits} segments sent again, {overflows} datagrams without room"
    )
    assert [(each["bad_tag"], each["no_key"], each["replayed"]) for each in dropped] == [
        (0, count, 0) for count in early
    ]
    # Each second where there is a CPU for it.
    assert min(changes) >= 0.25 * FULL_LOAD_S
