"""velactl's command line: arguments in, exit status out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from vela import __version__
from vela.errors import VelaError

from ..constants import (
    CONTROL_SOCKET,
    DEFAULT_PING,
    LOG_LEVELS,
    MAX_DESCRIPTION,
    MAX_HISTORY_MINUTES,
    MAX_KEEPALIVE_S,
    MAX_PING,
    MAX_TRIAL_S,
    MIN_KEEPALIVE_S,
    MIN_PING,
)
from . import output

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # argparse's
EXIT_NOT_UP = 3

# Longer than three tries of a remote that does not answer, after which there is a reason.
WAIT_S = 15.0

Run = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run one command. Return its exit status."""
    arguments = make_parser().parse_args(argv)
    if arguments.socket is None:
        arguments.socket = _default_socket()
    run: Run = arguments.run
    try:
        return run(arguments)
    except VelaError as err:
        output.warn(err)
        return EXIT_FAILED
    except output.ReaderGone:
        return EXIT_OK
    except KeyboardInterrupt:
        # monitor and top run until they are stopped.
        return EXIT_OK if run in (_monitor, _top) else EXIT_FAILED


def _default_socket() -> str:
    """Return the control socket of the velad that systemd reloads, or the default.

    systemd sets MAINPID for ExecReload. The socket of a running daemon may differ from that in
    its file, which may have changed since the start.
    """
    main_pid = os.environ.get("MAINPID", "")
    if not main_pid.isdecimal():
        return CONTROL_SOCKET
    from .client import find_socket

    return find_socket(int(main_pid)) or CONTROL_SOCKET


# Each command imports its file when it runs.


def _health(arguments: argparse.Namespace) -> int:
    from .status import health

    is_healthy = health(arguments.socket, as_json=arguments.json)
    return EXIT_OK if is_healthy else EXIT_NOT_UP


def _status(arguments: argparse.Namespace) -> int:
    from .status import show

    show(arguments.socket, arguments.circuits, down=arguments.down, as_json=arguments.json)
    return EXIT_OK


def _top(arguments: argparse.Namespace) -> int:
    from .top import top

    top(
        arguments.socket,
        arguments.circuits,
        interval_s=arguments.interval,
        count=arguments.count,
        as_json=arguments.json,
    )
    return EXIT_OK


def _monitor(arguments: argparse.Namespace) -> int:
    from .monitor import monitor

    monitor(arguments.socket, arguments.circuits, as_json=arguments.json)
    return EXIT_OK


def _history(arguments: argparse.Namespace) -> int:
    from .history import history

    history(arguments)
    return EXIT_OK


def _ping(arguments: argparse.Namespace) -> int:
    from .ping import ping

    return EXIT_OK if ping(arguments) else EXIT_NOT_UP


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import doctor

    is_well = doctor(arguments.socket, arguments.circuits, as_json=arguments.json)
    return EXIT_OK if is_well else EXIT_NOT_UP


def _show_config(arguments: argparse.Namespace) -> int:
    from .show_config import show_config

    show_config(arguments.socket, as_json=arguments.json)
    return EXIT_OK


def _add(arguments: argparse.Namespace) -> int:
    from .change import add

    return EXIT_OK if add(arguments) else EXIT_NOT_UP


def _restart(arguments: argparse.Namespace) -> int:
    from .change import restart

    return EXIT_OK if restart(arguments) else EXIT_NOT_UP


def _switch(arguments: argparse.Namespace) -> int:
    from .change import switch

    return EXIT_OK if switch(arguments) else EXIT_NOT_UP


def _reload(arguments: argparse.Namespace) -> int:
    from .reload import reload

    reload(arguments)
    return EXIT_OK


def _log_level(arguments: argparse.Namespace) -> int:
    from .change import log_level

    log_level(arguments)
    return EXIT_OK


def _command(arguments: argparse.Namespace) -> int:
    from .change import command

    command(arguments)
    return EXIT_OK


# Values of options. What velad would refuse in any case is a mistake of the command line.


