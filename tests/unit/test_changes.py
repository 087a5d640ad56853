"""How often other machines may have circuits made."""

from __future__ import annotations

from ipaddress import ip_address

from vela.supervisor.registry.changes import MAX_KNOWN, ChangeLimiter

ROUTER, OTHER = ip_address("192.0.2.1"), ip_address("192.0.2.2")


def test_all_circuits_of_a_machine_can_be_made_at_once_and_changed_once() -> None:
    limiter = ChangeLimiter()

    made = [limiter.take(ROUTER, number, 255, 100.0) for _ in range(2) for number in range(1, 256)]

    assert all(made)


def test_hundred_changes_a_second_of_one_circuit_become_one_in_five_seconds() -> None:
    limiter = ChangeLimiter()

    taken = [limiter.take(ROUTER, 7, 16, 100 + at / 100) for at in range(6000)]

    assert sum(taken) == 5 + 11
    # Neither another circuit of the machine nor another machine waits for it.
    assert limiter.take(ROUTER, 8, 16, 160.0)
    assert limiter.take(OTHER, 7, 16, 160.0)


def test_changes_of_all_circuits_of_a_machine_become_one_a_second() -> None:
    limiter = ChangeLimiter()

    taken = [limiter.take(ROUTER, at % 16, 16, 100 + at / 100) for at in range(6000)]

    assert sum(taken) <= 32 + 60
    assert limiter.take(OTHER, 7, 16, 160.0)


def test_hosts_addresses_are_one_machine_and_memory_is_bounded() -> None:
    limiter = ChangeLimiter()

    taken = sum(
        limiter.take(ip_address((0xFD << 120) + each), 1 + each % 255, 16, 100.0)
        for each in range(3 * MAX_KNOWN)
    )

    assert taken == 32
    assert len(limiter._buckets) <= MAX_KNOWN
