"""A restart by the service manager: this velad ends, and the one that is started next goes on.

Nothing is said to remotes, and nothing is taken down. Meanwhile frames wait in the queues of the
interfaces and of the sockets, of which the manager has copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from vela.errors import DeviceError
from vela.linux.secret_memory import is_hidden

from .circuit.standing import Standing
from .fd_store import FdStore
from .inheritance import Inheritance, keys_name
from .jobs import find_restart
from .notify import ServiceManager
from .registry.registry import Registry
from .runtime.loop import Callback, EventLoop
from .succession import Succession

STORE_S, STORE_AGAIN_S = 1.0, 0.005
"""For a manager that takes a few descriptors at once."""


class Intermission:
    """Decides whether the end of this velad is one, and what the next velad gets."""

    def __init__(
        self,
        loop: EventLoop,
        registry: Registry,
        succession: Succession,
        manager: ServiceManager,
        store: FdStore,
        keep: Callable[[Mapping[str, int]], bool],
    ) -> None:
        """keep: see FdStore.update; it is given further descriptors."""
        self._loop = loop
        self._registry = registry
        self._succession = succession
        self._manager = manager
        self._store = store
        self._keep = keep
        self._log = structlog.get_logger()

    def begin(self, otherwise: Callback) -> None:
        """End without a word, if the manager starts another velad at once; or else call otherwise.

        Workers go on until the manager has everything.
        """
        if not (self._manager.told and self._is_restart()):
            otherwise()
            return
        obstacle = self._registry.obstacle() or self._succession.obstacle
        if obstacle:
            self._log.warning("circuits_not_left", reason=obstacle)
            otherwise()
            return
        self._registry.once_settled(lambda: self._store_all(self._loop.now() + STORE_S, otherwise))

    def _is_restart(self, stored: int = 0) -> bool:
        """Ask the manager whether it is a restart, and has so many descriptors."""
        try:
            restart = find_restart(os.getpid())
        except DeviceError as err:
            # Not systemd, for instance.
            self._log.info("restart_not_known", reason=str(err))
            return False
        return restart is not None and restart.stored >= stored

    def _store_all(self, until: float, otherwise: Callback) -> None:
        pages = {keys_name(name): page for name, page in self._key_pages().items()}
        if self._keep(pages):
            self._manager.wait_until_read()
            if self._is_restart(len(self._store)):
                self._leave(otherwise)
                return
            self._log.warning("circuits_not_left", reason="the store is not as it should be")
            otherwise()
        elif self._loop.now() < until:
            self._loop.call_later(STORE_AGAIN_S, lambda: self._store_all(until, otherwise))
        else:
            self._log.warning("circuits_not_left", reason="the service manager takes nothing")
            otherwise()

    def _key_pages(self) -> dict[str, int]:
        """Return the key pages that may be where nobody keeps them locked: out of swap's reach."""
        return {
            circuit.name: circuit.key_page
            for circuit in self._registry.each()
            if circuit.key_page is not None and is_hidden(circuit.key_page)
        }

    def _leave(self, otherwise: Callback) -> None:
        self._succession.freeze()
        pages = self._key_pages()
        standings = {}
        for circuit in self._registry.each():
            standing = circuit.standing()
            has_keys = circuit.frame_keys is None or circuit.name in pages
            if standing is not None and has_keys:
                standings[circuit.name] = standing
        if not self._store.leave({name: each.format() for name, each in standings.items()}):
            otherwise()
            return
        # The others are not up, or the next velad has not all that they need.
        self._registry.close(but=standings)
        working = set(standings)

        def on_end(name: str) -> None:
            working.discard(name)
            if not working:
                self._end(len(standings))

        for circuit in self._registry.each():
            circuit.retire_worker(partial(on_end, circuit.name))
        if not working:
            self._end(len(standings))

    def _end(self, circuits: int) -> None:
        """End, and leave everything as it is, as Succession does."""
        self._log.info("velad_left_to_next", circuits=circuits)
        os._exit(0)


def recall(store: FdStore, inheritance: Inheritance) -> dict[str, Standing]:
    """Return how the circuits of the velad before stood, and note what they receive on."""
    standings = {}
    for name, document in store.standings.items():
        try:
            standing = standings[name] = Standing.parse(document)
        except (KeyError, TypeError) as err:
            structlog.get_logger().warning("record_not_read", circuit=name, error=str(err))
            continue
        inheritance.receives_on(name, standing.member, standing.index, *standing.further)
    return standings
