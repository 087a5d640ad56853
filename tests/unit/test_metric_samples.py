"""vela.supervisor.export.metrics: status records in, samples out, read by Prometheus's parser.

Expected values are written by hand, in base units: seconds, bytes, ratios of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from expositions import Samples, samples_of, value
from prometheus_client.parser import text_string_to_metric_families
from simulation import ROUTER_A, ROUTER_B, Machine, network
from status_records import CIRCUIT, DAEMON, UNKNOWN

from vela.address import Remote
from vela.linux.usage import ProcessFacts
from vela.signaling.signer import LocalKey
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig
from vela.supervisor.export.metrics import exposition
from vela.supervisor.states import STATES
from vela.supervisor.status import CircuitStatus, DaemonStatus, LossStatus, WorkerStatus

PROCESS = ProcessFacts(
    start_time_s=1700000000.25,
    cpu_s=12.5,
    resident_bytes=30000000,
    open_fds=41,
    max_fds=65536,
)


def text_of(
    *circuits: CircuitStatus,
    daemon: DaemonStatus = DAEMON,
    process: ProcessFacts | None = None,
    answers: Mapping[int, int] | None = None,
    build_s: float = 0.0,
) -> str:
    status = replace(daemon, circuits=circuits)
    return exposition(status, process, answers or {}, build_s).decode()


def scrape(*circuits: CircuitStatus, **settings: Any) -> Samples:
    return samples_of(text_of(*circuits, **settings))


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("circuit_up", {}, 1),
        ("circuit_state_seconds", {}, 61.5),
        ("circuit_recent_transitions", {}, 3),
        ("circuit_mtu_bytes", {}, 1471),
        ("circuit_path_mtu_bytes", {}, 1500),
        ("circuit_elision", {}, 1),
        ("circuit_encrypted", {}, 1),
        ("circuit_key_age_seconds", {}, 41.5),
        ("circuit_key_frames_left", {}, 268000000),
        ("circuit_round_trip_seconds", {}, 0.012345),
        ("circuit_silence_seconds", {}, 0.25),
        ("circuit_loss_ratio", {"direction": "tx"}, 0.125),
        ("circuit_loss_ratio", {"direction": "rx"}, 0),
        ("circuit_round_trip_loss_ratio", {}, 0.1337),
        ("circuit_delay_seconds", {"quantile": "0.5"}, 0.0015),
        ("circuit_delay_seconds", {"quantile": "0.99"}, 0.02),
        ("circuit_jitter_seconds", {}, 0.000001),
        ("circuit_frames_total", {"direction": "tx"}, 101),
        ("circuit_bytes_total", {"direction": "tx"}, 102),
        ("circuit_frames_total", {"direction": "rx"}, 103),
        ("circuit_bytes_total", {"direction": "rx"}, 104),
        ("circuit_elided_frames_total", {"direction": "tx"}, 105),
        ("circuit_elided_frames_total", {"direction": "rx"}, 106),
        ("circuit_fragmented_datagrams_total", {}, 107),
        ("circuit_pieced_frames_total", {"direction": "tx"}, 108),
        ("circuit_pieced_frames_total", {"direction": "rx"}, 109),
        ("circuit_mss_clamped_total", {}, 110),
        ("circuit_too_big_sent_total", {}, 111),
        ("circuit_marked_frames_total", {}, 112),
        ("circuit_send_errors_total", {}, 113),
        ("circuit_dropped_total", {"direction": "tx", "reason": "not_ip"}, 114),
        ("circuit_dropped_total", {"direction": "tx", "reason": "too_large"}, 0),
        ("circuit_dropped_total", {"direction": "rx", "reason": "short"}, 115),
        ("circuit_dropped_total", {"direction": "rx", "reason": "not_ip"}, 116),
        ("worker_running", {}, 1),
        ("worker_info", {"engine": "native", "cpu": "2"}, 1),
        ("worker_restarts_total", {}, 5),
        ("worker_cpu_ratio", {}, 1.5),
        ("worker_resident_memory_bytes", {}, 21000000),
    ],
)
def test_sample_of_a_circuit_is_that_of_its_status_in_base_units(
    name: str, labels: dict[str, str], expected: float
) -> None:
    samples = scrape(CIRCUIT)

    assert value(samples, f"vela_{name}", circuit="vela0", **labels) == expected


def test_info_of_a_circuit_says_what_it_is() -> None:
    (labels,) = (dict(labels) for name, labels in scrape(CIRCUIT) if name == "vela_circuit_info")

    assert labels == {
        "circuit": "vela0",
        "circuit_id": "7",
        "origin": "config",
        "description": "to the data centre",
        "remote": "router2.example.net",
        "remote_address": "192.0.2.9",
        "family": "ipv4",
        "encapsulation": "auto",
        "encryption": "required",
    }


def test_value_that_is_not_known_has_no_sample() -> None:
    samples = scrape(UNKNOWN)

    assert {name for name, labels in samples if ("circuit", "vela0") in labels} == {
        f"vela_{name}"
        for name in (
            "circuit_info",
            "circuit_up",
            "circuit_state",
            "circuit_state_seconds",
            "circuit_recent_transitions",
            "circuit_mtu_bytes",
            "circuit_elision",
            "circuit_encrypted",
            "circuit_frames_total",
            "circuit_bytes_total",
            "circuit_elided_frames_total",
            "circuit_pieced_frames_total",
            "circuit_fragmented_datagrams_total",
            "circuit_mss_clamped_total",
            "circuit_too_big_sent_total",
            "circuit_marked_frames_total",
            "circuit_send_errors_total",
            "circuit_dropped_total",
            "worker_running",
        )
    }
    for name in ("circuit_up", "circuit_elision", "circuit_encrypted", "worker_running"):
        assert value(samples, f"vela_{name}", circuit="vela0") == 0
    # Labels that are not known are empty: Prometheus takes that for a label that is not there.
    (info,) = (dict(labels) for name, labels in samples if name == "vela_circuit_info")
    assert (info["remote_address"], info["family"]) == ("", "")


def test_loss_of_one_direction_is_shown_without_the_other() -> None:
    half = replace(CIRCUIT, loss=LossStatus(None, 2.0, None))

    samples = scrape(half)

    assert [labels for name, labels in samples if name == "vela_circuit_loss_ratio"] == [
        (("circuit", "vela0"), ("direction", "rx"))
    ]
    assert "vela_circuit_round_trip_loss_ratio" not in {name for name, _ in samples}


def test_worker_that_is_about_to_be_replaced_does_not_run_and_keeps_its_restarts() -> None:
    ended = replace(CIRCUIT, worker=WorkerStatus(None, 2, "native", 6, None, None))

    samples = scrape(ended)

    assert value(samples, "vela_worker_running", circuit="vela0") == 0
    assert value(samples, "vela_worker_restarts_total", circuit="vela0") == 6
    assert not {"vela_worker_cpu_ratio", "vela_worker_resident_memory_bytes"} & {
        name for name, _ in samples
    }


@pytest.mark.parametrize("state", STATES)
def test_circuit_has_one_state_and_is_up_where_it_carries_frames(state: str) -> None:
    samples = scrape(replace(CIRCUIT, state=state))

    shown = {
        each: value(samples, "vela_circuit_state", circuit="vela0", state=each) for each in STATES
    }
    assert shown == dict.fromkeys(STATES, 0) | {state: 1}
    carries = state in {"up", "unmonitored"}
    assert value(samples, "vela_circuit_up", circuit="vela0") == carries


def test_circuits_are_counted_by_state_also_by_those_that_none_has() -> None:
    states = ("up", "down", "up")
    circuits = [
        replace(CIRCUIT, name=f"vela{number}", state=state) for number, state in enumerate(states)
    ]

    samples = scrape(*circuits)

    counted = {state: value(samples, "vela_circuits", state=state) for state in STATES}
    assert counted == dict.fromkeys(STATES, 0) | {"up": 2, "down": 1}
    for number, state in enumerate(states):
        assert value(samples, "vela_circuit_up", circuit=f"vela{number}") == (state == "up")


HOSTILE = 'a"b\\n\\c\nd} 1\n# {e="f",g=\'h\'}\tü'


def test_labels_are_escaped_and_make_no_sample_of_their_own() -> None:
    hostile = replace(CIRCUIT, name=HOSTILE, description=HOSTILE, remote=HOSTILE)
    daemon = replace(DAEMON, version=HOSTILE, rx_dropped={})

    samples = scrape(hostile, daemon=daemon)

    (info,) = (dict(labels) for name, labels in samples if name == "vela_circuit_info")
    assert [info[label] for label in ("circuit", "description", "remote")] == [HOSTILE] * 3
    assert value(samples, "vela_build_info", version=HOSTILE) == 1
    # Also where more labels follow that of the circuit.
    assert value(samples, "vela_circuit_frames_total", circuit=HOSTILE, direction="rx") == 103
    assert value(samples, "vela_circuit_state", circuit=HOSTILE, state="up") == 1
    reason = {"direction": "rx", "reason": "short"}
    assert value(samples, "vela_circuit_dropped_total", circuit=HOSTILE, **reason) == 115
    tame = scrape(CIRCUIT, daemon=replace(DAEMON, rx_dropped={}))
    assert len(samples) == len(tame)


def test_name_that_is_no_text_does_not_spoil_the_exposition() -> None:
    samples = scrape(replace(CIRCUIT, name="br\udcff"))

    assert value(samples, "vela_circuit_up", circuit="br?") == 1


def test_samples_of_the_daemon_are_those_of_its_status() -> None:
    samples = scrape(process=PROCESS, answers={404: 2, 200: 17}, build_s=0.0125)

    expected: Samples = {
        ("vela_build_info", (("version", "1.2.3"),)): 1,
        ("vela_listen_info", (("address", "192.0.2.1:48621"),)): 1,
        ("vela_listen_info", (("address", "[2001:db8::1]:48621"),)): 1,
        **{("vela_circuits", (("state", state),)): 0.0 for state in STATES},
        ("vela_kernel_feature_used", (("feature", "tso"),)): 1,
        ("vela_kernel_feature_used", (("feature", "udp_gro"),)): 1,
        ("vela_kernel_feature_used", (("feature", "uso"),)): 0,
        ("vela_dropped_datagrams_total", (("reason", "empty"),)): 0,
        ("vela_dropped_datagrams_total", (("reason", "unknown_circuit"),)): 3,
        ("vela_http_answers_total", (("code", "200"),)): 17,
        ("vela_http_answers_total", (("code", "404"),)): 2,
        ("vela_exposition_build_seconds", ()): 0.0125,
        ("process_start_time_seconds", ()): 1700000000.25,
        ("process_cpu_seconds_total", ()): 12.5,
        ("process_resident_memory_bytes", ()): 30000000,
        ("process_open_fds", ()): 41,
        ("process_max_fds", ()): 65536,
    }
    assert samples == expected


def test_process_whose_use_cannot_be_found_out_has_no_samples() -> None:
    assert not [name for name, _ in scrape(process=None) if name.startswith("process_")]


def test_each_metric_is_described_once_and_by_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/"""
    text = text_of(CIRCUIT, process=PROCESS, answers={200: 1})

    families = list(text_string_to_metric_families(text))
    # The parser leaves the suffix of a counter out.
    assert len({family.name for family in families}) == len(families)
    assert text.count("# HELP ") == text.count("# TYPE ") == len(families)
    for family in families:
        assert family.type in ("counter", "gauge"), family.name
        assert family.documentation.endswith("."), family.name
        assert family.samples, family.name
        names = {sample.name for sample in family.samples}
        total = "_total" if family.type == "counter" else ""
        assert names == {family.name + total}
        assert family.name.startswith(("vela_", "process_"))
        assert not family.name.endswith(("_total", "_ms", "_milliseconds", "_percent", "_kb"))


