"""The JSON schema of the status, as its records say it: what docs/status.schema.json must be.

`python tests/status_schema.py` writes that file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vela.reasons import Cause
from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.circuit.setup import Origin
from vela.supervisor.status import CircuitStatus, DaemonStatus, ReasonStatus

PATH = Path(__file__).resolve().parents[1] / "docs" / "status.schema.json"

Schema = dict[str, Any]

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
# Words that a reader may rely on.
_WORDS: dict[tuple[type, str], list[str]] = {
    (CircuitStatus, "origin"): sorted({each.value for each in Origin}),
    (CircuitStatus, "state"): sorted({each.word for each in State}),
    (CircuitStatus, "reason_code"): ["", *sorted(each.code for each in Cause)],
    (ReasonStatus, "code"): sorted(each.code for each in Cause),
    (CircuitStatus, "encryption"): ["none", "required"],
    (CircuitStatus, "encapsulation"): ["auto", "ethernet", "ip"],
}


def schema() -> Schema:
    """Return the schema. All keys are required; further ones may come."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "velactl status --json",
        **_of(DaemonStatus),
    }


def strict(value: Any) -> Any:
    """Return a schema that allows no further keys."""
    if isinstance(value, list):
        return [strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: strict(each) for key, each in value.items()}
    if "properties" in found:
        found["additionalProperties"] = False
    return found


def _of(kind: Any) -> Schema:
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if is_dataclass(kind):
        assert isinstance(kind, type)
        hints = get_type_hints(kind)
        properties = {}
        for field in fields(kind):
            properties[field.name] = _of(hints[field.name])
            words = _WORDS.get((kind, field.name))
            if words is not None:
                properties[field.name]["enum"] = words
        return {"type": "object", "required": list(properties), "properties": properties}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        choices = [_of(each) for each in arguments]
        if all(set(each) == {"type"} for each in choices):
            return {"type": [each["type"] for each in choices]}
        return {"anyOf": choices}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    raise TypeError(f"no schema for {kind}")


if __name__ == "__main__":
    PATH.write_text(json.dumps(schema(), indent=2) + "\n")
