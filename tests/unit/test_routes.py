"""Which routes a circuit takes: by its operator's choice, and by where its remote knows it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import cast

import pytest

from vela.address import Endpoint, IPAddress
from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import ReceiveGroup, Route
from vela.reasons import NO_REASON, Reason
from vela.supervisor.circuit.routes import CircuitRoutes, RouteLoop

REMOTE = Endpoint(ip_address("192.0.2.9"), 48621)
HERE, CHOSEN, BEST = map(ip_address, ("192.0.2.1", "192.0.2.2", "192.0.2.3"))
GROUP = cast(ReceiveGroup, object())


class Machine:
    """Has HERE no longer, if it is lost; the kernel goes from BEST where nobody chooses."""

    def __init__(self) -> None:
        self.lost = self.cut_off = False
        self.looks = 0
        self.loop = NO_REASON

    def way_from(
        self, here: IPAddress, remote: Endpoint, choice: UnderlayChoice
    ) -> tuple[ReceiveGroup, Route]:
        if self.lost:
            raise DeviceError(f"no way from {here}")
        return GROUP, Route(here, 1500)

    def way_to(self, remote: Endpoint, choice: UnderlayChoice) -> tuple[ReceiveGroup, Route]:
        self.looks += 1
        if self.cut_off:
            raise DeviceError("no way at all")
        return GROUP, Route(BEST, 1500)

    def find_loop(self, remote: Endpoint, route: Route) -> Reason:
        return self.loop


@pytest.mark.parametrize(
    ("bind", "source", "taken"),
    [
        (None, None, BEST),
        (None, HERE, HERE),
        (None, ip_address("2001:db8::1"), BEST),
        (CHOSEN, HERE, CHOSEN),
    ],
)
def test_route_is_from_the_address_that_is_asked_for(
    bind: IPAddress | None, source: IPAddress | None, taken: IPAddress
) -> None:
    machine = Machine()
    routes = CircuitRoutes(machine, UnderlayChoice(bind=bind), machine)

    assert routes.way(REMOTE, source) == (GROUP, Route(taken, 1500))
    assert routes.way_preferring(REMOTE, source) == (GROUP, Route(taken, 1500))


def test_only_a_preference_gives_way_where_the_address_is_lost() -> None:
    machine = Machine()
    machine.lost = True
    routes = CircuitRoutes(machine, UnderlayChoice(), machine)

    with pytest.raises(DeviceError, match="no way from"):
        routes.way(REMOTE, HERE)
    assert routes.way_preferring(REMOTE, HERE) == (GROUP, Route(BEST, 1500))


def test_preference_of_the_other_family_is_no_reason_to_look_twice() -> None:
    machine = Machine()
    machine.cut_off = True
    routes = CircuitRoutes(machine, UnderlayChoice(), machine)

    with pytest.raises(DeviceError, match="no way at all"):
        routes.way_preferring(REMOTE, ip_address("2001:db8::1"))
    assert machine.looks == 1


def test_route_into_the_circuit_itself_is_none() -> None:
    machine = Machine()
    machine.loop = Reason("it leads into vela0", "route_loop")
    routes = CircuitRoutes(machine, UnderlayChoice(), machine)

    for source in (None, HERE):
        with pytest.raises(RouteLoop, match="it leads into vela0"):
            routes.way(REMOTE, source)
