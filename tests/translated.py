"""Routers behind one that translates their addresses, by nftables, and the one that they call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.link import Interface, bridge, veth
from lab.namespace import Namespace

HUB, HUB6 = "10.201.0.2", "fd00:201::2"
OUTSIDE, OUTSIDE_TOO = "10.201.0.1", "10.201.0.9"
"""The translator's addresses, as the hub sees it."""
STRANGER, STRANGER6 = "10.201.0.5", "fd00:201::5"


@dataclass
class Translator:
    """Where it lets its inside be seen, which may change."""

    namespace: Namespace
    address: str = OUTSIDE
    ports: str = "40000-40099"

    def set(self, *, address: str | None = None, ports: str | None = None) -> None:
        """Let all that passes from now on have other addresses or ports outside."""
        self.address, self.ports = address or self.address, ports or self.ports
        self.namespace.run(
            "nft",
            "-f",
            "-",
            stdin=(
                "table ip nat\ndelete table ip nat\ntable ip nat {\n chain post {\n"
                "  type nat hook postrouting priority srcnat;\n"
                f'  oifname "wan0" meta l4proto udp snat to {self.address}:{self.ports}\n'
                " }\n}\n"
            ),
        )
        self.forget()

    def forget(self) -> None:
        """Have no mapping any more, as after a restart of the translator."""
        self.namespace.run("conntrack", "-F")


@dataclass(frozen=True)
class Translated:
    """The hub and a stranger, outside; two branches behind the translator."""

    hub: Namespace
    stranger: Namespace
    nat: Translator
    branches: tuple[Namespace, Namespace]
    inside: tuple[Interface, Interface]
    """Of the branches."""
    outside: Interface
    """Of the hub."""


@contextmanager
def translated() -> Iterator[Translated]:
    with (
        Namespace("hub") as hub,
        Namespace("switch") as switch,
        Namespace("stranger") as stranger,
        Namespace("nat") as nat,
        Namespace("one") as one,
        Namespace("two") as two,
    ):
        outside, ports = [], []
        for number, (namespace, name, addresses) in enumerate(
            (
                (hub, "eth0", (f"{HUB}/24", f"{HUB6}/64")),
                (stranger, "eth0", (f"{STRANGER}/24", f"{STRANGER6}/64")),
                (nat, "wan0", (f"{OUTSIDE}/24", f"{OUTSIDE_TOO}/24")),
            )
        ):
            end, port = veth(namespace, name, switch, f"port{number}")
            outside.append(end)
            ports.append(port)
            for address in addresses:
                end.add_address(address)
        bridge(switch, "br0", *ports)
        inside = []
        for number, branch in enumerate((one, two)):
            end, gateway = veth(branch, "eth0", nat, f"lan{number}")
            end.add_address(f"10.{202 + number}.0.1/24")
            gateway.add_address(f"10.{202 + number}.0.254/24")
            branch.run("ip", "route", "add", "default", "via", f"10.{202 + number}.0.254")
            inside.append(end)
        nat.sysctl("net/ipv4/ip_forward", 1)
        translator = Translator(nat)
        translator.set()
        yield Translated(hub, stranger, translator, (one, two), (inside[0], inside[1]), outside[0])
