"""All tunnels that can be measured, by name."""

from __future__ import annotations

from lab.link import ETHERNET_MTU
from lab.tunnels.bridged import bridged
from lab.tunnels.direct import direct
from lab.tunnels.fastd import fastd, fastd_salsa
from lab.tunnels.kernel import VXLAN_OVERHEAD, gretap, vxlan, vxlan_bridged
from lab.tunnels.many import Circuits, many_vela, many_vxlan
from lab.tunnels.openvpn import openvpn, openvpn_gcm
from lab.tunnels.socat import socat
from lab.tunnels.tinc import tinc
from lab.tunnels.tunnel import Tunnel
from lab.tunnels.vela import vela, vela_bridged

VXLAN = "kernel vxlan"
NATIVE, NATIVE_APART = "vela native", "vela apart"
LOW_LATENCY = "vela low latency"
FASTD = "fastd null"
ENGINES = ("native", "python")
ENCRYPTED, ENCRYPTED_APART = "vela encrypted", "vela encrypted, apart"
FASTD_ENCRYPTED = "fastd salsa2012+umac"
OPENVPN_ENCRYPTED = "openvpn AES-256-GCM"

TUNNELS: dict[str, Tunnel] = {
    "no tunnel": direct,
    **{f"vela {engine}": vela(engine) for engine in ENGINES},
    NATIVE_APART: vela("native", apart=True),
    LOW_LATENCY: vela("native", low_latency=True),
    VXLAN: vxlan,
    "kernel gretap": gretap,
    FASTD: fastd,
    "openvpn": openvpn,
    "tinc": tinc,
    "socat": socat,
    ENCRYPTED: vela("native", encrypted=True),
    FASTD_ENCRYPTED: fastd_salsa,
    OPENVPN_ENCRYPTED: openvpn_gcm,
}
"""By the names that tables show, in their order."""

FEATURES = ("rwf_nowait", "tso", "udp_gro", "udp_segment", "uso")
LACKING: dict[str, Tunnel] = {
    NATIVE: TUNNELS[NATIVE],
    **{f"no {feature}": vela("native", (feature,)) for feature in FEATURES},
    "as Linux 5.10, 6.1": vela("native", ("rwf_nowait", "uso")),
    "none of them": vela("native", FEATURES),
}
"""VELA as it comes, and with features of the kernel disabled."""

UNFILTERED: dict[str, Tunnel] = {
    each: tunnel
    for engine in ENGINES
    for each, tunnel in (
        (f"vela {engine}", TUNNELS[f"vela {engine}"]),
        (f"{engine}, no filter", vela(engine, filtered=False)),
    )
}
"""VELA as it comes, and with workers that may make any system call."""

ENCRYPTING: dict[str, Tunnel] = {
    NATIVE: TUNNELS[NATIVE],
    ENCRYPTED: TUNNELS[ENCRYPTED],
    ENCRYPTED_APART: vela("native", encrypted=True, apart=True),
    FASTD_ENCRYPTED: TUNNELS[FASTD_ENCRYPTED],
    OPENVPN_ENCRYPTED: TUNNELS[OPENVPN_ENCRYPTED],
}
"""VELA as it comes, and tunnels that encrypt; apart: with a CPU for each end, as two machines
have it, and as other programs take it where there is room."""

QUEUES: dict[str, Tunnel] = {
    NATIVE: TUNNELS[NATIVE],
    "one CPU": vela("native", pinned=True),
    "a queue on each CPU": vela("native", spread=True),
    ENCRYPTED: TUNNELS[ENCRYPTED],
    "encrypted, a queue on each": vela("native", encrypted=True, spread=True),
    VXLAN: vxlan,
}
"""VELA as it comes, which takes a second CPU under load, with one, and with a queue on each of two;
encrypted, too."""

VXLAN_BRIDGED, FRAGMENTS = "vxlan bridged", "fragments by IP"
BRIDGED: dict[str, Tunnel] = {
    "vela bridged": bridged(vela_bridged(), ETHERNET_MTU),
    FRAGMENTS: bridged(
        vela_bridged(f'mtu = {ETHERNET_MTU}\nfragmentation = "ip"\n'), ETHERNET_MTU, fragments=True
    ),
    VXLAN_BRIDGED: bridged(vxlan_bridged, ETHERNET_MTU - VXLAN_OVERHEAD),
}
"""Between hosts on bridged LANs: of MTU 1500, and of the one that VXLAN carries."""

APART: dict[str, Tunnel] = {f"vela {engine}": vela(engine, apart=True) for engine in ENGINES}
"""Those that choose a CPU for themselves, with one for each end. Others run where there is room."""

CIRCUITS: dict[str, Circuits] = {
    **{f"vela {engine}": many_vela(engine) for engine in ENGINES},
    VXLAN: many_vxlan,
}
"""Those of which many are measured at once."""
