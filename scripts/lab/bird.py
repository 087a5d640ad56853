"""BIRD, the routing daemon, with files and a control socket of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.errors import LabError
from lab.namespace import Namespace
from lab.resource import Resource
from lab.waiting import eventually

START_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 5.0


class Bird(Resource):
    """One bird (version 2) in a namespace. A context: it answers birdc inside."""

    def __init__(self, namespace: Namespace, config: str) -> None:
        self._namespace = namespace
        self._config = config
        self._directory = Path(tempfile.mkdtemp(prefix="vela-lab-bird-"))
        self._control = self._directory / "bird.ctl"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        (self._directory / "bird.conf").write_text(self._config)
        with (self._directory / "bird.log").open("wb") as log:
            self._process = self._namespace.popen(
                *("bird", "-f", "-c", str(self._directory / "bird.conf")),
                *("-s", str(self._control), "-P", str(self._directory / "bird.pid")),
                stdout=log,
                stderr=log,
            )
        eventually(self._answers, START_TIMEOUT_S, "bird to answer")

    def close(self) -> None:
        """End it and remove its files. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def ask(self, *words: str) -> str:
        """Return what birdc answers, such as to "show ospf neighbors"."""
        done = self._namespace.run(
            "birdc", "-s", str(self._control), *words, timeout_s=COMMAND_TIMEOUT_S
        )
        return done.stdout

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            said = (self._directory / "bird.log").read_text(errors="replace")
            raise LabError(f"bird ended: {said.strip()}")
        return self._control.exists() and "up and running" in self.ask("show", "status")
