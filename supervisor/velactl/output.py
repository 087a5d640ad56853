"""Standard output of velactl: how wide it is, and what happens when it takes nothing more."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable

from vela.errors import VelaError

DEFAULT_WIDTH = 80


class ReaderGone(Exception):
    """The reader has closed the pipe, as `head` does. That is no error."""


def width() -> int:
    """Return the columns of the terminal; those of COLUMNS, or 80, if it is none."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError, AttributeError):
        return DEFAULT_WIDTH


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def write(lines: Iterable[str]) -> None:
    """Write lines now. Raises VelaError, or ReaderGone."""
    text = "".join(f"{line}\n" for line in lines)
    if sys.stdout is None:  # the caller has closed it
        raise VelaError("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as err:
        _give_up()
        raise ReaderGone from err
    except UnicodeEncodeError:
        # A terminal without UTF-8 shows "?" instead.
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError as err:
        _give_up()
        reason = os.strerror(err.errno or errno.EIO)
        raise VelaError(f"standard output: {reason}") from err


def write_json(value: object, *, indent: int | None = 2) -> None:
    write([json.dumps(value, indent=indent)])


def warn(text: object) -> None:
    """Write a line about an error, if there is anywhere to write it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"velactl: {text}", file=sys.stderr, flush=True)


def _give_up() -> None:
    """Forget what is buffered: the interpreter would try to write it, and exit with 120."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
