"""What the cable between two routers is like while tunnels are measured on it."""

from __future__ import annotations

from enum import Enum

from lab import link
from lab.topology import TwoRouters

# What a frame costs on a gigabit wire: preamble 7, start 1, frame check 4, gap
# 12 (IEEE 802.3, clause 3.1.1 and 4.4.2), and Ethernet's header.
WIRE_OVERHEAD = 7 + 1 + 4 + 12
ETHERNET_HEADER = 14
GIGABIT_PER_S = 1e9
TCP_WITH_TIMESTAMPS = 20 + 20 + 12  # IPv4, TCP, option (RFC 7323, section 3.2) padded
BURST = "256kb"
"""What makes up for pauses of the machine up to 2 ms; in 3 s, 0.07 % of what the wire carries."""


class Regime(Enum):
    """How frames cross the cable."""

    WIRE = "wire"  # each as long as on a wire; joined again (GRO) on arrival
    OFFLOAD = "offload"  # in buffers of 64 KiB, as Linux does between its own interfaces
    GIGABIT = "gigabit"  # as on a wire that carries 1 Gbit/s

    def apply(self, routers: TwoRouters) -> None:
        routers.set_regime(link.Regime.OFFLOAD if self is Regime.OFFLOAD else link.Regime.WIRE)
        for router in (routers.a, routers.b):
            router.underlay.clear_rate()
            if self is Regime.GIGABIT:
                rate = shaped_rate(router.underlay.mtu)
                router.underlay.set_rate(f"{rate:.0f}bit", burst=BURST)


def shaped_rate(mtu: int) -> float:
    """Return the bits per second at which tbf lets full frames pass as a gigabit wire does.

    tbf counts a frame with its header, not what the wire adds. Its own option
    for that (overhead) would be added once for a buffer that is cut into
    frames only after the queue, which UDP_SEGMENT makes.
    """
    frame = mtu + ETHERNET_HEADER
    return GIGABIT_PER_S * frame / (frame + WIRE_OVERHEAD)


def tcp_ceiling(underlay_mtu: int, mtu: int) -> float:
    """Return what a TCP stream with timestamps can carry over a gigabit wire, in bits per second.

    mtu is that of the tunnel's interface: each of its full packets makes one
    full packet of the underlay.
    """
    on_wire = underlay_mtu + ETHERNET_HEADER + WIRE_OVERHEAD
    return GIGABIT_PER_S * (mtu - TCP_WITH_TIMESTAMPS) / on_wire
