"""A static circuit, while the route to its remote changes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface
from typing import cast

import pytest
from services import Nobody, Services, services_in, turn_until

from lab.link import Interface
from lab.topology import TwoRouters
from vela.address import Endpoint, Remote
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import ReceiveGroup, Route
from vela.supervisor.circuit.circuit import Circuit, Owner
from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.circuit.setup import Origin, Setup
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.runtime import refresh

pytestmark = [pytest.mark.forks, pytest.mark.needs_net_admin]

TIMEOUT_S = 20.0
CONFIG = CircuitConfig(
    name="vela0",
    id=1,
    remote=Remote("10.201.0.2"),
    addresses=(ip_interface("fd00:16::1/64"),),
    autoconfigure=False,
)


@pytest.fixture
def services(routers: TwoRouters) -> Iterator[Services]:
    """On router A."""
    with services_in(routers.a.namespace) as made:
        yield made


def make(services: Services) -> Circuit:
    return Circuit(
        Setup(CONFIG, control_channel=None),
        Origin.CONFIG,
        services.make_pseudowire(CONFIG, 0),
        loop=services.loop,
        names=services.names,
        routes=services.demux,
        owner=cast(Owner, Nobody()),
        port=services.port,
    )


def test_circuit_whose_way_gets_too_narrow_carries_nothing_until_it_is_wide_enough(
    routers: TwoRouters, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "INTERVAL_S", 0.05)
    monkeypatch.setattr(refresh, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(refresh, "LONGEST_RETRY_S", 0.05)
    circuit = make(services)
    interface = Interface(routers.a.namespace, "vela0")

    def seen() -> tuple[State, bool, bool]:
        status = circuit.status()
        carries = status.worker is not None and status.worker.pid is not None
        return circuit.state, carries, interface.carrier

    def becomes(underlay_mtu: int, *expected: State | bool) -> bool:
        routers.a.underlay.set_mtu(underlay_mtu)
        return turn_until(services.loop, lambda: seen() == expected, TIMEOUT_S)

    try:
        circuit.start()
        assert becomes(1500, State.UNMONITORED, True, True), seen()
        # 1308 - 29 = 1279, one byte less than RFC 8200 asks for.
        assert becomes(1308, State.FAILED, False, False), seen()
        assert becomes(1309, State.UNMONITORED, True, True), seen()
    finally:
        circuit.close()


def test_circuit_whose_look_at_its_way_fails_looks_again(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(refresh, "FIRST_RETRY_S", 0.05)
    proper = services.demux.way_to
    looks = 0

    def fail_at_first(remote: Endpoint, choice: UnderlayChoice) -> tuple[ReceiveGroup, Route]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ZeroDivisionError
        return proper(remote, choice)

    monkeypatch.setattr(services.demux, "way_to", fail_at_first)
    circuit = make(services)
    try:
        circuit.start()

        assert turn_until(services.loop, lambda: circuit.state is State.UNMONITORED, TIMEOUT_S), (
            circuit.state
        )
        assert capsys.readouterr().out.count("callback_failed") == 1
    finally:
        circuit.close()