def _whole(low: int, high: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        return int(_within(int, "a whole number", low, high)(text))

    return whole


def _circuit_id(text: str) -> int:
    from vela.wire import MAX_CIRCUIT_ID, MIN_CIRCUIT_ID

    return _whole(MIN_CIRCUIT_ID, MAX_CIRCUIT_ID)(text)


def _tap_mtu(text: str) -> int:
    from vela.wire import MAX_TAP_MTU, MIN_TAP_MTU

    return _whole(MIN_TAP_MTU, MAX_TAP_MTU)(text)


def _seconds(low: float, high: float) -> Callable[[str], float]:
    return _within(float, "a number", low, high)


def _within(
    kind: Callable[[str], float], noun: str, low: float, high: float
) -> Callable[[str], float]:
    def within(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if not low <= value <= high:  # so written, nan is outside
            raise argparse.ArgumentTypeError(f"{text} is outside {low:g}..{high:g}")
        return value

    return within


def _valid(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Return a type of option whose text parse takes. Its ValueError says what is wrong."""

    def valid(text: str) -> str:
        if not text.isprintable():
            raise argparse.ArgumentTypeError(f"{text!r} has unprintable characters")
        try:
            parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None
        return text

    return valid


def _parse_interface_name(text: str) -> object:
    from vela.address import parse_interface_name

    return parse_interface_name(text)


def _parse_interface(text: str) -> object:
    from vela.address import parse_interface

    return parse_interface(text)


def _parse_remote(text: str) -> object:
    from vela.address import parse_remote

    return parse_remote(text)


def _parse_mac(text: str) -> object:
    from vela.mac import parse_mac

    return parse_mac(text)


def _parse_public_key(text: str) -> object:
    from vela.public_key import parse_public_key

    return parse_public_key(text)


def _parse_description(text: str) -> object:
    size = len(text.encode())
    if size > MAX_DESCRIPTION:
        raise ValueError(f"has {size} bytes; {MAX_DESCRIPTION} fit")
    return text


# The command line.

_EXAMPLES = """\
commands that show:
  status       circuits, their states and rates; one circuit in full
  top          rates, round trip, drops and CPU, live
  monitor      changes of circuits, as they come
  history      what a circuit did in each minute of the last day
  ping         whether the other end's worker answers, and how soon
  doctor       what is usually wrong, what shows it, and what to do
  show-config  the configuration in effect, with all defaults

commands that change:
  add          create a circuit on both machines
  delete       remove it on both machines
  up, down     take it administratively down, and undo that; across restarts
  restart      begin it anew: a new session and a new worker
  switch       let another of its remotes carry it
  reload       read the configuration again
  confirm      keep what reload --confirm has put on trial
  log-level    change what velad logs

Without a command, velactl says in a few lines whether all circuits are up.

examples:
  velactl                              exit status 0: all is well; 3: not all is up
  velactl status --down                which circuits are not up, and why
  velactl add vela7 --remote router9.example.net --address 10.9.0.1/30 --peer-address 10.9.0.2/30

Exit status: 0 done; 1 it could not be done, stderr says why; 2 a mistake in the command line;
3 done, but not all is up. "velactl COMMAND --help" says more of each command.
"""


class _Parser(argparse.ArgumentParser):
    """Long texts stay as they are written, and an option is never guessed from its beginning."""

    def __init__(self, *, examples: str = "", **keywords: Any) -> None:
        if examples:
            keywords["epilog"] = f"examples:\n{examples}"
        keywords["formatter_class"] = argparse.RawDescriptionHelpFormatter
        keywords["allow_abbrev"] = False
        super().__init__(**keywords)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.format_usage()}{self.prog}: error: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; scripts/manuals describes it, too."""
    parser = _Parser(
        prog="velactl",
        description="Control a running velad.",
        epilog=_EXAMPLES,
        usage="velactl [--socket PATH] [--json] [COMMAND ...]",
    )
    parser.add_argument("--version", action="version", version=f"velactl {__version__}")
    _add_common(parser, None, False)
    parser.set_defaults(run=_health)
    # Anywhere on the line. A command sets only what stands behind it.
    common = _Parser(add_help=False)
    _add_common(common, argparse.SUPPRESS, argparse.SUPPRESS)
    commands = parser.add_subparsers(
        dest="command",
        metavar="COMMAND",
        prog="velactl",
        parser_class=_Parser,
        help=argparse.SUPPRESS,
    )

    def make(name: str, run: Run, text: str, examples: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, description=text, examples=examples, parents=[common]
        )
        made.set_defaults(run=run)
        return made

    _describe_showing(make)
    _describe_add(
        make(
            "add",
            _add,
            "Create a circuit at run time, and wait until it is up. The other machine creates its\n"
            "end if its [autoconfigure] allows it. The circuit outlives restarts of both machines.",
            "  velactl add vela7 --remote router9.example.net --address 10.9.0.1/30 \\\n"
            "      --peer-address 10.9.0.2/30\n"
            "  velactl add vela8 --remote 192.0.2.9 --bridge br0 --peer-bridge br-lan --no-wait\n"
            "  velactl add vela9 --remote 192.0.2.9 --static --id 9\n"
            "  velactl add vela3 --remote any --id 3 --key-file /etc/vela/branch3.key\n"
            "                                       the other end calls, from behind a NAT\n",
        )
    )
    _describe_changing(make)
    return parser


Maker = Callable[[str, Run, str, str], argparse.ArgumentParser]


def _add_common(parser: argparse.ArgumentParser, socket: Any, json: Any) -> None:
    parser.add_argument(
        "--socket",
        default=socket,
        metavar="PATH",
        help=f"velad's control socket (default: {CONTROL_SOCKET})",
    )
    parser.add_argument("--json", action="store_true", default=json, help="print JSON")


def _describe_showing(make: Maker) -> None:
    status = make(
        "status",
        _status,
        "Show circuits, those in trouble first; one circuit in full.",
        "  velactl status vela0                 all of one circuit\n"
        "  velactl status --down 'vela*'        what is not up, and why\n"
        "  velactl status --json                everything; docs/status.schema.json\n",
    )
    _add_circuits(status)
    status.add_argument("--down", action="store_true", help="only circuits that should be up")
    top = make(
        "top",
        _top,
        "Show rates, round trip, new drops and the CPU of each worker, until stopped.",
        "  velactl top                          the busiest circuits, each two seconds\n"
        "  velactl top vela0 --interval 1       one circuit\n"
        "  velactl top --count 1                once\n",
    )
    _add_circuits(top)
    top.add_argument(
        "--interval", type=_seconds(0.1, 3600), default=2.0, metavar="SECONDS", help="(default: 2)"
    )
    top.add_argument("--count", type=_whole(1, 10**9), metavar="N", help="end after N screens")
    monitor = make(
        "monitor",
        _monitor,
        "Show changes of circuits as they come, until stopped.",
        "  velactl monitor                      all circuits\n"
        "  velactl monitor 'vela1*'             some of them\n"
        "  velactl monitor --json               an object on each line, for programs\n",
    )
    _add_circuits(monitor)
    history = make(
        "history",
        _history,
        "Show what a circuit did in each of the last minutes, the newest one last: how much of\n"
        "the minute it carried frames, bits per second, and how the other end's worker answered\n"
        "echo requests. velad keeps a day, in memory.",
        "  velactl history vela0                the last hour\n"
        "  velactl history vela0 --minutes 1440 the last day\n"
        "  velactl history vela0 --json         for programs\n",
    )
    _add_circuit(history)
    history.add_argument(
        "--minutes",
        type=_whole(1, MAX_HISTORY_MINUTES),
        default=60,
        metavar="N",
        help="(default: 60)",
    )
    ping = make(
        "ping",
        _ping,
        "Ask the worker of the other end, on the path that frames take: in-circuit echo requests.\n"
        "Exit status 3: none was answered.",
        "  velactl ping vela0                   five times, one each second\n"
        "  velactl ping vela0 --size 1471       as large as an IP packet of 1471 bytes\n"
        "  velactl ping vela0 --count 1000 --interval 0.01 --json\n",
    )
    _add_circuit(ping)
    ping.add_argument("--count", type=_whole(1, 10**6), default=5, metavar="N", help="(default: 5)")
    ping.add_argument(
        "--interval", type=_seconds(0.01, 3600), default=1.0, metavar="SECONDS", help="(default: 1)"
    )
    ping.add_argument(
        "--size",
        type=_whole(MIN_PING, MAX_PING),
        default=DEFAULT_PING,
        metavar="BYTES",
        help=f"of a request, as of an IP packet in the circuit (default: {DEFAULT_PING})",
    )
    doctor = make(
        "doctor",
        _doctor,
        "Find what is usually wrong with the machine and circuits: what was seen, what to do.\n"
        "Nothing is sent and nothing is changed. Exit status 3: something is wrong.",
        "  velactl doctor                       the machine and all circuits\n"
        "  velactl doctor vela0                 the machine and one circuit\n"
        "  velactl doctor --json                for programs\n",
    )
    _add_circuits(doctor)
    make(
        "show-config",
        _show_config,
        "Show the configuration in effect, with all defaults, and with the circuits that commands\n"
        "and other machines set up. Keys are never shown.",
        "  velactl show-config                  as a configuration file\n"
        "  velactl show-config > now.toml       to compare it with another time\n"
        "  velactl show-config --json           for programs\n",
    )


def _describe_changing(make: Maker) -> None:
    for name, text, examples in (
        (
            "delete",
            "Remove a circuit on both machines. One of the file is removed there, by a reload.",
            "  velactl delete vela7\n"
            "  velactl delete vela7 --socket /run/vela/other.sock\n"
            "  velactl delete vela7 --json\n",
        ),
        (
            "up",
            "Undo `velactl down`.",
            "  velactl up vela7\n  velactl up vela7 && velactl status vela7\n"
            "  velactl --json up vela7\n",
        ),
        (
            "down",
            "Take a circuit administratively down, across restarts, until `velactl up`.",
            "  velactl down vela7\n  velactl down vela7 && velactl status vela7\n"
            "  velactl --json down vela7\n",
        ),
    ):
        command = make(name, _command, text, examples)
        _add_circuit(command)
    restart = make(
        "restart",
        _restart,
        "Begin a circuit anew: look for the remote, a new session, a new worker. The interface\n"
        "stays. Waits until the circuit is up again.",
        "  velactl restart vela7                until it is up, or why not\n"
        "  velactl restart vela7 --wait 60      for a minute at most\n"
        "  velactl restart vela7 --no-wait      not at all\n",
    )
    _add_circuit(restart)
    _add_wait(restart)
    switch = make(
        "switch",
        _switch,
        "Let another remote of its list carry a circuit, the next one if none is named. It stays\n"
        "there until it is lost, or until another switch. Waits until the circuit is up there.",
        "  velactl switch vela7                 to the next remote of the list\n"
        "  velactl switch vela7 router2.example.net\n"
        "  velactl switch vela7 --no-wait 192.0.2.9\n",
    )
    _add_circuit(switch)
    switch.add_argument(
        "remote", nargs="?", metavar="REMOTE", help="as in the circuit's list (default: the next)"
    )
    _add_wait(switch)
    _describe_reload(
        make(
            "reload",
            _reload,
            "Read the configuration again, and say what happened to each circuit: nothing; live\n"
            "(its worker stays); new worker (its interface stays); new interface; added; deleted.",
            "  velactl reload --dry-run             what would happen?\n"
            "  velactl reload --confirm 60          and back, unless velactl confirm follows\n"
            "  velad --check && velactl reload      not with mistakes\n"
            "  velactl reload && velactl            and is all up?\n",
        )
    )
    make(
        "confirm",
        _command,
        "Keep the configuration that `velactl reload --confirm` has put on trial.",
        "  velactl reload --confirm 60          a change that may lock you out\n"
        "  velactl confirm                      it still answers: keep it\n"
        "  velactl confirm --socket /run/vela/other.sock\n",
    )
    level = make(
        "log-level",
        _log_level,
        "Change what velad logs, until it ends; without LEVEL: show it.",
        "  velactl log-level                    what is logged?\n"
        "  velactl log-level debug              each control message, too\n"
        "  velactl log-level info               as by default\n",
    )
    level.add_argument("level", nargs="?", choices=LOG_LEVELS, metavar="LEVEL")


def _describe_reload(reload: argparse.ArgumentParser) -> None:
    how = reload.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="only say what would happen")
    how.add_argument(
        "--confirm",
        type=_seconds(1, MAX_TRIAL_S),
        metavar="SECONDS",
        help="go back to what was in effect before after that time, unless velactl confirm follows",
    )
    reload.add_argument(
        "--allow-empty",
        action="store_true",
        help="delete all circuits if the configuration has none any more",
    )


def _add_circuits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "circuits", nargs="*", metavar="CIRCUIT", help="a name or a pattern, as 'vela1*'"
    )


def _add_circuit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("circuit", metavar="CIRCUIT", help="its name")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        dest="wait_s",
        type=_seconds(0.1, 3600),
        default=WAIT_S,
        metavar="SECONDS",
        help=f"the longest wait until it is up (default: {WAIT_S:g})",
    )
    parser.add_argument(
        "--no-wait", dest="wait_s", action="store_const", const=0.0, help="do not wait"
    )


