"""vela.supervisor.config.syntax: what is TOML, and in which words a mistake is explained."""

from __future__ import annotations

import time

import pytest
from config_texts import MINIMAL, circuit_with, only_mistake_in

from vela.supervisor.config.reader import parse_config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[daemon]\nport = 1\nport = 2\n", "line 3: this key appears twice"),
        (MINIMAL + MINIMAL, "line 4: the table or key 'vela0' appears twice"),
        ('[daemon]\r\nlisten = ["::",, "192.0.2.1"]\r\n', "line 2, column 16: Invalid value"),
        ('[daemon]\nlisten = ["::"', "line 2: Unclosed array"),
        ('[daemon]\nlisten = ["::", 1]\nengine = x1\n', "line 3, column 10: Invalid value"),
        ('[daemon]\nuser = "\\U0000d800"\n', "line 2, column 19: Escaped character is not"),
        ("[daemon]\nuser = nobody\n", "line 2: this is not a value; a string in quotes"),
        ("[daemon]\nengine = x1\n", "line 2: this is not a value; a string in quotes"),
        ('[daemon]\nlisten = ["::" "::1"]\n', "line 2: something follows a string's closing"),
        ("[daemon]\nport: 5\n", "line 2, column 5: Expected '=' after a key"),
        ('[daemon]\nuser = "nobody\n', "line 2, column 15: Illegal character"),
        (
            "# 1\ncircuits = 3\n[circuits.a]\nid = 1\n",
            "line 3, column 12: Cannot overwrite a value",
        ),
        ("# 1\na={b=1\n# 3\n", "line 2, column 7: Unclosed inline table"),
    ],
)
def test_syntax_error_is_one_line_with_its_place(text: str, message: str) -> None:
    assert only_mistake_in(text).startswith(message)


def test_syntax_error_message_has_neither_newlines_nor_surrogates() -> None:
    mistake = only_mistake_in('["\\n\ud800\u2028"]\n["\\n\ud800\u2028"]\n')

    assert mistake.isprintable()


def test_toml_that_is_right_is_taken_whatever_the_toml_package_says() -> None:
    text = "[daemon]\nport=0x1f\n" + circuit_with("cpu = 0b1")

    config = parse_config(text, "f")

    assert (config.daemon.port, config.circuits[0].cpu) == (31, 1)
    assert only_mistake_in('[daemon]\nlisten = ["::", 1]\n').startswith(
        "daemon.listen[1]: 1 is a whole number; "
    )


def test_decimal_number_of_five_thousand_digits_is_reported() -> None:
    assert only_mistake_in(f"[daemon]\nport = {'9' * 5000}\n").startswith("has an invalid number")


@pytest.mark.parametrize("text", ["a." * 50_000 + "a = 1\n", f"[{'.'.join(['a'] * 30_000)}]\n"])
def test_key_of_very_many_parts_is_refused_at_once(text: str) -> None:
    """The parser would take minutes, and all circuits with it."""
    began = time.process_time()

    assert only_mistake_in("# 1\n" + text) == "line 2: is nested too deeply"
    assert time.process_time() - began < 2.0
