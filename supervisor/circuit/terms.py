"""How a circuit carries frames: what this end offers, and what both ends settled on. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vela.address import Endpoint, Family
from vela.dataplane.contract import Abilities
from vela.dataplane.frame import Elision
from vela.dataplane.key_page import SEQUENCES
from vela.dataplane.mss import MssClamp
from vela.dataplane.pieces import Fragmentation
from vela.errors import ConfigError
from vela.linux.underlay import UnderlayPath
from vela.rate import STEP
from vela.reasons import Cause
from vela.signaling.agreement import Agreement
from vela.signaling.messages import Capability, Description
from vela.wire import (
    ETHERNET_HEADER,
    MIN_IPV6_MTU,
    data_header,
    datagram_limit,
    max_tap_mtu,
    overhead,
    tap_mtu,
)

from ..config.records import (
    CircuitConfig,
    ClampMss,
    Encapsulation,
    Encryption,
    Fragment,
    SourcePort,
)


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
    fragmentation: Fragmentation = Fragmentation.BY_IP
    """What becomes of frames that are larger than a datagram."""
    mss_clamp: MssClamp | None = None
    carry_ecn: bool = False
    """The remote brings the ECN of outer headers into the inner ones."""
    several_ports: bool = False
    """Frames may leave from several ports of the circuit's own."""
    encrypted: bool = False
    """Frames leave sealed, and no other comes in: docs/protocol.md, 3.6."""
    sequences: int = 1
    """Of counters, that each end of an encrypted circuit may use."""
    bundles: bool = False
    """Small frames of an encrypted circuit may travel in one datagram."""


def describe(
    config: CircuitConfig,
    path: UnderlayPath | None,
    mac: bytes,
    port: int,
    abilities: Abilities,
    *,
    frame_port: int | None = None,
    frame_ports: int = 1,
    bridge_mtu: int | None = None,
    from_listening: bool = False,
    sequences: int = 1,
) -> Description:
    """Return what this end says of itself; path None: it is not known yet.

    port is the listening one, frame_port the one that frames leave from, where there is one, or
    frame_ports in a row from there on;
    abilities are those of the engine; bridge_mtu that of the bridge that the TAP is a port of;
    from_listening: frames of ports of their own were seen not to cross;
    sequences: of counters, that the key page has room for.
    Raises ConfigError where the path is too narrow.
    """
    capabilities = Capability.ECN | Capability.ECHO | Capability.PORTS
    if sequences == SEQUENCES:
        capabilities |= Capability.SEQUENCES
    if is_encrypted(config):
        capabilities |= Capability.BUNDLES
    if config.encapsulation is Encapsulation.AUTO:
        capabilities |= Capability.ELISION
    if abilities.native:
        capabilities |= Capability.NATIVE_ENGINE
    # Only elided packets may have partial checksums.
    if abilities.partial_checksums and Capability.ELISION in capabilities:
        capabilities |= Capability.CHECKSUM_OFFLOAD
    if config.fragmentation in (Fragment.AUTO, Fragment.TUNNEL):
        capabilities |= Capability.PIECES
    mtu = (config.mtu or provisional_mtu(config)) if path is None else own_mtu(config, path)
    in_pieces = mtu_in_pieces(config, mtu, bridge_mtu)
    return Description(
        mac=mac,
        mtu=mtu,
        capabilities=capabilities,
        port=port,
        keepalive_ms=round(config.keepalive * 1000),
        own=Endpoint(path.route.source, port) if path else None,
        frame_port=frame_port,
        frame_ports=frame_ports if frame_ports > 1 else None,
        mtu_in_pieces=in_pieces if in_pieces > mtu else None,
        rate_kbit=None if config.rate is None else config.rate // STEP,
        from_listening=from_listening,
    )


def agreed_profile(
    config: CircuitConfig,
    agreement: Agreement,
    path: UnderlayPath,
    bridge_mtu: int | None = None,
) -> Profile:
    """Return how frames are carried by what both ends agreed on."""
    shared = agreement.nat or (agreement.from_listening and config.source_port is SourcePort.AUTO)
    port = path.group.port if shared else source_port(config, path)
    encrypted = is_encrypted(config)
    several = agreement.several_ports and (not encrypted or agreement.sequences > 1)
    profile = Profile(
        mtu=agreement.mtu,
        elision=Elision.KNOWN if agreement.elision else Elision.NEVER,
        remote_mac=agreement.remote_mac,
        partial_checksums=agreement.elision and agreement.checksum_offload,
        source_port=port,
        several_ports=port is None and several,
        sequences=agreement.sequences if encrypted else 1,
        bundles=encrypted and agreement.bundles,
        fragmentation=_fragmentation(config, pieces=agreement.pieces),
        carry_ecn=agreement.ecn,
        encrypted=encrypted,
    )
    return replace(profile, mss_clamp=mss_clamp(config, profile, path, bridge_mtu))


