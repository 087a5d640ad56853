"""velactl reload, run as a program: what it asks for, and what it says of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_velad import Velad

REQUEST = {"command": "reload", "dry_run": False, "allow_empty": False, "confirm": None}


@pytest.fixture
def velad(tmp_path: Path) -> Iterator[Velad]:
    made = Velad(tmp_path / "velad.sock")
    yield made
    made.close()


def entry(circuit: str, effect: str, *keys: str, error: str | None = None) -> dict[str, Any]:
    return {"circuit": circuit, "effect": effect, "keys": list(keys), "error": error}


def report(*circuits: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "circuits": list(circuits),
        "autoconfigure_changed": False,
        "needs_restart": [],
    } | fields


CHANGED = report(
    entry("vela0", "nothing"),
    entry("vela1", "live", "keepalive", "rate"),
    entry("vela-long", "new worker", "encryption"),
    entry("vela2", "live", "description"),
    autoconfigure_changed=True,
    needs_restart=["daemon.port", "daemon.user"],
)


def test_reload_shows_what_happened_to_each_circuit_and_what_else_to_know(velad: Velad) -> None:
    velad.answer = CHANGED

    status, out, err = velad.control("reload")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "vela0      nothing",
        "vela1      live           keepalive, rate",
        "vela-long  new worker     encryption",
        "vela2      live           description",
        "4 circuits: 1 nothing, 2 live, 1 new worker",
        "[autoconfigure] changed: circuits of others that it no longer allows are deleted",
        "daemon.port changed: restart velad for that to take effect",
        "daemon.user changed: restart velad for that to take effect",
    ]
    assert velad.requests == [REQUEST]


def test_reload_without_circuits_counts_none(velad: Velad) -> None:
    velad.answer = report()

    assert velad.control("reload") == (0, "0 circuits\n", "")


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (("--dry-run",), {"dry_run": True}),
        (("--allow-empty",), {"allow_empty": True}),
        (("--dry-run", "--allow-empty"), {"dry_run": True, "allow_empty": True}),
        (("--confirm", "60"), {"confirm": 60.0}),
    ],
)
def test_options_of_reload_are_asked_for(
    velad: Velad, options: tuple[str, ...], asked: dict[str, Any]
) -> None:
    velad.answer = report()

    status, _, _ = velad.control("reload", *options)

    assert status == 0
    assert velad.requests == [REQUEST | asked]


def test_reload_on_trial_says_until_when_it_is_to_be_confirmed(velad: Velad) -> None:
    velad.answer = report(entry("vela0", "live", "mtu"))

    _, out, _ = velad.control("reload", "--confirm", "90.5")

    assert out.splitlines()[1:] == [
        "1 circuits: 1 live",
        "on trial: velactl confirm within 90.5 s, or all of it is taken back",
    ]


@pytest.mark.parametrize("options", [("--dry-run", "--confirm", "60"), ("--confirm", "0.5")])
def test_options_that_cannot_be_are_a_mistake_of_the_command_line(
    velad: Velad, options: tuple[str, ...]
) -> None:
    status, out, err = velad.control("reload", *options)

    assert (status, out) == (2, "")
    assert "argument --confirm: " in err
    assert velad.requests == []


def test_reload_in_json_is_what_velad_answered(velad: Velad) -> None:
    velad.answer = CHANGED

    status, out, err = velad.control("reload", "--json", "--confirm", "60")

    assert (status, err) == (0, "")
    assert json.loads(out) == CHANGED


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_circuits_that_could_not_be_made_are_shown_and_named_with_status_1(
    velad: Velad, options: tuple[str, ...]
) -> None:
    velad.answer = report(
        entry("vela0", "new interface", error="there is an interface vela0"),
        entry("vela1", "live"),
        entry("vela2", "added", error="no route"),
    )

    status, out, err = velad.control("reload", *options)

    assert status == 1
    assert out.count("vela1") == 1
    assert err == (
        "velactl: all else was reloaded, but vela0: there is an interface vela0; vela2: no route\n"
    )


def test_reload_that_is_refused_ends_with_the_reason(velad: Velad) -> None:
    velad.answer = {"error": "/etc/vela.toml: circuits.vela0.id: 256 is outside 1..255"}

    assert velad.control("reload") == (
        1,
        "",
        "velactl: /etc/vela.toml: circuits.vela0.id: 256 is outside 1..255\n",
    )


def test_reload_of_a_velad_from_before_an_update_that_reports_nothing_is_done(
    velad: Velad,
) -> None:
    velad.answer = {}

    assert velad.control("reload") == (0, "", "")
