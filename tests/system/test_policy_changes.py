"""What becomes of circuits that others set up when the policy changes under them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.autoconfigured import asking, circuit, ends, interfaces, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin


def stored(velad: Velad) -> list[str]:
    document = json.loads((velad.directory / "state" / "circuits.json").read_text())
    return sorted(document["circuits"])


def test_wider_policy_leaves_circuits_and_their_workers_alone(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        worker = both.b.worker_pid(NAME)

        both.b.configure(policy(networks=["172.16.0.0/12", "fd00::/8", "10.9.0.0/16"]))
        both.b.control("reload")

        assert both.b.circuit(NAME)["state"] == "up"
        assert both.b.worker_pid(NAME) == worker


def test_circuit_that_the_policy_no_longer_allows_goes_and_its_initiator_knows_why(
    routers: TwoRouters,
) -> None:
    with circuit(routers) as both:
        both.b.configure(policy(networks=["fd00::/8"]))
        both.b.control("reload")

        assert NAME not in interfaces(routers.b.namespace)
        assert stored(both.b) == []
        entry = both.a.wait_for_state(NAME, "rejected", timeout_s=10)
        assert entry["reason"].startswith(
            "address 172.16.16.2/30 lies in none of autoconfigure.networks on the other end"
        )


def test_stored_circuit_without_a_policy_is_neither_started_nor_forgotten(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        assert both.b.stop() == 0

        both.b.configure("")
        both.b.start()

        entry = both.b.circuit(NAME)
        assert entry["state"] == "failed"
        assert entry["reason"] == "another machine set it up, and [autoconfigure] is absent"
        assert NAME not in interfaces(routers.b.namespace)
        assert "[autoconfigure] is absent" in both.b.log()
        # Not even what is saved meanwhile loses it.
        both.b.control("add", "vela9", "--remote", "10.201.0.9", "--static")
        assert stored(both.b) == [NAME, "vela9"]
        both.b.control("delete", "vela9")
        assert both.b.stop() == 0

        both.b.configure("")
        both.b.start()
        assert both.b.circuit(NAME)["state"] == "failed"
        both.b.configure(policy())
        both.b.control("reload")
        wait_until_up(both)


def test_changed_key_ends_circuits_under_the_old_one(
    routers: TwoRouters, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys")
    for name in ("old", "new"):
        (keys / name).write_text(f"{name} key, long enough\n")
        (keys / name).chmod(0o600)
    old, new = str(keys / "old"), str(keys / "new")
    with circuit(routers, policy_b=policy(key_file=old), key_file=old) as both:
        both.b.configure(policy(key_file=new))
        both.b.control("reload")
        both.a.wait_for_state(NAME, "down", timeout_s=10)

        both.a.configure(asking(routers.b.ipv4, key_file=new))
        both.a.control("reload")
        wait_until_up(both)


def test_changed_default_key_is_that_of_all_circuits_without_one(
    routers: TwoRouters, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(f"{name} key, long enough\n")
        (tmp_path / name).chmod(0o600)
    old, new = (policy(key_file=str(tmp_path / name)) for name in ("old", "new"))
    own = asking(
        routers.b.ipv4,
        name="vela2",
        id=2,
        addresses=[],
        peer={"addresses": []},
        key_file=str(tmp_path / "old"),
    )
    with ends(routers, old + asking(routers.b.ipv4) + own, old) as both:
        both.a.control("add", "vela7", "--remote", routers.b.ipv4, "--peer-interface", "vela7")
        for name in (NAME, "vela2", "vela7"):
            wait_until_up(both, a=name, b=name)

        for velad, config in ((both.a, new + asking(routers.b.ipv4) + own), (both.b, new)):
            velad.configure(config)
            velad.control("reload")

        both.a.wait_for_state("vela2", "down")
        for name in (NAME, "vela7"):
            wait_until_up(both, a=name, b=name)
        assert both.a.circuit("vela2")["state"] == "down"
