"""What a supervisor gives its circuits, in the process of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from lab.namespace import Namespace
from vela.dataplane.counters import CounterSlab
from vela.dataplane.engine import Engine, load_engine
from vela.linux.features import probe
from vela.linux.forwarding import Forwarding
from vela.linux.netlink import Netlink
from vela.linux.sandbox import find_user
from vela.linux.underlay import ReceiveGroup
from vela.supervisor.circuit.circuit import Circuit
from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.circuit.links import Links
from vela.supervisor.circuit.loops import Carriers
from vela.supervisor.circuit.pseudowire import PseudowireFactory
from vela.supervisor.demux import Demux
from vela.supervisor.runtime.burst import Burst, Pause
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.names import Names

PORT = 48621


class Nobody:
    """Owns a circuit and takes note of nothing; one without signalling asks for nothing else."""

    def on_state_changed(self, circuit: Circuit, before: State) -> None:
        pass


def turn_until(loop: EventLoop, reached: Callable[[], bool], timeout_s: float) -> bool:
    """Let the loop do its work until something is reached; tell whether it was, in time."""
    given_up_at = loop.now() + timeout_s
    outcome = False

    def look() -> None:
        nonlocal outcome
        outcome = reached()
        if outcome or loop.now() > given_up_at:
            loop.stop()
        else:
            loop.call_later(0.02, look)

    loop.call_soon(look)
    loop.run()
    return outcome


@dataclass(frozen=True, slots=True)
class Services:
    loop: EventLoop
    names: Names
    demux: Demux
    make_pseudowire: PseudowireFactory
    port: int = PORT


@contextmanager
def services_in(namespace: Namespace) -> Iterator[Services]:
    """All of it real, and in a namespace, which is the process's as long."""
    with ExitStack() as undo:
        undo.enter_context(namespace.entered())
        loop = EventLoop()
        undo.callback(loop.close)
        engine = load_engine(Engine.PYTHON)
        group = ReceiveGroup(ip_address("::"), PORT, only_ipv6=False)
        undo.callback(group.close)
        netlink = Netlink()
        undo.callback(netlink.close)
        links = Links(loop)
        undo.callback(links.close)
        user = find_user("nobody")
        names = Names(loop, user)
        undo.callback(names.close)
        demux = Demux(loop, (group,))
        undo.callback(demux.close)
        factory = PseudowireFactory(
            loop=loop,
            forwarding=Forwarding(),
            netlink=netlink,
            links=links,
            demux=demux,
            carriers=Carriers(netlink),
            forks=Burst(loop, Pause(0.0)),
            counters=CounterSlab(),
            engine=engine,
            features=engine.abilities.features & probe(),
            user=user,
            identity=("test",),
        )
        yield Services(loop, names, demux, factory)
