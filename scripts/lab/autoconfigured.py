"""A circuit that one router asks for, and the other one sets up by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lab.circuit import ADDRESSES_A, ADDRESSES_B, NAME
from lab.daemon import Velad
from lab.namespace import Namespace
from lab.topology import ThreeRouters, TwoRouters

# So that what stops is noticed in a test's time, and a machine that stands still for a
# second or two is not taken for it.
KEEPALIVE_S = 1.0

Settings = Mapping[str, Any]

POLICY: Settings = {
    "from": ["10.201.0.0/24", "fd00:201::/64"],
    "networks": ["172.16.0.0/12", "fd00::/8"],
    "bridges": ["br-lan"],
}
"""What B lets others do."""


@dataclass(frozen=True, slots=True)
class Ends:
    """velad on both routers."""

    a: Velad
    b: Velad

    def __iter__(self) -> Iterator[Velad]:
        return iter((self.a, self.b))


def policy(**changes: Any) -> str:
    """Return an [autoconfigure] table: B's usual one, but for the changes; None: left out.

    The key "from" is given as sources.
    """
    renamed = {"from" if key == "sources" else key: value for key, value in changes.items()}
    return _table("autoconfigure", {**POLICY, **renamed})


def asking(
    remote: str | list[str], *, name: str = NAME, peer: Settings | None = None, **settings: Any
) -> str:
    """Return a circuit's table whose other end is set up by autoconfiguration."""
    own = {"id": 1, "remote": remote, "addresses": list(ADDRESSES_A), "keepalive": KEEPALIVE_S}
    theirs = {"interface": name, "addresses": list(ADDRESSES_B)} | dict(peer or {})
    return _table(f"circuits.{name}", {**own, **settings}) + _table(f"circuits.{name}.peer", theirs)


def asking_for_each(remote: str, names: Sequence[str], **settings: Any) -> str:
    """Return the tables of circuits 1, 2, ... of these names, with 172.16.ID.1/30 and .2/30."""
    return "".join(
        asking(
            remote,
            name=name,
            id=number,
            addresses=[f"172.16.{number}.1/30"],
            peer={"addresses": [f"172.16.{number}.2/30"]},
            **settings,
        )
        for number, name in enumerate(names, 1)
    )


def asking_back(remote: str, **settings: Any) -> str:
    """Return the table of B, whose operator configures the same circuit toward A: see asking()."""
    return asking(
        remote, addresses=list(ADDRESSES_B), peer={"addresses": list(ADDRESSES_A)}, **settings
    )


@contextmanager
def ends(routers: TwoRouters | ThreeRouters, config_a: str, config_b: str) -> Iterator[Ends]:
    """Start velad on both routers, on B first."""
    with (
        Velad(routers.b.namespace, config_b) as b,
        Velad(routers.a.namespace, config_a) as a,
    ):
        yield Ends(a, b)


@contextmanager
def circuit(
    routers: TwoRouters, *, policy_b: str | None = None, policy_a: str = "", **settings: Any
) -> Iterator[Ends]:
    """A circuit from A to B, as soon as it is up on both."""
    config_a = policy_a + asking(settings.pop("remote", routers.b.ipv4), **settings)
    with ends(routers, config_a, policy() if policy_b is None else policy_b) as both:
        wait_until_up(both)
        yield both


def wait_until_up(both: Ends, *, a: str = NAME, b: str = NAME, timeout_s: float = 10.0) -> None:
    both.a.wait_for_state(a, "up", timeout_s=timeout_s)
    both.b.wait_for_state(b, "up", timeout_s=timeout_s)


def interfaces(namespace: Namespace) -> set[str]:
    """Return the names of all interfaces that are in a namespace."""
    links = json.loads(namespace.run("ip", "-j", "link", "show").stdout)
    return {link["ifname"] for link in links}


def addresses(namespace: Namespace, name: str) -> set[str]:
    """Return an interface's addresses with their prefixes, but the link-local ones."""
    (shown,) = json.loads(namespace.run("ip", "-j", "addr", "show", "dev", name).stdout)
    return {
        f"{each['local']}/{each['prefixlen']}"
        for each in shown["addr_info"]
        if each["scope"] != "link"
    }


def master(namespace: Namespace, name: str) -> str | None:
    """Return the bridge that an interface is a port of."""
    (shown,) = json.loads(namespace.run("ip", "-j", "link", "show", "dev", name).stdout)
    joined: str | None = shown.get("master")
    return joined


def _table(name: str, values: Settings) -> str:
    # What JSON and TOML write alike.
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{name}]", *lines]) + "\n"
