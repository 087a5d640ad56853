"""vela.supervisor.trial: what is kept while a configuration is on trial."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from vela.errors import DeviceError
from vela.supervisor.config.sources import Text
from vela.supervisor.trial import FILE, TrialFile

TRIED = (Text("/etc/vela.toml", "a"), Text("/etc/vela.d/x.toml", "b"))
FORMER = (Text("/etc/vela.toml", "Zürich"),)


@pytest.fixture
def file(tmp_path: Path) -> TrialFile:
    return TrialFile(tmp_path / "state")


def test_texts_on_trial_have_those_of_before(file: TrialFile, tmp_path: Path) -> None:
    file.write(TRIED, FORMER)

    assert file.former(TRIED) == FORMER
    assert stat.S_IMODE((tmp_path / "state" / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "present",
    [
        (),
        TRIED[:1],
        (*TRIED, Text("/etc/vela.d/y.toml", "")),
        (TRIED[0], Text("/etc/vela.d/x.toml", "c")),
        (Text("/etc/vela.toml", "a/etc/vela.d/x.toml"), Text("", "b")),
    ],
)
def test_other_texts_are_not_on_trial(file: TrialFile, present: tuple[Text, ...]) -> None:
    file.write(TRIED, FORMER)

    assert file.former(present) is None


def test_nothing_is_on_trial_before_or_after(file: TrialFile) -> None:
    assert file.former(TRIED) is None
    file.remove()
    file.write(TRIED, FORMER)
    file.remove()
    assert file.former(TRIED) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', "[" * 100_000])
def test_file_of_another_shape_is_an_error(file: TrialFile, tmp_path: Path, text: str) -> None:
    file.write(TRIED, FORMER)
    (tmp_path / "state" / FILE).write_text(text)

    with pytest.raises(DeviceError, match=FILE):
        file.former(TRIED)


def test_file_of_another_version_is_about_nothing(file: TrialFile, tmp_path: Path) -> None:
    file.write(TRIED, FORMER)
    (tmp_path / "state" / FILE).write_text('{"version": 2}')

    assert file.former(TRIED) is None


def test_file_that_others_can_write_is_not_trusted(file: TrialFile, tmp_path: Path) -> None:
    file.write(TRIED, FORMER)
    (tmp_path / "state" / FILE).chmod(0o666)

    with pytest.raises(DeviceError, match="can be changed by others"):
        file.former(TRIED)


def test_what_was_in_effect_is_kept_as_it_was_written(file: TrialFile, tmp_path: Path) -> None:
    file.write(TRIED, FORMER)

    kept = json.loads((tmp_path / "state" / FILE).read_text())

    assert kept["former"] == [{"source": "/etc/vela.toml", "toml": "Zürich"}]
