"""Numbered frames at an even pace, from a process of its own: no other's work holds it up."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from lab.errors import LabError
from lab.frames import numbered
from lab.injector import Injector
from lab.link import Interface
from lab.resource import Resource

START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 20.0

_SCRIPTS = Path(__file__).resolve().parents[1]
_GONE = (errno.ENETDOWN, errno.ENXIO, errno.ENODEV)


class Stream(Resource):
    """Sends numbered frames, one each interval; a context, inside which the first has been sent.

    On leaving, it has sent the frames 0 to sent - 1. It ends early where its
    interface goes away; whatever else ends it is a LabError on leaving.
    """

    def __init__(self, interface: Interface, mark: str, interval_s: float) -> None:
        self.sent = 0
        self._injector = Injector(interface)
        self._mark = mark
        self._interval_s = interval_s
        self._process: subprocess.Popen[str] | None = None
        self._said = ""

    def start(self) -> None:
        fd = self._injector.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lab.stream", str(fd), self._mark, str(self._interval_s)],
            env=os.environ | {"PYTHONPATH": str(_SCRIPTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(fd,),
        )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], START_TIMEOUT_S)[0]:
            raise LabError(f"stream {self._mark}: nothing sent after {START_TIMEOUT_S:g} s")
        self._said = self._process.stdout.readline()

    def close(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None:
                self._end(process)
        finally:
            self._injector.close()

    def _end(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with process:  # which closes its pipes
            # The end of its input tells it to stop.
            process.stdin.close()
            try:
                status = process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired as err:
                process.kill()
                raise LabError(f"stream {self._mark}: no end after {END_TIMEOUT_S:g} s") from err
            if status:
                complaint = process.stderr.read()
                raise LabError(f"stream {self._mark}: exit status {status}: {complaint}")
            self.sent = int((self._said + process.stdout.read()).split()[-1])


def main(argv: list[str]) -> int:
    """Send frames with a mark out of an inherited packet(7) socket until the input ends."""
    fd, mark, interval_s = int(argv[0]), argv[1], float(argv[2])
    sent = 0
    with socket.socket(fileno=fd) as sender:
        due = time.monotonic()
        while True:
            try:
                sender.send(numbered(mark, sent))
            except OSError as err:
                if err.errno in _GONE:
                    break
                # The interface's queue was full and took nothing: the same one again.
                if err.errno != errno.ENOBUFS:
                    raise
            else:
                sent += 1
                if sent == 1:
                    print("begun", flush=True)
            # One that was held up does not catch up in a burst.
            due = max(due + interval_s, time.monotonic())
            if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
                break
    print(sent)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
