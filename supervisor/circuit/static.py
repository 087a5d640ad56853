"""A circuit that both ends are configured for: no handshake, nobody tells whether it is up."""

from __future__ import annotations

from vela.dataplane.frame import Elision
from vela.errors import VelaError
from vela.supervisor.circuit.circuit import Circuit, State
from vela.supervisor.circuit.pseudowire import Path, Profile

from ..config.records import Encapsulation


class StaticCircuit(Circuit):
    """Carries frames as soon as the remote's address is known."""

    def _on_path(self, path: Path) -> None:
        try:
            self._wire.attach(path, self._profile(path))
            self._wire.set_carrier(True)
        except VelaError:
            # Nor may it go on along the way that was: that is not what the state tells.
            self._carry_nothing()
            raise
        self._become(State.UNMONITORED)

    def _on_no_path(self, reason: str) -> None:
        self._carry_nothing()
        self._become(State.DOWN, reason)

    def _carry_nothing(self) -> None:
        self._wire.detach()
        self._show_carrier(False)

    def _profile(self, path: Path) -> Profile:
        return Profile(
            mtu=self._own_mtu(path),
            elision=self._elision,
            remote_mac=self.config.peer.mac,
            leave_checksums=self._elision is Elision.KNOWN and self.config.peer.checksum_offload,
            source_port=self._source_port(path),
        )

    @property
    def _elision(self) -> Elision:
        match self.config.encapsulation:
            case Encapsulation.IP:
                return Elision.ALWAYS
            case Encapsulation.AUTO if self.config.peer.mac is not None:
                return Elision.KNOWN
            case _:
                return Elision.NEVER
