"""A thread that sends as fast as it can, and tells how much that was."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from lab.resource import Resource


class Flood(Resource):
    """Calls send over and over; a context. What ends it early is raised on leaving."""

    def __init__(self, send: Callable[[], int]) -> None:
        """send sends something and returns how many frames or datagrams that was."""
        self.sent = 0
        self._send = send
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End it. Raises what its send raised; a queue that was full is no failure."""
        self._stopping.set()
        self._thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self.sent += self._send()
                except OSError as err:
                    # The interface's queue was full; that is how fast it goes.
                    if err.errno != errno.ENOBUFS:
                        raise
        except BaseException as err:
            self._failure = err
