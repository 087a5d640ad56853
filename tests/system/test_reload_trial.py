"""velactl reload --confirm: a configuration on trial, and how the trial ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.autoconfigured import Ends, asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin


@pytest.fixture
def both(routers: TwoRouters) -> Iterator[Ends]:
    with ends(routers, asking(routers.b.ipv4), policy()) as made:
        wait_until_up(made)
        yield made


def try_description(velad: Velad, routers: TwoRouters, text: str, *argv: str) -> str:
    velad.configure(asking(routers.b.ipv4, description=text))
    return velad.control("reload", *argv).stdout


def description(velad: Velad) -> object:
    return velad.circuit(NAME)["description"]


def test_configuration_that_nobody_confirms_is_taken_back(both: Ends, routers: TwoRouters) -> None:
    worker = both.a.worker_pid(NAME)

    said = try_description(both.a, routers, "tried", "--confirm", "2").splitlines()

    assert said == [
        "vela0  live           description",
        "1 circuits: 1 live",
        "on trial: velactl confirm within 2 s, or all of it is taken back",
    ]
    both.a.wait_for(lambda _: description(both.a) == "", 10.0, "the description of before")
    assert "configuration_taken_back" in both.a.log()
    assert both.a.worker_pid(NAME) == worker
    # The file is as it was, and still differs.
    assert "vela0  live           description" in both.a.control("reload", "--dry-run").stdout
    late = both.a.control("confirm", check=False)
    assert (late.returncode, late.stderr) == (
        1,
        "velactl: no configuration is on trial; velactl reload --confirm begins that\n",
    )


def test_circuits_that_a_trial_deletes_come_back(both: Ends, routers: TwoRouters) -> None:
    other = asking(routers.b.ipv4, name="vela1", id=2, addresses=[], peer={"addresses": []})
    both.a.configure(other)

    said = both.a.control("reload", "--confirm", "3").stdout

    assert "vela0  deleted" in said
    wait_until_up(both)
    assert [each["name"] for each in both.a.status()["circuits"]] == [NAME]


def test_confirmed_configuration_stays_also_across_a_restart(
    both: Ends, routers: TwoRouters
) -> None:
    try_description(both.a, routers, "tried", "--confirm", "3")

    both.a.control("confirm")

    assert "configuration_confirmed" in both.a.log()
    both.a.kill()
    both.a.start()
    assert description(both.a) == "tried"
    assert "configuration_taken_back" not in both.a.log()


def test_reload_without_a_trial_confirms_what_it_applies(both: Ends, routers: TwoRouters) -> None:
    try_description(both.a, routers, "tried", "--confirm", "3600")
    try_description(both.a, routers, "meant")

    assert both.a.control("confirm", check=False).returncode == 1
    both.a.kill()
    both.a.start()
    assert description(both.a) == "meant"


def test_second_trial_goes_back_to_what_was_confirmed_last(both: Ends, routers: TwoRouters) -> None:
    try_description(both.a, routers, "first", "--confirm", "3600")
    try_description(both.a, routers, "second", "--confirm", "1")

    both.a.wait_for(lambda _: description(both.a) == "", 10.0, "the description of before")


@pytest.mark.parametrize("orderly", [True, False])
def test_velad_that_ends_during_a_trial_starts_with_the_configuration_of_before(
    both: Ends, routers: TwoRouters, orderly: bool
) -> None:
    try_description(both.a, routers, "tried", "--confirm", "3600")
    assert description(both.a) == "tried"

    for _ in range(2):
        both.a.stop() if orderly else both.a.kill()
        both.a.start()
        assert description(both.a) == ""
        assert "configuration_taken_back" in both.a.log()
    assert both.a.control("reload").stdout.startswith("vela0  live           description")
    both.a.stop()
    both.a.start()
    assert description(both.a) == "tried"


def test_velad_starts_by_files_that_have_changed_since_the_trial(
    both: Ends, routers: TwoRouters
) -> None:
    try_description(both.a, routers, "tried", "--confirm", "3600")
    both.a.kill()
    both.a.configure(asking(routers.b.ipv4, description="corrected"))
    both.a.start()
    assert description(both.a) == "corrected"

    # That it was on trial once is forgotten.
    both.a.stop()
    both.a.configure(asking(routers.b.ipv4, description="tried"))
    both.a.start()
    assert description(both.a) == "tried"


def test_trial_that_cannot_be_remembered_changes_nothing(both: Ends, routers: TwoRouters) -> None:
    state = both.a.directory / "state"
    both.a.configure(asking(routers.b.ipv4, description="tried"))
    (state / "trial.new").mkdir(parents=True)

    done = both.a.control("reload", "--confirm", "60", check=False)

    assert done.returncode == 1
    assert "trial.json" in done.stderr
    assert description(both.a) == ""
    assert both.a.control("confirm", check=False).returncode == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "86401"])
def test_seconds_that_velad_would_refuse_are_a_mistake_of_the_command_line(
    both: Ends, seconds: str
) -> None:
    done = both.a.control("reload", f"--confirm={seconds}", check=False)

    assert done.returncode == 2
    assert "--confirm" in done.stderr
