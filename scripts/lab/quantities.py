"""What of a benchmark's figures is shown of all tunnels side by side: names, keys, units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Quantity:
    title: str
    """With the unit of factor times the figure."""
    key: str
    factor: float = 1.0
    form: str = "{:.0f}"
    is_cost: bool = False
    """Less of it is better."""


def quantities(settings: Mapping[str, Any]) -> list[Quantity]:
    """Return all that a run with these settings can have, in the order in which they are shown."""
    most_circuits = max(settings["circuits"])
    thousand = (1e-3, "{:.1f}")
    return [
        Quantity("one TCP stream, Mbit/s", "tcp_1_ab_mbit_per_s"),
        *(
            Quantity(f"{count} TCP streams, Mbit/s", f"tcp_{count}_ab_mbit_per_s")
            for count in settings["streams"]
        ),
        Quantity("CPU seconds a gigabyte", "tcp_1_ab_machine_s_per_gb", 1.0, "{:.2f}", True),
        Quantity("64-byte frames, thousand/s", "udp_64_frames_per_s", *thousand),
        Quantity("512-byte frames, thousand/s", "udp_512_frames_per_s", *thousand),
        Quantity("full frames, thousand/s", "udp_full_frames_per_s", *thousand),
        Quantity("round trip p50, µs", "rtt_p50_us", is_cost=True),
        Quantity("round trip p99, µs", "rtt_p99_us", is_cost=True),
        Quantity("round trip p50 under a TCP stream, µs", "loaded_p50_us", is_cost=True),
        Quantity("round trip p99 under a TCP stream, µs", "loaded_p99_us", is_cost=True),
        Quantity("round trip p50 on busy hosts, µs", "busy_p50_us", is_cost=True),
        Quantity("round trip p99 on busy hosts, µs", "busy_p99_us", is_cost=True),
        Quantity(
            "64-byte frames delivered under overload, thousand/s", "overload_frames_per_s", 1e-3
        ),
        Quantity(
            f"{most_circuits} circuits at once, Mbit/s", f"circuits_{most_circuits}_mbit_per_s"
        ),
    ]
