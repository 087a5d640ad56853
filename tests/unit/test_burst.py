"""vela.supervisor.runtime.burst: work that is done together, each for itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from vela.supervisor.runtime.burst import Burst
from vela.supervisor.runtime.loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    yield EventLoop()
    signal.set_wakeup_fd(-1)


def test_work_that_fails_keeps_none_of_the_rest_from_being_done(
    loop: EventLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    burst = Burst(loop, 0.01)
    burst.add(lambda: done.append("first"))
    burst.add(fail)
    burst.add(lambda: done.append("third"))
    loop.call_later(0.005, lambda: burst.add(fail))
    loop.call_later(0.006, lambda: burst.add(lambda: done.append("later")))
    loop.call_later(0.1, loop.stop)

    loop.run()

    assert done == ["first", "third", "later"]
    assert capsys.readouterr().out.count("callback_failed") == 2
