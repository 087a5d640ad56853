"""The errors that VELA raises on purpose, by whose fault they are. Any other one is a bug."""

from __future__ import annotations


class VelaError(Exception):
    """The base class. Its text is shown to operators."""


class ConfigError(VelaError):
    """Mistakes of the operator, one line each. A line names the file and the key path."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)
        self.mistakes = mistakes

    def __str__(self) -> str:
        return "\n".join(self.mistakes)


class RemoteProtocolError(VelaError):
    """A mistake of the remote. The message is dropped and counted under reason, a stable word."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class DeviceError(VelaError):
    """The kernel refused an operation. Names the interface or socket and the operation."""


class ResolutionError(VelaError):
    """A name has no usable address at present. It may have one later."""
