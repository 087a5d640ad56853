"""What both ends know of a session before it has keys; each handshake is bound to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_PROLOGUE = b"vela encryption 1"


@dataclass(frozen=True, slots=True)
class SessionName:
    """What both ends know of a session before it has keys."""

    initiator_nonce: int
    responder_nonce: int
    circuit_id: int

    def prologue(self, confirm_tlvs: bytes) -> bytes:
        """Return the prologue of the first generation: the TLVs of the CONFIRM but NOISE_1.

        A capability, an MTU or a suite that somebody changed on the way breaks the handshake.
        """
        return self._head() + confirm_tlvs

    def rekey_prologue(self, generation: int) -> bytes:
        # Four bytes; the TLVs of a CONFIRM are forty at least.
        return self._head() + generation.to_bytes(4)

    def _head(self) -> bytes:
        nonces = self.initiator_nonce.to_bytes(8) + self.responder_nonce.to_bytes(8)
        return _PROLOGUE + nonces + bytes([self.circuit_id])
