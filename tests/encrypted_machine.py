"""Simulated machines that encrypt: each with a real key holder, and a worker that takes keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from simulation import Machine, Network, RecordingDataPath
from users import child_user

from vela.address import IPAddress
from vela.dataplane.key_page import (
    LIFETIME_S,
    PHASES,
    KeyPage,
    SlotWord,
    Usage,
    Word,
    boottime_ns,
    slot_start,
)
from vela.supervisor.circuit.standing import Standing
from vela.supervisor.config import identity
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, DaemonConfig
from vela.supervisor.keys import HeldKey, Keys
from vela.supervisor.registry.ciphers import Ciphers
from vela.wire import Suite

SUITES = Suite.AES_256_GCM, Suite.CHACHA20_POLY1305
SECRET = b"a pre-shared key of 32 bytes....."


def write_key(path: Path, secret: bytes = SECRET) -> Path:
    """Write a pre-shared key as velad wants it."""
    path.write_bytes(secret)
    path.chmod(0o600)
    return path


@dataclass
class PageWorker:
    """What a worker does with the keys in its page, and what a test lets it do beside that."""

    path: RecordingDataPath
    takes: bool = True
    """It takes up what it is handed."""

    def look(self) -> None:
        """Take up the keys that there are."""
        path = self.path
        fd = None if path.closed or path.attached is None else path.key_page
        if fd is None or not self.takes:
            return
        with KeyPage(fd) as page:
            page.words[Word.SENT_WITH] = page.words[Word.SENDING]
            for phase in range(PHASES):
                slot = slot_start(phase)
                page.words[slot + SlotWord.RECEIVES] = page.words[slot + SlotWord.SERIAL]

    def usages(self) -> list[Usage]:
        """Return what became of the keys in the page."""
        if self.path.key_page is None:
            return []
        with KeyPage(self.path.key_page) as page:
            found = [page.usage(phase) for phase in range(PHASES)]
        return [each for each in found if each is not None]

    def send(self, frames: int) -> None:
        """Have used so many counters of the key that frames leave with."""
        assert self.path.key_page is not None
        with KeyPage(self.path.key_page) as page:
            for phase in range(PHASES):
                slot, serial = slot_start(phase), page.serial(phase)
                if serial and serial == page.words[Word.SENDING]:
                    page.words[slot + SlotWord.NEXT] = serial << 32 | frames + 1

    def sleep(self, seconds: float) -> None:
        """Let the keys be so much older, as where the machine has slept."""
        assert self.path.key_page is not None
        expires = boottime_ns() + round((LIFETIME_S - seconds) * 1e9)
        with KeyPage(self.path.key_page) as page:
            for phase in range(PHASES):
                page.words[slot_start(phase) + SlotWord.EXPIRES_NS] = expires


class EncryptedMachine(Machine):
    """A machine that can encrypt. It has an identity, and a pre-shared key if it has a file."""

    def __init__(
        self,
        network: Network,
        address: IPAddress,
        folder: Path,
        circuits: tuple[CircuitConfig, ...] = (),
        autoconfigure: AutoconfigureConfig | None = None,
    ) -> None:
        folder.mkdir()
        super().__init__(network, address, folder, circuits, autoconfigure)
        path = folder / "identity.key"
        self.public = identity.generate(path)
        self.daemon = DaemonConfig(state_directory=folder, identity=path)
        self.config = replace(self.config, daemon=self.daemon)
        self.workers: dict[str, PageWorker] = {}
        self.keys = self._ciphers = None
        self._look()

    keys: Keys | None
    _ciphers: Ciphers | None

    @property
    def key_source(self) -> Keys:
        assert self.keys is not None
        return self.keys

    @property
    def ciphers(self) -> Ciphers | None:
        return self._ciphers

    @property
    def holder(self) -> int:
        """The pid of the key holder."""
        assert self.keys is not None
        assert self.keys.pid is not None
        return self.keys.pid

    def boot(self, former: Mapping[str, Standing] | None = None) -> frozenset[str]:
        self.keys = Keys(self.network.loop, child_user(), self.daemon.state_directory)
        self._ciphers = Ciphers(self.keys, self.daemon, SUITES)
        return super().boot(former)

    def set_policy(self) -> None:
        assert self._ciphers is not None
        autoconfigure = self.config.autoconfigure
        key: HeldKey | None = None
        if autoconfigure is not None and autoconfigure.key_file is not None:
            key = self.key_source.load(autoconfigure.key_file)
        self.channel.set_policy(autoconfigure, key, self._ciphers.offer(autoconfigure))

    def crash(self) -> None:
        super().crash()
        self._end_holder()

    def stop(self) -> None:
        super().stop()
        self._end_holder()

    def _end_holder(self) -> None:
        self.workers.clear()
        if self.keys is not None:
            self.keys.close()
            self.keys = None

    def make_data_path(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False, shielded: bool = False
    ) -> RecordingDataPath:
        made = super().make_data_path(config, cpu, await_bridge=await_bridge, shielded=shielded)
        self.workers[config.name] = PageWorker(made)
        return made

    def _look(self) -> None:
        """Let the workers look at their pages twenty times a second, as real ones do at first."""
        for worker in self.workers.values():
            worker.look()
        self.network.loop.call_later(0.05, self._look)
