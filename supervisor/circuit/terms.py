"""How a circuit carries frames: what this end offers, and what both ends settled on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vela.address import Endpoint, Family
from vela.dataplane.contract import Abilities
from vela.dataplane.frame import Elision
from vela.errors import ConfigError
from vela.linux.underlay import UnderlayPath
from vela.signaling.agreement import Agreement
from vela.signaling.messages import Capability, Description
from vela.wire import MIN_IPV6_MTU, overhead, tap_mtu

from ..config.records import CircuitConfig, Encapsulation, Encryption, SourcePort


@dataclass(frozen=True, slots=True)
class Profile:
    """How both ends carry frames."""

    mtu: int
    """The TAP's, in bytes."""
    elision: Elision
    remote_mac: bytes | None
    """None where nobody said: rebuilt frames then show one that is made up."""
    partial_checksums: bool
    """The remote completes inner checksums, and so does this end."""
    source_port: int | None
    """To send from: the listening one, shared, or one of the circuit's own. None: a derived one."""
    encrypted: bool = False
    """Frames leave sealed, and no other comes in: docs/protocol.md, 3.6."""


def describe(
    config: CircuitConfig,
    path: UnderlayPath | None,
    mac: bytes,
    port: int,
    abilities: Abilities,
    *,
    frame_port: int | None = None,
) -> Description:
    """Return what this end says of itself; path None: it is not known yet.

    port is the listening one, frame_port the one that frames leave from, where there is one;
    abilities are those of the engine. Raises ConfigError where the path is too narrow.
    """
    capabilities = Capability(0)
    if config.encapsulation is Encapsulation.AUTO:
        capabilities |= Capability.ELISION
    if abilities.native:
        capabilities |= Capability.NATIVE_ENGINE
    # Only elided packets may have partial checksums.
    if abilities.partial_checksums and Capability.ELISION in capabilities:
        capabilities |= Capability.CHECKSUM_OFFLOAD
    return Description(
        mac=mac,
        mtu=(config.mtu or provisional_mtu(config)) if path is None else own_mtu(config, path),
        capabilities=capabilities,
        port=port,
        keepalive_ms=round(config.keepalive * 1000),
        own=Endpoint(path.route.source, port) if path else None,
        frame_port=frame_port,
    )


def agreed_profile(config: CircuitConfig, agreement: Agreement, path: UnderlayPath) -> Profile:
    """Return how frames are carried by what both ends agreed on."""
    return Profile(
        mtu=agreement.mtu,
        elision=Elision.KNOWN if agreement.elision else Elision.NEVER,
        remote_mac=agreement.remote_mac,
        partial_checksums=agreement.elision and agreement.checksum_offload,
        source_port=path.group.port if agreement.nat else source_port(config, path),
        encrypted=is_encrypted(config),
    )


def static_profile(config: CircuitConfig, path: UnderlayPath) -> Profile:
    """Return how frames are carried by the configuration alone. Raises ConfigError."""
    match config.encapsulation:
        case Encapsulation.IP:
            elision = Elision.ALWAYS
        case Encapsulation.AUTO if config.peer.mac is not None:
            elision = Elision.KNOWN
        case _:
            elision = Elision.NEVER
    return Profile(
        mtu=own_mtu(config, path),
        elision=elision,
        remote_mac=config.peer.mac,
        partial_checksums=elision is Elision.KNOWN and config.peer.checksum_offload,
        source_port=source_port(config, path),
    )


def is_encrypted(config: CircuitConfig) -> bool:
    return config.encryption is Encryption.REQUIRED


def provisional_mtu(config: CircuitConfig) -> int:
    """Return the TAP MTU, in bytes, until the remote is known: as on a path of 1500 over IPv4.

    Most paths have that, and a change later takes the kernel a while.
    """
    return 1500 - overhead(Family.IPV4, encrypted=is_encrypted(config))


def own_mtu(config: CircuitConfig, path: UnderlayPath) -> int:
    """Return the TAP MTU, in bytes, that is configured or that the path allows.

    Raises ConfigError where the path is too narrow for the circuit's addresses.
    """
    if config.mtu is not None:
        return config.mtu
    mtu = tap_mtu(path.route.mtu, path.endpoint.family, encrypted=is_encrypted(config))
    if mtu < MIN_IPV6_MTU and any(each.version == 6 for each in config.addresses):
        raise ConfigError(
            f"the way to the remote leaves an MTU of {mtu}, and IPv6 needs {MIN_IPV6_MTU}"
        )
    return mtu


def source_port(config: CircuitConfig, path: UnderlayPath) -> int | None:
    """Return the UDP port to send from; None: one of the circuit's own."""
    wanted = config.source_port
    if isinstance(wanted, int):
        return wanted
    # The original VELA uses one port both ways.
    shared = wanted is SourcePort.LISTEN or config.encapsulation is Encapsulation.IP
    return path.group.port if shared else None
