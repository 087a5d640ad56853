"""The installed commands: setup.cfg names them.

They import what they need themselves, so that an interrupt meanwhile ends them quietly.
"""

from __future__ import annotations

EXIT_INTERRUPTED = 130
"""What shells say of a program that SIGINT has ended."""


def velad() -> int:
    """Run velad. Return its exit status."""
    try:
        import gc

        from vela.deferred import defer

        # What is imported stays. The daemon collects garbage itself, when it has the time.
        gc.disable()
        defer("asyncio")  # structlog imports it, for asynchronous programs
        from .cli import main

        return main()
    except KeyboardInterrupt:  # before there is a handler, or after
        return EXIT_INTERRUPTED


def velactl() -> int:
    """Run velactl. Return its exit status."""
    try:
        from .velactl import main

        return main()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
