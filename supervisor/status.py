"""The status of velad: the records behind `velactl status --json`, with its key names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, cast

from vela.dataplane.counters import MODULUS, RX_DROPPED, TX_DROPPED, Counters, Slot
from vela.public_key import fingerprint
from vela.reasons import Reason
from vela.signaling.generations import EncryptionStatus
from vela.signaling.messages import HandshakePattern
from vela.wire import Suite

# What stands in the document as it is.
_PLAIN = (str, int, float, bool, dict, type(None))


def document(value: object) -> Any:
    """Return a record as JSON values, many times as fast as dataclasses.asdict, which copies."""
    kind = value.__class__
    if kind in _PLAIN:
        return value
    if kind is tuple:
        return [document(item) for item in cast("tuple[object, ...]", value)]
    if is_dataclass(value):
        return {
            name: each if (each := getattr(value, name)).__class__ in _PLAIN else document(each)
            for name in value.__dataclass_fields__
        }
    return value


def milliseconds(seconds: float | None) -> float | None:
    """Return a time as the status has it."""
    return None if seconds is None else round(seconds * 1000, 3)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    pid: int | None
    cpu: int
    engine: str
    restarts: int
    cpu_percent: float | None
    """Of one CPU, since the last status, or since it started."""
    memory_bytes: int | None
    """Resident; it shares most of it with the supervisor."""
    queues: int = 1
    """Of its circuit; two threads for each, on a CPU of its own. cpu is that of the first."""
    latency: str = "normal"
    """The circuit's key; "low": one thread for each queue, which polls while there is traffic."""
    ingress_cpu: int | None = None
    """Of the ingress thread, where it has an idle CPU to itself under load; None: it is cpu."""


@dataclass(frozen=True, slots=True)
class RateStatus:
    """Bits and frames per second, over the last five seconds; bytes of frames, not datagrams."""

    tx_bps: int | None
    rx_bps: int | None
    tx_pps: int | None
    rx_pps: int | None

    @classmethod
    def unknown(cls) -> RateStatus:
        return cls(None, None, None, None)


@dataclass(frozen=True, slots=True)
class LossStatus:
    """Echo requests and answers lost between the ends, in the last five minutes.

    Null: not measured.
    """

    tx_percent: float | None
    """On the way to the remote; this and the next one need a remote that says what reached it."""
    rx_percent: float | None
    """On the way back."""
    round_trip_percent: float | None
    """One of both."""


@dataclass(frozen=True, slots=True)
class DelayStatus:
    """Round trips between the workers of both ends, in milliseconds. Null: not measured."""

    p50: float | None
    """This and the next one are of the last 300 round trips."""
    p99: float | None
    jitter: float | None
    """Of RFC 3550, section 6.4.1, of round trips."""


@dataclass(frozen=True, slots=True)
class CounterStatus:
    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    tx_elided: int
    rx_elided: int
    tx_fragmented: int
    tx_pieced: int
    """Frames that left in pieces."""
    rx_joined: int
    """Frames that came in pieces."""
    mss_clamped: int
    """SYNs whose MSS was lowered, in both directions."""
    tx_too_big_sent: int
    """ICMP messages to senders of what was too large for a datagram."""
    tx_marked: int
    """Frames marked as congested, so that a queue that stands becomes shorter."""
    tx_errors: int
    tx_dropped: Mapping[str, int]
    rx_dropped: Mapping[str, int]

    @classmethod
    def zero(cls) -> CounterStatus:
        no_tx, no_rx = dict.fromkeys(TX_DROPPED, 0), dict.fromkeys(RX_DROPPED, 0)
        return cls(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, tx_dropped=no_tx, rx_dropped=no_rx)

    @classmethod
    def of(cls, counters: Counters) -> CounterStatus:
        total = counters.all_totals()
        return cls(
            tx_frames=total[Slot.TX_FRAMES],
            tx_bytes=total[Slot.TX_BYTES],
            rx_frames=total[Slot.RX_FRAMES],
            rx_bytes=total[Slot.RX_BYTES],
            tx_elided=total[Slot.TX_ELIDED],
            rx_elided=total[Slot.RX_ELIDED],
            tx_fragmented=total[Slot.TX_FRAGMENTED],
            tx_pieced=total[Slot.TX_PIECED],
            rx_joined=total[Slot.RX_JOINED],
            mss_clamped=(total[Slot.TX_MSS_CLAMPED] + total[Slot.RX_MSS_CLAMPED]) % MODULUS,
            tx_too_big_sent=total[Slot.TX_TOO_BIG_SENT],
            tx_marked=total[Slot.TX_MARKED],
            tx_errors=total[Slot.TX_ERRORS],
            tx_dropped={reason: total[slot] for reason, slot in TX_DROPPED.items()},
            rx_dropped={reason: total[slot] for reason, slot in RX_DROPPED.items()},
        )


@dataclass(frozen=True, slots=True)
class MinuteStatus:
    """What one circuit did in a minute, for velactl history."""

    time: int
    """Unix time of its end."""
    up_percent: float
    """How much of it the circuit carried frames."""
    tx_bps: int
    rx_bps: int
    asked: int
    """Echo requests whose answers are due; the others are of their answers."""
    answered: int
    tx_loss_percent: float | None
    rx_loss_percent: float | None
    p50_ms: float | None
    p99_ms: float | None
    jitter_ms: float | None


