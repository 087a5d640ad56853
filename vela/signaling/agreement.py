"""The values that both ends of a circuit agree on, from what each says about itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vela.address import MAX_PORT, Endpoint
from vela.signaling.messages import Capability, Description
from vela.wire import MAX_QUEUES


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both ends compute the same values, with local and remote exchanged."""

    local_mac: bytes
    remote_mac: bytes
    mtu: int
    """The smaller one, of what each end has with or without pieces."""
    elision: bool
    """Both ends can."""
    checksum_offload: bool
    """Both ends can."""
    keepalive_s: float
    """The smaller interval."""
    remote_port: int
    """The port that the remote says it listens on."""
    nat: bool
    """An address or port is translated on the way: send from the listening port."""
    frame_port: int | None = None
    """The port that the remote's frames come from; None: it does not say, and any will do."""
    rate_kbit: int | None = None
    """How much each end sends at most, in kilobits per second: the smaller limit, if any."""
    pieces: bool = False
    """Both ends cut frames that are larger than a datagram, and put them together."""
    ecn: bool = False
    """Both ends bring the ECN of outer headers into the inner ones."""
    echo: bool = False
    """The remote's worker answers echo requests: the circuit is up only if frames cross."""
    frame_ports: int = 1
    """How many ports in a row the remote's frames come from."""
    several_ports: bool = False
    """Both ends take frames from several."""
    sequences: int = 1
    """Of counters, that each end may use under one key, if frames are encrypted."""
    bundles: bool = False
    """Both ends take several frames in a datagram, if they are encrypted."""
    from_listening: bool = False
    """Both ends have found that frames do not cross from ports of their own."""


def agree(local: Description, remote: Description, source: Endpoint) -> Agreement:
    """Return what two descriptions agree on; source: where the remote's messages come from."""
    both = local.capabilities & remote.capabilities
    pieces = Capability.PIECES in both
    nat = _differ(remote.own, source) or _differ(local.own, remote.seen)
    return Agreement(
        local_mac=local.mac,
        remote_mac=remote.mac,
        mtu=min(_mtu(local, pieces=pieces), _mtu(remote, pieces=pieces)),
        elision=Capability.ELISION in both,
        checksum_offload=Capability.CHECKSUM_OFFLOAD in both,
        pieces=pieces,
        rate_kbit=min(filter(None, (local.rate_kbit, remote.rate_kbit)), default=None),
        ecn=Capability.ECN in both,
        echo=Capability.ECHO in both,
        from_listening=local.from_listening and remote.from_listening,
        keepalive_s=min(local.keepalive_ms, remote.keepalive_ms) / 1000,
        remote_port=remote.port,
        nat=nat,
        # Through a NAT they come from where its messages do.
        frame_port=source.port if nat and remote.frame_port else remote.frame_port,
        frame_ports=1 if nat else _ports(remote),
        several_ports=Capability.PORTS in both,
        bundles=Capability.BUNDLES in both,
        # One for each port.
        sequences=MAX_QUEUES if Capability.SEQUENCES in both else 1,
    )


def _ports(description: Description) -> int:
    if description.frame_port is None or description.frame_ports is None:
        return 1
    return min(description.frame_ports, MAX_QUEUES, MAX_PORT - description.frame_port + 1)


def _mtu(description: Description, *, pieces: bool) -> int:
    in_pieces = description.mtu_in_pieces if pieces else None
    return description.mtu if in_pieces is None else in_pieces


def _differ(own: Endpoint | None, seen: Endpoint | None) -> bool:
    return own is not None and seen is not None and own != seen
