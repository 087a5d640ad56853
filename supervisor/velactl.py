"""velactl: the command line of a running velad."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vela import __version__
from vela.errors import VelaError
from vela.linux.features import ALL_FEATURES, words

from .config.records import DaemonConfig
from .control_socket import ask, find_socket

TIMEOUT_S = 5.0
# Hundreds of circuits may change; systemd waits 90 s.
RELOAD_TIMEOUT_S = 60.0

EXIT_OK = 0
EXIT_FAILED = 1

Document = Mapping[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run one command. Return its exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.socket is None:
        arguments.socket = _default_socket()
    try:
        command: Callable[[argparse.Namespace], int] = arguments.run
        return command(arguments)
    except VelaError as err:
        print(f"velactl: {err}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. The interpreter flushes the rest of the
        # buffer when it ends; without another target it exits with 120 (Python 3.13).
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    status: dict[str, Any] = dict(ask(arguments.socket, {"command": "status"}, TIMEOUT_S))
    if arguments.circuit is not None:
        status["circuits"] = [
            circuit for circuit in status["circuits"] if circuit["name"] == arguments.circuit
        ]
        if not status["circuits"]:
            raise VelaError(f"there is no circuit {arguments.circuit}")
    if arguments.json:
        print(json.dumps(status, indent=2))
    elif arguments.circuit is not None:
        print("\n".join(_details(status["circuits"][0])))
    else:
        print("\n".join(_summary(status)))
    sys.stdout.flush()
    return EXIT_OK


def _add(arguments: argparse.Namespace) -> int:
    settings: dict[str, object] = {"remote": arguments.remote}
    peer: dict[str, object] = {}
    for table, key, value in (
        (settings, "id", arguments.id),
        (settings, "addresses", arguments.address),
        (settings, "bridge", arguments.bridge),
        (settings, "mac", arguments.mac),
        (settings, "mtu", arguments.mtu),
        (settings, "family", arguments.family),
        (settings, "key_file", arguments.key_file and str(arguments.key_file.absolute())),
        (settings, "keepalive", arguments.keepalive),
        (settings, "encryption", arguments.encryption),
        (settings, "peer_key", arguments.peer_key),
        (peer, "addresses", arguments.peer_address),
        (peer, "bridge", arguments.peer_bridge),
        (peer, "interface", arguments.peer_interface),
        (peer, "mac", arguments.peer_mac),
    ):
        if value is not None:
            table[key] = value
    if arguments.static:
        settings["autoconfigure"] = False
    if peer:
        settings["peer"] = peer
    request = {"command": "add", "circuit": arguments.circuit, "settings": settings}
    added = ask(arguments.socket, request, TIMEOUT_S)
    print(f"{added['circuit']}: id {added['id']}, toward {arguments.remote}")
    return EXIT_OK


def _command(arguments: argparse.Namespace) -> int:
    """Send a command that has no argument but the name of a circuit, and prints nothing."""
    request = {"command": arguments.command}
    if "circuit" in arguments:
        request["circuit"] = arguments.circuit
    timeout_s = RELOAD_TIMEOUT_S if arguments.command == "reload" else TIMEOUT_S
    ask(arguments.socket, request, timeout_s)
    return EXIT_OK


def _default_socket() -> Path:
    """Return the control socket of the velad that systemd reloads, or the default.

    systemd sets MAINPID for ExecReload. The socket of a running daemon may differ from that in
    its file, which may have changed since the start.
    """
    main_pid = os.environ.get("MAINPID", "")
    found = find_socket(int(main_pid)) if main_pid.isdecimal() else None
    return found or DaemonConfig().control_socket


def _summary(status: Document) -> list[str]:
    """Return a line about the daemon, and a table of its circuits."""
    uptime, listen = _duration(status["uptime_seconds"]), ", ".join(status["listen"])
    lines = [f"velad {status['version']}, pid {status['pid']}, up {uptime}, listening on {listen}"]
    # A velad that runs since before an update may not report them.
    used = status.get("engine_features", words(ALL_FEATURES))
    unused = [word for word in words(ALL_FEATURES) if word not in used]
    if unused:
        lines.append(f"kernel features not in use: {', '.join(unused)}")
    dropped = _reasons(status["rx_dropped"])
    if dropped:
        lines.append(f"dropped: {dropped}")
    if not status["circuits"]:
        return [*lines, "no circuits"]
    header = ("CIRCUIT", "ID", "STATE", "REMOTE", "MTU", "CPU", "TX", "RX", "DROPPED", "RESTARTS")
    rows = [header, *(_row(circuit) for circuit in status["circuits"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines.append("")
    lines.extend(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    lines.extend(
        f"{circuit['name']}: {circuit['reason']}"
        for circuit in status["circuits"]
        if circuit["reason"]
    )
    return lines


def _row(circuit: Document) -> tuple[str, ...]:
    counters, worker = circuit["counters"], circuit["worker"]
    dropped = sum(counters["rx_dropped"].values()) + sum(counters["tx_dropped"].values())
    return (
        circuit["name"],
        str(circuit["id"]),
        circuit["state"],
        circuit["remote_address"] or circuit["remote"],
        str(circuit["mtu"]),
        str(worker["cpu"]) if worker else "-",
        _octets(counters["tx_bytes"]),
        _octets(counters["rx_bytes"]),
        str(dropped + counters["tx_errors"]),
        str(worker["restarts"]) if worker else "-",
    )


def _details(circuit: Document) -> list[str]:
    """Return all fields of one circuit, one line each."""
    counters, worker = circuit["counters"], circuit["worker"]
    state = circuit["state"] + (f": {circuit['reason']}" if circuit["reason"] else "")
    remote = circuit["remote"]
    if circuit["remote_address"]:
        remote += f", {circuit['remote_address']} port {circuit['remote_port']}"
    sending = f"{circuit['encapsulation']}, headers {'elided' if circuit['elision'] else 'sent'}"
    facts = [
        ("circuit", f"{circuit['name']}, id {circuit['id']}, from {circuit['origin']}"),
        ("state", state),
        ("remote", remote),
        ("heard", _heard(circuit)),
        ("mtu", f"{circuit['mtu']} bytes"),
        ("encapsulation", sending),
        ("encryption", _encryption(circuit)),
        (
            "worker",
            f"{_process(worker)}, CPU {worker['cpu']}, {worker['engine']}, "
            f"{worker['restarts']} restarts"
            if worker
            else "none",
        ),
        ("sent", _traffic(counters, "tx")),
        ("received", _traffic(counters, "rx")),
        ("fragmented", _fragmented(counters)),
        ("errors", f"{counters['tx_errors']} frames not sent"),
        ("dropped", _reasons({**counters["tx_dropped"], **counters["rx_dropped"]}) or "nothing"),
    ]
    return [f"{name:<14}{value}" for name, value in facts]


def _encryption(circuit: Document) -> str:
    # A velad that was not started again since an update may not say.
    text, cipher = str(circuit.get("encryption", "none")), circuit.get("cipher")
    if cipher is None:
        return text if text == "none" else f"{text}, and not encrypted at present: no frame passes"
    peer = cipher["peer_fingerprint"]
    return (
        f"{text}; {cipher['suite']}, {cipher['pattern']}, "
        f"{f'peer {peer}' if peer else 'pre-shared key alone'}, "
        f"generation {cipher['generation']}, {_duration(cipher['age_seconds'])} old, "
        f"{cipher['frames_left']} frames left"
    )


def _process(worker: Document) -> str:
    return "no process" if worker["pid"] is None else f"pid {worker['pid']}"


def _heard(circuit: Document) -> str:
    if circuit["last_heard_seconds"] is None:
        return "no control messages"
    text = f"{circuit['last_heard_seconds']:.1f} s ago"
    return text + (f", round trip {circuit['rtt_ms']:.3f} ms" if circuit["rtt_ms"] else "")


def _traffic(counters: Document, way: str) -> str:
    return (
        f"{counters[f'{way}_frames']} frames, {_octets(counters[f'{way}_bytes'])}, "
        f"{counters[f'{way}_elided']} elided"
    )


def _fragmented(counters: Document) -> str:
    # As above, of an older velad.
    sent, received = counters.get("tx_pieced", 0), counters.get("rx_joined", 0)
    text = f"{counters['tx_fragmented']} datagrams"
    if sent or received:
        text += f"; in pieces {sent} frames sent, {received} received"
    return text


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)


def _octets(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="velactl", description="Control a running velad.")
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help=f"velad's control socket (default: {DaemonConfig().control_socket})",
    )
    parser.add_argument("--version", action="version", version=f"velactl {__version__}")
    commands: Any = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="show circuits, their states and counters")
    status.add_argument("circuit", nargs="?", metavar="CIRCUIT", help="this one in full")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    _describe_add(commands.add_parser("add", help="create a circuit on both machines"))
    for name, text in (
        ("delete", "remove a circuit on both machines"),
        ("up", "undo down"),
        ("down", "take a circuit administratively down, across restarts"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("circuit", metavar="CIRCUIT")
        command.set_defaults(run=_command)
    reload = commands.add_parser(
        "reload", help="read the configuration again; unchanged circuits lose no frame"
    )
    reload.set_defaults(run=_command)
    return parser


def _describe_add(add: argparse.ArgumentParser) -> None:
    add.description = (
        "Create a circuit at run time. The other machine creates its end if its [autoconfigure] "
        "allows it. The circuit survives restarts of both machines."
    )
    add.add_argument("circuit", metavar="CIRCUIT", help="name of the interface here")
    add.add_argument("--remote", required=True, metavar="HOST[:PORT]", help="the other machine")
    add.add_argument("--id", type=int, metavar="N", help="1..255 (default: the next free one)")
    for option, whose in (("", "this"), ("peer-", "the other")):
        add.add_argument(
            f"--{option}address",
            action="append",
            metavar="ADDRESS/LENGTH",
            help=f"address of {whose} end's interface; may be repeated",
        )
        add.add_argument(
            f"--{option}bridge", metavar="NAME", help=f"bridge that {whose} end's interface joins"
        )
        add.add_argument(f"--{option}mac", metavar="MAC", help=f"MAC of {whose} end's interface")
    add.add_argument("--peer-interface", metavar="NAME", help="name of the interface there")
    add.add_argument(
        "--mtu", type=int, metavar="BYTES", help="MTU of the interface (default: from the route)"
    )
    add.add_argument("--family", choices=("any", "ipv4", "ipv6"), help="underlay IP version")
    add.add_argument(
        "--key-file", type=Path, metavar="PATH", help="file with the key shared with it"
    )
    add.add_argument("--encryption", choices=("none", "required"), help="of frames (default: none)")
    add.add_argument("--peer-key", metavar="KEY", help="public key of the other machine")
    add.add_argument(
        "--keepalive", type=float, metavar="SECONDS", help="interval of keepalives (default: 5)"
    )
    add.add_argument("--static", action="store_true", help="no handshake: create this end only")
    add.set_defaults(run=_add)


if __name__ == "__main__":
    sys.exit(main())
