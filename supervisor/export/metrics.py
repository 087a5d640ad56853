"""The status as metrics for Prometheus: names and units by its conventions. Pure.

Base units: seconds, bytes, ratios of 1. A value that is not known has no sample.
https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Mapping

from vela.linux.usage import ProcessFacts

from ..states import STATES, WELL
from ..status import CircuitStatus, DaemonStatus
from .exposition import Family, encode, labels


def exposition(
    status: DaemonStatus, process: ProcessFacts | None, answers: Mapping[int, int], build_s: float
) -> bytes:
    """Return the status as metrics, in the text format.

    answers: of the HTTP server, by status. build_s: CPU time that the exposition before this one
    took.
    """
    metrics = _Metrics()
    for circuit in status.circuits:
        metrics.add(circuit)
    return metrics.finish(status, process, answers, build_s)


class _Metrics:
    """Takes the circuits one by one, then the rest, and becomes the exposition."""

    def __init__(self) -> None:
        self._families = [Family(*described) for described in _FAMILIES]
        self._add = {family.name: family.add for family in self._families}
        self._counts = dict.fromkeys(STATES, 0)

    def add(self, circuit: CircuitStatus) -> None:
        """Add the samples of one circuit. No name may come twice."""
        add = self._add
        own = labels({"circuit": circuit.name})
        begin = own[:-1]
        tx, rx = f'{begin},direction="tx"}}', f'{begin},direction="rx"}}'
        counters, worker, cipher = circuit.counters, circuit.worker, circuit.cipher
        self._counts[circuit.state] = self._counts.get(circuit.state, 0) + 1
        add["vela_circuit_info"](
            1,
            labels(
                {
                    "circuit": circuit.name,
                    "circuit_id": circuit.id,
                    "origin": circuit.origin,
                    "description": circuit.description,
                    "remote": circuit.remote,
                    "remote_address": circuit.remote_address or "",
                    "family": circuit.family or "",
                    "encapsulation": circuit.encapsulation,
                    "encryption": circuit.encryption,
                }
            ),
        )
        add["vela_circuit_up"](circuit.state in WELL, own)
        for state in STATES:
            add["vela_circuit_state"](state == circuit.state, f'{begin},state="{state}"}}')
        add["vela_circuit_state_seconds"](circuit.since_seconds, own)
        add["vela_circuit_recent_transitions"](circuit.transitions, own)
        add["vela_circuit_mtu_bytes"](circuit.mtu, own)
        add["vela_circuit_path_mtu_bytes"](circuit.path_mtu, own)
        add["vela_circuit_elision"](circuit.elision, own)
        add["vela_circuit_encrypted"](cipher is not None, own)
        if cipher is not None:
            add["vela_circuit_key_age_seconds"](cipher.age_seconds, own)
            add["vela_circuit_key_frames_left"](cipher.frames_left, own)
        add["vela_circuit_round_trip_seconds"](_seconds(circuit.rtt_ms), own)
        add["vela_circuit_silence_seconds"](circuit.last_heard_seconds, own)
        add["vela_circuit_loss_ratio"](_ratio(circuit.loss.tx_percent), tx)
        add["vela_circuit_loss_ratio"](_ratio(circuit.loss.rx_percent), rx)
        add["vela_circuit_round_trip_loss_ratio"](_ratio(circuit.loss.round_trip_percent), own)
        delay = circuit.delay_ms
        add["vela_circuit_delay_seconds"](_seconds(delay.p50), f'{begin},quantile="0.5"}}')
        add["vela_circuit_delay_seconds"](_seconds(delay.p99), f'{begin},quantile="0.99"}}')
        add["vela_circuit_jitter_seconds"](_seconds(delay.jitter), own)
        add["vela_circuit_frames_total"](counters.tx_frames, tx)
        add["vela_circuit_frames_total"](counters.rx_frames, rx)
        add["vela_circuit_bytes_total"](counters.tx_bytes, tx)
        add["vela_circuit_bytes_total"](counters.rx_bytes, rx)
        add["vela_circuit_elided_frames_total"](counters.tx_elided, tx)
        add["vela_circuit_elided_frames_total"](counters.rx_elided, rx)
        add["vela_circuit_pieced_frames_total"](counters.tx_pieced, tx)
        add["vela_circuit_pieced_frames_total"](counters.rx_joined, rx)
        add["vela_circuit_fragmented_datagrams_total"](counters.tx_fragmented, own)
        add["vela_circuit_mss_clamped_total"](counters.mss_clamped, own)
        add["vela_circuit_too_big_sent_total"](counters.tx_too_big_sent, own)
        add["vela_circuit_marked_frames_total"](counters.tx_marked, own)
        add["vela_circuit_send_errors_total"](counters.tx_errors, own)
        for way, dropped in ((tx, counters.tx_dropped), (rx, counters.rx_dropped)):
            for reason, count in dropped.items():
                add["vela_circuit_dropped_total"](count, f'{way[:-1]},reason="{reason}"}}')
        add["vela_worker_running"](worker is not None and worker.pid is not None, own)
        if worker is not None:
            add["vela_worker_info"](
                1, labels({"circuit": circuit.name, "engine": worker.engine, "cpu": worker.cpu})
            )
            add["vela_worker_restarts_total"](worker.restarts, own)
            add["vela_worker_cpu_ratio"](_ratio(worker.cpu_percent), own)
            add["vela_worker_resident_memory_bytes"](worker.memory_bytes, own)

    def finish(
        self,
        daemon: DaemonStatus,
        process: ProcessFacts | None,
        answers: Mapping[int, int],
        build_s: float,
    ) -> bytes:
        """Return the exposition."""
        add = self._add
        add["vela_build_info"](1, labels({"version": daemon.version}))
        for listen in daemon.listen:
            add["vela_listen_info"](1, labels({"address": listen}))
        for state, count in self._counts.items():
            add["vela_circuits"](count, labels({"state": state}))
        for used, features in ((1, daemon.engine_features), (0, daemon.unused_features)):
            for feature in features:
                add["vela_kernel_feature_used"](used, labels({"feature": feature}))
        for reason, count in daemon.rx_dropped.items():
            add["vela_dropped_datagrams_total"](count, labels({"reason": reason}))
        for status, count in sorted(answers.items()):
            add["vela_http_answers_total"](count, labels({"code": status}))
        add["vela_exposition_build_seconds"](build_s)
        if process is not None:
            add["process_start_time_seconds"](process.start_time_s)
            add["process_cpu_seconds_total"](process.cpu_s)
            add["process_resident_memory_bytes"](process.resident_bytes)
            add["process_open_fds"](process.open_fds)
            add["process_max_fds"](process.max_fds)
        return encode(self._families)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds / 1000, 9)


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 9)


_FAMILIES = (
    ("vela_build_info", "gauge", "The version of velad."),
    ("vela_listen_info", "gauge", "Addresses and ports that velad receives on."),
    ("vela_circuits", "gauge", "Number of circuits by state."),
    ("vela_kernel_feature_used", "gauge", "1: a kernel feature is in use, 0: it is not."),
    (
        "vela_dropped_datagrams_total",
        "counter",
        "Datagrams that belong to no circuit and were dropped, and control messages, by reason.",
    ),
    ("vela_http_answers_total", "counter", "Answers of this HTTP server by status code."),
    (
        "vela_exposition_build_seconds",
        "gauge",
        "CPU time that the exposition before this one took the supervisor.",
    ),
    ("vela_circuit_info", "gauge", "What a circuit is."),
    (
        "vela_circuit_up",
        "gauge",
        "1: the circuit carries frames (up, unmonitored), 0: it does not.",
    ),
    ("vela_circuit_state", "gauge", "1 for the state that the circuit has, 0 for all others."),
    ("vela_circuit_state_seconds", "gauge", "For how long the circuit has its state."),
    (
        "vela_circuit_recent_transitions",
        "gauge",
        "How often it began or ceased to carry frames in the last hour.",
    ),
    ("vela_circuit_mtu_bytes", "gauge", "MTU of the interface."),
    ("vela_circuit_path_mtu_bytes", "gauge", "MTU of the path to the remote."),
    ("vela_circuit_elision", "gauge", "1: Ethernet headers are left out where they can be."),
    ("vela_circuit_encrypted", "gauge", "1: frames are encrypted at present, 0: they are not."),
    ("vela_circuit_key_age_seconds", "gauge", "Age of the key in use."),
    ("vela_circuit_key_frames_left", "gauge", "Frames that may still be sent with the key in use."),
    (
        "vela_circuit_round_trip_seconds",
        "gauge",
        "Round trip of control messages between the supervisors.",
    ),
    (
        "vela_circuit_silence_seconds",
        "gauge",
        "Time since the last control message of the remote.",
    ),
    (
        "vela_circuit_loss_ratio",
        "gauge",
        "Probes lost between the ends in the last five minutes, 0 to 1, by direction.",
    ),
    (
        "vela_circuit_round_trip_loss_ratio",
        "gauge",
        "Probes lost on their way out or back in the last five minutes, 0 to 1.",
    ),
    (
        "vela_circuit_delay_seconds",
        "gauge",
        "Round trip between the workers of both ends, of the last 300 probes.",
    ),
    (
        "vela_circuit_jitter_seconds",
        "gauge",
        "Jitter of the round trip between the workers, by RFC 3550, section 6.4.1.",
    ),
    ("vela_circuit_frames_total", "counter", "Frames read from the TAP (tx), written to it (rx)."),
    ("vela_circuit_bytes_total", "counter", "Bytes of these frames."),
    (
        "vela_circuit_elided_frames_total",
        "counter",
        "Frames sent and received without their Ethernet header.",
    ),
    ("vela_circuit_pieced_frames_total", "counter", "Frames sent and received in pieces."),
    (
        "vela_circuit_fragmented_datagrams_total",
        "counter",
        "Datagrams larger than the path's MTU, which IP fragments.",
    ),
    (
        "vela_circuit_mss_clamped_total",
        "counter",
        "TCP handshakes whose MSS was lowered, in both directions.",
    ),
    (
        "vela_circuit_too_big_sent_total",
        "counter",
        "ICMP messages to senders of packets that are too large for a datagram.",
    ),
    (
        "vela_circuit_marked_frames_total",
        "counter",
        "Frames marked as congested (ECN), as the queue of the interface stood.",
    ),
    ("vela_circuit_send_errors_total", "counter", "Frames that the kernel refused to send."),
    ("vela_circuit_dropped_total", "counter", "Frames and datagrams dropped, by reason."),
    ("vela_worker_running", "gauge", "1: the worker of the circuit runs, 0: it does not."),
    ("vela_worker_info", "gauge", "The engine of the worker, and the CPU that it is pinned to."),
    ("vela_worker_restarts_total", "counter", "How often the worker was replaced after it ended."),
    (
        "vela_worker_cpu_ratio",
        "gauge",
        "CPUs used by the worker since it was last asked for, a second ago at least.",
    ),
    (
        "vela_worker_resident_memory_bytes",
        "gauge",
        "Resident memory of the worker, most of it shared with the supervisor.",
    ),
    ("process_start_time_seconds", "gauge", "When velad was started, in Unix time."),
    ("process_cpu_seconds_total", "counter", "CPU time of the supervisor."),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the supervisor."),
    ("process_open_fds", "gauge", "Open descriptors of the supervisor."),
    ("process_max_fds", "gauge", "Descriptors that the supervisor may open."),
)
