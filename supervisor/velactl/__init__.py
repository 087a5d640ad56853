"""velactl: the command line of a running velad.

One file for each family of commands. It must start fast, as scripts and monitoring call it often:
it imports neither structlog nor netlink nor the data path, and each command's file only when the
command runs.
"""

from vela.supervisor.velactl.command_line import main

__all__ = ["main"]
