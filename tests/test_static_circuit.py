"""A static circuit, while the route to its remote changes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface
from typing import cast

import pytest
from services import Services, services_in

from lab.link import Interface
from lab.topology import TwoRouters
from vela.address import Endpoint, Remote
from vela.circuit import CircuitConfig
from vela.linux.underlay import ReceiveGroup, Route
from vela.supervisor.circuit.circuit import Circuit, Origin, Owner
from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.runtime import names as names_module

pytestmark = pytest.mark.needs_net_admin

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
        CONFIG,
        Origin.CONFIG,
        services.make_pseudowire(CONFIG, 0),
        loop=services.loop,
        names=services.names,
        routes=services.demux,
        owner=cast(Owner, None),  # it has no signalling that could ask for it
        port=services.port,
        control_channel=None,
    )


def test_circuit_whose_way_gets_too_narrow_carries_nothing_until_it_is_wide_enough(
    routers: TwoRouters, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "REFRESH_INTERVAL_S", 0.05)
    monkeypatch.setattr(names_module, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(names_module, "LONGEST_RETRY_S", 0.05)
    circuit = make(services)
    interface = Interface(routers.a.namespace, "vela0")

    def seen(underlay_mtu: int) -> tuple[State, bool, bool]:
        routers.a.underlay.set_mtu(underlay_mtu)
        services.loop.call_later(0.5, services.loop.stop)
        services.loop.run()
        status = circuit.status()
        carries = status.worker is not None and status.worker.pid is not None
        return circuit.state, carries, interface.carrier

    try:
        circuit.start()
        assert seen(1500) == (State.UNMONITORED, True, True)
        # 1308 - 29 = 1279, one byte less than RFC 8200 asks for.
        assert seen(1308) == (State.FAILED, False, False)
        assert seen(1309) == (State.UNMONITORED, True, True)
    finally:
        circuit.close()


def test_circuit_whose_look_at_its_way_fails_looks_again(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(names_module, "FIRST_RETRY_S", 0.05)
    proper = services.demux.way_to
    looks = 0

    def fail_at_first(remote: Endpoint) -> tuple[ReceiveGroup, Route]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ZeroDivisionError
        return proper(remote)

    monkeypatch.setattr(services.demux, "way_to", fail_at_first)
    circuit = make(services)
    try:
        circuit.start()
        services.loop.call_later(0.5, services.loop.stop)
        services.loop.run()

        assert circuit.state is State.UNMONITORED
        assert capsys.readouterr().out.count("callback_failed") == 1
    finally:
        circuit.close()