def test_metrics_are_described_also_where_they_have_no_samples() -> None:
    described = {line.split()[2] for line in text_of().splitlines() if line.startswith("# TYPE")}
    with_all = text_of(CIRCUIT, process=PROCESS, answers={200: 1})

    assert described == {
        line.split()[2] for line in with_all.splitlines() if line.startswith("# TYPE")
    }


def test_metrics_of_two_machines_say_when_their_circuit_is_up_and_when_it_is_not(
    tmp_path: Path,
) -> None:
    key = LocalKey(b"shared by all machines of a network")
    circuit = CircuitConfig("vela0", 3, Remote(str(ROUTER_B)), keepalive=1.0)
    with network(1) as simulated:
        a = Machine(simulated, ROUTER_A, tmp_path / "a", (circuit,), None, key)
        b = Machine(simulated, ROUTER_B, tmp_path / "b", (), AutoconfigureConfig(), key)
        a.boot()
        b.boot()
        simulated.run(30)
        both_up = [scrape(*machine.statuses()) for machine in (a, b)]
        b.crash()
        simulated.run(30)
        alone = scrape(*a.statuses())
        assert simulated.loop.failures == []

    for samples, origin, remote in (
        (both_up[0], "config", ROUTER_B),
        (both_up[1], "peer", ROUTER_A),
    ):
        (info,) = (dict(labels) for name, labels in samples if name == "vela_circuit_info")
        assert (info["circuit"], info["circuit_id"]) == ("vela0", "3")
        assert (info["origin"], info["remote_address"]) == (origin, str(remote))
        assert value(samples, "vela_circuits", state="up") == 1
        assert value(samples, "vela_circuit_up", circuit="vela0") == 1
        # A datagram takes 0.5 to 2 ms there.
        assert 0.001 <= value(samples, "vela_circuit_round_trip_seconds", circuit="vela0") <= 0.004
        assert 0 <= value(samples, "vela_circuit_silence_seconds", circuit="vela0") <= 1.1
        assert 25 < value(samples, "vela_circuit_state_seconds", circuit="vela0") < 30
    assert value(alone, "vela_circuits", state="up") == 0
    assert value(alone, "vela_circuit_up", circuit="vela0") == 0
    assert value(alone, "vela_circuit_silence_seconds", circuit="vela0") > 25
