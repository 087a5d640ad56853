"""Machines that ask with a wrong key: what is kept, what is logged."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import structlog

from vela.address import Endpoint
from vela.errors import RemoteProtocolError
from vela.supervisor.wrong_keys import FORGOTTEN_AFTER_S, MAX_MACHINES, WrongKeys

WRONG = RemoteProtocolError("tag", "the tag is wrong: not the same key")


def machine(number: int, port: int = 48621) -> Endpoint:
    return Endpoint(ip_address(f"192.0.2.{number}"), port)


def test_machine_is_counted_by_its_address_and_the_latest_comes_first() -> None:
    wrong_keys = WrongKeys()
    for now, source in ((1.0, machine(1)), (2.0, machine(2)), (3.5, machine(1, 50000))):
        wrong_keys.note(source, WRONG, now)

    shown = wrong_keys.status(4.0)

    assert [(each.address, each.messages, each.last_seconds) for each in shown] == [
        ("192.0.2.1", 2, 0.5),
        ("192.0.2.2", 1, 2.0),
    ]
    assert shown[0].error == WRONG.detail


def test_machine_that_asks_no_more_is_forgotten() -> None:
    wrong_keys = WrongKeys()
    wrong_keys.note(machine(1), WRONG, 1.0)

    assert wrong_keys.status(FORGOTTEN_AFTER_S) != ()
    assert wrong_keys.status(1.0 + FORGOTTEN_AFTER_S) == ()


def test_flood_from_many_addresses_is_bounded_in_memory_and_in_the_log() -> None:
    wrong_keys = WrongKeys()
    with structlog.testing.capture_logs() as lines:
        for number in range(1, 201):
            wrong_keys.note(machine(number), WRONG, number / 1000)

    assert len(wrong_keys.status(1.0)) == MAX_MACHINES
    assert len(lines) == 10
    assert {line["event"] for line in lines} == {"wrong_key"}


@pytest.mark.parametrize(("seconds", "lines_expected"), [(59, 1), (61, 2)])
def test_one_machine_has_a_line_a_minute(seconds: int, lines_expected: int) -> None:
    wrong_keys = WrongKeys()
    with structlog.testing.capture_logs() as lines:
        for now in range(seconds + 1):
            wrong_keys.note(machine(1), WRONG, float(now))

    assert len(lines) == lines_expected
    assert lines[0]["by"] == "192.0.2.1:48621"
