"""docs/screens.md against what velactl renders from the recorded run."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from screens import PATH, WIDTHS, document, recorded, screens
from status_schema import schema, strict


def test_document_has_the_screens_that_velactl_renders() -> None:
    """`python tests/screens.py` writes it again."""
    assert PATH.read_text() == document()


def without_required(value: Any) -> Any:
    """Return a schema of which every key may be absent."""
    if isinstance(value, list):
        return [without_required(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: without_required(each) for key, each in value.items() if key != "required"}


def test_recorded_status_has_no_key_that_is_not_one_of_this_version() -> None:
    """Newer keys are shown once `python tests/screens.py --record`, as root, has recorded it."""
    status = recorded()["status"]

    jsonschema.validate(status, without_required(strict(schema())))
    assert {each["state"] for each in status["circuits"]} >= {
        *("up", "connecting", "rejected", "resolving", "disabled")
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_screens_fit_the_width_but_for_reasons_in_full(width: int) -> None:
    names = {each["name"] for each in recorded()["status"]["circuits"]}
    for title, lines in screens(recorded(), width):
        if title.startswith("velactl status "):
            continue  # facts about one circuit, a line each
        wide = [line for line in lines if len(line) > width]
        assert title == "velactl status" or wide == []
        assert all(line.partition(":")[0] in names for line in wide)
