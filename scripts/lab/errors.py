"""The one error of the lab: something outside the tested code did not do what it was told."""

from __future__ import annotations


class LabError(Exception):
    """A command failed, a peer was not ready in time, an output could not be read."""
