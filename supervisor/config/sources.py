"""The files of a configuration: FILE, and FILE.d/*.toml beside it, which add circuits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vela.errors import ConfigError

from .files import Access, UntrustedError, check_directory, open_trusted, resolve_links
from .syntax import TomlSyntaxError, parse_toml
from .tables import key_path

MAX_FILE_SIZE = 1 << 20  # bytes; hundreds of circuits need a tenth of it

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Text:
    """The text of one file."""

    source: str
    """Its name in messages."""
    toml: str


@dataclass(slots=True)
class Merged:
    """The values of all files as those of one, and which file each circuit is in."""

    source: str
    """The file that all but circuits are in."""
    values: Values
    files: dict[str, str] = field(default_factory=dict)
    """By circuit name."""
    mistakes: list[str] = field(default_factory=list)
    """With the file that they are in."""

    def locate(self, mistake: str) -> str:
        """Return a mistake, "key.path: ...", with the file that the key is in."""
        for name, file in self.files.items():
            path = key_path("circuits", name)
            if mistake.startswith((f"{path}.", f"{path}:", f"{path}[")):
                return f"{file}: {mistake}"
        return f"{self.source}: {mistake}"


def folder_of(path: Path) -> Path:
    """Return the folder beside a configuration file: /etc/vela.d for /etc/vela.toml."""
    return path.with_suffix(".d")


def read_texts(path: Path) -> tuple[Text, ...]:
    """Return the texts of a file and of those in the folder beside it, in order of their names.

    Raises ConfigError, with what is wrong with all of them.
    """
    texts: list[Text] = []
    mistakes: list[str] = []
    for each in (path, *_files_beside(path)):
        try:
            texts.append(Text(str(each), _read(each)))
        except ConfigError as err:
            mistakes += err.mistakes
    if mistakes:
        raise ConfigError(*mistakes)
    return tuple(texts)


def merge(texts: Iterable[Text]) -> Merged:
    """Return the values of texts as those of one; all but circuits are the first one's.

    Raises ConfigError, with the first syntax error of each that is not TOML.
    """
    parsed: list[tuple[str, dict[str, object]]] = []
    errors: list[str] = []
    for text in texts:
        try:
            parsed.append((text.source, parse_toml(text.toml)))
        except TomlSyntaxError as err:
            errors.append(f"{text.source}: {err}")
    if errors:
        raise ConfigError(*errors)
    (source, values), *others = parsed
    merged = Merged(source, values)
    circuits = values.get("circuits", {})
    if not others or not isinstance(circuits, dict):
        return merged
    merged.values = {**values, "circuits": (together := dict(circuits))}
    merged.files = dict.fromkeys(together, source)
    for file, tables in others:
        _add(merged, together, file, tables)
    return merged


def _add(merged: Merged, together: dict[str, object], file: str, tables: Values) -> None:
    """Add the circuits of one more file."""
    for key in tables:
        if key != "circuits":
            merged.mistakes.append(
                f"{file}: {key_path(key)}: only circuits can be here; "
                f"{merged.source} would be right"
            )
    circuits = tables.get("circuits", {})
    if not isinstance(circuits, dict):
        merged.mistakes.append(f"{file}: circuits: is not a table; [circuits.NAME] would be right")
        return
    for name, table in circuits.items():
        if name in together:
            merged.mistakes.append(
                f"{file}: {key_path('circuits', name)}: is in {merged.files[name]}, too; "
                "one of the two would be right"
            )
            continue
        together[name] = table
        merged.files[name] = file


def _files_beside(path: Path) -> list[Path]:
    try:
        folder = folder_of(path)
    except ValueError:  # "/", which reading it reports
        return []
    try:
        if folder == path or not folder.is_dir():
            return []
        check_directory(folder)
        # Editors keep what is not saved yet in hidden files.
        names = [each for each in folder.iterdir() if each.suffix == ".toml"]
        return sorted(each for each in names if not each.name.startswith("."))
    except UntrustedError as err:
        raise ConfigError(str(err)) from err
    except OSError as err:
        raise ConfigError(f"{folder}: cannot be read: {err.strerror}") from err


def _read(path: Path) -> str:
    source = str(path)
    try:
        fd = open_trusted(resolve_links(path), Access.READ)
        with open(fd, "rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except UntrustedError as err:
        raise ConfigError(str(err)) from err
    except OSError as err:
        raise ConfigError(f"{source}: cannot be read: {err.strerror}") from err
    except ValueError as err:  # a NUL in the path
        raise ConfigError(f"{source!r}: cannot be read: {err}") from err
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"{source}: is larger than {MAX_FILE_SIZE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        column = err.start - data.rfind(b"\n", 0, err.start)
        raise ConfigError(f"{source}: line {line}, column {column}: is not UTF-8") from err
