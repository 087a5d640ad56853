"""A configuration on trial: what was in effect before it, kept until somebody confirms it.

On disk, as velad may end meanwhile: the files have the configuration on trial, and a velad that
starts by them must know that nobody has confirmed it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import structlog

from vela.errors import DeviceError

from .config.files import Access, UntrustedError, check_directory, open_trusted
from .config.sources import Text
from .registry.store import replace_file

FILE = "trial.json"
_VERSION = 1


class TrialFile:
    """The file in the state directory. It exists from the trial until the next decision."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / FILE

    def write(self, tried: tuple[Text, ...], former: tuple[Text, ...]) -> None:
        """Keep what was in effect before a trial. Raises DeviceError."""
        document = {
            "version": _VERSION,
            "tried": _digest(tried),
            "former": [{"source": each.source, "toml": each.toml} for each in former],
        }
        replace_file(self._path, json.dumps(document) + "\n")

    def remove(self) -> None:
        """Forget it, as it was decided. What cannot be removed is logged."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        except OSError as err:
            reason = os.strerror(err.errno or 0)
            structlog.get_logger().error("trial_not_forgotten", path=str(self._path), error=reason)

    def former(self, present: tuple[Text, ...]) -> tuple[Text, ...] | None:
        """Return what was in effect before the present texts; None: they are not on trial.

        Raises DeviceError if that cannot be found out.
        """
        try:
            check_directory(self._directory)
            with open(open_trusted(self._path, Access.READ), encoding="utf-8") as file:
                document = json.load(file)
            if document["version"] != _VERSION or document["tried"] != _digest(present):
                return None  # the files have changed since
            return tuple(Text(each["source"], each["toml"]) for each in document["former"])
        except FileNotFoundError:
            return None
        except UntrustedError as err:
            raise DeviceError(str(err)) from err
        except OSError as err:
            raise DeviceError(f"{self._path}: {os.strerror(err.errno or 0)}") from err
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise DeviceError(f"{self._path}: {type(err).__name__}: {err}") from err


def _digest(texts: tuple[Text, ...]) -> str:
    parts = [part for text in texts for part in (text.source, text.toml)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
