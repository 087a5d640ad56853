"""docs/status.schema.json against the records of the status and documents of all states."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jsonschema
from simulation import ROUTER_A, ROUTER_B, Machine, network
from status_schema import PATH, schema, strict

from vela.dataplane.counters import Counters
from vela.signaling.signer import LocalKey
from vela.supervisor.config.records import AutoconfigureConfig
from vela.supervisor.status import (
    CircuitStatus,
    CounterStatus,
    DaemonStatus,
    ReceiveBufferStatus,
    WorkerStatus,
    WrongKeyStatus,
    document,
)

KEY = LocalKey(bytes(range(32)))


def check(circuits: tuple[CircuitStatus, ...]) -> None:
    status = DaemonStatus(
        "1.2.3",
        1,
        2.5,
        ("[::]:48621",),
        ("uso",),
        ("tso",),
        ReceiveBufferStatus(8388608, 212992),
        {"empty": 0},
        (WrongKeyStatus("192.0.2.9", 3, 0.5, "not the same key"),),
        circuits,
    )
    jsonschema.validate(json.loads(json.dumps(document(status))), strict(schema()))


def keys(value: Any) -> Any:
    """Return the keys of a document, and of the documents in it, without its values."""
    return {key: keys(each) for key, each in value.items()} if isinstance(value, dict) else None


def test_schema_in_the_documents_is_that_of_the_records() -> None:
    """`python tests/status_schema.py` writes it again."""
    assert json.loads(PATH.read_text()) == schema()


def test_status_fits_the_schema_and_has_the_same_keys_in_all_states(tmp_path: Path) -> None:
    allowed = AutoconfigureConfig(sources=(ip_network("192.0.2.0/24"),), max_circuits=1)
    with network(1) as link:
        a = Machine(link, ROUTER_A, tmp_path / "a", key=KEY)
        b = Machine(link, ROUTER_B, tmp_path / "b", autoconfigure=allowed, key=KEY)
        a.boot()
        b.boot()
        to = {"remote": str(ROUTER_B)}
        a.add("up", to)
        link.run(2)
        a.add("rejected", to)
        a.add("static", to | {"autoconfigure": False})
        a.add("unresolved", {"remote": "nowhere.example.net"})
        a.add("silent", {"remote": "192.0.2.77"})
        a.add("disabled", {"remote": "192.0.2.78"})
        a.refusals["failed"] = "no such device"
        a.add("failed", {"remote": "192.0.2.79", "autoconfigure": False})
        a.add("broken", {"remote": "192.0.2.80"})
        a.data_paths["broken"].broken = "the interface is gone"
        assert a.registry is not None
        a.registry.disable("disabled")
        link.run(10)
        a.check()
        circuits = a.registry.status()

    check(circuits)
    assert {each.state for each in circuits} >= {
        *("up", "rejected", "unmonitored", "resolving", "connecting", "disabled", "failed")
    }
    # An object or null, as `worker` is.
    assert {each.asking is None for each in circuits} == {True, False}
    assert len({json.dumps(keys(document(each) | {"asking": None})) for each in circuits}) == 1


def test_status_of_a_worker_and_its_counters_fits_the_schema() -> None:
    worker = document(WorkerStatus(None, 0, "native", 0, None, None))
    parts = strict(schema())["properties"]["circuits"]["items"]["properties"]

    jsonschema.validate(worker, parts["worker"])
    jsonschema.validate(document(WorkerStatus(1, 0, "native", 0, 0.5, 1)), parts["worker"])
    jsonschema.validate(document(CounterStatus.of(Counters())), parts["counters"])