@dataclass(frozen=True, slots=True)
class CipherStatus:
    """How frames are encrypted at present."""

    suite: str
    pattern: str
    """Of the handshake."""
    peer_fingerprint: str | None
    """Of the public key that the remote proved to have; None: there is only a pre-shared key."""
    generation: int
    """Of keys, in this session."""
    age_seconds: float
    frames_left: int
    """That this end may send with its key; it gets another one long before."""

    @classmethod
    def of(
        cls, encryption: EncryptionStatus, pattern: HandshakePattern, peer_key: bytes | None
    ) -> CipherStatus:
        return cls(
            suite=_SUITES[encryption.suite],
            pattern=_PATTERNS[pattern],
            peer_fingerprint=None if peer_key is None else fingerprint(peer_key),
            generation=encryption.generation,
            age_seconds=round(encryption.age_s, 3),
            frames_left=encryption.frames_left,
        )


NOT_MEASURED = LossStatus(None, None, None), DelayStatus(None, None, None)

_SUITES = {Suite.AES_256_GCM: "AES-256-GCM", Suite.CHACHA20_POLY1305: "ChaCha20-Poly1305"}
_PATTERNS = {HandshakePattern.IK_PSK2: "IKpsk2", HandshakePattern.NN_PSK0: "NNpsk0"}


@dataclass(frozen=True, slots=True)
class ReasonStatus:
    """One row of vela.reasons, with its words."""

    code: str
    text: str

    @classmethod
    def of(cls, reasons: Iterable[Reason]) -> tuple[ReasonStatus, ...]:
        return tuple(cls(each.code, str(each)) for each in reasons)


@dataclass(frozen=True, slots=True)
class UndeliveredStatus:
    """What this machine is told of a request that did not arrive."""

    what: str
    """As in "ICMP port unreachable"."""
    source: str | None
    """Who said it, which nobody proves; None: the kernel of this machine."""
    last_seconds: float


@dataclass(frozen=True, slots=True)
class AskingStatus:
    """What was sent to a remote with which there is no session."""

    remotes: tuple[str, ...]
    """The endpoints that are asked in turn."""
    requests: int
    """REQUESTs since it began to ask."""
    since_seconds: float
    last_seconds: float
    undelivered: UndeliveredStatus | None
    """The last one that did not arrive; None: nobody says so."""


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """One of the remotes that may carry a circuit, in the order of the configuration."""

    name: str
    state: str
    """Of the one in use, the circuit's; else "standby", "lost", or "answers": it was lost."""
    current: bool
    """It is in use."""
    reason: str
    """Why it does not carry the circuit, as far as is known."""


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    name: str
    id: int
    origin: str
    description: str
    state: str
    reason: str
    """All reasons in one line."""
    reason_code: str
    """Of the first one, which says why it has this state; "" where there is no reason."""
    reasons: tuple[ReasonStatus, ...]
    since_seconds: float
    """For how long it has this state."""
    transitions: int
    """How often it began or ceased to carry frames in the last hour."""
    remote: str
    """The one in use."""
    remotes: tuple[RemoteStatus, ...]
    remote_address: str | None
    remote_port: int | None
    family: str | None
    mtu: int
    path_mtu: int | None
    """Of the route to the remote, by this host's interfaces and routing table."""
    source_port: int | None
    """The UDP port that frames leave from; None: it carries none."""
    encapsulation: str
    elision: bool
    encryption: str
    """As configured."""
    cipher: CipherStatus | None
    """None: frames are not encrypted, or there is no session."""
    asking: AskingStatus | None
    """None: it does not ask its remote for a session."""
    rtt_ms: float | None
    last_heard_seconds: float | None
    loss: LossStatus
    delay_ms: DelayStatus
    rates: RateStatus
    worker: WorkerStatus | None
    counters: CounterStatus


@dataclass(frozen=True, slots=True)
class ReceiveBufferStatus:
    """Of each socket that receives, in bytes; granted: the least of all listening addresses."""

    wanted_bytes: int
    granted_bytes: int


@dataclass(frozen=True, slots=True)
class WrongKeyStatus:
    """A machine that asked for a circuit with another key than this end has."""

    address: str
    """Not proven: anybody can send in its name."""
    messages: int
    last_seconds: float
    """Since the last one."""
    error: str


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    version: str
    pid: int
    uptime_seconds: float
    listen: tuple[str, ...]
    engine_features: tuple[str, ...]
    """Kernel features in use, sorted."""
    unused_features: tuple[str, ...]
    """Those that the kernel lacks, that are disabled, or that the engine cannot use."""
    receive_buffer: ReceiveBufferStatus
    rx_dropped: Mapping[str, int]
    wrong_keys: tuple[WrongKeyStatus, ...]
    """Of the last two minutes, the latest first; of circuits that there are, `reason` says it."""
    circuits: tuple[CircuitStatus, ...]
