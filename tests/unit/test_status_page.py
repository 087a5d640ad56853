from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from vela.supervisor.export.history import SAMPLES, RateHistory
from vela.supervisor.export.page import status_page
from vela.supervisor.status import (
    NOT_MEASURED,
    CircuitStatus,
    DaemonStatus,
    RateStatus,
    ReceiveBufferStatus,
)


def circuit(name: str, state: str = "up", **settings: Any) -> CircuitStatus:
    loss, delay = NOT_MEASURED
    fields: dict[str, Any] = dict.fromkeys(CircuitStatus.__dataclass_fields__)
    fields |= {
        "name": name,
        "id": 1,
        "state": state,
        "reason": "",
        "description": "",
        "since_seconds": 59.9,
        "transitions": 3,
        "remote": "r.example",
        "rates": RateStatus.unknown(),
        "loss": loss,
        "delay_ms": delay,
    }
    return CircuitStatus(**fields | settings)


def rated(name: str, tx_bps: int, rx_bps: int) -> tuple[str, RateStatus]:
    return name, RateStatus(tx_bps, rx_bps, 1, 1)


def page_of(*circuits: CircuitStatus, history: RateHistory | None = None) -> ElementTree.Element:
    buffer = ReceiveBufferStatus(8388608, 8388608)
    status = DaemonStatus("1.0", 7, 7300.0, ("[::]:48621",), (), (), buffer, {}, (), circuits)
    text = status_page(status, (history or RateHistory()).of).decode()
    # As XML, which forgives less than HTML: what is not escaped, or not closed, is found.
    body = text[text.index("<body>") : text.index("</html>")]
    return ElementTree.fromstring(body)


def rows(page: ElementTree.Element) -> list[list[str]]:
    return [
        ["".join(cell.itertext()) for cell in row] for row in page.iter("tr") if row[0].tag == "td"
    ]


def test_page_without_circuits_says_so() -> None:
    page = page_of()

    assert page.findtext("h1") == "no circuits"
    assert rows(page) == []


def test_circuits_in_trouble_come_first_and_those_taken_down_last() -> None:
    page = page_of(
        circuit("a"), circuit("b", "disabled"), circuit("c", "down"), circuit("d", "unmonitored")
    )

    assert [row[0] for row in rows(page)] == ["c", "a", "d", "b"]
    assert page.findtext("h1") == "4 circuits: 1 disabled, 1 unmonitored, 1 up, 1 down"


def test_text_of_others_is_text() -> None:
    hostile = "<script>&\"'"
    page = page_of(circuit("a", "down", reason=hostile, description=hostile))

    (row,) = rows(page)
    assert row[0] == "a" + hostile
    assert row[-1] == "r.example" + hostile
    assert not list(page.iter("script"))


def test_figures_have_units() -> None:
    page = page_of(circuit("a", rates=RateStatus(2_500_000_000, 999, 1, 1), rtt_ms=0.314))

    (row,) = rows(page)
    assert row[1:8] == ["1", "up", "59 s", "3", "2.5 Gbit/s", "999 bit/s", ""]
    assert row[8] == "0.31 ms"


def test_sparkline_shows_both_directions_by_one_scale_with_the_newest_at_the_right() -> None:
    history = RateHistory()
    history.add([rated("a", 0, 50)])
    history.add([rated("a", 100, 0)])

    (svg,) = page_of(circuit("a"), history=history).iter("svg")

    tx, rx = (line.get("points") for line in svg.iter("polyline"))
    assert tx == "120,1.0 118,23.0"
    assert rx == "120,23.0 118,12.0"


def test_history_is_bounded_and_forgets_circuits_that_are_gone() -> None:
    history = RateHistory()
    for number in range(3 * SAMPLES):
        history.add([rated("a", number, 0), rated("b", number, 0)])
    history.add([rated("a", 7, 9)])

    assert len(history.of("a")) == SAMPLES
    assert history.of("a")[-1] == (7, 9)
    assert history.of("b") == ()
