from __future__ import annotations

from vela.supervisor.circuit.history import FIGURES, History
from vela.supervisor.circuit.rates import Traffic
from vela.supervisor.constants import MAX_HISTORY_MINUTES
from vela.supervisor.status import MinuteStatus

OFFSET_S = 1_000_000.0


def traffic(seconds: float) -> Traffic:
    """Of 1 Mbit/s sent and 8 Mbit/s received."""
    return Traffic(int(seconds), int(125_000 * seconds), int(seconds), int(1_000_000 * seconds))


def run(history: History, begin: int, end: int, *, up: bool = True) -> None:
    """Look at it once a second, as the circuit does."""
    for now in range(begin, end):
        history.look(float(now), traffic(now), up=up)


def test_history_has_no_minute_before_one_is_over() -> None:
    history = History(0.0)
    run(history, 0, 60)

    assert history.status(OFFSET_S) == ()


def test_minute_has_what_was_carried_and_answered_in_it() -> None:
    history = History(0.0)
    run(history, 0, 31)
    for answer in (0.001, 0.002, 0.003, 0.040):
        history.asked()
        history.answered(answer)
    history.asked()
    run(history, 31, 61, up=False)

    assert history.status(OFFSET_S) == (
        MinuteStatus(1_000_060, 50.0, 1_000_000, 8_000_000, 5, 4, 2.0, 40.0),
    )


def test_minutes_do_not_share_what_is_counted() -> None:
    history = History(0.0)
    history.asked()
    history.answered(0.001)
    run(history, 0, 121)

    first, second = history.status(OFFSET_S)
    assert (first.asked, first.answered, first.p50_ms) == (1, 1, 1.0)
    assert second == MinuteStatus(1_000_120, 100.0, 1_000_000, 8_000_000, 0, 0, None, None)


def test_answer_to_a_request_of_the_minute_before_is_no_second_one() -> None:
    history = History(0.0)
    run(history, 0, 61)
    history.answered(0.001)
    run(history, 61, 121)

    last = history.status(OFFSET_S)[-1]
    assert (last.asked, last.answered, last.p50_ms) == (0, 0, 1.0)


def test_history_keeps_a_day_and_no_more() -> None:
    history = History(0.0)
    history.look(0.0, traffic(0), up=True)
    for minute in range(1, MAX_HISTORY_MINUTES + 10):
        history.look(60.0 * minute, traffic(60 * minute), up=True)

    found = history.status(0.0)
    assert len(found) == MAX_HISTORY_MINUTES
    assert [found[0].time, found[-1].time] == [600, 60 * (MAX_HISTORY_MINUTES + 9)]
    assert len(history._figures) == FIGURES * MAX_HISTORY_MINUTES
