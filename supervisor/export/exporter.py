"""What velad shows over HTTP at the address of [daemon] metrics: metrics, and a page for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

import structlog

from vela.address import Endpoint
from vela.linux.usage import own_process

from ..runtime.loop import EventLoop
from ..status import DaemonStatus, RateStatus
from .exposition import CONTENT_TYPE
from .history import PERIOD_S, RateHistory
from .http import HttpServer, Respond, not_found
from .metrics import exposition
from .page import PAGE_FIELDS, PAGE_TYPE, status_page
from .request import Request, Response


class Exporter:
    """Answers GET /metrics and GET /; the status is taken anew for each answer.

    Whoever can connect can read all that velactl status says: there is no password and no TLS.
    """

    def __init__(
        self,
        loop: EventLoop,
        address: Endpoint,
        status: Callable[[], DaemonStatus],
        rates: Callable[[], Iterable[tuple[str, RateStatus]]],
        adopted: int | None = None,
    ) -> None:
        """Listen. Raises DeviceError if the address cannot be had.

        adopted: the descriptor of a socket that listens there already.

        rates: of all circuits, by name; asked for all the time, and so without what a status costs.
        """
        self._status = status
        self._rates = rates
        self._build_s = 0.0
        self._loop = loop
        self._history = RateHistory()
        self._server = HttpServer(loop, address, self._answer, self._on_exhausted, adopted)
        self._sampling = loop.call_later(PERIOD_S, self._sample)

    def fileno(self) -> int:
        """The descriptor that listens."""
        return self._server.fileno()

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()

    def close(self) -> None:
        self._sampling.cancel()
        self._server.close()

    def _sample(self) -> None:
        self._sampling = self._loop.call_later(PERIOD_S, self._sample)
        self._history.add(self._rates())

    def _answer(self, request: Request, respond: Respond) -> None:
        if request.path == "/metrics":
            began = time.thread_time()
            body = exposition(self._status(), own_process(), self._server.answers, self._build_s)
            self._build_s = time.thread_time() - began
            respond(Response(HTTPStatus.OK, CONTENT_TYPE, body))
        elif request.path == "/":
            page = status_page(self._status(), self._history.of)
            respond(Response(HTTPStatus.OK, PAGE_TYPE, page, PAGE_FIELDS))
        else:
            respond(not_found())

    @staticmethod
    def _on_exhausted(reason: str) -> None:
        structlog.get_logger().error("metrics_connection_refused", reason=reason)
