"""Texts of configuration files, and the mistakes in them."""

from __future__ import annotations

from vela.errors import ConfigError
from vela.supervisor.config.reader import parse_config

MINIMAL = '[circuits.vela0]\nid = 1\nremote = "192.0.2.9"\n'


def error_of(text: str) -> ConfigError | None:
    try:
        parse_config(text, "f")
    except ConfigError as err:
        return err
    return None


def mistakes_in(text: str) -> list[str]:
    """Return the mistakes of a text, without the file's name; none: an empty list."""
    error = error_of(text)
    if error is None:
        return []
    assert all(line.startswith("f: ") for line in str(error).split("\n"))
    assert str(error) == "\n".join(error.mistakes)
    return [mistake.removeprefix("f: ") for mistake in error.mistakes]


def only_mistake_in(text: str) -> str:
    (mistake,) = mistakes_in(text)
    return mistake


def circuit_with(line: str, *, remote: str = "192.0.2.9", name: str = "vela0", id: int = 1) -> str:
    return f'[circuits.{name}]\nid = {id}\nremote = "{remote}"\n{line}\n'


def peer_with(line: str, *, remote: str = "192.0.2.9", name: str = "vela0", id: int = 1) -> str:
    return circuit_with(f"[circuits.{name}.peer]\n{line}", remote=remote, name=name, id=id)
