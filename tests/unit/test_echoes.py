"""vela.supervisor.circuit.echoes: what is remembered, and when it is asked."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator

import pytest
from simulation import StrictLoop

from vela.dataplane.frame import ECHO_REPLY
from vela.linux.arrival import ARRIVAL_SPACE, age_s, show_arrival
from vela.supervisor.circuit.echoes import Echoes
from vela.supervisor.circuit.history import History


@pytest.fixture
def loop() -> Iterator[StrictLoop]:
    made = StrictLoop()
    yield made
    made.close()


class Asker:
    """One circuit's echoes, and what they sent."""

    def __init__(self, loop: StrictLoop) -> None:
        self.loop = loop
        self.sent: list[tuple[float, bytes]] = []
        self.answers = True
        self.echoes = Echoes(
            loop, self._send, lambda: True, lambda: None, lambda: None, History(loop.now())
        )
        self.echoes.watch("path", 7, 4.0, crosses=False)

    def _send(self, request: bytes) -> None:
        self.sent.append((self.loop.now(), request))
        if self.answers:
            self.loop.call_later(0.001, lambda: self.take(request, 0.0))

    def take(self, request: bytes, age: float) -> bool:
        reply = bytes((*request[:2], ECHO_REPLY, *request[3:]))
        return self.echoes.take(memoryview(reply), age)


def test_many_circuits_ask_once_a_second_each_in_few_turns_of_the_loop(loop: StrictLoop) -> None:
    """Each turn is a wake-up of velad: 255 circuits would have 255 of their own a second."""
    askers = [Asker(loop) for _ in range(255)]
    loop.run_for(60.0)
    for asker in askers:
        asker.sent.clear()

    loop.run_for(10.0)

    for asker in askers:
        assert 9 <= len(asker.sent) <= 12
    moments = {at for asker in askers for at, _ in asker.sent}
    assert len(moments) <= 201
    # And not all at once: that would be a burst on the way.
    assert len(moments) > 150
    assert loop.failures == []


def test_answer_is_measured_by_when_the_worker_passed_it_on(loop: StrictLoop) -> None:
    asker = Asker(loop)
    asker.answers = False
    loop.run_for(0.05)
    _, request = asker.sent[0]

    # velad was busy for 40 of the 50 ms.
    assert asker.take(request, 0.04)

    assert asker.echoes.delays.status().p50 == pytest.approx(10.0)
    loop.run_for(2.0)
    _, request = asker.sent[-1]
    # A clock that was set: the answer is not older than the request.
    assert asker.take(request, 50.0)
    assert asker.echoes.delays.status().p50 == pytest.approx(0.0)


def test_kernel_says_how_long_ago_a_message_came() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(b"before")
        show_arrival(ours)
        theirs.send(b"x")

        _, unknown, _, _ = ours.recvmsg(16, ARRIVAL_SPACE)
        _, known, _, _ = ours.recvmsg(16, ARRIVAL_SPACE)

        assert [kind for _, kind, _ in known] == [35]  # SO_TIMESTAMPNS, include/uapi/asm-generic
        assert 0.0 < age_s(known) < 5.0
        assert age_s([]) == 0.0
        # Of the clock before it was set: not known.
        assert age_s([(socket.SOL_SOCKET, 35, bytes(16))]) == 0.0
        assert age_s(unknown) >= 0.0


def test_requests_that_get_lost_are_not_remembered_for_ever(loop: StrictLoop) -> None:
    """A path that loses one of ten would else keep a thousand of each circuit's."""
    asker = Asker(loop)
    asker.answers = False
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(2):
            loop.run_for(600.0)
            asker.sent.clear()
            found = tracemalloc.take_snapshot().statistics("filename")
            sizes.append(sum(each.size for each in found if "echoes.py" in str(each.traceback)))
    finally:
        tracemalloc.stop()

    assert sizes[1] < sizes[0] + 1000
