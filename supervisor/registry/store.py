"""circuits.json: the circuits that the configuration file does not name, kept across restarts.

StateFile reads and writes the file; CircuitStore decides what is in it and when it is written.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from vela.errors import ConfigError, DeviceError

from ..circuit.circuit import Circuit
from ..circuit.setup import Origin
from ..config.files import Access, UntrustedError, check_directory, open_trusted
from ..config.reader import format_circuit, parse_circuits
from ..config.records import CircuitConfig, DaemonConfig
from ..runtime.loop import EventLoop, Timer

FILE = "circuits.json"
SET_ASIDE = "circuits.json.unreadable"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredCircuit:
    """A circuit that a command or another machine set up."""

    config: CircuitConfig
    origin: Origin
    named_by_peer: bool = False
    """The remote asked for this interface name; otherwise it was chosen here."""
    maker: bytes | None = None
    """The machine that set it up, by identity.maker_of; None: this one, or unknown."""
    proven: bool = True
    """It is stored however long the machine that set it up is silent: see tenure."""


@dataclass(frozen=True, slots=True)
class UnreadEntry:
    """An entry that cannot be read. It is kept unchanged, so that it can be repaired."""

    name: str
    entry: object
    """A JSON value."""
    error: str


@dataclass(frozen=True, slots=True)
class Stored:
    """The content of the file."""

    circuits: tuple[StoredCircuit, ...] = ()
    unread: tuple[UnreadEntry, ...] = ()
    disabled: frozenset[str] = field(default_factory=frozenset)
    """Names of circuits, of any origin, that are administratively down."""


class StateFile:
    """The file in the state directory. It is replaced as a whole, never changed in place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / FILE

    def load(self, daemon: DaemonConfig) -> Stored:
        """Return what was saved last.

        A file that cannot be parsed is renamed, and an error is logged, since
        the circuits of the configuration must run all the same. Raises
        DeviceError if the file cannot be read or renamed.
        """
        try:
            check_directory(self._directory)
            fd = open_trusted(self._path, Access.READ)
            with open(fd, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            return Stored()
        except UntrustedError as err:
            raise DeviceError(str(err)) from err
        except UnicodeDecodeError as err:
            return self._set_aside(str(err))
        except OSError as err:
            raise DeviceError(f"{self._path}: {os.strerror(err.errno or 0)}") from err
        try:
            return _parse(json.loads(text), daemon, str(self._path))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            return self._set_aside(f"{type(err).__name__}: {err}")

    def save(self, stored: Stored) -> None:
        """Replace the content of the file: see replace_file(). Raises DeviceError."""
        replace_file(self._path, json.dumps(_format(stored), indent=1) + "\n")

    def _set_aside(self, reason: str) -> Stored:
        names = itertools.chain([SET_ASIDE], (f"{SET_ASIDE}.{n}" for n in itertools.count(2)))
        aside = next(path for name in names if not os.path.lexists(path := self._directory / name))
        structlog.get_logger().error(
            "state_unreadable", path=str(self._path), renamed_to=str(aside), error=reason
        )
        try:
            _replace(self._path, aside)
        except OSError as err:
            raise DeviceError(f"{aside}: {os.strerror(err.errno or 0)}") from err
        return Stored()


def replace_file(path: Path, text: str) -> None:
    """Replace the content of a file of velad's own. It survives a power failure.

    Raises DeviceError. The file then has its previous content, unless only
    the directory could not be synced: then a power failure decides.
    """
    new = path.with_suffix(".new")
    try:
        _make_directory(path.parent)
        check_directory(path.parent)
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        with open(new, "x", encoding="utf-8", opener=_open_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _replace(new, path)
    except UntrustedError as err:
        raise DeviceError(str(err)) from err
    except FileExistsError as err:
        raise DeviceError(f"{path.parent} is not a directory") from err
    except OSError as err:
        with contextlib.suppress(OSError):
            new.unlink()
        raise DeviceError(f"{path}: {os.strerror(err.errno or 0)}") from err


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_directory(directory: Path) -> None:
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in missing:
        _sync_folder(each.parent)


def _replace(source: Path, target: Path) -> None:
    source.replace(target)
    # fsync of the file does not write its directory entry (fsync(2)).
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as err:
        # fsync(2): a file system may not support it for this descriptor.
        if err.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def _format(stored: Stored) -> Mapping[str, object]:
    return {
        "version": _VERSION,
        "circuits": {
            each.config.name: {
                "origin": each.origin.value,
                "named_by_peer": each.named_by_peer,
                **({} if each.maker is None else {"maker": each.maker.hex()}),
                **({} if each.proven else {"proven": False}),
                "settings": format_circuit(each.config),
            }
            for each in stored.circuits
        }
        | {each.name: each.entry for each in stored.unread},
        "disabled": sorted(stored.disabled),
    }


def _parse(document: Mapping[str, object], daemon: DaemonConfig, source: str) -> Stored:
    """Raises ValueError, KeyError, TypeError or AttributeError for a document of another shape."""
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']} is not supported; {_VERSION} is")
    entries, disabled = document["circuits"], document["disabled"]
    if not isinstance(entries, dict) or not isinstance(disabled, list):
        raise TypeError("circuits is not an object, or disabled is not a list")
    circuits: list[StoredCircuit] = []
    unread: list[UnreadEntry] = []
    for name, entry in entries.items():
        # Each by itself: conflicts between stored circuits are found when they are created.
        try:
            circuits.append(_parse_entry(name, entry, daemon, source))
        except ConfigError as err:
            unread.append(UnreadEntry(name, entry, str(err)))
        except (ValueError, KeyError, TypeError) as err:
            unread.append(UnreadEntry(name, entry, f"{type(err).__name__}: {err}"))
    return Stored(tuple(circuits), tuple(unread), frozenset(str(name) for name in disabled))


def _parse_entry(name: str, entry: object, daemon: DaemonConfig, source: str) -> StoredCircuit:
    """Raises ConfigError; ValueError, KeyError or TypeError for an entry of another shape."""
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    (config,) = parse_circuits({name: entry["settings"]}, daemon, source)
    maker = entry.get("maker")
    return StoredCircuit(
        config,
        Origin(entry["origin"]),
        bool(entry["named_by_peer"]),
        None if maker is None else bytes.fromhex(maker),
        proven=bool(entry.get("proven", True)),
    )


# Circuits that other machines set up in a burst are saved together, at most this often.
SAVE_INTERVAL_S = 0.25


SavedHandler = Callable[[DeviceError | None], None]
"""Is called with the error of the save, or None."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A change of one circuit that is saved before it is made: it is made only if it was saved."""

    name: str
    deleted: bool = False
    disabled: bool | None = None
    """Whether a command takes it down; None: as it is."""


class CircuitStore:
    """Saves what the configuration does not say about the circuits, on request of their owner."""

    def __init__(self, store: StateFile, loop: EventLoop, circuits: Mapping[str, Circuit]) -> None:
        """circuits: by name; a save stores what it contains at that time."""
        self._store = store
        self._loop = loop
        self._circuits = circuits
        self._absent = Stored()
        self._saving: Timer | None = None
        self._waiting: list[SavedHandler] = []
        self._saved_at = -math.inf

    def load(self, daemon: DaemonConfig) -> Stored:
        """Return what was saved last. Raises DeviceError if it cannot be read."""
        return self._store.load(daemon)

    def set_absent(self, absent: Stored) -> None:
        """Set the stored circuits that do not exist at present. Saves contain them unchanged."""
        self._absent = absent

    def keep(self, stored: StoredCircuit) -> None:
        """Remember a circuit that cannot be at present, until it exists again."""
        self._absent = replace(self._absent, circuits=(*self._absent.circuits, stored))

    def add_disabled(self, name: str) -> None:
        """Remember that this circuit is disabled, until it exists again."""
        self._absent = replace(self._absent, disabled=self._absent.disabled | {name})

    def reclaim(self, name: str) -> bool:
        """Forget the stored record of a circuit that exists again.

        Return whether it was disabled.
        """
        absent = self._absent
        self._absent = Stored(
            tuple(each for each in absent.circuits if each.config.name != name),
            tuple(each for each in absent.unread if each.name != name),
            absent.disabled - {name},
        )
        return name in absent.disabled

    def save(self, ahead: Ahead | None = None) -> None:
        """Save now, as if a change were made already.

        Raises DeviceError, and then the file has its previous content.
        """
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        self._saved_at = self._loop.now()
        waiting, self._waiting = self._waiting, []
        error = None
        try:
            self._store.save(self._stored(ahead))
        except DeviceError as err:
            error = err
        for saved in waiting:
            saved(error)
        if error is not None:
            raise error

    def save_in_time(self, saved: SavedHandler) -> None:
        """Save now, or together with what follows if a save was just done; then call back."""
        self._waiting.append(saved)
        now = self._loop.now()
        at = self._saved_at + SAVE_INTERVAL_S
        if at <= now:
            self.try_save()
        elif self._saving is None:
            self._saving = self._loop.call_later(at - now, self.try_save)

    def try_save(self) -> None:
        """Save now, and log it if that fails."""
        try:
            self.save()
        except DeviceError as err:
            structlog.get_logger().error("state_not_saved", error=str(err))

    def close(self) -> None:
        """Save what is not saved yet."""
        if self._saving is not None:
            self.try_save()

    def _stored(self, ahead: Ahead | None) -> Stored:
        circuits, absent = self._circuits, self._absent
        stored = Stored(
            circuits=tuple(
                record_of(circuit)
                for circuit in circuits.values()
                if circuit.origin is not Origin.CONFIG
            )
            + tuple(each for each in absent.circuits if each.config.name not in circuits),
            unread=tuple(each for each in absent.unread if each.name not in circuits),
            disabled=frozenset(name for name, circuit in circuits.items() if circuit.taken_down)
            | absent.disabled,
        )
        if ahead is None:
            return stored
        disabled = stored.disabled
        if ahead.disabled is not None:
            disabled = disabled | {ahead.name} if ahead.disabled else disabled - {ahead.name}
        if not ahead.deleted:
            return replace(stored, disabled=disabled)
        return Stored(
            tuple(each for each in stored.circuits if each.config.name != ahead.name),
            tuple(each for each in stored.unread if each.name != ahead.name),
            disabled - {ahead.name},
        )


def record_of(circuit: Circuit) -> StoredCircuit:
    """Return what is stored of a circuit."""
    # If the remote's offer has no name, the name was chosen here.
    named_by_peer = circuit.origin is Origin.PEER and circuit.offer.interface is not None
    return StoredCircuit(
        circuit.config,
        circuit.origin,
        named_by_peer,
        circuit.maker,
        proven=circuit.tenure is None or circuit.tenure.proven,
    )
