"""vela.supervisor.status: the key names of `velactl status --json`, as the contract has them."""

from __future__ import annotations

from dataclasses import asdict

from vela.dataplane.counters import Counters, Slot
from vela.supervisor.status import CounterStatus


def test_counters_of_both_writers_stand_under_their_names() -> None:
    counters = Counters()
    for slot in Slot:
        counters.worker[slot] = 100 + slot
        counters.supervisor[slot] = 1000

    assert asdict(CounterStatus.of(counters)) == {
        "tx_frames": 1100,
        "tx_bytes": 1101,
        "tx_elided": 1102,
        "tx_fragmented": 1103,
        "tx_errors": 1104,
        "tx_dropped": {"not_ip": 1105, "no_key": 1107},
        "rx_frames": 1116,
        "rx_bytes": 1117,
        "rx_elided": 1118,
        "rx_dropped": {
            "short": 1120,
            "unknown_circuit": 1121,
            "reserved": 1122,
            "oversized": 1123,
            "malformed": 1124,
            "interface_down": 1125,
            "congested": 1126,
            "clear": 1128,
            "no_key": 1129,
            "replayed": 1130,
            "bad_tag": 1131,
        },
    }
