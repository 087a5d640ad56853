"""velad's command line: arguments in, exit status out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vela import __version__
from vela.errors import ConfigError, VelaError
from vela.log import configure

from .config.reader import load_config
from .daemon import Daemon, find_mistakes

EXIT_OK = 0
EXIT_REFUSED = 1  # by the machine: privileges, devices, ports, names in use
EXIT_CONFIG = 2  # by the configuration, or the command line


def main(argv: list[str] | None = None) -> int:
    """Run velad until it is stopped. Return its exit status."""
    arguments = _parser().parse_args(argv)
    # First: another user may be unable to read the file.
    if not arguments.check and os.geteuid() != 0:
        return _refuse("must run as root, to create interfaces; workers run without privileges")
    try:
        config = load_config(arguments.config, find_mistakes)
    except ConfigError as err:
        print(err, file=sys.stderr)
        return EXIT_CONFIG
    except VelaError as err:
        return _refuse(err)
    if arguments.check:
        print(f"{arguments.config}: no mistakes, {len(config.circuits)} circuits")
        return EXIT_OK
    configure(config.daemon.log_level, config.daemon.log_format)
    _give_up_standard_streams()
    try:
        daemon = Daemon(arguments.config, config)
    except (VelaError, OSError) as err:
        return _refuse(err)
    daemon.run()
    return EXIT_OK


def _give_up_standard_streams() -> None:
    """Read and write nothing but the log, so that no child can either."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if null > 2:  # one of them may have been closed
        os.close(null)


def _refuse(why: object) -> int:
    print(f"velad: {why}", file=sys.stderr)
    return EXIT_REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velad",
        description="Carry Ethernet frames between hosts over UDP, one interface for each circuit.",
        epilog="Signals: TERM and INT stop velad; HUP reloads the configuration, and unchanged "
        "circuits lose no frame. Exit status: 0 stopped; 1 the machine refused something; "
        "2 mistakes in the configuration.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("/etc/vela.toml"),
        metavar="FILE",
        help="the configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the configuration for mistakes; change nothing",
    )
    parser.add_argument("--version", action="version", version=f"velad {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
