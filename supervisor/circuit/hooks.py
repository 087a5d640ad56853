"""Hooks: the operator's programs, run when a circuit begins to carry frames and when it ends."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol

import structlog

from vela.errors import ConfigError
from vela.reasons import NO_REASON, Cause

from ..config.files import Access, UntrustedError, open_trusted, resolve_links
from ..config.records import CircuitConfig
from ..runtime.loop import Callback, EventLoop
from ..runtime.program import Program, printable
from ..status import CircuitStatus

# Of one hook. With STOP_LIMIT_S it leaves systemd's TimeoutStopSec some time.
LIMIT_S = 10.0
# Of all hooks together, when velad stops.
STOP_LIMIT_S = 15.0
# Hundreds of circuits may come up at once; each start of a program takes the loop 5 ms.
AT_ONCE = 16

REMOVED = "removed"
"""The state in which a hook sees a circuit that is removed, or whose velad stops."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Hook(Enum):
    """When a hook runs; the values are the names of its keys."""

    UP = "up"  # the circuit carries frames
    DOWN = "down"  # it no longer does, or is about to go


class Subject(Protocol):
    """A circuit."""

    @property
    def config(self) -> CircuitConfig: ...

    def status(self) -> CircuitStatus: ...


class HookRunner:
    """Runs the hooks of all circuits, a few at a time."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._running: set[CircuitHooks] = set()
        self._waiting: deque[CircuitHooks] = deque()
        self._on_idle: Callback | None = None

    def hooks_of(self, circuit: Subject) -> CircuitHooks:
        return CircuitHooks(circuit, self._loop, self)

    def enter(self, hooks: CircuitHooks) -> None:
        """Let hooks begin as soon as there is a place; leave() is to follow."""
        self._waiting.append(hooks)
        self._loop.call_soon(self._fill)

    def leave(self, hooks: CircuitHooks) -> None:
        self._running.discard(hooks)
        if hooks in self._waiting:
            self._waiting.remove(hooks)
        self._loop.call_soon(self._fill)

    def when_idle(self, done: Callback) -> None:
        """Call done once, when no hook runs and none waits."""
        self._on_idle = done
        self._loop.call_soon(self._fill)

    @property
    def idle(self) -> bool:
        """Whether no hook runs and none waits."""
        return not (self._running or self._waiting)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < AT_ONCE:
            hooks = self._waiting.popleft()
            self._running.add(hooks)
            hooks.begin()
        if self._on_idle is not None and not self._running and not self._waiting:
            done, self._on_idle = self._on_idle, None
            done()


class CircuitHooks:
    """The hooks of one circuit: one after the other, up and down in turns.

    A change that is undone before its hook could start has no hooks.
    """

    def __init__(self, circuit: Subject, loop: EventLoop, runner: HookRunner) -> None:
        self.reason = NO_REASON
        """Why the last hook failed; empty: it did not."""
        self._circuit = circuit
        self._loop = loop
        self._runner = runner
        config = circuit.config
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._wanted = self._last = Hook.DOWN
        self._facts: dict[str, str] = {}
        self._program: Program | None = None
        self._entered = False
        self._on_finished: Callback | None = None
        self._finishing = False

    @property
    def due(self) -> bool:
        """Whether one runs, or is to run before the circuit may go."""
        return self._entered or (self._last is Hook.UP and self._path(Hook.DOWN) is not None)

    @property
    def up(self) -> bool:
        """Whether the circuit was up last, as far as hooks know."""
        return self._last is Hook.UP

    def resume(self) -> None:
        """Say that the up hook has run already: another velad ran it."""
        self._wanted = self._last = Hook.UP
        self._facts = facts(self._circuit)

    def follow(self, *, up: bool) -> None:
        """Take note of whether the circuit carries frames."""
        if self._finishing:
            return
        self._want(Hook.UP if up else Hook.DOWN, {})

    def finish(self, why: str, done: Callback | None = None) -> None:
        """Run what is due before the circuit goes, and then call done; nothing runs afterwards."""
        self._finishing = True
        self._on_finished = done
        self._want(Hook.DOWN, {"STATE": REMOVED, "REASON": why})
        self._end_if_done()

    def abandon(self) -> None:
        """Kill what runs, and let nothing run afterwards."""
        self._finishing = True
        self._wanted = self._last = Hook.DOWN
        if self._program is not None:
            self._program.kill("was killed, as velad stops")
            self._program = None
        self._leave()
        self._end_if_done()

    def begin(self) -> None:
        """Run what is due now. For HookRunner."""
        hook = self._wanted
        path = self._path(hook)
        if hook is self._last or path is None:
            self._last = hook
            self._leave()
            self._end_if_done()
            return
        self._last = hook
        try:
            program = check_hook(path)
            self._program = Program(
                self._loop,
                program,
                environment(hook, self._facts),
                LIMIT_S,
                lambda line: self._log.info("hook_output", hook=hook.value, line=line),
                lambda error: self._on_end(hook, path, error),
            )
        except ConfigError as err:
            self._on_end(hook, path, f"is not run: {err}")
        except OSError as err:
            self._on_end(hook, path, f"cannot be started: {err.strerror}")

    def _want(self, hook: Hook, more: Mapping[str, str]) -> None:
        if hook is self._wanted:
            return
        self._wanted = hook
        if not self._entered and self._path(hook) is None:
            self._last = hook
            return
        before, self._facts = self._facts, {**facts(self._circuit), **more}
        if not self._facts["REMOTE_ADDRESS"]:  # one that is released no longer has it
            for key in ("REMOTE_ADDRESS", "REMOTE_PORT"):
                self._facts[key] = before.get(key, "")
        if not self._entered:
            self._entered = True
            self._runner.enter(self)

    def _on_end(self, hook: Hook, path: Path, error: str) -> None:
        self._program = None
        failed = Cause.HOOK_FAILED
        self.reason = failed.say(hook=hook.value, path=path, error=error) if error else NO_REASON
        if error:
            self._log.warning("hook_failed", hook=hook.value, path=str(path), error=error)
        self._leave()
        if self._wanted is not self._last:
            self._entered = True
            self._runner.enter(self)
        self._end_if_done()

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._runner.leave(self)

    def _end_if_done(self) -> None:
        if self._on_finished is not None and not self._entered:
            done, self._on_finished = self._on_finished, None
            done()

    def _path(self, hook: Hook) -> Path | None:
        config = self._circuit.config
        return config.up if hook is Hook.UP else config.down


def facts(circuit: Subject) -> dict[str, str]:
    """Return what hooks are told of a circuit, by variable, without VELA_."""
    config, status = circuit.config, circuit.status()
    told = {
        "CIRCUIT": config.name,
        "INTERFACE": config.name,
        "ID": config.id,
        "DESCRIPTION": config.description,
        "STATE": status.state,
        "REASON": status.reason,
        "REMOTE": status.remote,
        "REMOTE_ADDRESS": status.remote_address or "",
        "REMOTE_PORT": status.remote_port or "",
        "MTU": status.mtu,
        "ADDRESSES": " ".join(map(str, config.addresses)),
        "BRIDGE": config.bridge or "",
    }
    return {key: str(value) for key, value in told.items()}


def environment(hook: Hook, told: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a hook. Reasons may be a remote's words."""
    variables = {f"VELA_{key}": printable(value) for key, value in told.items()}
    return {"PATH": _PATH, "LC_ALL": "C.UTF-8", "VELA_EVENT": hook.value, **variables}


def check_hook(path: Path) -> Path:
    """Return the file that is executed. Raises ConfigError if it is missing, or not to be trusted.

    Whoever can change it is root. As with the configuration, symbolic links must be trusted, too.
    """
    try:
        found = resolve_links(path)
        fd = open_trusted(found, Access.READ)
        try:
            executable = os.fstat(fd).st_mode & stat.S_IXUSR
        finally:
            os.close(fd)
    except UntrustedError as err:
        raise ConfigError(str(err)) from err
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror}") from err
    if not executable:
        raise ConfigError(f"{found} is not executable; run chmod u+x on it")
    return found