def _describe_add(add: argparse.ArgumentParser) -> None:
    add.usage = "velactl add CIRCUIT --remote HOST[:PORT] [OPTION ...]"
    name, address = _valid(_parse_interface_name), _valid(_parse_interface)
    mac = _valid(_parse_mac)
    add.add_argument("circuit", type=name, metavar="CIRCUIT", help="name of the interface here")
    add.add_argument(
        "--remote",
        type=_valid(_parse_remote),
        action="append",
        required=True,
        metavar="HOST[:PORT]",
        help="the other machine; repeated: those that stand by for the first one; any: it calls",
    )
    add.add_argument(
        "--id",
        type=_circuit_id,
        metavar="N",
        help="1..255 (default: the next free one)",
    )
    add.add_argument(
        "--description",
        type=_valid(_parse_description),
        metavar="TEXT",
        help="shown in the status and the log, and as the interface's alias",
    )
    for title, option in (("this end", ""), ("the other end", "peer-")):
        group = add.add_argument_group(title)
        group.add_argument(
            f"--{option}address",
            type=address,
            action="append",
            metavar="ADDRESS/LENGTH",
            help="its interface's address; may be repeated",
        )
        group.add_argument(
            f"--{option}bridge", type=name, metavar="NAME", help="bridge that its interface joins"
        )
        group.add_argument(f"--{option}mac", type=mac, metavar="MAC", help="its interface's MAC")
        if option:
            group.add_argument(
                "--peer-interface", type=name, metavar="NAME", help="its interface's name"
            )
    rest = add.add_argument_group("transport")
    rest.add_argument(
        "--mtu",
        type=_tap_mtu,
        metavar="BYTES",
        help="MTU of the interface (default: from the route)",
    )
    rest.add_argument("--family", choices=("any", "ipv4", "ipv6"), help="underlay IP version")
    rest.add_argument(
        "--key-file", type=os.path.abspath, metavar="PATH", help="file with the key shared with it"
    )
    rest.add_argument(
        "--encryption", choices=("none", "required"), help="of frames (default: none)"
    )
    rest.add_argument(
        "--peer-key",
        type=_valid(_parse_public_key),
        metavar="KEY",
        help="public key of the other machine",
    )
    rest.add_argument(
        "--keepalive",
        type=_seconds(MIN_KEEPALIVE_S, MAX_KEEPALIVE_S),
        metavar="SECONDS",
        help="interval of keepalives (default: 5)",
    )
    rest.add_argument("--static", action="store_true", help="no handshake: create this end only")
    _add_wait(add)
