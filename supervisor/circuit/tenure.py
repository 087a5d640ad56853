"""How long a circuit that another machine set up is kept while that machine is silent. Pure."""

from __future__ import annotations

# Once it was up for so long at a stretch it is kept for ever, as one of a machine that is away.
PROOF_S = 60.0
# Else it goes when the machine was silent for so long. If the machine comes back, it asks again.
PATIENCE_S = 300.0


class Tenure:
    """Of one circuit. now is monotonic seconds; update() is to be called about once a second."""

    def __init__(self, now: float, *, proven: bool = False) -> None:
        self.proven = proven
        """It is kept, whatever comes."""
        self._silent_since: float = now
        self._up_since: float | None = None

    def update(self, now: float, *, up: bool, excused: bool = False) -> None:
        """Take note of what the circuit is.

        excused: that it is not up is not the remote's fault.
        """
        if not up:
            self._up_since = None
            if excused:
                self._silent_since = now
            return
        if self._up_since is None:
            self._up_since = now
        self._silent_since = now
        self.proven |= now - self._up_since >= PROOF_S

    def has_ended(self, now: float) -> bool:
        """Tell whether the circuit is to be removed."""
        return not self.proven and now - self._silent_since >= PATIENCE_S
