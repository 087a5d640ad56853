"""Interfaces in namespaces: veth pairs, bridges, addresses, offloads, rates. By ip, tc, ethtool."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

from lab.namespace import Namespace

ETHERNET_MTU = 1500


class Regime(Enum):
    """Whether a veth hands over large buffers or frames of the size a wire carries.

    How many frames share a buffer depends on how busy the machine is. What is
    captured of FRAMES does not.
    """

    OFFLOAD = "offload"  # Linux's defaults: one 64 KiB buffer travels whole
    WIRE = "wire"  # segmented before it leaves, joined again (GRO) on arrival
    FRAMES = "frames"  # segmented before it leaves, and left so


_FEATURES = {
    Regime.OFFLOAD: {"tso": "on", "gso": "on", "tx-udp-segmentation": "on", "gro": "off"},
    Regime.WIRE: {"tso": "off", "gso": "off", "tx-udp-segmentation": "off", "gro": "on"},
    Regime.FRAMES: {"tso": "off", "gso": "off", "tx-udp-segmentation": "off", "gro": "off"},
}


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface by name, in the namespace where it is."""

    namespace: Namespace
    name: str

    def _ip(self, *argv: str) -> str:
        return self.namespace.run("ip", *argv).stdout

    @property
    def mac(self) -> bytes:
        """Return its six bytes."""
        words = self._ip("-o", "link", "show", "dev", self.name).split()
        return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))

    @property
    def carrier(self) -> bool:
        return "LOWER_UP" in self._ip("-o", "link", "show", "dev", self.name)

    @property
    def mtu(self) -> int:
        words = self._ip("-o", "link", "show", "dev", self.name).split()
        return int(words[words.index("mtu") + 1])

    def set_up(self) -> None:
        self._ip("link", "set", "dev", self.name, "up")

    def set_down(self) -> None:
        """Take it down; the other end of a veth pair then loses its carrier."""
        self._ip("link", "set", "dev", self.name, "down")

    def set_mtu(self, mtu: int) -> None:
        self._ip("link", "set", "dev", self.name, "mtu", str(mtu))

    def add_address(self, address: str) -> None:
        """Add an IPv4 or IPv6 address with prefix; usable at once."""
        detection = ("nodad",) if ":" in address else ()
        self._ip("address", "add", address, "dev", self.name, *detection)

    def delete_address(self, address: str) -> None:
        self._ip("address", "del", address, "dev", self.name)

    def set_regime(self, regime: Regime) -> None:
        words = [word for feature in _FEATURES[regime].items() for word in feature]
        self.namespace.run("ethtool", "-K", self.name, *words)

    def set_rate(self, rate: str, burst: str = "256kb", latency: str = "20ms") -> None:
        """Limit what leaves it (tc-tbf notation, such as "1gbit")."""
        self.namespace.run(
            *("tc", "qdisc", "replace", "dev", self.name, "root"),
            *("tbf", "rate", rate, "burst", burst, "latency", latency),
        )

    def clear_rate(self) -> None:
        """Take the limit away, if there is one."""
        self.namespace.run("tc", "qdisc", "replace", "dev", self.name, "root", "noqueue")


def carrier_changes(namespace: Namespace, *names: str) -> list[int]:
    """Return how often the carrier of each interface has come or gone, however briefly."""
    paths = [f"/sys/class/net/{name}/carrier_changes" for name in names]
    return [int(each) for each in namespace.run("cat", *paths).stdout.split()]


def tx_dropped(namespace: Namespace) -> dict[str, int]:
    """Return by interface how many packets it was to send and did not."""
    shown = json.loads(namespace.run("ip", "-j", "-s", "link", "show").stdout)
    return {link["ifname"]: link["stats64"]["tx"]["dropped"] for link in shown}


def rx_bytes(namespace: Namespace, name: str) -> int:
    """Return how many bytes an interface has received."""
    shown = json.loads(namespace.run("ip", "-j", "-s", "link", "show", "dev", name).stdout)
    count: int = shown[0]["stats64"]["rx"]["bytes"]
    return count


def veth(
    a: Namespace, a_name: str, b: Namespace, b_name: str, mtu: int = ETHERNET_MTU
) -> tuple[Interface, Interface]:
    """Join two namespaces by a cable: an interface in each, both up, mtu in bytes."""
    a.run(
        *("ip", "link", "add", a_name, "mtu", str(mtu), "type", "veth"),
        *("peer", "name", b_name, "netns", b.name, "mtu", str(mtu)),
    )
    ends = Interface(a, a_name), Interface(b, b_name)
    for end in ends:
        end.set_up()
    return ends


def bridge(namespace: Namespace, name: str, *ports: Interface) -> Interface:
    """Make a bridge, up, that joins the ports; they must be in the same namespace."""
    namespace.run("ip", "link", "add", name, "type", "bridge", "forward_delay", "0")
    for port in ports:
        namespace.run("ip", "link", "set", "dev", port.name, "master", name)
    made = Interface(namespace, name)
    made.set_up()
    return made
