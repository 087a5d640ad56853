"""TOML text to values; the only importer of toml. Pure."""

from __future__ import annotations

import re
import tomllib

import toml

MAX_MESSAGE = 200  # characters of a parser's message

# Messages of toml, and what an operator can do about them.
_TOML_MESSAGES = (
    (r"Duplicate keys!", "this key appears twice"),
    (r"What\? (.+?) already exists\?", r"the table or key '\1' appears twice"),
    (
        r"invalid literal for int|Invalid date or number|This float doesn't have",
        "this is not a value; a string in quotes, a number, true or false would be right",
    ),
    (
        r"Found tokens after a closed string",
        "something follows a string's closing quote; perhaps a comma or quote is missing",
    ),
)
# tomllib takes time by the square of a dotted key's parts: minutes for one of 100 kB.
_DEEP_KEY = re.compile(r"(?<![\w\-\"'])(?:[\w\-\"']++[ \t]*+\.[ \t]*+){64}")
_TOO_DEEP = "is nested too deeply"
# The end of tomllib's messages, at least up to Python 3.13.
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


class TomlSyntaxError(Exception):
    """The text is not TOML. Says where, if that is known, and what is wrong there."""


def parse_toml(text: str) -> dict[str, object]:
    """Return the values of a TOML 1.0 document. Raises TomlSyntaxError.

    The standard library's tomllib parses. toml 0.10.2 only explains: it accepts
    broken documents ("[1,,2]", a list without its end) and refuses correct ones
    (0x10, a list of several types), but it names mistakes that tomllib only
    calls unexpected, such as a key that appears twice.
    """
    unix = text.replace("\r\n", "\n")
    deep = _DEEP_KEY.search(unix)
    if deep is not None:
        line = unix.count("\n", 0, deep.start()) + 1
        raise TomlSyntaxError(f"line {line}: {_TOO_DEEP}")
    try:
        return tomllib.loads(unix)
    except tomllib.TOMLDecodeError as err:
        raise TomlSyntaxError(_explain(unix, str(err))) from err
    except RecursionError as err:
        raise TomlSyntaxError(_TOO_DEEP) from err
    except ValueError as err:  # int() takes 4300 digits at most
        raise TomlSyntaxError(f"has an invalid number: {_printable(str(err))}") from err


def _explain(text: str, message: str) -> str:
    """Return the place and the kind of a mistake that tomllib found."""
    place = _PLACE.search(message)
    line = text.rstrip("\n").count("\n") + 1
    column = ""
    if place is not None:
        message = message[: place.start()]
        if place[1] is not None:
            line, column = int(place[1]), f", column {place[2]}"
    explanation = _explain_by_toml(text, line)
    if explanation is not None:
        return f"line {line}: {explanation}"
    return f"line {line}{column}: {_printable(message)}"


def _explain_by_toml(text: str, line: int) -> str | None:
    """Return what toml's message for this line means; None: it has none that helps."""
    try:
        toml.loads(text)
    except toml.TomlDecodeError as err:
        for pattern, explanation in _TOML_MESSAGES:
            match = re.match(pattern, err.msg, re.DOTALL)
            if match and err.lineno == line:
                return _printable(match.expand(explanation))
    except Exception:  # toml 0.10.2 also lets IndexError, TypeError and others out
        return None
    return None


def _printable(message: str) -> str:
    # The message may quote any character of the text.
    return message.strip().encode("unicode_escape").decode("ascii")[:MAX_MESSAGE]
