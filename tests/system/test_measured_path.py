"""Delay, jitter and loss that are put into one direction, and what the status says of them.

vm/guest/impairment.py has the kernel's own netem.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import mean, quantiles
from typing import Any

import pytest

from lab.autoconfigured import asking_for_each, ends, policy, wait_until_up
from lab.slow_underlay import slow_underlay

pytestmark = [pytest.mark.alone, pytest.mark.needs_net_admin]

# Ten requests a second, the most there are.
KEEPALIVE_S = 0.4
CIRCUITS = [f"vela{number}" for number in range(1, 9)]
PROBING_S = 20
REQUESTS = 187
"""Of each circuit of one end, at least."""
LEAST_CIRCUITS = 4
"""Where a tenth is lost, three keepalives in a row are now and then: the circuit begins anew."""
DELAY_S = (0.015, 0.025)


def test_delay_jitter_and_loss_are_those_that_were_put_in(figure: Callable[[str], None]) -> None:
    """What a busy machine adds by itself is in what the way says, or is measured first."""
    config = asking_for_each("10.201.0.2", CIRCUITS, keepalive=KEEPALIVE_S)
    own: list[float] = []
    with slow_underlay() as (routers, way):
        for percent in (0, 1, 10):
            if percent:
                way.delay_s, way.loss = DELAY_S, percent / 100
            with ends(routers, config, policy()) as both:
                for name in CIRCUITS:
                    wait_until_up(both, a=name, b=name, timeout_s=20)
                way.forget()
                begun = [velad.status()["circuits"] for velad in both]
                # Time alone makes requests.
                time.sleep(PROBING_S)
                waited_s = list(way.delays_s)
                ended = [velad.status()["circuits"] for velad in both]
            found = _up_all_the_while(begun, ended)
            assert len(found[0]) >= LEAST_CIRCUITS
            median_ms = 1000 * quantiles(waited_s, n=2)[0]
            for end, circuits in zip("ab", found, strict=True):
                p50, p99, jitter = (
                    _mean(circuits, "delay_ms", k) for k in ("p50", "p99", "jitter")
                )
                tx, rx = (_mean(circuits, "loss", f"{k}_percent") for k in ("tx", "rx"))
                figure(
                    f"put in {median_ms:.1f} ms, {percent} % from a to b; {end}: median {p50:.1f}, "
                    f"p99 {p99:.1f}, jitter {jitter:.1f} ms, sent {tx:.2f} %, received {rx:.2f} %"
                )
                if not percent:
                    own.append(p50)
                    continue
                here, there = (tx, rx) if end == "a" else (rx, tx)
                # One in 16000 is further away.
                requests = REQUESTS * len(circuits)
                bound = 400 * math.sqrt(percent / 100 * (1 - percent / 100) / requests)
                assert here == pytest.approx(percent, abs=bound)
                assert here > 0
                assert there < min(bound, 1.0)
                assert median_ms - 1 < p50 < median_ms + 2 * own["ab".index(end)] + 5
                # Two of them differ by a third of 10 ms in the mean.
                assert jitter > 1.8


def _up_all_the_while(
    begun: list[list[dict[str, Any]]], ended: list[list[dict[str, Any]]]
) -> list[list[dict[str, Any]]]:
    """Return those of each end that have not begun anew at either, by what status says."""
    flapped = {
        after["name"]
        for end_before, end_after in zip(begun, ended, strict=True)
        for before, after in zip(end_before, end_after, strict=True)
        if before["transitions"] != after["transitions"]
    }
    return [[each for each in end if each["name"] not in flapped] for end in ended]


def _mean(circuits: list[dict[str, Any]], table: str, key: str) -> float:
    return float(mean(each[table][key] for each in circuits))
