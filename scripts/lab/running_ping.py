"""A ping that goes on, and what is missing of its replies."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lab.namespace import Namespace
from lab.waiting import eventually

_REPLY = re.compile(r"^\[([0-9.]+)\] .* icmp_seq=(\d+) ")


@dataclass
class RunningPing:
    """The replies, as they come."""

    output: Path
    process: subprocess.Popen[str]
    times: dict[int, float] = field(default_factory=dict)
    """Unix time of each reply, by the number of its request."""

    def read(self) -> dict[int, float]:
        found = (_REPLY.match(line) for line in self.output.read_text().splitlines())
        self.times = {int(each[2]): float(each[1]) for each in found if each}
        return self.times

    def await_reply(self, since: float) -> None:
        eventually(lambda: max(self.read().values(), default=0.0) > since, 10, "a reply")

    def outage(self, since: float) -> tuple[float, int]:
        """Return the longest time without a reply since then, in seconds, and what was lost."""
        times = sorted((at, number) for number, at in self.read().items())
        pairs = [(a, b) for a, b in pairwise(times) if b[0] > since]
        longest = max(b[0] - a[0] for a, b in pairs)
        return longest, sum(b[1] - a[1] - 1 for a, b in pairs if b[1] > a[1])


@contextmanager
def pinging(
    namespace: Namespace, address: str, folder: Path, *, limit_s: int = 200
) -> Iterator[RunningPing]:
    """A request each 10 ms inside, for limit_s at most; output goes into folder."""
    output = folder / "pings"
    with output.open("w") as file:
        process = namespace.popen(
            *("stdbuf", "-oL", "ping", "-D", "-n", "-i", "0.01", "-w", str(limit_s), address),
            stdout=file,
        )
        try:
            pings = RunningPing(output, process)
            pings.await_reply(0.0)
            yield pings
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
