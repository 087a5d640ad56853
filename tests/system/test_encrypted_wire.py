"""What a capture of the underlay shows of encrypted circuits while everything happens to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from marked_load import INNER_A, INNER_B, MARK, load
from sealed_circuit import (
    await_rekey,
    generation,
    holder_of,
    identity_configs,
    psk_configs,
    psk_file,
)
from sealed_wire import SEALED, circuit_datagrams

from lab.autoconfigured import Ends, ends, wait_until_up
from lab.capture import Capture, Packet
from lab.circuit import NAME
from lab.daemon import Velad
from lab.frames import await_operational
from lab.link import Interface
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

PATTERN = b"and nobody this!"


@pytest.fixture
def psk(tmp_path: Path) -> Path:
    return psk_file(tmp_path)


@pytest.fixture(params=["psk", "identity"])
def configs(
    request: pytest.FixtureRequest, routers: TwoRouters, psk: Path, tmp_path: Path
) -> tuple[str, str]:
    if request.param == "psk":
        return psk_configs(routers, psk)
    return identity_configs(routers, tmp_path)


def await_pings(routers: TwoRouters) -> None:
    """With a pattern that a capture can be searched for.

    Where a neighbour has to be asked for first, the load's datagrams push others out of the queue.
    """
    for router, other in ((routers.a, INNER_B), (routers.b, INNER_A)):
        await_operational(Interface(router.namespace, NAME))
        eventually(partial(_answers, router.namespace, other), 10, f"{other} to answer")


def _answers(namespace: Namespace, other: str) -> bool:
    pings = ping(namespace, other, count=5, interval_s=0.05, size=128, pattern=PATTERN, timeout_s=1)
    return pings.lost == 0


def readable(packets: Sequence[Packet]) -> list[bytes]:
    """Return the beginnings of all that crossed the underlay with known plaintext in it."""
    texts = (MARK, PATTERN, PATTERN[8:] + PATTERN[:8])
    return [each.data[:64] for each in packets if any(text in each.data for text in texts)]


def assert_sealed(packets: Sequence[Packet], at_least: int) -> None:
    """There are so many datagrams of the circuit each way; all are sealed, and nothing is read."""
    found = list(circuit_datagrams(packets))
    assert [each.data[:32].hex() for each in found if not each.is_sealed] == []
    assert readable(packets) == []
    for outgoing in (True, False):
        assert sum(each.outgoing is outgoing for each in found) >= at_least


def test_nothing_is_in_clear_at_start_rekey_and_any_death(
    framed: TwoRouters, configs: tuple[str, str]
) -> None:
    routers = framed
    with (
        Capture(routers.a.underlay) as capture,
        load(routers),
        ends(routers, *configs) as both,
    ):
        wait_until_up(both)
        await_pings(routers)
        for velad in both:
            known = generation(velad)
            os.kill(velad.worker_pid(NAME), signal.SIGKILL)
            await_rekey(velad, known)
        for velad in both:
            lost = holder_of(velad)
            os.kill(lost, signal.SIGKILL)
            eventually(partial(_has_other_holder, velad, lost), 10, "another key holder")
        wait_until_up(both)
        for velad in both:
            velad.kill()
            velad.start()
            wait_until_up(both, timeout_s=20)
        await_pings(routers)
        packets = capture.packets()

    assert_sealed(packets, at_least=500)


def _has_other_holder(velad: Velad, lost: int) -> bool:
    return holder_of(velad) not in (0, lost)


@pytest.mark.usefixtures("eager")
def test_nothing_is_in_clear_while_the_mtu_changes(framed: TwoRouters, psk: Path) -> None:
    routers = framed
    config_a, config_b = psk_configs(routers, psk)
    with (
        Capture(routers.a.underlay) as capture,
        load(routers),
        ends(routers, config_a, config_b) as both,
    ):
        wait_until_up(both)
        assert both.a.circuit(NAME)["mtu"] == 1450
        set_route_mtu(routers, 1450)
        await_mtu(both, 1400)
        await_pings(routers)
        both.a.configure(config_a.replace("id = 1\n", "id = 1\nmtu = 1390\n"))
        both.a.reload()
        await_mtu(both, 1390)
        await_pings(routers)
        # Until both ends have heard of it, frames go in pieces.
        set_route_mtu(routers, 1400)
        await_mtu(both, 1350)
        await_pings(routers)
        packets = capture.packets()

    assert_sealed(packets, at_least=500)


def set_route_mtu(routers: TwoRouters, mtu: int) -> None:
    routers.a.set_route_mtu(routers.b.ipv4, mtu)
    routers.b.set_route_mtu(routers.a.ipv4, mtu)


def await_mtu(both: Ends, mtu: int) -> None:
    for velad in both:
        velad.wait_for(
            lambda status: (
                (status["circuits"][0]["mtu"], status["circuits"][0]["state"]) == (mtu, "up")
            ),
            20,
            f"an MTU of {mtu}",
        )


def test_nothing_is_in_clear_from_one_reload_to_the_other(framed: TwoRouters, psk: Path) -> None:
    """none, required, none: first at one end and then at the other."""
    routers = framed
    clear, sealed = (psk_configs(routers, psk, each) for each in ("none", "required"))
    with Capture(routers.a.underlay) as capture, load(routers), ends(routers, *clear) as both:
        wait_until_up(both)
        await_pings(routers)
        before = len(capture.packets())
        # The positive control: that what is looked for would be found.
        assert len(readable(capture.seen)) > 10
        assert any(not each.is_sealed for each in circuit_datagrams(capture.seen))

        reload(both.a, sealed[0], "required")
        first = len(capture.packets())
        reload(both.b, sealed[1], "required")
        second = len(capture.packets())
        wait_until_up(both, timeout_s=20)
        await_pings(routers)
        third = len(capture.packets())
        reload(both.b, clear[1], "none")
        fourth = len(capture.packets())
        reload(both.a, clear[0], "none")
        wait_until_up(both, timeout_s=20)
        await_pings(routers)
        packets = capture.packets()

    assert before < first
    assert_sealed(packets[second:third], at_least=50)
    # Each end by itself, from its reload on.
    for outgoing, begin, end in ((True, first, fourth), (False, second, third)):
        sent = [each for each in packets[begin:end] if each.outgoing is outgoing]
        assert readable(sent) == []
        assert all(each.data[1] in SEALED for each in circuit_datagrams(sent))
    assert len(readable(packets[fourth:])) > 10


def reload(velad: Velad, config: str, encryption: str) -> None:
    """Return when the circuit, if there still is one, is what the configuration says."""
    since = time.time()
    velad.configure(config)
    velad.reload()
    velad.logged_at("configuration_reloaded", since)
    velad.wait_for(
        lambda status: all(each["encryption"] == encryption for each in status["circuits"]),
        10,
        f"encryption to be {encryption}",
    )
