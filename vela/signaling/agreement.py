"""What both ends of a circuit settle on, and the events that tell of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vela.address import Endpoint
from vela.signaling.messages import Capability, Description


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both ends come to the same values, but for remote and local changing places."""

    local_mac: bytes
    remote_mac: bytes
    mtu: int
    """The smaller one."""
    elision: bool
    """Both ends do."""
    checksum_offload: bool
    """Both ends do."""
    keepalive_s: float
    """The smaller one."""
    remote_port: int
    """Where the remote listens, as it says."""
    remote_native: bool
    nat: bool
    """An address or port is translated on the way: send from the listening port."""


def agree(local: Description, remote: Description, source: Endpoint) -> Agreement:
    """Settle two descriptions; source: where the remote's messages come from."""
    both = local.capabilities & remote.capabilities
    return Agreement(
        local_mac=local.mac,
        remote_mac=remote.mac,
        mtu=min(local.mtu, remote.mtu),
        elision=Capability.ELISION in both,
        checksum_offload=Capability.CHECKSUM_OFFLOAD in both,
        keepalive_s=min(local.keepalive_ms, remote.keepalive_ms) / 1000,
        remote_port=remote.port,
        remote_native=Capability.NATIVE_ENGINE in remote.capabilities,
        nat=_differ(remote.own, source) or _differ(local.own, remote.seen),
    )


def _differ(believed: Endpoint | None, seen: Endpoint | None) -> bool:
    return believed is not None and seen is not None and believed != seen
