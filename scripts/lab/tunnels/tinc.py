"""tinc 1.0 as a switch, without cipher and digest."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.errors import LabError
from lab.tunnels.programs import Plan, program_tunnel
from lab.tunnels.tunnel import ETHERNET, IPV4_UDP, READY_TIMEOUT_S, End

OVERHEAD = IPV4_UDP + 4 + ETHERNET  # sequence number
KEY_BITS = 2048  # of the control connection, which exists whatever the cipher


def _commands(plan: Plan) -> tuple[list[str], list[str]]:
    names = ("a", "b")
    directories = [plan.directory / name for name in names]
    descriptions = [
        _configure(plan, end, directory, name, connect_to)
        for end, directory, name, connect_to in zip(
            plan.ends, directories, names, names[::-1], strict=True
        )
    ]
    for directory in directories:
        for name, description in zip(names, descriptions, strict=True):
            directory.joinpath("hosts", name).write_text(description)
    a, b = (
        ["tincd", "--config", str(path), "--no-detach", f"--pidfile={path}/pid", "--debug=0"]
        for path in directories
    )
    return a, b


def _configure(plan: Plan, end: End, directory: Path, name: str, connect_to: str) -> str:
    """Write one end's configuration, make its key, and return what the other end must know."""
    directory.mkdir()
    directory.joinpath("tinc.conf").write_text(
        f"Name = {name}\nConnectTo = {connect_to}\nMode = switch\n"
        f"DeviceType = tap\nInterface = {end.interface}\n"
        f"AddressFamily = ipv4\nBindToAddress = {end.router.ipv4}\n"
    )
    description = directory / "hosts" / name
    description.parent.mkdir()
    # Without discovery: while tinc seeks the path's MTU, it sends by TCP.
    description.write_text(
        f"Address = {end.router.ipv4}\nPort = {plan.port}\n"
        "Cipher = none\nDigest = none\nCompression = 0\n"
        f"PMTUDiscovery = no\nPMTU = {plan.mtu + ETHERNET}\n"
    )
    done = subprocess.run(
        ["tincd", "--config", str(directory), f"--generate-keys={KEY_BITS}"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=READY_TIMEOUT_S,
    )
    if done.returncode:
        raise LabError(f"tincd --generate-keys: exit status {done.returncode}: {done.stderr}")
    return description.read_text()


tinc = program_tunnel("tincd", "tinc", OVERHEAD, _commands)
