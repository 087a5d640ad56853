"""The commands that change something: add, delete, up, down, restart, switch, log-level."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from vela.reasons import Cause

from ..states import WELL
from . import output
from .client import Document, ask
from .wait import until_up, watched

# An end that calls already does so each second.
CALL_S = 2.0


def add(arguments: Namespace) -> bool:
    """Create a circuit. Return whether it is up, or not to be waited for. Raises VelaError."""
    request = {"command": "add", "circuit": arguments.circuit, "settings": settings(arguments)}
    is_called = [each.lower() for each in arguments.remote] == ["any"]
    if not arguments.wait_s:
        _show_added(ask(arguments.socket, request), arguments)
        return True
    with watched(arguments.socket) as connection:
        added = connection.ask(request)
        if not arguments.json:
            _show_added(added, arguments)
        wait_s = min(arguments.wait_s, CALL_S) if is_called else arguments.wait_s
        last = until_up(connection, arguments.circuit, wait_s)
    if last is not None and last.get("reason_code") == Cause.AWAITING_CALL.code:
        # It does what it is to do: the other end may not even be configured yet.
        _show_awaits(added, last, arguments)
        return True
    return _report(arguments, added, last, "added")


def restart(arguments: Namespace) -> bool:
    """Begin a circuit anew. Return whether it is up, or not to be waited for. Raises VelaError."""
    request = {"command": "restart", "circuit": arguments.circuit}
    if not arguments.wait_s:
        _show_reply(ask(arguments.socket, request), arguments)
        return True
    with watched(arguments.socket) as connection:
        reply = connection.ask(request)
        last = until_up(connection, arguments.circuit, arguments.wait_s)
    return _report(arguments, reply, last, "restarted")


def command(arguments: Namespace) -> None:
    """Carry out a command that has no argument but the name of a circuit. Raises VelaError."""
    request = {"command": arguments.command}
    if "circuit" in arguments:
        request["circuit"] = arguments.circuit
    _show_reply(ask(arguments.socket, request), arguments)


def log_level(arguments: Namespace) -> None:
    """Set the level of velad's log, or show it. Raises VelaError."""
    request = {"command": "log-level"}
    if arguments.level is not None:
        request["level"] = arguments.level
    reply = ask(arguments.socket, request)
    if arguments.json:
        output.write_json(reply)
    elif arguments.level is None:
        output.write([reply["level"]])


def settings(arguments: Namespace) -> dict[str, object]:
    """Return the table of a circuit, as in the configuration file, of the options of `add`."""
    remotes = arguments.remote
    table: dict[str, object] = {"remote": remotes if len(remotes) > 1 else remotes[0]}
    peer: dict[str, object] = {}
    for target, key, value in (
        (table, "id", arguments.id),
        (table, "description", arguments.description),
        (table, "addresses", arguments.address),
        (table, "bridge", arguments.bridge),
        (table, "mac", arguments.mac),
        (table, "mtu", arguments.mtu),
        (table, "family", arguments.family),
        (table, "key_file", arguments.key_file),
        (table, "keepalive", arguments.keepalive),
        (table, "encryption", arguments.encryption),
        (table, "peer_key", arguments.peer_key),
        (peer, "addresses", arguments.peer_address),
        (peer, "bridge", arguments.peer_bridge),
        (peer, "interface", arguments.peer_interface),
        (peer, "mac", arguments.peer_mac),
    ):
        if value is not None:
            target[key] = value
    if arguments.static:
        table["autoconfigure"] = False
    if peer:
        table["peer"] = peer
    return table


def switch(arguments: Namespace) -> bool:
    """Let a circuit use another remote. Return whether it is up there. Raises VelaError."""
    request = {"command": "switch", "circuit": arguments.circuit}
    if arguments.remote is not None:
        request["remote"] = arguments.remote
    if not arguments.wait_s:
        _show_reply(ask(arguments.socket, request), arguments)
        return True
    with watched(arguments.socket) as connection:
        reply = connection.ask(request)
        last = until_up(connection, arguments.circuit, arguments.wait_s)
    is_up = _report(arguments, reply, last, f"switched to {reply['remote']}")
    if not is_up or last is None or last["remote"] == reply["remote"]:
        return is_up
    output.warn(f"{arguments.circuit} is up, but not there: {last['reason']}")
    return False


def _show_added(added: Document, arguments: Namespace) -> None:
    if arguments.json:
        output.write_json(added)
    else:
        toward = ", ".join(arguments.remote)
        output.write([f"{added['circuit']}: id {added['id']}, toward {toward}"])


def _show_awaits(added: Document, last: Document, arguments: Namespace) -> None:
    if arguments.json:
        output.write_json(
            {
                **added,
                "state": last["state"],
                "reason": last["reason"],
                "reason_code": last["reason_code"],
            }
        )
        return
    name, number = added["circuit"], added["id"]
    output.write(
        [
            f"{name} waits for the other end to call: there, `remote` is this machine, "
            f"with id {number} and the same key"
        ]
    )


def _show_reply(reply: Document, arguments: Namespace) -> None:
    if arguments.json:
        output.write_json(reply)


def _report(arguments: Namespace, reply: Document, last: Document | None, done: str) -> bool:
    """Say what became of a circuit. Return whether it is up."""
    name = arguments.circuit
    is_up = last is not None and last["state"] in WELL
    if last is not None and "id" in reply and last["id"] != reply["id"]:
        if not arguments.json:
            output.write([f"{name}: id {last['id']}, as {reply['id']} is taken on the other end"])
        reply = {**reply, "id": last["id"]}
    if arguments.json:
        shown: dict[str, Any] = dict(reply)
        shown["state"] = None if last is None else last["state"]
        shown["reason"] = "it was removed" if last is None else last["reason"]
        shown["reason_code"] = "" if last is None else last.get("reason_code", "")
        output.write_json(shown)
    elif last is None:
        output.warn(f"{name} was {done}, but is no longer there")
    elif not is_up:
        why = last["reason"] or f"not up after {arguments.wait_s:g} s"
        output.warn(f"{name} was {done}, but is not up: {last['state']}: {why}")
        output.warn(f"velad goes on trying: velactl status {name}")
    return is_up
