"""Who has a UDP port of this machine, in words for the operator of a velad that cannot have it."""

from __future__ import annotations

from pathlib import Path

from vela.address import IPAddress
from vela.linux.usage import Program, program_with_port

DEFAULT_CONFIG = Path("/etc/vela.toml")


def port_holder(port: int, address: IPAddress) -> str:
    """Return who has it: "velad, pid 4711, with /etc/vela.toml".

    address: of this machine; the unspecified one stands for all. Empty: nobody, or it is hidden.
    """
    found = program_with_port(port, address)
    if found is None:
        return ""
    if not any(Path(word).name == "velad" for word in found.command[:2]):
        return f"{found.name}, pid {found.pid}"
    return f"velad, pid {found.pid}, with {_config_of(found)}"


def _config_of(velad: Program) -> Path:
    """Return the configuration that its command line names."""
    words = iter(velad.command)
    named = DEFAULT_CONFIG
    for word in words:
        name, equals, value = word.partition("=")
        if word in ("--config", "-c"):
            named = Path(next(words, ""))
        elif name == "--config" and equals:
            named = Path(value)
        elif word.startswith("-c") and not word.startswith("--"):
            named = Path(word[2:])
    return Path(velad.directory, named)
