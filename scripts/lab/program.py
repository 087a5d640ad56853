"""The lab's own small C programs: compiled at need, run with sockets that they inherit."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.resource import Resource

SOURCES = Path(__file__).parent
COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
COMPILE_TIMEOUT_S = 60.0


class Program(Resource):
    """A program made of one C file beside this one. A context: compiled inside, then removed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stack = ExitStack()
        self._path = Path()

    def start(self) -> None:
        """Compile it. Raises LabError, with what the compiler says, if that fails."""
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vela-lab-"))
        self._path = Path(directory, self.name)
        self._run(
            *COMPILER,
            str(SOURCES / f"{self.name}.c"),
            "-o",
            str(self._path),
            limit_s=COMPILE_TIMEOUT_S,
        )

    def close(self) -> None:
        self._stack.close()

    def run(self, *argv: str, fds: Iterable[int], limit_s: float) -> dict[str, Any]:
        """Run it with these descriptors and return the JSON that it prints.

        Raises LabError if it fails or takes longer than limit_s.
        """
        text = self._run(str(self._path), *argv, fds=fds, limit_s=limit_s)
        try:
            printed: dict[str, Any] = json.loads(text)
        except ValueError as err:
            raise LabError(f"{self.name}: no JSON: {text[:500]!r}") from err
        return printed

    def _run(self, *argv: str, fds: Iterable[int] = (), limit_s: float) -> str:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
                pass_fds=tuple(fds),
            )
        except subprocess.TimeoutExpired as err:
            raise LabError(f"{self.name}: not done after {limit_s:g} s") from err
        except FileNotFoundError as err:
            raise LabError(f"{argv[0]}: {err.strerror}") from err
        if done.returncode:
            said = done.stderr.strip()[-2000:]
            raise LabError(f"{self.name}: exit status {done.returncode}: {said}")
        return done.stdout
