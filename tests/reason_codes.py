"""The table of reasons as docs/reasons.md has it.

`python tests/reason_codes.py` writes that file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vela.reasons import Cause

PATH = Path(__file__).resolve().parents[1] / "docs" / "reasons.md"

_HEAD = """\
# Reasons

In `velactl status --json` each circuit has three keys:

- `reason`: all its reasons in one line
- `reason_code`: the code of the first, which says why the circuit has its state
- `reasons`: all of them, each with `code` and `text`

Without a reason they are "", "" and []. `velactl monitor --json` and `velactl --json` have
`reason_code`, too.

Programs decide by codes: a code keeps its meaning from version to version. New codes may come, and
words may change. In the words below, {name} stands for a value; {text} and {error} are what the
remote, the kernel or another program said. [Troubleshooting](operating.md#troubleshooting) says
what to do.

| code | given when | words |
|---|---|---|
"""


def document() -> str:
    return _HEAD + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for each in Cause:
        words = each.words.replace(":g}", "}").replace("`", "")
        yield f"| `{each.code}` | {each.when} | `{words}` |"


if __name__ == "__main__":
    PATH.write_text(document())
