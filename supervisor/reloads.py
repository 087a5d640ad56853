"""Reloads of the configuration: one after the other, each as one set of changes, in slices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import structlog

from vela.dataplane.engine import Engine
from vela.errors import ConfigError, VelaError
from vela.log import set_level

from .config.reader import Check, parse_texts
from .config.records import Config, DaemonConfig
from .config.sources import Text, read_texts
from .control_socket import Later, Reply
from .notify import ServiceManager
from .registry.plan import Plan
from .registry.registry import Registry
from .runtime.loop import EventLoop, Timer
from .runtime.slices import Slices
from .trial import TrialFile

# Keys of [daemon] that a reload applies; all others need a restart.
_LIVE_DAEMON_KEYS = frozenset({"log_level", "engine"})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A configuration that is to be applied, and what is said when it is."""

    texts: tuple[Text, ...]
    state_directory: Path
    """As the texts say, which a velad that starts by them looks into."""
    config: Config
    plan: Plan
    needs_restart: tuple[str, ...]
    policy_changes: bool


@dataclass(frozen=True, slots=True)
class _Trial:
    """A configuration that nobody has confirmed yet."""

    file: TrialFile
    former: tuple[Text, ...]
    end: Timer


class Reloads:
    """Reads the files again, and applies what they say now."""

    def __init__(
        self,
        path: Path,
        texts: tuple[Text, ...],
        config: Config,
        loop: EventLoop,
        registry: Registry,
        check: Check,
        set_policy: Callable[[Config], None],
        set_engine: Callable[[Engine], None],
        manager: ServiceManager,
    ) -> None:
        """texts, config: what is in effect. check: finds mistakes beside those of the reader.

        set_policy gives the control channel another [autoconfigure] table, set_engine the
        registry another engine.
        """
        self.config = config
        """What is in effect, or about to be."""
        self._path = path
        self._texts = texts
        self._trial: _Trial | None = None
        self._unread = 0
        self._loop = loop
        self._registry = registry
        self._check = check
        self._set_policy = set_policy
        self._set_engine = set_engine
        self._manager = manager
        self._slices: Slices | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._log = structlog.get_logger()

    def close(self) -> None:
        if self._slices is not None:
            self._slices.cancel()
        if self._trial is not None:
            self._trial.end.cancel()

    def preview(self, *, allow_empty: bool = False) -> Reply:
        """Return what a reload would do. Raises VelaError, as begin() does."""
        return _report(self._read(allow_empty=allow_empty), {})

    def begin(self, *, allow_empty: bool = False, trial_s: float | None = None) -> Later:
        """Read the files, and apply them when earlier reloads are done.

        The reply comes when all is applied. trial_s: go back so many seconds later unless
        confirm() is called. Raises VelaError, and then changes nothing.
        """
        later, idle = Later(), self._slices is None and not self._waiting
        self._manager.reloading()
        try:
            known = self._read(allow_empty=allow_empty)  # what is wrong is said at once
        except VelaError:
            self._tell_if_done()
            raise
        self._unread += not idle

        def run() -> None:
            was_on_trial = self._trial is not None
            try:
                # Again where an earlier reload was waited for; it takes 40 ms for 255 circuits.
                wanted = known
                if not idle:
                    self._unread -= 1
                    wanted = self._read(allow_empty=allow_empty)
                self._decide(wanted, trial_s)
                self._apply(wanted, later)
            except VelaError as err:
                if not was_on_trial:
                    self._end_trial()
                self._log.error("configuration_rejected", error=str(err))
                later.give({"error": str(err)})
                self._begin_next()

        self._enqueue(run)
        return later

    @property
    def waiting(self) -> bool:
        """Whether a reload has not read the files yet that it is to apply."""
        return self._unread > 0

    @property
    def obstacle(self) -> str:
        """Why another velad cannot take over at present; empty: it can."""
        if self._trial is not None:
            return "a configuration is on trial"
        return "a reload runs" if self._slices is not None or self._waiting else ""

    def confirm(self) -> None:
        """Keep the configuration that is on trial. Raises VelaError if there is none."""
        if self._trial is None:
            raise VelaError("no configuration is on trial; velactl reload --confirm begins that")
        self._end_trial()
        self._log.info("configuration_confirmed")

    def _decide(self, wanted: _Wanted, trial_s: float | None) -> None:
        """Begin a trial of what is about to be applied, or end one. Raises DeviceError."""
        former = self._texts if self._trial is None else self._trial.former
        if trial_s is None:
            self._end_trial()
            TrialFile(wanted.state_directory).remove()  # of an earlier velad
            return
        file = TrialFile(wanted.state_directory)
        file.write(wanted.texts, former)
        if self._trial is not None:
            self._trial.end.cancel()
        end = self._loop.call_later(trial_s, self._take_back)
        self._trial = _Trial(file, former, end)
        self._log.info("configuration_on_trial", seconds=trial_s)

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.end.cancel()
            self._trial.file.remove()
            self._trial = None

    def _take_back(self) -> None:
        """Apply what was in effect before the trial. The files stay as they are.

        The trial's file stays, too: a velad that starts by them goes on with what is applied here.
        """

        def run() -> None:
            trial, self._trial = self._trial, None
            if trial is None:  # decided meanwhile
                self._begin_next()
                return
            self._log.warning("configuration_taken_back", advice="correct the files, and reload")
            try:
                self._apply(self._judge(trial.former), Later())
            except VelaError as err:
                self._log.error("configuration_rejected", error=str(err))
                self._begin_next()

        self._manager.reloading()
        self._enqueue(run)

    def _enqueue(self, run: Callable[[], None]) -> None:
        self._waiting.append(run)
        if self._slices is None and len(self._waiting) == 1:
            self._loop.call_soon(self._begin_next)

    def _begin_next(self) -> None:
        self._slices = None
        self._tell_if_done()
        if self._waiting:
            self._waiting.popleft()()

    def _tell_if_done(self) -> None:
        """Tell the service manager if no reload runs and none waits."""
        if self._slices is None and not self._waiting:
            self._manager.ready()

    def _read(self, *, allow_empty: bool) -> _Wanted:
        """Return what the files want. Raises VelaError."""
        wanted = self._judge(read_texts(self._path))
        if not (wanted.config.circuits or allow_empty):
            self._refuse_empty(wanted)
        return wanted

    def _judge(self, texts: tuple[Text, ...]) -> _Wanted:
        """Return what texts want. Raises VelaError."""
        config = parse_texts(texts, self._check)
        running = self.config.daemon
        changed = tuple(_changed_keys(running, config.daemon))
        live = {key: getattr(config.daemon, key) for key in changed if key in _LIVE_DAEMON_KEYS}
        return _Wanted(
            texts,
            config.daemon.state_directory,
            replace(config, daemon=replace(running, **live)),
            self._registry.plan(config, ("daemon.engine",) if "engine" in changed else ()),
            tuple(f"daemon.{key}" for key in changed if key not in _LIVE_DAEMON_KEYS),
            config.autoconfigure != self.config.autoconfigure,
        )

    def _refuse_empty(self, wanted: _Wanted) -> None:
        """Raise ConfigError if a file without any circuit would end those that there are.

        An editor writes a file in pieces, and a full disk cuts it off.
        """
        names = {change.name for change in wanted.plan.changes}
        doomed = self._registry.running(only=names)
        if not any(
            text.toml.strip() for text in wanted.texts
        ):  # nor an [autoconfigure], which all others depend on
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
        if wanted.config.daemon.engine is not self.config.daemon.engine:
            self._set_engine(wanted.config.daemon.engine)
        if wanted.policy_changes:
            self._set_policy(wanted.config)
        self.config, self._texts = wanted.config, wanted.texts

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
