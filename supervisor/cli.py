"""velad's command line: arguments in, exit status out."""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import structlog

from vela import __version__
from vela.errors import ConfigError, VelaError
from vela.log import configure
from vela.public_key import fingerprint, format_public_key

from .config.files import close_directory
from .config.key import IDENTITY_PATH
from .config.reader import load_config, parse_texts
from .config.records import Config
from .config.sources import Text, read_texts
from .daemon import Daemon, find_mistakes
from .inheritance import Inheritance
from .lacking import find_lacking
from .predecessor import Predecessor
from .trial import TrialFile

EXIT_OK = 0
EXIT_REFUSED = 1  # by the machine: privileges, devices, ports, names in use
EXIT_CONFIG = 2  # by the configuration, or the command line

DEFAULT_CONFIG = Path("/etc/vela.toml")

_BY_CONFIG = Path()
"""Stands for the file that the configuration names."""


def main(argv: list[str] | None = None) -> int:
    """Run velad until it is stopped, or do what else is asked. Return the exit status."""
    arguments = _parse(argv)
    runs = not arguments.check and (arguments.generate_key or arguments.show_key) is None
    # First: another user may be unable to read the file.
    if runs and os.geteuid() != 0:
        return _refuse("must run as root, to create interfaces; workers run without privileges")
    if not runs:
        return _run(arguments, Inheritance())
    # There is nothing to reload yet: the file is read after this.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # However this ends, interfaces that nobody serves have no carrier.
    with closing(Inheritance.from_manager()) as inheritance:
        return _run(arguments, inheritance)


def _run(arguments: argparse.Namespace, inheritance: Inheritance) -> int:
    """inheritance: what the service manager has kept, for a velad to go on with."""
    try:
        if arguments.generate_key is not None:
            return _generate_key(_identity_path(arguments.generate_key, arguments.config))
        if arguments.show_key is not None:
            return _show_key(_identity_path(arguments.show_key, arguments.config))
        texts = read_texts(arguments.config)
        # The operator may check a file before the keys are on the machine.
        judge = partial(find_mistakes, awaits_keys=arguments.check)
        config = parse_texts(texts, judge)
    except ConfigError as err:
        print(err, file=sys.stderr)
        return EXIT_CONFIG
    except VelaError as err:
        return _refuse(err)
    if arguments.check:
        for warning in find_lacking(config):
            print(f"{arguments.config}: warning: {warning}", file=sys.stderr)
        beside = len(set(config.files.values()) - {str(arguments.config)})
        with_them = f" and {beside} beside it" if beside else ""
        print(f"{arguments.config}{with_them}: no mistakes, {len(config.circuits)} circuits")
        return EXIT_OK
    configure(config.daemon.log_level, config.daemon.log_format)
    _give_up_standard_streams()
    # The watchdog ends a velad that is stuck with SIGABRT: the log then says where it was.
    faulthandler.enable()
    try:
        if arguments.replace:
            inheritance.close()
            daemon = _replacing(arguments.config, *_confirmed(texts, config))
        else:
            daemon = Daemon(arguments.config, *_confirmed(texts, config), inheritance)
    except (VelaError, OSError) as err:
        return _refuse(err)
    daemon.run()
    return EXIT_OK


def _replacing(path: Path, texts: tuple[Text, ...], config: Config) -> Daemon:
    """Return a daemon that takes over from the one that runs. Raises VelaError or OSError.

    That one then goes on as before.
    """
    predecessor = Predecessor(config.daemon)
    try:
        before = predecessor.receive(config, os.environ)
        return Daemon(path, texts, before, predecessor.inheritance, predecessor)
    except BaseException as err:
        predecessor.fail(str(err) or type(err).__name__)
        raise


def _confirmed(texts: tuple[Text, ...], config: Config) -> tuple[tuple[Text, ...], Config]:
    """Return the configuration, or the one before it if it was on trial when velad ended."""
    log = structlog.get_logger()
    close_directory(config.daemon.state_directory)
    file = TrialFile(config.daemon.state_directory)
    try:
        former = file.former(texts)
        if former is None:
            file.remove()  # it may be about files that have changed since
            return texts, config
        before = parse_texts(former, find_mistakes)
    except VelaError as err:
        log.error("trial_not_taken_back", error=str(err))
        return texts, config
    log.warning("configuration_taken_back", advice="correct the files, and reload")
    return former, before


def _identity_path(given: Path, config: Path) -> Path:
    """Return the file of the private key. Raises ConfigError."""
    if given != _BY_CONFIG:
        return given
    if config == DEFAULT_CONFIG and not os.path.lexists(config):
        return IDENTITY_PATH
    # Without find_mistakes: that the key is missing is one of them.
    return load_config(config).daemon.identity or IDENTITY_PATH


# The process that carries circuits has no use for private keys, and does not load what reads them.


def _generate_key(path: Path) -> int:
    from .config.identity import generate

    public = generate(path)
    print(f"private key: {path}; fingerprint {fingerprint(public)}", file=sys.stderr)
    print(format_public_key(public))
    return EXIT_OK


def _show_key(path: Path) -> int:
    from .config.identity import public_of

    public = public_of(path)
    print(f"fingerprint {fingerprint(public)}", file=sys.stderr)
    print(format_public_key(public))
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


_EXAMPLES = """\
examples:
  velad                                carry the circuits of /etc/vela.toml
  velad --config new.toml --check      what is wrong with this file?
  velad --replace                      take over from the velad that runs: an upgrade
  velad --generate-key                 make this machine's key, for encryption
  velad --show-key                     the peer_key for other machines' configurations

Signals: TERM and INT stop it; HUP makes it read the file again, and circuits that did not change
lose nothing. Exit status: 0 stopped, replaced, or done; 1 the machine refused something; 2 mistakes
in the configuration or the command line.
"""


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.check and (arguments.generate_key or arguments.show_key) is not None:
        parser.error("--check goes with neither --generate-key nor --show-key")
    if arguments.replace and (
        arguments.check or (arguments.generate_key or arguments.show_key) is not None
    ):
        parser.error("--replace goes with --config alone")
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; scripts/manuals describes it, too."""
    parser = argparse.ArgumentParser(
        prog="velad",
        description="Carry Ethernet frames between hosts over UDP, one interface for each circuit.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--config",
        "-c",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="the configuration (default: %(default)s)",
    )
    running.add_argument(
        "--check",
        action="store_true",
        help="only check the configuration for mistakes; change nothing",
    )
    running.add_argument(
        "--replace",
        action="store_true",
        help="take over from the velad that runs with this configuration's control socket, "
        "without an outage; if that cannot be done, it goes on, and the exit status is 1",
    )
    keys = parser.add_argument_group("keys").add_mutually_exclusive_group()
    keys.add_argument(
        "--generate-key",
        nargs="?",
        const=_BY_CONFIG,
        type=Path,
        metavar="PATH",
        help="write a new private key for this machine into a new file, and print its public key "
        "(default: the file that daemon.identity of the configuration names, or else "
        f"{IDENTITY_PATH})",
    )
    keys.add_argument(
        "--show-key",
        nargs="?",
        const=_BY_CONFIG,
        type=Path,
        metavar="PATH",
        help="print the public key of the private key in a file (default: likewise)",
    )
    about = parser.add_argument_group("about")
    about.add_argument("--help", "-h", action="help", help="show this and exit")
    about.add_argument("--version", action="version", version=f"velad {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
