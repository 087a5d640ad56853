"""The text format of Prometheus, version 0.0.4. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A lone surrogate cannot be encoded; a name that came from the file system may have one.
_LABEL = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


def labels(values: Mapping[str, object]) -> str:
    """Return labels as they stand in a sample; their names are valid ones."""
    pairs = [f'{name}="{str(value).translate(_LABEL)}"' for name, value in values.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


class Family:
    """One metric with all its samples."""

    def __init__(self, name: str, kind: str, help_text: str) -> None:
        """name: as its samples have it. kind: "counter" or "gauge"."""
        self.name = name
        self.kind = kind
        self._help = help_text
        self._lines: list[str] = []

    def add(self, value: float | None, label_text: str = "") -> None:
        """Add a sample; none if the value is unknown. label_text: of labels()."""
        if value is not None:
            self._lines.append(f"{self.name}{label_text} {_number(value)}\n")

    def text(self) -> str:
        """Return the lines of the family; of one without samples, those that describe it."""
        return (
            f"# HELP {self.name} {self._help.translate(_HELP)}\n"
            f"# TYPE {self.name} {self.kind}\n{''.join(self._lines)}"
        )


def encode(families: Iterable[Family]) -> bytes:
    """Return the whole exposition."""
    return "".join(each.text() for each in families).encode("utf-8", "replace")


def _number(value: float) -> str:
    return repr(value + 0) if isinstance(value, bool) else repr(value)
