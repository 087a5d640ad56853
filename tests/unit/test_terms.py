"""How frames are carried: what an end says of itself, and what follows from what both say."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vela.address import Endpoint, parse_remote
from vela.dataplane.contract import Abilities
from vela.dataplane.mss import MssClamp
from vela.dataplane.pieces import Fragmentation
from vela.linux.underlay import ReceiveGroup, Route, UnderlayPath
from vela.signaling.agreement import agree
from vela.signaling.messages import Capability, Description
from vela.supervisor.circuit.terms import Profile, agreed_profile, describe, static_profile
from vela.supervisor.config.records import (
    CircuitConfig,
    ClampMss,
    Encapsulation,
    Encryption,
    Fragment,
    SourcePort,
)

MAC = bytes.fromhex("02005e100001")


def capabilities(abilities: Abilities, encapsulation: Encapsulation) -> Capability:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), encapsulation=encapsulation)
    return describe(config, None, MAC, 48621, abilities).capabilities


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        (Abilities(), Capability(0)),
        (Abilities(virtio_header=True), Capability(0)),
        (Abilities(native=True), Capability.NATIVE_ENGINE),
        (
            Abilities(partial_checksums=True),
            Capability.CHECKSUM_OFFLOAD,
        ),
    ],
    ids=["none", "virtio header", "native", "partial checksums"],
)
def test_each_ability_is_announced_by_its_own_capability(
    abilities: Abilities, expected: Capability
) -> None:
    always = Capability.ELISION | Capability.PIECES | Capability.ECN | Capability.ECHO
    always |= Capability.PORTS
    assert capabilities(abilities, Encapsulation.AUTO) == expected | always


def test_partial_checksums_without_elision_are_not_announced() -> None:
    abilities = Abilities(partial_checksums=True)

    expected = Capability.PIECES | Capability.ECN | Capability.ECHO | Capability.PORTS
    assert capabilities(abilities, Encapsulation.ETHERNET) == expected


BRIDGED = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), bridge="br0")
REMOTE_MAC = bytes.fromhex("02005e100002")
ENDPOINT = Endpoint(ip_address("192.0.2.2"), 48621)
PATH = UnderlayPath(
    ENDPOINT,
    (ENDPOINT.address,),
    Route(ip_address("192.0.2.1"), 1500),
    cast(ReceiveGroup, None),
)


def agreed(
    config: CircuitConfig, remote: CircuitConfig, bridges: tuple[int | None, int | None]
) -> Profile:
    """Return how the first end carries frames. bridges: the MTU of each end's."""
    config = replace(config, source_port=50000)
    local, other = (
        describe(each, PATH, mac, 48621, Abilities(native=True), bridge_mtu=mtu)
        for each, mac, mtu in zip((config, remote), (MAC, REMOTE_MAC), bridges, strict=True)
    )
    # Each describes the same path.
    source = Endpoint(PATH.route.source, 48621)
    return agreed_profile(config, agree(local, other, source), PATH, bridges[0])


@pytest.mark.parametrize(
    ("config", "remote", "bridges", "mtu", "fragmentation"),
    [
        pytest.param({}, {}, (1500, 1500), 1500, Fragmentation.IN_PIECES, id="defaults"),
        pytest.param({}, {}, (1500, 9000), 1500, Fragmentation.IN_PIECES, id="smaller bridge"),
        pytest.param({}, {}, (1400, 1400), 1471, Fragmentation.IN_PIECES, id="narrow bridges"),
        pytest.param({}, {}, (1500, None), 1471, Fragmentation.IN_PIECES, id="one bridge"),
        pytest.param({}, {"mtu": 1600}, (1500, None), 1500, Fragmentation.IN_PIECES, id="number"),
        pytest.param({"mtu": 1460}, {}, (1500, 1500), 1460, Fragmentation.IN_PIECES, id="own"),
        pytest.param(
            {}, {"fragmentation": Fragment.IP}, (1500, 1500), 1471, Fragmentation.BY_IP, id="old"
        ),
        pytest.param(
            {"fragmentation": Fragment.IP}, {}, (1500, 1500), 1471, Fragmentation.BY_IP, id="ip"
        ),
        pytest.param(
            {"fragmentation": Fragment.OFF}, {}, (1500, 1500), 1471, Fragmentation.NEVER, id="off"
        ),
        pytest.param(
            *({"encryption": Encryption.REQUIRED}, {"encryption": Encryption.REQUIRED}),
            *((1500, 1500), 1500, Fragmentation.IN_PIECES),
            id="encrypted",
        ),
    ],
)
def test_mtu_of_bridges_counts_where_both_ends_take_pieces(
    config: dict[str, object],
    remote: dict[str, object],
    bridges: tuple[int | None, int | None],
    mtu: int,
    fragmentation: Fragmentation,
) -> None:
    local, other = (replace(BRIDGED, **each) for each in (config, remote))  # type: ignore[arg-type]

    profile = agreed(local, other, bridges)

    assert (profile.mtu, profile.fragmentation) == (mtu, fragmentation)


