"""What a guest finds at boot if it runs a scenario of the unit: the unit enabled, the network late.

networkd makes the bridge of vela0 and ifupdown that of vela1, seconds after its service began.
The scenario makes the bridge of vela2, and the way to the remote. Nothing of this is active unless
ARGUMENT is on the kernel's command line.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vm.images import command

ARGUMENT = "vela.unit"
"""Of the kernel's command line."""
SCENARIOS = frozenset({"unit", "fleet"})

ROOT = Path(__file__).resolve().parents[2]
UNIT = "vela.service"
REMOTE = "10.201.0.2"

BRIDGES = {"vela0": "br-networkd", "vela1": "br-ifupdown", "vela2": "br-late"}
"""By circuit."""

CIRCUIT = """\
[circuits.{name}]
id = {id}
remote = "{remote}"
bridge = "{bridge}"
keepalive = 1.0

[circuits.{name}.peer]
addresses = ["172.16.{id}.2/30"]
"""

_NETDEV = """\
[NetDev]
Name=br-networkd
Kind=bridge
"""

_INTERFACES = """\
auto br-ifupdown
iface br-ifupdown inet manual
    pre-up sleep 3
    pre-up ip link add br-ifupdown type bridge
    up ip link set br-ifupdown up
"""

_CONDITION = f"""\
[Unit]
ConditionKernelCommandLine={ARGUMENT}
"""


def prepare(root: Path) -> None:
    """Write all that into a root that has VELA in it. Raises ImageError."""
    shutil.copy(ROOT / "config" / UNIT, root / "etc/systemd/system")
    circuits = enumerate(BRIDGES.items(), start=16)
    (root / "etc/vela.toml").write_text(
        "\n".join(
            CIRCUIT.format(name=name, id=number, remote=REMOTE, bridge=bridge)
            for number, (name, bridge) in circuits
        )
    )
    (root / "etc/systemd/network").mkdir(parents=True, exist_ok=True)
    (root / "etc/systemd/network/10-vela.netdev").write_text(_NETDEV)
    (root / "etc/network").mkdir(parents=True, exist_ok=True)
    (root / "etc/network/interfaces").write_text(_INTERFACES)
    for service in (UNIT, "systemd-networkd.service", "networking.service"):
        folder = root / "etc/systemd/system" / f"{service}.d"
        folder.mkdir()
        (folder / "guest.conf").write_text(_CONDITION)
    command("systemctl", "enable", UNIT, "systemd-networkd.service", root=root)
