"""What makes the change from one session to the next one take its time, in a real velad."""

from __future__ import annotations

HEARS_LATE = """
import sys
from vela.signaling import adjacency
from vela.signaling.inputs import State
from vela.signaling.messages import MessageType
take_keepalive = adjacency.Adjacency.take_keepalive
linked_at = {}
def hears_late(self, received):
    if self._vars.state is State.LINKED:
        link = self._vars.link.local_nonce
        if link not in linked_at:
            print("another session follows", file=sys.stderr, flush=True)
        since = linked_at.setdefault(link, received.now)
        if received.now < since + 1.0:
            return
        print("it has followed", file=sys.stderr, flush=True)
    take_keepalive(self, received)
adjacency.Adjacency.take_keepalive = hears_late
adjacency.ACTIONS[MessageType.KEEPALIVE] = hears_late
"""
"""A second from the first KEEPALIVE of a session to its being up; velad says both on stderr."""