def test_neighbour_that_knows_nothing_of_pieces_agrees_on_what_it_did_before() -> None:
    new = describe(BRIDGED, PATH, MAC, 48621, Abilities(), bridge_mtu=1500)
    old = replace(new, mac=REMOTE_MAC, capabilities=Capability.ELISION, mtu_in_pieces=None)
    configured = replace(old, mtu=1500)

    assert agree(new, old, ENDPOINT).mtu == 1471
    assert agree(new, configured, ENDPOINT).mtu == 1471
    assert agree(new, old, ENDPOINT).pieces is False


@pytest.mark.parametrize(
    ("fragmentation", "bridge_mtu", "mtu", "carried"),
    [
        (Fragment.AUTO, 1500, 1471, Fragmentation.BY_IP),
        (Fragment.IP, 1500, 1471, Fragmentation.BY_IP),
        (Fragment.TUNNEL, 1500, 1500, Fragmentation.IN_PIECES),
        (Fragment.TUNNEL, None, 1471, Fragmentation.IN_PIECES),
        (Fragment.OFF, 1500, 1471, Fragmentation.NEVER),
    ],
)
def test_static_circuit_sends_pieces_only_if_it_is_told_so(
    fragmentation: Fragment, bridge_mtu: int | None, mtu: int, carried: Fragmentation
) -> None:
    config = replace(BRIDGED, fragmentation=fragmentation, source_port=50000)

    profile = static_profile(config, PATH, bridge_mtu)

    assert (profile.mtu, profile.fragmentation) == (mtu, carried)


@pytest.mark.parametrize(
    ("changes", "bridge_mtu", "clamp"),
    [
        pytest.param({}, 1500, MssClamp(1472), id="bridge of 1500"),
        # 1472 - 1 - 14: what a datagram carries of a complete frame.
        pytest.param({"mtu": 1457}, 1457, None, id="bridge that fits"),
        pytest.param({"mtu": 1458}, 1458, MssClamp(1472), id="bridge that does not"),
        pytest.param({"mtu": 1400}, 1500, MssClamp(1472), id="bridge above the circuit"),
        pytest.param({"bridge": None}, None, None, id="routed"),
        pytest.param({"bridge": None, "mtu": 1471}, None, None, id="routed, at the limit"),
        pytest.param({"bridge": None, "mtu": 1472}, None, MssClamp(1472), id="routed, above it"),
        pytest.param(
            {"bridge": None, "encapsulation": Encapsulation.ETHERNET},
            *(None, MssClamp(1472)),
            id="routed, complete frames",
        ),
        pytest.param({"clamp_mss": ClampMss.OFF}, 1500, None, id="off"),
        pytest.param(
            {"clamp_mss": ClampMss.ON, "bridge": None}, None, MssClamp(1472), id="on, routed"
        ),
        pytest.param({"clamp_mss": 1000}, 1500, MssClamp(mss=1000), id="number"),
    ],
)
def test_mss_is_clamped_where_segments_would_exceed_a_datagram(
    changes: dict[str, object], bridge_mtu: int | None, clamp: MssClamp | None
) -> None:
    config = replace(BRIDGED, **changes)  # type: ignore[arg-type]

    assert agreed(config, config, (bridge_mtu, bridge_mtu)).mss_clamp == clamp


@pytest.mark.parametrize(
    ("remote", "carries"),
    [(Capability.ECN, True), (Capability(0), False)],
    ids=["brings it back", "older"],
)
def test_outer_headers_have_the_ecn_of_packets_if_the_remote_brings_it_back(
    remote: Capability, carries: bool
) -> None:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), source_port=50000)
    own = describe(config, PATH, MAC, 48621, Abilities())
    other = replace(own, mac=bytes(6), capabilities=remote)

    agreement = replace(agree(own, other, ENDPOINT), nat=False)

    assert agreed_profile(config, agreement, PATH).carry_ecn is carries


@pytest.mark.parametrize(
    ("encapsulation", "carries"),
    [(Encapsulation.AUTO, True), (Encapsulation.ETHERNET, True), (Encapsulation.IP, False)],
)
def test_static_circuit_carries_ecn_but_to_a_tun(
    encapsulation: Encapsulation, carries: bool
) -> None:
    config = CircuitConfig(
        "vela0",
        1,
        parse_remote("192.0.2.2"),
        autoconfigure=False,
        encapsulation=encapsulation,
        source_port=50000,
    )

    assert static_profile(config, PATH).carry_ecn is carries


