"""vela.mac: text form, and addresses that are derived."""

from __future__ import annotations

import pytest

from vela.mac import derive_mac, format_mac, parse_mac


@pytest.mark.parametrize("text", ["02:00:5e:10:00:01", "00:00:00:00:00:01", "fe:ff:ff:ff:ff:ff"])
def test_parse_and_format_are_inverse(text: str) -> None:
    assert format_mac(parse_mac(text)) == text
    assert parse_mac(text.upper()) == bytes(int(part, 16) for part in text.split(":"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a MAC address"),
        ("02:00:5e:10:00", "is not a MAC address"),
        ("02:00:5e:10:00:01:02", "is not a MAC address"),
        ("02-00-5e-10-00-01", "is not a MAC address"),
        ("02:00:5e:10:00:01\n", "is not a MAC address"),
        ("02:00:5e:10:00:0g", "is not a MAC address"),
        ("02:00:5e:10:00:\u06601", "is not a MAC address"),  # a digit, but of Arabic
        ("01:00:5e:10:00:01", "is a group address"),
        ("ff:ff:ff:ff:ff:ff", "is a group address"),
        ("00:00:00:00:00:00", "is not an address"),
    ],
)
def test_parse_of_what_no_interface_can_have_raises(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_mac(text)


def test_derived_mac_is_stable() -> None:
    # printf 'machine\0vela0' | sha256sum
    assert format_mac(derive_mac("machine", "vela0")) == "02:cf:e2:fb:dd:f8"


def test_derived_mac_is_local_individual_and_needs_no_escape() -> None:
    derived = [derive_mac("machine", f"vela{number}") for number in range(500)]

    assert {mac[0] for mac in derived} == {0x02}
    assert {len(mac) for mac in derived} == {6}
    assert len(set(derived)) == 500


def test_derived_mac_keeps_parts_apart() -> None:
    assert derive_mac("vela1", "2") != derive_mac("vela12", "")
    assert derive_mac("vela1", "2") != derive_mac("vela", "12")
