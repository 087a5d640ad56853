"""When another session is asked for beside the present one, and how often."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from simulated_link import CIRCUIT, KEY, LOCAL1, OFFER, ROUTER2

from vela.signaling.inputs import Input, Received
from vela.signaling.link import Link
from vela.signaling.local_end import LocalEnd
from vela.signaling.messages import MessageType
from vela.signaling.nonces import Nonces
from vela.signaling.renewal import Purpose
from vela.signaling.renewer import Renewer
from vela.signaling.variables import SessionVariables


class Undisturbed(random.Random):
    """Leaves delays as long as they are."""

    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (0.8, 1)
        return 1.0


class Ends:
    """A renewer, and the session beside which it seeks."""

    def __init__(self) -> None:
        self.local = LocalEnd(LOCAL1, OFFER, passive=False, machine=None, key=KEY, cipher=None)
        self.variables = SessionVariables(CIRCUIT)
        self.due = self.variables.due
        self.present = Link(CIRCUIT, 0x11, 0x22, ROUTER2, None, sent=5, heard=7)
        self.variables.link = self.present
        nonces = Nonces(random.Random(1))
        self.renewer = Renewer(self.variables, self.local, nonces, Undisturbed())

    def kinds(self) -> list[int]:
        return [each.data[2] for each in self.local.outbox.take_all()]

    def delay_s(self) -> float:
        """Let the renewer end what it does at 100 s, and return how long it waits then."""
        self.renewer.end(100.0)
        return self.due[Input.RENEWAL_DUE] - 100.0


def test_renewals_are_farther_and_farther_apart_until_the_remote_has_the_settings() -> None:
    ends = Ends()
    ends.present.outdated = True

    delays = [ends.delay_s() for _ in range(7)]

    assert delays == [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert ends.delay_s() == 300.0
    ends.renewer.settle()
    assert ends.delay_s() == 10.0


def test_session_with_present_settings_is_not_asked_for_again() -> None:
    ends = Ends()

    ends.renewer.end(100.0)

    assert ends.due == {}


def test_lost_session_is_asked_for_every_half_second_and_given_up_after_ten_times() -> None:
    ends = Ends()
    ends.renewer.take_unknown(Received(100.0))
    times = [100.0]

    while Input.RENEWAL_DUE in ends.due:
        times.append(ends.due.pop(Input.RENEWAL_DUE))
        ends.renewer.handle_timer(Received(times[-1]))

    assert [later - earlier for earlier, later in pairwise(times)] == [0.5] * 10
    assert ends.kinds() == [MessageType.REQUEST] * 10
    assert ends.variables.renewal is None


def test_answers_about_an_unknown_session_make_it_ask_three_times_and_then_every_five_seconds() -> (
    None
):
    ends = Ends()

    for number in range(100):
        ends.variables.drop_renewal()
        ends.renewer.take_unknown(Received(100.0 + number / 10))

    assert len(ends.kinds()) == 3 + 1
    ends.renewer.take_unknown(Received(200.0))
    asked = ends.variables.renewal
    ends.renewer.take_unknown(Received(300.0))
    assert ends.variables.renewal is asked


@pytest.mark.parametrize("purpose", Purpose)
def test_nothing_is_due_and_nothing_sought_once_it_is_dropped(purpose: Purpose) -> None:
    ends = Ends()
    ends.renewer.seek(purpose, 100.0)
    assert ends.variables.renewal is not None
    assert ends.kinds() == [MessageType.REQUEST]

    ends.variables.drop_renewal()

    assert ends.variables.renewal is None
    assert ends.due == {}
