"""A circuit that is configured at both ends, between two routers, with velad on each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lab.counters import Wanted
from lab.daemon import Velad, started_together
from lab.errors import LabError
from lab.frames import await_operational
from lab.link import Interface
from lab.topology import Router, TwoRouters

NAME = "vela0"
CIRCUIT_ID = 1
MAC_A = "02:00:5e:10:00:01"
MAC_B = "02:00:5e:10:00:02"
ADDRESSES_A = ("172.16.16.1/30", "fd00:16::1/64")
ADDRESSES_B = ("172.16.16.2/30", "fd00:16::2/64")

Value = str | int | bool | list[str] | list[int]


@dataclass(frozen=True, slots=True)
class End:
    """One router's side: its velad, and the circuit's interface there."""

    router: Router
    velad: Velad
    interface: Interface

    @property
    def counters(self) -> dict[str, Any]:
        """Return the circuit's counters, from velad's status, as far as its worker has come."""
        counters: dict[str, Any] = self.velad.circuit(NAME)["counters"]
        return counters

    def counted(self, **wanted: Wanted) -> dict[str, Any]:
        """Return them as soon as they have come to what is wanted. See Velad.counted."""
        return self.velad.counted(NAME, **wanted)


@dataclass(frozen=True, slots=True)
class Circuit:
    """Both ends, carrying frames."""

    a: End
    b: End


def circuit_table(remote: str, *, mac: str, peer_mac: str | None, **settings: Value) -> str:
    """Return the TOML of a circuit without handshake; settings are further keys of its table."""
    values: dict[str, Value] = {
        "id": CIRCUIT_ID,
        "remote": remote,
        "mac": mac,
        "autoconfigure": False,
        **settings,
    }
    # What JSON and TOML write alike: strings, integers, booleans, lists of them.
    lines = [f"[circuits.{NAME}]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    if peer_mac is not None:
        lines += [f"[circuits.{NAME}.peer]", f'mac = "{peer_mac}"']
    return "\n".join(lines) + "\n"


@contextmanager
def static_ends(
    routers: TwoRouters,
    *,
    outer: str = "ipv4",
    engine: str = "auto",
    macs: tuple[str, str] = (MAC_A, MAC_B),
    names_peer_mac: bool = True,
    addresses: tuple[tuple[str, ...], tuple[str, ...]] = (ADDRESSES_A, ADDRESSES_B),
    **settings: Value,
) -> Iterator[tuple[Velad, Velad]]:
    """Both ends of a circuit over the routers' IPv4 or IPv6 addresses, ready.

    Where each end names the other one's MAC, headers are elided. engine is
    the data path of both ends, settings are further keys of both circuits.
    """

    def config(remote: Router, own: int) -> str:
        return f'[daemon]\nengine = "{engine}"\n' + circuit_table(
            remote.ipv4 if outer == "ipv4" else remote.ipv6,
            mac=macs[own],
            peer_mac=macs[1 - own] if names_peer_mac else None,
            addresses=list(addresses[own]),
            **settings,
        )

    a = Velad(routers.a.namespace, config(routers.b, 0))
    b = Velad(routers.b.namespace, config(routers.a, 1))
    with started_together(a, b):
        yield a, b


@contextmanager
def static_circuit(
    routers: TwoRouters, *, engine: str = "auto", **settings: Any
) -> Iterator[Circuit]:
    """As static_ends(), as soon as both ends carry frames."""
    with static_ends(routers, engine=engine, **settings) as (a, b):
        for velad in (a, b):
            velad.wait_for_state(NAME, "unmonitored")
            velad.worker_pid(NAME)
            used = velad.circuit(NAME)["worker"]["engine"]
            if engine not in ("auto", used):
                raise LabError(f"the engine of velad {velad.name} is {used}, not {engine}")
            await_operational(Interface(velad.namespace, NAME))
        yield Circuit(
            End(routers.a, a, Interface(routers.a.namespace, NAME)),
            End(routers.b, b, Interface(routers.b.namespace, NAME)),
        )
