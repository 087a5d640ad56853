"""The checker of captures finds what it is there for: a nonce used twice, and a clear frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sealed_wire import LATE_S, CircuitDatagram, NonceLedger

KEY_S = 1.0


def sent(
    phase: int, counter: int, content: str, at: float, outgoing: bool = True
) -> CircuitDatagram:
    data = bytes([1, 0x42 | phase]) + counter.to_bytes(4) + content.encode().ljust(16, b".")
    return CircuitDatagram(at, outgoing, data)


def traffic() -> Iterator[CircuitDatagram]:
    """Four keys of 100 datagrams each, both ways."""
    for key in range(4):
        for number in range(100):
            at = key * KEY_S + number * KEY_S / 100
            for outgoing in (True, False):
                yield sent(key % 2, number + 1, f"{key} {number} {outgoing}", at, outgoing)


def ledger_of(datagrams: list[CircuitDatagram]) -> NonceLedger:
    ledger = NonceLedger()
    ledger.add(datagrams)
    return ledger


def test_counters_that_begin_anew_with_each_key_are_no_fault() -> None:
    ledger = ledger_of(list(traffic()))

    assert (ledger.reused, ledger.clear) == ([], [])
    assert [(ledger.keys(way), ledger.datagrams(way)) for way in (True, False)] == [(4, 400)] * 2


def test_same_datagram_twice_is_no_fault() -> None:
    datagrams = [each for each in traffic() for _ in range(2)]

    assert ledger_of(datagrams).reused == []


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("place", [1, 99, 250, 799])
def test_counter_that_is_used_twice_with_one_key_is_found(place: int, outgoing: bool) -> None:
    datagrams = list(traffic())
    victim = datagrams[place]
    counter = int.from_bytes(victim.data[2:6])
    planted = sent(victim.data[1] & 1, counter, "something else", victim.time_s, victim.outgoing)
    datagrams.insert(place + 1, planted)
    if not outgoing:
        datagrams = [replace(each, outgoing=not each.outgoing) for each in datagrams]

    [found] = ledger_of(datagrams).reused
    assert f"counter {counter}" in found


def test_worker_that_begins_to_count_anew_is_found() -> None:
    """What the counter in a worker's own memory does at its death."""
    datagrams = [sent(0, 1 + number % 60, str(number), number / 100) for number in range(100)]

    assert len(ledger_of(datagrams).reused) == 40


def test_late_datagram_of_the_key_before_hides_nothing() -> None:
    key = [sent(0, number, f"old {number}", number / 1000) for number in range(1, 100)]
    late = sent(0, 100, "late", 0.1 + LATE_S / 2)
    new = [sent(1, number, f"new {number}", 0.1 + number / 1000) for number in range(1, 50)]
    ledger = ledger_of([*key, *new[:10], late, *new[10:], sent(1, 5, "again", 0.2)])

    assert ledger.keys(True) == 2
    assert len(ledger.reused) == 1
    again = sent(0, 99, "other", late.time_s)
    assert len(ledger_of([*key, *new[:10], again, *new[10:]]).reused) == 1


@pytest.mark.parametrize(
    "data", [b"\x01\x41\x01" + bytes(16), b"\x01\x45" + bytes(40), b"\x01\x42"]
)
def test_frame_in_clear_is_found(data: bytes) -> None:
    ledger = ledger_of([*traffic(), CircuitDatagram(9.0, True, data)])

    assert ledger.clear == [data.hex()[:64]]
