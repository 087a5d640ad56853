"""Probes of the path to a circuit's remote: a PathMtu at work."""

from __future__ import annotations

import math
from dataclasses import replace

from vela.address import Endpoint, Family
from vela.linux.underlay import UnderlayPath
from vela.signaling.path_mtu import PathMtu
from vela.wire import IP_HEADER, MAX_CIRCUIT_ID, MIN_IPV6_MTU, UDP_HEADER

from ..runtime.loop import Callback, EventLoop, Timer
from .signaling import SignalingChannel

# Every path carries so much: RFC 8200, section 5; of IPv4 all but a few do (RFC 791, section 3.1).
FLOOR = {Family.IPV4: 576, Family.IPV6: MIN_IPV6_MTU}

FIRST_S, SPREAD_S = 5.0, 1.0
"""From when the session is up to the first probe of an idle circuit: at least, and by circuit id.
Hundreds come up at once, and have more urgent things to say. One with traffic is probed at once."""


class PathProber:
    """Searches while the session is up, and knows what was found of the remote's endpoint."""

    def __init__(self, loop: EventLoop, on_changed: Callback) -> None:
        """on_changed: to be called when narrow() begins to return another path."""
        self._loop = loop
        self._on_changed = on_changed
        self._found = PathMtu()
        self._probed: tuple[Endpoint, int] | None = None
        self._signaling: SignalingChannel | None = None
        self._frames = 0
        self._timer: Timer | None = None

    def start(self, path: UnderlayPath, signaling: SignalingChannel) -> None:
        """Search on the path of a session that is up. What is known of the path stays."""
        self._signaling = signaling
        ceiling = path.route.mtu
        # Hundreds of circuits come up at once.
        at = self._loop.now() + FIRST_S + SPREAD_S * signaling.session.circuit_id / MAX_CIRCUIT_ID
        if self._probed != (path.endpoint, ceiling):
            self._probed = path.endpoint, ceiling
            family = path.endpoint.family
            self._found.start(ceiling, FLOOR[family], signaling.session.rtt_s, at)
        else:
            self._found.resume(at)
        self._go_on()

    def resume(self, path: UnderlayPath, probed_mtu: int | None) -> UnderlayPath:
        """Return the path with what another velad has found of it, and know that, too."""
        ceiling = path.route.mtu
        if probed_mtu is not None and probed_mtu < ceiling:
            self._probed = path.endpoint, ceiling
            self._found.recall(ceiling, FLOOR[path.endpoint.family], probed_mtu)
        return self.narrow(path)

    def stop(self) -> None:
        """Send nothing until start()."""
        self._signaling = None
        self._found.stop()
        self._set_timer()

    def narrow(self, path: UnderlayPath) -> UnderlayPath:
        """Return the path with what probes have found of it."""
        is_probed = self._probed == (path.endpoint, path.route.mtu)
        if not is_probed or self._found.mtu >= path.route.mtu:
            return path
        return replace(path, probed_mtu=self._found.mtu)

    def answered(self, size: int) -> None:
        """Take note of an answer to a probe of this size, in bytes of UDP payload."""
        if self._probed is not None:
            self._found.answered(size + self._headers())

    def note_traffic(self, frames: int) -> None:
        """frames: how many the circuit has sent. To be called once a second."""
        if frames != self._frames and self._signaling is not None:
            self._found.note_traffic(self._loop.now())
            self._set_timer()
        self._frames = frames

    def _headers(self) -> int:
        assert self._probed is not None
        return IP_HEADER[self._probed[0].family] + UDP_HEADER

    def _go_on(self) -> None:
        signaling = self._signaling
        if signaling is not None:
            for size in self._found.sizes_to_probe():
                signaling.session.probe(size - self._headers())
            signaling.pump()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._found.next_timer()
        if at < math.inf:
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        changed = self._found.handle_timer(self._loop.now())
        self._go_on()
        if changed:
            self._on_changed()
