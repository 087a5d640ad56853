"""Whose CONFIRM begins a session of a circuit. Pure.

docs/protocol.md, sections 4.5 and 4.10.
"""

from __future__ import annotations

from vela.address import IPAddress
from vela.signaling.identity import maker_of
from vela.signaling.messages import CipherOffer, Confirm, Description, RejectCode
from vela.signaling.policy import Policy, Rejection
from vela.signaling.suites import refusal

# A machine that crashed, or is cut off for a while, keeps its circuits.
TAKE_OVER_AFTER_S = 60.0
ANOTHER_MACHINE_TEXT = (
    "another machine set this circuit up, and was heard within the last "
    f"{TAKE_OVER_AFTER_S:g} s; take another id, or delete it on the other end"
)


class Admission:
    """The rules of one circuit, and the machine that set it up."""

    def __init__(self, policy: Policy | None, maker: bytes | None) -> None:
        """Begin with what is known. policy: of a circuit that the remote set up."""
        self.policy = policy
        self.maker = maker
        """Which machine set the circuit up; None: not known, or this one."""
        self._quiet_since: float | None = None
        # The remote closed the last session.
        self._is_left = False
        # Why this end carries nothing, and how the remote described itself then.
        self._obstacle = Rejection(RejectCode.FAILED, "")
        self._suspended_for: Description | None = None

    def start(self, now: float) -> None:
        """Give the machine that set the circuit up its time from now on."""
        self._quiet_since = now

    def leave(self) -> None:
        """Let another machine have the circuit, as the one before said goodbye."""
        self._is_left = True

    def suspend(self, obstacle: Rejection, remote: Description | None) -> None:
        """Take note of why this end carries nothing. remote: how it described itself, if known."""
        self._obstacle, self._suspended_for = obstacle, remote

    def change_obstacle(self, obstacle: Rejection) -> None:
        """Take note of another obstacle since suspend()."""
        self._obstacle = obstacle

    def obstacle(self, message: Confirm) -> Rejection | None:
        """Return why a CONFIRM is refused while this end carries nothing.

        None: the remote is another one than then, with which it may work.
        """
        is_same = self._suspended_for in (None, message.description)
        return self._obstacle if is_same else None

    def admit(self, message: Confirm) -> None:
        """Take note of a CONFIRM that begins a session."""
        self._is_left = False
        if self.policy is not None and not message.resuming:
            self.maker = maker_of(message)

    def judge(
        self,
        message: Confirm,
        source: IPAddress,
        ciphers: CipherOffer | None,
        *,
        linked: bool,
        heard_at: float | None,
        now: float,
    ) -> Rejection | None:
        """Return why a CONFIRM is refused; None: it may begin a session.

        ciphers: what this end requires. linked: there is a session. heard_at: when its remote was
        last heard.
        """
        if self._is_of_another_machine(message, linked, heard_at, now):
            return Rejection(RejectCode.ID_TAKEN, ANOTHER_MACHINE_TEXT)
        refused_cipher = refusal(ciphers, message.ciphers)
        if refused_cipher:
            return Rejection(RejectCode.ENCRYPTION, refused_cipher)
        if self.policy is None or message.resuming:
            return None
        return self.policy.judge(message.description, message.offer, source)

    def _is_of_another_machine(
        self, message: Confirm, linked: bool, heard_at: float | None, now: float
    ) -> bool:
        """Tell whether another machine at this address wants what is not its own.

        Behind one NAT there may be several. A machine that was set up anew and lost its identity
        gets the circuit when the one before said goodbye, or was not heard for long.
        """
        if self.policy is None or message.resuming or self.maker in (None, maker_of(message)):
            return False
        if self._is_left:
            return False
        heard = [each for each in (heard_at, self._quiet_since) if each is not None]
        quiet_s = now - max(heard, default=now)
        return linked or quiet_s < TAKE_OVER_AFTER_S
