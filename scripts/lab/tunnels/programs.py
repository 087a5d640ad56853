"""A tunnel that is one userspace program, in the foreground at both ends, with a TAP of its own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.topology import TwoRouters
from lab.tunnels.tunnel import (
    READY_TIMEOUT_S,
    End,
    Segment,
    Tunnel,
    await_interface,
    await_whole_packets,
    ends,
    need_program,
    port,
    set_up,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a program is to make: both ends, the MTU of their interfaces, the UDP port of both."""

    ends: tuple[End, End]
    mtu: int
    port: int
    directory: Path
    """Temporary, for configuration; nobody else may read it."""

    def other(self, end: End) -> End:
        return self.ends[1] if end is self.ends[0] else self.ends[0]


Commands = Callable[[Plan], tuple[list[str], list[str]]]
"""Writes what the program wants to read, and returns the command lines of both ends."""


def program_tunnel(program: str, name: str, overhead: int, commands: Commands) -> Tunnel:
    """Return the tunnel that a program makes; its interfaces begin with name.

    overhead is what it adds to a packet of the interface, in bytes, all headers.
    """

    @contextmanager
    def tunnel(routers: TwoRouters, number: int) -> Iterator[Segment]:
        need_program(program)
        pair = ends(routers, number, name)
        mtu = routers.a.underlay.mtu - overhead
        with tempfile.TemporaryDirectory(prefix="vela-lab-") as directory:
            plan = Plan(pair, mtu, port(number), Path(directory))
            with _running(plan, commands(plan)) as segment:
                yield segment

    return tunnel


@contextmanager
def _running(plan: Plan, commands: tuple[list[str], list[str]]) -> Iterator[Segment]:
    started: list[subprocess.Popen[str]] = []
    log_path = plan.directory / "log"
    try:
        with log_path.open("ab") as log:
            for end, command in zip(plan.ends, commands, strict=True):
                started.append(end.namespace.popen(*command, stdout=log, stderr=log))
        segment = Segment(*plan.ends, plan.mtu, tuple(process.pid for process in started))
        try:
            for end in plan.ends:
                await_interface(end)
                set_up(end, plan.mtu)
            await_whole_packets(segment)
        except LabError as err:
            err.add_note(f"{commands[0][0]} said:\n{log_path.read_text(errors='replace')}")
            raise
        yield segment
    finally:
        for process in started:
            process.terminate()
        for process in started:
            _reap(process)


def _reap(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(READY_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
