"""Reloads of the configuration: one after the other, each as one set of changes, in slices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import structlog

from vela.errors import ConfigError, VelaError
from vela.log import set_level

from .config.reader import Check, load_config
from .config.records import Config, DaemonConfig
from .control_socket import Later, Reply
from .registry.plan import Plan
from .registry.registry import Registry
from .runtime.loop import EventLoop
from .runtime.slices import Slices

# Keys of [daemon] that a reload applies; all others need a restart.
_LIVE_DAEMON_KEYS = frozenset({"log_level"})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A configuration that is to be applied, and what is said when it is."""

    config: Config
    plan: Plan
    needs_restart: tuple[str, ...]
    policy_changes: bool


class Reloads:
    """Reads the files again, and applies what they say now."""

    def __init__(
        self,
        path: Path,
        config: Config,
        loop: EventLoop,
        registry: Registry,
        check: Check,
        set_policy: Callable[[Config], None],
    ) -> None:
        """config: what is in effect. check: finds mistakes beside those of the reader.

        set_policy gives the control channel another [autoconfigure] table.
        """
        self.config = config
        """What is in effect, or about to be."""
        self._path = path
        self._loop = loop
        self._registry = registry
        self._check = check
        self._set_policy = set_policy
        self._slices: Slices | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._log = structlog.get_logger()

    def close(self) -> None:
        if self._slices is not None:
            self._slices.cancel()

    def preview(self, *, allow_empty: bool = False) -> Reply:
        """Return what a reload would do. Raises VelaError, as begin() does."""
        return _report(self._read(allow_empty=allow_empty), {})

    def begin(self, *, allow_empty: bool = False) -> Later:
        """Read the files, and apply them when earlier reloads are done.

        The reply comes when all is applied. Raises VelaError, and then changes nothing.
        """
        self._read(allow_empty=allow_empty)  # what is wrong is said at once
        later = Later()

        def run() -> None:
            try:
                # Again: an earlier reload may have been waited for.
                self._apply(self._read(allow_empty=allow_empty), later)
            except VelaError as err:
                self._log.error("configuration_rejected", error=str(err))
                later.give({"error": str(err)})
                self._begin_next()

        self._waiting.append(run)
        if self._slices is None and len(self._waiting) == 1:
            self._loop.call_soon(self._begin_next)
        return later

    def _begin_next(self) -> None:
        self._slices = None
        if self._waiting:
            self._waiting.popleft()()

    def _read(self, *, allow_empty: bool) -> _Wanted:
        """Return what the files want. Raises VelaError."""
        config = load_config(self._path, self._check)
        plan = self._registry.plan(config)
        if not (config.circuits or allow_empty):
            self._refuse_empty(config, plan)
        running = self.config.daemon
        changed = tuple(_changed_keys(running, config.daemon))
        live = {key: getattr(config.daemon, key) for key in changed if key in _LIVE_DAEMON_KEYS}
        return _Wanted(
            replace(config, daemon=replace(running, **live)),
            plan,
            tuple(f"daemon.{key}" for key in changed if key not in _LIVE_DAEMON_KEYS),
            config.autoconfigure != self.config.autoconfigure,
        )

    def _refuse_empty(self, config: Config, plan: Plan) -> None:
        """Raise ConfigError if a file without any circuit would end those that there are.

        An editor writes a file in pieces, and a full disk cuts it off.
        """
        doomed = self._registry.running(only={change.name for change in plan.changes})
        if config == Config():  # nor an [autoconfigure], which all others depend on
            doomed = self._registry.running()
        if doomed:
            raise ConfigError(
                f"{self._path}: names no circuit, and {doomed} would be deleted; "
                "velactl reload --allow-empty does that"
            )

    def _apply(self, wanted: _Wanted, later: Later) -> None:
        if wanted.needs_restart:
            self._log.warning("daemon_section_needs_restart", keys=list(wanted.needs_restart))
        if wanted.config.daemon.log_level != self.config.daemon.log_level:
            set_level(wanted.config.daemon.log_level)
        if wanted.policy_changes:
            self._set_policy(wanted.config)
        self.config = wanted.config

        def done() -> None:
            failed = self._registry.failures()
            self._log.info(
                "configuration_reloaded", circuits=len(self._registry), failed=sorted(failed)
            )
            later.give(_report(wanted, failed))
            self._begin_next()

        self._slices = Slices(self._loop, self._registry.reload(wanted.config), done)


def _changed_keys(before: DaemonConfig, after: DaemonConfig) -> list[str]:
    return [
        field.name
        for field in fields(DaemonConfig)
        if getattr(before, field.name) != getattr(after, field.name)
    ]


def _report(wanted: _Wanted, failed: Mapping[str, str]) -> Reply:
    """Return the reply: what happens to each circuit, and what has not happened."""
    return {
        "circuits": [
            {
                "circuit": change.name,
                "effect": change.step.value,
                "keys": list(change.keys),
                "error": failed.get(change.name),
            }
            for change in wanted.plan.changes
        ],
        "autoconfigure_changed": wanted.policy_changes,
        "needs_restart": list(wanted.needs_restart),
    }
