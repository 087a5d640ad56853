"""Name look-ups by a helper process, so that a slow name server does not hold velad up."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Protocol

import structlog

from vela.address import Family, IPAddress
from vela.errors import ResolutionError
from vela.linux.sandbox import User, confine, resolver_filter

from . import resolver
from .loop import EventLoop, Timer
from .process import Child, fork_with_channel
from .refresh import Refresh
from .resolver import Answer, Resolver, ResolverLostError

RESTART_DELAY_S = 1.0
FULL_CHANNEL_DELAY_S = 0.01

# The helper is asked for a sign of life at this interval. One that misses so many in a row is
# replaced: it was stopped, or its threads keep it from running.
BEAT_INTERVAL_S = 3.0
MISSED_BEATS = 2
# A look-up that takes longer is told to the operator. The default of resolv.conf(5) is 5 s for each
# server and try.
SLOW_S = 5.0
# One that takes longer than this never ends: three silent servers, tried twice for both families,
# take 60 s at most.
STUCK_S = 120.0

AnswerCallback = Callable[[Answer], None]
DelayCallback = Callable[[str], None]
"""Is told, in a sentence, why there is no answer yet."""


@dataclass(slots=True)
class _Waiting:
    """Who waits for one answer, and since when."""

    since: float
    callbacks: list[tuple[AnswerCallback, DelayCallback | None]] = field(default_factory=list)
    told_slow: bool = False


class Names:
    """Looks names up. Each answer goes to all callers that wait for it."""

    def __init__(self, loop: EventLoop, user: User) -> None:
        self._loop = loop
        self._user = user
        self._log = structlog.get_logger()
        self._waiting: dict[tuple[str, Family | None], _Waiting] = {}
        self._lost = False
        self._restarting: Timer | None = None
        self._missed = 0
        self._child, channel = self._fork()
        self._resolver = Resolver(channel)
        self._loop.watch(self._resolver.fileno(), self._on_readable)
        self._beat = self._loop.call_later(BEAT_INTERVAL_S, self._on_beat)

    def ask(
        self,
        host: str,
        family: Family | None,
        callback: AnswerCallback,
        on_delay: DelayCallback | None = None,
    ) -> None:
        """Call back with the addresses of a host name or address, never within this call.

        Until then on_delay is told why it takes long.
        """
        literal = _literal(host)
        if literal is not None:
            answer = Answer(host, family, (literal,), None)
            self._loop.call_soon(lambda: callback(answer))
            return
        waiting = self._waiting.setdefault((host, family), _Waiting(self._loop.now()))
        waiting.callbacks.append((callback, on_delay))
        try:
            self._resolver.request(host, family)
        except ResolutionError as err:
            answer = Answer(host, family, (), str(err))
            self._loop.call_soon(lambda: self._answered(answer))
        self._push()

    def close(self) -> None:
        self._beat.cancel()
        if self._restarting is not None:
            self._restarting.cancel()
        if not self._lost:
            self._loop.unwatch(self._resolver.fileno())
        self._resolver.close()
        # One that was stopped would be waited for in vain. Without CAP_KILL velad is about to end
        # for want of it, and the helper ends by itself.
        with suppress(PermissionError):
            self._child.signal(signal.SIGKILL)
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
            self._lose(str(err))
            return
        for answer in answers:
            self._answered(answer)

    def _lose(self, error: str) -> None:
        """Give the helper up, and start another one soon."""
        self._log.warning("resolver_lost", error=error, restart_in_s=RESTART_DELAY_S)
        self._lost = True
        self._missed = 0
        self._loop.unwatch(self._resolver.fileno())
        # One that hangs would not end by itself.
        self._child.signal(signal.SIGKILL)
        self._restarting = self._loop.call_later(RESTART_DELAY_S, self._restart)
        for host, family in tuple(self._waiting):
            self._tell_delay(host, family, f"{error}; another one is started")

    def _on_beat(self) -> None:
        """Look whether the helper is alive, and which look-ups take long."""
        self._beat = self._loop.call_later(BEAT_INTERVAL_S, self._on_beat)
        # A supervisor that was stopped itself finds the sign of life here.
        self._on_readable()
        if self._lost:
            return
        self._missed = 0 if self._resolver.beat() else self._missed + 1
        if self._missed >= MISSED_BEATS:
            self._lose("the resolver process does not answer")
            return
        now = self._loop.now()
        stuck = [key for key, each in self._waiting.items() if now - each.since >= STUCK_S]
        if stuck:
            # Its thread is lost, too.
            self._lose("a look-up in the resolver process does not end")
            for host, family in stuck:
                self._resolver.forget(host, family)
                error = f"{host}: the look-up did not end in {STUCK_S:g} s"
                self._answered(Answer(host, family, (), error))
        for (host, family), waiting in tuple(self._waiting.items()):
            if not waiting.told_slow and now - waiting.since >= SLOW_S:
                waiting.told_slow = True
                self._tell_delay(host, family, "the name server has not answered yet")

    def _tell_delay(self, host: str, family: Family | None, why: str) -> None:
        for _, on_delay in self._waiting[host, family].callbacks:
            if on_delay is not None:
                self._loop.guard(partial(on_delay, f"{host}: {why}"))

    def _restart(self) -> None:
        try:
            child, channel = self._fork()
        except OSError as err:
            self._restarting = self._loop.call_later(RESTART_DELAY_S, self._restart)
            self._log.error("resolver_not_started", error=str(err), retry_in_s=RESTART_DELAY_S)
            return
        self._resolver.restart(channel)
        self._child.reap()
        self._child = child
        self._lost = False
        self._loop.watch(self._resolver.fileno(), self._on_readable)

    def _push(self) -> None:
        if self._resolver.wants_write:
            self._loop.call_later(FULL_CHANNEL_DELAY_S, self._on_readable)

    def _answered(self, answer: Answer) -> None:
        waiting = self._waiting.pop((answer.host, answer.family), None)
        for callback, _ in () if waiting is None else waiting.callbacks:
            self._loop.guard(partial(callback, answer))


class NameSource(Protocol):
    """Resolves names: Names."""

    def ask(
        self,
        host: str,
        family: Family | None,
        callback: AnswerCallback,
        on_delay: DelayCallback | None = None,
    ) -> None: ...


class NameWatch:
    """Looks one name up repeatedly, until stop()."""

    def __init__(
        self,
        loop: EventLoop,
        names: NameSource,
        host: str,
        family: Family | None,
        on_answer: Callable[[Answer], bool],
        on_delay: DelayCallback | None = None,
    ) -> None:
        """on_answer takes each answer, and returns whether it could use it.

        on_delay is told why there is none yet.
        """
        self._names = names
        self._host = host
        self._family = family
        self._on_answer = on_answer
        self._on_delay = on_delay
        self._refresh = Refresh(loop, self.look)
        self._answering = self._failed_meanwhile = self._stopped = False
        self.failed = False
        """Whether the last look-up failed, or its answer could not be used."""

    def look(self) -> None:
        """Look the name up now."""
        self._names.ask(self._host, self._family, self._answered, self._delayed)

    def look_again(self) -> None:
        """Look it up after a back-off, because something failed."""
        if self._answering:
            self._failed_meanwhile = True
        else:
            self.look_later(failed=True)

    def look_later(self, *, failed: bool) -> None:
        """Look it up in a minute, or after a back-off if something failed."""
        self.failed = failed
        if failed:
            self._refresh.soon()
        else:
            self._refresh.succeed()
            self._refresh.later()

    def stop(self) -> None:
        """Stop the look-ups. A pending answer is ignored."""
        self._stopped = True
        self._refresh.cancel()

    def _delayed(self, why: str) -> None:
        if self._on_delay is not None and not self._stopped:
            self._on_delay(why)

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
