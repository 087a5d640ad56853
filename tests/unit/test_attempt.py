"""When an end that seeks its remote asks again, what it tells, and for how long it insists."""

from __future__ import annotations

import random
from ipaddress import ip_address
from itertools import pairwise

import pytest

from vela.address import Endpoint
from vela.signaling.attempt import Attempt

REMOTE = Endpoint(ip_address("192.0.2.2"), 48621)


class Undisturbed(random.Random):
    """Leaves delays as long as they are."""

    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (0.8, 1)
        return 1.0


def begun(at: float = 100.0) -> Attempt:
    attempt = Attempt(Undisturbed())
    attempt.begin(at)
    return attempt


def requests(attempt: Attempt, now: float, until: float) -> list[float]:
    """Return the delays behind the REQUESTs that are sent from now on."""
    delays = []
    while now < until:
        delays.append(attempt.count_request(now))
        now += delays[-1]
    return delays


def test_request_is_repeated_each_second_for_five_minutes_and_then_less_and_less() -> None:
    attempt = begun()

    delays = requests(attempt, 100.0, 600.0)

    assert delays[0] == 0.5
    assert set(delays[1:300]) == {1.0}
    assert delays[301:] == [2.0, 4.0, 8.0, 16.0, *[30.0] * (len(delays) - 305)]
    assert len(delays) > 306


def test_request_after_another_outage_is_repeated_as_often_as_at_first() -> None:
    attempt = begun()
    requests(attempt, 100.0, 1000.0)

    attempt.begin(1000.0)

    assert requests(attempt, 1000.0, 1003.0) == [0.5, 1.0, 1.0, 1.0]


def test_every_third_request_at_an_address_is_told_and_every_fourth_looks_the_name_up() -> None:
    attempt = begun()
    told, looked_up = [], []

    for number in range(1, 14):
        if number == 5:
            attempt.note_answer()
        attempt.count_request(100.0 + number)
        told += [number] * attempt.is_unanswered
        looked_up += [number] * attempt.wants_lookup

    assert told == [3, 7, 10, 13]
    assert looked_up == [4, 8, 12]


def rounds(attempt: Attempt, addresses: int, count: int) -> list[tuple[float, bool, bool]]:
    """Return when REQUESTs are sent, and whether each is told and looks the name up."""
    sent, now = [], 100.0
    for number in range(1, addresses * count + 1):
        delay_s = attempt.count_request(now, ends_round=number % addresses == 0)
        sent.append((round(now, 3), attempt.is_unanswered, attempt.wants_lookup))
        now += delay_s
    return sent


def test_two_addresses_are_asked_a_quarter_of_a_second_apart_and_rounds_as_far_as_requests() -> (
    None
):
    assert rounds(begun(), 2, 4) == [
        (100.0, False, False),
        (100.25, False, False),
        (100.5, False, False),
        (100.75, True, True),
        (101.5, False, False),
        (101.75, False, False),
        (102.5, False, False),
        (102.75, True, True),
    ]


def test_thirty_addresses_are_all_asked_within_eight_seconds_and_told_at_the_end() -> None:
    sent = rounds(begun(), 30, 2)

    assert [at for at, _, _ in sent] == [100.0 + 0.25 * number for number in range(60)]
    assert [number for number, (_, told, _) in enumerate(sent) if told] == [29, 59]
    assert [number for number, (_, _, looks) in enumerate(sent) if looks] == [29, 59]


def test_rounds_of_many_addresses_are_rarer_after_five_minutes() -> None:
    sent = rounds(begun(), 3, 310)

    begins = [at for at, _, _ in sent[::3]]
    delays = [round(later - sooner, 3) for sooner, later in pairwise(begins)]
    assert delays[:2] == [0.75, 1.0]
    assert delays[-3:] == [30.0, 30.0, 30.0]


def test_request_is_hurried_but_comes_no_sooner_than_a_confirm_would() -> None:
    attempt = begun()
    assert attempt.earliest_request(100.0) == 100.0

    attempt.count_request(100.0)

    assert attempt.earliest_request(100.1) == pytest.approx(100.3)
    assert attempt.earliest_request(101.0) == 101.0


def test_end_insists_for_three_requests_from_when_it_first_hears_the_remote() -> None:
    attempt = begun()
    requests(attempt, 100.0, 140.0)  # long before it is heard

    insisted = []
    for _ in range(6):
        insisted.append(attempt.insists())
        attempt.count_request(150.0)

    assert insisted == [True, True, True, True, False, False]
    attempt.begin(200.0)
    assert attempt.insists()


def test_rejections_are_farther_and_farther_apart_until_there_is_a_session() -> None:
    attempt = begun()

    assert [attempt.rejected_delay_s() for _ in range(6)] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    attempt.begin(200.0)
    assert attempt.rejected_delay_s() == 30.0
    attempt.succeed()
    assert attempt.rejected_delay_s() == 2.0


def test_confirms_are_repeated_faster_than_a_cookie_dies() -> None:
    attempt = begun()

    for _ in range(2):
        attempt.begin_confirming()
        assert [attempt.confirm_delay_s() for _ in range(3)] == [0.3, 0.6, 1.2]


def test_reason_for_no_answer_names_the_key_once_a_tag_was_wrong() -> None:
    attempt = begun()
    assert attempt.unanswered_reason([REMOTE]).startswith(
        "no answer from 192.0.2.2:48621: no velad"
    )

    attempt.wrong_tag = True

    assert "wrong tag" in attempt.unanswered_reason([REMOTE])
    attempt.begin(200.0)
    assert "wrong tag" in attempt.unanswered_reason([REMOTE])
    attempt.succeed()
    assert "wrong tag" not in attempt.unanswered_reason([REMOTE])


def test_reason_for_no_answer_counts_the_other_addresses_and_keeps_to_one_order() -> None:
    attempt = begun()
    others = [Endpoint(ip_address(f"192.0.2.{number}"), 48621) for number in (4, 3)]

    said = attempt.unanswered_reason([*others, REMOTE])

    assert said.startswith("no answer from 192.0.2.2:48621 and 2 other addresses: no velad there")
    assert attempt.unanswered_reason([REMOTE, *others]) == said
    assert attempt.unanswered_reason([others[0], REMOTE]).startswith(
        "no answer from 192.0.2.2:48621 and 1 other address: "
    )
