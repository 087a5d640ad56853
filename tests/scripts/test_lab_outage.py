"""How the lab measures an outage: by the frames' own times, not by when somebody looked."""

from __future__ import annotations

import pytest

from lab.capture import Packet
from lab.frames import numbered
from lab.outage import Passage, passage

MS = 1_000_000


def times(**ms: float) -> dict[int, int]:
    return {int(name[1:]): int(each * MS) for name, each in ms.items()}


def packet(mark: str, number: int, time_ns: int, outgoing: bool) -> Packet:
    return Packet(numbered(mark, number), time_ns, outgoing, True)


def test_outage_of_a_frame_counts_from_its_departure_or_from_the_kill() -> None:
    frames = Passage(times(_0=90, _1=99, _2=101, _3=120), times(_0=91, _1=112, _2=113, _3=121))

    # Frame 1 was under way already: 12 ms since the kill, 13 since it departed.
    assert frames.outage_ms(100 * MS, 300 * MS) == 12.0


def test_outage_does_not_count_a_pause_of_the_sender() -> None:
    frames = Passage(times(_0=99, _1=180), times(_0=99.5, _1=181))

    assert frames.outage_ms(100 * MS, 300 * MS) == 1.0
    assert frames.unseen_ms(100 * MS) == 80.0


def test_outage_after_which_nothing_departs_is_unseen() -> None:
    frames = Passage(times(_0=99), times(_0=99.5))

    assert frames.outage_ms(100 * MS, 300 * MS) == 0.0
    assert frames.unseen_ms(100 * MS) == float("inf")


def test_outage_of_a_frame_that_departed_later_is_another_one() -> None:
    frames = Passage(times(_0=101, _1=301), times(_0=102, _1=400))

    assert frames.outage_ms(100 * MS, 300 * MS) == 1.0


def test_passage_is_of_one_mark_and_one_direction() -> None:
    went = [packet("x", 0, 1, True), packet("y", 0, 2, True), packet("x", 7, 3, False)]
    came = [packet("x", 0, 5, False), packet("y", 0, 6, False), packet("x", 0, 7, True)]

    assert passage("x", went, came) == Passage({0: 1}, {0: 5})


def test_passage_without_an_arrival_is_missing() -> None:
    went = [packet("x", number, number, True) for number in range(3)]

    assert passage("x", went, [packet("x", 1, 5, False)]).missing == [0, 2]


@pytest.mark.parametrize(
    ("numbers", "said"), [((0, 0), "x 0 came twice"), ((1,), "x 1 came from nowhere")]
)
def test_passage_of_what_cannot_be_raises(numbers: tuple[int, ...], said: str) -> None:
    came = [packet("x", number, 5, False) for number in numbers]

    with pytest.raises(ValueError, match=said):
        passage("x", [packet("x", 0, 1, True)], came)
