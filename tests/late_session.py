"""What makes the change from one session to the next one take its time, in a real velad."""

from __future__ import annotations

HEARS_LATE = """
import sys
from vela.signaling.adjacency import Adjacency
from vela.signaling.inputs import State
take_keepalive = Adjacency.take_keepalive
linked_at = {}
def hears_late(self, received):
    if self._vars.state is State.LINKED:
        link = self._vars.link.local_nonce
        if link not in linked_at:
            print("another session follows", file=sys.stderr, flush=True)
        since = linked_at.setdefault(link, received.now)
        if received.now < since + 1.0:
            return
    take_keepalive(self, received)
Adjacency.take_keepalive = hears_late
"""
"""A second from the first KEEPALIVE of a session to the session's being up."""
