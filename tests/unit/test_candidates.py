"""The order in which a remote's addresses are asked."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from vela.address import Endpoint
from vela.signaling.candidates import Candidate, Candidates, interleaved


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate(Endpoint(ip_address(text), 48621)) for text in texts]


A, B, C = candidates("192.0.2.1", "192.0.2.2", "192.0.2.3")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ""),
        ("192.0.2.1", "192.0.2.1"),
        (
            "2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2",
            "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2",
        ),
        (
            "192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1",
            "192.0.2.1 2001:db8::1 192.0.2.2 192.0.2.3",
        ),
        (
            "192.0.2.1 2001:db8::1 2001:db8::2 2001:db8::3",
            "192.0.2.1 2001:db8::1 2001:db8::2 2001:db8::3",
        ),
    ],
)
def test_families_alternate_beginning_with_the_best_address(given: str, expected: str) -> None:
    ordered = interleaved([ip_address(text) for text in given.split()])

    assert [str(address) for address in ordered] == expected.split()


def test_each_round_asks_all_in_the_same_order() -> None:
    asked = Candidates(A, B, C)

    seen = [(asked.next(), asked.round_is_over) for _ in range(6)]

    assert seen == [(A, False), (B, False), (C, True)] * 2


def test_begin_goes_back_to_the_best() -> None:
    asked = Candidates(A, B, C)
    asked.next()

    asked.begin()

    assert asked.next() == A


def test_those_that_are_new_come_before_those_that_were_asked() -> None:
    asked = Candidates(A, B)
    asked.next()
    asked.next()

    assert asked.replace(A, B, C) is True

    assert [asked.next() for _ in range(3)] == [C, A, B]


def test_those_that_are_gone_are_asked_no_more() -> None:
    asked = Candidates(A, B, C)
    asked.next()

    assert asked.replace(C, A) is False

    assert [asked.next() for _ in range(3)] == [C, C, A]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("192.0.2.1:1", "192.0.2.1:1"),
        ("192.0.2.1:2", "192.0.2.1:2"),
        ("192.0.2.1:999", "192.0.2.1:1"),  # translated
        ("192.0.2.9:1", None),
    ],
)
def test_answer_is_of_its_endpoint_or_of_one_at_the_address(
    source: str, expected: str | None
) -> None:
    address, port = source.split(":")
    ends = [Endpoint(ip_address("192.0.2.1"), number) for number in (1, 2)]
    asked = Candidates(*map(Candidate, ends))

    found = asked.at(Endpoint(ip_address(address), int(port)))

    assert (None if found is None else str(found.endpoint)) == expected
