"""What a supervisor shares among its circuits, in the process of a test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from lab.namespace import Namespace
from vela.circuit import Engine
from vela.confinement import find_user
from vela.counters import CounterSlab
from vela.engine import load_engine
from vela.features import probe
from vela.supervisor.burst import Burst
from vela.supervisor.forwarding import Forwarding
from vela.supervisor.loop import EventLoop
from vela.supervisor.names import Names
from vela.supervisor.netlink import Netlink
from vela.supervisor.pseudowire import Services
from vela.supervisor.reception import Reception
from vela.underlay import ReceiveGroup

PORT = 48621


@contextmanager
def services_in(namespace: Namespace) -> Iterator[Services]:
    """All of it real, and in a namespace, which is the process's as long."""
    with ExitStack() as undo:
        undo.enter_context(namespace.entered())
        loop = EventLoop()
        undo.callback(signal.set_wakeup_fd, -1)
        engine = load_engine(Engine.PYTHON)
        group = ReceiveGroup(ip_address("::"), PORT, only_ipv6=False)
        undo.callback(group.close)
        netlink = Netlink()
        undo.callback(netlink.close)
        user = find_user("nobody")
        names = Names(loop, user)
        undo.callback(names.close)
        yield Services(
            loop=loop,
            forwarding=Forwarding(),
            netlink=netlink,
            reception=Reception(loop, (group,)),
            names=names,
            forks=Burst(loop, 0.0),
            counters=CounterSlab(),
            engine=engine,
            features=engine.usable(probe()),
            user=user,
            port=PORT,
            identity=("test",),
        )
