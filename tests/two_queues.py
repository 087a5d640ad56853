"""Circuits with a queue on each of two CPUs: what their tests need, and how many queues carry."""

from __future__ import annotations

import os

import pytest

from lab.circuit import NAME
from lab.daemon import Velad

TWO = sorted(os.sched_getaffinity(0))[:2]
MARKS = [
    pytest.mark.alone,
    pytest.mark.needs_net_admin,
    pytest.mark.skipif(len(TWO) < 2, reason="two queues take two CPUs"),
]


def queues(velad: Velad) -> int:
    found: int = velad.circuit(NAME)["worker"]["queues"]
    return found
