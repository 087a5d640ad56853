from __future__ import annotations

from vela.supervisor.circuit.history import FIGURES, History
from vela.supervisor.circuit.losses import Step
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
        history.answered(answer)
    history.take_step(Step(0.0, 5.0, asked=4, answered=3, arrived=3))
    history.take_step(Step(5.0, 10.0, asked=4, answered=2, arrived=3))
    # Nobody knows which way these got lost.
    history.take_step(Step(10.0, 15.0, asked=2, answered=0))
    run(history, 31, 61, up=False)

    # Jitter by RFC 3550: 1, 1 and 37 ms in turn, each counts 1/16.
    jitter = 0.0
    for difference in (1.0, 1.0, 37.0):
        jitter += (difference - jitter) / 16
    assert history.status(OFFSET_S) == (
        MinuteStatus(
            time=1_000_060,
            up_percent=50.0,
            tx_bps=1_000_000,
            rx_bps=8_000_000,
            asked=10,
            answered=5,
            tx_loss_percent=25.0,  # 2 of 8
            rx_loss_percent=16.67,  # 1 of 6
            p50_ms=2.0,
            p99_ms=40.0,
            jitter_ms=round(jitter, 3),
        ),
    )


def test_minutes_do_not_share_what_is_counted() -> None:
    history = History(0.0)
    history.take_step(Step(0.0, 5.0, asked=2, answered=1, arrived=1))
    history.answered(0.001)
    run(history, 0, 121)

    first, second = history.status(OFFSET_S)
    assert (first.asked, first.answered, first.p50_ms) == (2, 1, 1.0)
    assert (first.tx_loss_percent, first.rx_loss_percent, first.jitter_ms) == (50.0, 0.0, 0.0)
    assert second == MinuteStatus(
        1_000_120, 100.0, 1_000_000, 8_000_000, 0, 0, None, None, None, None, None
    )


def test_history_keeps_a_day_and_no_more() -> None:
    history = History(0.0)
    history.look(0.0, traffic(0), up=True)
    for minute in range(1, MAX_HISTORY_MINUTES + 10):
        history.look(60.0 * minute, traffic(60 * minute), up=True)

    found = history.status(0.0)
    assert len(found) == MAX_HISTORY_MINUTES
    assert [found[0].time, found[-1].time] == [600, 60 * (MAX_HISTORY_MINUTES + 9)]
    assert len(history._figures) == FIGURES * MAX_HISTORY_MINUTES
