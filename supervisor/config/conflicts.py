"""Rules for circuits: within one, against [daemon], and between circuits. Pure.

They work on records. A mistake is one line: "circuits.NAME.KEY: what is wrong; what is right".

A circuit whose table has no valid id or remote has id 0 or an empty host. Rules that need these
skip it, so that such a circuit causes no further mistakes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import NamedTuple

from vela.address import Family, IPAddress, IPInterface, Remote, family_of
from vela.mac import format_mac
from vela.signaling.messages import MAX_ADDRESSES
from vela.wire import MIN_IPV6_MTU

from .records import (
    AutoconfigureConfig,
    CircuitConfig,
    Config,
    DaemonConfig,
    Encapsulation,
    Encryption,
    Fragment,
    Latency,
)
from .tables import key_path

ANY_IPV6 = IPv6Address("::")  # a socket bound to it receives IPv4 as well
_LOCAL_HOST = ""  # the host of claims on this host; remotes have a name or an address


def find_mistakes(circuits: Iterable[CircuitConfig], daemon: DaemonConfig) -> Iterator[str]:
    """Yield all mistakes of the circuits of one configuration file."""
    holders: dict[Hashable, str] = {}
    for circuit in circuits:
        for claim in (*_local_claims(circuit), *_remote_claims(circuit)):
            path = _path(circuit, *claim.key)
            holder = holders.setdefault(claim.thing, path)
            if holder != path:
                yield _taken(path, claim, holder)
        yield from find_contradictions(circuit, daemon)


class ConflictFinder:
    """Finds conflicts of a circuit with others on this host.

    Settings of the remote's ends are ignored: each remote checks them itself. A remote may
    ask for 255 circuits at once, so the claims of a record are computed once and kept as
    long as the record is among the others.
    """

    def __init__(self) -> None:
        self._claims: dict[str, tuple[CircuitConfig, dict[Hashable, _Claim]]] = {}

    def find(self, circuit: CircuitConfig, others: Iterable[CircuitConfig]) -> list[str]:
        """Return the conflicts of a circuit with others, all of which have different names."""
        wanted = {claim.thing: claim for claim in _local_claims(circuit)}
        holders: dict[Hashable, str] = {}
        for other, claims in self._claims_of(others):
            for thing in wanted.keys() & claims.keys():
                holders.setdefault(thing, _path(other, *claims[thing].key))
        return [
            _taken(_path(circuit, *claim.key), claim, holders[thing])
            for thing, claim in wanted.items()
            if thing in holders
        ]

    def holders(self, circuit: CircuitConfig, others: Iterable[CircuitConfig]) -> set[str]:
        """Return the names of the others that have what this circuit wants."""
        wanted = {claim.thing for claim in _local_claims(circuit)}
        return {
            other.name
            for other, claims in self._claims_of(others)
            if not wanted.isdisjoint(claims.keys())
        }

    def _claims_of(
        self, circuits: Iterable[CircuitConfig]
    ) -> Iterator[tuple[CircuitConfig, dict[Hashable, _Claim]]]:
        known, self._claims = self._claims, {}
        for circuit in circuits:
            entry = known.get(circuit.name)
            if entry is None or entry[0] is not circuit:
                entry = circuit, {claim.thing: claim for claim in _local_claims(circuit)}
            self._claims[circuit.name] = entry
            yield entry


def find_contradictions(circuit: CircuitConfig, daemon: DaemonConfig) -> Iterator[str]:
    """Yield the contradictions within a circuit, and between it and [daemon]."""
    families = (_check_family(circuit, each, daemon.listen) for each in circuit.remote.all)
    yield from dict.fromkeys(chain.from_iterable(families))
    yield from _check_underlay(circuit, daemon.listen)
    yield from _check_standbys(circuit)
    yield from _check_any(circuit)
    yield from _check_peer(circuit)
    yield from _check_encryption(circuit, daemon)
    addresses, bridges = circuit.addresses, [circuit.bridge]
    if circuit.autoconfigure:
        addresses, bridges = addresses + circuit.peer.addresses, [*bridges, circuit.peer.bridge]
    if circuit.mtu is not None and circuit.mtu < MIN_IPV6_MTU:
        six = next((interface for interface in addresses if interface.version == 6), None)
        if six is not None:
            yield (
                f"{_path(circuit, 'mtu')}: {circuit.mtu} is too small for {six}; "
                f"IPv6 needs {MIN_IPV6_MTU}"
            )
    if circuit.encapsulation is Encapsulation.IP and any(bridges):
        yield (
            f"{_path(circuit, 'encapsulation')}: 'ip' cannot carry a bridge's frames; "
            "'auto' would be right"
        )
    if circuit.encapsulation is Encapsulation.IP and circuit.fragmentation is Fragment.TUNNEL:
        yield (
            f"{_path(circuit, 'fragmentation')}: 'tunnel' needs a remote that takes pieces, "
            "and encapsulation = 'ip' is for one that does not; 'auto' would be right"
        )
    if circuit.latency is Latency.LOW and not circuit.cpus:
        yield (
            f"{_path(circuit, 'latency')}: 'low' keeps a CPU busy while there is traffic; "
            "cpu would be right beside it, with a CPU that is set aside for this circuit"
        )
    if circuit.accept_ra and circuit.bridge is not None:
        yield (
            f"{_path(circuit, 'accept_ra')}: a port of a bridge takes no router advertisements, "
            "the bridge does; leave it out, and see the sysctl accept_ra of the bridge"
        )
    if circuit.bridge == circuit.name:
        yield (
            f"{_path(circuit, 'bridge')}: is the circuit's own interface; "
            "a bridge's name would be right"
        )
    if circuit.source_port == daemon.port:
        yield (
            f"{_path(circuit, 'source_port')}: {daemon.port} is daemon.port; "
            "'listen' would be right"
        )


def find_missing_keys(config: Config) -> Iterator[str]:
    """Yield where encryption is required, and nothing says whom to encrypt to."""
    for circuit in config.circuits:
        yield from check_key(circuit, config.autoconfigure)
    autoconfigure = config.autoconfigure
    if autoconfigure is None:
        return
    path = key_path("autoconfigure")
    required = autoconfigure.encryption is Encryption.REQUIRED
    if autoconfigure.peers and not required:
        yield (
            f"{path}.peers: has no effect without encryption; "
            "encryption = 'required' would be right, or no peers"
        )
    if autoconfigure.peers and required and config.daemon.identity is None:
        yield f"{path}.peers: {_NO_IDENTITY}"
    if required and not autoconfigure.peers and autoconfigure.key_file is None:
        yield f"{path}.encryption: 'required' needs a key; peers or key_file would be right"


def check_key(circuit: CircuitConfig, autoconfigure: AutoconfigureConfig | None) -> Iterator[str]:
    """Yield it where a circuit needs a key and has none, not even [autoconfigure]'s.

    It needs one where it requires encryption, and where nothing else says who may call.
    """
    encrypts = circuit.encryption is Encryption.REQUIRED
    if not (encrypts or circuit.remote.is_any) or circuit.peer_key is not None:
        return
    shared = None if autoconfigure is None else autoconfigure.key_file
    if circuit.key_file is not None or shared is not None:
        return
    if encrypts:
        yield (
            f"{_path(circuit, 'encryption')}: 'required' needs a key; "
            "peer_key or key_file would be right"
        )
    else:
        yield (
            f"{_path(circuit, 'remote')}: 'any' needs a key, or anybody could call; key_file "
            "would be right, or encryption = 'required' with peer_key"
        )


_NO_IDENTITY = (
    "needs this machine's own key; daemon.identity would be right, "
    "with a file that velad --generate-key makes"
)


def _check_encryption(circuit: CircuitConfig, daemon: DaemonConfig) -> Iterator[str]:
    if circuit.encryption is not Encryption.REQUIRED:
        # Who writes it wants to be encrypted.
        if circuit.peer_key is not None:
            yield (
                f"{_path(circuit, 'peer_key')}: has no effect without encryption; "
                "encryption = 'required' would be right, or no peer_key"
            )
        return
    path = _path(circuit, "encryption")
    # Fresh keys come from the handshake.
    yield from _check_handshake(
        circuit,
        path,
        "'required'",
        "'none'",
        without="encapsulation 'ip' is for remotes that do not encrypt",
    )
    if circuit.peer_key is not None and daemon.identity is None:
        yield f"{_path(circuit, 'peer_key')}: {_NO_IDENTITY}"


def _check_handshake(
    circuit: CircuitConfig, path: str, what: str, instead: str, *, without: str
) -> Iterator[str]:
    """Yield that a key's value needs a handshake, where the circuit has none.

    what: the value, as its operator knows it. instead: one that would be right. without: what is
    said where it is the encapsulation that has none.
    """
    if circuit.encapsulation is Encapsulation.IP:
        yield f"{path}: {without}; {instead} would be right, or encapsulation = 'auto'"
    elif not circuit.autoconfigure:
        yield (
            f"{path}: {what} needs the handshake that autoconfigure = false turns off; "
            f"{instead} would be right, or autoconfigure = true"
        )


def _check_standbys(circuit: CircuitConfig) -> Iterator[str]:
    if not circuit.remote.standbys:
        return
    path = _path(circuit, "remote")
    yield from _check_handshake(
        circuit,
        path,
        "a list",
        "a single remote",
        without="encapsulation 'ip' has no handshake, which shows when a remote is lost",
    )


def _check_any(circuit: CircuitConfig) -> Iterator[str]:
    if not circuit.remote.is_any:
        return
    path = _path(circuit, "remote")
    yield from _check_handshake(
        circuit,
        path,
        "'any'",
        "a host's name or address",
        without="'any' needs a handshake, and encapsulation 'ip' has none",
    )
    if circuit.device is not None:
        yield (
            f"{_path(circuit, 'device')}: the other end of 'any' may call by any interface; "
            "bind would be right, with the address that it calls"
        )


def _check_family(
    circuit: CircuitConfig, remote: Remote, listen: tuple[IPAddress, ...]
) -> Iterator[str]:
    family, key = circuit.family, "family"
    address = remote.address
    if address is not None:
        family, key = Family.IPV4 if address.version == 4 else Family.IPV6, "remote"
        if circuit.family not in (None, family):
            yield (
                f"{_path(circuit, key)}: {address} contradicts family; "
                f"'{family.value}' would be right there"
            )
            return
    if family is None or not remote.host:
        return
    version = 4 if family is Family.IPV4 else 6
    if not any(local.version == version or local == ANY_IPV6 for local in listen):
        yield (
            f"{_path(circuit, key)}: needs IPv{version}, but daemon.listen has no "
            f"IPv{version} address; '::' there receives both"
        )


def _check_underlay(circuit: CircuitConfig, listen: tuple[IPAddress, ...]) -> Iterator[str]:
    bind = circuit.bind
    if circuit.device == circuit.name:
        yield (
            f"{_path(circuit, 'device')}: is the circuit's own interface; "
            "that of the underlay would be right"
        )
    if bind is None:
        return
    addresses = (remote.address for remote in circuit.remote.all)
    other_version = any(each is not None and each.version != bind.version for each in addresses)
    if other_version or circuit.family not in (None, family_of(bind)):
        other = "remote" if other_version else "family"
        yield (
            f"{_path(circuit, 'bind')}: {bind} contradicts {other}; "
            "an address of the same IP version would be right"
        )
        return
    every = (ANY_IPV6, IPv4Address(0))
    heard = any(
        local == bind or (local in every and (local == ANY_IPV6 or local.version == bind.version))
        for local in listen
    )
    # In a VRF velad listens on all addresses.
    if not heard and circuit.device is None:
        yield (
            f"{_path(circuit, 'bind')}: daemon.listen does not have {bind}, so nothing would be "
            "heard there; add it"
        )


def _check_peer(circuit: CircuitConfig) -> Iterator[str]:
    peer = circuit.peer
    if len(peer.addresses) > MAX_ADDRESSES:
        yield (
            f"{_path(circuit, 'peer', 'addresses')}: has {len(peer.addresses)} items; "
            f"{MAX_ADDRESSES} fit one message"
        )
    if peer.mac is not None and peer.mac == circuit.mac:
        yield (
            f"{_path(circuit, 'peer', 'mac')}: is this end's own MAC address; "
            "another one would be right"
        )
    if not circuit.autoconfigure:
        if peer.checksum_offload and peer.mac is None:
            yield (
                f"{_path(circuit, 'peer', 'checksum_offload')}: has no effect without peer.mac; "
                "set both, or neither"
            )
        return
    own = {interface.ip for interface in circuit.addresses}
    for interface in peer.addresses:
        if interface.ip in own:
            yield (
                f"{_path(circuit, 'peer', 'addresses')}: {interface.ip} is this end's own "
                "address; another one would be right"
            )


class _Claim(NamedTuple):
    """A property that only one circuit of a host can have."""

    key: tuple[str, ...]
    """The key path of the property, within the circuit's table."""
    thing: Hashable
    """Equal for two circuits that conflict."""
    shown: object
    """The property as messages show it."""


