"""What a circuit and its remote say to each other, from session to session.

A static circuit has a dialogue, too, in which nothing is ever said.
"""

from __future__ import annotations

from collections.abc import Callable

from vela.address import Endpoint, IPAddress
from vela.reasons import NO_REASON, Reason
from vela.signaling.agreement import Agreement
from vela.signaling.caller import Caller, Describe
from vela.signaling.continuation import Continuation
from vela.signaling.encryption import Encryption
from vela.signaling.events import CircuitRequested
from vela.signaling.inputs import State
from vela.signaling.messages import CloseReason, Description
from vela.signaling.policy import Policy
from vela.signaling.session import Session

from ..control_channel import ControlChannel, Hears
from ..runtime.loop import EventLoop
from ..status import AskingStatus, CipherStatus
from .asking import Asking
from .key_watch import KeyWatch
from .setup import Setup
from .signaling import EventHandler, SignalingChannel
from .standing import KEY_PROOF

_AT_REST = frozenset({State.IDLE, State.SUSPENDED, State.CLOSED})

Mark = tuple[SignalingChannel | None, tuple[int, ...]]


class Dialogue:
    """Has the session that there is, its keys, and what was agreed on."""

    def __init__(
        self,
        setup: Setup,
        loop: EventLoop,
        *,
        passive: bool,
        maker: bytes | None,
        describe: Callable[[], Description],
        echoes_arrived: Callable[[], int],
        on_event: EventHandler,
    ) -> None:
        """Say nothing yet, and have no session before open().

        passive: the remote set the circuit up. describe returns the description of this end while
        no path is known. maker, echoes_arrived: see Session.
        """
        self.agreement: Agreement | None = None
        self._loop = loop
        self._passive = passive
        self._maker = maker
        self._describe = describe
        self._echoes_arrived = echoes_arrived
        self._on_event = on_event
        self._channel: SignalingChannel | None = None
        self._calls: tuple[Describe, Hears] | None = None
        self._take(setup)

    def _take(self, setup: Setup) -> None:
        keys, channel = setup.frame_keys, setup.control_channel
        self.setup = setup
        """What the next session is made of; the present one may still be of another."""
        self._key_watch = None if keys is None else KeyWatch(keys, self._loop)
        self._asking = None if channel is None else Asking(channel)

    @property
    def channel(self) -> SignalingChannel | None:
        """None: the circuit is static."""
        return self._channel

    @property
    def session(self) -> Session | None:
        """None: the circuit is static."""
        return None if self._channel is None else self._channel.session

    @property
    def maker(self) -> bytes | None:
        """See Session."""
        return self._maker if self._channel is None else self._channel.session.maker

    @property
    def remote(self) -> Endpoint | None:
        """Where the session is, or is sought."""
        return None if self._channel is None else self._channel.session.remote

    @property
    def local_address(self) -> IPAddress | None:
        """The local address that the remote uses; None: any."""
        return None if self._channel is None else self._channel.session.local_address

    @property
    def key_proof(self) -> str | None:
        """What shows that another velad has the same key, and does not tell it."""
        key = self.setup.key
        return None if key is None else key.sign(KEY_PROOF).hex()

    def require(self) -> SignalingChannel:
        if self._channel is None:
            raise RuntimeError(f"{self.setup.config.name} is static")
        return self._channel

    def require_control(self) -> ControlChannel:
        if self.setup.control_channel is None:
            raise RuntimeError(f"{self.setup.config.name} is static")
        return self.setup.control_channel

    # One session after the other.

    def open(self) -> None:
        """Have another session, which has not begun. What was agreed on stays until it has."""
        channel = self.setup.control_channel
        if channel is None:
            self._channel = None
            return
        session = self.setup.make_session(
            channel,
            self._describe(),
            passive=self._passive,
            maker=self.maker,
            echoes_arrived=self._echoes_arrived,
        )
        self._channel = SignalingChannel(
            session, self._loop, channel, self._on_event, self.setup.config.underlay
        )
        if self._key_watch is not None:
            self._key_watch.follow(self._channel)
        self._hear_calls()

    def take_calls(self, describe: Describe, hears: Hears) -> None:
        """Ask nobody from now on, and let whoever has the key be the remote.

        A session that there is goes on. describe: see Caller. hears: see ControlChannel.
        """
        self._calls = describe, hears
        self._hear_calls()

    def take_no_calls(self) -> None:
        """Let the owner say whom to ask; a session that there is goes on."""
        if self._calls is None:
            return
        self._calls = None
        if self._channel is not None:
            self._channel.take_calls(None)
            self._channel.session.set_caller(None, self._loop.now())

    def _hear_calls(self, maker: bytes | None = None) -> None:
        """maker: which machine has the circuit, if that is known."""
        channel = self._channel
        if self._calls is None or channel is None:
            return
        describe, hears = self._calls
        caller = Caller(describe, self.require_control().randomness, maker)
        channel.session.set_caller(caller, self._loop.now())
        channel.take_calls(hears)

    def begin_anew(self, setup: Setup) -> None:
        """Take another setup, whose keys may be others; open() follows."""
        self.close_keys()
        self._take(setup)
        self.agreement = None

    def seek(self) -> None:
        """Look for the remote, unless that goes on already."""
        channel = self.require()
        if channel.session.state in _AT_REST:
            channel.session.start(self._loop.now())
        channel.pump()

    def accept(
        self, requested: CircuitRequested, local: Description, encryption: Encryption | None
    ) -> None:
        """Begin with the session that a remote asked for. See Session.accept."""
        session, now = self.require().session, self._loop.now()
        session.set_local(local, now)
        session.accept(requested, now, encryption)
        if encryption is not None and self._key_watch is not None:
            self._key_watch.expect()
        self.agreement = session.agreement

    def resume(self, former: Continuation, local: Description, maker: bytes | None) -> None:
        """Go on with a session of another velad. maker: of who has called. Raises ValueError."""
        session, now = self.require().session, self._loop.now()
        self._hear_calls(maker)
        session.set_local(local, now)
        session.resume(former, now)
        self.agreement = session.agreement

    def renew_keys(self) -> None:
        """See Session.renew_keys."""
        if self._channel is not None:
            self._channel.session.renew_keys(self._loop.now())
            self._channel.pump()

    @property
    def renews(self) -> bool:
        """See Session.renews."""
        return self._channel is not None and self._channel.session.renews

    @property
    def changes_over(self) -> bool:
        """See Session.changes_over."""
        return self._channel is not None and self._channel.session.changes_over

    def continuation(self) -> Continuation | None:
        """Return what another velad goes on with; None: the session is not up."""
        return None if self._channel is None else self._channel.session.continuation()

    def give_up(self, reason: Reason) -> None:
        """See Session.give_up."""
        channel = self.require()
        channel.session.give_up(reason, self._loop.now())
        channel.pump()

    def leave(self, reason: CloseReason) -> None:
        if self._channel is not None:
            self._channel.leave(reason)

    def forget(self) -> None:
        """End without a word."""
        if self._channel is not None:
            self._channel.forget()

    def mark(self) -> Mark:
        """Return what tells the present session from later ones."""
        nonces = () if self._channel is None else self._channel.session.local_nonces[:1]
        return self._channel, nonces

    # What is said.

    def hold(self) -> None:
        """Say nothing, and do nothing, until release()."""
        if self._channel is not None:
            self._channel.hold()

    def release(self) -> None:
        if self._channel is not None:
            self._channel.release()

    def pump(self) -> None:
        """Say what there is to say."""
        if self._channel is not None:
            self._channel.pump()

    def set_local(self, local: Description) -> None:
        """Describe this end so from now on; pump() follows."""
        if self._channel is not None:
            self._channel.session.set_local(local, self._loop.now())

    def change(self, setup: Setup) -> None:
        """Take a setup with which the session goes on, but for the key; pump() follows."""
        before, self.setup = self.setup, setup
        if setup.offer != before.offer and self._channel is not None:
            self._channel.session.set_offer(setup.offer, self._loop.now())

    def follow_key(self) -> bool:
        """Let the session go on with the key of the setup. False: it cannot."""
        channel = self.require()
        if not channel.session.set_key(self.setup.key, self._loop.now()):
            return False
        channel.pump()
        return True

    def set_policy(self, policy: Policy) -> None:
        if self._channel is not None:
            self._channel.session.set_policy(policy)

    def announce(self) -> None:
        """Show the remote where this end is now."""
        if self._channel is not None:
            self._channel.session.announce(self._loop.now())
            self._channel.pump()

    def probe(self, size: int) -> None:
        """Let the remote's supervisor answer, if it has the session."""
        if self._channel is not None and self._channel.session.probe(size):
            self._channel.pump()

    # Keys of frames.

    def check_keys(self, restarts: int | None) -> None:
        """To be called once a second. restarts: see KeyWatch."""
        if self._key_watch is not None:
            self._key_watch.check(restarts)

    def close_keys(self) -> None:
        if self._key_watch is not None:
            self._key_watch.close()

    # What there is to tell.

    def cipher_status(self) -> CipherStatus | None:
        return None if self._key_watch is None else self._key_watch.status()

    def asking_status(self) -> AskingStatus | None:
        if self._asking is None or self._channel is None:
            return None
        return self._asking.status(self._channel.session, self._loop.now())

    def why_no_answer(self) -> Reason:
        """Return what shows why the remote does not answer; empty: nothing."""
        if self._asking is None or self._channel is None:
            return NO_REASON
        return self._asking.reason(self._channel.session)
