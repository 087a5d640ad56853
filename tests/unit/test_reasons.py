"""The table of reasons, and that each reason keeps its code on the way to the status."""

from __future__ import annotations

import re

import pytest
from reason_codes import PATH, document

from vela.errors import ConfigError, DeviceError, ResolutionError, VelaError
from vela.reasons import NO_REASON, Cause, Reason, joined, reason_of
from vela.signaling.events import Rejected
from vela.signaling.messages import RejectCode

CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def test_codes_are_words_and_each_has_one_row() -> None:
    codes = [each.code for each in Cause]

    assert all(CODE.fullmatch(code) for code in codes)
    assert len(set(codes)) == len(codes)
    # Two rows with the same three values would be one row with two names.
    assert len(Cause.__members__) == len(codes)


def test_document_has_the_table() -> None:
    assert PATH.read_text() == document()


def test_reason_has_words_and_code_and_is_equal_to_its_words() -> None:
    reason = Cause.DEVICE_MISSING.say(device="eth{1}")

    assert reason == "the interface eth{1} does not exist; waiting for it"
    assert reason.code == "device_missing"
    assert (NO_REASON, NO_REASON.code) == ("", "")


@pytest.mark.parametrize("code", [*RejectCode, 200])
def test_refusal_of_the_remote_keeps_its_words_and_has_a_code(code: int) -> None:
    known = code in set(RejectCode)

    reason = Rejected(code, "not here").reason

    assert reason == "not here"
    assert reason.code == (f"refused_{RejectCode(code).name.lower()}" if known else "refused")


def test_refusal_of_this_end_has_a_code_of_its_own() -> None:
    assert Rejected(RejectCode.ENCRYPTION, Cause.NO_ENCRYPTION.say()).reason.code == "no_encryption"


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (
            DeviceError(Cause.PORT_IN_USE.say(port=7777)),
            "the source port 7777 is taken",
            "port_in_use",
        ),
        (
            ConfigError(Cause.DUPLICATE_MAC.say(mac="a")),
            Cause.DUPLICATE_MAC.say(mac="a"),
            "duplicate_mac",
        ),
        (DeviceError("vela0: No space left on device"), "vela0: No space left on device", "kernel"),
        (ConfigError("one", "two"), "one; two", "configuration"),
        (ResolutionError("x: no such name"), "x: no such name", "kernel"),
    ],
)
def test_reason_of_an_error_is_its_own_or_one_of_its_kind(
    error: VelaError, text: str, code: str
) -> None:
    reason = reason_of(error)

    assert (str(reason), reason.code) == (text, code)


def test_joined_reasons_have_each_text_once_and_the_code_of_the_first() -> None:
    first, second = Reason("one", "a"), Reason("two", "b")

    reason = joined((NO_REASON, first, second, first))

    assert (str(reason), reason.code) == ("one; two", "a")
    assert joined(()) is NO_REASON
