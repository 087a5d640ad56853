"""Load over a circuit whose content a capture can be searched for: in both directions, any time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lab.namespace import Namespace
from lab.topology import TwoRouters

INNER_A, INNER_B = "172.16.16.1", "172.16.16.2"
MARK = b"no one may read "

# Marked UDP datagrams, short and long, in bursts; each has another content. It ends with its input.
_LOAD = """
import select, socket, sys
remote, mark, burst, interval_s = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), sys.argv[4]
number = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.bind(("", 9))
    while not select.select([sys.stdin], [], [], float(interval_s))[0]:
        for _ in range(burst):
            number += 1
            body = mark * 2 + number.to_bytes(8)
            try:
                sender.sendto(body.ljust(1400 if number % 8 == 0 else 64, b"."), (remote, 9))
            except OSError:
                break  # no interface, no route, or a full queue: later
"""


@contextmanager
def load(routers: TwoRouters, burst: int = 10, interval_s: float = 0.01) -> Iterator[None]:
    """Marked datagrams both ways, whether or not there is a circuit. Rates are per direction."""
    with ExitStack() as stack:
        for router, remote in ((routers.a, INNER_B), (routers.b, INNER_A)):
            words = (remote, MARK.decode(), str(burst), f"{interval_s:g}")
            stack.callback(_end, _start(router.namespace, words))
        yield


def _start(namespace: Namespace, words: Sequence[str]) -> subprocess.Popen[str]:
    return namespace.popen(sys.executable, "-c", _LOAD, *words, stdin=subprocess.PIPE)


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
