"""Routes that lead a circuit into itself, and circuits that carry others."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from vela.address import Endpoint, IPAddress
from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import Route
from vela.supervisor.circuit.loops import Aim, Carriers

HERE = ip_address("192.0.2.1")
ETH0, VELA0, VELA1, VELA2, VLAN = 2, 10, 11, 12, 20


@dataclass
class Host:
    """Interfaces that stand on others, and routes by the remote's last byte."""

    lower: dict[int, int] = field(default_factory=dict)
    routes: dict[int, int] = field(default_factory=dict)

    def lower_link(self, index: int) -> int | None:
        return self.lower.get(index)

    def describe_route(self, source: IPAddress, remote: IPAddress, choice: UnderlayChoice) -> str:
        return f"{remote} dev {self.routes[int(remote) & 0xFF]}"

    def route_of(self, aim: Aim) -> Route | None:
        index = self.routes.get(int(aim.remote.address) & 0xFF)
        return None if index is None else Route(HERE, 1500, interface=index)


def aim(circuit: str, number: int) -> Aim:
    return Aim(circuit, HERE, Endpoint(ip_address(f"192.0.2.{number}"), 48621))


def loop_of(host: Host, aims: dict[int, Aim], index: int) -> str:
    carriers = Carriers(host, host.route_of)
    for each, known in aims.items():
        carriers.aim(each, known)
    route = host.route_of(aims[index])
    assert route is not None
    return carriers.find_loop(index, aims[index], route)


def test_route_out_of_another_interface_is_no_loop() -> None:
    host = Host(routes={2: ETH0})

    assert loop_of(host, {VELA0: aim("vela0", 2)}, VELA0) == ""


def test_route_into_the_circuits_own_interface_is_named() -> None:
    host = Host(routes={2: VELA0})

    found = loop_of(host, {VELA0: aim("vela0", 2)}, VELA0)

    assert found == f"the route 192.0.2.2 dev {VELA0} leads into the circuit itself"


def test_route_into_a_vlan_on_the_circuits_interface_is_a_loop() -> None:
    host = Host(lower={VLAN + 1: VLAN, VLAN: VELA0}, routes={2: VLAN + 1})

    assert "the circuit itself" in loop_of(host, {VELA0: aim("vela0", 2)}, VELA0)


def test_circuit_carried_by_another_that_leaves_the_machine_is_no_loop() -> None:
    host = Host(routes={2: VELA1, 3: ETH0})

    assert loop_of(host, {VELA0: aim("vela0", 2), VELA1: aim("vela1", 3)}, VELA0) == ""


@pytest.mark.parametrize("last", [VELA0, VELA1, VELA2])
def test_circle_of_circuits_is_a_loop_for_all_that_lead_into_it(last: int) -> None:
    host = Host(routes={2: VELA1, 3: VELA2, 4: last})
    aims = {VELA0: aim("vela0", 2), VELA1: aim("vela1", 3), VELA2: aim("vela2", 4)}

    found = loop_of(host, aims, VELA0)

    assert found == (
        f"the route 192.0.2.2 dev {VELA1} leads into circuit vela1, and from there back"
    )


def test_circuit_whose_carrier_has_no_route_is_no_loop() -> None:
    host = Host(routes={2: VELA1})

    assert loop_of(host, {VELA0: aim("vela0", 2), VELA1: aim("vela1", 3)}, VELA0) == ""


def test_circuit_that_is_gone_carries_nothing() -> None:
    host = Host(routes={2: VELA1, 3: VELA0})
    carriers = Carriers(host, host.route_of)
    carriers.aim(VELA1, aim("vela1", 3))
    carriers.forget(VELA1)

    assert carriers.find_loop(VELA0, aim("vela0", 2), Route(HERE, 1500, interface=VELA1)) == ""


def test_interface_that_goes_meanwhile_is_no_loop() -> None:
    class Gone(Host):
        def lower_link(self, index: int) -> int | None:
            raise DeviceError("there is no interface of this index")

    assert loop_of(Gone(routes={2: ETH0}), {VELA0: aim("vela0", 2)}, VELA0) == ""
