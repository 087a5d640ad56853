"""vela.rate and vela.linux.shaping: rates as text, and the sizes of the bucket for one."""

from __future__ import annotations

import struct

import pytest

from vela.linux.shaping import TokenBucketFilter
from vela.rate import MAX_RATE, MIN_RATE, format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate", "shown"),
    [
        ("100M", 100_000_000, "100M"),
        ("2.5G", 2_500_000_000, "2500M"),
        ("0.1M", 100_000, "100k"),
        ("64k", MIN_RATE, "64k"),
        ("64000", MIN_RATE, "64k"),
        ("1T", MAX_RATE, "1T"),
        ("1234k", 1_234_000, "1234k"),
    ],
)
def test_rate_is_read_and_shown(text: str, rate: int, shown: str) -> None:
    assert parse_rate(text) == rate
    assert format_rate(rate) == shown
    assert parse_rate(shown) == rate


@pytest.mark.parametrize(
    "text",
    [
        *("", "M", "100", "63k", "1.1T", "100m", "100 M", "-1M", "1e9", "100Mbit", "0", "64000.5"),
        *("9" * 40, "100M\n", "\u0661\u0660\u0660M", ".5G", "64.0001k"),
    ],
)
def test_text_that_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"right|outside|whole number"):
        parse_rate(text)


def test_bucket_and_queue_follow_the_rate() -> None:
    limit = TokenBucketFilter.of(100_000_000, 1400)

    # 1414 bytes for each 1400.
    assert limit == TokenBucketFilter(rate=12_625_000, burst=126_250, queue=315_625)
    # tc_tbf_qopt: ratespec (link layer Ethernet), peak, queue, buffer, mtu.
    words = struct.unpack("=BBHhHI BBHhHI III", limit.attributes()[1])
    assert words == (0, 1, 0, 0, 0, 12_625_000, *(0,) * 6, 315_625, 0, 0)
    assert limit.attributes()[6] == struct.pack("=I", 126_250)
    assert limit.attributes().keys() == {1, 6}


def test_bucket_at_a_low_rate_takes_whole_frames() -> None:
    limit = TokenBucketFilter.of(MIN_RATE, 1500)

    assert (limit.burst, limit.queue) == (2 * 1518, 16 * 1518)


def test_rate_above_32_bits_of_bytes_has_an_attribute_of_its_own() -> None:
    limit = TokenBucketFilter.of(MAX_RATE, 1500)

    attributes = limit.attributes()
    assert attributes[1][8:12] == b"\xff" * 4
    assert attributes[4] == struct.pack("=Q", 126_166_666_666)
    assert TokenBucketFilter.of(32_000_000_000, 1500).attributes().keys() == {1, 6}