def _local_claims(circuit: CircuitConfig) -> Iterator[_Claim]:
    """Yield the claims of a circuit on this host."""
    for remote in circuit.remote.all:
        if circuit.id and remote.host:
            identity = ("id", remote.identity, circuit.id)
            yield _Claim(("id",), identity, f"{circuit.id} toward {remote.host}")
    if isinstance(circuit.source_port, int):
        port = circuit.source_port
        yield _Claim(("source_port",), ("source_port", port), port)
    if circuit.latency is Latency.LOW:
        # Workers that poll on one CPU keep each other from it.
        for cpu in circuit.cpus:
            yield _Claim(("cpu",), ("cpu", cpu), f"CPU {cpu}, for latency 'low',")
    if circuit.mac is not None:
        yield _Claim(("mac",), ("mac", _LOCAL_HOST, circuit.mac), format_mac(circuit.mac))
    yield from _address_claims(("addresses",), _LOCAL_HOST, circuit.addresses)


def _remote_claims(circuit: CircuitConfig) -> Iterator[_Claim]:
    """Yield the claims of a circuit on its remotes, of which only this host's are known."""
    for remote in circuit.remote.all:
        # Behind each "any" is another machine.
        if remote.host and not remote.is_any:
            yield from _claims_on(remote.identity, circuit)


def _claims_on(host: str, circuit: CircuitConfig) -> Iterator[_Claim]:
    peer = circuit.peer
    if peer.mac is not None:
        yield _Claim(("peer", "mac"), ("mac", host, peer.mac), format_mac(peer.mac))
    if not circuit.autoconfigure:  # only the MAC address has an effect then
        return
    if peer.interface is not None:
        thing = ("interface", host, peer.interface)
        yield _Claim(("peer", "interface"), thing, peer.interface)
    yield from _address_claims(("peer", "addresses"), host, peer.addresses)


def _address_claims(
    key: tuple[str, ...], host: str, addresses: tuple[IPInterface, ...]
) -> Iterator[_Claim]:
    for interface in addresses:
        # Each link has its own link-local addresses: fe80::1 may be on all of them.
        if not (interface.version == 6 and interface.is_link_local):
            yield _Claim(key, ("address", host, interface.version, int(interface)), interface.ip)


def _path(circuit: CircuitConfig, *keys: str) -> str:
    return key_path("circuits", circuit.name, *keys)


def _taken(path: str, claim: _Claim, holder: str) -> str:
    return f"{path}: {claim.shown} is taken by {holder}; another one would be right"
