"""What a benchmark found: the figures of all rounds, medians, ratios, and where that was."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.machine import Machine
from lab.regimes import Regime, tcp_ceiling


@dataclass(slots=True)
class Series:
    """One tunnel's figures in one regime: a value for each round, by key."""

    mtu: int
    rounds: dict[str, list[float]] = field(default_factory=dict)
    turns: dict[str, list[int]] = field(default_factory=dict)
    """Of which round each value is: some may have failed."""

    def add(self, figures: Mapping[str, float], turn: int) -> None:
        for key, value in figures.items():
            self.rounds.setdefault(key, []).append(value)
            self.turns.setdefault(key, []).append(turn)

    def by_turn(self, key: str) -> dict[int, float]:
        return dict(zip(self.turns.get(key, ()), self.rounds.get(key, ()), strict=True))

    def median(self, key: str) -> float | None:
        values = self.rounds.get(key)
        return statistics.median(values) if values else None


@dataclass(slots=True)
class Results:
    """One run of the benchmark."""

    machine: Machine
    started: str
    """ISO 8601, UTC."""
    settings: dict[str, Any]
    underlay_mtu: int
    references: tuple[str, ...]
    """The tunnels that others are compared with."""
    series: dict[Regime, dict[str, Series]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why, by tunnel."""
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(
        self, regime: Regime, tunnel: str, mtu: int, figures: Mapping[str, float], turn: int
    ) -> None:
        """Take what one round found."""
        self.series.setdefault(regime, {}).setdefault(tunnel, Series(mtu)).add(figures, turn)

    def ratio(self, regime: Regime, tunnel: str, reference: str, key: str) -> float | None:
        """Return how many times the reference's median the tunnel's is."""
        of = self.series[regime].get(reference)
        other = of.median(key) if of else None
        own = self.series[regime][tunnel].median(key)
        return own / other if own is not None and other else None

    def ratios(self, regime: Regime, tunnel: str, reference: str, key: str) -> list[float]:
        """Return, of each round that has both, how many times the reference's figure it is."""
        of = self.series[regime].get(reference)
        others = of.by_turn(key) if of else {}
        own = self.series[regime][tunnel].by_turn(key)
        return [value / others[turn] for turn, value in own.items() if others.get(turn)]

    def share_of_ceiling(self, tunnel: str, key: str) -> float | None:
        """Return how much of what a gigabit wire allows with that MTU the tunnel carried."""
        series = self.series[Regime.GIGABIT][tunnel]
        median = series.median(key)
        ceiling = tcp_ceiling(self.underlay_mtu, series.mtu) / 1e6
        return median / ceiling if median is not None else None

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "machine": asdict(self.machine),
            "started": self.started,
            "seconds": self.seconds,
            "settings": self.settings,
            "underlay_mtu": self.underlay_mtu,
            "skipped": self.skipped,
            "failures": self.failures,
            "regimes": {
                regime.value: {name: self._entry(regime, name) for name in tunnels}
                for regime, tunnels in self.series.items()
            },
        }

    def _entry(self, regime: Regime, name: str) -> dict[str, Any]:
        series = self.series[regime][name]
        entry: dict[str, Any] = {"mtu": series.mtu, "figures": {}}
        if regime is Regime.GIGABIT:
            entry["tcp_ceiling_mbit_per_s"] = tcp_ceiling(self.underlay_mtu, series.mtu) / 1e6
        for key, values in series.rounds.items():
            entry["figures"][key] = {
                "rounds": values,
                "median": series.median(key),
                "relative_to": {
                    reference: self.ratio(regime, name, reference, key)
                    for reference in self.references
                },
            }
        return entry
