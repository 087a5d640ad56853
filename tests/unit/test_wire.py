"""vela.wire against tables computed by hand from docs/protocol.md, section 3.2."""

from __future__ import annotations

import pytest

from vela.address import Family
from vela.errors import ConfigError
from vela.wire import (
    datagram_limit,
    frame_limit,
    gso_max_size,
    max_tap_mtu,
    overhead,
    tap_mtu,
)

# docs/protocol.md, 3.6: phase, counter, tag.
SEAL = 1 + 4 + 16


def test_overhead_is_29_or_49_bytes_and_21_more_where_frames_are_encrypted() -> None:
    assert overhead(Family.IPV4, encrypted=False) == 29
    assert overhead(Family.IPV6, encrypted=False) == 49
    assert overhead(Family.IPV4, encrypted=True) == 50
    assert overhead(Family.IPV6, encrypted=True) == 70


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("underlay", "on_ipv4", "on_ipv6"),
    [
        (1301, 1272, 1252),
        (1492, 1463, 1443),
        (1500, 1471, 1451),
        (9000, 8971, 8951),
        # The largest that leaves room for a tagged and escaped frame in one
        # datagram: 65507 - 1 - 1 - 14 - 4.
        (65535, 65487, 65486),
        (65536, 65487, 65487),
        (97, 68, None),
        (117, 88, 68),
        (96, None, None),
    ],
)
def test_tap_mtu_is_what_the_overhead_leaves(
    underlay: int, on_ipv4: int | None, on_ipv6: int | None, encrypted: bool
) -> None:
    more = SEAL if encrypted else 0
    for family, expected in ((Family.IPV4, on_ipv4), (Family.IPV6, on_ipv6)):
        if expected is not None and expected - more >= 68:
            assert tap_mtu(underlay, family, encrypted=encrypted) == expected - more
        else:
            with pytest.raises(ConfigError, match=f"an underlay MTU of {underlay} leaves"):
                tap_mtu(underlay, family, encrypted=encrypted)


def test_tap_mtu_of_an_encrypted_circuit_on_ethernet() -> None:
    assert tap_mtu(1500, Family.IPV4, encrypted=True) == 1450
    assert tap_mtu(1500, Family.IPV6, encrypted=True) == 1430
    assert max_tap_mtu(encrypted=True) == 65487 - SEAL


@pytest.mark.parametrize(
    ("underlay", "on_ipv4", "on_ipv6"),
    [(1500, 1472, 1452), (9000, 8972, 8952), (65535, 65507, 65487), (65536, 65507, 65487)],
)
def test_datagram_limit_is_without_the_outer_headers(
    underlay: int, on_ipv4: int, on_ipv6: int
) -> None:
    assert datagram_limit(underlay, Family.IPV4) == on_ipv4
    assert datagram_limit(underlay, Family.IPV6) == on_ipv6


@pytest.mark.parametrize(
    ("mtu", "expected"),
    [
        (1471, 44 * 1419 + 321),  # 44 * 1472 = 64768, 45 * 1472 = 66240
        (1451, 45 * 1399 + 321),  # 45 * 1452 = 65340
        (8971, 7 * 8919 + 321),  # 7 * 8972 = 62804
        (1280, 51 * 1228 + 321),  # 51 * 1281 = 65331
        (68, 64 * 16 + 321),  # no more than 64 in a send
        (65487, 65535),
    ],
)
def test_gso_max_size_makes_as_many_segments_as_one_send_takes(mtu: int, expected: int) -> None:
    assert gso_max_size(mtu, forwarded=False, encrypted=False) == expected
    assert gso_max_size(mtu, forwarded=True, encrypted=False) == 65536


@pytest.mark.parametrize(
    ("mtu", "expected"),
    [
        (1450, 44 * 1398 + 321),  # 44 * 1472 = 64768
        (1430, 45 * 1378 + 321),  # 45 * 1452 = 65340
        (1451, 44 * 1399 + 321),  # 44 * 1473 = 64812
        (1434, 44 * 1382 + 321),  # 44 * 1456; 45 would be 65520
        (68, 64 * 16 + 321),
    ],
)
def test_gso_max_size_of_an_encrypted_circuit_counts_what_each_segment_grows_by(
    mtu: int, expected: int
) -> None:
    assert gso_max_size(mtu, forwarded=False, encrypted=True) == expected
    assert gso_max_size(mtu, forwarded=True, encrypted=True) == 65536


def test_frame_limit_has_room_for_one_tag() -> None:
    assert frame_limit(1471) == 1489


@pytest.mark.parametrize("underlay", [1280, 1500, 9000])
@pytest.mark.parametrize("family", list(Family))
def test_full_packet_whose_header_is_elided_just_fits(underlay: int, family: Family) -> None:
    # circuit id + packet; or circuit id, phase, counter, packet, tag
    limit = datagram_limit(underlay, family)
    assert 1 + tap_mtu(underlay, family, encrypted=False) == limit
    assert 1 + 1 + 4 + tap_mtu(underlay, family, encrypted=True) + 16 == limit