def static_profile(
    config: CircuitConfig, path: UnderlayPath, bridge_mtu: int | None = None
) -> Profile:
    """Return how frames are carried by the configuration alone. Raises ConfigError."""
    match config.encapsulation:
        case Encapsulation.IP:
            elision = Elision.ALWAYS
        case Encapsulation.AUTO if config.peer.mac is not None:
            elision = Elision.KNOWN
        case _:
            elision = Elision.NEVER
    pieces = config.fragmentation is Fragment.TUNNEL
    mtu = own_mtu(config, path)
    port = source_port(config, path)
    profile = Profile(
        mtu=mtu_in_pieces(config, mtu, bridge_mtu) if pieces else mtu,
        elision=elision,
        remote_mac=config.peer.mac,
        partial_checksums=elision is Elision.KNOWN and config.peer.checksum_offload,
        source_port=port,
        # The remote takes frames from any: it is told of none.
        several_ports=port is None,
        fragmentation=_fragmentation(config, pieces=pieces),
        # The original VELA does not, and an ECN-capable flow would then lose its marks.
        carry_ecn=elision is not Elision.ALWAYS,
    )
    return replace(profile, mss_clamp=mss_clamp(config, profile, path, bridge_mtu))


def _fragmentation(config: CircuitConfig, *, pieces: bool) -> Fragmentation:
    """pieces: the remote puts frames together."""
    if config.fragmentation is Fragment.OFF:
        return Fragmentation.NEVER
    return Fragmentation.IN_PIECES if pieces else Fragmentation.BY_IP


def mtu_in_pieces(config: CircuitConfig, mtu: int, bridge_mtu: int | None) -> int:
    """Return the TAP MTU, in bytes, if frames that are too large for the path travel in pieces.

    That of the bridge, so that hosts behind it need not know of the circuit,
    unless another one is configured. mtu: without pieces.
    """
    if config.mtu is not None or bridge_mtu is None:
        return mtu
    return max(mtu, min(bridge_mtu, max_tap_mtu(encrypted=is_encrypted(config))))


def mss_clamp(
    config: CircuitConfig, profile: Profile, path: UnderlayPath, bridge_mtu: int | None
) -> MssClamp | None:
    """Return how the MSS of TCP is limited; None: it is not.

    By default where hosts that know the MTU of the TAP, or of its bridge, send
    segments that exceed a datagram.
    """
    limit = datagram_limit(path.mtu, path.endpoint.family)
    match config.clamp_mss:
        case ClampMss.OFF:
            return None
        case ClampMss.ON:
            return MssClamp(limit)
        case ClampMss.AUTO:
            elides = config.bridge is None and profile.elision is not Elision.NEVER
            carries = limit - data_header(encrypted=profile.encrypted)
            carries -= 0 if elides else ETHERNET_HEADER
            return MssClamp(limit) if max(profile.mtu, bridge_mtu or 0) > carries else None
        case mss:
            return MssClamp(mss=mss)


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
    family, encrypted = path.endpoint.family, is_encrypted(config)
    mtu = tap_mtu(path.mtu, family, encrypted=encrypted)
    if mtu < MIN_IPV6_MTU and any(each.version == 6 for each in config.addresses):
        if tap_mtu(path.route.mtu, family, encrypted=encrypted) >= MIN_IPV6_MTU:
            return MIN_IPV6_MTU  # larger frames than the path carries travel in pieces
        raise ConfigError(Cause.PATH_TOO_NARROW.say(mtu=mtu, needed=MIN_IPV6_MTU))
    return mtu


def source_port(config: CircuitConfig, path: UnderlayPath) -> int | None:
    """Return the UDP port to send from; None: one of the circuit's own."""
    wanted = config.source_port
    if isinstance(wanted, int):
        return wanted
    # The original VELA uses one port both ways.
    shared = wanted is SourcePort.LISTEN or config.encapsulation is Encapsulation.IP
    return path.group.port if shared else None
