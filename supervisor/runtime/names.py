"""Name look-ups by a helper process, so that a slow name server does not hold velad up."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Protocol

import structlog

from vela.address import Family, IPAddress
from vela.backoff import Backoff
from vela.errors import ResolutionError
from vela.linux.sandbox import User, confine, resolver_filter

from . import resolver
from .loop import EventLoop, Timer
from .process import Child, fork_with_channel
from .resolver import Answer, Resolver, ResolverLostError

# A watched name is looked up again at this interval, as its addresses may change.
REFRESH_INTERVAL_S = 60.0
# After a failure: doubling.
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0

RESTART_DELAY_S = 1.0
FULL_CHANNEL_DELAY_S = 0.01

AnswerCallback = Callable[[Answer], None]


class Names:
    """Looks names up. Each answer goes to all callers that wait for it."""

    def __init__(self, loop: EventLoop, user: User) -> None:
        self._loop = loop
        self._user = user
        self._log = structlog.get_logger()
        self._waiting: dict[tuple[str, Family | None], list[AnswerCallback]] = {}
        self._lost = False
        self._restarting: Timer | None = None
        self._child, channel = self._fork()
        self._resolver = Resolver(channel)
        self._loop.watch(self._resolver.fileno(), self._on_readable)

    def ask(self, host: str, family: Family | None, callback: AnswerCallback) -> None:
        """Call back with the addresses of a host name or address, never within this call."""
        literal = _literal(host)
        if literal is not None:
            answer = Answer(host, family, (literal,), None)
            self._loop.call_soon(lambda: callback(answer))
            return
        self._waiting.setdefault((host, family), []).append(callback)
        try:
            self._resolver.request(host, family)
        except ResolutionError as err:
            answer = Answer(host, family, (), str(err))
            self._loop.call_soon(lambda: self._answered(answer))
        self._push()

    def close(self) -> None:
        if self._restarting is not None:
            self._restarting.cancel()
        if not self._lost:
            self._loop.unwatch(self._resolver.fileno())
        self._resolver.close()
        self._child.reap()

    def _fork(self) -> tuple[Child, socket.socket]:
        """Start a helper. Raises OSError if the kernel has no process or descriptor left."""
        supervisor_pid = os.getpid()
        calls = resolver_filter()

        def body(channel: socket.socket) -> None:
            confine(self._user, supervisor_pid)
            if calls is not None:
                calls.install()
            resolver.serve(channel)

        return fork_with_channel(body)

    def _on_readable(self) -> None:
        if self._lost:
            return
        try:
            answers = self._resolver.receive()
        except ResolverLostError as err:
            self._log.warning("resolver_lost", error=str(err))
            self._lost = True
            self._loop.unwatch(self._resolver.fileno())
            self._restarting = self._loop.call_later(RESTART_DELAY_S, self._restart)
            return
        for answer in answers:
            self._answered(answer)

    def _restart(self) -> None:
        try:
            child, channel = self._fork()
        except OSError as err:
            self._restarting = self._loop.call_later(RESTART_DELAY_S, self._restart)
            self._log.error("resolver_not_started", error=str(err), retry_in_s=RESTART_DELAY_S)
            return
        # A helper that sent a malformed answer still runs; it ends without its channel.
        self._resolver.restart(channel)
        self._child.reap()
        self._child = child
        self._lost = False
        self._loop.watch(self._resolver.fileno(), self._on_readable)

    def _push(self) -> None:
        if self._resolver.wants_write:
            self._loop.call_later(FULL_CHANNEL_DELAY_S, self._on_readable)

    def _answered(self, answer: Answer) -> None:
        for callback in self._waiting.pop((answer.host, answer.family), ()):
            self._loop.guard(partial(callback, answer))


class NameSource(Protocol):
    """Resolves names: Names."""

    def ask(self, host: str, family: Family | None, callback: AnswerCallback) -> None: ...


class NameWatch:
    """Looks one name up repeatedly, until stop()."""

    def __init__(
        self,
        loop: EventLoop,
        names: NameSource,
        host: str,
        family: Family | None,
        on_answer: Callable[[Answer], bool],
    ) -> None:
        """on_answer takes each answer, and returns whether it could use it."""
        self._loop = loop
        self._names = names
        self._host = host
        self._family = family
        self._on_answer = on_answer
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._timer: Timer | None = None
        self._answering = self._failed_meanwhile = self._stopped = False
        self.failed = False
        """Whether the last look-up failed, or its answer could not be used."""

    def look(self) -> None:
        """Look the name up now."""
        self._names.ask(self._host, self._family, self._answered)

    def look_again(self) -> None:
        """Look it up after a back-off, because something failed."""
        if self._answering:
            self._failed_meanwhile = True
        else:
            self.look_later(failed=True)

    def look_later(self, *, failed: bool) -> None:
        """Look it up in a minute, or after a back-off if something failed."""
        delay_s = REFRESH_INTERVAL_S
        if failed:
            delay_s = self._backoff.next_delay_s()
        else:
            self._backoff.reset()
        self.failed = failed
        self._cancel()
        self._timer = self._loop.call_later(delay_s, self.look)

    def stop(self) -> None:
        """Stop the look-ups. A pending answer is ignored."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answered(self, answer: Answer) -> None:
        if self._stopped:
            return
        succeeded = False
        self._answering, self._failed_meanwhile = True, False
        try:
            succeeded = self._on_answer(answer) and not self._failed_meanwhile
        finally:
            self._answering = False
            if not self._stopped:
                self.look_later(failed=not succeeded)


def _literal(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