LISTENING = cast(ReceiveGroup, SimpleNamespace(port=48621))


def described(frame_ports: int, **changes: Any) -> Description:
    description = describe(
        CircuitConfig("vela0", 1, parse_remote("192.0.2.2")),
        PATH,
        REMOTE_MAC,
        48621,
        Abilities(native=True),
        frame_port=50000,
        frame_ports=frame_ports,
    )
    return replace(description, own=None, seen=None, **changes)


@pytest.mark.parametrize(
    ("remote", "ports"),
    [
        (described(1), 1),
        (described(2), 2),
        (described(8), 8),
        (described(200), 8),
        (described(8, frame_port=65534), 2),
        (described(2, frame_port=None), 1),
    ],
)
def test_as_many_ports_in_a_row_are_expected_as_the_remote_says_and_there_can_be(
    remote: Description, ports: int
) -> None:
    assert agree(described(1), remote, ENDPOINT).frame_ports == ports


def test_translated_port_is_the_only_one() -> None:
    remote = replace(described(4), own=Endpoint(ip_address("10.0.0.1"), 48621))
    agreement = agree(described(4), remote, ENDPOINT)

    assert agreement.nat
    assert (agreement.frame_port, agreement.frame_ports) == (ENDPOINT.port, 1)


@pytest.mark.parametrize(
    ("config", "agreement", "several"),
    [
        ({}, {}, True),
        ({"source_port": 50000}, {}, False),
        ({"source_port": SourcePort.LISTEN}, {}, False),
        ({}, {"several_ports": False}, False),
        ({}, {"nat": True}, False),
        ({}, {"from_listening": True}, False),
    ],
)
def test_frames_leave_from_several_ports_only_where_all_of_them_are_taken(
    config: dict[str, Any], agreement: dict[str, Any], several: bool
) -> None:
    circuit = replace(CircuitConfig("vela0", 1, parse_remote("192.0.2.2")), **config)
    agreed_on = replace(agree(described(1), described(1), ENDPOINT), **agreement)
    path = replace(PATH, group=LISTENING)

    assert agreed_profile(circuit, agreed_on, path).several_ports is several


def test_remote_that_knows_of_one_port_is_sent_from_one() -> None:
    old = described(1, capabilities=described(1).capabilities & ~Capability.PORTS)

    assert not agree(described(1), old, ENDPOINT).several_ports
    assert agree(described(1), described(1), ENDPOINT).several_ports


@pytest.mark.parametrize(("sequences", "several"), [(8, True), (1, False)])
def test_encrypted_frames_leave_from_several_ports_only_with_a_sequence_of_counters_for_each(
    sequences: int, several: bool
) -> None:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), encryption=Encryption.REQUIRED)
    ours = describe(config, replace(PATH, group=LISTENING), MAC, 48621, Abilities(), sequences=8)
    theirs = replace(ours, own=None)
    if sequences == 1:
        theirs = replace(theirs, capabilities=theirs.capabilities & ~Capability.SEQUENCES)
    profile = agreed_profile(
        config, agree(replace(ours, own=None), theirs, ENDPOINT), replace(PATH, group=LISTENING)
    )

    assert (profile.sequences, profile.several_ports) == (sequences, several)


@pytest.mark.parametrize("encryption", list(Encryption))
def test_small_frames_are_bundled_only_where_both_ends_encrypt_and_take_bundles(
    encryption: Encryption,
) -> None:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"), encryption=encryption)
    path, encrypted = replace(PATH, group=LISTENING), encryption is Encryption.REQUIRED
    ours = replace(describe(config, path, MAC, 48621, Abilities()), own=None)
    old = replace(ours, capabilities=ours.capabilities & ~Capability.BUNDLES)

    assert (Capability.BUNDLES in ours.capabilities) is encrypted
    assert agreed_profile(config, agree(ours, ours, ENDPOINT), path).bundles is encrypted
    assert not agreed_profile(config, agree(ours, old, ENDPOINT), path).bundles


def test_only_a_key_page_with_room_offers_several_sequences() -> None:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"))

    for room, offered in ((1, False), (8, True)):
        found = describe(config, None, MAC, 48621, Abilities(), sequences=room).capabilities
        assert (Capability.SEQUENCES in found) is offered


def test_static_circuit_sends_from_several_ports_unless_one_is_configured() -> None:
    config = CircuitConfig("vela0", 1, parse_remote("192.0.2.2"))
    path = replace(PATH, group=LISTENING)

    assert static_profile(config, path).several_ports
    assert not static_profile(replace(config, source_port=50000), path).several_ports
    original = replace(config, encapsulation=Encapsulation.IP)
    assert not static_profile(original, path).several_ports
