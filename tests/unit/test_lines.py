"""Which lines about other machines the log takes."""

from __future__ import annotations

from ipaddress import ip_address

from vela.supervisor.runtime.lines import LeftOut, LineLimiter

ROUTER, OTHER = ip_address("192.0.2.1"), ip_address("2001:db8::1")
REFUSED = {"event": "circuit_refused", "by": "192.0.2.1:48621"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_refusals_by_the_hundred_become_a_few_lines_and_one_with_their_number() -> None:
    clock = Clock()
    limiter = LineLimiter(clock)
    taken = 0
    summaries: list[LeftOut] = []
    for _ in range(61 * 700):
        taken += limiter.admits(REFUSED)
        summaries += limiter.summaries()
        clock.now += 1 / 700

    assert taken == 10 + 2
    assert summaries == [LeftOut("192.0.2.1", summaries[0].lines, summaries[0].events)]
    assert 60 * 700 - 20 < summaries[0].lines < 60 * 700
    assert summaries[0].events == {"circuit_refused": summaries[0].lines}


def test_lines_of_another_machine_and_of_this_one_are_not_left_out_for_it() -> None:
    limiter = LineLimiter(Clock())
    limiter.assign("vela0", ROUTER)
    limiter.assign("vela1", OTHER)
    for _ in range(100):
        limiter.admits(REFUSED)

    assert not limiter.admits({"event": "bridge_joined", "circuit": "vela0"})
    assert limiter.admits({"event": "bridge_joined", "circuit": "vela1"})
    assert limiter.admits({**REFUSED, "by": "[2001:db8::2]:48621"})
    assert all(limiter.admits({"event": "bridge_joined", "circuit": "own"}) for _ in range(100))
    assert all(limiter.admits({"event": "configuration_reloaded"}) for _ in range(100))


def test_every_circuit_of_an_honest_machine_goes_down_and_comes_up_with_a_line() -> None:
    clock = Clock()
    limiter = LineLimiter(clock)

    def states() -> int:
        return sum(
            limiter.admits({"event": "circuit_state_changed", "circuit": f"vela{each}"})
            for each in range(255)
        )

    made = 0
    for each in range(255):
        limiter.assign(f"vela{each}", ROUTER)
        made += limiter.admits({"event": "circuit_state_changed", "circuit": f"vela{each}"})
    clock.now += 120
    down = states()
    clock.now += 120
    up = states()

    assert (made, down, up) == (255, 255, 255)


def test_machine_that_makes_and_deletes_circuits_gets_no_more_lines_by_that() -> None:
    clock = Clock()
    limiter = LineLimiter(clock)
    taken = 0
    for second in range(60):
        for each in range(16):
            limiter.assign(f"vela{each}", ROUTER)
            for event in ("circuit_state_changed", "circuit_closed", "circuit_deleted_by_peer"):
                taken += limiter.admits({"event": event, "circuit": f"vela{each}"})
            limiter.release(f"vela{each}")
        clock.now = 1000.0 + second
    assert taken < 60


def test_nothing_is_summed_up_where_nothing_was_left_out() -> None:
    clock = Clock()
    limiter = LineLimiter(clock)
    limiter.admits(REFUSED)
    clock.now += 100

    assert limiter.summaries() == ()


def test_commands_of_operators_are_never_left_out() -> None:
    limiter = LineLimiter(Clock())
    limiter.assign("vela0", ROUTER)

    line = {"event": "command_done", "command": "restart", "circuit": "vela0", "uid": 0, "pid": 7}
    assert all(limiter.admits(line) for _ in range(1000))
