"""vela.supervisor.registry.plan: what a reload does to which circuit."""

from __future__ import annotations

from dataclasses import replace

from vela.address import Remote
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.registry.plan import Change, Step, make_plan

ONE = CircuitConfig("vela0", 1, Remote("192.0.2.2"))
OTHER = CircuitConfig("vela1", 2, Remote("192.0.2.2"))


def test_each_circuit_of_both_files_has_a_change_in_the_order_of_the_new_file() -> None:
    third = CircuitConfig("vela2", 3, Remote("192.0.2.2"))
    changed = replace(OTHER, keepalive=1.0)

    plan = make_plan({"vela0": ONE, "vela1": OTHER}, (third, changed))

    assert plan.changes == (
        Change("vela2", Step.ADDED, (), third),
        Change("vela1", Step.LIVE, ("keepalive",), changed),
        Change("vela0", Step.DELETED),
    )


def test_same_file_does_nothing() -> None:
    plan = make_plan({"vela0": ONE}, (replace(ONE),))

    assert plan.changes == (Change("vela0", Step.NOTHING, (), ONE),)
    assert plan.of(Step.LIVE, Step.NEW_WORKER, Step.NEW_INTERFACE, Step.ADDED, Step.DELETED) == ()


def test_circuits_that_exchange_their_ids_are_both_made_anew() -> None:
    plan = make_plan({"vela0": ONE, "vela1": OTHER}, (replace(ONE, id=2), replace(OTHER, id=1)))

    assert [change.step for change in plan.changes] == [Step.NEW_INTERFACE] * 2


def test_renamed_circuit_is_deleted_and_added() -> None:
    plan = make_plan({"vela0": ONE}, (replace(ONE, name="vela9"),))

    assert [(each.name, each.step) for each in plan.changes] == [
        ("vela9", Step.ADDED),
        ("vela0", Step.DELETED),
    ]


def test_key_of_the_daemon_can_cost_all_circuits_their_workers() -> None:
    third = CircuitConfig("vela2", 3, Remote("192.0.2.2"))
    wanted = (ONE, replace(OTHER, keepalive=1.0), replace(third, id=9))

    plan = make_plan(
        {"vela0": ONE, "vela1": OTHER, "vela2": third}, wanted, new_workers=("daemon.engine",)
    )

    assert [(each.step, each.keys) for each in plan.changes] == [
        (Step.NEW_WORKER, ("daemon.engine",)),
        (Step.NEW_WORKER, ("keepalive", "daemon.engine")),
        (Step.NEW_INTERFACE, ("id",)),
    ]
