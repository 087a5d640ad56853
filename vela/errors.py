"""The errors VELA raises on purpose, by whose fault they are. Anything else is a bug."""

from __future__ import annotations


class VelaError(Exception):
    """Base of all errors that are reported to a person, as one line."""


class ConfigError(VelaError):
    """The operator's mistakes, a line each; a line names the file and the key path."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)
        self.mistakes = mistakes

    def __str__(self) -> str:
        return "\n".join(self.mistakes)


class RemoteProtocolError(VelaError):
    """The remote's mistake: counted under reason, a stable word, and dropped; never a crash."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class DeviceError(VelaError):
    """The kernel refused an interface or a socket; names it and the call that failed."""


class ResolutionError(VelaError):
    """A remote's name has no usable address at present; always worth another try."""
