"""vela.supervisor.static: what a static circuit shows while the way to its remote changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface

import pytest

from lab.link import Interface
from lab.topology import TwoRouters
from vela.circuit import CircuitConfig, Engine, Remote
from vela.confinement import find_user
from vela.counters import CounterSlab
from vela.engine import load_engine
from vela.supervisor import circuit as circuit_module
from vela.supervisor.burst import Burst
from vela.supervisor.circuit import Origin, State
from vela.supervisor.loop import EventLoop
from vela.supervisor.names import Names
from vela.supervisor.netlink import Netlink
from vela.supervisor.pseudowire import Services
from vela.supervisor.reception import Reception
from vela.supervisor.static import StaticCircuit
from vela.underlay import ReceiveGroup

pytestmark = pytest.mark.needs_net_admin

PORT = 48621
CONFIG = CircuitConfig(
    name="vela0",
    id=1,
    remote=Remote("10.201.0.2"),
    addresses=(ip_interface("fd00:16::1/64"),),
    autoconfigure=False,
)


@pytest.fixture
def services(routers: TwoRouters) -> Iterator[Services]:
    """What a supervisor on router A has, in this process."""
    with ExitStack() as undo:
        undo.enter_context(routers.a.namespace.entered())
        loop = EventLoop()
        undo.callback(signal.set_wakeup_fd, -1)
        group = ReceiveGroup(ip_address("::"), PORT, only_ipv6=False)
        undo.callback(group.close)
        netlink = Netlink()
        undo.callback(netlink.close)
        user = find_user("nobody")
        names = Names(loop, user)
        undo.callback(names.close)
        yield Services(
            loop=loop,
            netlink=netlink,
            reception=Reception(loop, (group,)),
            names=names,
            forks=Burst(loop, 0.0),
            counters=CounterSlab(),
            engine=load_engine(Engine.PYTHON),
            user=user,
            port=PORT,
            identity=("test",),
        )


def test_circuit_whose_way_gets_too_narrow_carries_nothing_until_it_is_wide_enough(
    routers: TwoRouters, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_module, "REFRESH_INTERVAL_S", 0.05)
    monkeypatch.setattr(circuit_module, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(circuit_module, "LONGEST_RETRY_S", 0.05)
    circuit = StaticCircuit(CONFIG, services, 0, Origin.CONFIG)
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
